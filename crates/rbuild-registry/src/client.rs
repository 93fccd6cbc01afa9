//! Clients and repositories.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use rbuild_image::{BlobDigest, Reference};
use rbuild_linux::parallel::locked;
use rbuild_remedy::sentence;

use crate::config_error::{ConfigError, EndpointUse};
use crate::endpoint::{Endpoint, endpoints};
use crate::environment::ProcessEnvironment;
use crate::error::{RegistryError, RegistryProblem, RemoteRepository, Result};
use crate::http::Http;
use crate::retry::Notice;
use crate::retry_policy::RetryMode;
use crate::session::EndpointSession;
use crate::shared::{ClientState, Options};

/// Usual number of blobs that are transferred at once.
const CONNECTIONS: usize = 6;

/// A client: settings, connections, logins.
pub struct Client {
    shared: Arc<ClientState>,
}

impl Client {
    /// Returns a client that reports retries and warnings to `notify`.
    pub fn new(
        environment: ProcessEnvironment,
        options: Options,
        notify: impl Fn(Notice) + Send + Sync + 'static,
    ) -> Client {
        let http = Http::new(environment.clone(), options.retry_policy);
        let (notify, blob_connections, shown) = (Box::new(notify), Arc::default(), Mutex::default());
        let shared = ClientState { environment, options, http, blob_connections, notify, shown };
        Client { shared: Arc::new(shared) }
    }

    /// Returns the repository of a name. Connects to nothing.
    ///
    /// # Errors
    ///
    /// Fails if a settings file is invalid or forbids the registry.
    pub fn repository(&self, name: &Reference) -> Result<Repository> {
        let found = endpoints(&self.shared.environment, name, self.shared.options.own())?;
        let place = RemoteRepository { registry: name.registry().to_string(), repository: name.path().to_string() };
        Ok(Repository::new(place, found, &self.shared))
    }

    pub(crate) fn shared(&self) -> &Arc<ClientState> {
        &self.shared
    }
}

/// A repository and its endpoints.
pub struct Repository {
    pub(crate) place: RemoteRepository,
    pub(crate) sessions: Vec<Arc<EndpointSession>>,
    /// Faults of the sources of blobs, by the blob and [`EndpointSession::source`] or a URL.
    faults: Mutex<HashMap<(BlobDigest, String), SourceFaults>>,
}

/// Faults of a source of a blob: wrong digests of an endpoint, any failures of a URL.
#[derive(Default)]
struct SourceFaults {
    times: usize,
    /// The last known problem that has not been reported.
    problem: Option<RegistryProblem>,
}

impl Repository {
    pub(crate) fn new(place: RemoteRepository, endpoints: Vec<Endpoint>, shared: &Arc<ClientState>) -> Repository {
        let sessions = endpoints.into_iter().map(|e| Arc::new(EndpointSession::new(e, shared.clone())));
        Repository { place, sessions: sessions.collect(), faults: Mutex::default() }
    }

    /// Returns the same repository, with the same logins, whose requests are repeated in a mode.
    pub fn in_mode(&self, mode: RetryMode) -> Repository {
        let sessions = self.sessions.iter().map(|session| Arc::new(session.in_mode(mode)));
        Repository { place: self.place.clone(), sessions: sessions.collect(), faults: Mutex::default() }
    }

    /// Records a fault of a source of a blob, with the problem if it is known. Returns the number
    /// of faults.
    pub(crate) fn note_fault(&self, digest: &BlobDigest, source: &str, problem: Option<RegistryProblem>) -> usize {
        let mut faults = locked(&self.faults);
        let known = faults.entry((*digest, source.to_string())).or_default();
        known.times += 1;
        known.problem = problem.or(known.problem.take());
        known.times
    }

    /// Returns the number of faults of a source of a blob.
    pub(crate) fn faults(&self, digest: &BlobDigest, source: &str) -> usize {
        locked(&self.faults).get(&(*digest, source.to_string())).map_or(0, |known| known.times)
    }

    /// Returns the last problem of a source of a blob, once.
    pub(crate) fn take_problem(&self, digest: &BlobDigest, source: &str) -> Option<RegistryProblem> {
        locked(&self.faults).get_mut(&(*digest, source.to_string()))?.problem.take()
    }

    /// Returns the maximum number of blobs that are transferred at once: the smallest that is set
    /// for a server of the repository.
    pub fn connections(&self) -> usize {
        let set = self.sessions.iter().filter_map(|session| session.endpoint.connections);
        set.min().unwrap_or(CONNECTIONS)
    }

    /// Returns the repository's registry and path.
    pub fn place(&self) -> &RemoteRepository {
        &self.place
    }

    pub(crate) fn fail(&self, problem: RegistryProblem) -> RegistryError {
        RegistryError::new(self.place.clone(), problem)
    }

    /// Tries the endpoints that `fits` accepts in turn, until one answers. If all of them fail,
    /// returns the problem of the endpoint where the request got furthest.
    pub(crate) fn first<'s, T>(
        &'s self,
        fits: impl Fn(&Endpoint) -> bool,
        ask: impl Fn(&'s EndpointSession) -> std::result::Result<T, RegistryProblem>,
    ) -> Result<T> {
        let mut furthest: Option<RegistryProblem> = None;
        for session in self.sessions.iter().map(|session| &**session).filter(|session| fits(&session.endpoint)) {
            match ask(session) {
                Ok(answer) => return Ok(answer),
                Err(problem) => {
                    let (host, reason) = (&session.endpoint.host, sentence(&problem));
                    tracing::debug!(target: "registry", host, reason, "endpoint failed");
                    if furthest.as_ref().is_none_or(|old| old.reach() <= problem.reach()) {
                        furthest = Some(problem);
                    }
                }
            }
        }
        let none = || ConfigError::NoEndpoint(EndpointUse::Pulls).into();
        Err(self.fail(furthest.unwrap_or_else(none)))
    }
}
