//! Remarks on caches that are written.

use serde::{Deserialize, Serialize};

/// The state in which a written cache was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CacheNote {
    /// The cache was new, or its steps could be read.
    #[default]
    None,
    /// The documents were damaged, and the cache was replaced.
    Replaced,
    /// An older version of the program wrote its layers, and the cache was replaced.
    OlderFormat,
    /// A newer version of the program uses it, and it was not changed.
    NewerFormat,
    /// Some records had no valid signature, and were dropped.
    Unsigned,
    /// Parts of it were damaged, and were dropped.
    PartlyDamaged,
}

impl CacheNote {
    /// Returns the remark about damaged parts, if there are any, unless there is another remark.
    pub(crate) fn or_damage(self, has_damage: bool) -> CacheNote {
        if has_damage && self == CacheNote::None { CacheNote::PartlyDamaged } else { self }
    }

    /// Returns this note, or else the other one.
    pub(crate) fn or(self, other: CacheNote) -> CacheNote {
        if self == CacheNote::None { other } else { self }
    }

    /// Returns true if the cache could not be extended and was replaced.
    pub(crate) fn is_replaced(self) -> bool {
        matches!(self, CacheNote::Replaced | CacheNote::OlderFormat)
    }
}
