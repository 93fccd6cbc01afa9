//! Build arguments, and the variables that commands see.

use super::*;

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
fn undeclared_build_arguments_are_warnings() {
    let with = Parameters { build_args: vec![("VERSON".into(), "1".into())], ..params() };
    let g = graph_with("FROM debian\nARG VERSION\nENV A=$VERSIN\n", &with);
    let texts: Vec<String> = g.warnings.iter().map(|d| format!("{} {:?}", d.message, d.help)).collect();
    // The lint rules warn about unset variables.
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert!(
        texts.iter().any(|t| t.contains("`VERSON`") && t.contains("DidYouMean { word: \"VERSION\" }")),
        "{texts:?}"
    );
}

#[test]
fn proxies_are_build_arguments_of_any_case() {
    let proxies = |args: &[(&str, &str)]| {
        let build_args = args.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let g = graph_with("FROM debian\nARG NO_PROXY=a\nRUN x\n", &Parameters { build_args, ..params() });
        assert!(g.warnings.is_empty(), "{:?}", g.warnings);
        let shown: Vec<String> = run(&g).proxies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        shown.join(" ")
    };
    assert_eq!(proxies(&[]), "");
    assert_eq!(proxies(&[("no_proxy", "l"), ("NO_PROXY", "u")]), "NO_PROXY=l no_proxy=l");
    assert_eq!(proxies(&[("Https_Proxy", "m"), ("HTTPS_PROXY", "u")]), "HTTPS_PROXY=m https_proxy=m");
    assert_eq!(proxies(&[("ftp_proxy", ""), ("FTP_PROXY", "u")]), "");
}

#[test]
fn epoch_is_a_build_argument_or_an_arg_default() {
    let epoch = |source: &str, args: &[(&str, &str)]| {
        let build_args = args.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let given = Parameters { build_args, context_epoch: Some(7), ..params() };
        let epoch = graph_with(source, &given).epoch;
        let verified = Parameters { default_epoch: Some(8), ..given };
        assert_eq!(graph_with(source, &verified).epoch, epoch.or(Some(8)), "{source}");
        epoch
    };
    assert_eq!(epoch("FROM scratch\n", &[]), None);
    assert_eq!(epoch("ARG SOURCE_DATE_EPOCH=5\nFROM scratch\n", &[]), Some(5));
    assert_eq!(epoch("ARG SOURCE_DATE_EPOCH=5\nFROM scratch\n", &[("SOURCE_DATE_EPOCH", "6")]), Some(6));
    assert_eq!(epoch("ARG SOURCE_DATE_EPOCH=5\nFROM scratch\n", &[("SOURCE_DATE_EPOCH", "")]), None);
    assert_eq!(epoch("FROM scratch\n", &[("SOURCE_DATE_EPOCH", "context")]), Some(7));
    // Commands see the number, or no variable.
    let seen = |default: &str, given: Option<&str>| {
        let build_args = given.map(|value| ("SOURCE_DATE_EPOCH".into(), value.into())).into_iter().collect();
        let source = format!("ARG SOURCE_DATE_EPOCH{default}\nFROM debian\nARG SOURCE_DATE_EPOCH\nRUN x\n");
        env(&graph_with(&source, &Parameters { build_args, ..params() }), "SOURCE_DATE_EPOCH")
    };
    assert_eq!(seen("", Some("+010")), Some("10".into()));
    assert_eq!(seen("=05", None), Some("5".into()));
    assert_eq!(seen("=5", Some("")), None);
    assert_eq!(seen("=5", Some("context")), None);
    assert_eq!(seen("=", None), Some(String::new()));
}

#[test]
fn the_environment_of_a_base_stage_hides_its_arguments() {
    let file = "FROM debian AS a\nENV V=env\nARG V=arg\nARG W=kept\nRUN a\nFROM a\nRUN b $V\n";
    let g = graph(file);
    assert_eq!((env(&g, "V").as_deref(), env(&g, "W").as_deref()), (Some("env"), Some("kept")));
    let file = file.strip_suffix("FROM a\nRUN b $V\n").unwrap();
    assert_eq!(env(&graph(file), "V").as_deref(), Some("arg"), "within the stage, the last one counts");
}
