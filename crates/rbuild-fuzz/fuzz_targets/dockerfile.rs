//! Parses arbitrary bytes as a Dockerfile, applies every lint rule, and plans the build with any
//! base image available.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use rbuild_dockerfile::lint::{self, Facts, StageRole};
use rbuild_dockerfile::{Diagnostic, parse};
use rbuild_image::{ImageConfig, ManifestDigest, Platform};
use rbuild_plan::{BaseImage, Parameters, Plan, plan};

/// Asserts that errors point into the file.
fn inside(errors: &[Diagnostic], length: usize) {
    assert!(!errors.is_empty());
    for d in errors {
        assert!(d.span.start <= d.span.end && d.span.end <= length, "{d:?}");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let file = match parse(bytes) {
        Ok(file) => file,
        Err(errors) => return inside(&errors, bytes.len()),
    };
    if let Ok(settings) = lint::settings(&file) {
        let facts = Facts {
            role: &|_| StageRole::Built,
            base: &|_, _| None,
            ignored: &|path| path.len() % 2 == 0,
            build_arg: &|name| (name.len() % 2 == 0).then(|| "given".to_string()),
            automatic: &[],
        };
        for warning in lint::check(&file, &facts, &settings) {
            assert!(warning.span.end <= bytes.len());
        }
    }
    let mut images = HashMap::new();
    let mut config = ImageConfig::empty(&Platform::host());
    config.config.on_build = vec!["RUN triggered".into()];
    for _ in 0..64 {
        match plan(&file, &Parameters::new(Platform::host(), Platform::host()), &images) {
            Ok(Plan::Needs(needs)) => {
                for need in needs {
                    images.insert(need.key(), BaseImage { manifest: ManifestDigest::of(b"image"), config: config.clone() });
                }
            }
            Ok(Plan::Graph(graph)) => {
                for (id, vertex) in graph.numbered() {
                    assert!(vertex.inputs().iter().all(|input| *input < id), "an input stands after its step");
                }
                return;
            }
            Err(errors) => return inside(&errors, bytes.len()),
        }
    }
});
