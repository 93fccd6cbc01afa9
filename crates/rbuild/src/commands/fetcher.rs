//! The fetcher: a separate process for pulls, pushes and downloads of a build.
//!
//! It is forked by the launcher, in the caller's namespaces, because the resolver, the certificates
//! and the credentials are available only there. Only the fetcher reads credentials and
//! communicates with registries. The launcher remains single-threaded. The builder, which is
//! started later and handles hostile images, has no credentials in its memory.

use std::io::Write;

use rbuild_engine::{BuildError, UrlSource};
use rbuild_image::{BlobDigest, ManifestDigest, Reference, SourceUrl};
use rbuild_linux::StopSignals;
use rbuild_linux::process::{self, Cloned, Exit};
use rbuild_registry::Secret;
use rbuild_remedy::ReportedError;
use rbuild_store::{Download, Store};
use rbuild_transport::DownloadRequest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::RegistryFlags;
use crate::commands::transfer::{PushedImage, PushedLayers, TransferDisplay, download_one, push_all};
use crate::exit::{Failure, code, reported};
use crate::input::registry;
use crate::ui::transfer_bar;

/// Runs `work` in a fetcher and returns its answer. A signal that requests the end of the program
/// ends the fetcher, and is a failure. The caller must have one thread.
pub fn in_fetcher<T: Serialize + DeserializeOwned>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    let failed = not_started;
    let (answer, mut writer) = std::io::pipe().map_err(|e| failed(&e))?;
    let launcher = process::own_pidfd().map_err(|e| failed(&e))?;
    // Signals of a terminal are for the launcher, which ends the fetcher.
    let signals = StopSignals::block().map_err(|e| failed(&e))?;
    match process::fork().map_err(|e| failed(&e))? {
        Cloned::Child => {
            drop(answer);
            if process::die_with(&launcher).is_err() {
                std::process::exit(i32::from(code::BUG));
            }
            let text = serde_json::to_vec(&work()).unwrap_or_default();
            let written = writer.write_all(&text);
            std::process::exit(i32::from(if written.is_ok() { code::OK } else { code::FAILED }))
        }
        Cloned::Parent { child } => {
            drop(writer);
            let read = signals.read_to_end(answer);
            if matches!(read, Ok(None)) {
                process::kill(child);
            }
            let exit = process::wait(child).map_err(|e| failed(&e))?;
            match read {
                Ok(None) => {
                    transfer_bar::erase();
                    Err(Failure::interrupted())
                }
                Ok(Some(text)) => serde_json::from_slice(&text).map_err(|_| no_answer(&exit)),
                Err(_) => Err(no_answer(&exit)),
            }
        }
    }
}

fn not_started(e: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::caused("cannot start the fetcher", e)
}

fn no_answer(exit: &Exit) -> Failure {
    let ended = match exit {
        Exit::Signal(signal) => format!("it was killed (signal {signal})"),
        Exit::Code(code) => format!("it ended with code {code}"),
    };
    Failure::new(format!("the fetcher ended without an answer: {ended}"))
}

/// Returns the secrets of a build that are logins for servers of downloaded files.
pub fn logins(secrets: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    secrets.iter().filter(|(id, _)| id.starts_with("HTTP_AUTH_")).cloned().collect()
}

/// Downloads the files that a build needs, with logins among `secrets` for their servers.
pub fn fetch(
    store: &Store,
    flags: &RegistryFlags,
    secrets: &[(String, Vec<u8>)],
    display: TransferDisplay,
    wanted: &[UrlSource],
) -> Result<Vec<Result<Download, ReportedError>>, BuildError> {
    let answers: Result<Result<Vec<_>, Failure>, Failure> = in_fetcher(|| {
        let client = registry::client_of(flags, &[], display == TransferDisplay::Nothing)?;
        let download = |UrlSource { url, name: _, checksum }: &UrlSource| {
            let authorization = authorization(secrets, url.host())?;
            let request = DownloadRequest { url, checksum: checksum.as_ref(), authorization };
            download_one(store, &client, &request, display).map_err(|e| reported(&e, e.help()))
        };
        Ok(wanted.iter().map(download).collect())
    });
    answers.and_then(|answers| answers).map_err(|failure| match failure.code {
        code::INTERRUPTED => BuildError::Canceled,
        _ => BuildError::Caller(Box::new(failure)),
    })
}

/// Downloads a file for the inputs of a build, with a login among `secrets` for its server.
pub fn fetch_one(
    store: &Store,
    flags: &RegistryFlags,
    secrets: &[(String, Vec<u8>)],
    display: TransferDisplay,
    url: &SourceUrl,
) -> Result<Download, Failure> {
    in_fetcher(|| {
        let client = registry::client_of(flags, &[], display == TransferDisplay::Nothing)?;
        let authorization = authorization(secrets, url.host()).map_err(|e| Failure::new(e.message))?;
        let request = DownloadRequest { url, checksum: None, authorization };
        Ok(download_one(store, &client, &request, display)?)
    })?
}

/// Returns the login for a host among the secrets of a build, as in BuildKit: a token is preferred
/// to a whole header.
fn authorization(secrets: &[(String, Vec<u8>)], host: &str) -> Result<Option<Secret>, ReportedError> {
    let find = |kind: &str| secrets.iter().find(|(id, _)| *id == format!("HTTP_AUTH_{kind}_{host}"));
    let (scheme, (id, value)) = match (find("TOKEN"), find("HEADER")) {
        (Some(token), _) => ("Bearer ", token),
        (None, Some(header)) => ("", header),
        (None, None) => return Ok(None),
    };
    let text = std::str::from_utf8(value).ok().map(str::trim);
    // A header with control characters could inject another one.
    let text = text.filter(|text| !text.is_empty() && !text.chars().any(char::is_control));
    let text = text.ok_or_else(|| ReportedError::new(format!("the secret `{id}` is not the value of a header")))?;
    Ok(Some(Secret::new(format!("{scheme}{text}"))))
}

/// Checks before a build that its image may be pushed.
pub fn check_push(flags: &RegistryFlags, display: TransferDisplay, names: &[Reference]) -> Result<(), Failure> {
    let answer: Option<Failure> = in_fetcher(|| {
        let checked = registry::client_of(flags, names, display == TransferDisplay::Nothing).and_then(|client| {
            names.iter().try_for_each(|name| rbuild_transport::check_push(&client, name).map_err(Failure::from))
        });
        checked.err()
    })?;
    answer.map_or(Ok(()), Err)
}

/// The image that a build made.
pub struct BuiltImage<'a> {
    /// The manifests of its platforms.
    pub platforms: &'a [ManifestDigest],
    /// The blobs that the repository of its first name has already.
    pub uploaded: Vec<BlobDigest>,
}

/// Pushes the image of a build.
pub fn push(
    store: &Store,
    flags: &RegistryFlags,
    display: TransferDisplay,
    image: BuiltImage<'_>,
    names: &[Reference],
) -> Result<(), Failure> {
    let BuiltImage { platforms, uploaded } = image;
    let answer: Option<Failure> = in_fetcher(|| {
        let pushed = registry::client_of(flags, names, display == TransferDisplay::Nothing).and_then(|client| {
            let images =
                platforms.iter().map(|manifest| store.images().image(manifest)).collect::<Result<Vec<_>, _>>()?;
            let image = PushedImage { platforms: &images, layers: PushedLayers::Built(uploaded) };
            push_all(store, &client, image, names, display)
        });
        pushed.err()
    })?;
    answer.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_secrets_named_after_the_host_or_refused_as_recorded() {
        let secrets = [
            ("HTTP_AUTH_TOKEN_a.io", "t1\n"),
            ("HTTP_AUTH_HEADER_a.io", "Basic x"),
            ("HTTP_AUTH_HEADER_b.io", "Basic y"),
            ("HTTP_AUTH_HEADER_c.io", "Basic z\r\nX: y"),
            ("HTTP_AUTH_HEADER_d.io", "\n"),
        ];
        let secrets = secrets.map(|(id, value)| (id.to_string(), value.as_bytes().to_vec()));
        let of = |host| authorization(&secrets, host).map(|secret| secret.map(|secret| secret.reveal().to_string()));
        assert_eq!(of("a.io").unwrap().as_deref(), Some("Bearer t1"));
        assert_eq!(of("b.io").unwrap().as_deref(), Some("Basic y"));
        assert_eq!(of("www.a.io").unwrap(), None);
        let refused = ["c.io", "d.io"].map(|host| format!("{}\n", of(host).expect_err(host).message));
        rbuild_testkit::assert_recorded!("logins-of-servers", refused.concat());
    }

    #[test]
    fn failures_of_fetchers_are_as_recorded() {
        let not_started = not_started(&std::io::Error::from_raw_os_error(11)).text();
        let no_answer = [Exit::Signal(9), Exit::Code(1)].map(|exit| no_answer(&exit).text());
        rbuild_testkit::assert_recorded!("fetcher", not_started + &no_answer.concat());
    }
}
