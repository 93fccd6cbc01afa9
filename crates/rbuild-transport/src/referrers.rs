//! Lists of the manifests that refer to another one (`subject`), for registries that keep none: an
//! index under a tag with the digest of the other one (OCI distribution specification, "Referrers
//! Tag Schema").

use rbuild_image::{BlobDigest, MediaType};
use rbuild_registry::Repository;
use serde_json::{Map, Value, json};

use crate::blobs::Document;
use crate::documents::index_of;
use crate::error::{Result, TransportError};

/// A manifest that could not be listed, because its list is not an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnlistedReferrer {
    /// The tag that should be that of the list.
    pub tag: String,
    /// The manifest that the pushed one refers to.
    pub subject: BlobDigest,
}

/// Pushes a manifest or an index under a tag or its digest. If it refers to another manifest and
/// the registry does not list it there, adds it to the list.
pub(crate) fn push_document(
    repository: &Repository,
    reference: &str,
    document: &Document,
) -> Result<Option<UnlistedReferrer>> {
    let is_listed = repository.push_document(reference, &document.media_type, &document.bytes)?;
    let members: Option<Map<String, Value>> = serde_json::from_slice(&document.bytes).ok();
    let Some((members, subject)) = members.and_then(|members| subject_of(&members).map(|subject| (members, subject)))
    else {
        return Ok(None);
    };
    if is_listed {
        return Ok(None);
    }
    let tag = subject.to_string().replace(':', "-");
    let listed = repository.pushed(&tag)?.map(|found| found.bytes);
    match with_referrer(listed.as_deref(), &entry(document, &members))? {
        NewList::Unchanged => Ok(None),
        NewList::Index(bytes) => {
            repository.push_document(&tag, MediaType::ImageIndex.as_ref(), &bytes)?;
            Ok(None)
        }
        NewList::NoIndex => Ok(Some(UnlistedReferrer { tag, subject })),
    }
}

fn subject_of(members: &Map<String, Value>) -> Option<BlobDigest> {
    members.get("subject")?.get("digest")?.as_str()?.parse().ok()
}

/// Returns the entry of a list for a manifest with these members.
fn entry(document: &Document, members: &Map<String, Value>) -> Value {
    let (media_type, digest) = (&document.media_type, document.digest().to_string());
    let mut entry = json!({"mediaType": media_type, "digest": digest, "size": document.bytes.len()});
    let config_type = || members.get("config")?.get("mediaType");
    let optional = [
        ("artifactType", members.get("artifactType").or_else(config_type)),
        ("annotations", members.get("annotations")),
    ];
    for (name, value) in optional {
        if let Some(value) = value.filter(|value| !value.is_null()) {
            entry[name] = value.clone();
        }
    }
    entry
}

/// A list after the addition of a manifest.
#[derive(Debug, PartialEq)]
enum NewList {
    /// The list has the manifest already.
    Unchanged,
    Index(Vec<u8>),
    /// The document is not an index.
    NoIndex,
}

/// Adds an entry to a list, which may not exist yet. Other members are kept.
fn with_referrer(listed: Option<&[u8]>, entry: &Value) -> Result<NewList> {
    let Some(bytes) = listed else {
        return index_of(vec![entry.clone()]).map(NewList::Index);
    };
    let Ok(mut index) = serde_json::from_slice::<Value>(bytes) else { return Ok(NewList::NoIndex) };
    let is_index = index.get("mediaType").is_none_or(|found| *found == *MediaType::ImageIndex.as_ref());
    match index.get_mut("manifests").and_then(Value::as_array_mut).filter(|_| is_index) {
        None => Ok(NewList::NoIndex),
        Some(entries) if entries.iter().any(|known| known["digest"] == entry["digest"]) => Ok(NewList::Unchanged),
        Some(entries) => {
            entries.push(entry.clone());
            let bytes = serde_json::to_vec(&index).map_err(TransportError::document("the list of referrers"))?;
            Ok(NewList::Index(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn document(members: Value) -> Document {
        let bytes = serde_json::to_vec(&members).unwrap();
        Document { media_type: "application/vnd.oci.image.manifest.v1+json".into(), bytes }
    }

    #[test]
    fn an_entry_has_the_type_of_the_artifact_or_of_the_configuration() {
        let config = json!({"mediaType": "example/config"});
        for (members, artifact_type, annotations) in [
            (json!({"config": config}), Some("example/config"), None),
            (json!({"config": config, "artifactType": "example/sbom"}), Some("example/sbom"), None),
            (json!({"annotations": {"a": "b"}}), None, Some("b")),
            (json!({"artifactType": null, "annotations": null}), None, None),
        ] {
            let document = document(members.clone());
            let made = entry(&document, members.as_object().unwrap());
            assert_eq!(made["digest"], document.digest().to_string());
            assert_eq!(made["size"], document.bytes.len());
            assert_eq!(made.get("artifactType").and_then(Value::as_str), artifact_type, "{members}");
            assert_eq!(made.get("annotations").map(|all| all["a"].as_str()), annotations.map(Some), "{members}");
        }
    }

    #[test]
    fn a_manifest_is_added_once_and_others_are_kept() {
        let entry = json!({"mediaType": "m", "digest": "sha256:1", "size": 1});
        let list = |listed: Option<&Value>| {
            let bytes = listed.map(|value| serde_json::to_vec(value).unwrap());
            with_referrer(bytes.as_deref(), &entry).unwrap()
        };
        let parsed = |list: NewList| match list {
            NewList::Index(bytes) => serde_json::from_slice::<Value>(&bytes).unwrap(),
            other => panic!("{other:?}"),
        };
        let new = parsed(list(None));
        assert_eq!((&new["mediaType"], &new["manifests"]), (&json!(INDEX), &json!([entry])));
        let other = json!({"digest": "sha256:2"});
        let old = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [other], "annotations": {"a": "b"}});
        let changed = parsed(list(Some(&old)));
        assert_eq!(changed["manifests"], json!([other, entry]));
        assert_eq!(changed["annotations"], old["annotations"]);
        assert_eq!(list(Some(&changed)), NewList::Unchanged);
        let docker = "application/vnd.docker.distribution.manifest.list.v2+json";
        for wrong in [json!({"config": {}}), json!({"manifests": 1}), json!({"mediaType": docker, "manifests": []})] {
            assert_eq!(list(Some(&wrong)), NewList::NoIndex, "{wrong}");
        }
    }
}
