use std::collections::{HashMap, HashSet};

use rbuild_image::Platform;

use super::{option, quoted};
use crate::{ContextDir, ContextSource, NamedContext, Parameters, Plan, Resource, Ulimit, Volume, plan};

/// Returns the parts of the last step as `name=value`.
fn parts(instruction: &str, params: &Parameters) -> Vec<String> {
    let source = format!("FROM scratch AS other\nFROM scratch\n{instruction}\n");
    let file = rbuild_dockerfile::parse(source.as_bytes()).unwrap();
    let Ok(Plan::Graph(graph)) = plan(&file, params, &HashMap::new()) else { panic!("{source}") };
    let mut parts = Vec::new();
    let step = &graph.vertices[graph.target].step;
    step.parts(&mut |part| parts.push(format!("{}={}", part.name(), String::from_utf8_lossy(&part.value()))));
    parts
}

fn params() -> Parameters {
    let platform: Platform = "linux/amd64".parse().unwrap();
    let mut params = Parameters::new(platform.clone(), platform);
    params.allow_insecure = true;
    let dir = ContextDir { path: "/named".into(), ignore: None };
    params.contexts = vec![NamedContext { name: "ctx".into(), platform: None, source: ContextSource::Directory(dir) }];
    params
}

/// Returns the parts in which a step differs from a plain one.
fn special(instruction: &str, plain: &str, params: &Parameters) -> Vec<String> {
    let plain: HashSet<String> = parts(plain, &self::params()).into_iter().collect();
    parts(instruction, params).into_iter().filter(|part| !plain.contains(part)).collect()
}

/// Changing these parts invalidates all caches, and requires another number in the key.
#[test]
fn key_parts_are_pinned() {
    for (instruction, expected) in WHOLE {
        assert_eq!(parts(instruction, &params()), *expected, "{instruction}");
    }
    for (plain, cases) in [("RUN x", RUN), ("COPY a /d", COPY)] {
        for (instruction, expected) in cases {
            assert_eq!(special(instruction, plain, &params()), *expected, "{instruction}");
        }
    }
}

#[test]
fn key_parts_of_parameters_are_pinned() {
    let volume = Volume { source: "/host dir".into(), target: "/v".into(), read_only: true };
    let limit = Ulimit { resource: Resource::Nofile, soft: 1, hard: 2 };
    for (params, expected) in [
        (Parameters { volumes: vec![volume], ..params() }, "mount=\"/v\" read-only volume source=\"/host dir\""),
        (Parameters { ulimits: vec![limit], ..params() }, "ulimit=RLIMIT_NOFILE 1 2"),
        (Parameters { shm_size: Some(1 << 20), ..params() }, "shm size=1048576"),
        (Parameters { hosts: vec![("h".into(), "1.2.3.4".into())], ..params() }, "known host=h"),
        (Parameters { network: crate::NetworkMode::Isolated, ..params() }, "network=isolated"),
    ] {
        assert_eq!(special("RUN x", "RUN x", &params), [expected]);
    }
    let epoch = Parameters { build_args: vec![("SOURCE_DATE_EPOCH".into(), "7".into())], ..params() };
    assert_eq!(special("WORKDIR /w", "WORKDIR /w", &epoch), ["time=7"]);
}

#[test]
fn quoted_texts_cannot_be_confused() {
    assert_eq!(quoted("a b"), r#""a b""#);
    assert_eq!(quoted("a\"b\\\n\r\té"), r#""a\"b\\\n\r\té""#);
    assert_eq!((option("env", None), option("env", Some(""))), (String::new(), r#" env="""#.into()));
}

type Case = (&'static str, &'static [&'static str]);

const WHOLE: &[Case] = &[
    (
        "RUN x",
        &[
            "platform=linux/amd64",
            "command=/bin/sh",
            "command=-c",
            "command=x",
            "variable=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "working directory=/",
            "user=",
            "network=host",
            "security=sandbox",
            "host name=buildkitsandbox",
        ],
    ),
    (
        "COPY a /d",
        &[
            "destination=/d",
            "destination is a directory=no",
            "--parents=no",
            "--link=no",
            "unpacks archives=no",
            "--chown=",
            "--chmod=",
        ],
    ),
    ("WORKDIR /w", &["directory=/w", "user=", "time="]),
    ("USER me\nWORKDIR w", &["directory=/w", "user=me", "time="]),
];

const RUN: &[Case] = &[
    ("RUN [\"x\", \"a b\"]", &["command=a b"]),
    ("ENV A=1 B=\"two words\"\nRUN x", &["variable=A=1", "variable=B=two words"]),
    ("ARG A=1\nRUN x", &["variable=A=1"]),
    ("WORKDIR /w\nRUN x", &["working directory=/w"]),
    ("USER me:us\nRUN x", &["user=me:us"]),
    ("SHELL [\"/bin/bash\", \"-ec\"]\nRUN x", &["command=/bin/bash", "command=-ec"]),
    ("RUN <<E\n#!/bin/sh\ntext\nE", &["command=/dev/pipes/E", "script name=E", "script=#!/bin/sh\ntext\n"]),
    ("RUN <<E\ntext\nE", &["command=text\n"]),
    ("RUN --network=none x", &["network=none"]),
    ("RUN --security=insecure x", &["security=insecure"]),
    (
        "RUN --mount=type=secret,id=s x",
        &["secret=\"s\" target=\"/run/secrets/s\" required=false mode=0400 uid=0 gid=0"],
    ),
    (
        "RUN --mount=type=secret,id=s,target=/t,env=E,required=true,mode=440,uid=1,gid=2 x",
        &["secret=\"s\" target=\"/t\" env=\"E\" required=true mode=0440 uid=1 gid=2"],
    ),
    ("RUN --mount=type=secret,id=s,env=E x", &["secret=\"s\" env=\"E\" required=false mode=0400 uid=0 gid=0"]),
    (
        "RUN --mount=type=ssh x",
        &["ssh agent=\"default\" target=\"/run/buildkit/ssh_agent.0\" required=false mode=0600 uid=0 gid=0"],
    ),
    (
        "RUN --mount=type=ssh,id=k,target=/k,required=true,mode=644,uid=1,gid=2 x",
        &["ssh agent=\"k\" target=\"/k\" required=true mode=0644 uid=1 gid=2"],
    ),
    // The default ID is part of the key; another ID is not.
    (
        "RUN --mount=type=cache,target=/c x",
        &["mount=\"/c\" writable cache empty source=\"/\" mode=0755 uid=0 gid=0 id=\"/c\""],
    ),
    (
        "RUN --mount=type=cache,id=i,sharing=locked,target=/c x",
        &["mount=\"/c\" writable cache empty source=\"/\" mode=0755 uid=0 gid=0"],
    ),
    (
        "RUN --mount=type=cache,target=/c,from=other,source=/s,mode=700,uid=1,gid=2 x",
        &["mount=\"/c\" writable cache seeded source=\"/s\" mode=0700 uid=1 gid=2 id=\"/c\""],
    ),
    (
        "RUN --mount=type=cache,target=/c,ro x",
        &["mount=\"/c\" read-only cache empty source=\"/\" mode=0755 uid=0 gid=0 id=\"/c\""],
    ),
    ("RUN --mount=type=tmpfs,target=/t x", &["mount=\"/t\" writable tmpfs"]),
    ("RUN --mount=type=tmpfs,target=/t,size=64m x", &["mount=\"/t\" writable tmpfs size=67108864"]),
    ("RUN --mount=type=bind,source=s,target=/b x", &["mount=\"/b\" read-only bind"]),
    ("RUN --mount=type=bind,source=s,target=/b,rw x", &["mount=\"/b\" writable bind"]),
    ("RUN --mount=type=bind,from=other,source=s,target=/b x", &["mount=\"/b\" read-only bind"]),
    ("RUN --mount=type=bind,from=ctx,target=/b x", &["mount=\"/b\" read-only bind"]),
];

const COPY: &[Case] = &[
    ("COPY a /d/", &["destination is a directory=yes"]),
    ("COPY a b /d/", &["destination is a directory=yes"]),
    ("COPY --chown=u:g a /d", &["--chown=u:g"]),
    ("COPY --chmod=0644 a /d", &["--chmod=644"]),
    ("COPY --chmod=u=rwX,go= a /d", &["--chmod=u=rwX,go="]),
    ("COPY --exclude=*.o --exclude=!k.o a /d", &["--exclude=*.o", "--exclude=!k.o"]),
    ("COPY --parents a /d/", &["destination is a directory=yes", "--parents=yes"]),
    ("COPY --link a /d", &["--link=yes"]),
    ("COPY --from=other a /d", &[]),
    ("COPY --from=ctx a /d", &[]),
    ("ADD a /d", &["unpacks archives=yes"]),
    ("ADD --unpack=false a /d", &[]),
    ("COPY <<a /d\ntext\na", &["here-document name=a", "here-document=text\n"]),
];
