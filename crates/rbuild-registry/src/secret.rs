//! Values that must not be displayed.

use std::fmt;
use std::sync::Mutex;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rbuild_linux::parallel::locked;

use crate::url;

/// A password or token. `Debug` hides it, and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Secret {
        Secret(value.into())
    }

    /// Returns the value, for a request or a credentials file.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns true for the empty text.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Minimum length in bytes of a masked secret. Shorter ones occur in ordinary words.
const SHORTEST: usize = 4;
const HIDDEN: &str = "***";

/// Secrets that were sent to servers. They are masked if a server repeats them in an answer.
#[derive(Default)]
pub(crate) struct Sent(Mutex<Vec<String>>);

impl Sent {
    /// Records a secret, both plain and encoded for URLs.
    pub(crate) fn note(&self, secret: &str) {
        let mut all = locked(&self.0);
        for form in [secret.to_string(), url::encode(secret)] {
            if form.len() >= SHORTEST && !all.contains(&form) {
                all.push(form);
            }
        }
        // Longer forms first: a shorter one may be part of a longer one.
        all.sort_by_key(|form| std::cmp::Reverse(form.len()));
    }

    /// Records the value of an `Authorization` header, and the password that it encodes.
    pub(crate) fn note_header(&self, value: &str) {
        let (scheme, secret) = value.split_once(' ').unwrap_or(("", value));
        self.note(secret);
        let decoded = scheme.eq_ignore_ascii_case("basic").then(|| BASE64_STANDARD.decode(secret).ok()).flatten();
        let Some(pair) = decoded.and_then(|bytes| String::from_utf8(bytes).ok()) else { return };
        pair.split_once(':').iter().for_each(|(_, password)| self.note(password));
    }

    /// Returns a text of a server without control characters and without secrets.
    pub(crate) fn hidden_in(&self, text: &str) -> String {
        let plain: String = text.chars().filter(|c| !c.is_control()).collect();
        locked(&self.0).iter().fold(plain, |text, secret| text.replace(secret, HIDDEN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_in_all_their_forms() {
        let sent = Sent::default();
        sent.note_header("Basic am9lOnN3b3JkIWZpc2g=");
        sent.note("abc");
        assert_eq!(sent.hidden_in("Authorization: Basic am9lOnN3b3JkIWZpc2g="), "Authorization: Basic ***");
        assert_eq!(sent.hidden_in("sword!fish, sword%21fish, sword\0!fish, joe:sword!fish"), "***, ***, ***, joe:***");
        assert_eq!(sent.hidden_in("abc"), "abc", "too short to be distinguished from words");
    }
}
