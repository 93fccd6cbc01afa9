//! Messages of a fetcher about the layers that it downloads.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rbuild_image::BlobDigest;
use rbuild_linux::fd_passing::{receive_with_bytes, send_with_bytes};
use rbuild_remedy::{Remedy, ReportedError};
use rbuild_store::{StagingWatch, StoreError};
use rbuild_transport::{PendingPull, TransportError};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::exit::{Failure, reported};

/// Maximum size of a message in bytes.
const MAX_MESSAGE: usize = 64 << 10;
/// Maximum number of characters of a text in a message.
const MAX_TEXT: usize = 4 << 10;

/// The outcome of the first phase for one image.
#[derive(Serialize, Deserialize)]
pub enum FetcherAnswer {
    Stored,
    /// The manifest and the configuration.
    Documents {
        manifest: Bytes,
        config: Bytes,
    },
    Failed(ReportedError),
}

/// The answers of a fetcher, in the order of the requests; or the failure of all of them.
pub type FetcherAnswers = Result<Vec<FetcherAnswer>, Failure>;

impl FetcherAnswer {
    /// Returns the answer for an image whose layers are missing.
    pub fn documents(pull: &PendingPull) -> FetcherAnswer {
        let bytes = |bytes: &[u8]| Bytes(bytes.to_vec());
        FetcherAnswer::Documents { manifest: bytes(pull.manifest()), config: bytes(pull.config()) }
    }

    /// Returns the answer for an image that cannot be pulled.
    pub fn failed(e: &TransportError) -> FetcherAnswer {
        FetcherAnswer::Failed(reported(e, e.help()))
    }
}

/// Bytes of a document. They are transferred unchanged, because they determine the digest, and need
/// not be UTF-8.
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Bytes).map_err(serde::de::Error::custom)
    }
}

/// A message of a fetcher.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// An attempt to download a blob begins. The message carries the file that receives the blob.
    /// Images are identified by their positions.
    Begun(usize, BlobDigest),
    /// The file of a blob has grown to this number of bytes.
    Grown(usize, BlobDigest, u64),
    Verified(usize, BlobDigest),
    /// The store already contained the blob.
    Stored(BlobDigest),
    /// An image is in the store, or cannot be pulled.
    Ended(usize, Option<ReportedError>),
    /// A text for the user.
    Notice(String),
}

/// Orders the layers of those images for which `is_ordered` has true, at their positions.
pub fn order(socket: impl AsFd, is_ordered: impl Iterator<Item = bool>) -> std::io::Result<()> {
    let bytes: Vec<u8> = is_ordered.map(u8::from).collect();
    send_with_bytes(socket, &bytes, &[]).map_err(std::io::Error::from)
}

/// Receives the order; returns the positions of the images. Returns `None` if the sender is gone.
pub fn receive_order(socket: impl AsFd, images: usize) -> Option<Vec<usize>> {
    let mut bytes = vec![0; images];
    let (_, size) = receive_with_bytes(socket, &mut bytes).ok()?;
    Some((0..size).filter(|at| bytes[*at] != 0).collect())
}

/// The sending end.
pub struct Sender(pub OwnedFd);

impl Sender {
    /// Sends a message. Fails if the receiver is gone.
    pub fn send(&self, message: &Message, file: Option<&File>) -> Result<(), StoreError> {
        let text = serde_json::to_vec(message).map_err(|_| StoreError::Canceled)?;
        let files: Vec<_> = file.into_iter().map(File::as_fd).collect();
        send_with_bytes(&self.0, &text, &files).map_err(|_| StoreError::Canceled)
    }

    /// Sends the outcome of a pull.
    pub fn end(&self, at: usize, failure: Option<ReportedError>) {
        // A remedy that long would not be useful.
        let is_short = |remedy: &Remedy| serde_json::to_vec(remedy).is_ok_and(|text| text.len() <= MAX_TEXT);
        let failure = failure.map(|ReportedError { message, errno, remedy }| ReportedError {
            message: cut(message),
            errno,
            remedy: remedy.filter(is_short),
        });
        let _ = self.send(&Message::Ended(at, failure), None);
    }

    /// Sends a text for the user.
    pub fn notice(&self, text: impl Into<String>) {
        let _ = self.send(&Message::Notice(cut(text.into())), None);
    }
}

/// Truncates a text to the maximum length in a message.
fn cut(text: String) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// The sending end for messages about the blobs of one image.
pub struct ImageSender<'a> {
    pub sender: &'a Sender,
    /// Position of the image.
    pub at: usize,
}

impl StagingWatch for ImageSender<'_> {
    fn begun(&self, blob: &BlobDigest, file: &File) -> Result<(), StoreError> {
        self.sender.send(&Message::Begun(self.at, *blob), Some(file))
    }

    fn grown(&self, blob: &BlobDigest, size: u64) -> Result<(), StoreError> {
        self.sender.send(&Message::Grown(self.at, *blob, size), None)
    }

    fn verified(&self, blob: &BlobDigest) -> Result<(), StoreError> {
        self.sender.send(&Message::Verified(self.at, *blob), None)
    }

    fn stored(&self, blob: &BlobDigest) -> Result<(), StoreError> {
        self.sender.send(&Message::Stored(*blob), None)
    }
}

/// Receives the next message and the file that it carries. Returns `None` at the end.
pub fn receive(socket: impl AsFd, buffer: &mut Vec<u8>) -> Option<(Message, Option<File>)> {
    buffer.resize(MAX_MESSAGE, 0);
    let (files, size) = receive_with_bytes(socket, buffer).ok()?;
    let message = serde_json::from_slice(&buffer[..size]).ok()?;
    Some((message, files.into_iter().next().map(File::from)))
}

#[cfg(test)]
mod tests {
    use rbuild_linux::fd_passing::message_sockets;

    use super::*;

    #[test]
    fn documents_are_transferred_unchanged() {
        let bytes: Vec<u8> = (0..=255).collect();
        let text = serde_json::to_vec(&Bytes(bytes.clone())).unwrap();
        assert_eq!(serde_json::from_slice::<Bytes>(&text).unwrap().0, bytes);
    }

    #[test]
    fn an_order_names_some_of_the_images() {
        let (ours, theirs) = message_sockets().unwrap();
        order(&ours, [false, true, false, true].into_iter()).unwrap();
        assert_eq!(receive_order(&theirs, 4), Some(vec![1, 3]));
        drop(ours);
        assert_eq!(receive_order(&theirs, 4), None, "the end");
    }

    #[test]
    fn the_longest_texts_fit_into_a_message() {
        let (ours, theirs) = message_sockets().unwrap();
        let sender = Sender(ours);
        let mut buffer = Vec::new();
        // Each of these characters has six bytes in JSON.
        let long = "\u{1}".repeat(MAX_MESSAGE);
        let short = ReportedError { remedy: Some(Remedy::did_you_mean("a")), ..ReportedError::new("b") };
        let whole = ReportedError { remedy: Some(Remedy::did_you_mean(&long)), ..ReportedError::new(&long) };
        for (error, want) in [(short.clone(), short), (whole, ReportedError::new(&long[..MAX_TEXT]))] {
            sender.end(0, Some(error));
            let Some((Message::Ended(0, Some(found)), None)) = receive(&theirs, &mut buffer) else { panic!() };
            assert_eq!(found, want);
        }
        sender.notice(long);
        let Some((Message::Notice(text), None)) = receive(&theirs, &mut buffer) else { panic!() };
        assert_eq!(text.len(), MAX_TEXT);
        drop(sender);
        assert!(receive(&theirs, &mut buffer).is_none(), "the end");
    }
}
