//! Suggestions for misspelt words.

/// Characters of a word that are compared. Longer words differ enough in these.
const COMPARED: usize = 64;

/// Returns the candidate that `word` was most likely meant to be, if any is close.
///
/// Close is an edit distance of at most a third of the word's length, ignoring case, or the same first
/// part before `-`, `_` or `.`. Only the first hundred candidates are compared, which bounds the time
/// that a file with many mistakes takes.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = word.to_lowercase();
    let limit = (wanted.chars().count() / 3).max(1);
    let mut best: Option<(usize, &str)> = None;
    let mut related = None;
    for candidate in candidates.into_iter().take(100) {
        let lower = candidate.to_lowercase();
        let d = strsim::osa_distance(cut(&wanted), cut(&lower));
        if d <= limit && best.is_none_or(|(b, _)| d < b) {
            best = Some((d, candidate));
        }
        let stem = |s: &str| s.split(['-', '_', '.']).next().unwrap_or("").to_string();
        if related.is_none() && stem(&wanted).len() >= 3 && stem(&wanted) == stem(&lower) {
            related = Some(candidate);
        }
    }
    best.map(|(_, c)| c).or(related)
}

fn cut(word: &str) -> &str {
    word.char_indices().nth(COMPARED).map_or(word, |(end, _)| &word[..end])
}

#[cfg(test)]
mod tests {
    use super::closest;

    #[test]
    fn close_words_are_found_and_far_ones_are_not() {
        let names = ["FROM", "RUN", "COPY", "ENTRYPOINT"];
        assert_eq!(closest("FORM", names), Some("FROM"));
        assert_eq!(closest("COPPY", names), Some("COPY"));
        assert_eq!(closest("entrypiont", names), Some("ENTRYPOINT"));
        assert_eq!(closest("XYZ", names), None);
        assert_eq!(closest("build-server", ["base", "build-client"]), Some("build-client"));
    }
}
