//! The question before a removal: if rbuild was called as docker, or before images are lost.

use std::io::{BufRead, IsTerminal, Read};

use crate::args::Verb;
use crate::exit::Failure;
use crate::input::stdin;
use crate::ui::hints::VerbRemedy;
use crate::ui::terminal;

/// Maximum length of an answer in bytes.
const MAX_ANSWER: u64 = 1 << 10;

/// Asks before a verb removes images, containers or cache entries, unless it has `--force`. As in
/// docker, the answer is a line of standard input, even without a terminal.
///
/// # Errors
///
/// Fails if the answer is not yes.
pub fn removal(verb: &Verb) -> Result<(), Failure> {
    let Some(removed) = removed(verb) else { return Ok(()) };
    terminal::err(&format!("This removes {removed}.\nAre you sure you want to continue? [y/N] "));
    let mut answer = String::new();
    std::io::stdin().lock().take(MAX_ANSWER).read_line(&mut answer).map_err(stdin::failed)?;
    // A terminal shows the end of the line that was typed.
    if !(std::io::stdin().is_terminal() && answer.ends_with('\n')) {
        terminal::err("\n");
    }
    if answer.trim().eq_ignore_ascii_case("y") {
        return Ok(());
    }
    Err(Failure::new("the removal was canceled").help(VerbRemedy::AnswerYes))
}

/// Returns true if a verb removes images that cannot be made again by a build, and a user can be
/// asked. Under its own name, rbuild asks only then: commands without a terminal are scripts.
pub fn loses_images(verb: &Verb) -> bool {
    let loses = match verb {
        Verb::ImagePrune(args) => args.all,
        Verb::Prune(args) => args.system && args.all,
        _ => false,
    };
    loses && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Names what a verb without `--force` removes; `None` if it needs no confirmation.
fn removed(verb: &Verb) -> Option<&'static str> {
    let (forced, removed) = match verb {
        Verb::Prune(args) if args.system && args.all => (
            args.force,
            "all containers that are not running, all images that no container uses, and the whole build cache",
        ),
        Verb::Prune(args) if args.system => {
            (args.force, "all containers that are not running, dangling images, and unused build cache")
        }
        Verb::Prune(args) if args.all => (args.force, "dangling images and the whole build cache"),
        Verb::Prune(args) => (args.force, "dangling images and unused build cache"),
        Verb::BuilderPrune(args) if args.all => (args.force, "the whole build cache"),
        Verb::BuilderPrune(args) => (args.force, "unused build cache"),
        Verb::ImagePrune(args) if args.all => (args.force, "all images that no container uses"),
        Verb::ImagePrune(args) => (args.force, "all dangling images"),
        Verb::ContainerPrune(args) => (args.force, "all containers that are not running"),
        _ => return None,
    };
    (!forced).then_some(removed)
}
