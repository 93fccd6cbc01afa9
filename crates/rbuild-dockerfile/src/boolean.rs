//! Booleans in options, as Go programs read them.

/// Parses a boolean like Go's `strconv.ParseBool`, which BuildKit and docker use. Returns `None`
/// for any other word.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_booleans_of_go_are_accepted() {
        for (yes, no) in [("1", "0"), ("t", "f"), ("T", "F"), ("true", "false"), ("TRUE", "FALSE"), ("True", "False")] {
            assert_eq!((parse_bool(yes), parse_bool(no)), (Some(true), Some(false)));
        }
        for text in ["", "yes", "on", "2", "tRUE", " true", "no"] {
            assert_eq!(parse_bool(text), None, "{text}");
        }
    }
}
