//! Object stores: buckets of S3, containers of Azure, and the caches of GitHub Actions.

mod actions;
mod azure;
mod calls;
mod fault;
pub(crate) mod login;
pub(crate) mod part_policy;
mod place;
mod reader;
mod sigv4;
mod store;
mod upload;

pub use actions::{ActionsCache, ActionsPlace, EntryContent, NewestEntry};
pub use calls::ObjectStore;
pub use login::ObjectLogin;
pub use part_policy::PartPolicy;
pub use place::{AzureContainer, ObjectPlace, S3Bucket};
pub use reader::ObjectReader;
pub use store::{ObjectState, StoredObject, WriteCondition, WriteOutcome};
pub use upload::UploadObject;
