use std::collections::HashMap;

use rbuild_dockerfile::parse;
use rbuild_image::{ImageConfig, ImageName, ManifestDigest, Platform};
use rbuild_remedy::Remedy;

use super::*;
use crate::graph::{BuildGraph, CopyItem, CopySource, CopyStep, FileSource, RunStep, Step};
use crate::{
    ContextDir, ContextId, ContextSource, NamedContext, NoCache, Parameters, Resource, Ulimit, VertexId, WrittenImage,
};

fn params() -> Parameters {
    Parameters::new(Platform::host(), Platform::host())
}

fn debian() -> HashMap<ImageName, BaseImage> {
    let mut config = ImageConfig::empty(&Platform::host());
    config.config.env = vec!["PATH=/bin".into(), "BASE=1".into()];
    config.config.cmd = Some(vec!["bash".into()]);
    let base = BaseImage { manifest: ManifestDigest::of(b"debian"), config };
    let mut onbuild = base.clone();
    onbuild.manifest = ManifestDigest::of(b"trigger");
    onbuild.config.config.on_build = vec!["RUN echo triggered".into(), "COPY . /src".into()];
    HashMap::from([("debian".parse().unwrap(), base), ("trigger".parse().unwrap(), onbuild)])
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
                Some(Remedy::Text(help)) => format!("{} ({help})", d.message),
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
    ContextSource::Directory(ContextDir { path: "/named".into(), ignore: String::new() })
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
fn only_dependencies_of_the_target_are_planned() {
    let source = "FROM debian AS a\nRUN 1\nFROM missing AS b\nRUN 2\nFROM scratch\nCOPY --from=a /x /\n";
    let g = graph(source);
    let texts: Vec<&str> = g.vertices.iter().map(|v| v.text.as_str()).collect();
    assert_eq!(texts, ["FROM debian", "RUN 1", "FROM scratch", "COPY --from=a /x /"]);
    assert_eq!(g.vertices[1].name.to_string(), "a 2/2");
    assert_eq!(g.vertices[3].name.to_string(), "stage-2 2/2");
    assert_eq!(g.vertices[3].inputs(), [VertexId::new(1), VertexId::new(2)]);
    let target = Parameters { target: Some("A".into()), ..params() };
    assert_eq!(graph_with(source, &target).vertices.len(), 2);
    let number = Parameters { target: Some("0".into()), ..params() };
    assert_eq!(graph_with(source, &number).vertices.len(), 2);
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
    assert_eq!(texts, ["FROM trigger", "RUN echo triggered", "COPY . /src", "RUN mine"]);
    assert!(g.config.config.on_build.is_empty());
    assert_eq!(graph("FROM debian\nONBUILD RUN x\n").config.config.on_build, ["RUN x"]);
}

#[test]
fn missing_images_are_requested_with_stage_names_for_suggestions() {
    let file = parse(b"FROM debian AS build-client\nFROM scratch\nCOPY --from=build-server /x /\n").unwrap();
    let Ok(Plan::Needs(needs)) = plan(&file, &params(), &debian()) else { panic!() };
    assert_eq!(
        (needs[0].image.text.as_str(), needs[0].stages.as_slice()),
        ("build-server", &["build-client".to_string()][..])
    );
}

#[test]
fn all_images_that_the_target_needs_are_requested_at_once() {
    let source = "FROM scratch AS unused\nCOPY --from=never /x /\n\
                  FROM none-1 AS a\nCOPY --from=none-2 /x /\nCOPY --from=scratch /x /\n\
                  FROM scratch AS replaced\nCOPY --from=never /x /\n\
                  FROM debian AS b\nARG mode=755\n\
                  RUN --mount=type=cache,target=/c,mode=$mode,from=none-3 --mount=type=tmpfs,target=/t x\n\
                  RUN --mount=from=dir,target=/d --mount=from=image,target=/m x\n\
                  FROM none-4\nCOPY --from=a /x /\nCOPY --from=b /x /\nCOPY --from=none-1 /x /\n\
                  COPY --from=replaced /x /\nRUN --mount=type=bind,from=none-6,target=/m x\n";
    let context = |name: &str, source| NamedContext { name: name.into(), source };
    let contexts = vec![
        context("dir", directory()),
        context("image", ContextSource::Image(WrittenImage::parse("none-5").unwrap())),
        context("replaced", ContextSource::Scratch),
    ];
    let file = parse(source.as_bytes()).unwrap();
    let Ok(Plan::Needs(needs)) = plan(&file, &Parameters { contexts, ..params() }, &debian()) else { panic!() };
    let names: Vec<&str> = needs.iter().map(|n| n.image.text.as_str()).collect();
    assert_eq!(names, ["none-1", "none-2", "none-3", "none-5", "none-4", "none-6"]);
    for need in needs.iter().filter(|n| n.image.text != "none-5") {
        assert!(source[need.span.start..need.span.end].contains(&need.image.text), "{need:?}");
    }
}

#[test]
fn heredocs_become_scripts_and_files() {
    let g = graph("FROM debian\nRUN <<EOF\na $x\nb\nEOF\n");
    assert_eq!(run(&g).args, ["/bin/sh", "-c", "a $x\nb\n"]);
    let g = graph("FROM debian\nRUN cat <<A >f\n1\nA\n");
    assert_eq!(run(&g).args[2], "cat <<A >f\n1\nA");
    let g = graph("FROM debian\nARG n=v\nCOPY <<A <<'B' /d/\n\"$n\"\nA\n$n\nB\n");
    let Step::Copy(copy) = &g.vertices[1].step else { panic!() };
    let files: Vec<(&str, &str)> = copy.inline.iter().map(|f| (f.name.as_str(), f.content.as_str())).collect();
    assert_eq!(files, [("A", "\"v\"\n"), ("B", "$n\n")]);
}

#[test]
fn stages_can_only_be_used_after_their_definition() {
    let used = |line: &str, params: &Parameters| {
        let source = format!("FROM debian AS first\nFROM debian AS a\n{line}\nFROM debian AS later\nFROM a\nRUN x\n");
        match plan(&parse(source.as_bytes()).unwrap(), params, &debian()) {
            Ok(Plan::Graph(_)) => Ok(()),
            Ok(Plan::Needs(needs)) => {
                assert!(needs.len() == 1 && needs[0].later_stage);
                Err(format!("needs {}", needs[0].image.text))
            }
            Err(mut e) => Err(e.remove(0).message),
        }
    };
    let later = |name: &str| Err(format!("stage `{name}` is defined after its use"));
    let image = |name: &str| Err(format!("needs {name}"));
    for (line, want) in [
        ("COPY --from=first x y", Ok(())),
        ("COPY --from=0 x y", Ok(())),
        ("COPY --from=debian x y", Ok(())),
        ("COPY --from=later x y", image("later")),
        ("COPY --from=Later x y", later("Later")),
        ("COPY --from=2 x y", later("2")),
        ("COPY --from=5 x y", Err("stage 5 does not exist".to_string())),
        ("RUN --mount=from=first,target=/m x", Ok(())),
        ("RUN --mount=from=later,target=/m x", image("later")),
        ("RUN --mount=type=cache,from=later,target=/m x", image("later")),
    ] {
        assert_eq!(used(line, &params()), want, "{line}");
    }
    // A stage replaced by a named context may be defined later.
    let context = NamedContext { name: "later".into(), source: directory() };
    assert_eq!(used("COPY --from=later x y", &Parameters { contexts: vec![context], ..params() }), Ok(()));
    // FROM only sees earlier stages: the name of a later one is an image name.
    let file = parse(b"FROM later AS a\nFROM debian AS later\nFROM a\n").unwrap();
    let Ok(Plan::Needs(needs)) = plan(&file, &params(), &debian()) else { panic!() };
    assert_eq!(needs[0].image.text, "later");
    // Of two stages with the same name, `--from` means the last one in the file.
    let twice = "FROM debian AS x\nFROM debian AS a\nCOPY --from=x a b\nFROM debian AS x\nFROM a\n";
    let Ok(Plan::Needs(needs)) = plan(&parse(twice.as_bytes()).unwrap(), &params(), &debian()) else { panic!() };
    assert!(needs[0].image.text == "x" && needs[0].later_stage);
    // An image of that name is meant, if there is one; a need by FROM is a need to pull.
    let named = "FROM debian AS a\nCOPY --from=b x y\nFROM base AS b\nFROM a\n";
    let mut images = debian();
    let base = images.values().next().unwrap().clone();
    images.insert("b".parse().unwrap(), base);
    assert!(matches!(plan(&parse(named.as_bytes()).unwrap(), &params(), &images), Ok(Plan::Graph(_))));
    let pulled = "FROM debian AS a\nCOPY --from=b x y\nFROM b AS c\nFROM debian AS b\nFROM a\nCOPY --from=c x y\n";
    let Ok(Plan::Needs(needs)) = plan(&parse(pulled.as_bytes()).unwrap(), &params(), &debian()) else { panic!() };
    assert!(needs.len() == 1 && !needs[0].later_stage, "{needs:?}");
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
}

#[test]
fn an_argument_shadowed_by_env_is_not_in_the_key() {
    let source = "FROM debian\nARG FOO\nENV X=1 FOO=bat\nRUN y\n";
    let parts = |args: &[(&str, &str)]| {
        let build_args = args.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let g = graph_with(source, &Parameters { build_args, ..params() });
        let mut all = Vec::new();
        g.vertices[g.target].step.parts(&mut |name, value| all.push((name, value.to_vec())));
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
        g.vertices[g.target].step.parts(&mut |name, value| all.push((name, value.to_vec())));
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
    let same = plain.replace("target=/c", "target=/c,uid=0");
    assert_eq!(parts(plain, &params()), parts(&same, &params()));
    // As BuildKit: the sharing mode counts by itself in no key, and an ID only where it is the
    // default one of a shared cache.
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
    let base = trigger.get_mut(&"trigger".parse().unwrap()).unwrap();
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
fn errors_name_the_problem() {
    for (source, want) in [
        ("FROM $NO\n", "empty after expansion"),
        ("FROM debian\nRUN --mount=type=cache,target=/ x\n", "cover the root file system"),
        ("FROM debian\nRUN --network=moon x\n", "default, none or host"),
        ("FROM debian\nCOPY --from=7 a b\n", "no stage precedes this one"),
        ("FROM debian AS a\nCOPY --from=a x y\n", "stage `a` depends on itself: a → a"),
        ("FROM debian\nEXPOSE 99999\n", "0 to 65535"),
        ("FROM debian\nSTOPSIGNAL SIGFOO\n", "not a signal"),
        ("FROM debian\nSTOPSIGNAL 0\n", "not a signal"),
        ("FROM debian\nSTOPSIGNAL RTMIN+16\n", "not a signal"),
        ("FROM debian\nCOPY --link --chown=me a b\n", "`--chown=me` needs /etc/passwd"),
        ("FROM debian\nRUN --security=insecure y\n", "Allow { entitlement: \"security.insecure\" }"),
        ("FROM debian\nRUN --security=maybe y\n", "sandbox or insecure"),
        ("FROM debian\nRUN --device=gpu,required y\n", "is not available"),
        ("ARG SOURCE_DATE_EPOCH=soon\nFROM debian\n", "neither a number of seconds"),
        ("FROM --platform=linux/s390x scratch\nCOPY a b\nRUN y\n", "install an emulator"),
        ("ARG P=\nFROM --platform=$P debian\n", "is empty after expansion"),
        ("FROM debian\nENV A=\"${B:?must be set}\"\n", "must be set"),
        ("FROM Debian\n", "lower case"),
        ("# syntax=example.com/notdocker/dockerfile:1\nFROM debian\n", "is not supported"),
        ("# syntax=example.com/other:1\nFROM debian\n", "is not supported"),
    ] {
        let got = error(source);
        assert!(got.contains(want), "{source}: {got}");
    }
    let target = Parameters { target: Some("biuld".into()), ..params() };
    let Err(e) = plan(&parse(b"FROM debian AS build\n").unwrap(), &target, &debian()) else { panic!() };
    assert_eq!(e[0].help, Some(Remedy::did_you_mean("build")));
}

#[test]
fn triggers_count_as_steps() {
    let labels = |source: &str| graph(source).vertices.iter().map(|v| v.name.to_string()).collect::<Vec<_>>();
    assert_eq!(labels("FROM trigger\nRUN a\n"), ["1/4", "2/4", "3/4", "4/4"]);
    let two = labels("FROM trigger AS a\nFROM a AS b\nRUN x\n");
    assert_eq!(two, ["a 1/3", "a 2/3", "a 3/3", "b 2/2"]);
}

#[test]
fn undeclared_build_arguments_are_warnings() {
    let with = Parameters { build_args: vec![("VERSON".into(), "1".into())], ..params() };
    let g = graph_with("FROM debian\nARG VERSION\nENV A=$VERSIN\n", &with);
    let texts: Vec<String> = g.warnings.iter().map(|d| format!("{} {:?}", d.message, d.help)).collect();
    // Of variables that are not set, the lint rules warn.
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert!(
        texts.iter().any(|t| t.contains("`VERSON`") && t.contains("DidYouMean { word: \"VERSION\" }")),
        "{texts:?}"
    );
}

#[test]
fn every_option_of_run_changes_its_key() {
    let base = "FROM debian\nWORKDIR /w\nARG a=1\nUSER u\nRUN --mount=type=tmpfs,target=/t x\n";
    let parts = |graph: &BuildGraph| {
        let mut all = Vec::new();
        graph.vertices[graph.target].step.parts(&mut |name, value| all.push((name, value.to_vec())));
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
fn named_contexts_replace_stages_images_and_copy_sources() {
    let with =
        |name: &str, source| Parameters { contexts: vec![NamedContext { name: name.into(), source }], ..params() };
    let texts = |source: &str, params: &Parameters| -> Vec<String> {
        graph_with(source, params).vertices.iter().map(|v| v.text.clone()).collect()
    };
    let source = "FROM nowhere AS base\nRUN 1\nFROM base\nCOPY --from=base /x /\n";
    // A stage: its instructions are ignored.
    assert_eq!(texts(source, &with("BASE", directory())), ["FROM scratch", "context BASE", "COPY --from=base /x /"]);
    // A base image, in any spelling of its name.
    assert_eq!(
        texts(
            "FROM alpine\n",
            &with("docker.io/library/alpine:latest", ContextSource::Image(WrittenImage::parse("debian").unwrap()))
        ),
        ["FROM debian"]
    );
    assert_eq!(texts("FROM alpine\n", &with("alpine", ContextSource::Scratch)), ["FROM scratch"]);
    // A copy reads the directory directly.
    let g = graph_with("FROM scratch\nCOPY --from=src a /\n", &with("src", directory()));
    let Step::Copy(copy) = &g.vertices[1].step else { panic!() };
    assert_eq!(copy.from, FileSource::Named(ContextId::new(0)));
    // Reserved names are never replaced.
    let g = graph_with("FROM scratch\nCOPY a /\n", &with("scratch", directory()));
    assert_eq!(g.vertices.len(), 2);
    // A context for another platform does not apply.
    let other = with("alpine::linux/riscv64", ContextSource::Scratch);
    assert!(matches!(plan(&parse(b"FROM alpine\n").unwrap(), &other, &debian()), Ok(Plan::Needs(_))));
}

#[test]
fn epoch_is_a_build_argument_or_an_arg_default() {
    let epoch = |source: &str, args: &[(&str, &str)]| {
        let build_args = args.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        graph_with(source, &Parameters { build_args, context_epoch: Some(7), ..params() }).epoch
    };
    assert_eq!(epoch("FROM scratch\n", &[]), None);
    assert_eq!(epoch("ARG SOURCE_DATE_EPOCH=5\nFROM scratch\n", &[]), Some(5));
    assert_eq!(epoch("ARG SOURCE_DATE_EPOCH=5\nFROM scratch\n", &[("SOURCE_DATE_EPOCH", "6")]), Some(6));
    assert_eq!(epoch("ARG SOURCE_DATE_EPOCH=5\nFROM scratch\n", &[("SOURCE_DATE_EPOCH", "")]), None);
    assert_eq!(epoch("FROM scratch\n", &[("SOURCE_DATE_EPOCH", "context")]), Some(7));
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
    let g = graph_with("FROM debian\nCOPY a /\n", &asked);
    assert_eq!(g.config.platform().to_string(), "linux/s390x");
    let emulated = Parameters { emulated: vec!["s390x".into()], ..asked };
    assert_eq!(graph_with("FROM debian\nRUN y\n", &emulated).vertices.len(), 2);
}

#[test]
fn long_chains_of_stages_do_not_recurse() {
    let mut source = String::from("FROM debian AS s0\nRUN 0\n");
    for i in 1..3000 {
        source.push_str(&format!("FROM s{} AS s{i}\nCOPY --from=s{} /x /\n", i - 1, i / 2));
    }
    assert_eq!(graph(&source).vertices.len(), 3001);
    let file = parse(source.as_bytes()).unwrap();
    let Ok(Plan::Needs(needs)) = plan(&file, &params(), &HashMap::new()) else { panic!("no image is resolved") };
    assert_eq!(needs.iter().map(|need| &need.image.text[..]).collect::<Vec<_>>(), ["debian"]);
    let mut source = String::from("FROM scratch AS s0\nCOPY --from=s1 a /\n");
    for i in 1..3000 {
        source.push_str(&format!("FROM scratch AS s{i}\nCOPY --from=s{} a /\n", i + 1));
    }
    source.push_str("FROM s0\n");
    let Ok(Plan::Needs(needs)) = plan(&parse(source.as_bytes()).unwrap(), &params(), &debian()) else { panic!() };
    assert!(needs[0].image.text == "s1" && needs[0].later_stage);
}

#[test]
fn the_host_platform_is_a_parameter() {
    let of = |text: &str| text.parse::<Platform>().unwrap();
    let arm = Parameters::new(of("linux/arm64"), of("linux/amd64"));
    let args = automatic_args(&arm, "s");
    let value = |name: &str| args.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    assert_eq!((value("BUILDPLATFORM"), value("TARGETPLATFORM")), (Some("linux/arm64"), Some("linux/amd64")));
    let file = parse(b"FROM scratch\nRUN [\"/x\"]\n").unwrap();
    let errors = plan(&file, &arm, &HashMap::new()).map(drop).unwrap_err();
    assert!(format!("{errors:?}").contains("this machine runs only linux/arm64"), "{errors:?}");
    let amd = Parameters::new(of("linux/amd64"), of("linux/amd64"));
    assert!(plan(&file, &amd, &HashMap::new()).is_ok());
}

#[test]
fn stages_are_needed_by_their_values() {
    const FILE: &str = "ARG KIND=plain\nFROM debian AS plain\nFROM debian AS fancy\nFROM debian AS unused\n\
        FROM debian AS files\nFROM debian AS caches\nFROM ${KIND} AS last\nCOPY --from=files a b\n\
        RUN --mount=type=cache,from=caches,target=/c true\nFROM last AS later\n";
    let with = |target: &str, args: &[(&str, &str)]| {
        let own = |text: &str| text.to_string();
        let build_args = args.iter().map(|(name, value)| (own(name), own(value))).collect();
        Parameters { target: Some(own(target)), build_args, ..params() }
    };
    let replaced = |name: &str| {
        let contexts = vec![NamedContext { name: name.into(), source: ContextSource::Scratch }];
        Parameters { contexts, ..with("last", &[]) }
    };
    for (case, params, want) in [
        ("default", with("last", &[]), vec![0, 3, 4, 5]),
        ("number", with("5", &[]), vec![0, 3, 4, 5]),
        ("argument", with("last", &[("KIND", "fancy")]), vec![1, 3, 4, 5]),
        ("image", with("last", &[("KIND", "debian")]), vec![3, 4, 5]),
        ("later", with("later", &[]), vec![0, 3, 4, 5, 6]),
        ("alone", with("PLAIN", &[]), vec![0]),
        ("replaced target", replaced("last"), vec![5]),
        ("replaced argument", replaced("plain"), vec![0, 3, 4, 5]),
    ] {
        assert_eq!(needed_stages(&parse(FILE.as_bytes()).unwrap(), &params).unwrap(), want, "{case}");
    }
    let missing = needed_stages(&parse(FILE.as_bytes()).unwrap(), &with("none", &[])).unwrap_err();
    assert_eq!(missing.message, "target stage `none` does not exist");
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
