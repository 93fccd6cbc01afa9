//! The question before a removal: if rbuild was called as docker, or before images are lost.

use std::io::{BufRead, IsTerminal, Read};

use crate::args::Verb;
use crate::commands::removing::{ImageRemoval, removed_images};
use crate::exit::Failure;
use crate::input::settings::Settings;
use crate::input::stdin;
use crate::ui::hints::VerbRemedy;
use crate::ui::terminal;

/// Maximum length of an answer in bytes.
const MAX_ANSWER: u64 = 1 << 10;

/// Maximum number of images that a question lists.
const MAX_LISTED: usize = 20;

/// Asks before a verb removes images, containers or cache entries, unless it has `--force`. As in
/// docker, the answer is a line of standard input, even without a terminal. Images that cannot be
/// made again by a build are listed.
///
/// # Errors
///
/// Fails if the answer is not yes, or the images cannot be listed.
pub fn removal(verb: &Verb, settings: &Settings) -> Result<(), Failure> {
    let Some(removed) = removed(verb) else { return Ok(()) };
    let images = match lost_images(verb) {
        Some(removal) => listed(&removed_images(settings, &removal)?),
        None => String::new(),
    };
    terminal::err(&format!("This removes {removed}.\n{images}Are you sure you want to continue? [y/N] "));
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
    let has_user = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    has_user && lost_images(verb).is_some()
}

/// Returns the removal of images that a build cannot make again; `None` for other verbs.
fn lost_images(verb: &Verb) -> Option<ImageRemoval<'_>> {
    match verb {
        Verb::ImagePrune(args) if args.all => Some(ImageRemoval::Images(args)),
        Verb::SystemPrune(args) if args.all => Some(ImageRemoval::ContainersAndImages(args)),
        _ => None,
    }
}

/// Formats the list of images that are removed.
fn listed(images: &[String]) -> String {
    let shown = images.iter().take(MAX_LISTED).map(|image| format!("  {image}\n"));
    let more = images.len().saturating_sub(MAX_LISTED);
    let more = if more > 0 { format!("  and {more} more\n") } else { String::new() };
    let heading = if images.is_empty() { "" } else { "Images:\n" };
    format!("{heading}{}{more}", shown.collect::<String>())
}

/// Names what a verb without `--force` removes; `None` if it needs no confirmation.
fn removed(verb: &Verb) -> Option<&'static str> {
    let (forced, removed) = match verb {
        Verb::SystemPrune(args) if args.all => (
            args.force,
            "all containers that are not running, all images that no container uses, and the whole build cache",
        ),
        Verb::SystemPrune(args) => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_of_images_are_cut() {
        let images = |count: usize| (0..count).map(|i| format!("a:{i}")).collect::<Vec<_>>();
        assert_eq!(listed(&[]), "");
        assert_eq!(listed(&images(2)), "Images:\n  a:0\n  a:1\n");
        assert!(listed(&images(22)).ends_with("  a:19\n  and 2 more\n"), "{}", listed(&images(22)));
    }
}
