//! JSON objects that keep the text of unknown members.

use std::fmt;

use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// The members of an object, in their order, with the text of their values.
#[derive(Default)]
pub(super) struct JsonMembers(Vec<(String, Box<RawValue>)>);

impl JsonMembers {
    /// Returns the value of a member; `None` if it is missing or of another type. Of several
    /// members with the same name, the last one applies.
    pub(super) fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.raw(name)?).ok()
    }

    fn raw(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.get())
    }

    /// Returns true if there is a member of that name that is not `null`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.raw(name).is_some_and(|value| value != "null")
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Sets a member; a new one becomes the last.
    pub(super) fn set(&mut self, name: &str, value: Box<RawValue>) {
        match self.0.iter_mut().rev().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_string(), value)),
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.0.retain(|(key, _)| key != name);
    }

    /// Returns the text of the object, with the indentation that Docker uses.
    pub(super) fn text(&self, depth: usize) -> String {
        let indent = "\t".repeat(depth);
        let member = |(name, value): &(String, Box<RawValue>)| {
            format!("\n{indent}\t{}: {}", Value::from(name.as_str()), value.get())
        };
        if self.0.is_empty() {
            "{}".into()
        } else {
            format!("{{{}\n{indent}}}", self.0.iter().map(member).collect::<Vec<_>>().join(","))
        }
    }

    /// Returns the object as the value of a member of another one.
    pub(super) fn value(&self, depth: usize) -> Result<Box<RawValue>, serde_json::Error> {
        RawValue::from_string(self.text(depth))
    }
}

impl<'de> Deserialize<'de> for JsonMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<JsonMembers, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = JsonMembers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonMembers, A::Error> {
                let mut all = Vec::new();
                while let Some(member) = map.next_entry()? {
                    all.push(member);
                }
                Ok(JsonMembers(all))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_values_are_preserved_literally() {
        let text = r#"{"n": 1e400, "big": 123456789012345678901234567890.10, "s": "\u00e9", "o": { "x" :1 }}"#;
        let mut all: JsonMembers = serde_json::from_str(text).unwrap();
        all.set("a\"b", RawValue::from_string("{}".into()).unwrap());
        all.remove("s");
        let want = "{\n\t\"n\": 1e400,\n\t\"big\": 123456789012345678901234567890.10,\n\t\"o\": { \"x\" :1 },\n\t\"a\\\"b\": {}\n}";
        assert_eq!(all.text(0), want);
        assert_eq!(JsonMembers::default().text(0), "{}");
        assert!(all.has("n") && !all.has("x"));
    }
}
