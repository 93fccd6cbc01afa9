//! Expands arbitrary text as a word with variables, with either escape character, and parses it as
//! mount options.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rbuild_dockerfile::expand::Lexer;
use rbuild_dockerfile::{Span, parse_mount, parse_size};

fuzz_target!(|input: (bool, bool, bool, &str)| {
    let (backtick, raw_quotes, skip_unset, text) = input;
    let lexer = Lexer { escape: if backtick { '`' } else { '\\' }, raw_quotes, skip_unset };
    let lookup = |name: &str| match name {
        "A" => Some("value".to_string()),
        "EMPTY" => Some(String::new()),
        "LONG" => Some("abc/def*?[x]".repeat(8)),
        _ => None,
    };
    if let Ok(got) = lexer.word(text, &lookup) {
        // Text without special characters must not change.
        if !text.contains(['$', '\\', '`', '\'', '"']) {
            assert_eq!(got.text, text);
        }
    }
    let _ = parse_mount(text, Span::new(0, text.len()));
    let _ = parse_size(text);
});
