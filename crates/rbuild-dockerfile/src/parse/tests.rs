use rbuild_remedy::Remedy;

use super::*;
use crate::diagnostic::Help;

fn file(source: &str) -> Dockerfile {
    parse(source.as_bytes()).unwrap_or_else(|e| panic!("{source}\n{e:#?}"))
}

fn errors(source: &str) -> Vec<Diagnostic> {
    parse(source.as_bytes()).expect_err(source)
}

fn run(source: &str) -> Run {
    match file(source).stages.remove(0).instructions.remove(0).op {
        Op::Run(run) => run,
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_eighteen_instructions_parse() {
    let f = file(concat!(
        "ARG V=1\nFROM --platform=linux/amd64 a:$V AS base\n",
        "RUN --mount=type=cache,target=/c --network=none make\nRUN [\"a\", \"b\"]\nCMD a b\nLABEL a=b c=\"d e\"\n",
        "MAINTAINER me <m@x>\nEXPOSE 80 443/udp\nENV a=b c=d\nENV old way of it\nADD --chmod=644 a b /c/\n",
        "COPY --from=base --chown=1:2 a b\nENTRYPOINT [\"/x\"]\nVOLUME [\"/a b\"]\nVOLUME /a /b\nUSER me:us\n",
        "WORKDIR /a b\nARG A B=2\nONBUILD RUN make\nSTOPSIGNAL SIGINT\n",
        "HEALTHCHECK --interval=1m30s --retries=3 CMD curl x\nHEALTHCHECK NONE\nSHELL [\"/bin/bash\", \"-c\"]\n",
    ));
    assert_eq!(f.stages[0].instructions.len(), 21);
    assert_eq!(f.stages[0].from.name.as_ref().unwrap().text, "base");
    let Op::Healthcheck(Healthcheck::Check { interval, retries, .. }) = &f.stages[0].instructions[18].op else {
        panic!("{:?}", f.stages[0].instructions[18])
    };
    assert_eq!((*interval, *retries), (90_000_000_000, 3));
}

/// BuildKit ignores the flags.
#[test]
fn instructions_that_ignore_flags_may_have_any() {
    let op = |line: &str| file(&format!("FROM a\n{line}\n")).stages.remove(0).instructions.remove(0).op;
    for options in ["", "--interval=5s ", "--retries=x --retries ", "--x=y "] {
        let none = op(&format!("HEALTHCHECK {options}none"));
        assert!(matches!(none, Op::Healthcheck(Healthcheck::None)), "{options}: {none:?}");
        let Op::Arg(args) = op(&format!("ARG {options}A=1 B")) else { panic!("{options}") };
        assert_eq!(args.iter().map(|arg| arg.name.text.as_str()).collect::<Vec<_>>(), ["A", "B"], "{options}");
        let Op::Stopsignal(signal) = op(&format!("STOPSIGNAL {options}9")) else { panic!("{options}") };
        assert_eq!(signal.text, "9", "{options}");
    }
    assert_eq!(errors("FROM a\nARG --x\n")[0].message, "ARG requires an argument");
    for other in ["services:\n  web:\n    build: .\n", "#!/bin/sh\nset -e\nmake\n"] {
        let all = errors(other);
        assert!(matches!(&all[..], [Diagnostic { help: Some(Help::Text(t)), .. }] if t.contains("-f FILE")), "{all:?}");
    }
    // A word that resembles an instruction is a misspelled one.
    assert_eq!(errors("FORM a\nx y\n").len(), 2);
    assert_eq!(errors("FROM a\nHEALTHCHECK NONE x\n")[0].message, "HEALTHCHECK NONE has no arguments");
}

/// Returns the options of an instruction, each with the form of its value as far as the parser
/// checks it, and `...` if it may be repeated.
fn options_of(keyword: &str) -> Vec<String> {
    let found = |source: &str| parse(source.as_bytes()).err().unwrap_or_default();
    let with = |flags: &str| match keyword {
        "FROM" => found(&format!("FROM {flags} a\n")),
        _ => found(&format!("FROM a\n{keyword} {flags} a\n")),
    };
    let complains = |flags: &str, text: &str| with(flags).iter().any(|d| d.message.contains(text));
    let unknown = with("--zzzz").into_iter().find(|d| d.message.contains("has no flag `--zzzz`"));
    let Some(unknown) = unknown else { return vec!["ignored".into()] };
    let Some(Help::Remedy(Remedy::UseOneOf { words })) = unknown.help else { return Vec::new() };
    let form = |option: String| {
        let given = format!("{option}=zzzz");
        let is_switch = complains(&format!("{given} --zzzz"), "must be true or false");
        let is_single = complains(&format!("{given} {given} --zzzz"), "duplicate flag");
        let text = if is_switch { format!("{option}[=true|false]") } else { format!("{option}=VALUE") };
        if is_single { text } else { text + " ..." }
    };
    words.into_iter().map(form).collect()
}

#[test]
fn options_of_all_instructions_are_as_recorded() {
    let mut table = String::new();
    for keyword in KEYWORDS {
        let options = options_of(keyword);
        let options = if options.is_empty() { "none".into() } else { options.join(" ") };
        table += &format!("{keyword}: {options}\n");
    }
    for kind in crate::mount::TYPES {
        let accepts = |key: &&str| {
            let mount = crate::parse_mount(&format!("type={kind},{key}=zzzz"), Span::default());
            let refusal = format!("a {kind} mount has no option");
            *key != "type" && mount.err().is_none_or(|errors| !errors[0].message.starts_with(&refusal))
        };
        let options: Vec<&str> = crate::mount::KEYS.into_iter().filter(accepts).collect();
        table += &format!("RUN --mount=type={kind}: {}\n", options.join(" "));
    }
    rbuild_testkit::assert_recorded!("options", table);
}

#[test]
fn spans_cover_the_exact_word() {
    let source = "FROM a\nRUN echo \\\n  # note\n  one \\\n\n  two\nCOPY x \\\n  y /z\n";
    let f = file(source);
    let Op::Copy(copy) = &f.stages[0].instructions[1].op else { panic!() };
    let text = |s: Span| &source[s.start..s.end];
    assert_eq!(text(copy.sources[1].span), "y");
    assert_eq!(text(copy.dest.span), "/z");
    let Op::Run(Run { command: Command::Shell(w), .. }) = &f.stages[0].instructions[0].op else { panic!() };
    assert_eq!(w.text, "echo   one   two");
    assert_eq!(f.empty_continuations.len(), 1);
}

#[test]
fn only_ascii_blanks_separate_the_value_of_an_old_pair() {
    for (line, want) in [("ENV K \t\u{c} a  b ", "a  b"), ("ENV K \u{a0}a\u{a0}b", "\u{a0}a\u{a0}b")] {
        let Op::Env(pairs) = &file(&format!("FROM a\n{line}\n")).stages[0].instructions[0].op else { panic!() };
        assert_eq!((pairs[0].name.text.as_str(), pairs[0].value.text.as_str()), ("K", want), "{line}");
    }
}

#[test]
fn the_escape_directive_sets_the_continuation_character() {
    let f = file("# escape=`\nFROM a\nRUN dir c:\\ `\n  x\nENV a=b` c\n");
    let Op::Run(Run { command: Command::Shell(w), .. }) = &f.stages[0].instructions[0].op else { panic!() };
    assert_eq!(w.text, "dir c:\\   x");
    let Op::Env(pairs) = &f.stages[0].instructions[1].op else { panic!() };
    assert_eq!(pairs[0].value.text, "b` c");
    assert_eq!(errors("# escape=x\nFROM a\n").len(), 1);
    // A comment that is not a directive ends the directives.
    assert_eq!(file("# hello\n# escape=`\nFROM a\n").escape, '\\');
    // So does a shebang, except for the other directives.
    let f = file("#!/usr/bin/env x\n# check=skip=all\n# escape=`\nFROM a\n");
    assert_eq!((f.escape, f.directives.len(), f.directives[0].name.as_str()), ('\\', 1, "check"));
}

#[test]
fn heredocs_are_parsed_in_all_forms() {
    let r = run("FROM a\nRUN <<EOF\necho $x\n  two\nEOF\n");
    assert_eq!((r.heredocs[0].body.as_str(), r.heredocs[0].expand), ("echo $x\n  two\n", true));
    let r = run("FROM a\nRUN cat <<-'A' 3<<\"B\"\n\t\tone\n\tA\ntwo\nB\n");
    assert_eq!(r.heredocs.len(), 2);
    assert_eq!((r.heredocs[0].body.as_str(), r.heredocs[0].chomp, r.heredocs[0].expand), ("\t\tone\n", true, false));
    assert_eq!((r.heredocs[1].fd, r.heredocs[1].body.as_str()), (Some(3), "two\n"));
    let r = run("FROM a\nRUN <<-A\n\t\tone\n \ttwo\tx\n\n\t\nA\n");
    assert_eq!(r.heredocs[0].content(), "one\n \ttwo\tx\n\n\n");
    assert!(run("FROM a\nRUN echo \"<<EOF\"\n").heredocs.is_empty());
    assert!(run("FROM a\nRUN [\"echo\", \"<<EOF\"]\n").heredocs.is_empty());
    assert!(run("FROM a\nRUN cat <<<EOF\n").heredocs.is_empty());
    let f = file("FROM a\nCOPY <<one <<two x /d/\n1\none\n2\ntwo\n");
    let Op::Copy(copy) = &f.stages[0].instructions[0].op else { panic!() };
    assert_eq!((copy.heredocs.len(), copy.sources.len()), (2, 1));
    let f = file("FROM a\nONBUILD RUN <<E\nhi\nE\nRUN x\n");
    let Op::Onbuild { text, .. } = &f.stages[0].instructions[0].op else { panic!() };
    assert_eq!(text, "RUN <<E\nhi\nE");
    // As in BuildKit, a trigger keeps its blanks and tabs.
    let f = file("FROM a\nonbuild \t run  cat <<-E \\\n  - \n\thi\n\tE\nONBUILD RUN x \n ONBUILD USER y \\\n");
    let triggers = f.stages[0].instructions.iter().map(|i| match &i.op {
        Op::Onbuild { text, .. } => text.as_str(),
        other => panic!("{other:?}"),
    });
    assert_eq!(triggers.collect::<Vec<_>>(), ["run  cat <<-E   - \n\thi\nE", "RUN x ", "USER y "]);
    assert!(errors("FROM a\nRUN <<EOF\nx\n")[0].message.contains("not terminated"));
}

#[test]
fn instructions_without_arguments_in_the_json_form_are_errors() {
    for source in ["COPY []", "ADD []", "COPY [\"a\"]", "HEALTHCHECK CMD []", "HEALTHCHECK CMD [ ]"] {
        let found = errors(&format!("FROM a\n{source}\n"));
        assert_eq!(found.len(), 1, "{source}");
        assert!(found[0].message.contains("requires"), "{source}: {}", found[0].message);
    }
}

#[test]
fn only_ascii_whitespace_ends_the_name_of_an_instruction() {
    let found = errors("FROM a\nRUN\u{a0}true\n");
    assert_eq!(found[0].message, "unknown instruction `RUN\u{a0}true`");
    assert!(found[0].help.as_ref().is_some_and(|help| format!("{help:?}").contains("U+00A0")), "{found:?}");
    assert_eq!(file("FROM a\nRUN\ttrue\n").stages[0].instructions.len(), 1);
}

#[test]
fn a_line_may_have_65535_bytes_and_a_line_break() {
    let line = |length: usize, end: &str| format!("FROM a\nRUN {}{end}", "x".repeat(length - 4));
    assert_eq!(file(&line(65_535, "\n")).stages[0].instructions.len(), 1);
    assert_eq!(file(&line(65_535, "")).stages[0].instructions.len(), 1);
    assert!(errors(&line(65_536, "\n"))[0].message.starts_with("line of 65536 bytes"));
}

#[test]
fn the_delimiter_of_a_heredoc_may_be_separate_from_its_operator() {
    for (line, name, expand) in [
        ("cat << EOF >/x", "EOF", true),
        ("<< EOF", "EOF", true),
        ("cat 3<<\t'E' <&3", "E", false),
        ("cat <<\\E", "E", true),
    ] {
        let r = run(&format!("FROM a\nRUN {line}\ntext\n{name}\n"));
        assert_eq!(r.heredocs.len(), 1, "{line}");
        let doc = &r.heredocs[0];
        assert_eq!((doc.name.as_str(), doc.expand, doc.body.as_str()), (name, expand, "text\n"), "{line}");
    }
    assert_eq!(run("FROM a\nRUN cat << A << B\n1\nA\n2\nB\n").heredocs.len(), 2);
    assert!(run("FROM a\nRUN echo $((1 << 2)) $(( x << y ))\n").heredocs.is_empty());
    for line in ["echo \"((\" >/a; cat << EOF >/b", "((cat << EOF ; true) | cat) >/c", "echo $((1 << 2)); cat << EOF"] {
        assert_eq!(run(&format!("FROM a\nRUN {line}\ntext\nEOF\n")).heredocs.len(), 1, "{line}");
    }
    assert!(errors("FROM a\nRUN cat << EOF\nx\n")[0].message.contains("not terminated"));
    assert!(errors("FROM a\nRUN cat <<- EOF\nx\nEOF\n")[0].message.contains("unknown instruction"));
}

#[test]
fn a_shift_is_no_heredoc_unless_a_line_ends_it() {
    for (line, heredocs) in [
        ("echo $(( 1 << 2 ))", 0),
        ("echo $(((1 + (2)) << 3 ))", 0),
        ("echo $((1<<EOF))", 0),
        ("echo $(( 1 << EOF ))", 1),
        ("echo $(( 1 << 2 )) $(( 1 <<- 2 )) && cat << EOF", 1),
        ("echo $(( 1 << 2 )) && cat <<-EOF", 1),
        ("(( 1 << 2 )) ; (( 1 << EOF", 1),
    ] {
        let body = if heredocs == 0 { "# 2\n" } else { "text\nEOF\n" };
        assert_eq!(run(&format!("FROM a\nRUN {line}\n{body}")).heredocs.len(), heredocs, "{line}");
    }
    // A line with a tab before the delimiter does not end it.
    assert!(run("FROM a\nRUN echo $(( 1 << 2 ))\nRUN true \\\n\t2\n").heredocs.is_empty());
    for line in ["echo $((1+1)); cat << EOF", "echo $(echo $((1+1))); cat << EOF", "((cat <<EOF ; true) | cat)"] {
        assert_eq!(errors(&format!("FROM a\nRUN {line}\ntext\n"))[0].message, "here-document `EOF` is not terminated");
    }
}

/// Returns the shortest time of several runs.
fn parse_time(source: &str) -> std::time::Duration {
    let time = || {
        let start = std::time::Instant::now();
        assert!(parse(source.as_bytes()).is_ok());
        start.elapsed()
    };
    (0..7).map(|_| time()).min().expect("there are several runs")
}

#[test]
fn possible_shifts_take_linear_time() {
    let shapes: [fn(usize) -> String; 3] = [
        |n| format!("FROM a\n{}", "RUN echo $(( i << n ))\n".repeat(n)),
        |n| format!("FROM a\nRUN (({} c\n{}", " << b \\\n".repeat(n), "#\n".repeat(n)),
        |n| format!("FROM a\nRUN true{} c\n{}", " << b \\\n".repeat(n), "b\n".repeat(n)),
    ];
    for (i, shape) in shapes.into_iter().enumerate() {
        let (small, large) = (shape(2_000), shape(16_000));
        // Eight times the lines take 64 times as long if the time is quadratic. On a busy machine,
        // a linear time may look longer once.
        let is_linear = || parse_time(&large) < parse_time(&small) * 24;
        assert!((0..5).any(|_| is_linear()), "shape {i}");
    }
}

#[test]
fn json_form_falls_back_to_shell_text() {
    assert!(matches!(run("FROM a\nRUN ['a', 'b']\n").command, Command::Shell(_)));
    assert!(matches!(run("FROM a\nRUN [\"a\"] b\n").command, Command::Shell(_)));
    assert!(errors("FROM a\nRUN [\"a\", 1]\n")[0].message.contains("strings"));
}

#[test]
fn all_errors_are_reported_with_help() {
    let all = errors("FORM a\nFROM b\nCOPPY a b\nRUN --mont=type=cache x\nENV\nHEALTHCHECK FOO\n");
    let texts: Vec<String> = all.iter().map(|d| format!("{} {:?}", d.message, d.help)).collect();
    for want in [r#""FROM""#, r#""COPY""#, r#""--mount""#, "ENV requires an argument", "unknown HEALTHCHECK type"] {
        assert!(texts.iter().any(|t| t.contains(want)), "{want} in {texts:#?}");
    }
}

/// Returns a table of the errors in files: message, marked text and help. Most errors of the
/// parser are recorded with the command line; here are the rest.
fn table(sources: &[String]) -> String {
    let error = |source: &String, d: Diagnostic| {
        let marked = source.get(d.span.start..d.span.end).expect("a span is a range of the file");
        let help = d.help.map_or(String::new(), |help| format!("  help: {help:?}\n"));
        format!("{}\n  at: {marked}\n{help}", d.message)
    };
    let errors = sources.iter().flat_map(|source| errors(source).into_iter().map(move |d| error(source, d)));
    errors.collect()
}

#[test]
fn errors_are_as_recorded() {
    let in_stage = [
        "RUN --device=gpu,name=b true",
        "RUN --device=gpu,required=maybe true",
        "RUN --device=gpu,foo=1 true",
        "RUN --device=gpu,requird=1 true",
        "RUN --device=gpu,a true",
        "RUN --device='a\"b' true",
        "HEALTHCHECK --interval=5 CMD x",
        "HEALTHCHECK --interval=10us CMD x",
        "HEALTHCHECK --interval=soon CMD x",
        "HEALTHCHECK --retries=-1 CMD x",
        "ARG X = 1",
        "ARG =1",
        "ENV A=1 =2",
        "ENV X= 1",
        "LABEL \"a",
        "ENV 'a",
        "RUN apk add \n  curl x",
        "RUN apk add &&\ncopi x",
        "RUN make &&\n  cp x y",
        "RUN make\n\n  cp x y",
        "RUN make\n# then\nmake test",
        "RUN <<E\nE\nmake test",
        "ONBUILD cp x y",
        "RUN echo $((1+1)); cat << EOF\nhello",
        "RUN echo $(( 1 << 2 ))\nRUN cat <<EOF\n2\nEOF",
        "RUN echo $(( 1 << 2 ))\nRUN cat <<EOF\n2\ncp x y\nEOF",
        "RUN (( 1 << EOF ))\nEOF\nCOPPY a b",
        "RUN echo $(( 1 <<2 ))",
        "RUN\u{a0}cat <<EOF\nhello\nEOF",
        "RUN cat <<\u{a0}EOF\nhello\nEOF",
        "RUN make\nfoo\u{a0}bar",
        "ONBUILD\u{a0}RUN true",
        "ONBUILD RUN\u{a0}true",
        "HEALTHCHECK CMD\u{a0}true",
        "HEALTHCHECK FOO\u{a0}true",
        "ENV A\u{a0}b",
        "COPY a\u{2003}b",
        "COPY []",
        "FROM b AS\u{a0}c",
        "FROM b IS c\u{a0}d",
    ];
    let mut sources = in_stage.map(|line| format!("FROM a\n{line}\n")).to_vec();
    sources.push("# escape=x\nFROM a\n".into());
    sources.push("# escape=`\nFROM a\nRUN make\ntest it\n".into());
    sources.push("FROM a\n  test it\n".into());
    sources.push(format!("FROM a\nRUN {}\n", "x".repeat(crate::lines::MAX_LINE)));
    rbuild_testkit::assert_recorded!("syntax", table(&sources));
}

#[test]
fn errors_in_triggers_are_as_recorded() {
    let table = ["", "FROM a", "RUN a\nRUN b", "RUNN a"].map(|text| {
        let errors = parse_trigger(text).expect_err(text);
        errors.iter().map(|d| format!("{text:?}: {}\n", d.message)).collect::<String>()
    });
    rbuild_testkit::assert_recorded!("triggers", table.concat());
}

#[test]
fn files_without_instructions_or_from_are_errors() {
    assert!(errors("")[0].message.contains("is empty"));
    assert!(errors("# only a comment\n\n")[0].message.contains("no instructions"));
    assert!(errors("ARG a=1\n")[0].message.contains("contains no FROM"));
    assert!(errors("RUN x\nFROM a\n")[0].message.contains("before the first FROM"));
}

#[test]
fn bom_and_windows_line_endings_are_accepted() {
    let f = file("\u{feff}# escape=`\r\nFROM a\r\nRUN <<E\r\nx\r\nE\r\nCMD y\r\n");
    assert_eq!(f.escape, '`');
    let Op::Run(r) = &f.stages[0].instructions[0].op else { panic!() };
    assert_eq!(r.heredocs[0].body, "x\r\n");
    assert!(matches!(&f.stages[0].instructions[1].op, Op::Cmd(Command::Shell(w)) if w.text == "y"));
}

#[test]
fn numbers_of_a_healthcheck_are_those_of_buildkit() {
    let errors = |flag: &str| parse(format!("FROM a\nHEALTHCHECK --{flag} CMD x\n").as_bytes()).err();
    for flag in ["interval=", "timeout=0", "start-period=1ms", "retries=", "retries=+3", "retries=2147483647"] {
        assert_eq!(errors(flag), None, "{flag}");
    }
    for (flag, message) in [
        ("interval=inf", "invalid duration `inf`: `inf` does not start with a number"),
        ("interval=1h30", "invalid duration `1h30`: `30` has no unit"),
        ("timeout=999us", "invalid duration `999us`: it is neither 0 nor at least 1ms"),
        ("start-period=-5s", "invalid duration `-5s`: it is neither 0 nor at least 1ms"),
        ("retries=2147483648", "`2147483648` is not a number of retries"),
        ("retries=1.5", "`1.5` is not a number of retries"),
    ] {
        assert_eq!(errors(flag).unwrap()[0].message, message, "{flag}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn no_combination_of_dockerfile_fragments_panics(pieces in proptest::collection::vec(
        proptest::sample::select(vec![
            "FROM a", "RUN ", "COPY ", "<<EOF", "EOF", "\n", "\\\n", " ", "\"", "'", "[", "]", "--mount=", "$", "${x",
            "ENV ", "a=b", "#", "# escape=`", "`", "\r\n", "\t", "ONBUILD ", "é", "HEALTHCHECK ", "--", "CMD ", ",",
        ]), 0..60)) {
        let source = pieces.concat();
        match parse(source.as_bytes()) {
            Ok(f) => for stage in f.stages {
                assert!(source.is_char_boundary(stage.span.start) && source.is_char_boundary(stage.span.end));
            },
            Err(errors) => for d in errors {
                assert!(d.span.start <= d.span.end, "{d:?}");
            },
        }
    }
}

#[test]
fn invalid_utf8_is_only_allowed_in_comments() {
    for source in [&b"FROM a\n# caf\xe9\nRUN x\n"[..], b"  # \xff\xfe\nFROM a\n", b"FROM a\nRUN x \\\n# \xe9\n y\n"] {
        assert!(parse(source).is_ok(), "{}", String::from_utf8_lossy(source));
    }
    for source in [
        &b"FROM a\nRUN echo \xe9\n"[..],
        b"FROM a\nENV a=\xe9\n",
        b"FROM a\nRUN <<E\n# \xe9\nE\n",
        b"FROM a\nCOPY <<E /\n# \xe9\nE\n",
        b"FROM a\nONBUILD RUN <<E\n# \xe9\nE\n",
    ] {
        let errors = parse(source).unwrap_err();
        let at = source.iter().position(|b| *b == 0xe9).unwrap();
        assert_eq!((errors[0].message.as_str(), errors[0].span), ("invalid UTF-8", Span::new(at, at + 1)));
    }
    // Replacements preserve the offsets of the text after them.
    let file = parse(b"# \xe9\xe9\nFROM a\n").unwrap();
    assert_eq!(file.stages[0].span.start, 5);
}

#[test]
fn all_independent_errors_of_one_instruction_are_reported() {
    for (source, want) in [
        ("FROM a\nHEALTHCHECK --interval=1 --timeout=x --retries=-1 --x CMD [1]\n", 5),
        ("FROM a\nHEALTHCHECK --interval=1 --retries=x FOO\n", 3),
        ("FROM a\nCOPY --foo --foo --bar a b\n", 3),
        ("FROM a\nCOPY --foo\n", 2),
        ("FROM a\nWORKDIR --foo --bar=1\n", 3),
        ("FROM a\nENV =1 A=2 B =3\n", 3),
        ("FROM a\nLABEL A=1 B C\n", 2),
        ("FROM a\nARG =1 A =2\n", 2),
        ("FROM a\nRUN --mount=from=$A --mount=from=$B --device=a,b --x true\n", 4),
        // The instructions of a stage whose FROM is wrong are not before the first FROM.
        ("FROM --x a AS 9\nRUN true\nCOPPY a b\n", 3),
    ] {
        assert_eq!(errors(source).len(), want, "{source}: {:#?}", errors(source));
    }
}
