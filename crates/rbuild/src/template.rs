//! `--format`: the part of Go's text/template that docker's formats use, applied to JSON values.
//!
//! Supports fields, variables, pipelines, `if`, `else`, `range`, `with`, comments, trim markers and
//! docker's functions. Definitions, blocks and methods are not supported.

use serde_json::Value;

mod error;
mod eval;
mod parse;

pub use error::TemplateError;

/// A parsed template.
#[derive(Debug)]
pub struct Template(Vec<parse::TemplateNode>);

impl Template {
    /// Parses a template.
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        parse::parse(text).map(Template)
    }

    /// Renders the template with `value` as its data.
    pub fn render(&self, value: &Value) -> Result<String, TemplateError> {
        eval::render(&self.0, value)
    }
}

/// Formats rows as `--format` requests: `table` for the usual table, else like [`rows`].
pub fn rows_or_table(format: &str, usual: &str, headings: &Value, list: &[Value]) -> Result<String, TemplateError> {
    rows(if format.trim() == "table" { usual } else { format }, headings, list)
}

/// Formats rows as `--format` requests: `json`, `table TEMPLATE`, or a template applied to each
/// row.
pub fn rows(format: &str, headings: &Value, rows: &[Value]) -> Result<String, TemplateError> {
    if format == "json" || format == "{{json .}}" {
        return Ok(rows.iter().map(|r| format!("{r}\n")).collect());
    }
    // Within a shell's single quotes, \t and \n arrive unexpanded.
    let format = format.replace("\\t", "\t").replace("\\n", "\n");
    let (text, table) = match format.strip_prefix("table ") {
        Some(rest) => (rest, true),
        None => (format.as_str(), false),
    };
    let template = Template::parse(text)?;
    let lines: Vec<String> = rows.iter().map(|r| template.render(r)).collect::<Result<_, _>>()?;
    if !table {
        return Ok(lines.iter().map(|l| format!("{l}\n")).collect());
    }
    let cells = |line: &str| line.split('\t').map(str::to_string).collect::<Vec<String>>();
    let head = cells(&template.render(headings)?);
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let mut rows: Vec<Vec<String>> = lines.iter().map(|l| cells(l)).collect();
    rows.iter_mut().for_each(|r| r.resize(head.len(), String::new()));
    Ok(crate::ui::terminal::table(&head, &rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_testkit::{assert_recorded, variants};
    use serde_json::json;

    fn data() -> Value {
        json!({
            "Id": "sha256:abc", "Size": 12, "None": null, "Yes": true,
            "List": ["a", "b"], "Env": null, "Labels": null, "RepoDigests": [],
            "Config": { "Cmd": ["sh", "-c"], "Labels": { "one": "1", "two": "2" }, "Env": ["A=1", "B=2"] },
        })
    }

    #[test]
    fn templates_render_as_in_docker() {
        for (template, want) in [
            ("{{.Id}} {{ .Size }}", "sha256:abc 12"),
            ("{{.List}} {{.Config.Labels}} {{.None}} {{.Yes}}", "[a b] map[one:1 two:2] <nil> true"),
            ("{{json .Config.Cmd}}", "[\"sh\",\"-c\"]"),
            ("{{.Config.Labels.one}}{{.Config.Labels.three}}", "1<no value>"),
            ("{{index .Config.Labels \"two\"}}{{index .List 1}}", "2b"),
            ("{{range .List}}{{.}},{{end}}", "a,b,"),
            ("{{range $i, $e := .List}}{{$i}}={{$e}} {{end}}", "0=a 1=b "),
            ("{{range $k, $v := .Config.Labels}}{{$k}}:{{$v}};{{end}}", "one:1;two:2;"),
            ("{{range .None}}x{{else}}none{{end}}", "none"),
            ("{{if eq .Size 12}}yes{{else}}no{{end}}", "yes"),
            ("{{if .None}}a{{else if .Yes}}b{{else}}c{{end}}", "b"),
            ("{{with .Config}}{{len .Env}}{{$.Id}}{{end}}", "2sha256:abc"),
            ("{{join .List \", \"}} {{upper \"x\"}} {{lower \"Y\"}} {{title \"zed\"}}", "a, b X y Zed"),
            ("{{ .Id | printf \"%s-%d\" }}", "sha256:abc-%!d(MISSING)"),
            ("{{printf \"%.6s %q %5d|%-4s|%v\" .Id \"a\" .Size \"x\" .List}}", "sha256 \"a\"    12|x   |[a b]"),
            ("a {{- /* a comment */ -}} b", "ab"),
            ("{{$x := .Id}}{{$x}}", "sha256:abc"),
            ("{{(index .Config.Env 0)}}", "A=1"),
            ("{{if and .Yes (gt .Size 3)}}ok{{end}}{{if not .Yes}}no{{end}}", "ok"),
            ("{{index (split (index .Config.Env 0) \"=\") 1}}", "1"),
            ("{{truncate .Id 3}}{{println}}{{pad \"x\" 1 2}}|", "sha\n x  |"),
            ("{{`raw`}}{{\"\\t\"}}", "raw\t"),
            ("{{or .None \"default\"}}", "default"),
            ("{{.Env}} {{.Labels}} {{.Labels.one}} {{.RepoDigests}}", "[] map[] <no value> []"),
            ("{{json .Env}} {{.Labels | json}} {{json .RepoDigests}}", "null null []"),
            ("{{len .Env}}{{len .Labels}} {{join .Env \",\"}}|{{index .Labels \"one\"}}|", "00 ||"),
            ("{{range .Env}}x{{else}}none{{end}} {{with .Labels}}x{{else}}none{{end}}", "none none"),
            ("{{$x := .Env}}{{$x}} {{printf \"%v\" .Labels}}", "[] map[]"),
        ] {
            let got = Template::parse(template).and_then(|t| t.render(&data()));
            assert_eq!(got.as_deref(), Ok(want), "{template}");
        }
    }

    const INVALID_TEMPLATES: [&str; 18] = [
        "{{.Missing}}",
        "{{.Iid}}",
        "{{.Id.Deep}}",
        "{{.",
        "{{/* a",
        "{{\"abc}}",
        "{{`abc}}",
        "{{(.Id}}",
        "{{if .Id}}",
        "{{end}}",
        "{{if .Id}}{{else .Id}}{{end}}",
        "{{}}",
        "{{.Id | }}",
        "{{.Id ~}}",
        "{{.Id )}}",
        "{{.Id := 1}}",
        "{{.Id , 1}}",
        "{{1.2.3}}",
    ];

    const FAILING_TEMPLATES: [&str; 11] = [
        "{{$x}}",
        "{{nosuch .Id}}",
        "{{joln .List}}",
        "{{.Id 1}}",
        "{{len 3}}",
        "{{join .List}}",
        "{{lt .Id 3}}",
        "{{slice .Id 3 99}}",
        "{{index .List 7}}",
        "{{index .List \"a\"}}",
        "{{range .Size}}{{end}}",
    ];

    #[test]
    fn messages_are_as_recorded() {
        let deep = |open: &str, middle: &str, close: &str| open.repeat(60) + middle + &close.repeat(60);
        let nested = [deep("{{if .Id}}", "", "{{end}}"), format!("{{{{{}}}}}", deep("(", ".Id", ")"))];
        let nested = nested.each_ref().map(String::as_str);
        let templates = [&INVALID_TEMPLATES[..], &nested, &FAILING_TEMPLATES].concat();
        let errors: Vec<_> = templates
            .into_iter()
            .map(|template| Template::parse(template).and_then(|t| t.render(&data())).expect_err(template))
            .collect();
        let variants = variants!(TemplateError {
            UnclosedAction,
            UnclosedComment,
            UnclosedString,
            UnclosedParenthesis,
            UnclosedBlock,
            NoBlock,
            AfterElse,
            EmptyAction,
            EmptyCommand,
            UnexpectedCharacter,
            UnexpectedMark,
            NotANumber,
            DeepBlocks,
            DeepParentheses,
            NoVariable,
            NoField,
            NoFields,
            NoFunction,
            NotAFunction,
            BadArguments,
            DifferentTypes,
            BadSlice,
            BadIndex,
            NoElement,
            NotIterable,
        });
        assert_recorded!("TemplateError", variants.table(&errors, |e| e, TemplateError::remedy));
    }

    #[test]
    fn tables_have_headings() {
        let headings = json!({ "ID": "IMAGE ID", "Tag": "TAG" });
        let list = [json!({ "ID": "1", "Tag": "latest" }), json!({ "ID": "22", "Tag": "x" })];
        assert_eq!(
            rows("table {{.ID}}\\t{{.Tag}}", &headings, &list).unwrap(),
            "IMAGE ID   TAG\n1          latest\n22         x\n"
        );
        assert_eq!(rows("{{.ID}}:{{.Tag}}", &headings, &list).unwrap(), "1:latest\n22:x\n");
        assert_eq!(rows("json", &headings, &list[..1]).unwrap(), "{\"ID\":\"1\",\"Tag\":\"latest\"}\n");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[{}.|$()\"`a-zA-Z0-9 :=,%-]{0,40}") {
            let _ = Template::parse(&format!("{{{{{text}}}}}")).map(|t| t.render(&data()));
            let _ = Template::parse(&text).map(|t| t.render(&data()));
        }
    }
}
