//! Parser for Dockerfiles: a typed syntax tree in which every word has its position.
//!
//! The parser is pure: it reads no files, no environment and no clock, and never panics. Errors are
//! [`Diagnostic`]s with byte ranges of the input; all of them are reported together.
//!
//! The language is defined by the [Dockerfile
//! reference](https://docs.docker.com/reference/dockerfile/), including here-documents, parser
//! directives and ONBUILD triggers. Variables are not expanded; see [`expand`]. [`lint`] finds
//! likely mistakes in valid files.
//!
//! ```
//! use rbuild_dockerfile::{ast::Op, parse};
//!
//! let file = parse(b"FROM alpine AS build\nRUN echo hello\n").unwrap();
//! assert_eq!(file.stages[0].from.image.text, "alpine");
//! assert!(matches!(file.stages[0].instructions[0].op, Op::Run(_)));
//!
//! let errors = parse(b"FROM alpine\nCOPPY a b\n").unwrap_err();
//! assert_eq!(errors[0].message, "unknown instruction `COPPY`");
//! ```
#![warn(missing_docs)]

pub mod ast;
mod boolean;
mod csv;
mod debug_tree;
mod device;
mod diagnostic;
mod duration;
pub mod expand;
mod flags;
mod lines;
pub mod lint;
mod mount;
mod parse;
mod pattern;
mod text;
mod variables;
mod words;

pub use ast::Dockerfile;
pub use boolean::parse_bool;
pub use csv::{CsvError, CsvField, csv_record};
pub use debug_tree::{DebugNode, debug_tree};
pub use diagnostic::{Diagnostic, Help, Span};
pub use duration::{BadDuration, parse_duration};
pub use mount::{Mount, MountKind, Sharing, check_mount, expand_mount, mount_from, parse_mount, parse_size};
pub use parse::{parse, parse_trigger};
pub use rbuild_remedy::closest;
pub use text::readable;
pub use variables::Vars;

/// Proxy variables. Build arguments with these names are passed to every RUN without an ARG.
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

/// Returns true if `os`, the operating system in an image configuration, is Windows.
pub fn is_windows(os: &str) -> bool {
    os == "windows"
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
