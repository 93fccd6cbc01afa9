//! Suggestions for misspelled words and file names.

/// Number of leading characters that are compared; enough to tell longer words apart.
const COMPARED: usize = 64;

/// Returns the candidate most similar to `word`, if any is close.
///
/// A candidate is close if its edit distance is at most a third of the longer one's length,
/// ignoring case, or if both have the same part before the first `-`, `_` or `.`. The dashes in
/// front of two flags do not count as length. No word is close to an empty one. Only the first
/// hundred candidates are compared, to bound the time for files with many errors.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = word.to_lowercase();
    let mut best: Option<((usize, bool, bool), &str)> = None;
    let mut related = None;
    for candidate in candidates.into_iter().take(100) {
        let lower = candidate.to_lowercase();
        let d = distance(&wanted, &lower);
        let dashes = leading_dashes(&wanted).min(leading_dashes(&lower));
        let longest = wanted.chars().count().max(lower.chars().count()) - dashes;
        if lower.is_empty() || wanted.is_empty() {
            continue;
        }
        // At the same distance, prefer a word with the same letters, then one that contains all
        // letters of the input in their order.
        let rating = (d, letters(&wanted) != letters(&lower), !is_part(&wanted, &lower));
        if d <= longest / 3 && best.is_none_or(|(b, _)| rating < b) {
            best = Some((rating, candidate));
        }
        let stem = |s: &str| s.split(['-', '_', '.']).next().unwrap_or("").to_string();
        if related.is_none() && stem(&wanted).len() >= 3 && stem(&wanted) == stem(&lower) {
            related = Some(candidate);
        }
    }
    best.map(|(_, c)| c).or(related)
}

/// Returns the file name most similar to `wanted`: one that continues it after a space, one that is
/// equal except for case or extension, or one whose edit distance is at most a third of its length,
/// two at most. Short names are therefore not suggested for each other.
pub fn closest_file<'a>(wanted: &str, names: &'a [String]) -> Option<&'a str> {
    let begun = wanted.trim_end_matches('\\');
    let continues = |name: &&String| name.strip_prefix(begun).is_some_and(|rest| rest.starts_with(' '));
    if let Some(name) = names.iter().find(continues) {
        return Some(name);
    }
    let stem = |s: &str| s.split('.').next().unwrap_or("").to_string();
    let want = wanted.to_lowercase();
    let rated = names.iter().filter_map(|name| {
        let lower = name.to_lowercase();
        let d = distance(&want, &lower);
        let longest = want.chars().count().max(lower.chars().count());
        (d <= (longest / 3).min(2) || stem(&lower) == stem(&want)).then_some((d, name))
    });
    rated.min_by_key(|(d, _)| *d).map(|(_, name)| name.as_str())
}

fn leading_dashes(word: &str) -> usize {
    word.len() - word.trim_start_matches('-').len()
}

/// Returns the letters of a word, sorted.
fn letters(word: &str) -> Vec<char> {
    let mut letters: Vec<char> = cut(word).chars().collect();
    letters.sort_unstable();
    letters
}

/// Returns true if `word` results from `whole` by leaving out letters.
fn is_part(word: &str, whole: &str) -> bool {
    let mut rest = whole.chars();
    word.chars().all(|letter| rest.any(|other| other == letter))
}

/// Returns the edit distance of two words: insertions, deletions, replacements, and exchanges of
/// neighbors.
fn distance(a: &str, b: &str) -> usize {
    strsim::osa_distance(cut(a), cut(b))
}

fn cut(word: &str) -> &str {
    word.char_indices().nth(COMPARED).map_or(word, |(end, _)| &word[..end])
}

#[cfg(test)]
mod tests {
    use super::{closest, closest_file};

    #[test]
    fn only_close_candidates_are_suggested() {
        let names = ["FROM", "RUN", "COPY", "ENTRYPOINT"];
        assert_eq!(closest("FORM", names), Some("FROM"));
        assert_eq!(closest("COPPY", names), Some("COPY"));
        assert_eq!(closest("entrypiont", names), Some("ENTRYPOINT"));
        assert_eq!(closest("XYZ", names), None);
        assert_eq!((closest("b", ["a", "B", "bb"]), closest("ab", ["cb", "a"])), (Some("B"), None));
        assert_eq!((closest("a", ["", "bc"]), closest("", ["", "a"])), (None, None));
        assert_eq!((closest("rn", names), closest("ro", ["rw"])), (Some("RUN"), None));
        assert_eq!(closest("amr64", ["amd64", "arm64"]), Some("arm64"));
        assert_eq!(closest("s39x", ["s390", "s390x"]), Some("s390x"));
        assert_eq!(closest("build-server", ["base", "build-client"]), Some("build-client"));
        let flags = ["--push", "--root", "--tag", "--platform"];
        assert_eq!((closest("--cpus", flags), closest("--foo", flags)), (None, None));
        assert_eq!((closest("--tga", flags), closest("--platfrom", flags)), (Some("--tag"), Some("--platform")));
    }

    #[test]
    fn short_file_names_are_not_suggested_for_each_other() {
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
            assert_eq!(closest_file(wanted, &names), want, "{wanted}");
        }
    }
}
