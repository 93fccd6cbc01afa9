//! Standard input.

use std::io::{self, IsTerminal, Stdin};

use crate::exit::Failure;

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
    let hint = match meaning {
        StdinUse::Dockerfile => "pipe the Dockerfile in: … | rbuild build -",
        StdinUse::Context => "pipe the context in: tar -c . | rbuild build -",
        StdinUse::Archive => "pass a file, or pipe an archive in",
    };
    Failure::usage("standard input is a terminal").help(hint)
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
