//! What a stream may ask for before it is refused. Whoever means it raises the limit by its name.

use crate::entry::TarEntry;
use crate::error::{LayerError, Result};

/// What a stream may ask for before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub entries: u64,
    /// Bytes of one path.
    pub path: u64,
    /// Parts of one path.
    pub depth: u64,
    /// Bytes of content in all, holes included.
    pub bytes: u64,
    /// Bytes of extended headers of one entry.
    pub header: u64,
    /// Bytes that may come of each compressed byte; counts for archives of more than 32 GiB.
    pub ratio: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        let (entries, path, depth) = (20_000_000, 64 * 1024, 2048);
        Limits { entries, path, depth, bytes: 1 << 44, header: 1 << 20, ratio: 1000 }
    }
}

/// Smaller archives may be compressed as far as anybody can.
pub(crate) const RATIO_FROM: u64 = 32 << 30;

/// Bytes of an archive that nothing asks for, beyond those that its compressed bytes stand for.
pub(crate) const UNASKED: u64 = 64 << 20;

impl Limits {
    /// Bytes that so many compressed ones may become.
    pub fn unpacked(&self, packed: u64) -> u64 {
        packed.saturating_mul(self.ratio).max(RATIO_FROM)
    }

    /// Bytes that so many compressed ones may become without being asked for. No less than what gzip makes of zeros (1032 of one).
    pub(crate) fn unasked(&self, packed: u64) -> u64 {
        packed.saturating_mul(self.ratio.saturating_add(self.ratio / 16)).saturating_add(UNASKED)
    }

    pub const NAMES: [&str; 6] = ["entries", "path", "depth", "bytes", "header", "ratio"];

    /// The limit of that name.
    pub fn of(&mut self, name: &str) -> Option<&mut u64> {
        match name {
            "entries" => Some(&mut self.entries),
            "path" => Some(&mut self.path),
            "depth" => Some(&mut self.depth),
            "bytes" => Some(&mut self.bytes),
            "header" => Some(&mut self.header),
            "ratio" => Some(&mut self.ratio),
            _ => None,
        }
    }

    /// Looks at the next entry, with the number of entries and of bytes of content up to and with it.
    pub(crate) fn check(&self, entry: &TarEntry, entries: u64, bytes: u64) -> Result<()> {
        if entries > self.entries {
            return Err(over("entries", self.entries, format!("the archive has more than {} entries", self.entries)));
        }
        if bytes > self.bytes {
            return Err(over(
                "bytes",
                self.bytes,
                format!("the archive has more than {} bytes of content", self.bytes),
            ));
        }
        let path = entry.path.as_encoded_bytes();
        let depth = path.iter().filter(|b| **b == b'/').count() as u64;
        let shown = || entry.path.to_string_lossy().chars().take(60).collect::<String>();
        if path.len() as u64 > self.path {
            return Err(over("path", self.path, format!("the archive entry {:?}… has too long a path", shown())));
        }
        if depth > self.depth {
            return Err(over("depth", self.depth, format!("the archive entry {:?}… has too long a path", shown())));
        }
        if path.contains(&0) || entry.link.as_encoded_bytes().contains(&0) {
            let name = entry.path.to_string_lossy().into_owned();
            return Err(LayerError::Entry { name, reason: "has a name with a zero byte".into() });
        }
        Ok(())
    }
}

/// The error for what is over a limit, which says how to raise it.
pub(crate) fn over(name: &str, limit: u64, what: String) -> LayerError {
    LayerError::Limit(format!("{what}; the limit is {limit}, and --limit {name}=N raises it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_its_name() {
        for name in Limits::NAMES {
            assert!(Limits::default().of(name).is_some(), "{name}");
        }
        assert!(Limits::default().of("speed").is_none());
    }
}
