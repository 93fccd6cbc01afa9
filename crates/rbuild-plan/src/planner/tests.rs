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
mod stages;

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
fn arg_and_env_share_one_namespace_and_the_later_wins() {
    let g = graph("FROM debian\nARG BASE=2\nRUN x\n");
    assert_eq!(env(&g, "BASE").as_deref(), Some("2"));
    let g = graph("FROM debian\nARG A=1\nENV A=2\nRUN x\n");
    assert_eq!(env(&g, "A").as_deref(), Some("2"));
    let g = graph("FROM debian\nENV a=1 b=$a\nRUN x\n");
    assert_eq!(env(&g, "b").as_deref(), Some(""));
    let g = graph("FROM debian\nARG X\nARG Y=\nRUN x\n");
    assert_eq!((env(&g, "X"), env(&g, "Y").as_deref()), (None, Some("")));
    let with = Parameters { build_args: vec![("V".into(), "9".into())], ..params() };
    let g = graph_with("ARG V=1\nFROM debian\nARG V\nRUN x\n", &with);
    assert_eq!(env(&g, "V").as_deref(), Some("9"));
    let g = graph_with("ARG V=1\nFROM debian\nRUN x\n", &with);
    assert_eq!(env(&g, "V"), None);
}

#[test]
fn history_matches_dockers_format() {
    let g = graph(concat!(
        "FROM debian\nARG foo=bar\nENV a=b\nWORKDIR /w\nWORKDIR sub\nRUN ls /etc\nCOPY --chown=1:2 a b /c/\n",
        "CMD [\"x\", \"y z\"]\nEXPOSE 90/udp 80\nVOLUME /v\nENTRYPOINT run it\nWORKDIR /\n"
    ));
    let texts: Vec<(&str, bool)> = g.history.iter().map(|h| (h.created_by.as_str(), h.layer.is_none())).collect();
    assert_eq!(
        texts,
        [
            ("ARG foo=bar", true),
            ("ENV a=b", true),
            ("WORKDIR /w", false),
            ("WORKDIR /w/sub", false),
            ("RUN |1 foo=bar /bin/sh -c ls /etc # buildkit", false),
            ("COPY --chown=1:2 a b /c/ # buildkit", false),
            ("CMD [\"x\" \"y z\"]", true),
            ("EXPOSE [80/tcp 90/udp]", true),
            ("VOLUME [/v]", true),
            ("ENTRYPOINT [\"/bin/sh\" \"-c\" \"run it\"]", true),
            ("WORKDIR /", true),
        ]
    );
    assert_eq!(g.config.config.cmd.as_deref(), Some(&["x".to_string(), "y z".to_string()][..]));
}

#[test]
fn entrypoint_resets_only_an_inherited_cmd() {
    assert_eq!(graph("FROM debian\nENTRYPOINT [\"e\"]\n").config.config.cmd, None);
    assert!(graph("FROM debian\nCMD [\"c\"]\nENTRYPOINT [\"e\"]\n").config.config.cmd.is_some());
}

#[test]
fn triggers_run_right_after_from_and_are_removed() {
    let g = graph("FROM trigger\nRUN mine\n");
    let texts: Vec<&str> = g.vertices.iter().map(|v| v.text.as_str()).collect();
    assert_eq!(texts, ["FROM trigger", "ONBUILD RUN echo triggered", "ONBUILD COPY . /src", "RUN mine"]);
    assert!(g.config.config.on_build.is_empty());
    assert_eq!(graph("FROM debian\nONBUILD RUN x\n").config.config.on_build, ["RUN x"]);
}

#[test]
fn heredocs_become_scripts_and_files() {
    let g = graph("FROM debian\nRUN <<EOF\na $x\nb\nEOF\n");
    assert_eq!(run(&g).args, ["/bin/sh", "-c", "a $x\nb\n"]);
    let g = graph("FROM debian\nRUN 3<<EOF\na\nEOF\n");
    assert_eq!(run(&g).args, ["/bin/sh", "-c", "a\n"]);
    let g = graph("FROM debian\nRUN cat <<A >f\n1\nA\n");
    assert_eq!(run(&g).args[2], "cat <<A >f\n1\nA");
    let g = graph("FROM debian\nARG n=v\nCOPY <<A <<'B' /d/\n\"$n\"\nA\n$n\nB\n");
    let Step::Copy(copy) = &g.vertices[1].step else { panic!() };
    let files: Vec<(&str, &str)> = copy.inline.iter().map(|f| (f.name.as_str(), f.content.as_str())).collect();
    assert_eq!(files, [("A", "\"v\"\n"), ("B", "$n\n")]);
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
fn workdir_user_and_ports_are_kept_as_written() {
    let g = graph("FROM debian\nARG NONE\nWORKDIR /a/\nUSER $NONE\nWORKDIR $NONE\nWORKDIR b/../c\n");
    let texts: Vec<&str> = g.history.iter().map(|h| h.created_by.as_str()).collect();
    assert_eq!(texts[1..], ["WORKDIR /a/", "USER ", "WORKDIR /a/", "WORKDIR /a/c"]);
    assert_eq!(g.config.config.working_dir, "/a/c");
    let g = graph("FROM debian\nRUN\nCMD\n");
    assert_eq!(run(&g).args, ["/bin/sh", "-c", ""]);
    assert_eq!(g.config.config.cmd.as_deref().unwrap(), ["/bin/sh", "-c", ""]);
    let g = graph("FROM debian\nEXPOSE 8080 99-101 80/\n");
    assert_eq!(g.history[0].created_by, "EXPOSE [80/tcp 8080/tcp 99/tcp 100/tcp 101/tcp]");
    let g = graph("FROM debian\nEXPOSE 127.0.0.1:1-9:80 :81 [::1]::82 8000-8001:90-91/udp\nVOLUME [\" /c \"]\n");
    assert_eq!(g.history[0].created_by, "EXPOSE [80/tcp 90/udp 91/udp 81/tcp 82/tcp]");
    assert_eq!(g.config.config.volumes.keys().collect::<Vec<_>>(), ["/c"]);
}

#[test]
fn all_parts_of_an_exposed_port_are_checked() {
    for port in ["x:80", "80:90-91", "1-9:80-81", "host:80:80", "-:80", "80:", "1:2:3:4:5"] {
        let found = error(&format!("FROM debian\nEXPOSE {port}\n"));
        assert!(found.starts_with(&format!("invalid port `{port}`")), "{port}: {found}");
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
fn an_argument_shadowed_by_env_is_not_in_the_key() {
    let source = "FROM debian\nARG FOO\nENV X=1 FOO=bat\nRUN y\n";
    let parts = |args: &[(&str, &str)]| {
        let build_args = args.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let g = graph_with(source, &Parameters { build_args, ..params() });
        let mut all = Vec::new();
        g.vertices[g.target].step.parts(&mut |part| all.push((part.name(), part.value().into_owned())));
        all
    };
    assert_eq!(parts(&[("FOO", "1")]), parts(&[("FOO", "2")]));
    assert_eq!(parts(&[("FOO", "1")]), parts(&[]));
}

#[test]
fn limits_and_cache_options_are_in_the_key() {
    let parts = |source: &str, params: &Parameters| {
        let g = graph_with(source, params);
        let mut all = Vec::new();
        g.vertices[g.target].step.parts(&mut |part| all.push((part.name(), part.value().into_owned())));
        all
    };
    let plain = "FROM debian\nRUN --mount=type=cache,target=/c y\n";
    let limit = Ulimit { resource: Resource::Nofile, soft: 1, hard: 2 };
    assert_ne!(parts(plain, &params()), parts(plain, &Parameters { shm_size: Some(1), ..params() }));
    assert_ne!(parts(plain, &params()), parts(plain, &Parameters { ulimits: vec![limit], ..params() }));
    for option in ["uid=10", "gid=10", "mode=0700", "source=/x", "ro", "id=other"] {
        let other = plain.replace("target=/c", &format!("target=/c,{option}"));
        assert_ne!(parts(plain, &params()), parts(&other, &params()), "{option}");
    }
    // As in BuildKit, only the permission bits of the mode count.
    for option in ["uid=0", "mode=1755"] {
        let same = plain.replace("target=/c", &format!("target=/c,{option}"));
        assert_eq!(parts(plain, &params()), parts(&same, &params()), "{option}");
    }
    // As in BuildKit, the sharing mode alone is in no key, and an ID only if it is the default ID
    // of a shared cache.
    let named = plain.replace("target=/c", "target=/c,id=i");
    for option in ["id=i,sharing=locked", "id=j", "sharing=private"] {
        let other = plain.replace("target=/c", &format!("target=/c,{option}"));
        assert_eq!(parts(&named, &params()), parts(&other, &params()), "{option}");
        assert_ne!(parts(plain, &params()), parts(&other, &params()), "{option}");
    }
}

#[test]
fn a_heredoc_name_must_be_a_plain_file_name() {
    let mut trigger = debian();
    let base = trigger.get_mut(&on_host("trigger")).unwrap();
    base.config.config.on_build = vec!["COPY <</store/x /d/\nx\n/store/x".into()];
    let Err(e) = plan(&parse(b"FROM trigger\n").unwrap(), &params(), &trigger) else { panic!() };
    assert!(e[0].message.contains("ONBUILD trigger: here-document name `/store/x` is not a file name"), "{e:?}");
    for name in ["/context/.git/hooks/x", "../x", "a/b", ".", "..", "./x", "x/"] {
        for instruction in ["COPY", "COPY --link", "COPY --chmod=755 --chown=1", "ADD", "COPY <<ok"] {
            let ok = if instruction.ends_with("ok") { "ok\n" } else { "" };
            let got = error(&format!("FROM debian\n{instruction} <<{name} /d/\n{ok}x\n{name}\n"));
            assert!(got.contains(&format!("here-document name `{name}` is not a file name")), "{instruction}: {got}");
            let got = error(&format!("FROM debian\n{instruction} <<\"{name}\" /d/\n{ok}x\n{name}\n"));
            assert!(got.contains("is not a file name"), "{instruction}: {got}");
        }
        let got = error(&format!("FROM debian\nRUN <<{name}\n#!/bin/sh\n{name}\n"));
        assert!(got.contains("is not a file name"), "{got}");
    }
    // To a shell the name is only a delimiter.
    graph("FROM debian\nRUN <<a/b\necho\na/b\n");
    graph("FROM debian\nRUN cat <<a/b | cat\necho\na/b\n");
    graph("FROM debian\nCOPY <<.hidden..x /d/\n.hidden..x\n");
}

#[test]
fn signals_are_known_names_or_nonzero_numbers() {
    for signal in ["SIGTERM", "kill", "IOT", "sigcld", "RTMIN", "SIGRTMIN+15", "RTMAX-14", "9", "99", "-1"] {
        graph(&format!("FROM debian\nSTOPSIGNAL {signal}\n"));
    }
}

#[test]
fn run_history_shows_argument_values_seen_by_the_command() {
    let with = Parameters { build_args: vec![("A".into(), "given".into())], ..params() };
    let g = graph_with("FROM debian AS a\nARG A B C=c\nENV C=env\nFROM a\nARG A\nRUN x\n", &with);
    assert_eq!(
        g.history.last().map(|h| h.created_by.as_str()),
        Some("RUN |3 A=given B= C=env /bin/sh -c x # buildkit")
    );
}

#[test]
fn the_history_has_the_forms_of_buildkit() {
    let g = graph(concat!(
        "FROM debian\nRUN cat <<-A\n\t\tone\n\tA\nRUN <<-A\n\ttwo\n\tA\n",
        "CMD [\"a\\u200bb\\u00e9\"]\nENTRYPOINT []\nCMD []\n",
    ));
    let last: Vec<&str> = g.history.iter().rev().take(5).map(|entry| entry.created_by.as_str()).collect();
    assert_eq!(
        last,
        [
            "CMD []",
            "ENTRYPOINT []",
            r#"CMD ["a\u200bbé"]"#,
            "RUN /bin/sh -c two\n # buildkit",
            "RUN /bin/sh -c cat <<-A\n\t\tone\nA # buildkit",
        ]
    );
    // An empty list is none.
    assert_eq!((&g.config.config.cmd, &g.config.config.entrypoint), (&None, &None));
}

/// Returns the first error of a plan as a row: message, marked text and help.
fn row(source: &str, images: &HashMap<PlatformImage, BaseImage>) -> String {
    let params = Parameters { allow_host_network: false, ..params() };
    let Err(mut errors) = plan(&parse(source.as_bytes()).unwrap(), &params, images) else { panic!("{source} plans") };
    let d = errors.remove(0);
    let marked = source.get(d.span.start..d.span.end).expect("a span is a range of the file").trim_end();
    let help = d.help.map_or(String::new(), |help| format!("  help: {help:?}\n"));
    format!("{}\n  at: {marked}\n{help}", d.message).replace(&Platform::host().to_string(), "[host]")
}

#[test]
fn errors_are_as_recorded() {
    let mut images = debian();
    for platform in ["lnux/ppc64le", "linux/s39x", "linux/elbrus", "freebsd/amd64"] {
        let foreign = PlatformImage { platform: platform.parse().unwrap(), ..on_host("debian") };
        let mut base = images[&on_host("debian")].clone();
        base.config.set_platform(&foreign.platform);
        images.insert(foreign, base);
    }
    let table: String = [
        "FROM $NO",
        "FROM Debian",
        "FROM --platform=linux/ppc64le debian\nRUN y",
        "FROM --platform=lnux/ppc64le debian\nRUN y",
        "FROM --platform=linux/s39x debian\nRUN y",
        "FROM --platform=linux/elbrus debian\nRUN y",
        "FROM --platform=freebsd/amd64 debian\nRUN y",
        "ARG P=\nFROM --platform=$P debian",
        "ARG SOURCE_DATE_EPOCH=soon\nFROM debian",
        "# syntax=example.com/notdocker/dockerfile:1\nFROM debian",
        "# syntax=example.com/other:1\nFROM debian",
        "FROM debian\nRUN --mount=type=cache,target=/ x",
        "FROM debian\nRUN --mount=type=cache x",
        "FROM debian\nRUN --mount=type=ssh,source=x true",
        "FROM debian\nRUN --mount=type=secret,from=x true",
        "FROM debian\nRUN --mount=type true",
        "FROM debian\nRUN --mount=type=secret,uid=root true",
        "FROM debian\nRUN --mount=type=secret,mode=rwx true",
        "FROM debian\nRUN []",
        "FROM debian\nRUN --network=moon x",
        "FROM debian\nRUN --network=hots x",
        "FROM debian\nRUN --network=host x",
        "FROM debian\nRUN --security=insecure y",
        "FROM debian\nRUN --security=maybe y",
        "FROM debian\nRUN --security=insecur y",
        "FROM debian\nRUN --device=gpu,required y",
        "FROM debian\nRUN --device=Required=1,gpu y",
        "FROM debian\nRUN --device='name=gpu,\"required\"' y",
        "FROM debian\nCOPY --from=7 a b",
        "FROM debian\nFROM debian\nCOPY --from=7 a b",
        "FROM debian\nFROM debian\nFROM debian\nCOPY --from=7 a b",
        "FROM debian\nCOPY --from=1 a b\nFROM debian\nCOPY --from=0 a b",
        "FROM debian AS a\nCOPY --from=a x y",
        "FROM debian\nCOPY --link --chown=me a b",
        "FROM debian\nEXPOSE 99999",
        "FROM debian\nSTOPSIGNAL SIGFOO",
        "FROM debian\nSTOPSIGNAL 0",
        "FROM debian\nSTOPSIGNAL RTMIN+16",
        "FROM debian\nENV A=\"${B:?must be set}\"",
    ]
    .iter()
    .map(|source| row(&format!("{source}\n"), &images))
    .collect();
    rbuild_testkit::assert_recorded!("planning", table);
}

/// A context whose name is a number does not replace the stage with that number.
#[test]
fn a_stage_that_depends_on_itself_is_reported_as_recorded() {
    let context = NamedContext { name: "0".into(), platform: None, source: ContextSource::Scratch };
    let with_context = Parameters { contexts: vec![context], ..params() };
    let file = parse(b"FROM debian AS app\nCOPY --from=0 /a /b\n").unwrap();
    let Err(errors) = plan(&file, &with_context, &debian()) else { panic!() };
    let lines = errors.iter().map(|d| format!("{}\n  help: {:?}\n", d.message, d.help));
    rbuild_testkit::assert_recorded!("cycle", lines.collect::<String>());
}

#[test]
fn errors_in_triggers_are_as_recorded() {
    let debian = debian();
    let with_trigger = |name: &str, trigger: &str| {
        let mut base = debian[&on_host("debian")].clone();
        base.manifest = ManifestDigest::of(name.as_bytes());
        base.config.config.on_build = vec![trigger.into()];
        (on_host(name), base)
    };
    let single = ["RUNN x", "FROM x", "COPY --from=7 a b", "COPY --link --chown=me a b"];
    let of_one = single.map(|trigger| row("FROM base AS s\nRUN x\n", &HashMap::from([with_trigger("base", trigger)])));
    // An error of another stage keeps its place.
    let elsewhere = "FROM scratch AS s\nCOPY --link --chown=me a b\nFROM base\n";
    let elsewhere = row(elsewhere, &HashMap::from([with_trigger("base", "COPY --from=s a b")]));
    // Each stage copies from the one above it.
    let chained = |n: usize| with_trigger(&format!("image{n}"), &format!("COPY --from=s{} /x /", n.saturating_sub(1)));
    let count = 102;
    let source: String = (0..count)
        .map(|n| format!("FROM {} AS s{n}\n", if n == 0 { "debian".into() } else { format!("image{n}") }))
        .collect();
    let mut images: HashMap<_, _> = (1..count).map(chained).collect();
    images.extend(debian.clone());
    rbuild_testkit::assert_recorded!("planning-triggers", of_one.concat() + &elsewhere + &row(&source, &images));
}

#[test]
fn a_misspelled_target_is_corrected() {
    let target = Parameters { target: Some("biuld".into()), ..params() };
    let Err(e) = plan(&parse(b"FROM debian AS build\n").unwrap(), &target, &debian()) else { panic!() };
    assert_eq!(e[0].help, Some(Remedy::did_you_mean("build").into()));
}

#[test]
fn quoted_options_of_a_mount_contain_commas() {
    let g = graph("FROM debian\nARG to=/t,u\nRUN --mount=type=bind,'\"source=a,b\"',target=$to x\n");
    let run = run(&g);
    let crate::RunMountKind::Bind { source, .. } = &run.mounts[0].kind else { panic!() };
    assert_eq!((source.as_str(), run.mounts[0].target.as_str()), ("a,b", "/t,u"));
    // The parser of flags removes these quotes, as BuildKit's does.
    let got = error("FROM debian\nRUN --mount=type=bind,\"source=a,b\",target=/x x\n");
    assert!(got.starts_with("unknown mount option `b`"), "{got}");
}

#[test]
fn triggers_count_as_steps() {
    let labels = |source: &str| graph(source).vertices.iter().map(|v| v.name.to_string()).collect::<Vec<_>>();
    assert_eq!(labels("FROM trigger\nRUN a\n"), ["1/4", "2/4", "3/4", "4/4"]);
    let two = labels("FROM trigger AS a\nFROM a AS b\nRUN x\n");
    assert_eq!(two, ["a 1/3", "a 2/3", "a 3/3", "b 2/2"]);
}

#[test]
fn every_option_of_run_changes_its_key() {
    let base = "FROM debian\nWORKDIR /w\nARG a=1\nUSER u\nRUN --mount=type=tmpfs,target=/t x\n";
    let parts = |graph: &BuildGraph| {
        let mut all = Vec::new();
        graph.vertices[graph.target].step.parts(&mut |part| all.push((part.name(), part.value().into_owned())));
        all
    };
    let key = |source: &str| parts(&graph(source));
    for (from, to) in [
        ("/w", "/v"),
        ("a=1", "a=2"),
        ("USER u", "USER v"),
        ("target=/t", "target=/s"),
        (" x", " y"),
        ("RUN", "RUN --network=none"),
    ] {
        assert_ne!(key(base), key(&base.replace(from, to)), "{from}");
    }
    assert_eq!(key(base), key(&base.replace("RUN", "# comment\nRUN")));
    let proxied = Parameters { build_args: vec![("HTTP_PROXY".into(), "p".into())], ..params() };
    let graph = graph_with(base, &proxied);
    assert_eq!(parts(&graph), key(base));
    let proxies: Vec<&str> = run(&graph).proxies.iter().map(|(k, _)| k.as_str()).collect();
    assert_eq!(proxies, ["HTTP_PROXY", "http_proxy"]);
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

#[test]
fn urls_of_add_are_files_to_download() {
    let sum = format!("sha256:{}", "0f".repeat(32));
    let source = format!(
        "FROM debian\nARG V=1.2 SUM={sum}\nADD --checksum=$SUM --unpack http://joe:pw@a.io/x-${{V}}.tar?q=$V /d/\n\
        ADD file https://a.io/ /d/\n"
    );
    let g = graph(&source);
    let copies: Vec<&CopyStep> =
        g.vertices.iter().filter_map(|v| if let Step::Copy(copy) = &v.step { Some(copy) } else { None }).collect();
    let [CopySource { item: CopyItem::Download { file, unpack: true }, .. }] = &copies[0].sources[..] else { panic!() };
    assert_eq!((file.url.target().as_str(), file.name.as_str()), ("http://a.io/x-1.2.tar?q=1.2", "x-1.2.tar"));
    assert_eq!(file.checksum.as_ref().map(ToString::to_string), Some(sum));
    let [of_context, CopySource { item: CopyItem::Download { file, unpack: false }, .. }] = &copies[1].sources[..]
    else {
        panic!()
    };
    assert_eq!((file.name.as_str(), &file.checksum), ("__unnamed__", &None));
    assert!(of_context.pattern().is_some() && copies[1].first_files() == Some(of_context));
    assert_eq!(g.history[1].created_by, "ADD http://***@a.io/x-1.2.tar?q=1.2 /d/ # buildkit");
    assert!(!format!("{g:?}").contains(":pw"));
    for (step, message) in [
        ("COPY http://a.io/x /", "COPY cannot download a URL (use ADD)"),
        ("ADD http://a.io/%x /", "the URL is invalid: a `%` is not followed by two hexadecimal digits (None)"),
        ("ADD --checksum=sha256:x http://a.io/x.git /", "ADD of a git repository is not supported yet"),
        ("ADD git@a.io:x /", "ADD of a git repository is not supported yet"),
        ("ADD --checksum=crc:0 http://a.io/x /", "`crc:0` is not a checksum: the algorithm is not sha256"),
        ("ADD --checksum=sha256:0 x /", "`--checksum` requires a source that is downloaded"),
        ("ADD --checksum=sha256:0 http://a.io/x http://a.io/y /", "`--checksum` applies to a single source"),
    ] {
        let found = error(&format!("FROM debian\n{step}\n"));
        assert!(found.starts_with(message), "{step}: {found}");
    }
    graph("FROM debian\nADD --checksum=$NONE http://a.io/x /\n");
}

#[test]
fn empty_values_of_flags_count_as_none() {
    let g = graph("FROM --platform= debian\nARG UNSET\nCOPY --from= --chmod=$UNSET --chown=$UNSET f /x\n");
    let Step::Copy(copy) = &g.vertices.last().unwrap().step else { panic!() };
    assert_eq!((&copy.from, &copy.chmod, &copy.chown), (&FileSource::Context, &None, &None));
    assert_eq!(g.history.last().unwrap().created_by, "COPY f /x # buildkit");
}

#[test]
fn link_is_ignored_together_with_chmod() {
    let link = |flags: &str| {
        let g = graph(&format!("FROM debian\nCOPY --link {flags} f /x\n"));
        let Step::Copy(copy) = &g.vertices.last().unwrap().step else { panic!() };
        copy.link
    };
    assert!(link("") && link("--chown=1") && !link("--chmod=600") && !link("--chown=web --chmod=600"));
}

#[test]
fn commands_run_in_the_lexically_resolved_working_directory() {
    for (path, want) in [("/a/../b", "/b"), ("/a/", "/a/"), ("/..", "/")] {
        assert_eq!(run(&graph(&format!("FROM debian\nWORKDIR {path}\nRUN true\n"))).cwd, want);
    }
}

#[test]
fn all_independent_errors_are_reported() {
    let messages = |source: &str| {
        let found = plan(&parse(source.as_bytes()).unwrap(), &params(), &debian());
        let found = found.err().unwrap_or_else(|| panic!("{source} plans"));
        found.into_iter().map(|d| d.message).collect::<Vec<_>>()
    };
    let port = |text: &str| format!("invalid port `{text}`: protocol must be tcp, udp or sctp");
    let unset = |name: &str, message: &str| format!("variable `{name}`: {message}");
    let cases: [(&str, Vec<String>); 12] = [
        // The letter A in another message is no use of the variable A.
        ("FROM debian\nARG A=${x:?x} B=${y:?ARCH}\n", vec![unset("x", "x"), unset("y", "ARCH")]),
        // C fails only because A has, by way of B.
        ("FROM debian\nARG A=${x:?x} B=${A:-} C=${B:?needed}\n", vec![unset("x", "x")]),
        ("ARG A=${x:?x} B=${A:-} C=${B:?needed} D=${y:?y}\nFROM debian\n", vec![unset("x", "x"), unset("y", "y")]),
        // The second value of A is known, and so is one that does not depend on A.
        ("FROM debian\nARG A=${x:?x} A= B=${A:?b}\n", vec![unset("x", "x"), unset("A", "b")]),
        ("FROM debian\nARG A=${x:?x} B=${y:?b}$A\n", vec![unset("x", "x"), unset("y", "b")]),
        (
            "FROM debian\nEXPOSE 1 bad 99999 x/y\n",
            vec![
                "invalid port `bad`: it is not a number".into(),
                "invalid port `99999`: port numbers range from 0 to 65535".into(),
                "invalid port `x/y`: protocol must be tcp, udp or sctp".into(),
            ],
        ),
        ("FROM debian\nEXPOSE 80/tpc\nEXPOSE 81/tpc\n", vec![port("80/tpc"), port("81/tpc")]),
        (
            "FROM debian\nEXPOSE 80/tpc\nSTOPSIGNAL FOO\nRUN --network=x y\nCOPY --chmod=9 a b\n",
            vec![
                port("80/tpc"),
                "`FOO` is not a signal".into(),
                "unknown network mode `x`".into(),
                "`9` is not a file mode".into(),
            ],
        ),
        // The error of a stage does not hide those of the stages that use it.
        ("FROM debian AS a\nEXPOSE 1/x\nFROM debian\nCOPY --from=a x y\nEXPOSE 2/x\n", vec![port("1/x"), port("2/x")]),
        ("FROM debian AS a\nEXPOSE 1/x\nFROM a\nEXPOSE 2/x\n", vec![port("1/x")]),
        // Without the variable, the rest of the stage may be right.
        ("FROM debian\nENV A=${B:?none}\nEXPOSE $A/x\n", vec!["variable `B`: none".into()]),
        ("FROM nosuch\nEXPOSE 80/tpc\nFROM debian\nEXPOSE 1/x\n", vec![port("1/x")]),
    ];
    for (source, want) in cases {
        assert_eq!(messages(source), want, "{source}");
    }
}

#[test]
fn all_independent_errors_of_one_instruction_are_reported() {
    let count = |line: &str| {
        let source = format!("FROM debian\nARG X\n{line}\n");
        plan(&parse(source.as_bytes()).unwrap(), &params(), &debian()).err().map_or(0, |errors| errors.len())
    };
    for (line, want) in [
        ("EXPOSE 1/x 80 2-1 99999", 3),
        ("EXPOSE $Q 80 ${Q:?} a", 2),
        ("VOLUME ${Q:?} /a $Q ${Q:?}", 3),
        ("LABEL ${Q:?}=${R:?} a=b c=${Q:?}", 3),
        ("ENV a=${Q:?} b=c d=${R:?}", 2),
        // The second default needs the first argument, and the last one does not.
        ("ARG A=${Q:?} B=${A:?} C=${Q:?}", 2),
        ("RUN --network=x --security=y --device=a,required --mount=type=cache,mode=9,uid=x --mount=target=/ true", 6),
        ("COPY --from=$X --chmod=9 --chown=${Q:?} http://a ${Q:?} ${Q:?}/", 6),
        ("COPY --link --chown=web a b", 1),
        // Without the mode, it is not known whether --link applies.
        ("COPY --link --chown=web --chmod=9 a b", 1),
        ("ADD --checksum=x ${Q:?} git://x /d", 2),
    ] {
        assert_eq!(count(line), want, "{line}");
    }
    let global = parse(b"ARG A=${Q:?} B=${Q:?}\nARG C=${Q:?}\nFROM debian\n").unwrap();
    assert_eq!(plan(&global, &params(), &debian()).err().map(|errors| errors.len()), Some(2));
}

#[test]
fn names_of_steps_show_all_flags() {
    let text = |source: &str| {
        let graph = graph(&format!("FROM debian\nARG V=1\n{source}\n"));
        let vertex = graph.vertices.last().unwrap();
        (vertex.text.clone(), graph.history.last().unwrap().created_by.clone())
    };
    for (source, shown, history) in [
        (
            "COPY --parents --exclude=*.o --exclude=$V --link a$V /b/",
            "COPY --link --exclude=*.o --exclude=$V --parents a1 /b/",
            "COPY --parents a1 /b/ # buildkit",
        ),
        ("ADD --unpack=false a /b", "ADD --unpack=false a /b", "ADD a /b # buildkit"),
        ("ADD --unpack --chmod=600 a /b", "ADD --unpack --chmod=600 a /b", "ADD --chmod=600 a /b # buildkit"),
    ] {
        assert_eq!(text(source), (shown.into(), history.into()), "{source}");
    }
}
