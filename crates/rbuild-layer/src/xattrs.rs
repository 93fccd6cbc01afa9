//! Rules for extended attributes that are copied between trees and layers.
//!
//! | attribute | layer to tree | tree to layer | reason |
//! |---|---|---|---|
//! | `user.overlay.*`, `trusted.overlay.*` | no | no | would let a layer manipulate the overlay |
//! | `user.rbuild.` and 32 digits of the store | no | no | recorded owners, hidden by [`RootDir`] |
//! | `security.capability` | yes | yes | part of the program's behavior |
//! | other `user.*` | yes | yes | data of the image |
//! | `security.selinux`, `security.ima`, … | no | no | belong to the machine, not to the image |
//! | `system.posix_acl_*` | no | no | contain IDs of the user namespace that wrote them |
//! | other `trusted.*` | no | no | cannot be set in a user namespace |

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

#[cfg(doc)]
use rbuild_linux::RootDir;
use rbuild_linux::Xattrs;

/// Attribute of a directory that may contain whiteouts although nothing is merged with it. An empty
/// value means that the origin of the copy-up is unknown (fs/overlayfs/inode.c, ovl_get_inode).
pub const ORIGIN: &str = "user.overlay.origin";
/// Attribute of an opaque directory of a tree, which hides the directories of the same path below
/// it.
pub const OPAQUE: &str = "user.overlay.opaque";

fn is_image_data(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Returns true if overlayfs reads the attribute from files of its layers and interprets it.
pub fn is_read_by_overlay(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.")
}

/// Returns true if an attribute of a layer is set on the tree.
pub fn keep_in_tree(name: &OsStr) -> bool {
    is_image_data(name)
}

/// Returns true if an attribute of the tree is written to the layer.
pub fn keep_in_layer(name: &OsStr) -> bool {
    is_image_data(name)
}

/// Returns true if an attribute of the tree that commands can see is missing in the layer.
pub(crate) fn is_lost(name: &OsStr) -> bool {
    !is_read_by_overlay(name) && !keep_in_layer(name) && !name.as_bytes().starts_with(b"security.")
}

/// Returns true if a directory with these attributes is opaque.
pub fn marks_opaque(attributes: &Xattrs) -> bool {
    attributes.get(OsStr::new(OPAQUE)).is_some_and(|v| v == b"y")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_attributes_are_not_transferred() {
        for (name, crosses) in [
            ("user.overlay.opaque", false),
            ("user.overlay.whiteout", false),
            ("trusted.overlay.opaque", false),
            ("security.capability", true),
            ("security.selinux", false),
            ("user.mime_type", true),
            ("user.rbuild.owner", true),
            ("system.posix_acl_access", false),
        ] {
            let name = OsStr::new(name);
            assert_eq!((keep_in_tree(name), keep_in_layer(name)), (crosses, crosses), "{name:?}");
        }
        for (name, lost) in [
            ("system.posix_acl_default", true),
            ("trusted.x", true),
            ("trusted.overlay.opaque", false),
            ("security.selinux", false),
            ("user.x", false),
        ] {
            assert_eq!(is_lost(OsStr::new(name)), lost, "{name}");
        }
    }
}
