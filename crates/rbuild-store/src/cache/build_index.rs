//! Parts of cache keys and the steps of earlier builds, used to explain why a step ran again.

use std::collections::{HashMap, HashSet, VecDeque};

use rbuild_image::{ManifestDigest, Sha256Id};
use serde::{Deserialize, Serialize};

use crate::cache::records::Records;
use crate::error::Result;
use crate::ids::{BuildIndexName, CacheKey, FilesHash, ResultId};
use crate::modes;

/// The named parts that a step's key was computed from, in order. Names may repeat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInputs {
    /// Version of the form of keys; 0 in documents of earlier versions.
    #[serde(default)]
    pub version: u32,
    /// The parts.
    pub parts: Vec<KeyPart>,
    /// True if long and confidential values are replaced, because other machines read them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_reduced: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Name of the part for the file system that a step modifies.
pub const PARENT: &str = "the file system below";
/// Name of the parts for stages and images that a step reads.
pub const FROM: &str = "what it reads";
/// Name of the parts for content of contexts.
pub const FILES: &str = "files of the context";

/// Name of the parts for environment variables.
pub const VARIABLE: &str = "variable";

/// A named part of a key. Documents of the store contain name and value as text; the name
/// determines the kind of the value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(String, String)", into = "(String, String)")]
pub struct KeyPart {
    /// Name of the part; shown to users.
    pub name: String,
    /// Value of the part.
    pub value: KeyValue,
}

/// The value of a part of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyValue {
    /// A property of the step itself.
    Text(String),
    /// An environment variable.
    Variable {
        /// Name of the image.
        name: String,
        /// Value.
        value: String,
    },
    /// An image that the step reads.
    Image {
        /// Name as written in the Dockerfile.
        name: String,
        /// Digest of the manifest.
        manifest: ManifestDigest,
        /// The digest that represents the image in the key. Documents of earlier versions do not
        /// contain it; it is then that of the manifest.
        result: ResultId,
    },
    /// Another step, whose result the step reads.
    Step {
        /// Label such as `builder 3/7`.
        label: String,
        /// Result of the step.
        result: ResultId,
    },
    /// Hash of selected files of a context.
    Files(FilesHash),
}

impl KeyValue {
    /// Returns the value as text, for documents of the store and for explanations: the inverse of
    /// [`KeyValue::from_text`].
    pub fn to_text(&self) -> String {
        match self {
            KeyValue::Text(text) => text.clone(),
            KeyValue::Variable { name, value } => format!("{name}={value}"),
            KeyValue::Image { name, manifest, result } if result.bytes() == manifest.bytes() => {
                format!("image {name} {manifest}")
            }
            KeyValue::Image { name, manifest, result } => format!("image {name} {result} {manifest}"),
            KeyValue::Step { label, result } => format!("step {label} {result}"),
            KeyValue::Files(hash) => hash.hex(),
        }
    }

    /// Returns the value of a part from a document. The name of the part determines its form; a
    /// text in another form is taken as it is.
    fn from_text(name: &str, text: String) -> KeyValue {
        let value = match name {
            PARENT | FROM => input_from_text(&text),
            FILES => id_from_text(&text).map(KeyValue::Files),
            VARIABLE => variable_from_text(&text),
            _ => None,
        };
        value.unwrap_or(KeyValue::Text(text))
    }
}

impl From<KeyPart> for (String, String) {
    fn from(part: KeyPart) -> (String, String) {
        (part.name, part.value.to_text())
    }
}

impl From<(String, String)> for KeyPart {
    fn from(part: (String, String)) -> KeyPart {
        let (name, text) = part;
        let value = KeyValue::from_text(&name, text);
        KeyPart { name, value }
    }
}

/// Parses a variable. Its name cannot contain `=`.
fn variable_from_text(text: &str) -> Option<KeyValue> {
    let (name, value) = text.split_once('=')?;
    Some(KeyValue::Variable { name: name.into(), value: value.into() })
}

/// Parses an input: its kind, its name, and one or two digests.
fn input_from_text(text: &str) -> Option<KeyValue> {
    let (kind, rest) = text.split_once(' ')?;
    let (name, digest) = rest.rsplit_once(' ')?;
    match kind {
        "image" => {
            let manifest: ManifestDigest = id_from_text(digest)?;
            let pair = name.rsplit_once(' ').and_then(|(name, result)| Some((name, id_from_text(result)?)));
            let (name, result) = pair.unwrap_or((name, ResultId::from_bytes(*manifest.bytes())));
            Some(KeyValue::Image { name: name.into(), manifest, result })
        }
        "step" => Some(KeyValue::Step { label: name.into(), result: id_from_text(digest)? }),
        _ => None,
    }
}

/// Parses an identifier. In documents of earlier versions, all identifiers have the prefix.
fn id_from_text<T: Sha256Id>(text: &str) -> Option<T> {
    T::from_hex(text.strip_prefix("sha256:").unwrap_or(text))
}

/// The steps last built from one Dockerfile in one directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildIndex {
    /// The steps of the last build, followed by those of stages it did not build.
    pub steps: Vec<IndexedStep>,
}

/// A step of an earlier build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedStep {
    /// Name of its stage.
    pub stage: String,
    /// Number within the stage, from 1.
    pub number: usize,
    /// The instruction.
    pub text: String,
    /// Cache key of the step.
    pub key: CacheKey,
}

/// Maximum number of steps kept for stages that the last build did not contain.
const KEPT: usize = 5000;

impl Records<'_> {
    /// Returns the parts of a record's key, if known.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read.
    pub fn key_inputs(&self, key: &CacheKey) -> Result<Option<KeyInputs>> {
        self.store.read_if_whole(&format!("accounts/{}.json", key.hex()))
    }

    /// Stores the parts of a record's key.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn put_key_inputs(&self, key: &CacheKey, key_inputs: &KeyInputs) -> Result<()> {
        self.store.root.create_dir_all("accounts", modes::dir(), None, |_| ())?;
        self.store.write("accounts", &format!("{}.json", key.hex()), key_inputs)
    }

    /// Returns the build index with that name, empty if there is none.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read.
    pub fn build_index(&self, name: &BuildIndexName) -> Result<BuildIndex> {
        Ok(self.store.read_if_whole(&format!("ledgers/{}.json", name.hex()))?.unwrap_or_default())
    }

    /// Stores a build index under that name.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn put_build_index(&self, name: &BuildIndexName, build_index: &BuildIndex) -> Result<()> {
        self.store.root.create_dir_all("ledgers", modes::dir(), None, |_| ())?;
        self.store.write("ledgers", &format!("{}.json", name.hex()), build_index)
    }
}

impl BuildIndex {
    /// Returns for each step (stage, number, text) the index of the best match in the build index:
    /// the same text in the same stage, or else the same number and instruction in the same stage,
    /// or else the same text in another stage. Each step of the build index is matched at most
    /// once.
    pub fn nearest(&self, steps: &[(&str, usize, &str)]) -> Vec<Option<usize>> {
        let mut found = vec![None; steps.len()];
        let mut taken = vec![false; self.steps.len()];
        type Name = fn(&str, usize, &str) -> String;
        let ways: [Name; 3] = [
            |stage, _, text| format!("{stage}\0{text}"),
            |stage, number, text| format!("{stage}\0{number}\0{}", text.split_whitespace().next().unwrap_or_default()),
            |_, _, text| text.to_string(),
        ];
        for name in ways {
            let mut old: HashMap<String, VecDeque<usize>> = HashMap::new();
            for (i, step) in self.steps.iter().enumerate().filter(|(i, _)| !taken[*i]) {
                old.entry(name(&step.stage, step.number, &step.text)).or_default().push_back(i);
            }
            for (place, (stage, number, text)) in found.iter_mut().zip(steps).filter(|(place, _)| place.is_none()) {
                *place = old.get_mut(&name(stage, *number, text)).and_then(VecDeque::pop_front);
                place.iter().for_each(|i| taken[*i] = true);
            }
        }
        found
    }

    /// Adds the steps of a build, replacing the earlier steps of the same stages.
    pub fn update(&mut self, steps: Vec<IndexedStep>) {
        let stages: HashSet<&str> = steps.iter().map(|step| step.stage.as_str()).collect();
        let others = self.steps.iter().filter(|old| !stages.contains(old.stage.as_str()));
        let kept: Vec<IndexedStep> = others.take(KEPT).cloned().collect();
        self.steps = steps.into_iter().chain(kept).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row has the name and the stored text of a part, and its value.
    #[test]
    fn documents_contain_text_and_programs_use_enums() {
        let hex = ManifestDigest::of(b"x").hex();
        let (manifest, result) = (ManifestDigest::of(b"x"), ResultId::of(b"x"));
        let counts = ResultId::of(b"y");
        let image = |result| KeyValue::Image { name: "debian:12".into(), manifest, result };
        let table = [
            (FROM, format!("image debian:12 sha256:{hex}"), image(ResultId::from_bytes(*manifest.bytes()))),
            (FROM, format!("image debian:12 {counts} sha256:{hex}"), image(counts)),
            (PARENT, format!("step a 3/7 {hex}"), KeyValue::Step { label: "a 3/7".into(), result }),
            (FILES, hex.clone(), KeyValue::Files(FilesHash::from_bytes(*result.bytes()))),
            ("command", format!("step a 3/7 {hex}"), KeyValue::Text(format!("step a 3/7 {hex}"))),
            (FROM, "image x".into(), KeyValue::Text("image x".into())),
            (FROM, format!("disk x {hex}"), KeyValue::Text(format!("disk x {hex}"))),
            (FILES, "00".into(), KeyValue::Text("00".into())),
            (VARIABLE, "A=b=c".into(), KeyValue::Variable { name: "A".into(), value: "b=c".into() }),
            (VARIABLE, "A".into(), KeyValue::Text("A".into())),
        ];
        for (name, text, value) in table {
            let document = serde_json::to_string(&[[name, &text]]).unwrap();
            let read: Vec<KeyPart> = serde_json::from_str(&document).unwrap();
            assert_eq!(read, [KeyPart { name: name.into(), value }], "{text}");
            assert_eq!(serde_json::to_string(&read).unwrap(), document);
        }
    }

    fn step(stage: &str, number: usize, text: &str) -> IndexedStep {
        IndexedStep { stage: stage.into(), number, text: text.into(), key: CacheKey::of(text.as_bytes()) }
    }

    #[test]
    fn the_nearest_step_is_the_same_text_then_the_same_place() {
        let mut build_index = BuildIndex::default();
        build_index.update(vec![step("a", 2, "COPY . ."), step("a", 3, "RUN make"), step("b", 2, "RUN echo 1")]);
        // One step was inserted, and one was edited.
        let now = [("a", 2, "RUN id"), ("a", 3, "COPY . ."), ("a", 4, "RUN make"), ("b", 2, "RUN echo 2")];
        assert_eq!(build_index.nearest(&now), [None, Some(0), Some(1), Some(2)]);
        // A stage was renamed.
        assert_eq!(build_index.nearest(&[("c", 2, "RUN make")]), [Some(1)]);
        // Another instruction has other inputs.
        assert_eq!(build_index.nearest(&[("b", 2, "COPY x /")]), [None]);
        // Identical steps count separately.
        build_index.update(vec![step("a", 2, "RUN x"), step("a", 3, "RUN x")]);
        assert_eq!(
            build_index.nearest(&[("a", 2, "RUN x"), ("a", 3, "RUN x"), ("a", 4, "RUN x")]),
            [Some(0), Some(1), None]
        );
        // Stages that were not built are kept.
        assert!(build_index.steps.iter().any(|s| s.stage == "b"));
        assert_eq!(build_index.steps.len(), 3);
    }
}
