//! Files that steer a build and come with a context, which may be anybody's: only regular files of the context itself are
//! read, whatever links say, and nothing is waited for.

use std::io::Read;
use std::path::{Path, PathBuf};

use rbuild_linux::{Kind, RootDir};

use crate::exit::Failure;

/// Bytes; more is no Dockerfile.
const MAX_SIZE: u64 = 64 << 20;

/// Reads a file of the context; `shown` names it in errors. `None` if it is not there.
pub fn read(context: &RootDir, path: &Path, shown: &str) -> Result<Option<Vec<u8>>, Failure> {
    let failed = |e: rbuild_linux::Error| Failure::new(format!("{shown}: {}", std::io::Error::from(e)));
    let stat = match context.stat_follow(path) {
        Ok(stat) => stat,
        Err(e) => {
            return match leaving_link(context, path) {
                Some(link) => Err(leads_out(shown, &link)),
                None if e.is_not_found() || e.kind() == std::io::ErrorKind::NotADirectory => Ok(None),
                None => Err(failed(e)),
            };
        }
    };
    if stat.kind != Kind::File {
        return Err(no_file(shown, stat.kind));
    }
    let file = context.open_file(path).map_err(failed)?;
    // What was looked at may be something else by now.
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(Failure::new(format!("{shown} changed while it was read")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(|e| Failure::new(format!("{shown}: {e}")))?;
    match bytes.len() as u64 > MAX_SIZE {
        true => Err(Failure::new(format!("{shown} is larger than {} MiB", MAX_SIZE >> 20))),
        false => Ok(Some(bytes)),
    }
}

/// The first link on the way to a path that leads to nothing in the context.
fn leaving_link(context: &RootDir, path: &Path) -> Option<PathBuf> {
    let mut ways: Vec<&Path> = path.ancestors().filter(|way| !way.as_os_str().is_empty()).collect();
    ways.reverse();
    let leads_nowhere = |way: &&&Path| {
        context.stat(way).is_ok_and(|stat| stat.kind == Kind::Symlink) && context.stat_follow(way).is_err()
    };
    ways.iter().find(leads_nowhere).map(|way| way.to_path_buf())
}

fn leads_out(shown: &str, link: &Path) -> Failure {
    let failure = Failure::new(format!("{shown}: {} is a link to nothing in the context", link.display()));
    failure.help("links do not lead out of the context; put the file there, or name another one with -f")
}

fn no_file(shown: &str, kind: Kind) -> Failure {
    let what = match kind {
        Kind::Dir => "a directory",
        Kind::Fifo => "a named pipe",
        Kind::Socket => "a socket",
        Kind::CharDevice | Kind::BlockDevice => "a device",
        Kind::File | Kind::Symlink => "not a file",
    };
    Failure::new(format!("{shown} is {what}")).help("only a regular file can steer a build")
}
