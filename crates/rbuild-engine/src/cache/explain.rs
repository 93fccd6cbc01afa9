//! Explanations of cache misses: the differences between its key and that of the most similar step
//! built here before.

use rbuild_image::BlobDigest;
use rbuild_plan::{BuildGraph, Step, StepName, Vertex, VertexId};
use rbuild_remedy::counted;
use rbuild_source::Changes;
use rbuild_store::{BuildIndex, CacheKey, FILES, FROM, IndexedStep, KeyInputs, KeyValue, PARENT, VARIABLE};

use crate::redact::{MASK, SecretValues};

/// Maximum number of names per kind of change; further ones are only counted.
const MAX_NAMES: usize = 3;
/// Maximum length of a value in characters.
const LONG: usize = 60;
/// Separator of the values of parts with the same name.
const SEPARATOR: &str = " ";

/// Masks secrets in the inputs of a key. Texts that are stored or displayed together are masked
/// together: the name and the value of a variable, and the values of all parts with the same name.
pub fn masked(mut key_inputs: KeyInputs, secrets: &SecretValues) -> KeyInputs {
    let mut texts: Vec<(String, Vec<&mut String>)> = Vec::new();
    for part in &mut key_inputs.parts {
        match &mut part.value {
            KeyValue::Text(text) => match texts.iter_mut().find(|(name, _)| *name == part.name) {
                Some((_, group)) => group.push(text),
                None => texts.push((part.name.clone(), vec![text])),
            },
            KeyValue::Variable { name, value } => replace_masked(&mut [name, value], "=", secrets),
            KeyValue::Image { name: text, .. } | KeyValue::Step { label: text, .. } => {
                *text = secrets.mask(std::mem::take(text));
            }
            KeyValue::Files(_) => {}
        }
    }
    texts.iter_mut().for_each(|(_, group)| replace_masked(group, SEPARATOR, secrets));
    key_inputs
}

fn replace_masked(texts: &mut [&mut String], separator: &str, secrets: &SecretValues) {
    let masked = secrets.mask_joined(&texts.iter().map(|text| text.as_str()).collect::<Vec<_>>(), separator);
    texts.iter_mut().zip(masked).for_each(|(text, masked)| **text = masked);
}

/// Returns the build index entry of a step.
pub fn entry(vertex: &Vertex, key: CacheKey) -> IndexedStep {
    let StepName { stage, number, total: _ } = vertex.name.clone();
    IndexedStep { stage, number, text: vertex.text.clone(), key }
}

/// Returns for each vertex the key of the most similar step that was built here before.
pub fn nearest(build_index: &BuildIndex, graph: &BuildGraph) -> Vec<Option<CacheKey>> {
    let keyed = |vertex: &Vertex| !matches!(vertex.step, Step::Scratch | Step::Image { .. });
    let steps: Vec<(VertexId, (&str, usize, &str))> = graph
        .numbered()
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

/// Returns the explanation of a cache hit. `origin` is the name of the cache that the result comes
/// from, if it was not made in this store, and that of the machine that made it, if it is known.
pub fn hit(key: &CacheKey, origin: Option<(&str, Option<&str>)>) -> String {
    let origin = origin.map_or(String::new(), |(cache, runner)| {
        let runner = runner.map_or(String::new(), |runner| format!(", made by {runner}"));
        format!("; imported from the cache `{cache}`{runner}")
    });
    format!("cache hit: no input changed (key {}){origin}", key.short())
}

/// Returns descriptions of the differences between the key of a step and an earlier one; empty if
/// they are equal. `files` are the changes among the files that the step reads, if known: those of
/// a context if it reads any, otherwise those of a stage or an image.
pub fn differences(now: &KeyInputs, before: &KeyInputs, files: Option<&Changes>) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for part in now.parts.iter().chain(&before.parts) {
        if !names.contains(&part.name.as_str()) {
            names.push(&part.name);
        }
    }
    for name in names.iter().copied() {
        let (new, old) = (values(now, name), values(before, name));
        if new == old {
            continue;
        }
        match name {
            FROM if files.is_some() && !names.contains(&FILES) => {
                reasons.extend(files.filter(|changes| !changes.is_empty()).map(|changes| {
                    let source = new.first().map_or(String::new(), |input| source(input));
                    format!("in {source}: {}", file_changes(changes))
                }));
            }
            PARENT => reasons.extend(inputs("base image", &new, &old)),
            FROM => reasons.extend(inputs("source image", &new, &old)),
            VARIABLE => reasons.extend(variables(&new, &old)),
            FILES => reasons.push(match files {
                Some(changes) if !changes.is_empty() => file_changes(changes),
                _ => "context files or their modes changed".into(),
            }),
            "command" | "script" | "here-document" => reasons.push(format!("the {name} changed")),
            _ if new.iter().chain(&old).any(|value| is_digest(&value.to_text())) => {
                reasons.push(format!("the {name} changed"));
            }
            "--exclude" => reasons.extend(excludes(&new, &old)),
            _ => reasons.extend(part(name, &texts(&old), &texts(&new))),
        }
    }
    reasons
}

/// Returns true for a value of a cache that stands for a text.
fn is_digest(text: &str) -> bool {
    text.parse::<BlobDigest>().is_ok()
}

/// Returns the values of the parts with that name, in order.
fn values<'a>(key_inputs: &'a KeyInputs, name: &str) -> Vec<&'a KeyValue> {
    key_inputs.parts.iter().filter(|part| part.name == name).map(|part| &part.value).collect()
}

fn texts(values: &[&KeyValue]) -> String {
    values.iter().map(|value| value.to_text()).collect::<Vec<_>>().join(SEPARATOR)
}

/// Returns the difference between the patterns of two steps. Unlike other parts, an empty pattern
/// is part of the key.
fn excludes(new: &[&KeyValue], old: &[&KeyValue]) -> Option<String> {
    let patterns = |values: &[&KeyValue]| values.iter().map(|value| value.to_text()).collect::<Vec<_>>();
    let (new, old) = (patterns(new), patterns(old));
    let not_empty = |list: &[String]| list.iter().filter(|text| !text.is_empty()).cloned().collect::<Vec<_>>();
    if not_empty(&new) == not_empty(&old) && new.len() != old.len() {
        let change = if new.len() > old.len() { "added" } else { "removed" };
        return Some(format!("an empty `--exclude` was {change}"));
    }
    let quoted =
        |text: &String| if text.is_empty() || text.contains(SEPARATOR) { format!("\"{text}\"") } else { text.clone() };
    let list = |texts: &[String]| texts.iter().map(quoted).collect::<Vec<_>>().join(SEPARATOR);
    part("--exclude", &list(&old), &list(&new))
}

/// Returns the difference between the values of a part. A part without a value is one that the step
/// does not have.
fn part(name: &str, old: &str, new: &str) -> Option<String> {
    match (old, new) {
        ("", "") => None,
        ("", new) => Some(added(name, new)),
        (_, "") => Some(removed(name)),
        (old, new) => Some(changed(name, old, new)),
    }
}

/// Returns true if a value of the inputs was masked.
pub fn has_masked(key_inputs: &KeyInputs) -> bool {
    key_inputs.parts.iter().any(|part| match &part.value {
        KeyValue::Text(text) | KeyValue::Variable { value: text, .. } => text.contains(MASK),
        KeyValue::Image { .. } | KeyValue::Step { .. } | KeyValue::Files(_) => false,
    })
}

/// Returns the display name of a file source: [build 3/4], `debian:bookworm`.
fn source(input: &KeyValue) -> String {
    match input {
        KeyValue::Step { label, .. } => format!("[{label}]"),
        KeyValue::Image { name, .. } => format!("`{name}`"),
        KeyValue::Text(_) | KeyValue::Variable { .. } | KeyValue::Files(_) => input.to_text(),
    }
}

fn changed(name: &str, old: &str, new: &str) -> String {
    format!("{} changed from {} to {}", quoted(name), value(old), value(new))
}

fn added(name: &str, new: &str) -> String {
    match new {
        "" => format!("{} was added without a value", quoted(name)),
        new => format!("{} was added: {}", quoted(name), value(new)),
    }
}

fn removed(name: &str) -> String {
    format!("{} was removed", quoted(name))
}

fn value(text: &str) -> String {
    match text.chars().count() {
        0 => "an empty value".into(),
        n if n > LONG => quoted(&text.chars().take(LONG - 1).chain(['…']).collect::<String>()),
        _ => quoted(text),
    }
}

/// Returns a text in backticks, with control characters escaped.
fn quoted(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().collect() } else { String::from(c) };
    format!("`{}`", text.chars().map(escape).collect::<String>())
}

/// Returns the differences between the inputs of two steps. `image` is the name of an input that is
/// an image.
fn inputs(image: &str, new: &[&KeyValue], old: &[&KeyValue]) -> Vec<String> {
    let mut reasons = Vec::new();
    for (i, input) in new.iter().copied().enumerate() {
        let before = old.get(i).copied();
        reasons.push(match (input, before) {
            _ if before == Some(input) => continue,
            // An image with another configuration but the same files is not a reason.
            (KeyValue::Image { result, .. }, Some(KeyValue::Image { result: was, .. })) if result == was => continue,
            (KeyValue::Image { name, manifest, .. }, Some(KeyValue::Image { name: was, manifest: from, .. }))
                if name == was =>
            {
                format!("image `{name}` changed: its manifest was {} and is {}", from.short(), manifest.short())
            }
            (KeyValue::Image { name, .. }, Some(KeyValue::Image { name: was, .. })) => {
                format!("{image} changed from `{was}` to `{name}`")
            }
            (KeyValue::Image { name, .. }, _) => format!("the {image} is now `{name}`"),
            // A step that only moved has the same result and is not a reason.
            (KeyValue::Step { result, .. }, Some(KeyValue::Step { result: was, .. })) if result == was => continue,
            (KeyValue::Step { label, .. }, _) => format!("input [{label}] changed"),
            (KeyValue::Text(_) | KeyValue::Variable { .. } | KeyValue::Files(_), _) => continue,
        });
    }
    if reasons.is_empty() && new.len() < old.len() {
        reasons.push(match old.len() - new.len() {
            1 => "an input was removed".into(),
            count => format!("{count} inputs were removed"),
        });
    }
    reasons
}

fn variables(new: &[&KeyValue], old: &[&KeyValue]) -> Vec<String> {
    fn pairs<'a>(list: &[&'a KeyValue]) -> Vec<(&'a str, &'a str)> {
        let pair = |part: &&'a KeyValue| match part {
            KeyValue::Variable { name, value } => Some((name.as_str(), value.as_str())),
            _ => None,
        };
        list.iter().filter_map(pair).collect()
    }
    let (new, old) = (pairs(new), pairs(old));
    let find = |list: &[(&str, &str)], name: &str| list.iter().find(|(k, _)| *k == name).map(|(_, v)| v.to_string());
    let mut reasons = Vec::new();
    for (name, now) in &new {
        match find(&old, name) {
            Some(before) if before != *now => reasons.push(changed(name, &before, now)),
            Some(_) => {}
            None => reasons.push(added(name, now)),
        }
    }
    for (name, _) in old.iter().filter(|(name, _)| find(&new, name).is_none()) {
        reasons.push(removed(name));
    }
    if reasons.is_empty() {
        reasons.push("the order of the variables changed".into());
    }
    reasons
}

fn file_changes(changes: &Changes) -> String {
    let Changes { changed, new, gone } = changes;
    let list = |names: &[String], change: &str| {
        let mut text = names.iter().take(MAX_NAMES).map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        if names.len() > MAX_NAMES {
            text.push_str(&format!(" and {}", counted((names.len() - MAX_NAMES) as u64, "other file")));
        }
        (!names.is_empty()).then(|| format!("{text} {change}"))
    };
    let be = |names: &[String]| if names.len() == 1 { "was" } else { "were" };
    let parts = [
        list(changed, "changed"),
        list(new, &format!("{} added", be(new))),
        list(gone, &format!("{} removed", be(gone))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use rbuild_store::{KeyPart, ResultId};

    use super::*;

    /// A line of an environment file is a secret that spans the name and the value of a variable.
    #[test]
    fn a_secret_that_spans_name_and_value_is_masked() {
        let secrets = |values: &[&str]| {
            let values: Vec<_> = values.iter().map(|value| ("e".into(), value.as_bytes().to_vec())).collect();
            SecretValues::of(&values)
        };
        let line = secrets(&["TOKEN=hunter2hunter2"]);
        let file = secrets(&["TOKEN\nTOKEN=hunter2-prod"]);
        let two = secrets(&["hunter2", "TOKEN=hunter2-prod"]);
        for (secrets, name, value, want) in [
            (&line, "TOKEN", "hunter2hunter2", "****=****"),
            (&line, "MY_TOKEN", "hunter2hunter2 and more", "****=****"),
            (&line, "A", "TOKEN=hunter2hunter2", "A=****"),
            (&line, "OTHER", "hunter2hunter2", "OTHER=hunter2hunter2"),
            (&file, "TOKEN", "hunter2-prod", "****=****"),
            (&two, "TOKEN", "hunter2-prod", "****=****"),
            (&two, "TOKEN", "hunter2-test", "TOKEN=****-test"),
        ] {
            let value = KeyValue::Variable { name: name.into(), value: value.into() };
            let inputs = KeyInputs { parts: vec![KeyPart { name: VARIABLE.into(), value }], ..KeyInputs::default() };
            assert_eq!(masked(inputs, secrets).parts[0].value.to_text(), want);
        }
        let of = |values: [&str; 2]| key_inputs(&values.map(|value| ("--exclude", value)));
        let spanning = secrets(&["first", "first second"]);
        assert_eq!(masked(of(["first", "second"]), &spanning), of(["****", "****"]));
        assert_eq!(masked(of(["first", "other"]), &spanning), of(["****", "other"]));
    }

    #[test]
    fn masked_values_are_recognized() {
        for (parts, masked) in [
            (&[("variable", "T=****")][..], true),
            (&[("command", "echo"), ("command", "curl -u joe:**** a")], true),
            (&[("variable", "T=a"), ("command", "echo")], false),
        ] {
            assert_eq!(has_masked(&key_inputs(parts)), masked, "{parts:?}");
        }
    }

    type Parts<'a> = &'a [(&'a str, &'a str)];

    /// Parts by their stored form. `@` and a letter stand for the digest of that letter.
    fn key_inputs(parts: Parts<'_>) -> KeyInputs {
        let digest = |text: &str| match text.split_once('@') {
            Some((before, letter)) => format!("{before}{}", ResultId::of(letter.as_bytes())),
            None => text.to_string(),
        };
        let parts = parts.iter().map(|(k, v)| (k.to_string(), digest(v)).into()).collect();
        KeyInputs { parts, ..KeyInputs::default() }
    }

    #[test]
    fn changed_files_of_a_stage_are_named() {
        let of = |digest: &str| key_inputs(&[(PARENT, "step b 1/2 @p"), (FROM, &format!("step a 3/5 @{digest}"))]);
        let changes = Changes { changed: vec!["out/app".into()], ..Changes::default() };
        assert_eq!(differences(&of("1"), &of("2"), Some(&changes)), ["in [a 3/5]: `out/app` changed"]);
        assert_eq!(differences(&of("1"), &of("2"), None), ["input [a 3/5] changed"]);
    }

    #[test]
    fn a_changed_input_is_a_reason_and_a_renumbered_one_is_not() {
        let of = |label: &str, digest: &str| key_inputs(&[(PARENT, &format!("step {label} @{digest}"))]);
        let reasons = |now: &KeyInputs, before: &KeyInputs| differences(now, before, None);
        assert_eq!(reasons(&of("a 3/5", "11"), &of("a 3/5", "22")), ["input [a 3/5] changed"]);
        let image = |name: &str, result: &str, manifest: &str| {
            let result = ResultId::of(result.as_bytes());
            key_inputs(&[(PARENT, &format!("image {name} {result} @{manifest}"))])
        };
        assert!(reasons(&image("debian", "r", "1"), &image("other", "r", "2")).is_empty());
        assert_eq!(
            reasons(&image("debian", "r", "1"), &image("other", "s", "2")),
            ["base image changed from `other` to `debian`"]
        );
        assert!(reasons(&of("a 4/6", "22"), &of("a 3/5", "22")).is_empty());
    }

    /// Each row has a title, the parts now, those before, and the files that changed, if they are
    /// known.
    type Row<'a> = (&'a str, Parts<'a>, Parts<'a>, Option<[usize; 3]>);

    const ROWS: [Row<'_>; 42] = [
        ("nothing", &[("user", "a"), ("script", "b")], &[("user", "a"), ("script", "b")], None),
        ("the command", &[("command", "sh"), ("command", "make all")], &[("command", "sh"), ("command", "make")], None),
        ("the script", &[("script", "a")], &[("script", "b")], None),
        ("a here-document", &[("here-document", "a")], &[], None),
        ("a variable with another value", &[("variable", "A=")], &[("variable", "A=1")], None),
        ("a new variable", &[("variable", "A=1"), ("variable", "B=2")], &[("variable", "A=1")], None),
        ("a variable that was removed", &[], &[("variable", "A=1")], None),
        ("the order", &[("variable", "B=1"), ("variable", "A=1")], &[("variable", "A=1"), ("variable", "B=1")], None),
        ("a part with another value", &[("network", "none")], &[("network", "host")], None),
        ("a part that occurs twice", &[("mount", "a"), ("mount", "b")], &[("mount", "a")], None),
        ("a new part", &[("ulimit", "nofile 1 2")], &[], None),
        ("a part without a value", &[("user", "")], &[], None),
        ("a part that was removed", &[], &[("--chown", ""), ("network", "host")], None),
        ("a new option without a value", &[("--exclude", "")], &[], None),
        ("an option without a value that was removed", &[], &[("--exclude", "")], None),
        ("a pattern with a blank", &[("--exclude", "a b")], &[("--exclude", "a"), ("--exclude", "b")], None),
        ("another pattern", &[("--exclude", "a")], &[("--exclude", "b")], None),
        ("a second empty option", &[("--exclude", ""), ("--exclude", "")], &[("--exclude", "")], None),
        ("an option before an empty one", &[("--exclude", ""), ("--exclude", "a")], &[("--exclude", "")], None),
        ("a long value", &[("user", LONG_NAME)], &[("user", "a")], None),
        ("unknown files", &[(FILES, "@a")], &[(FILES, "@b")], None),
        ("a changed file", &[(FILES, "@a")], &[(FILES, "@b")], Some([1, 0, 0])),
        ("a new file", &[(FILES, "@a")], &[(FILES, "@b")], Some([0, 1, 0])),
        ("a removed file", &[(FILES, "@a")], &[(FILES, "@b")], Some([0, 0, 1])),
        ("several files", &[(FILES, "@a")], &[(FILES, "@b")], Some([3, 2, 2])),
        ("many files", &[(FILES, "@a")], &[(FILES, "@b")], Some([5, 4, 5])),
        ("a file of a stage", &[(FROM, "step a 3/5 @a")], &[(FROM, "step a 3/5 @b")], Some([1, 0, 0])),
        ("unknown files of a stage", &[(FROM, "step a 3/5 @a")], &[(FROM, "step a 3/5 @b")], None),
        ("a stage that was removed", &[], &[(FROM, "step a 1/2 @a")], None),
        ("two stages that were removed", &[], &[(FROM, "step a 1/2 @a"), (FROM, "step b 1/2 @b")], None),
        ("another source image", &[(FROM, "image debian @a")], &[(FROM, "image other @b")], None),
        ("a variable with several lines", &[("variable", "A=1\n2")], &[("variable", "A=1")], None),
        ("a new variable without a value", &[("variable", "A=")], &[], None),
        ("a value that was removed", &[("user", "")], &[("user", "app")], None),
        ("a new pattern", &[("--exclude", "a")], &[], None),
        ("a pattern that was removed", &[], &[("--exclude", "a")], None),
        ("a parent with another number", &[(PARENT, "step a 4/6 @a")], &[(PARENT, "step a 3/5 @a")], None),
        ("another parent", &[(PARENT, "step a 4/6 @a")], &[(PARENT, "step b 3/5 @b")], None),
        ("a newer image", &[(PARENT, "image debian @a")], &[(PARENT, "image debian @b")], None),
        ("another image", &[(PARENT, "image debian @a")], &[(PARENT, "image other @b")], None),
        ("an image instead of a stage", &[(PARENT, "image debian @a")], &[(PARENT, "step a 1/2 @b")], None),
        (
            "several parts",
            &[(PARENT, "image debian @a"), ("command", "make all"), ("user", "app"), (FILES, "@a")],
            &[(PARENT, "image debian @b"), ("command", "make"), ("user", ""), (FILES, "@b")],
            Some([1, 0, 0]),
        ),
    ];

    const LONG_NAME: &str = "a-name-of-sixty-one-characters-is-longer-than-can-be-repeated";

    #[test]
    fn explanations_are_as_recorded() {
        let names = |count: usize| ["a", "b", "c", "d", "e"][..count].iter().map(|name| name.to_string()).collect();
        let changes =
            |[changed, new, gone]: [usize; 3]| Changes { changed: names(changed), new: names(new), gone: names(gone) };
        let line = |(title, now, before, files): &Row<'_>| {
            let found = differences(&key_inputs(now), &key_inputs(before), files.map(changes).as_ref());
            format!("{title}\n  {}\n", if found.is_empty() { "(no reason)".into() } else { found.join("\n  ") })
        };
        assert_eq!(LONG_NAME.len(), LONG + 1);
        let hit = format!("a cache hit\n  {}\n", hit(&CacheKey::of(b"key"), None));
        rbuild_testkit::assert_recorded!("explanations", ROWS.iter().map(line).collect::<String>() + &hit);
    }
}
