//! Reads the Dockerfile and ignore files of a context, which is untrusted: only regular files
//! inside the context are read, symbolic links that lead out of it are errors, and FIFOs and
//! devices are never opened.

use std::io::Read;
use std::path::{Path, PathBuf};

use rbuild_linux::{FileKind, RootDir, quoted};

use crate::exit::Failure;
use crate::ui::hints::InputRemedy;

/// Maximum size of such a file, in bytes.
const MAX_SIZE: u64 = 64 << 20;

/// Reads a file of the context; `shown` names it in errors. Returns `None` if it does not exist.
pub fn read(context: &RootDir, path: &Path, shown: &str) -> Result<Option<Vec<u8>>, Failure> {
    let failed = |e: rbuild_linux::Error| Failure::new(format!("cannot read {shown}: {}", e.of_object())).because(&e);
    let stat = match context.stat_follow(path) {
        Ok(stat) => stat,
        Err(e) => {
            return match leaving_link(context, path) {
                Some(link) => Err(link_error(shown, &link)),
                None if e.is_not_found() || e.kind() == std::io::ErrorKind::NotADirectory => Ok(None),
                None => Err(failed(e)),
            };
        }
    };
    if stat.kind != FileKind::File {
        return Err(kind_error(shown, stat.kind));
    }
    let file = context.open_file(path).map_err(failed)?;
    // The file may have been replaced since it was checked.
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(Failure::new(format!("{shown} changed while it was being read")));
    }
    let mut bytes = Vec::new();
    let unread = |e| Failure::caused(format!("cannot read {shown}"), &e);
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(unread)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(Failure::new(format!("{shown} is larger than {} MiB", MAX_SIZE >> 20)));
    }
    Ok(Some(bytes))
}

/// Returns the first symbolic link on the path that does not resolve inside the context.
fn leaving_link(context: &RootDir, path: &Path) -> Option<PathBuf> {
    let mut prefixes: Vec<&Path> = path.ancestors().filter(|prefix| !prefix.as_os_str().is_empty()).collect();
    prefixes.reverse();
    let leads_nowhere = |prefix: &&&Path| {
        context.stat(prefix).is_ok_and(|stat| stat.kind == FileKind::Symlink) && context.stat_follow(prefix).is_err()
    };
    prefixes.iter().find(leads_nowhere).map(|prefix| prefix.to_path_buf())
}

fn link_error(shown: &str, link: &Path) -> Failure {
    let failure = Failure::new(format!(
        "cannot read {shown}: {} is a symbolic link whose target is not in the context",
        quoted(link)
    ));
    failure.help(InputRemedy::CopyIntoContext)
}

fn kind_error(shown: &str, kind: FileKind) -> Failure {
    let kind_name = match kind {
        FileKind::Dir => "a directory",
        FileKind::Fifo => "a FIFO",
        FileKind::Socket => "a socket",
        FileKind::CharDevice | FileKind::BlockDevice => "a device",
        FileKind::File | FileKind::Symlink => "not a file",
    };
    Failure::new(format!("{shown} is {kind_name}")).help(InputRemedy::RegularFile)
}
