//! Temporary directories.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Removes what the standard library cannot: directories without permissions, and trees deeper than
/// the number of descriptors that a process may have.
const REMOVE: &str = r#"chmod -R u+rwX "$1"; rm -rf "$1""#;

/// A temporary directory in `TMPDIR`, which is removed with its content when the value is dropped,
/// also if the test fails.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// Creates an empty directory. Other users can read it: some tests start programs as another
    /// user.
    ///
    /// # Panics
    ///
    /// Panics if the directory cannot be created.
    #[allow(clippy::new_without_default, reason = "it creates a directory")]
    pub fn new() -> Scratch {
        let mut builder = tempfile::Builder::new();
        builder.prefix("rbuild-test-").permissions(Permissions::from_mode(0o755));
        Scratch(builder.tempdir().unwrap())
    }
}

impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        self.0.path()
    }
}

impl AsRef<Path> for Scratch {
    fn as_ref(&self) -> &Path {
        self
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let removed = std::fs::remove_dir_all(&self.0);
        if removed.is_err_and(|e| e.kind() != ErrorKind::NotFound) {
            let mut shell = Command::new("sh");
            let _ = shell.args(["-c", REMOVE, "sh"]).arg(self.0.path()).stderr(Stdio::null()).status();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The chain of directories is longer than the path that a call accepts, and may be deeper than
    /// the number of descriptors that the process may have.
    #[test]
    fn a_failed_test_leaves_nothing() {
        let path = std::panic::catch_unwind(|| {
            let scratch = Scratch::new();
            std::fs::create_dir(scratch.join("closed")).unwrap();
            std::fs::write(scratch.join("closed/file"), "").unwrap();
            std::fs::set_permissions(scratch.join("closed"), Permissions::from_mode(0o000)).unwrap();
            let chain = |top: &str| scratch.join(top).join(PathBuf::from_iter(std::iter::repeat_n("d", 1000)));
            for top in ["a", "b", "c"] {
                std::fs::create_dir_all(chain(top)).unwrap();
            }
            std::fs::rename(scratch.join("a"), chain("b").join("a")).unwrap();
            std::fs::rename(scratch.join("b"), chain("c").join("b")).unwrap();
            std::panic::panic_any(scratch.to_path_buf());
        });
        let path = path.unwrap_err().downcast::<PathBuf>().unwrap();
        assert!(path.parent().unwrap().exists() && !path.exists(), "{}", path.display());
    }
}
