//! An upload of a blob that is in progress.

use std::sync::Arc;

use crate::error::RegistryProblem;
use crate::open_uploads::{CancelUpload, OpenUpload, UploadRequest};
use crate::session::{ApiRequest, Body, EndpointSession, Repetition};

/// An open upload of a registry, which is canceled when it is dropped.
pub(crate) struct BlobUpload {
    session: Arc<EndpointSession>,
    /// URL at which it continues.
    location: String,
    open: OpenUpload,
}

impl BlobUpload {
    /// Returns the upload that a request opened at a URL.
    pub(crate) fn new(session: &Arc<EndpointSession>, location: String, beginning: UploadRequest) -> BlobUpload {
        let open = beginning.opened(cancel(session, &location));
        BlobUpload { session: session.clone(), location, open }
    }

    /// Returns the URL at which it continues.
    pub(crate) fn location(&self) -> &str {
        &self.location
    }

    /// Makes a request that sends data to the URL. The upload is not canceled meanwhile, and
    /// continues at the URL that the request returns.
    pub(crate) fn send(
        &mut self,
        request: impl FnOnce(&str) -> Result<String, RegistryProblem>,
    ) -> Result<(), RegistryProblem> {
        self.open.set_busy(true);
        match request(&self.location) {
            Ok(next) => {
                self.move_to(next);
                Ok(())
            }
            Err(problem) => {
                self.open.set_busy(false);
                Err(problem)
            }
        }
    }

    /// Records that it continues at another URL.
    pub(crate) fn move_to(&mut self, location: String) {
        self.open.moved(cancel(&self.session, &location));
        self.location = location;
    }

    /// Records that the registry has the blob.
    pub(crate) fn complete(self) {
        self.open.complete();
    }
}

/// Returns the request that cancels an upload.
fn cancel(session: &Arc<EndpointSession>, location: &str) -> CancelUpload {
    let (session, location) = (session.clone(), location.to_string());
    Box::new(move || {
        // If this fails, the registry removes the upload after some time.
        let _ = session.call_at_end(&ApiRequest {
            method: "DELETE",
            to: &location,
            headers: &[],
            body: Body::None,
            scopes: &[session.scope("pull,push")],
            repetition: Repetition::Single,
        });
    })
}
