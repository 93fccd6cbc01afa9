//! Checksums of downloaded files, and of manifests in names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::digest::{BlobDigest, hex};

/// A hash function for downloaded files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChecksumAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl ChecksumAlgorithm {
    /// All algorithms.
    pub const ALL: [ChecksumAlgorithm; 3] =
        [ChecksumAlgorithm::Sha256, ChecksumAlgorithm::Sha384, ChecksumAlgorithm::Sha512];

    /// Returns the name that precedes the digits, such as `sha256`.
    pub fn name(self) -> &'static str {
        match self {
            ChecksumAlgorithm::Sha256 => "sha256",
            ChecksumAlgorithm::Sha384 => "sha384",
            ChecksumAlgorithm::Sha512 => "sha512",
        }
    }

    /// Returns the number of hexadecimal digits.
    fn digits(self) -> usize {
        match self {
            ChecksumAlgorithm::Sha256 => 64,
            ChecksumAlgorithm::Sha384 => 96,
            ChecksumAlgorithm::Sha512 => 128,
        }
    }

    /// Returns a hasher without input.
    pub fn hasher(self) -> ChecksumHasher {
        match self {
            ChecksumAlgorithm::Sha256 => ChecksumHasher::Sha256(Sha256::new()),
            ChecksumAlgorithm::Sha384 => ChecksumHasher::Sha384(Sha384::new()),
            ChecksumAlgorithm::Sha512 => ChecksumHasher::Sha512(Sha512::new()),
        }
    }
}

/// The checksum of a file: algorithm and lower-case hexadecimal digits.
///
/// ```
/// use rbuild_image::{Checksum, ChecksumAlgorithm};
///
/// let sum = Checksum::of(ChecksumAlgorithm::Sha384, b"hello");
/// assert!(sum.to_string().starts_with("sha384:59e1748777448c69de6b800d7a33bbfb"));
/// assert_eq!(sum.to_string().parse(), Ok(sum));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Checksum {
    algorithm: ChecksumAlgorithm,
    digits: String,
}

/// A string that is not a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChecksumError {
    /// The algorithm is missing or unknown.
    #[error("the algorithm is not sha256, sha384 or sha512")]
    Algorithm,
    /// The digits do not match the algorithm: there are too many or too few, or one is invalid.
    #[error("{} requires {} lower-case hexadecimal digits", .0.name(), .0.digits())]
    Digits(ChecksumAlgorithm),
}

impl Checksum {
    /// Returns the checksum of `bytes`.
    pub fn of(algorithm: ChecksumAlgorithm, bytes: &[u8]) -> Checksum {
        let mut hasher = algorithm.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Returns the algorithm.
    pub fn algorithm(&self) -> ChecksumAlgorithm {
        self.algorithm
    }
}

impl FromStr for Checksum {
    type Err = ChecksumError;

    fn from_str(text: &str) -> Result<Checksum, ChecksumError> {
        let (name, digits) = text.split_once(':').ok_or(ChecksumError::Algorithm)?;
        let algorithm = ChecksumAlgorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name);
        let algorithm = algorithm.ok_or(ChecksumError::Algorithm)?;
        let valid =
            digits.len() == algorithm.digits() && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !valid {
            return Err(ChecksumError::Digits(algorithm));
        }
        Ok(Checksum { algorithm, digits: digits.to_string() })
    }
}

impl From<BlobDigest> for Checksum {
    fn from(digest: BlobDigest) -> Checksum {
        Checksum { algorithm: ChecksumAlgorithm::Sha256, digits: digest.hex() }
    }
}

impl TryFrom<String> for Checksum {
    type Error = ChecksumError;

    fn try_from(text: String) -> Result<Checksum, ChecksumError> {
        text.parse()
    }
}

impl From<Checksum> for String {
    fn from(checksum: Checksum) -> String {
        checksum.to_string()
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.digits)
    }
}

/// Incremental computation of a [`Checksum`].
pub enum ChecksumHasher {
    #[doc(hidden)]
    Sha256(Sha256),
    #[doc(hidden)]
    Sha384(Sha384),
    #[doc(hidden)]
    Sha512(Sha512),
}

impl ChecksumHasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            ChecksumHasher::Sha256(hasher) => hasher.update(bytes),
            ChecksumHasher::Sha384(hasher) => hasher.update(bytes),
            ChecksumHasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// Returns the checksum of the input.
    pub fn finish(self) -> Checksum {
        let (algorithm, digits) = match self {
            ChecksumHasher::Sha256(hasher) => (ChecksumAlgorithm::Sha256, hex(&hasher.finalize())),
            ChecksumHasher::Sha384(hasher) => (ChecksumAlgorithm::Sha384, hex(&hasher.finalize())),
            ChecksumHasher::Sha512(hasher) => (ChecksumAlgorithm::Sha512, hex(&hasher.finalize())),
        };
        Checksum { algorithm, digits }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let digits = ChecksumAlgorithm::ALL.into_iter().map(ChecksumError::Digits);
        let errors: Vec<ChecksumError> = digits.chain([ChecksumError::Algorithm]).collect();
        let variants = variants!(ChecksumError { Algorithm, Digits });
        assert_recorded!("ChecksumError", variants.table(&errors, |e| e, no_remedy));
    }

    #[test]
    fn checksums_have_a_known_algorithm_and_all_digits() {
        for algorithm in ChecksumAlgorithm::ALL {
            let digits = "0f".repeat(algorithm.digits() / 2);
            let text = format!("{}:{digits}", algorithm.name());
            assert_eq!(text.parse::<Checksum>().unwrap().to_string(), text);
            for digits in [digits.to_uppercase(), digits[1..].to_string(), format!("{digits}0"), String::new()] {
                let text = format!("{}:{digits}", algorithm.name());
                assert_eq!(text.parse::<Checksum>(), Err(ChecksumError::Digits(algorithm)), "{text}");
            }
        }
        for text in ["", "0f", "md5:00", "SHA256:00", "sha256"] {
            assert_eq!(text.parse::<Checksum>(), Err(ChecksumError::Algorithm), "{text}");
        }
    }

    #[test]
    fn each_algorithm_computes_its_own_checksum() {
        // FIPS 180-2, appendices B.1, C.1 and D.1: the message `abc`.
        for (algorithm, start) in [
            (ChecksumAlgorithm::Sha256, "sha256:ba7816bf8f01cfea"),
            (ChecksumAlgorithm::Sha384, "sha384:cb00753f45a35e8b"),
            (ChecksumAlgorithm::Sha512, "sha512:ddaf35a193617aba"),
        ] {
            let sum = Checksum::of(algorithm, b"abc");
            assert!(sum.to_string().starts_with(start), "{sum}");
            assert_eq!(sum.to_string().parse(), Ok(sum));
        }
        assert_eq!(Checksum::from(BlobDigest::of(b"abc")), Checksum::of(ChecksumAlgorithm::Sha256, b"abc"));
    }
}
