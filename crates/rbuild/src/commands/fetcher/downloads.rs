//! Downloads of files for a build.

use rbuild_engine::{BuildError, UrlSource};
use rbuild_image::SourceUrl;
use rbuild_registry::Secret;
use rbuild_remedy::ReportedError;
use rbuild_store::{Download, Store};
use rbuild_transport::DownloadRequest;

use crate::args::RegistryFlags;
use crate::commands::fetcher::task::in_fetcher;
use crate::commands::transfer::{TransferDisplay, download_one};
use crate::exit::{Failure, interrupted, reported};
use crate::input::registry;

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
        code if code == interrupted() => BuildError::Canceled,
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
}
