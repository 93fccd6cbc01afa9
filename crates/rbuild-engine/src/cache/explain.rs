//! Explanations of why a step ran: the differences between its key and that of the most similar
//! step built here before.

use rbuild_plan::{BuildGraph, Step, StepName, Vertex, VertexId};
use rbuild_source::Changes;
use rbuild_store::{BuildIndex, CacheKey, IndexedStep, KeyInputs, ResultId};

use crate::cache::key::{FILES, FROM, PARENT, Part};
use crate::ops::redact::SecretValues;

/// Maximum number of names per kind of change; further ones are only counted.
const TOLD: usize = 3;
/// Maximum length of a value in characters.
const LONG: usize = 60;

/// Records the components of a key in readable form, for explanations.
pub struct Bookkeeper<'a> {
    pub graph: &'a BuildGraph,
    pub result_of: &'a dyn Fn(VertexId) -> ResultId,
    pub key_inputs: KeyInputs,
    /// Values that are masked, because the inputs are stored.
    pub secrets: SecretValues,
}

impl Bookkeeper<'_> {
    pub fn note(&mut self, part: &Part<'_>) {
        let (name, value) = match part {
            Part::Own(name, value) => (*name, String::from_utf8_lossy(value).into_owned()),
            Part::Files(name, digest) => (*name, digest.hex()),
            Part::Input(name, id) => {
                let vertex = &self.graph.vertices[*id];
                match &vertex.step {
                    Step::Image { name: image, manifest } => (*name, format!("{IMAGE}{image} {manifest}")),
                    _ => (*name, format!("{STEP}{} {}", vertex.name, (self.result_of)(*id))),
                }
            }
        };
        self.key_inputs.parts.push((name.to_string(), self.secrets.mask(value)));
    }
}

// Prefixes of an input's name among the inputs of a key.
const IMAGE: &str = "image ";
const STEP: &str = "step ";

/// Returns the build index entry of a step.
pub fn entry(vertex: &Vertex, key: CacheKey) -> IndexedStep {
    let StepName { stage, number, total: _ } = vertex.name.clone();
    IndexedStep { stage, number, text: vertex.text.clone(), key }
}

/// Returns for each vertex the key of the most similar step that was built here before.
pub fn nearest(build_index: &BuildIndex, graph: &BuildGraph) -> Vec<Option<CacheKey>> {
    let keyed = |vertex: &Vertex| !matches!(vertex.step, Step::Scratch | Step::Image { .. });
    let steps: Vec<(VertexId, (&str, usize, &str))> = graph
        .vertices
        .iter()
        .enumerate()
        .filter(|(_, vertex)| keyed(vertex))
        .map(|(id, vertex)| (id, (vertex.name.stage.as_str(), vertex.name.number, vertex.text.as_str())))
        .collect();
    let found = build_index.nearest(&steps.iter().map(|(_, step)| *step).collect::<Vec<_>>());
    let mut keys = vec![None; graph.vertices.len()];
    for ((id, _), place) in steps.iter().zip(found) {
        keys[*id] = place.map(|place| build_index.steps[place].key);
    }
    keys
}

/// Returns the explanation of a cache hit.
pub fn hit(key: &CacheKey) -> String {
    format!("all that it depends on is as it was (key {})", key.short())
}

/// Returns the differences between the key of a step and an earlier one, in words; empty if they
/// are equal. `files` are the changes among the files that the step takes, if known: from a context
/// if it takes any, otherwise from a stage or an image.
pub fn differences(now: &KeyInputs, before: &KeyInputs, files: Option<&Changes>) -> Vec<String> {
    let mut told = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in now.parts.iter().chain(&before.parts) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    for name in names.iter().copied() {
        let of = |key_inputs: &KeyInputs| -> Vec<String> {
            key_inputs.parts.iter().filter(|(n, _)| n == name).map(|(_, value)| value.clone()).collect()
        };
        let (new, old) = (of(now), of(before));
        if new == old {
            continue;
        }
        match name {
            FROM if files.is_some() && !names.contains(&FILES) => {
                told.extend(files.filter(|changes| !changes.is_empty()).map(|changes| {
                    let source = new.first().map_or(String::new(), |input| source(input));
                    format!("of {source}: {}", file_changes(changes))
                }));
            }
            PARENT | FROM => told.extend(inputs(&new, &old)),
            "variable" => told.extend(variables(&new, &old)),
            FILES => told.push(match files {
                Some(changes) if !changes.is_empty() => file_changes(changes),
                _ => "files that it takes from the context changed".into(),
            }),
            "command" | "script" | "here-document" => told.push(format!("the {name} changed")),
            _ => told.push(format!("{name}: {} → {}", value(&old.join(" ")), value(&new.join(" ")))),
        }
    }
    told
}

/// Returns the display name of a file source: `[build 3/4]`, `debian:bookworm`.
fn source(input: &str) -> String {
    let name = |kind: &str| Some(input.strip_prefix(kind)?.rsplit_once(' ')?.0);
    match (name(STEP), name(IMAGE)) {
        (Some(label), _) => format!("[{label}]"),
        (None, Some(image)) => image.to_string(),
        (None, None) => input.to_string(),
    }
}

fn value(text: &str) -> String {
    match text.chars().count() {
        0 => "nothing".into(),
        n if n > LONG => text.chars().take(LONG - 1).chain(['…']).collect(),
        _ => text.into(),
    }
}

fn inputs(new: &[String], old: &[String]) -> Vec<String> {
    let mut told = Vec::new();
    for (i, input) in new.iter().enumerate() {
        let before = old.get(i);
        if before == Some(input) {
            continue;
        }
        let split = |text: &str, kind: &str| -> Option<(String, String)> {
            let (name, digest) = text.strip_prefix(kind)?.rsplit_once(' ')?;
            Some((name.to_string(), digest.to_string()))
        };
        let short =
            |digest: &str| digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect::<String>();
        told.push(match (split(input, IMAGE), before.and_then(|b| split(b, IMAGE))) {
            (Some((name, to)), Some((was, from))) if name == was => {
                format!("image {name} moved from {} to {}", short(&from), short(&to))
            }
            (Some((name, _)), Some((was, _))) => format!("image {was} → {name}"),
            (Some((name, _)), None) => format!("it stands on the image {name} now"),
            (None, _) => match split(input, STEP) {
                // A step that only moved has the same result and is not a reason.
                Some((_, to)) if before.and_then(|b| split(b, STEP)).is_some_and(|(_, from)| from == to) => continue,
                Some((label, _)) => format!("[{label}] before it changed"),
                None => continue,
            },
        });
    }
    if told.is_empty() && new.len() < old.len() {
        told.push("it reads fewer stages or images".into());
    }
    told
}

fn variables(new: &[String], old: &[String]) -> Vec<String> {
    let pairs = |list: &[String]| -> Vec<(String, String)> {
        list.iter().filter_map(|v| v.split_once('=')).map(|(k, v)| (k.to_string(), v.to_string())).collect()
    };
    let (new, old) = (pairs(new), pairs(old));
    let find = |list: &[(String, String)], name: &str| list.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
    let mut told = Vec::new();
    for (name, now) in &new {
        match find(&old, name) {
            Some(before) if before != *now => told.push(format!("{name} {} → {}", value(&before), value(now))),
            Some(_) => {}
            None => told.push(format!("{name}={} is new", value(now))),
        }
    }
    for (name, _) in old.iter().filter(|(name, _)| find(&new, name).is_none()) {
        told.push(format!("{name} is gone"));
    }
    if told.is_empty() {
        told.push("the order of its variables changed".into());
    }
    told
}

fn file_changes(changes: &Changes) -> String {
    let Changes { changed, new, gone } = changes;
    let list = |names: &[String], what: &str| {
        let mut text = names.iter().take(TOLD).cloned().collect::<Vec<_>>().join(", ");
        if names.len() > TOLD {
            text.push_str(&format!(" and {} more", names.len() - TOLD));
        }
        (!names.is_empty()).then(|| format!("{text} {what}"))
    };
    let be = |names: &[String]| if names.len() == 1 { "is" } else { "are" };
    let parts =
        [list(changed, "changed"), list(new, &format!("{} new", be(new))), list(gone, &format!("{} gone", be(gone)))];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_inputs(parts: &[(&str, &str)]) -> KeyInputs {
        KeyInputs { parts: parts.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect() }
    }

    #[test]
    fn what_differs_is_named() {
        let before = key_inputs(&[
            (PARENT, "image debian:bookworm sha256:aaaaaaaaaaaaaaaa"),
            ("command", "/bin/sh"),
            ("command", "make"),
            ("variable", "VERSION=1.1"),
            ("variable", "GONE=x"),
            ("user", ""),
            (FILES, "00"),
        ]);
        let now = key_inputs(&[
            (PARENT, "image debian:bookworm sha256:bbbbbbbbbbbbbbbb"),
            ("command", "/bin/sh"),
            ("command", "make all"),
            ("variable", "VERSION=1.2"),
            ("variable", "NEW=y"),
            ("user", "app"),
            (FILES, "11"),
        ]);
        let changes = Changes {
            changed: vec!["src/main.rs".into()],
            new: ["a", "b", "c", "d", "e"].map(String::from).to_vec(),
            gone: Vec::new(),
        };
        assert_eq!(
            differences(&now, &before, Some(&changes)),
            [
                "image debian:bookworm moved from aaaaaaaaaaaa to bbbbbbbbbbbb",
                "the command changed",
                "VERSION 1.1 → 1.2",
                "NEW=y is new",
                "GONE is gone",
                "user: nothing → app",
                "src/main.rs changed; a, b, c and 2 more are new",
            ]
        );
        assert!(differences(&now, &now, None).is_empty());
    }

    #[test]
    fn files_of_a_stage_are_told_of_by_name() {
        let of = |digest: &str| {
            key_inputs(&[(PARENT, "step b 1/2 sha256:99"), (FROM, &format!("step a 3/5 sha256:{digest}"))])
        };
        let changes = Changes { changed: vec!["out/app".into()], ..Changes::default() };
        assert_eq!(differences(&of("1"), &of("2"), Some(&changes)), ["of [a 3/5]: out/app changed"]);
        assert_eq!(differences(&of("1"), &of("2"), None), ["[a 3/5] before it changed"]);
    }

    #[test]
    fn a_step_before_that_changed_is_a_reason_and_one_that_moved_is_none() {
        let of = |label: &str, digest: &str| key_inputs(&[(PARENT, &format!("step {label} sha256:{digest}"))]);
        let told = |now: &KeyInputs, before: &KeyInputs| differences(now, before, None);
        assert_eq!(told(&of("a 3/5", "11"), &of("a 3/5", "22")), ["[a 3/5] before it changed"]);
        assert!(told(&of("a 4/6", "22"), &of("a 3/5", "22")).is_empty());
    }
}
