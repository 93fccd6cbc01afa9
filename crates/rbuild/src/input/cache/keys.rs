//! The keys of signed caches.

use std::path::Path;

use rbuild_linux::quoted;
use rbuild_transport::RecordKeys;

use crate::exit::Failure;
use crate::ui::hints::ValueRemedy;

/// Words in the text of a private key.
const PRIVATE_KEY: &str = "PRIVATE KEY";
/// Maximum length of a component of a path in bytes on Linux.
const MAX_COMPONENT: usize = 255;

/// Returns true if a value contains the text of a private key.
pub fn is_private_key(value: &str) -> bool {
    value.contains(PRIVATE_KEY)
}

/// Returns true if a value is the text of a key, as it is or encoded, and not the name of a file.
pub fn is_key_text(value: &str) -> bool {
    let is_too_long = || value.split('/').any(|component| component.len() > MAX_COMPONENT);
    is_private_key(value) || value.contains('\n') || is_too_long()
}

/// Returns the keys whose signatures are valid: those in files or lines of OpenSSH that `;`
/// separates. `bad` returns the error for a problem.
///
/// # Errors
///
/// Fails if a key cannot be read or used.
pub fn trusted_keys(given: &str, bad: impl Fn(String) -> Failure) -> Result<RecordKeys, Failure> {
    if is_private_key(given) {
        return Err(key_in_place_of_file(bad));
    }
    let bad = |problem: String| bad(problem).help(ValueRemedy::PublicKeyForm);
    let mut keys = RecordKeys::default();
    for part in given.split(';').map(str::trim) {
        let path = Path::new(part);
        let (name, text) = if part.starts_with("ssh-") {
            ("the key".into(), part.to_string())
        } else {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|e| bad(format!("{}: {}", quoted(path), rbuild_remedy::sentence(&e))))?;
            (quoted(path).to_string(), text)
        };
        keys = keys.trusting(&text).map_err(|e| bad(format!("{name}: {e}")))?;
    }
    Ok(keys)
}

/// Adds the private key that signs records. Only a process that no command is started from may have
/// it. `bad` returns the error for a problem.
///
/// # Errors
///
/// Fails if the key cannot be read or used.
pub fn signing_with(keys: RecordKeys, path: &Path, bad: impl Fn(String) -> Failure) -> Result<RecordKeys, Failure> {
    if path.to_str().is_some_and(is_key_text) {
        return Err(key_in_place_of_file(bad));
    }
    let bad = |problem: String| bad(problem).help(ValueRemedy::CreateSigningKey);
    let text = std::fs::read(path)
        .map_err(|e| bad(format!("cannot read the key {}: {}", quoted(path), rbuild_remedy::sentence(&e))))?;
    keys.signing_with(&text).map_err(|e| bad(format!("{}: {e}", quoted(path))))
}

/// Returns the error for a key that must not be shown.
fn key_in_place_of_file(bad: impl Fn(String) -> Failure) -> Failure {
    bad("it takes the name of a file, not a key".into()).help(ValueRemedy::KeyInFile)
}
