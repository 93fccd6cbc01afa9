//! Settings of endpoints that have few values.

/// The check of a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum CertificateCheck {
    /// The certificate must be trusted, and name the host.
    Required,
    /// Any certificate is accepted.
    Skipped,
}

/// Use of servers without a trusted certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UntrustedServers {
    Refused,
    /// The user's settings allow them.
    Allowed,
}

/// The relation of an endpoint to the registry that an image's name contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointRole {
    /// The registry itself, or the location that the user's settings state for it.
    Registry,
    /// A mirror of another registry. Gets fewer retries, no pushes by `registries.conf`, and no
    /// login of that registry.
    Mirror,
}

/// Operations for which an endpoint is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndpointOperations {
    /// Resolution of tags.
    pub tags: bool,
    /// Requests of content by its digest.
    pub digests: bool,
    pub push: bool,
}

impl EndpointOperations {
    pub(crate) const ALL: EndpointOperations = EndpointOperations { tags: true, digests: true, push: true };
}
