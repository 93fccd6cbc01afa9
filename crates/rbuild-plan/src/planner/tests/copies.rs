//! COPY and ADD: sources, flags and here-documents.

use super::*;

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
