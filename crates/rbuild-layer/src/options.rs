//! Options for packing layers.

use crate::compress::Compression;

/// Version of the layer encoding. It changes if, and only if, the same tree yields different bytes.
pub const LAYER_FORMAT: u32 = 2;

/// Compression settings of a layer. The default is gzip at its usual level, as in most images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LayerForm {
    /// Gzip, zstd or none; the other compressions cannot be written.
    pub compression: Compression,
    /// Compression level; `None` selects the default of the compression.
    pub level: Option<i32>,
}

impl LayerForm {
    /// Returns a short name that is unique for every form, such as `gzip` or `zstd-19`.
    pub fn name(&self) -> String {
        let level = self.level.map_or(String::new(), |l| format!("-{l}"));
        format!("{}{level}", self.compression.name())
    }
}

/// Handling of overlay whiteouts during packing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletions {
    /// Writes `.wh.*` entries, as in image layers.
    Whiteouts,
    /// The tree is a complete view without whiteouts and becomes a layer, so names that begin with
    /// `.wh.` are rejected.
    Done,
    /// The tree is a complete view and becomes an archive of files, in which `.wh.*` names have no
    /// special meaning.
    None,
}

/// Handling of modification times during packing, in seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// Times are kept.
    AsIs,
    /// Later times are set to this one.
    AtMost(i64),
    /// All times are set to this one.
    Always(i64),
}

impl Times {
    pub(crate) fn of(self, seconds: i64) -> i64 {
        match self {
            Times::AsIs => seconds,
            Times::AtMost(latest) => seconds.min(latest),
            Times::Always(time) => time,
        }
    }
}
