//! Identifiers of the store's entries.

rbuild_image::id_type! {
    /// Identifier of a container.
    key ContainerId;
    /// Identifier of a cache mount: its `id` in the Dockerfile and its initial content.
    key CacheId;
    /// Name of one copy of a cache mount; caches with private sharing have several copies.
    key CacheName;
    /// Name of a [`BuildIndex`](crate::BuildIndex).
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
