//! Durability of documents.

/// The events that a document survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process that wrote it.
    Crash,
    /// A power failure, too.
    PowerFailure,
}
