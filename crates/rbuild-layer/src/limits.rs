//! Limits on archives. The user can raise each of them by its name.

use crate::entry::TarEntry;
use crate::error::{LayerError, Result};
use rbuild_linux::quoted;
use rbuild_remedy::counted;

/// Limits on the resources that an archive may claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Number of entries.
    pub entries: u64,
    /// Length of a path in bytes.
    pub path: u64,
    /// Number of components of a path.
    pub depth: u64,
    /// Total size of the content in bytes, including holes.
    pub bytes: u64,
    /// Size of the extended headers of one entry in bytes.
    pub header: u64,
    /// Decompressed bytes per compressed byte. Applies to archives of more than 32 GiB.
    pub ratio: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        let (entries, path, depth) = (20_000_000, 64 * 1024, 2048);
        Limits { entries, path, depth, bytes: 1 << 44, header: 1 << 20, ratio: 1000 }
    }
}

/// Archives up to this decompressed size may have any compression ratio.
pub(crate) const RATIO_FROM: u64 = 32 << 30;

/// Allowance for archive bytes that the consumer did not request, beyond those that the compressed
/// input accounts for.
pub(crate) const UNREQUESTED: u64 = 64 << 20;

/// Maximum number of bytes between the end of an archive and the end of its stream. Writers pad
/// archives to their block size.
const TAIL: u64 = 1 << 30;

/// Minimum of that number, regardless of the limit on the content.
const SHORT_TAIL: u64 = 1 << 20;

impl Limits {
    /// Returns the maximum number of bytes after the end of an archive with `bytes` bytes of
    /// content.
    pub(crate) fn tail(&self, bytes: u64) -> u64 {
        self.bytes.saturating_sub(bytes).clamp(SHORT_TAIL, TAIL)
    }

    /// Returns the maximum size of an archive that is not parsed: headers and padding may take as
    /// much as the content, or 1 GiB.
    pub(crate) fn stream(&self) -> u64 {
        self.bytes.saturating_add(self.bytes.max(TAIL))
    }

    /// Returns the maximum decompressed size of `packed` compressed bytes.
    pub fn unpacked(&self, packed: u64) -> u64 {
        packed.saturating_mul(self.ratio).max(RATIO_FROM)
    }

    /// Returns the maximum number of decompressed bytes of `packed` compressed ones that the
    /// consumer did not request. With the default ratio it is at least gzip's maximum for zeros
    /// (1032:1).
    pub(crate) fn unrequested(&self, packed: u64) -> u64 {
        packed.saturating_mul(self.ratio.saturating_add(self.ratio / 16)).saturating_add(UNREQUESTED)
    }

    /// Names of all limits.
    pub const NAMES: [&str; 6] = ["entries", "path", "depth", "bytes", "header", "ratio"];

    /// Returns the limit with the given name.
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

    /// Checks the next entry. `entries` and `bytes` are totals that include it.
    pub(crate) fn check(&self, entry: &TarEntry, entries: u64, bytes: u64) -> Result<()> {
        if entries > self.entries {
            return Err(exceeded(
                "entries",
                self.entries,
                format!("the archive has more than {}", counted(self.entries, "entry")),
            ));
        }
        if bytes > self.bytes {
            return Err(exceeded(
                "bytes",
                self.bytes,
                format!("the archive has more than {} of content", counted(self.bytes, "byte")),
            ));
        }
        let path = entry.path.as_encoded_bytes();
        let depth = path.iter().filter(|b| **b == b'/').count() as u64;
        let shown = || {
            let text = entry.path.to_string_lossy();
            match text.char_indices().nth(60) {
                Some((end, _)) => quoted(format!("{}…", &text[..end])),
                None => quoted(&*text),
            }
        };
        if path.len() as u64 > self.path {
            return Err(exceeded("path", self.path, format!("the path of archive entry {} is too long", shown())));
        }
        if depth > self.depth {
            return Err(exceeded("depth", self.depth, format!("the path of archive entry {} is too deep", shown())));
        }
        if path.contains(&0) || entry.link.as_encoded_bytes().contains(&0) {
            let name = entry.path.to_string_lossy().into_owned();
            return Err(LayerError::Entry { name, reason: "has a NUL byte in its name".into() });
        }
        Ok(())
    }
}

/// Returns the error for an exceeded limit.
pub(crate) fn exceeded(name: &'static str, limit: u64, excess: String) -> LayerError {
    LayerError::LimitExceeded { problem: format!("{excess}; the limit is {limit}"), name: Some(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_set_by_name() {
        for name in Limits::NAMES {
            assert!(Limits::default().of(name).is_some(), "{name}");
        }
        assert!(Limits::default().of("speed").is_none());
    }
}
