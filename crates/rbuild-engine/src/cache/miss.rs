//! Reasons for cache misses other than differences between keys.

use std::fmt;

/// The reason why a step has no usable record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Miss {
    /// The caller disabled the cache for the step.
    Disabled,
    /// The parent step, or a step that this one copies from, has no result yet.
    OpenInput,
    /// The result contains a secret that this build was not given.
    Secret,
    NoEarlierBuild,
    /// No cache besides the store has a similar step.
    InNoCache,
    /// A cache besides the store has the step, but the result cannot be used here.
    Unusable,
    NoRecord,
    /// The files have owners of the other kind and are needed.
    OtherOwners,
    /// Another isolation mode has run the same command for other stages, with another result.
    OtherResult,
    ExecutedLater,
    Evicted,
    InputsForgotten,
    /// The keys differ, but all inputs are equal after secrets have been masked.
    MaskedValue,
    /// The keys differ, but all inputs are equal.
    NoDifference,
    /// The earlier key was made by a version with another form of keys.
    KeyFormat,
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Miss::Disabled => "the cache is disabled for this step",
            Miss::OpenInput => "an input must be built first",
            Miss::Secret => "the cached result contains a secret that this build was not given",
            Miss::NoEarlierBuild => "no earlier build of this step is recorded",
            Miss::InNoCache => "no earlier build of this step is recorded here or in the caches",
            Miss::Unusable => "the cached result cannot be used by this build",
            Miss::NoRecord => "nothing is recorded under this key",
            Miss::OtherOwners => "its files are needed, and the cached ones belong to another isolation mode",
            Miss::OtherResult => "this isolation mode has another result of an equal command",
            Miss::ExecutedLater => "an equal step was executed later",
            Miss::Evicted => "its earlier result is no longer in the cache",
            Miss::InputsForgotten => "the inputs of the earlier build are no longer recorded",
            Miss::MaskedValue => "a value that contains a secret changed",
            Miss::NoDifference => "no difference to the earlier build is recorded",
            Miss::KeyFormat => "the key format changed",
        })
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn reasons_of_misses_are_as_recorded() {
        let misses = [
            Miss::Disabled,
            Miss::OpenInput,
            Miss::Secret,
            Miss::NoEarlierBuild,
            Miss::InNoCache,
            Miss::Unusable,
            Miss::NoRecord,
            Miss::OtherOwners,
            Miss::OtherResult,
            Miss::ExecutedLater,
            Miss::Evicted,
            Miss::InputsForgotten,
            Miss::MaskedValue,
            Miss::NoDifference,
            Miss::KeyFormat,
        ];
        let variants = variants!(Miss {
            Disabled,
            OpenInput,
            Secret,
            NoEarlierBuild,
            InNoCache,
            Unusable,
            NoRecord,
            OtherOwners,
            OtherResult,
            ExecutedLater,
            Evicted,
            InputsForgotten,
            MaskedValue,
            NoDifference,
            KeyFormat,
        });
        assert_recorded!("Miss", variants.words(&misses, ToString::to_string));
    }
}
