//! Error documents of object stores.

use crate::http::{Http, HttpReply};
use crate::stall::read_document;

/// Maximum size of an error document in bytes.
const MAX_ERROR: u64 = 64 << 10;
/// Maximum length of a message in characters.
const MAX_MESSAGE: usize = 200;

/// An unsuccessful reply.
pub(crate) struct ObjectFault {
    pub status: u16,
    /// Code of the service, such as `NoSuchBucket`; empty if there is none.
    pub code: String,
    /// Message and code, without secrets.
    pub message: String,
}

impl ObjectFault {
    /// Reads the error document of a reply.
    pub fn of(reply: HttpReply, http: &Http) -> ObjectFault {
        let status = reply.status();
        let header = reply.header("x-ms-error-code").map(str::to_string);
        let region = reply.header("x-amz-bucket-region").map(str::to_string);
        let body = read_document(reply.response.into_body().into_reader(), MAX_ERROR, http.retry_policy());
        // An error document that cannot be read is as good as none.
        let text = String::from_utf8_lossy(&body.unwrap_or_default()).into_owned();
        let code = header.or_else(|| element(&text, "Code")).unwrap_or_default();
        let words = element(&text, "Message").unwrap_or_default();
        let region =
            region.filter(|_| matches!(status, 301 | 307 | 400)).map(|region| format!("the bucket is in {region}"));
        let first = words.lines().next().unwrap_or_default().trim().to_string();
        let parts = [first, region.unwrap_or_default()];
        let words = parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("; ");
        let message = match (words.as_str(), code.as_str()) {
            (words, "") => words.to_string(),
            ("", code) => code.to_string(),
            (words, code) => format!("{words} ({code})"),
        };
        let message = http.sent.hidden_in(&message).chars().take(MAX_MESSAGE).collect();
        ObjectFault { status, code, message }
    }

    /// Returns true if the bucket or the container does not exist.
    pub fn lacks_bucket(&self) -> bool {
        matches!(self.code.as_str(), "NoSuchBucket" | "ContainerNotFound" | "InvalidBucketName")
    }

    /// Returns true if an object was changed or exists, although a write requires otherwise.
    pub fn is_conflict(&self) -> bool {
        match self.status {
            412 => true,
            409 => matches!(
                self.code.as_str(),
                "ConditionalRequestConflict" | "BlobAlreadyExists" | "OperationAborted" | "ConditionNotMet"
            ),
            _ => false,
        }
    }
}

/// Returns the text of the first element with that name in a small XML document without nesting of
/// equal names.
pub(crate) fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (found, _) = rest.split_once(&format!("</{name}>"))?;
    let plain = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&#34;", "\""), ("&amp;", "&")];
    Some(plain.iter().fold(found.trim().to_string(), |text, (from, to)| text.replace(from, to)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn elements_are_found_in_error_documents() {
        let text =
            "<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code><Message>a &lt;b&gt; &amp;amp;</Message></Error>";
        assert_eq!(element(text, "Code").as_deref(), Some("NoSuchKey"));
        assert_eq!(element(text, "Message").as_deref(), Some("a <b> &amp;"));
        assert_eq!(element(text, "Region"), None);
        assert_eq!(element("<Code>open", "Code"), None);
    }

    #[test]
    fn conflicts_have_several_forms() {
        let fault = |status, code: &str| ObjectFault { status, code: code.into(), message: String::new() };
        for (status, code, want) in [
            (412, "", true),
            (409, "ConditionalRequestConflict", true),
            (409, "BlobAlreadyExists", true),
            (409, "ContainerBeingDeleted", false),
            (400, "ConditionNotMet", false),
        ] {
            assert_eq!(fault(status, code).is_conflict(), want, "{status} {code}");
        }
        assert!(fault(404, "ContainerNotFound").lacks_bucket() && !fault(404, "NoSuchKey").lacks_bucket());
    }

    proptest! {
        #[test]
        fn any_document_is_read(text in ".*", name in "[A-Za-z]{1,8}") {
            element(&text, &name);
        }
    }
}
