//! Identifiers of the store's entries.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

rbuild_image::id_type! {
    /// Key of a step: a hash of everything that must be equal for a cached result to be reused.
    key CacheKey;
    /// Result of a step, which the steps that read it hash into their keys.
    key ResultId;
    /// Hash of the files of a context that a step reads.
    key FilesHash;
    /// Key of a finished image: a hash of its result and of everything else in its documents.
    key ImageKey;
    /// Identifier of a container.
    key ContainerId;
    /// Identifier of a cache mount: its `id` in the Dockerfile and its initial content.
    key CacheId;
    /// Name of one copy of a cache mount; caches with private sharing have several copies.
    key CacheName;
    /// Name of a `BuildIndex`.
    key BuildIndexName;
    /// Name of a file of cached hashes.
    key HashesName;
    /// A keyed hash of the value of a secret.
    key SecretHash;
    /// Name of a note on a pulled image.
    key PulledName;
    /// Name of a note on a pushed image.
    key PushedName;
    /// Name of a note on a downloaded file.
    key DownloadName;
    /// Identifier of a lock that does not belong to an entry.
    key LockId;
}

impl From<CacheKey> for ResultId {
    /// Returns the result of a step that is determined by its key.
    fn from(key: CacheKey) -> ResultId {
        ResultId::from_bytes(*key.bytes())
    }
}

/// Identifier of a build, or of another command that makes trees, in records and logs. A name of
/// letters, digits and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BuildId(String);

/// A string that is not a [`BuildId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a build ID consists of letters, digits and `-`")]
pub struct BuildIdError;

impl BuildId {
    /// Returns the ID of a build that started at that time, in seconds since the Unix epoch.
    /// `random` distinguishes builds of the same second.
    pub fn new(started: i64, random: u32) -> BuildId {
        BuildId(format!("{started:x}-{random:08x}"))
    }

    /// Returns the ID of a command other than a build. All executions of the command share it.
    pub fn of_command(name: &'static str) -> BuildId {
        name.parse().expect("names of commands are letters")
    }

    /// Returns the ID of a build that is a part of this one.
    pub fn part(&self, name: &'static str) -> BuildId {
        format!("{self}-{name}").parse().expect("names of parts are letters")
    }

    /// Returns the ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BuildId {
    type Err = BuildIdError;

    fn from_str(text: &str) -> Result<BuildId, BuildIdError> {
        let valid = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if valid { Ok(BuildId(text.to_string())) } else { Err(BuildIdError) }
    }
}

impl TryFrom<String> for BuildId {
    type Error = BuildIdError;

    fn try_from(text: String) -> Result<BuildId, BuildIdError> {
        text.parse()
    }
}

impl From<BuildId> for String {
    fn from(id: BuildId) -> String {
        id.0
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;
    use crate::{IndexedStep, Record};

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn messages_are_as_recorded() {
        assert_recorded!("BuildIdError", variants!(BuildIdError).table(&[BuildIdError], |e| e, no_remedy));
    }

    #[test]
    fn build_ids_are_file_names() {
        let id = BuildId::new(0x1234, 0xab);
        assert_eq!((id.as_str(), id.part("first").as_str()), ("1234-000000ab", "1234-000000ab-first"));
        assert_eq!(serde_json::to_string(&id).unwrap(), r#""1234-000000ab""#);
        assert_eq!(serde_json::from_str::<BuildId>(r#""1234-000000ab""#).unwrap(), id);
        for text in ["", ".", "..", "a/b", "a b", "ä"] {
            assert_eq!(text.parse::<BuildId>(), Err(BuildIdError));
            assert!(serde_json::from_value::<BuildId>(text.into()).is_err());
        }
    }

    /// In documents of the store, keys have a prefix that they do not have elsewhere.
    #[test]
    fn stored_documents_are_pinned() {
        let document = format!(r#"{{"tree":"s{HEX}","result":"sha256:{HEX}","created":7,"boot":"b","build":"1"}}"#);
        let record: Record = serde_json::from_str(&document).unwrap();
        assert_eq!(record.result, ResultId::of(b""));
        assert_eq!(serde_json::to_string(&record).unwrap(), document);
        let document = format!(r#"{{"stage":"a","number":2,"text":"RUN x","key":"sha256:{HEX}"}}"#);
        let step: IndexedStep = serde_json::from_str(&document).unwrap();
        assert_eq!((step.key, step.key.to_string()), (CacheKey::of(b""), HEX.to_string()));
        assert_eq!(serde_json::to_string(&step).unwrap(), document);
        let hashes = serde_json::to_string(&[SecretHash::of(b"")]).unwrap();
        assert_eq!(hashes, format!(r#"["sha256:{HEX}"]"#));
    }
}
