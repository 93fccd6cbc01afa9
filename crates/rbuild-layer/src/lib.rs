//! Packs directory trees into image layers and unpacks layers into trees.
//!
//! Both are diffs of a file system to the layers below it. A tree is an overlay upper directory:
//! whiteouts are character devices 0:0, and opaque directories carry `user.overlay.opaque`. A layer
//! is a tar archive as defined by the OCI image specification: whiteouts are files named `.wh.*`.
//! The tar framing is implemented here, on top of the tar crate's header block. The crate has no
//! notion of images, stores or builds.
//!
//! ```
//! use rbuild_layer::{Limits, TarEntry, TarReader, TarWriter, layer_digests};
//!
//! let mut tar = TarWriter::new(Vec::new());
//! tar.entry(&TarEntry::plain_file("etc/motd", 6))?;
//! tar.content(b"hello\n")?;
//! let layer = tar.finish()?;
//!
//! let entry = TarReader::new(&layer[..]).next_entry()?.expect("the archive has an entry");
//! assert_eq!((entry.path.to_str(), entry.size), (Some("etc/motd"), 6));
//!
//! // An uncompressed layer has one digest for both.
//! let (digest, diff_id) = layer_digests(&layer[..], Limits::default())?;
//! assert_eq!(digest.hex(), diff_id.hex());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![warn(missing_docs)]

mod bounded;
mod chunks;
mod compress;
mod counting;
mod entry;
mod error;
mod examine;
mod external;
mod gzip;
mod hash_thread;
mod item;
mod limited_tar;
mod limits;
mod lower_refs;
mod options;
mod pack;
mod read_ahead;
mod reader;
mod remainder;
mod reuse;
mod sparse;
mod splice;
mod unpack;
mod walk;
pub mod whiteout;
mod write_behind;
mod writer;
mod xattrs;

pub use bounded::{Bounded, layer_digests};
pub use compress::{Compression, Decoder, detect};
pub use counting::Counting;
pub use entry::{EntryKind, TarEntry};
pub use error::{LayerError, Result};
pub use examine::{Examined, examine};
pub use external::{ExternalFile, ExternalFiles};
pub use gzip::{END as GZIP_END, may_have_members as gzip_may_have_members, unpacked_size as gzip_unpacked_size};
pub use hash_thread::ChunkHash;
pub use limited_tar::LimitedTar;
pub use limits::Limits;
pub use lower_refs::LowerRefs;
pub use options::{CompressionLevel, LAYER_FORMAT, LayerForm, LevelError, Times, WhiteoutEncoding};
pub use pack::{Packed, TreePacker, pack_exact, pack_layer, pack_whole, pack_with_external, repack_layer};
pub use reader::{TarReader, is_tar};
pub use remainder::Remainder;
pub use splice::Splice;
pub use unpack::{CancelCheck, Owners, Unpacked, Unpacking, Whiteouts, unpack, unpack_some};
pub use writer::{LateEntry, TarWriter};
pub use xattrs::{OPAQUE, ORIGIN, is_read_by_overlay, keep_in_layer, keep_in_tree, marks_opaque};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
