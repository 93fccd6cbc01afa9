//! Suggestions for misspelled words.

/// Number of leading characters that are compared; enough to tell longer words apart.
const COMPARED: usize = 64;

/// Returns the candidate most similar to `word`, if any is close.
///
/// A candidate is close if its edit distance is at most a third of the word's length, ignoring
/// case, or if both have the same part before the first `-`, `_` or `.`. Only the first hundred
/// candidates are compared, to bound the time for files with many errors.
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
    fn only_close_candidates_are_suggested() {
        let names = ["FROM", "RUN", "COPY", "ENTRYPOINT"];
        assert_eq!(closest("FORM", names), Some("FROM"));
        assert_eq!(closest("COPPY", names), Some("COPY"));
        assert_eq!(closest("entrypiont", names), Some("ENTRYPOINT"));
        assert_eq!(closest("XYZ", names), None);
        assert_eq!(closest("build-server", ["base", "build-client"]), Some("build-client"));
    }
}
