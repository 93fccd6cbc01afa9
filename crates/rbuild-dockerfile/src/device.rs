//! Values of `RUN --device`.

use crate::ast::{Device, Word};
use crate::boolean::parse_bool;
use crate::csv::csv_record;
use crate::diagnostic::{Diagnostic, Span};

const FLAG: &str = "--device=";

/// Parses `NAME[,required[=BOOL]]`, or the same with `name=NAME`, like BuildKit: keys are
/// case-insensitive, and the first field with another key is the name.
pub(crate) fn device(word: Word) -> Result<Device, Diagnostic> {
    // An empty value has no span of its own; point at the flag before it.
    let before = if word.span.start == word.span.end { FLAG.len() } else { 0 };
    let span = Span::new(word.span.start.saturating_sub(before), word.span.end);
    let fail = |reason: String| Diagnostic::new(span, format!("`--device={}`: {reason}", word.text));
    let (mut name, mut required) = (String::new(), false);
    for field in csv_record(&word.text).map_err(|e| fail(e.to_string()))? {
        let field = field.text;
        let (key, value) = field.split_once('=').map_or((&field[..], None), |(key, value)| (key, Some(value)));
        match (key.to_lowercase().as_str(), value) {
            ("required", None) => required = true,
            ("required", Some(value)) => {
                required = parse_bool(value).ok_or_else(|| fail(format!("`{field}` must be true or false")))?;
            }
            ("name", Some(_)) if !name.is_empty() => return Err(fail(format!("the name is already `{name}`"))),
            ("name", Some(value)) => name = value.to_string(),
            _ if name.is_empty() => name = field,
            (_, None) => return Err(fail(format!("`{field}` is not of the form KEY=VALUE"))),
            (_, Some(_)) => return Err(fail(format!("unknown option `{key}`")).suggest(key, ["name", "required"])),
        }
    }
    Ok(Device { word, required })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<bool, Diagnostic> {
        device(Word { text: text.into(), span: Span::new(0, 0) }).map(|device| device.required)
    }

    #[test]
    fn devices_are_required_by_a_true_value() {
        for text in ["gpu,required", "Required=1,gpu", "name=gpu,REQUIRED=T", "required", "v.com/c=d,required=True"] {
            assert!(matches!(parsed(text), Ok(true)), "{text}");
        }
        for text in ["gpu", "gpu,required=F", "required,NAME=gpu,required=0", "v.com/c=d", "foo=1", "name=,gpu"] {
            assert!(matches!(parsed(text), Ok(false)), "{text}");
        }
    }

    #[test]
    fn an_empty_value_is_shown_with_its_flag() {
        let source = "RUN --device= ls";
        let at = source.find(" ls").unwrap();
        let span = device(Word { text: String::new(), span: Span::new(at, at) }).unwrap_err().span;
        assert_eq!(&source[span.start..span.end], "--device=");
    }

    #[test]
    fn other_fields_are_errors() {
        for (text, want) in [
            ("gpu,required=maybe", "`required=maybe` must be true or false"),
            ("gpu,required=", "`required=` must be true or false"),
            ("gpu,foo=1", "unknown option `foo`"),
            ("gpu,a", "`a` is not of the form KEY=VALUE"),
            ("gpu,", "`` is not of the form KEY=VALUE"),
            ("gpu,name", "`name` is not of the form KEY=VALUE"),
            ("gpu,name=b", "the name is already `gpu`"),
            ("a\"b", "quotes enclose a whole field"),
            ("", "the value is empty"),
        ] {
            let message = parsed(text).unwrap_err().message;
            assert!(message.contains(want), "{text}: {message}");
        }
        assert!(format!("{:?}", parsed("gpu,requird=1").unwrap_err().help).contains("required"));
    }
}
