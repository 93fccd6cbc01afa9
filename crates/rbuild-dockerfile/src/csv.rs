//! Records of comma-separated fields, as in `RUN --mount` and in flags of the command line.

/// A field of a record: its value without quotes, and its byte range in the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvField {
    /// The value.
    pub text: String,
    /// Offset of the first byte of the field, with its quotes.
    pub start: usize,
    /// Offset after the last byte of the field.
    pub end: usize,
}

/// The reason why a text is not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsvError {
    /// The text is empty.
    #[error("the value is empty")]
    Empty,
    /// A field contains a quote, but does not begin with one.
    #[error("a quote inside a field; quotes enclose a whole field")]
    BareQuote,
    /// A quoted field does not end at a comma or at the end of the text.
    #[error("text after a closing quote; quotes enclose a whole field")]
    TextAfterQuote,
    /// The last quote is not closed.
    #[error("unclosed quote")]
    UnclosedQuote,
}

/// Splits a record into its fields; there is at least one. A field with a comma is enclosed in
/// double quotes, and `""` inside it is a quote. One newline at the end is dropped. These are the
/// rules of BuildKit, which uses those of RFC 4180 for one line.
///
/// # Errors
///
/// Fails if the text is empty, or a quote is misplaced or not closed.
///
/// ```
/// let fields = rbuild_dockerfile::csv_record(r#"type=bind,"source=a,b""#).unwrap();
/// assert_eq!(fields[1].text, "source=a,b");
/// ```
pub fn csv_record(text: &str) -> Result<Vec<CsvField>, CsvError> {
    let line = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() {
        return Err(CsvError::Empty);
    }
    let mut fields = Vec::new();
    let mut start = 0;
    loop {
        let (text, len) = match line[start..].strip_prefix('"') {
            Some(quoted) => {
                let (text, len) = quoted_field(quoted)?;
                (text, len + 1)
            }
            None => bare_field(&line[start..])?,
        };
        let end = start + len;
        fields.push(CsvField { text, start, end });
        if end == line.len() {
            return Ok(fields);
        }
        start = end + 1;
    }
}

/// Returns the field at the beginning of the text, and its length.
fn bare_field(text: &str) -> Result<(String, usize), CsvError> {
    let field = text.split(',').next().unwrap_or_default();
    if field.contains('"') {
        return Err(CsvError::BareQuote);
    }
    Ok((field.to_string(), field.len()))
}

/// Returns the quoted field at the beginning of `text`, which starts after the opening quote, and
/// its length including the closing quote.
fn quoted_field(text: &str) -> Result<(String, usize), CsvError> {
    let mut field = String::new();
    let mut at = 0;
    loop {
        let quote = text[at..].find('"').ok_or(CsvError::UnclosedQuote)?;
        field.push_str(&text[at..at + quote]);
        at += quote + 1;
        match text[at..].chars().next() {
            None | Some(',') => return Ok((field, at)),
            Some('"') => field.push('"'),
            Some(_) => return Err(CsvError::TextAfterQuote),
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let errors = [CsvError::Empty, CsvError::BareQuote, CsvError::TextAfterQuote, CsvError::UnclosedQuote];
        let variants = variants!(CsvError { Empty, BareQuote, TextAfterQuote, UnclosedQuote });
        assert_recorded!("CsvError", variants.table(&errors, |e| e, no_remedy));
    }

    #[test]
    fn quotes_enclose_whole_fields() {
        for (text, want) in [
            ("a", Ok(vec!["a"])),
            ("a,b=c", Ok(vec!["a", "b=c"])),
            (",", Ok(vec!["", ""])),
            (r#""a,b",c"#, Ok(vec!["a,b", "c"])),
            (r#"c,"a,b""#, Ok(vec!["c", "a,b"])),
            (r#""""a"",",b"#, Ok(vec![r#""a","#, "b"])),
            (r#""","#, Ok(vec!["", ""])),
            ("a, b ", Ok(vec!["a", " b "])),
            ("a\n", Ok(vec!["a"])),
            ("a,\r\n", Ok(vec!["a", ""])),
            ("a\nb", Ok(vec!["a\nb"])),
            ("ä,\"ö,ü\"", Ok(vec!["ä", "ö,ü"])),
            ("", Err(CsvError::Empty)),
            ("\n", Err(CsvError::Empty)),
            (r#"a"b""#, Err(CsvError::BareQuote)),
            (r#"a, "b""#, Err(CsvError::BareQuote)),
            (r#""a"b"#, Err(CsvError::TextAfterQuote)),
            (r#""a" ,b"#, Err(CsvError::TextAfterQuote)),
            (r#"a,"b,c"#, Err(CsvError::UnclosedQuote)),
            (r#"""""#, Err(CsvError::UnclosedQuote)),
        ] {
            let got = csv_record(text).map(|all| all.into_iter().map(|field| field.text).collect::<Vec<_>>());
            assert_eq!(got, want.map(|all| all.into_iter().map(str::to_string).collect()), "{text:?}");
        }
    }

    #[test]
    fn ranges_include_the_quotes() {
        let text = r#"a,"b,""c",d"#;
        let written: Vec<&str> = csv_record(text).unwrap().iter().map(|f| &text[f.start..f.end]).collect();
        assert_eq!(written, ["a", r#""b,""c""#, "d"]);
    }
}
