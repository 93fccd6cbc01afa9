//! Standard input.

use std::io::{self, IsTerminal, Stdin};

use crate::exit::Failure;
use crate::ui::hints::InputRemedy;

/// The meaning of standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdinUse {
    Dockerfile,
    /// An archive of the context, or a Dockerfile without a context.
    Context,
    /// An archive of images or files.
    Archive,
}

/// Returns standard input, which is not a terminal.
///
/// # Errors
///
/// Fails if standard input is a terminal.
pub fn piped(meaning: StdinUse) -> Result<Stdin, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() { Err(is_terminal(meaning)) } else { Ok(stdin) }
}

fn is_terminal(meaning: StdinUse) -> Failure {
    let remedy = match meaning {
        StdinUse::Dockerfile => InputRemedy::PipeDockerfile,
        StdinUse::Context => InputRemedy::PipeContext,
        StdinUse::Archive => InputRemedy::PipeArchive,
    };
    Failure::usage("standard input is a terminal").help(remedy)
}

/// Converts an error of reading standard input.
pub fn failed(e: io::Error) -> Failure {
    Failure::caused("cannot read standard input", &e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_as_recorded() {
        let terminals =
            [StdinUse::Dockerfile, StdinUse::Context, StdinUse::Archive].map(|meaning| is_terminal(meaning).text());
        let unread = failed(io::Error::from_raw_os_error(5)).text();
        rbuild_testkit::assert_recorded!("stdin", terminals.concat() + &unread);
    }
}
