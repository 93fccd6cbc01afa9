//! Matches arbitrary text as an ignore file against arbitrary paths.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rbuild_source::Ignore;

fuzz_target!(|input: (&str, &str)| {
    let (text, path) = input;
    if let Ok(ignore) = Ignore::parse(text) {
        let _ = ignore.excludes(path);
        let _ = ignore.has_negations();
    }
});
