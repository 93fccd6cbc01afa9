//! A client of container registries (OCI distribution specification): resolution of names to
//! endpoints, logins, pull and push; of object stores; and downloads of single files from URLs. All
//! operations block; callers use threads.
//!
//! This crate does not depend on the store: it reads and writes streams. Settings come from a
//! [`ProcessEnvironment`], never from the process itself. Passwords and tokens are [`Secret`]s and
//! do not occur in messages.

#![warn(missing_docs)]

mod answer;
mod auth;
mod blob;
mod blob_connections;
mod blob_request;
mod blob_upload;
mod challenge;
mod choose;
mod client;
mod config;
mod config_error;
mod credential;
pub mod credentials;
mod docker_config;
mod download;
mod embedded;
mod endpoint;
mod endpoint_modes;
mod environment;
mod error;
#[cfg(test)]
mod hostile_tests;
mod http;
mod interruption;
mod listing;
mod login;
mod login_use;
mod manifest;
mod objects;
mod open_uploads;
mod proxy;
mod push;
mod range_policy;
mod ranges;
mod reply_fault;
mod request_name;
mod retry;
mod retry_policy;
mod secret;
mod server_settings;
mod session;
mod shared;
mod short_names;
mod stall;
mod time_limit;
mod tls;
mod token_request;
mod url;

pub use blob::BlobReader;
pub use choose::{PlatformMatch, choose, image_entries};
pub use client::{Client, Repository};
pub use config_error::{ConfigError, EndpointUse, FileAction};
pub use credential::{CommandLineCredentials, CommandLineLogin, Credential, Login};
pub use docker_config::proxies;
pub use download::{DownloadError, FileAnswer, FileEncoding, FileRequest, FileSink, Validators};
pub use embedded::{decode_text, embeddable, embedded};
pub use endpoint::TlsVerify;
pub use endpoint_modes::EndpointRole;
pub use environment::ProcessEnvironment;
pub use error::{
    ConnectionFailure, RegistryError, RegistryProblem, RemoteAction, RemoteObject, RemoteRepository, Result,
    VerifiedContent,
};
pub use listing::{referrers, tags};
pub use login::VerifiedLogin;
pub use manifest::{ReceivedManifest, ResolvedTag};
pub use objects::{
    ActionsCache, ActionsPlace, AzureContainer, EntryContent, NewestEntry, ObjectLogin, ObjectPlace, ObjectReader,
    ObjectState, ObjectStore, PartPolicy, S3Bucket, StoredObject, UploadObject, WriteCondition, WriteOutcome,
};
pub use open_uploads::OpenUploads;
pub use push::{GrowingUpload, PushOutcome, UploadBlob};
pub use range_policy::RangePolicy;
pub use retry::Notice;
pub use retry_policy::{RetryMode, RetryPolicy};
pub use secret::Secret;
pub use server_settings::{MirrorPlace, ServerSetting, ServerSettings};
pub use shared::Options;
pub use short_names::ShortNames;
