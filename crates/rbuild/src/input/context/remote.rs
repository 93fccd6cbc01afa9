//! Contexts and Dockerfiles from URLs.

use std::error::Error;
use std::ffi::OsStr;
use std::path::PathBuf;

use rbuild_image::{SourceUrl, hide_logins};
use rbuild_linux::Timestamp;
use rbuild_store::{Download, Store, Workspace};

use crate::exit::Failure;
use crate::ui::hints::InputRemedy;

/// Downloads a file into the store.
pub type FetchFile<'a> = dyn Fn(&SourceUrl) -> Result<Download, Failure> + 'a;

/// Name of the only file of a context that is not an archive, as in BuildKit.
const ONLY_FILE: &str = "context";

/// Returns the URL if the text is the http(s) URL of a file. `purpose` is used in messages. Returns
/// `None` for paths, git repositories and other schemes.
pub fn file_url(purpose: &str, text: &str) -> Result<Option<SourceUrl>, Failure> {
    if !SourceUrl::has_scheme(text) {
        return Ok(None);
    }
    match SourceUrl::parse(text) {
        Ok(url) => Ok(Some(url).filter(|url| !url.is_git())),
        Err(e) => Err(Failure::usage(format!("{purpose} `{}`: the URL is invalid: {e}", hide_logins(text)))),
    }
}

/// Returns the failure for a remote context or Dockerfile that [`file_url`] does not accept.
pub fn unsupported(purpose: &str, text: &str) -> Failure {
    let shown = hide_logins(text);
    let is_git = text.starts_with("git@") || SourceUrl::parse(text).is_ok_and(|url| url.is_git());
    if is_git || ["git://", "ssh://", "git+ssh://"].iter().any(|scheme| text.starts_with(scheme)) {
        return Failure::usage(format!("{purpose} `{shown}` is a git repository, which is not supported yet"))
            .help(InputRemedy::CloneRepository);
    }
    let scheme = text.split(':').next().unwrap_or_default();
    Failure::usage(format!("{purpose} `{shown}` has the unsupported scheme `{scheme}`"))
        .help(InputRemedy::DownloadInput)
}

/// Converts an error of reading a downloaded context.
pub fn unread(e: &(dyn Error + 'static)) -> Failure {
    Failure::caused("cannot read the context", e)
}

/// Converts an error of writing a downloaded context.
pub fn unwritten(e: &(dyn Error + 'static)) -> Failure {
    Failure::caused("cannot write the context", e)
}

/// Makes a context of a downloaded file: a directory that contains only the file, under the name
/// `context`.
pub fn one_file(store: &Store, download: &Download) -> Result<(PathBuf, Workspace), Failure> {
    let failed = |e: rbuild_linux::Error| unwritten(&e);
    let work = Workspace::open(store)?;
    let (path, dir) = work.new_dir()?;
    let name = OsStr::new(ONLY_FILE);
    let mut file = dir.create_file(name, 0o600).map_err(failed)?;
    let mut content = store.blobs().open_blob(&download.digest)?;
    std::io::copy(&mut content, &mut file).map_err(|e| unwritten(&e))?;
    dir.set_mtime(name, Timestamp { sec: download.modified.unwrap_or(0), nsec: 0 }).map_err(failed)?;
    Ok((path, work))
}
