//! Settings and connections that all repositories of a client share.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbuild_linux::parallel::locked;
use rbuild_remedy::sentence;

use crate::blob_connections::BlobConnections;
use crate::config::certs::CertFiles;
use crate::credential::CommandLineCredentials;
use crate::endpoint::{OwnSettings, TlsVerify};
use crate::endpoint_modes::EndpointRole;
use crate::environment::ProcessEnvironment;
use crate::error::RegistryProblem;
use crate::http::{Http, HttpReply};
use crate::objects::login::ObjectLogin;
use crate::objects::part_policy::PartPolicy;
use crate::open_uploads::{OpenUploads, UploadRequest};
use crate::range_policy::RangePolicy;
use crate::retry::{Attempts, Notice, is_temporary_status, retry_after};
use crate::retry_policy::RetryPolicy;
use crate::server_settings::ServerSettings;

/// Settings of the calling program.
#[derive(Clone, Default)]
pub struct Options {
    /// Logins.
    pub given: CommandLineCredentials,
    /// Verification of certificates, if it is given.
    pub tls_verify: TlsVerify,
    /// Directory with certificates for registries, which replaces those of the settings.
    pub cert_dir: Option<PathBuf>,
    /// Settings of servers.
    pub servers: ServerSettings,
    /// Times and numbers of attempts.
    pub retry_policy: RetryPolicy,
    /// Downloads of large blobs in ranges.
    pub ranges: RangePolicy,
    /// Uploads of large objects in parts.
    pub parts: PartPolicy,
    /// Logins for object stores.
    pub object_logins: Vec<ObjectLogin>,
    /// The uploads of the clients with these options.
    pub uploads: OpenUploads,
}

impl Options {
    pub(crate) fn own(&self) -> OwnSettings<'_> {
        OwnSettings { verify: self.tls_verify, cert_dir: self.cert_dir.as_deref(), servers: &self.servers }
    }
}

/// Connections and settings of all repositories of a client.
pub(crate) struct ClientState {
    pub environment: ProcessEnvironment,
    pub options: Options,
    pub http: Http,
    pub blob_connections: Arc<BlobConnections>,
    pub notify: Box<dyn Fn(Notice) + Send + Sync>,
    /// Warnings of servers that have been shown.
    pub shown: Mutex<HashSet<String>>,
}

impl ClientState {
    /// Returns the certificates for a server that a registry redirects to or names as its token
    /// server. Of a directory of the command line, it gets only the authorities.
    pub(crate) fn certs_of_other(&self, host: &str) -> Result<CertFiles, RegistryProblem> {
        let mut certs = CertFiles::default();
        match &self.options.cert_dir {
            Some(dir) => certs.add(dir).map(|()| certs.client = None),
            None => {
                certs.roots.extend(self.options.servers.of(host).and_then(|setting| setting.ca.clone()));
                certs.find(&self.environment, host)
            }
        }
        .map_err(RegistryProblem::Config)?;
        Ok(certs)
    }

    /// Fails once the transfers end.
    pub(crate) fn check_ending(&self) -> Result<(), RegistryProblem> {
        self.options.uploads.check().map_err(|source| RegistryProblem::Local { data: "the data to send", source })
    }

    /// Announces a request that opens an upload.
    pub(crate) fn begin_upload(&self) -> Result<UploadRequest, RegistryProblem> {
        self.options.uploads.begin().map_err(|source| RegistryProblem::Local { data: "the data to send", source })
    }

    /// Reports a wait to the user, and waits.
    pub(crate) fn wait(&self, host: &str, reason: String, wait: Duration) {
        (self.notify)(Notice::Waiting { host: host.to_string(), reason, wait });
        std::thread::sleep(wait);
    }

    /// Returns the counter of attempts at an endpoint. A mirror gets fewer.
    pub(crate) fn attempts(&self, role: EndpointRole) -> Attempts {
        Attempts::new(self.http.retry_policy(), role)
    }

    /// Sends until the outcome is final, with the waits that the server requests or the retry table
    /// sets.
    pub(crate) fn repeat(
        &self,
        host: &str,
        mut attempts: Attempts,
        send: impl Fn() -> Result<HttpReply, RegistryProblem>,
    ) -> Result<HttpReply, RegistryProblem> {
        loop {
            let sent = send();
            let (reason, wait) = match &sent {
                Ok(reply) if is_temporary_status(reply.status()) => {
                    let requested = reply.header("retry-after").and_then(retry_after);
                    (format!("HTTP status {}", reply.status()), attempts.next(requested))
                }
                Ok(_) => return sent,
                Err(problem) => (sentence(problem), attempts.after(problem)),
            };
            match wait {
                Some(wait) => self.wait(host, reason, wait),
                None => return sent,
            }
        }
    }

    /// Shows the warnings of a reply (`Warning: 299 - "text"`), each once.
    pub(crate) fn show_warnings(&self, reply: &HttpReply) {
        for header in reply.response.headers().get_all("warning") {
            let quoted = header.to_str().ok().and_then(|text| text.strip_prefix("299 ")?.split_once('"'));
            let Some((_, text)) = quoted else { continue };
            let text: String = self.http.sent.hidden_in(text.trim_end_matches('"')).chars().take(300).collect();
            if locked(&self.shown).insert(text.clone()) {
                let host = crate::url::split(&reply.url).map_or("", |(_, host, _)| host).to_string();
                (self.notify)(Notice::Warning { host, text });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn other_servers_get_the_authorities_of_a_directory_and_no_certificate_of_the_client() {
        let dir = Scratch::new();
        for name in ["ca.crt", "me.cert", "me.key"] {
            std::fs::write(dir.join(name), "").unwrap();
        }
        let environment = ProcessEnvironment::of([], &dir);
        let options = Options { cert_dir: Some(dir.to_path_buf()), ..Options::default() };
        let http = Http::new(environment.clone(), options.retry_policy);
        let (notify, blob_connections, shown) = (Box::new(|_| {}), Arc::default(), Mutex::default());
        let shared = ClientState { environment, options, http, blob_connections, notify, shown };
        let certs = shared.certs_of_other("auth.io").unwrap();
        assert_eq!((certs.roots, certs.client), (vec![dir.join("ca.crt")], None));
    }
}
