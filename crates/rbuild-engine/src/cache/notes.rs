//! Steps of caches in words: the inputs of their keys, by which other machines explain a miss.
//!
//! A cache may be read by people who must not see the Dockerfile. Its texts, which may contain
//! values of arguments, are therefore replaced by their digests, and values of variables that may
//! be secrets are masked.

use rbuild_dockerfile::lint::may_name_secret;
use rbuild_image::{BlobDigest, hide_logins};
use rbuild_plan::Vertex;
use rbuild_store::{CachedStep, IndexedStep, KeyInputs, KeyPart, KeyValue, StepNote};
use rbuild_transport::ImportedCaches;

use crate::cache::explain::differences;
use crate::redact::{MASK, SecretValues};

/// Parts of keys whose values are not texts of a Dockerfile, but words, numbers and modes. Others
/// are only compared.
const SHOWN: [&str; 9] = [
    "platform",
    "shm size",
    "ulimit",
    "destination is a directory",
    "--parents",
    "--link",
    "unpacks archives",
    "--chmod",
    "time",
];
/// Minimum length in bytes of a value that is searched for in other values.
const SHORTEST: usize = 4;

/// Returns the inputs of a key in the form for caches.
pub(crate) fn reduced(inputs: &KeyInputs) -> KeyInputs {
    if inputs.is_reduced {
        return inputs.clone();
    }
    let confidential: Vec<&str> = inputs.parts.iter().filter_map(|part| confidential(&part.value)).collect();
    let parts = inputs.parts.iter().map(|KeyPart { name, value }| {
        let value = match value {
            KeyValue::Text(text) if text.is_empty() || SHOWN.contains(&name.as_str()) => value.clone(),
            KeyValue::Text(text) => KeyValue::Text(digest(text)),
            KeyValue::Variable { name, value } => {
                let is_confidential = confidential.iter().any(|part| value.contains(part));
                let shown = if may_name_secret(name) || is_confidential { MASK.into() } else { hide_logins(value) };
                KeyValue::Variable { name: name.clone(), value: shown }
            }
            other => other.clone(),
        };
        KeyPart { name: name.clone(), value }
    });
    KeyInputs { version: inputs.version, parts: parts.collect(), is_reduced: true }
}

/// Returns the value of a variable that may be a secret. Other variables may contain it.
fn confidential(value: &KeyValue) -> Option<&str> {
    match value {
        KeyValue::Variable { name, value } if may_name_secret(name) && value.len() >= SHORTEST => Some(value),
        _ => None,
    }
}

fn digest(text: &str) -> String {
    BlobDigest::of(text.as_bytes()).to_string()
}

/// Returns the first word of an instruction, and the digest of its text.
fn reduced_text(text: &str) -> String {
    let word = text.split_whitespace().next().unwrap_or_default();
    if text.is_empty() { String::new() } else { format!("{word} {}", digest(text)) }
}

/// Returns the note of a step of a build.
pub(crate) fn note(vertex: &Vertex, inputs: &KeyInputs, secrets: &SecretValues) -> Box<StepNote> {
    let text = reduced_text(&secrets.mask(vertex.text.clone()));
    let name = &vertex.name;
    Box::new(StepNote { stage: name.stage.clone(), number: name.number, text, inputs: reduced(inputs) })
}

/// Returns the note of a step of the store, of which an earlier build may have recorded the place.
pub(crate) fn note_of_stored(indexed: Option<&IndexedStep>, inputs: &KeyInputs) -> Box<StepNote> {
    let (stage, number) = indexed.map_or((String::new(), 0), |step| (step.stage.clone(), step.number));
    let text = indexed.map_or(String::new(), |step| reduced_text(&step.text));
    Box::new(StepNote { stage, number, text, inputs: reduced(inputs) })
}

/// A step of a cache that resembles one of this build.
pub(crate) struct SimilarStep<'a> {
    /// Name of the cache.
    pub cache: &'a str,
    pub step: &'a CachedStep,
    /// The differences to the step of this build, in words. None if the form of keys is another.
    pub differences: Vec<String>,
    pub has_other_form: bool,
}

/// Returns the cached step that is most similar to a step. Candidates are the steps with the same
/// text in a stage of the same name; if there are none, those in the same place with the same
/// instruction; and if there are none either, all with the same text. The one with the fewest
/// differences is chosen, and among equals the one that was used last.
pub(crate) fn most_similar<'a>(
    caches: &'a ImportedCaches,
    vertex: &Vertex,
    inputs: &KeyInputs,
    secrets: &SecretValues,
) -> Option<SimilarStep<'a>> {
    let own = note(vertex, inputs, secrets);
    let word = |text: &str| text.split_whitespace().next().unwrap_or_default().to_string();
    let is_same_text = |other: &StepNote| other.text == own.text;
    let is_same_place = |other: &StepNote| {
        (&other.stage, other.number) == (&own.stage, own.number) && word(&other.text) == word(&own.text)
    };
    let all: Vec<_> = caches.noted().collect();
    let ways: [&dyn Fn(&StepNote) -> bool; 3] =
        [&|other| other.stage == own.stage && is_same_text(other), &is_same_place, &is_same_text];
    let candidates = ways.iter().find_map(|is_similar| {
        let found: Vec<_> = all.iter().filter(|(_, _, note)| is_similar(note)).collect();
        (!found.is_empty()).then_some(found)
    })?;
    let compared = candidates.into_iter().map(|(cache, step, note)| {
        let has_other_form = note.inputs.version != own.inputs.version;
        let differences = if has_other_form { Vec::new() } else { differences(&own.inputs, &note.inputs, None) };
        SimilarStep { cache, step, differences, has_other_form }
    });
    compared.min_by_key(|similar| {
        let used = (similar.step.used, similar.step.created);
        (similar.has_other_form, similar.differences.len(), std::cmp::Reverse(used), similar.step.key)
    })
}

#[cfg(test)]
mod tests {
    use rbuild_store::VARIABLE;

    use super::*;

    fn inputs(parts: &[(&str, &str)]) -> KeyInputs {
        let parts = parts.iter().map(|(name, value)| (name.to_string(), value.to_string()).into()).collect();
        KeyInputs { version: 5, parts, is_reduced: false }
    }

    /// Notes leave the machine: no command, no script, and no value that may be a secret.
    #[test]
    fn notes_contain_no_commands_and_no_confidential_values() {
        let own = inputs(&[
            ("command", "make PASS=hunter2"),
            ("here-document", "key: hunter2"),
            (VARIABLE, "NPM_TOKEN=hunter2"),
            (VARIABLE, "TOKEN_FILE=hunter2"),
            (VARIABLE, "DB=postgres://me:hunter2@db/x"),
            (VARIABLE, "URL=https://example.org/?key=hunter2"),
            (VARIABLE, "VERSION=1.1"),
            ("working directory", "/w/hunter2"),
            ("source", "https://example.org/?sig=hunter2"),
            ("user", "hunter2"),
            ("--link", "yes"),
            ("--chown", ""),
        ]);
        let text = serde_json::to_string(&reduced(&own)).unwrap();
        assert!(!text.contains("hunter2") && text.contains("VERSION=1.1") && text.contains("yes"), "{text}");
        let key = rbuild_store::CacheKey::of(b"key");
        let indexed = IndexedStep { stage: "a".into(), number: 1, text: "RUN <<EOF (echo hunter2)".into(), key };
        let note = serde_json::to_string(&note_of_stored(Some(&indexed), &own)).unwrap();
        assert!(!note.contains("hunter2") && note.contains("\"RUN sha256:"), "{note}");
        assert_eq!(reduced(&reduced(&own)), reduced(&own));
        let other = inputs(&[("command", "make PASS=other")]);
        assert_eq!(
            differences(&reduced(&other), &reduced(&inputs(&[("command", "make")])), None),
            ["the command changed"]
        );
        let users = |user: &str| reduced(&inputs(&[("user", user)]));
        assert_eq!(differences(&users("a"), &users("b"), None), ["the user changed"]);
    }
}
