//! Options of packing.

use crate::compress::Compression;

/// Names the way layer bytes are made. It changes when, and only when, the same tree gives other bytes.
pub const LAYER_FORMAT: u32 = 2;

/// How a layer is packed. The default is what images have had for ever: gzip at its usual level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LayerForm {
    /// Gzip, zstd or none.
    pub compression: Compression,
    /// The compression's usual one if not given.
    pub level: Option<i32>,
}

impl LayerForm {
    /// A short name, different for every form: `gzip`, `zstd-19`.
    pub fn name(&self) -> String {
        let level = self.level.map_or(String::new(), |l| format!("-{l}"));
        format!("{}{level}", self.compression.name())
    }
}

/// What becomes of the overlay's deletion marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletions {
    /// `.wh.` names, as in image layers.
    Whiteouts,
    /// The tree is whole and has none (a mounted view), but becomes a layer.
    Done,
    /// The tree is whole, and becomes an archive of files in which every name means itself.
    None,
}

/// What becomes of modification times; seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    AsIs,
    /// None is later than this.
    AtMost(i64),
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
