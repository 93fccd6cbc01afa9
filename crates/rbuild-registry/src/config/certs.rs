//! Certificates: those of the system, and the directories `certs.d` of Docker and Podman.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use crate::config_error::{ConfigError, FileAction};
use crate::endpoint_modes::CertificateCheck;
use crate::environment::ProcessEnvironment;
use crate::tls::TlsFiles;

/// Files with certificates for one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct CertFiles {
    /// Roots besides those of the system.
    pub roots: Vec<PathBuf>,
    /// Certificate and key of the client.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl CertFiles {
    /// Adds the files of the first `certs.d` directory with an entry for the host.
    pub(crate) fn find(&mut self, environment: &ProcessEnvironment, host: &str) -> Result<(), ConfigError> {
        let user = environment.user_config("containers/certs.d");
        let system = ["etc/containers/certs.d", "etc/docker/certs.d"].map(|dir| environment.system(dir));
        let dirs = user.into_iter().chain(system).map(|dir| dir.join(host));
        dirs.into_iter().find(|dir| dir.is_dir()).map_or(Ok(()), |dir| self.add(&dir))
    }

    /// Adds the files of a directory.
    pub(crate) fn add(&mut self, dir: &Path) -> Result<(), ConfigError> {
        let entries = std::fs::read_dir(dir).map_err(ConfigError::file(FileAction::Read, dir))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        let has = |path: &Path| files.iter().any(|file| file == path);
        for file in &files {
            match file.extension().and_then(|e| e.to_str()) {
                Some("crt") => self.roots.push(file.clone()),
                Some("cert") if has(&file.with_extension("key")) => {
                    self.client = Some((file.clone(), file.with_extension("key")));
                }
                Some("cert") => {
                    return Err(ConfigError::content(file, "no key: the file with the suffix .key is missing"));
                }
                Some("key") if !has(&file.with_extension("cert")) => {
                    let reason = "no certificate: the file with the suffix .cert is missing";
                    return Err(ConfigError::content(file, reason));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the settings for a server with authorities of its own; `None` if it has none, or if
    /// its certificate is not verified.
    pub(crate) fn own(&self, check: CertificateCheck) -> Result<Option<Arc<ClientConfig>>, ConfigError> {
        let Some(first) = self.roots.first().filter(|_| check == CertificateCheck::Required) else { return Ok(None) };
        let mut own = Vec::new();
        for file in &self.roots {
            own.extend(certificates(file)?.iter().map(der));
        }
        let roots = system_roots().iter().map(der).chain(own.iter().cloned()).collect();
        let client = self.client.as_ref().map(|(cert, key)| {
            let chain = certificates(cert)?.iter().map(der).collect();
            let bytes = std::fs::read(key).map_err(ConfigError::file(FileAction::Read, key))?;
            let parsed = PrivateKeyDer::from_pem_slice(&bytes);
            Ok::<_, ConfigError>((chain, parsed.map_err(|_| ConfigError::content(key, "no PEM private key"))?))
        });
        let files = TlsFiles { roots, own, client: client.transpose()? };
        let place = self.client.as_ref().map_or(first, |(cert, _)| cert);
        files.config().map(Some).map_err(|reason| ConfigError::content(place, reason))
    }

    /// Returns the TLS settings for other servers.
    pub(crate) fn tls(
        &self,
        environment: &ProcessEnvironment,
        check: CertificateCheck,
    ) -> Result<TlsConfig, ConfigError> {
        let is_required = check == CertificateCheck::Required;
        let replaced = ["SSL_CERT_FILE", "SSL_CERT_DIR"].iter().any(|name| environment.variable(name).is_some());
        // Reading the system's roots takes some milliseconds.
        let roots = if is_required && replaced {
            RootCerts::new_with_certs(system_roots())
        } else {
            RootCerts::PlatformVerifier
        };
        let client = self.client.as_ref().map(|(cert, key)| {
            Ok::<_, ConfigError>(ClientCert::new_with_certs(&certificates(cert)?, private_key(key)?))
        });
        let config = TlsConfig::builder().root_certs(roots).disable_verification(!is_required);
        Ok(config.client_cert(client.transpose()?).build())
    }
}

/// Returns a certificate for rustls.
fn der(certificate: &Certificate<'static>) -> CertificateDer<'static> {
    CertificateDer::from(certificate.der().to_vec())
}

/// Returns the roots of the system, or of SSL_CERT_FILE and SSL_CERT_DIR.
fn system_roots() -> &'static [Certificate<'static>] {
    static ROOTS: OnceLock<Vec<Certificate<'static>>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs().certs;
        found.iter().map(|cert| Certificate::from_der(cert).to_owned()).collect()
    })
}

fn items(file: &Path) -> Result<Vec<PemItem<'static>>, ConfigError> {
    let text = std::fs::read(file).map_err(ConfigError::file(FileAction::Read, file))?;
    parse_pem(&text).collect::<Result<_, _>>().map_err(|_| ConfigError::content(file, "invalid PEM encoding"))
}

fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>, ConfigError> {
    let certificate = |item| match item {
        PemItem::Certificate(certificate) => Some(certificate),
        _ => None,
    };
    let found: Vec<_> = items(file)?.into_iter().filter_map(certificate).collect();
    if found.is_empty() { Err(ConfigError::content(file, "no PEM certificate")) } else { Ok(found) }
}

fn private_key(file: &Path) -> Result<PrivateKey<'static>, ConfigError> {
    let key = |item| match item {
        PemItem::PrivateKey(key) => Some(key),
        _ => None,
    };
    let found = items(file)?.into_iter().find_map(key);
    found.ok_or_else(|| ConfigError::content(file, "no PEM private key"))
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{Scratch, assert_recorded};

    use super::*;

    #[test]
    fn unusable_certificates_are_reported_as_recorded() {
        let root = Scratch::new();
        let dir = root.join("etc/docker/certs.d/r.io");
        std::fs::create_dir_all(&dir).unwrap();
        let environment = ProcessEnvironment::of([], &root);
        let write = |name: &str, text: &str| {
            std::fs::write(dir.join(name), text).unwrap();
            dir.join(name)
        };
        let empty = write("ca.crt", "no PEM here");
        let broken = write("broken.crt", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
        let lone_key = write("a.key", "");
        let without_certificate = CertFiles::default().find(&environment, "r.io").unwrap_err();
        std::fs::remove_file(lone_key).unwrap();
        write("b.cert", "");
        let errors = [
            certificates(&empty).unwrap_err(),
            certificates(&broken).unwrap_err(),
            certificates(&dir.join("nosuch.crt")).unwrap_err(),
            private_key(&empty).unwrap_err(),
            without_certificate,
            CertFiles::default().find(&environment, "r.io").unwrap_err(),
        ];
        let line = |e: &ConfigError| format!("{}\n", rbuild_remedy::sentence(e).replace(root.to_str().unwrap(), ""));
        assert_recorded!("certificates", errors.iter().map(line).collect::<String>());
    }
}
