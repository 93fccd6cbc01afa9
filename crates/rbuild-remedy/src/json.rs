//! Messages about documents of an unexpected form, in the terms of JSON and TOML.

use serde_json::error::Category;

/// Returns the message of an error of the JSON parser, with the place in the document. Types are
/// those of JSON, not of programs.
pub(crate) fn message(error: &serde_json::Error) -> String {
    let place = match (error.line(), error.column()) {
        (0, _) => String::new(),
        (line, 0) => format!(" (line {line})"),
        (line, column) => format!(" (line {line}, column {column})"),
    };
    let text = match error.classify() {
        Category::Syntax => "not valid JSON".to_string(),
        Category::Eof => "not valid JSON: the end is missing".to_string(),
        Category::Data | Category::Io => {
            let text = error.to_string();
            type_message(text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text))
        }
    };
    text + &place
}

/// Returns the message of a parser with types of documents in place of those of programs. Other
/// messages are returned as they are.
///
/// ```
/// let message = rbuild_remedy::type_message("invalid type: string \"4\", expected u64");
/// assert_eq!(message, "expected a whole number, found the text \"4\"");
/// ```
pub fn type_message(text: &str) -> String {
    let Some((kind, rest)) = text.split_once(": ") else { return text.to_string() };
    let Some((found, expected)) = rest.split_once(", expected ") else { return text.to_string() };
    if !["invalid type", "invalid value"].contains(&kind) {
        return text.to_string();
    }
    format!("expected {}, found {}", expected_type(expected), found_value(found))
}

fn expected_type(name: &str) -> &str {
    match name {
        "a map" => "an object",
        "a sequence" => "a list",
        "u8" | "u16" | "u32" | "u64" | "usize" | "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "unit" => "null",
        name if name.starts_with("struct ") || name.starts_with("internally tagged enum ") => "an object",
        name if name.starts_with("tuple ") || name.starts_with("a tuple ") => "a list",
        name if name.starts_with("enum ") => "a word",
        name => name,
    }
}

fn found_value(name: &str) -> String {
    match name.split_once(' ') {
        _ if name == "map" => "an object".into(),
        _ if name == "sequence" => "a list".into(),
        Some(("boolean", value)) => value.trim_matches('`').into(),
        Some(("integer", value)) => format!("the number {}", value.trim_matches('`')),
        Some(("floating", value)) => format!("the number {}", value.trim_start_matches("point ").trim_matches('`')),
        Some(("string", value)) => format!("the text {value}"),
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Document {
        list: Vec<u8>,
    }

    #[test]
    fn types_are_those_of_json() {
        fn of<T: for<'a> Deserialize<'a> + std::fmt::Debug>(text: &str) -> String {
            crate::sentence(&serde_json::from_str::<T>(text).unwrap_err())
        }
        for (message, expected) in [
            (of::<Document>("[1, 2]"), "expected a list, found the number 1 (line 1, column 2)"),
            (of::<Document>("7"), "expected an object, found the number 7 (line 1, column 1)"),
            (of::<Document>(r#"{"list": {}}"#), "expected a list, found an object (line 1, column 9)"),
            (of::<Document>(r#"{"list": ["x"]}"#), "expected a whole number, found the text \"x\" (line 1, column 13)"),
            (of::<Document>(r#"{"list": [true]}"#), "expected a whole number, found true (line 1, column 14)"),
            (of::<Document>(r#"{"list": [1.5]}"#), "expected a whole number, found the number 1.5 (line 1, column 13)"),
            (of::<Document>(r#"{"list": null}"#), "expected a list, found null (line 1, column 13)"),
            (of::<BTreeMap<String, u8>>("[]"), "expected an object, found a list (line 1)"),
            (of::<Document>("{}"), "missing field `list` (line 1, column 2)"),
            (of::<Document>("{"), "not valid JSON: the end is missing (line 1, column 1)"),
            (of::<Document>("{]"), "not valid JSON (line 1, column 2)"),
        ] {
            assert_eq!(message, expected);
        }
    }
}
