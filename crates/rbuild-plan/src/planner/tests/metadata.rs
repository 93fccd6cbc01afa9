//! Instructions that change the configuration of the image, and its history.

use super::*;

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
fn signals_are_known_names_or_nonzero_numbers() {
    for signal in ["SIGTERM", "kill", "IOT", "sigcld", "RTMIN", "SIGRTMIN+15", "RTMAX-14", "9", "99", "-1"] {
        graph(&format!("FROM debian\nSTOPSIGNAL {signal}\n"));
    }
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
