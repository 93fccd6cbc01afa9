//! Directory trees to layer bytes and back.
//!
//! A tree here is an overlay upper directory: deletions are character devices 0:0, replaced directories carry
//! `user.overlay.opaque`. A layer is a tar of the OCI image spec: deletions are `.wh.` names. The tar framing is
//! our own over the tar crate's header block; nothing here knows an image, a store or a build.

mod aside;
mod compress;
mod counting;
mod earlier;
mod error;
mod finisher;
mod gzip;
mod leaning;
mod limits;
mod loose;
mod pack;
mod pieces;
mod pipe;
mod reader;
mod sparse;
mod unpack;
mod walk;
mod writer;
mod xattrs;

pub use aside::ChunkHash;
pub use compress::{Compression, Decoder, detect, layer_digests};
pub use counting::Counting;
pub use error::{LayerError, Result};
pub use gzip::{END as GZIP_END, may_have_members as gzip_may_have_members, unpacked_size as gzip_unpacked_size};
pub use leaning::Leaning;
pub use limits::{Bounded, LimitedTar, Limits};
pub use loose::{Loose, LooseFile};
pub use pack::{
    Deletions, LAYER_FORMAT, LayerForm, Packed, Times, TreePacker, pack_layer, pack_loose, pack_whole, repack_layer,
};
pub use reader::{EntryKind, TarEntry, TarReader, is_tar};
pub use unpack::{Owners, Stop, Unpacked, Unpacking, Whiteouts, entry_path, unpack, unpack_some};
pub use writer::{LateEntry, TarWriter};
pub use xattrs::{OPAQUE, ORIGIN, keep_in_layer, keep_in_tree, marks_opaque, steers_overlay};
