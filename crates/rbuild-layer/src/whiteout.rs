//! Names of whiteouts in layers, as the OCI image specification defines them (layer.md,
//! "Whiteouts").

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Prefix of the names of whiteouts.
pub const PREFIX: &str = ".wh.";
/// Name of the entry that marks its directory as opaque.
pub const OPAQUE: &str = ".wh..wh..opq";

/// Returns true if a layer interprets a file of this name as a whiteout or as a mark of its
/// directory.
pub fn is_whiteout(name: &OsStr) -> bool {
    deleted_name(name).is_some()
}

/// Returns the name that a whiteout deletes, or `None` if `name` is not that of a whiteout. The
/// result may be empty. It is itself the name of a whiteout if `name` is [`OPAQUE`] or other
/// metadata of AUFS, such as `.wh..wh.plnk`.
pub fn deleted_name(name: &OsStr) -> Option<&OsStr> {
    name.as_bytes().strip_prefix(PREFIX.as_bytes()).map(OsStr::from_bytes)
}

/// Returns the name of the whiteout that deletes `name`.
pub fn whiteout_of(name: &OsStr) -> OsString {
    let mut whiteout = OsString::from(PREFIX);
    whiteout.push(name);
    whiteout
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_are_recognized_by_their_prefix() {
        for (name, deleted) in [
            (".wh.f", Some("f")),
            (".wh.", Some("")),
            (OPAQUE, Some(".wh..opq")),
            (".wh", None),
            ("f.wh.", None),
            (".WH.f", None),
        ] {
            assert_eq!(deleted_name(OsStr::new(name)), deleted.map(OsStr::new), "{name}");
        }
        assert_eq!(whiteout_of(OsStr::new("f")), ".wh.f");
    }
}
