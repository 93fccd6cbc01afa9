/// The candidate that `word` was most likely meant to be: at most a third of its letters away, case aside, or
/// one of the two is the beginning of the other's first dash-separated part. Only the first hundred candidates are
/// looked at: a file with more of them must not take the longer for each mistake.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = word.to_lowercase();
    let limit = (wanted.chars().count() / 3).max(1);
    let mut best: Option<(usize, &str)> = None;
    let mut related = None;
    for candidate in candidates.into_iter().take(100) {
        let lower = candidate.to_lowercase();
        let d = distance(&wanted, &lower);
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

/// Edit distance with transpositions of neighbours, in two rolling rows and one more.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut d = change.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                d = d.min(before[j - 2] + 1);
            }
            row.push(d);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
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
