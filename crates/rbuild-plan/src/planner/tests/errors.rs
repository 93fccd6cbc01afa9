//! Errors in Dockerfiles: their words, and that all of them are reported.

use super::*;

/// Returns the first error of a plan as a row: message, marked text and help.
pub(super) fn row(source: &str, images: &HashMap<PlatformImage, BaseImage>) -> String {
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
fn a_misspelled_target_is_corrected() {
    let target = Parameters { target: Some("biuld".into()), ..params() };
    let Err(e) = plan(&parse(b"FROM debian AS build\n").unwrap(), &target, &debian()) else { panic!() };
    assert_eq!(e[0].help, Some(Remedy::did_you_mean("build").into()));
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
