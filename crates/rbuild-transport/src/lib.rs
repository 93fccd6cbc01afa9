//! Image transport between the store, OCI layouts, archives and registries.
//!
//! Each of these is a [`BlobSource`], a [`BlobSink`], or both. The verbs are combinations of them:
//! `load` reads archives and layouts into the store, `save` writes the store's images into them,
//! `pull` and `push` do the same with repositories. This crate has no notion of a build: its
//! callers make the layers. `download` stores single files from URLs.

#![warn(missing_docs)]

mod archive;
mod archive_error;
mod blobs;
mod cache;
mod destination;
mod destination_full;
mod documents;
mod download;
mod early_push;
mod error;
#[cfg(test)]
mod fixture;
mod growing;
mod image_documents;
mod kept_index;
mod layout;
mod lent;
mod load;
mod manifest_format;
mod media_types;
mod member_name;
mod pull;
mod pull_platforms;
mod push;
mod put_layer;
mod referrers;
mod registry;
mod save;
mod store;
mod verifying;

pub use archive::{ArchiveFormat, ArchiveWriter};
pub use archive_error::ArchiveError;
pub use blobs::{BlobInfo, BlobOrigin, BlobRead, BlobSink, BlobSource, Document, TransferProgress};
pub use cache::actions::GithubCache;
pub use cache::archive::{unpack_cache_archive, write_cache_archive};
pub use cache::artifact::CachedSteps;
pub use cache::buildkit::{BuildKitCache, BuildKitLayer, InputRecords};
pub use cache::claim::{
    ClaimOutcome, ClaimRequest, Claimant, FIRST_RENEWAL, LAST_RENEWAL, claim, release_claim, renew_claim,
};
pub use cache::imported::{ImportedCache, ImportedCaches, ImportedStep, LayerFetcher, LostLayer, WantedLayer};
pub use cache::inline::{FOREIGN_INLINE_RECORDS, INLINE_RECORDS, inline_records};
pub use cache::local::{LocalCache, write_local_cache};
pub use cache::merge::{CacheLimits, OwnSteps, StepSelection, WrittenCache, day_of};
pub use cache::note::CacheNote;
pub use cache::object_cache::ObjectCache;
pub use cache::record_budget::RecordBudget;
pub use cache::records::RemoteSteps;
pub use cache::shards::{MAX_SHARDS, RemoteCache, tag_of_scope};
pub use cache::shared::{SharedTarget, fetch_shared_layers, read_shared_cache, write_shared_cache};
pub use cache::shared_cache::SharedCache;
pub use cache::signature::{RecordKeyError, RecordKeys};
pub use cache::step_count::{LeftOut, StepCount};
pub use destination::write_destination;
pub use destination_full::{DestinationFull, WriteError};
pub use documents::{NamedArtifact, index_of_images, preferred};
pub use download::{DownloadRequest, download, download_once};
pub use early_push::{EarlyPush, EarlyUploads};
pub use error::{Result, TransportError, remedy_of_download};
pub use growing::GrowingBlob;
pub use kept_index::KeptIndex;
pub use layout::LayoutWriter;
pub use lent::LentLayer;
pub use load::{Loaded, WantedPlatform, WithWarnings, import_from_layout, load, load_directory};
pub use manifest_format::ManifestFormat;
pub use media_types::distributable;
pub use pull::{NameUse, OtherPlatform, PendingPull, PullStart, PulledImage, WantedImage, begin_pull, pull};
pub use pull_platforms::{PulledPlatforms, pull_platforms};
pub use push::{Outgoing, OutgoingForm, PushFaults, check_name, check_push, outgoing, outgoing_lent, push};
pub use put_layer::{PutLayer, put_layer};
pub use referrers::UnlistedReferrer;
pub use save::{
    archive_blobs, check_layers, copy_images, layer_blobs, layer_pairs, save_directory, save_size, save_to,
};
