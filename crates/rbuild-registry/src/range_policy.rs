//! Sizes of the ranges that a large blob is downloaded in.

/// The way to download a large blob from a server that answers ranges.
#[derive(Debug, Clone, Copy)]
pub struct RangePolicy {
    /// Number of missing bytes from which a blob is large.
    pub large: u64,
    /// Size in bytes of a range that is downloaded over one connection, to measure its rate.
    pub measured: u64,
    /// Rate in bytes per second from which the rest is downloaded over one connection.
    pub fast: u64,
    /// Size in bytes of a range of several that are downloaded at once.
    pub range: u64,
    /// Maximum number of connections for one blob.
    pub connections: usize,
    /// Maximum number of connections of a client for blobs. A blob that is not large uses one, even
    /// if there are more.
    pub total: usize,
}

impl Default for RangePolicy {
    fn default() -> RangePolicy {
        RangePolicy { large: 64 << 20, measured: 8 << 20, fast: 256 << 20, range: 4 << 20, connections: 4, total: 6 }
    }
}
