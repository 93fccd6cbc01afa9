//! Sizes of uploads in parts.

/// Sizes of uploads.
#[derive(Debug, Clone, Copy)]
pub struct PartPolicy {
    /// Size in bytes above which a blob is uploaded in parts.
    pub large: u64,
    /// Minimum size of a part in bytes.
    pub part: u64,
}

impl Default for PartPolicy {
    fn default() -> PartPolicy {
        PartPolicy { large: 128 << 20, part: 32 << 20 }
    }
}
