//! A Dockerfile's bytes as a typed syntax tree with a span for every word.
//!
//! Pure text: no I/O, no clock, no environment. Nothing here knows what an image is. Errors are [`Diagnostic`]s
//! with byte spans into the input; drawing them is the command's affair.

pub mod ast;
mod diagnostic;
pub mod expand;
mod flags;
mod lines;
pub mod lint;
mod mount;
mod node;
mod parse;
mod suggest;
mod text;
mod words;

pub use ast::Dockerfile;
pub use diagnostic::{Diagnostic, Span};
pub use mount::{Mount, MountKind, Sharing, parse_mount, parse_size};
pub use parse::{parse, parse_trigger};
pub use suggest::closest;
pub use text::readable;

/// Proxy variables: every RUN gets them from the build arguments without a declaration.
pub const PROXY_ARGS: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];
