//! Suggestions for misspelled file names.

/// Returns the name most similar to `wanted`: equal except for case or extension, or with all but
/// two characters in common at the start and the end.
pub(crate) fn closest<'a>(wanted: &str, names: &'a [String]) -> Option<&'a str> {
    let stem = |s: &str| s.to_lowercase().split('.').next().unwrap_or("").to_string();
    let common = |a: &str, b: &str| a.chars().zip(b.chars()).take_while(|(x, y)| x == y).count();
    let want = wanted.to_lowercase();
    names
        .iter()
        .map(|n| {
            let lower = n.to_lowercase();
            let reversed = |s: &str| s.chars().rev().collect::<String>();
            let same = common(&want, &lower) + common(&reversed(&want), &reversed(&lower));
            (if lower == want { 1000 } else { same }, n)
        })
        .filter(|(same, n)| {
            *same >= 1000 || stem(n) == stem(&want) || same + 2 >= want.chars().count().max(n.chars().count())
        })
        .max_by_key(|(same, _)| *same)
        .map(|(_, n)| n.as_str())
}
