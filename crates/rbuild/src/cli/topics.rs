//! Topics of `rbuild help TOPIC`: pages of the reference.

/// Includes pages of the reference.
macro_rules! topics {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../../../docs/reference/", $name, ".md")))),*]
    };
}

const TOPICS: &[(&str, &str)] =
    topics! { "caches" "ci" "compatibility" "containers" "environment" "errors" "outputs" "registries" "sources" };

/// Returns the page of a topic.
pub fn page(topic: &str) -> Option<&'static str> {
    TOPICS.iter().find(|(name, _)| *name == topic).map(|(_, page)| *page)
}

/// Returns the only topic whose name begins with a text.
pub fn with_prefix(text: &str) -> Option<&'static str> {
    let mut found = names().filter(|name| name.starts_with(text));
    found.next().filter(|_| found.next().is_none())
}

/// Returns the list of topics, each with the heading of its page.
pub fn list() -> String {
    let line = |(name, page): &(&str, &str)| {
        format!("  {name:15}{}\n", page.lines().next().unwrap_or_default().trim_start_matches("# "))
    };
    format!("Usage: rbuild help TOPIC\n\nTopics:\n{}", TOPICS.iter().map(line).collect::<String>())
}

/// Returns the names of all topics.
pub fn names() -> impl Iterator<Item = &'static str> {
    TOPICS.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_of_the_reference_is_a_topic() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference");
        let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut pages: Vec<String> = files.map(|file| file.trim_end_matches(".md").to_string()).collect();
        pages.sort();
        assert_eq!(names().collect::<Vec<_>>(), pages);
        assert!(page("outputs").is_some_and(|text| text.starts_with("# ")) && page("nosuch").is_none());
    }
}
