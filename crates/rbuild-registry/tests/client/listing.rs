use rbuild_image::BlobDigest;
use rbuild_registry::{RegistryProblem, referrers, tags};
use serde_json::{Value, json};

use crate::Scene;
use crate::registry::{Access, Fault, Registry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn add(registry: &Registry, tag: &str, media_type: &str, document: Value) -> BlobDigest {
    registry.add_manifest("x", tag, media_type, document.to_string().as_bytes())
}

#[test]
fn all_pages_of_the_list_of_tags_are_read() {
    let registry = Registry::start(Access::Token("joe", "hunter2", 99));
    let scene = Scene::with_login(&registry, "joe", "hunter2");
    let repository = scene.repository(&registry, "x");
    let error = tags(&repository).unwrap_err();
    assert!(error.message().contains("has no repository of that name: test (NAME_UNKNOWN)"), "{error}");
    let expected = ["a", "b", "c", "d"];
    for tag in expected {
        add(&registry, tag, MANIFEST, json!({"schemaVersion": 2}));
    }
    for page in [None, Some(1), Some(3)] {
        registry.state().page = page;
        assert_eq!(tags(&repository).unwrap(), expected, "{page:?}");
    }
    registry.fault("GET", "tags", Fault::Cut(9), 1);
    assert_eq!(tags(&repository).unwrap(), expected, "asked for once more");
    registry.fault("GET", "tags", Fault::Flip, 1);
    let error = tags(&repository).unwrap_err();
    assert!(matches!(*error.problem, RegistryProblem::Answer { .. }), "{error}");
    // A list without an end.
    registry.fault("GET", "tags", Fault::Header("Link", "</v2/x/tags/list>; rel=next".into()), 2000);
    registry.state().page = None;
    let error = tags(&repository).unwrap_err();
    assert!(error.message().contains("more than 1000 pages"), "{error}");
}

#[test]
fn referrers_are_those_of_the_api_or_of_the_tag() {
    let (registry, scene) = (Registry::start(Access::Open), Scene::new());
    let repository = scene.repository(&registry, "x");
    let subject = add(&registry, "1", MANIFEST, json!({"schemaVersion": 2}));
    assert_eq!(referrers(&repository, &subject).unwrap(), [] as [Value; 0]);
    let entry = json!({"mediaType": MANIFEST, "digest": "sha256:1", "size": 3, "artifactType": "example/sbom"});
    let tag = subject.to_string().replace(':', "-");
    add(&registry, &tag, INDEX, json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}));
    assert_eq!(referrers(&repository, &subject).unwrap(), [entry]);
    registry.state().lists_referrers = true;
    assert_eq!(referrers(&repository, &subject).unwrap(), [] as [Value; 0]);
    let artifact =
        json!({"schemaVersion": 2, "artifactType": "example/signature", "subject": {"digest": subject.to_string()}});
    let digest = add(&registry, "signature", MANIFEST, artifact);
    let listed = referrers(&repository, &subject).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&listed[0]["digest"], &listed[0]["artifactType"]),
        (&json!(digest.to_string()), &json!("example/signature"))
    );
    registry.fault("GET", "referrers", Fault::Status(403, None), 1);
    let error = referrers(&repository, &subject).unwrap_err();
    assert!(matches!(*error.problem, RegistryProblem::Denied { .. }), "{error}");
}
