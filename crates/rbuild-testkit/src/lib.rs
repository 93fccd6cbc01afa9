//! The common parts of tests: a store with a build context, a tiny image, and requirements for
//! end-to-end tests; temporary directories; tables of error messages for the tests of libraries.
//!
//! The tiny image needs nothing of the machine but the compiler that built the tests: its one
//! program is compiled when the first test requires it. Tests of real distributions use the base
//! images of `scripts/test`.

mod archive;
mod lab;
mod messages;
mod requirement;
mod scratch;
mod tiny;

// Used by `assert_recorded!`.
#[doc(hidden)]
pub use insta;

pub use archive::{contents, listing, unzipped};
pub use lab::{Lab, Ran, base, exists, is_bare, rbuild_path};
pub use messages::{Variants, message_row, no_remedy};
pub use requirement::{Requirement, skip};
pub use scratch::Scratch;
pub use tiny::tiny_image;
