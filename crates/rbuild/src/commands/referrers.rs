//! The manifests in registries that refer to an image, such as signatures and bills of materials.

use rbuild_image::{ManifestDigest, Reference};
use rbuild_registry::{Client, ResolvedTag};
use serde_json::{Value, json};

use crate::args::InspectArgs;
use crate::exit::Failure;
use crate::input::registry;

/// Returns one document for each name: its digest in the registry, and the entries of the manifests
/// that refer to it.
pub fn of(args: &InspectArgs) -> Result<Vec<Value>, Failure> {
    let names = args.names.iter().map(|name| registry::full_name(name)).collect::<Result<Vec<_>, _>>()?;
    let client = registry::client_of(&args.registry, &names, false)?;
    names.iter().map(|name| referrers(&client, name)).collect()
}

fn referrers(client: &Client, name: &Reference) -> Result<Value, Failure> {
    let repository = client.repository(name)?;
    let digest = match (name.digest().map(ManifestDigest::blob), name.checksum()) {
        (Some(digest), _) => digest,
        (None, Some(checksum)) => repository.checked(checksum)?.digest,
        (None, None) => match repository.resolve(name.tag().unwrap_or("latest"))? {
            ResolvedTag::Digest(digest) => digest,
            ResolvedTag::Manifest(document) => document.digest,
        },
    };
    let entries = rbuild_registry::referrers(&repository, &digest)?;
    Ok(json!({"Name": name.familiar(), "Digest": digest.to_string(), "Referrers": entries}))
}
