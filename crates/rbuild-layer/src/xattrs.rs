//! Which extended attributes cross between trees and layers.
//!
//! | attribute | layer to tree | tree to layer | why |
//! |---|---|---|---|
//! | `user.overlay.*`, `trusted.overlay.*` | no | no | the overlay's own marks: a layer that sets them would steer it |
//! | `user.rbuild.` and 32 digits of this store's | no | no | owners that are written down ([`rbuild_linux::owner_attribute`]) |
//! | `security.capability` | yes | yes | part of the program's meaning |
//! | `user.*` otherwise | yes | yes | data of the image |
//! | `security.selinux`, `security.ima`, … | no | no | belong to the machine, not to the image |
//! | `system.posix_acl_*` | no | no | name ids of the namespace that wrote them |
//! | `trusted.*` otherwise | no | no | cannot be written below a user namespace |

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rbuild_linux::{Xattrs, owner_attribute};

/// Set on a directory that may hold whiteouts though nothing is merged with it; an empty value means "copied up from
/// who knows where" (fs/overlayfs/inode.c, ovl_get_inode).
pub const ORIGIN: &str = "user.overlay.origin";
/// Marks a directory of a tree whose lower namesakes do not show through.
pub const OPAQUE: &str = "user.overlay.opaque";

fn is_image_data(name: &OsStr) -> bool {
    if name == owner_attribute() {
        return false;
    }
    let name = name.as_bytes();
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Whether an overlay acts upon an attribute of the files below it.
pub fn steers_overlay(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.")
}

/// Whether an attribute found in a layer is set on the tree.
pub fn keep_in_tree(name: &OsStr) -> bool {
    is_image_data(name)
}

/// Whether an attribute found on the tree is written into the layer.
pub fn keep_in_layer(name: &OsStr) -> bool {
    is_image_data(name)
}

/// Whether a directory with these attributes hides what is below it.
pub fn marks_opaque(attributes: &Xattrs) -> bool {
    attributes.get(OsStr::new(OPAQUE)).is_some_and(|v| v == b"y")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_marks_never_cross() {
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
        assert!(!keep_in_tree(owner_attribute()) && !keep_in_layer(owner_attribute()));
    }
}
