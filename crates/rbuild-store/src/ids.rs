//! Identifiers of the store's entries.

rbuild_image::id_type! {
    /// Key of a step: a hash of everything that must be equal for a cached result to be reused.
    key CacheKey;
    /// Result of a step, which the steps that read it hash into their keys.
    key ResultId;
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
    /// Mark of a secret: a keyed hash of its value.
    key SecretMark;
    /// Name of a note on a pulled image.
    key PulledName;
    /// Identifier of a lock that belongs to no entry.
    key LockId;
}

impl From<CacheKey> for ResultId {
    /// Returns the result of a step that is determined by its key.
    fn from(key: CacheKey) -> ResultId {
        ResultId::from_bytes(*key.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IndexedStep, Record};

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// Documents of the store keep the prefix, which keys do not have elsewhere.
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
        let marks = serde_json::to_string(&[SecretMark::of(b"")]).unwrap();
        assert_eq!(marks, format!(r#"["sha256:{HEX}"]"#));
    }
}
