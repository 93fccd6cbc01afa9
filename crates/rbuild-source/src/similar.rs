//! Suggestions for misspelled file names.

/// Returns the name most similar to `wanted`: one that continues it after a space, one that is
/// equal except for case or extension, or one with all but a third of its characters, two at most,
/// in common at the start and the end.
pub(crate) fn closest<'a>(wanted: &str, names: &'a [String]) -> Option<&'a str> {
    let begun = wanted.trim_end_matches('\\');
    let continues = |name: &&String| name.strip_prefix(begun).is_some_and(|rest| rest.starts_with(' '));
    if let Some(name) = names.iter().find(continues) {
        return Some(name);
    }
    let stem = |s: &str| s.to_lowercase().split('.').next().unwrap_or("").to_string();
    let common = |a: &str, b: &str| a.chars().zip(b.chars()).take_while(|(x, y)| x == y).count();
    let want = wanted.to_lowercase();
    let rated = names.iter().filter_map(|name| {
        let lower = name.to_lowercase();
        if lower == want {
            return Some((usize::MAX, name));
        }
        let reversed = |s: &str| s.chars().rev().collect::<String>();
        let same = common(&want, &lower) + common(&reversed(&want), &reversed(&lower));
        let longest = want.chars().count().max(lower.chars().count());
        let is_near = same + (longest / 3).min(2) >= longest;
        (is_near || stem(name) == stem(&want)).then_some((same, name))
    });
    rated.max_by_key(|(same, _)| *same).map(|(_, name)| name.as_str())
}

#[cfg(test)]
mod tests {
    use super::closest;

    #[test]
    fn short_names_are_not_suggested_for_each_other() {
        let names = ["a", "ff", "sp ace", "Makefile", "main.go", "d1"].map(String::from);
        for (wanted, want) in [
            ("sp", Some("sp ace")),
            ("sp\\", Some("sp ace")),
            ("xy", None),
            ("b", None),
            ("A", Some("a")),
            ("makefile", Some("Makefile")),
            ("mian.go", Some("main.go")),
            ("main.c", Some("main.go")),
            ("Makefiel", Some("Makefile")),
        ] {
            assert_eq!(closest(wanted, &names), want, "{wanted}");
        }
    }
}
