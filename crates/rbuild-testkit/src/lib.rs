//! The common part of end-to-end tests: a store with a build context, a tiny image, and
//! requirements.
//!
//! The tiny image needs nothing of the machine but the compiler that built the tests: its one
//! program is compiled when the first test requires it. Tests of real distributions use the base
//! images of `scripts/test`.

mod archive;
mod lab;
mod requirement;
mod tiny;

pub use archive::{contents, listing, unzipped};
pub use lab::{Lab, Ran, base, exists, is_bare, rbuild_path};
pub use requirement::{Requirement, skip};
pub use tiny::tiny_image;
