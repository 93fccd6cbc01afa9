//! Upload of blobs as objects: at once, or in parts if they are large.

use std::io::Read;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rbuild_image::{BlobDigest, Hasher};

use crate::error::{RegistryProblem, RemoteAction, Result};
use crate::http::HttpReply;
use crate::objects::calls::{ObjectCall, ObjectStore};
use crate::objects::fault::element;
use crate::objects::login::StoreLogin;
use crate::objects::part_policy::PartPolicy;
use crate::push::{OpenAt, ProblemResult};
use crate::reply_fault::ReplyFault;
use crate::session::{Body, BodyLength};
use crate::stall::read_document;

/// Maximum number of parts. Servers accept 10,000.
const PARTS: u64 = 9000;
/// The hash of a body that is not signed.
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
/// Maximum size of a reply about parts in bytes.
const MAX_REPLY: u64 = 1 << 20;

/// A blob that is uploaded.
pub struct UploadObject<'a> {
    /// Path of the object.
    pub key: &'a str,
    /// Digest of the blob, which S3 verifies, if it is known.
    pub digest: Option<BlobDigest>,
    /// Size in bytes.
    pub size: u64,
    /// Opens it.
    pub open: OpenAt<'a>,
}

/// A part of a blob.
struct UploadPart {
    number: u64,
    at: u64,
    size: u64,
}

impl ObjectStore {
    /// Uploads a blob. An object with that name is replaced.
    ///
    /// # Errors
    ///
    /// Fails if the server fails or refuses, or if the blob cannot be read.
    pub fn upload(&self, blob: &UploadObject<'_>) -> Result<()> {
        let PartPolicy { large, part } = self.shared.options.parts;
        let uploaded = if blob.size <= large { self.upload_whole(blob) } else { self.upload_in_parts(blob, part) };
        uploaded.map_err(|problem| self.fail(problem))
    }

    fn upload_in_parts(&self, blob: &UploadObject<'_>, part: u64) -> ProblemResult<()> {
        let size = part.max(blob.size.div_ceil(PARTS));
        let parts = (0..blob.size.div_ceil(size)).map(|number| {
            let at = number * size;
            UploadPart { number: number + 1, at, size: size.min(blob.size - at) }
        });
        match &self.found.login {
            StoreLogin::S3 { .. } => self.upload_parts(blob, parts),
            StoreLogin::Azure(_) => self.upload_blocks(blob, parts),
        }
    }

    fn upload_whole(&self, blob: &UploadObject<'_>) -> ProblemResult<()> {
        let headers: Vec<(&str, String)> = self.kind_of_object().into_iter().collect();
        let hash = blob.digest.map_or(UNSIGNED.to_string(), |digest| digest.hex().to_string());
        let open = || (blob.open)(0);
        let body = Body::Stream { open: &open, length: BodyLength::Known(blob.size) };
        let call = ObjectCall { headers: &headers, body, hash: &hash, ..ObjectCall::plain("PUT", blob.key) };
        let reply = self.call_in_container(&call)?;
        self.accepted(reply, &call).map(drop)
    }

    /// Returns a reply of a write unless it is unsuccessful.
    fn accepted(&self, reply: HttpReply, call: &ObjectCall<'_>) -> ProblemResult<HttpReply> {
        match reply.status() {
            200 | 201 => Ok(reply),
            _ => Err(self.refused(reply, call, RemoteAction::WriteObject)),
        }
    }

    /// Sends a part. Returns the reply.
    fn send_part(
        &self,
        blob: &UploadObject<'_>,
        part: &UploadPart,
        query: &[(&str, String)],
    ) -> ProblemResult<HttpReply> {
        let local = |source| RegistryProblem::Local { data: "the data to send", source };
        let open = || Ok(Box::new((blob.open)(part.at)?.take(part.size)) as Box<dyn Read + '_>);
        // The hash of a part is signed, and only that of the blob is known.
        let hash = match self.found.login {
            StoreLogin::S3 { .. } => {
                let mut hasher = Hasher::new();
                let mut reader = open().map_err(local)?;
                let mut chunk = vec![0; 256 << 10];
                loop {
                    match reader.read(&mut chunk).map_err(local)? {
                        0 => break,
                        n => hasher.update(&chunk[..n]),
                    }
                }
                hasher.finish::<BlobDigest>().hex().to_string()
            }
            StoreLogin::Azure(_) => String::new(),
        };
        let body = Body::Stream { open: &open, length: BodyLength::Known(part.size) };
        let call = ObjectCall { query, body, hash: &hash, ..ObjectCall::plain("PUT", blob.key) };
        let reply = self.call_in_container(&call)?;
        self.accepted(reply, &call)
    }

    /// Uploads the parts of an object of S3. They are removed if one fails.
    fn upload_parts(&self, blob: &UploadObject<'_>, parts: impl Iterator<Item = UploadPart>) -> ProblemResult<()> {
        let query = [("uploads", String::new())];
        let begin = ObjectCall { query: &query, body: Body::Bytes(&[]), ..ObjectCall::plain("POST", blob.key) };
        let beginning = self.shared.begin_upload()?;
        let reply = self.accepted(self.call(&begin)?, &begin)?;
        let id = self.text_of(reply).and_then(|text| element(&text, "UploadId"));
        let id = id.ok_or_else(|| ReplyFault::NoLocation.of(&self.host))?;
        let (store, key, query) = (self.clone(), blob.key.to_string(), [("uploadId", id.clone())]);
        let cancel = move || {
            let _ = store.send(&ObjectCall { query: &query, ..ObjectCall::plain("DELETE", &key) });
        };
        let open = beginning.opened(Box::new(cancel));
        self.send_parts(blob, parts, &id)?;
        open.complete();
        Ok(())
    }

    fn send_parts(
        &self,
        blob: &UploadObject<'_>,
        parts: impl Iterator<Item = UploadPart>,
        id: &str,
    ) -> ProblemResult<()> {
        let mut list = String::from("<CompleteMultipartUpload>");
        for part in parts {
            let query = [("partNumber", part.number.to_string()), ("uploadId", id.to_string())];
            let reply = self.send_part(blob, &part, &query)?;
            let etag = reply.header("etag").unwrap_or_default().replace('&', "&amp;").replace('<', "&lt;");
            list += &format!("<Part><PartNumber>{}</PartNumber><ETag>{etag}</ETag></Part>", part.number);
        }
        list += "</CompleteMultipartUpload>";
        let query = [("uploadId", id.to_string())];
        let hash = BlobDigest::of(list.as_bytes()).hex().to_string();
        let body = Body::Bytes(list.as_bytes());
        let call = ObjectCall { query: &query, body, hash: &hash, ..ObjectCall::plain("POST", blob.key) };
        let reply = self.accepted(self.call(&call)?, &call)?;
        // The status is sent before the parts are joined.
        let text = self.text_of(reply).unwrap_or_default();
        match element(&text, "Message").filter(|_| text.contains("<Error>")) {
            Some(message) => {
                let request = "the end of an upload".to_string();
                Err(RegistryProblem::Status { host: self.host.clone(), request, status: 200, message })
            }
            None => Ok(()),
        }
    }

    /// Uploads the blocks of an object of Azure. Without a list of blocks, they expire.
    fn upload_blocks(&self, blob: &UploadObject<'_>, parts: impl Iterator<Item = UploadPart>) -> ProblemResult<()> {
        let mut list = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
        for part in parts {
            let id = BASE64_STANDARD.encode(format!("{:08}", part.number));
            list += &format!("<Latest>{id}</Latest>");
            self.send_part(blob, &part, &[("comp", "block".to_string()), ("blockid", id)])?;
        }
        list += "</BlockList>";
        let query = [("comp", "blocklist".to_string())];
        let body = Body::Bytes(list.as_bytes());
        let call = ObjectCall { query: &query, body, ..ObjectCall::plain("PUT", blob.key) };
        let reply = self.call(&call)?;
        self.accepted(reply, &call).map(drop)
    }

    fn text_of(&self, reply: HttpReply) -> Option<String> {
        let policy = self.shared.http.retry_policy();
        let bytes = read_document(reply.response.into_body().into_reader(), MAX_REPLY, policy).ok()?;
        String::from_utf8(bytes).ok()
    }
}
