use std::collections::HashMap;

use rbuild_dockerfile::parse;
use rbuild_image::{ImageConfig, ManifestDigest, Platform};
use rbuild_remedy::Remedy;

use super::*;
use crate::graph::{BuildGraph, CopyItem, CopySource, CopyStep, FileSource, RunStep, Step};
use crate::{
    ContextDir, ContextId, ContextSource, NamedContext, NoCache, Parameters, Resource, Ulimit, VertexId, WrittenImage,
};

mod arguments;
mod commands;
mod copies;
mod errors;
mod metadata;
mod stages;
mod triggers;

fn params() -> Parameters {
    Parameters::new(Platform::host(), Platform::host())
}

fn on_host(name: &str) -> PlatformImage {
    PlatformImage { name: name.parse().unwrap(), platform: Platform::host() }
}

fn debian() -> HashMap<PlatformImage, BaseImage> {
    let mut config = ImageConfig::empty(&Platform::host());
    config.config.env = vec!["PATH=/bin".into(), "BASE=1".into()];
    config.config.cmd = Some(vec!["bash".into()]);
    let base = BaseImage { manifest: ManifestDigest::of(b"debian"), config };
    let mut onbuild = base.clone();
    onbuild.manifest = ManifestDigest::of(b"trigger");
    onbuild.config.config.on_build = vec!["RUN echo triggered".into(), "COPY . /src".into()];
    let foreign = PlatformImage { platform: "linux/ppc64le".parse().unwrap(), ..on_host("debian") };
    let mut other = base.clone();
    other.config.set_platform(&foreign.platform);
    HashMap::from([(on_host("debian"), base), (on_host("trigger"), onbuild), (foreign, other)])
}

fn graph_with(source: &str, params: &Parameters) -> BuildGraph {
    match plan(&parse(source.as_bytes()).unwrap(), params, &debian()) {
        Ok(Plan::Graph(graph)) => *graph,
        Ok(Plan::Needs(needs)) => panic!("{needs:?}"),
        Err(e) => panic!("{e:?}"),
    }
}

fn graph(source: &str) -> BuildGraph {
    graph_with(source, &params())
}

fn error(source: &str) -> String {
    match plan(&parse(source.as_bytes()).unwrap(), &params(), &debian()) {
        Err(mut e) => {
            let d = e.remove(0);
            match d.help {
                Some(rbuild_dockerfile::Help::Text(help)) => format!("{} ({help})", d.message),
                help => format!("{} ({help:?})", d.message),
            }
        }
        Ok(_) => panic!("{source} plans"),
    }
}

fn run(graph: &BuildGraph) -> &RunStep {
    graph.vertices.iter().rev().find_map(|v| if let Step::Run(r) = &v.step { Some(r) } else { None }).unwrap()
}

fn env(graph: &BuildGraph, name: &str) -> Option<String> {
    run(graph).env.get(name).map(str::to_string)
}

fn directory() -> ContextSource {
    ContextSource::Directory(ContextDir { path: "/named".into(), ignore: None })
}

#[test]
fn the_standard_frontends_are_built_in() {
    for syntax in [
        "docker/dockerfile:1",
        "docker.io/docker/dockerfile:1.7-labs",
        "dockerfile.v0",
        "mirror/docker/dockerfile:1",
        "mirror:5000/docker/dockerfile",
        "mirror:5000/a/docker/dockerfile-upstream:master@sha256:00",
    ] {
        graph(&format!("# syntax={syntax}\nFROM debian\n"));
    }
}

#[test]
fn windows_paths_and_shell_follow_the_image() {
    let windows = Parameters { platform: "windows/amd64".parse().unwrap(), platform_given: true, ..params() };
    let g = graph_with(
        "FROM scratch\nWORKDIR C:\\\\app\nWORKDIR sub\nCOPY dir\\\\f x\\\\\nCMD serve it\nCOPY a /b\nENTRYPOINT [\"e\"]\n",
        &windows,
    );
    let config = &g.config.config;
    assert_eq!(config.env, [""; 0]);
    assert_eq!(config.working_dir, "\\app\\sub");
    assert_eq!(config.cmd.as_deref().unwrap(), ["cmd", "/S", "/C", "serve it"]);
    let texts: Vec<&str> = g.history.iter().map(|h| h.created_by.as_str()).collect();
    assert_eq!(texts[..2], ["WORKDIR /app", "WORKDIR /app/sub"]);
    let dests: Vec<(&str, bool)> = g
        .vertices
        .iter()
        .filter_map(|v| if let Step::Copy(c) = &v.step { Some((c.dest.as_str(), c.dest_is_dir)) } else { None })
        .collect();
    assert_eq!(dests, [("/app/sub/x", true), ("/b", false)]);
    for (path, want) in [("D:\\\\x", "not on drive C:"), ("C:", "no path"), ("\\\\\\\\host\\\\x", "a network share")] {
        let file = parse(format!("FROM scratch\nWORKDIR {path}\n").as_bytes()).unwrap();
        let Err(e) = plan(&file, &windows, &debian()) else { panic!("{path}") };
        assert!(e[0].message.contains(want), "{path}: {e:?}");
    }
}

#[test]
fn the_target_stage_is_named_as_requested() {
    let source = "FROM debian AS Last\nARG TARGETSTAGE\nLABEL a=$TARGETSTAGE\n";
    let label = |target: Option<&str>| {
        let g = graph_with(source, &Parameters { target: target.map(str::to_string), ..params() });
        g.config.config.labels["a"].clone()
    };
    assert_eq!((label(None).as_str(), label(Some("LAST")).as_str()), ("last", "LAST"));
}

#[test]
fn no_cache_applies_to_the_given_stages() {
    let source = "FROM debian AS a\nRUN 1\nWORKDIR /w\nFROM debian\nRUN 2\nCOPY --from=a /x /\n";
    let ignored = |no_cache| {
        let g = graph_with(source, &Parameters { no_cache, ..params() });
        g.vertices.iter().filter(|v| v.ignore_cache).map(|v| v.text.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ignored(NoCache::None), [""; 0]);
    assert_eq!(ignored(NoCache::Stages(vec!["A".into()])), ["RUN 1"]);
    assert_eq!(ignored(NoCache::All), ["RUN 1", "RUN 2", "COPY --from=a /x /"]);
}

#[test]
fn platform_is_written_to_the_image_and_run_needs_an_emulator() {
    let asked = Parameters { platform: "linux/s390x".parse().unwrap(), platform_given: true, ..params() };
    // An image of this machine that is used for the other platform.
    let key = PlatformImage { platform: asked.platform.clone(), ..on_host("debian") };
    let images = HashMap::from([(key, debian().remove(&on_host("debian")).unwrap())]);
    let graph_with = |source: &str, params: &Parameters| {
        let Ok(Plan::Graph(graph)) = plan(&parse(source.as_bytes()).unwrap(), params, &images) else { panic!() };
        *graph
    };
    let g = graph_with("FROM debian\nCOPY a /\n", &asked);
    assert_eq!(g.config.platform().to_string(), "linux/s390x");
    let emulated = Parameters { emulated: vec!["s390x".into()], ..asked };
    assert_eq!(graph_with("FROM debian\nRUN y\n", &emulated).vertices.len(), 2);
}

#[test]
fn the_host_platform_is_a_parameter() {
    let of = |text: &str| text.parse::<Platform>().unwrap();
    let arm = Parameters::new(of("linux/arm64"), of("linux/amd64"));
    let file = parse(b"FROM scratch\nRUN [\"/x\"]\n").unwrap();
    let args = analyze(&file, &arm).unwrap().automatic;
    let value = |name: &str| args.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    assert_eq!((value("BUILDPLATFORM"), value("TARGETPLATFORM")), (Some("linux/arm64"), Some("linux/amd64")));
    let errors = plan(&file, &arm, &HashMap::new()).map(drop).unwrap_err();
    assert!(format!("{errors:?}").contains("this machine runs only linux/arm64"), "{errors:?}");
    let amd = Parameters::new(of("linux/amd64"), of("linux/amd64"));
    assert!(plan(&file, &amd, &HashMap::new()).is_ok());
}
