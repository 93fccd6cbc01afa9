use rbuild_remedy::Remedy;

use super::*;
use crate::parse;

fn run(source: &str, settings: &LintSettings) -> Vec<LintWarning> {
    check_with(source, settings, &|_| StageRole::Built)
}

fn check_with(source: &str, settings: &LintSettings, role: &dyn Fn(usize) -> StageRole) -> Vec<LintWarning> {
    check_for("linux/amd64", source, settings, role)
}

fn check_for(
    target: &str,
    source: &str,
    settings: &LintSettings,
    role: &dyn Fn(usize) -> StageRole,
) -> Vec<LintWarning> {
    let file = parse(source.as_bytes()).unwrap_or_else(|e| panic!("{source}\n{e:?}"));
    let automatic = [("TARGETPLATFORM".to_string(), target.to_string())];
    let facts = Facts {
        role,
        base: &|name, platform| match name {
            "base" => Some(BaseFacts { env: vec!["PATH=/bin".into(), "KNOWN=1".into()], ..BaseFacts::default() }),
            "shelly" => Some(BaseFacts { has_shell: true, ..BaseFacts::default() }),
            "triggering" => {
                let triggers = ["ENV Q=1", "ARG R", "SHELL [\"/bin/ash\"]"].map(String::from).to_vec();
                Some(BaseFacts { triggers, ..BaseFacts::default() })
            }
            "foreign" => {
                let foreign = (platform != Some("linux/arm64")).then(|| "linux/arm64".to_string());
                Some(BaseFacts { env: vec!["PATH=/bin".into()], foreign, ..BaseFacts::default() })
            }
            _ => None,
        },
        ignored: &|path| path == "hidden",
        build_arg: &|name| (name == "GIVEN").then(|| "base".to_string()),
        automatic: &automatic,
    };
    check(&file, &facts, settings)
}

/// Cases are `== Rule pass|fail` followed by a Dockerfile. A failing case must trigger that rule, a
/// passing one must not.
#[test]
fn every_rule_has_a_passing_and_a_failing_case() {
    let settings = LintSettings { experimental_all: true, ..LintSettings::default() };
    let mut seen: Vec<(String, bool)> = Vec::new();
    for case in include_str!("../../tests/lint.txt").split("== ").skip(1) {
        let (head, source) = case.split_once('\n').unwrap();
        let (name, fails) = head.split_once(' ').map(|(n, k)| (n, k == "fail")).unwrap();
        let found = run(source, &settings);
        let triggered = found.iter().any(|w| w.rule.name == name);
        assert_eq!(triggered, fails, "{head}\n{source}\n{found:#?}");
        seen.push((name.to_string(), fails));
    }
    for rule in RULES {
        for fails in [true, false] {
            assert!(seen.contains(&(rule.name.to_string(), fails)), "{} has no case {fails}", rule.name);
        }
    }
}

#[test]
fn warnings_are_as_recorded() {
    let settings = LintSettings { experimental_all: true, ..LintSettings::default() };
    let mut table = String::new();
    for case in include_str!("../../tests/lint.txt").split("== ").skip(1) {
        let (head, source) = case.split_once('\n').unwrap();
        let Some(name) = head.strip_suffix(" fail") else { continue };
        for LintWarning { rule, span, message, help } in run(source, &settings) {
            if rule.name == name {
                table += &format!("{name} at `{}`: {message}\n", &source[span.start..span.end]);
                table += &help.map_or(String::new(), |help| format!("  help: {help:?}\n"));
            }
        }
    }
    rbuild_testkit::assert_recorded!("lint", table);
}

#[test]
fn rules_can_be_skipped_for_the_file_and_for_one_instruction() {
    let source = "FROM base AS Upper\nMAINTAINER x\n";
    let names = |s: &LintSettings| run(source, s).iter().map(|w| w.rule.name).collect::<Vec<_>>();
    assert_eq!(names(&LintSettings::default()), ["StageNameCasing", "MaintainerDeprecated"]);
    assert_eq!(names(&LintSettings::parse("skip=StageNameCasing").unwrap()), ["MaintainerDeprecated"]);
    assert!(names(&LintSettings::parse("skip=all;error=true").unwrap()).is_empty());
    let one = "FROM base\n# check=skip=MaintainerDeprecated\nMAINTAINER x\nMAINTAINER y\n";
    assert_eq!(run(one, &LintSettings::default()).len(), 1);
    for (comments, skipped) in [
        ("# Check = skip=MaintainerDeprecated", true),
        ("# check=skip=MaintainerDeprecated words", true),
        ("# check=skip=MaintainerDeprecated\n# check=skip=Other", true),
        ("# check=skip=Other\n# check=skip=MaintainerDeprecated", false),
        ("# check=skip=MaintainerDeprecated\n#", false),
        ("  # check=skip=MaintainerDeprecated", false),
    ] {
        let source = format!("FROM base\n{comments}\nMAINTAINER x\n");
        assert_eq!(run(&source, &LintSettings::default()).is_empty(), skipped, "{comments}");
    }
    assert!(
        LintSettings::parse("skip").is_err()
            && LintSettings::parse("error=maybe").is_err()
            && LintSettings::parse("error=T").unwrap().error
            && LintSettings::parse("x=y").is_err()
    );
    let file = parse(b"# check=error=true;skip=A,B\nFROM base\n").unwrap();
    assert_eq!(
        settings(&file).unwrap(),
        LintSettings { skip: vec!["A".into(), "B".into()], error: true, ..LintSettings::default() }
    );
}

#[test]
fn unknown_rule_names_are_warnings() {
    let messages = |source: &str| {
        let file = parse(source.as_bytes()).unwrap();
        unknown_rules(&file).into_iter().map(|d| (d.message, d.help)).collect::<Vec<_>>()
    };
    let source = "# check=skip=all,StageNameCasin;experimental=all\nFROM base\n# check=skip=NoSuch\nRUN true\n";
    let unknown = |name: &str| format!("rule `{name}` does not exist");
    assert_eq!(
        messages(source),
        [(unknown("StageNameCasin"), Some(Remedy::did_you_mean("StageNameCasing").into())), (unknown("NoSuch"), None)]
    );
    assert_eq!(messages("# check=skip=stagenamecasing;error=true\nFROM base\n"), []);
}

#[test]
fn build_arguments_choose_the_base_image() {
    let found =
        |source: &str| run(source, &LintSettings::default()).into_iter().map(|w| w.rule.name).collect::<Vec<_>>();
    for arg in ["ARG GIVEN", "ARG GIVEN=other", "ARG GIVEN=other\nARG NAME=$GIVEN"] {
        let name = if arg.contains("NAME") { "NAME" } else { "GIVEN" };
        let source = |used: &str| format!("{arg}\nFROM ${name}\nLABEL x=${used}\n");
        assert_eq!(found(&source("UNKNOWN")).last(), Some(&"UndefinedVar"), "{arg}");
        assert!(!found(&source("KNOWN")).contains(&"UndefinedVar"), "{arg}");
    }
    // The rule about defaults applies to builds without build arguments.
    assert_eq!(found("ARG GIVEN\nFROM $GIVEN\n"), ["InvalidDefaultArgInFrom"]);
}

#[test]
fn spans_cover_the_exact_word() {
    let source = "FROM base AS Upper\nEXPOSE 80/TCP\nENV A=$KNWON\n";
    let found = run(source, &LintSettings::default());
    let words: Vec<&str> = found.iter().map(|w| &source[w.span.start..w.span.end]).collect();
    assert_eq!(words, ["Upper", "80/TCP", "$KNWON"]);
    assert_eq!(found[2].help, Some(Remedy::did_you_mean("KNOWN").into()));
}

#[test]
fn only_the_first_workdir_of_a_stage_is_checked() {
    let found = |source: &str| run(source, &LintSettings::default()).into_iter().map(|w| w.message).collect::<Vec<_>>();
    let message = "`a` is relative to the WORKDIR of the base image";
    assert_eq!(found("FROM base AS first\nWORKDIR a\nWORKDIR b\nFROM first\nWORKDIR c\n"), [message]);
    assert_eq!(found("FROM base\nWORKDIR a\nFROM base\nWORKDIR a\n"), [message; 2]);
}

#[test]
fn scratch_has_the_platform_of_the_build() {
    let found = |target: &str, path: &str| {
        let source = format!("FROM --platform=linux/amd64 scratch\nWORKDIR {path}\n");
        check_for(target, &source, &LintSettings::parse("skip=FromPlatformFlagConstDisallowed").unwrap(), &|_| {
            StageRole::Built
        })
        .len()
    };
    assert_eq!((found("windows/amd64", "C:\\\\app"), found("linux/amd64", "C:\\\\app")), (0, 1));
    assert_eq!((found("windows/amd64", "app"), found("linux/amd64", "/app")), (1, 0));
}

#[test]
fn names_in_env_are_expanded() {
    let found = |source: &str| run(source, &LintSettings::default()).len();
    let source = |used: &str| format!("FROM base\nENV A=X\nENV ${{A}}_Y=1\nLABEL x=${used}\n");
    assert_eq!((found(&source("X_Y")), found(&source("A_Y"))), (0, 1));
}

#[test]
fn stages_that_are_not_built_are_checked_for_their_form_only() {
    let source = "FROM foreign AS Used\nENV A $B\nWORKDIR x\nCMD a\nCMD b\nCOPY hidden /\nEXPOSE 1/TCP\nENV KEY=$KEY\n\
                  MAINTAINER m\nFROM used\nLABEL l=$A k=$KNOWN\n";
    let names = |role: StageRole| {
        let role = |stage| if stage == 0 { role.clone() } else { StageRole::Built };
        let found = check_with(source, &LintSettings::default(), &role);
        found.iter().map(|w| w.rule.name).collect::<Vec<_>>()
    };
    let form = ["StageNameCasing", "MaintainerDeprecated"];
    assert!(names(StageRole::Built).len() > 8, "{:?}", names(StageRole::Built));
    assert_eq!(names(StageRole::Unused), [&form[..], &["UndefinedVar"]].concat());
    // The last stage has the environment of the context.
    let context = |env: &[&str]| {
        let env = env.iter().map(|pair| pair.to_string()).collect();
        StageRole::Replaced(Some(BaseFacts { env, ..BaseFacts::default() }))
    };
    assert_eq!(names(context(&["A=1", "KNOWN=1"])), form);
    assert_eq!(names(context(&["KNOWN=1"])), [&form[..], &["UndefinedVar"]].concat());
    assert_eq!(names(StageRole::Replaced(None)), form);
}

#[test]
fn mistakes_in_the_json_form_of_several_lines_are_found() {
    for (text, mistake) in [
        ("[\"a\"\n", Some("the closing `]` is missing")),
        ("[\n", None),
        ("[\"a\",\n{}]", Some("there is a comma without a string after it")),
        ("[\"a\",\n'b']", Some("JSON strings require double quotes")),
        ("[\"a\",\n\"b\" \"c\"]", Some("there is no comma between two strings")),
        ("[\"a\", é]", Some("there is a comma without a string after it")),
        ("[\"a\"]\n", None),
        (r#"["\ud83d", 'b']"#, Some("JSON strings require double quotes")),
        (r#"["\ud83d" "b"]"#, Some("there is no comma between two strings")),
        (r#"["\ud83d", x]"#, Some("there is a comma without a string after it")),
        (r#"["\ud83d"; "b"]"#, Some("invalid JSON at character 10")),
        (r#"["\ud83d", "\x"]"#, Some("invalid JSON at character 14")),
        (r#"["a", 1, 'b']"#, Some("JSON strings require double quotes")),
        (r#"["\ud83d"]"#, None),
    ] {
        assert_eq!(super::json_mistake(text).as_deref(), mistake, "{text:?}");
    }
}
