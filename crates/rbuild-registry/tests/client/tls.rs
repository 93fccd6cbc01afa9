//! TLS with certificates of a server that are their own authority.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use rbuild_image::{BlobDigest, Reference};
use rbuild_registry::{Client, Options, ProcessEnvironment, RegistryProblem, RetryPolicy, TlsVerify};
use rbuild_testkit::Scratch;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;

/// A key, and certificates of its own that are marked as those of an authority, as `openssl req
/// -x509` makes them.
const KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgxVEOzhfAcaArdtaU
WoU7tuDwKWQ+wuLXQlTSfVt/OUuhRANCAAR95dTFUmKJD8ry2RDeEIVMEAkk6jrS
AGeFAgbajcry/a7CA5HNQy6qy9KCM7UD1a5CZ6DRWOWyyASXudCbMco6
-----END PRIVATE KEY-----
";
/// For 127.0.0.1, until 2120.
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBZDCCAQqgAwIBAgIBATAKBggqhkjOPQQDAjAYMRYwFAYDVQQDDA1yZWdpc3Ry
eS50ZXN0MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAYMRYwFAYD
VQQDDA1yZWdpc3RyeS50ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEfeXU
xVJiiQ/K8tkQ3hCFTBAJJOo60gBnhQIG2o3K8v2uwgORzUMuqsvSgjO1A9WuQmeg
0VjlssgEl7nQmzHKOqNDMEEwDwYDVR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/
AAABMB0GA1UdDgQWBBSXM50IOE+CZurHQ/HrQZrfQ0YF5zAKBggqhkjOPQQDAgNI
ADBFAiB8FDQiFMQE9xXppwSUYO9On8ShOLZmrxEAfk6wEwBeAwIhAO8ZJgTmkTtg
WPkEkQ28a+e7Y6Aqtpw66PgiQd0BL2G5
-----END CERTIFICATE-----
";
/// For 127.0.0.1, until 2021.
const EXPIRED: &str = "\
-----BEGIN CERTIFICATE-----
MIIBYzCCAQigAwIBAgIBATAKBggqhkjOPQQDAjAYMRYwFAYDVQQDDA1yZWdpc3Ry
eS50ZXN0MB4XDTIwMDEwMTAwMDAwMFoXDTIxMDEwMTAwMDAwMFowGDEWMBQGA1UE
AwwNcmVnaXN0cnkudGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABH3l1MVS
YokPyvLZEN4QhUwQCSTqOtIAZ4UCBtqNyvL9rsIDkc1DLqrL0oIztQPVrkJnoNFY
5bLIBJe50JsxyjqjQzBBMA8GA1UdEwEB/wQFMAMBAf8wDwYDVR0RBAgwBocEfwAA
ATAdBgNVHQ4EFgQUlzOdCDhPgmbqx0Px60Ga30NGBecwCgYIKoZIzj0EAwIDSQAw
RgIhAKnQBQCLT32Nmwv62FmRho21AxZY7gsL/gP7bXEKLNO2AiEAj25OpA7IdJaG
LR7FUKmTOIkbNzj/91SQ3XRmeetEEwA=
-----END CERTIFICATE-----
";
/// For other.test, until 2120.
const OTHER_NAME: &str = "\
-----BEGIN CERTIFICATE-----
MIIBazCCARCgAwIBAgIBATAKBggqhkjOPQQDAjAYMRYwFAYDVQQDDA1yZWdpc3Ry
eS50ZXN0MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAYMRYwFAYD
VQQDDA1yZWdpc3RyeS50ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEfeXU
xVJiiQ/K8tkQ3hCFTBAJJOo60gBnhQIG2o3K8v2uwgORzUMuqsvSgjO1A9WuQmeg
0VjlssgEl7nQmzHKOqNJMEcwDwYDVR0TAQH/BAUwAwEB/zAVBgNVHREEDjAMggpv
dGhlci50ZXN0MB0GA1UdDgQWBBSXM50IOE+CZurHQ/HrQZrfQ0YF5zAKBggqhkjO
PQQDAgNJADBGAiEAm+qFaoL+Vvz97Btc8O22zsOzEnvxlF7K1ZrjkVqjX6gCIQC7
2aPVXBfrymk8fbX/xsF8TUK+55FV3TR2T3hud/9mhQ==
-----END CERTIFICATE-----
";

/// Starts a server with that certificate, which answers every request with the manifest. Returns
/// its address.
fn serve(certificate: &str) -> String {
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let connection = ServerConnection::new(config.clone()).unwrap();
            let mut reader = BufReader::new(StreamOwned::new(connection, socket));
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|size| size > 0) {
                if line == "\r\n" {
                    let head = format!(
                        "HTTP/1.1 200 -\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n\
                         Content-Length: {}\r\n\r\n",
                        MANIFEST.len()
                    );
                    let _ = reader.get_mut().write_all(&[head.as_bytes(), MANIFEST].concat());
                }
                line.clear();
            }
        }
    });
    address
}

/// Requests the manifest twice from a server with that certificate, given these files of the
/// directory with certificates.
fn requested(certificate: &str, files: &[(&str, &str)]) -> Result<(), String> {
    let (dir, address) = (Scratch::new(), serve(certificate));
    let certs: &Path = &dir.join("certs");
    std::fs::create_dir(certs).unwrap();
    for (name, text) in files {
        std::fs::write(certs.join(name), text).unwrap();
    }
    let environment = ProcessEnvironment::of([("HOME", dir.to_str().unwrap())], &dir);
    let options = Options {
        tls_verify: TlsVerify::Required,
        cert_dir: Some(certs.to_path_buf()),
        retry_policy: RetryPolicy { first_wait: std::time::Duration::from_millis(20), ..RetryPolicy::default() },
        ..Options::default()
    };
    let client = Client::new(environment, options, |_| {});
    let name: Reference = format!("{address}/x").parse().unwrap();
    let repository = client.repository(&name).unwrap();
    for _ in 0..2 {
        let document = repository.document(&BlobDigest::of(MANIFEST)).map_err(|e| match *e.problem {
            RegistryProblem::Connection { ref source, .. } => source.to_string(),
            ref other => other.to_string(),
        })?;
        assert_eq!(document.bytes, MANIFEST);
    }
    Ok(())
}

#[test]
fn a_certificate_that_is_its_own_authority_is_accepted_if_it_is_given() {
    assert_eq!(requested(CERTIFICATE, &[("ca.crt", CERTIFICATE)]), Ok(()));
    let client = [("ca.crt", CERTIFICATE), ("client.cert", CERTIFICATE), ("client.key", KEY)];
    assert_eq!(requested(CERTIFICATE, &client), Ok(()));
    for (case, certificate, files, want) in [
        ("none", CERTIFICATE, &[][..], "invalid peer certificate"),
        ("another", CERTIFICATE, &[("ca.crt", OTHER_NAME)], "invalid peer certificate"),
        ("expired", EXPIRED, &[("ca.crt", EXPIRED)], "invalid peer certificate"),
        ("another name", OTHER_NAME, &[("ca.crt", OTHER_NAME)], "not valid for name"),
    ] {
        let e = requested(certificate, files).unwrap_err();
        assert!(e.contains(want), "{case}: {e}");
    }
    // A key of another certificate.
    let other_key = [("ca.crt", CERTIFICATE), ("client.cert", CERTIFICATE), ("client.key", OTHER_KEY)];
    let e = requested(CERTIFICATE, &other_key).unwrap_err();
    assert!(e.contains("client.cert"), "{e}");
}

const OTHER_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgX7owbHx2GhvLOPoK
fGL+F7GA2C+aBveKulHaolwxQFmhRANCAAQjSv+ghHvO3n6q3CidjC60eKa/9GfJ
ltXp+Bd5+SbriYhjNcbOYPimX9pltzcNb9R7jQsjY7gnYXlft/7pJ6XE
-----END PRIVATE KEY-----
";
