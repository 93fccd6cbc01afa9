//! RUN: mounts, environment, and what its key depends on.

use super::*;

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
fn run_history_shows_argument_values_seen_by_the_command() {
    let with = Parameters { build_args: vec![("A".into(), "given".into())], ..params() };
    let g = graph_with("FROM debian AS a\nARG A B C=c\nENV C=env\nFROM a\nARG A\nRUN x\n", &with);
    assert_eq!(
        g.history.last().map(|h| h.created_by.as_str()),
        Some("RUN |3 A=given B= C=env /bin/sh -c x # buildkit")
    );
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
fn commands_run_in_the_lexically_resolved_working_directory() {
    for (path, want) in [("/a/../b", "/b"), ("/a/", "/a/"), ("/..", "/")] {
        assert_eq!(run(&graph(&format!("FROM debian\nWORKDIR {path}\nRUN true\n"))).cwd, want);
    }
}
