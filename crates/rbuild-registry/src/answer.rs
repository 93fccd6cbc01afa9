//! Error answers of registries.

use serde::Deserialize;
use ureq::Body;

use crate::http::Http;
use crate::secret::Sent;
use crate::stall::read_document;

/// Maximum size of an error document in bytes.
const MAX_ERROR: u64 = 64 << 10;
/// Maximum length of a message in characters.
const MAX_MESSAGE: usize = 200;

#[derive(Deserialize)]
struct Errors {
    errors: Vec<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Reads the message of an error answer: code and text of the errors in a JSON document, or the
/// first line of any other document.
pub(crate) fn message(body: Body, http: &Http) -> String {
    // An error answer without a readable message is still reported.
    let bytes = read_document(body.into_reader(), MAX_ERROR, http.retry_policy()).unwrap_or_default();
    message_of(&bytes, &http.sent)
}

fn message_of(bytes: &[u8], sent: &Sent) -> String {
    let text = String::from_utf8_lossy(bytes);
    let message = match serde_json::from_slice::<Errors>(bytes) {
        Ok(Errors { errors }) => {
            let text = |e: &ApiError| match (e.code.as_str(), e.message.as_str()) {
                (code, "") => code.to_string(),
                ("", message) => message.to_string(),
                (code, message) => format!("{message} ({code})"),
            };
            errors.iter().map(text).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
        }
        // The first line of a proxy's page contains no useful text.
        Err(_) if text.trim_start().starts_with('<') => String::new(),
        Err(_) => text.lines().find(|line| !line.trim().is_empty()).unwrap_or("").trim().to_string(),
    };
    sent.hidden_in(&message).chars().take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_short_and_plain() {
        let json = br#"{"errors":[{"code":"DENIED","message":"no access","detail":{"x":1}},{"code":"OTHER"}]}"#;
        let message_of = |bytes: &[u8]| message_of(bytes, &Sent::default());
        assert_eq!(message_of(json), "no access (DENIED); OTHER");
        assert_eq!(message_of(b"\n too many\x1b[31m requests \nmore"), "too many[31m requests");
        assert_eq!(message_of(b"<html><body>x"), "");
        assert_eq!(message_of(&[b'x'; 900]).len(), MAX_MESSAGE);
    }
}
