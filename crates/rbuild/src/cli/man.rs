//! Manual pages, made from the help pages.

use clap::Command;
use clap_mangen::Man;

use crate::cli::clap_command::{pages, written};

/// A manual page: the name of its file, and its content in roff.
pub struct ManPage {
    pub file: String,
    pub text: Vec<u8>,
}

/// Returns the page of a verb, or of the program for `None`; `None` if there is no such verb.
pub fn page(verb: Option<&str>) -> Option<ManPage> {
    let pages = pages();
    match verb {
        Some(verb) => pages.find_subcommand(verb).filter(|verb| !verb.is_hide_set()).map(of_verb),
        None => Some(of_program(pages)),
    }
}

/// Returns all pages.
pub fn all() -> Vec<ManPage> {
    let pages = pages();
    let verbs: Vec<ManPage> = pages.get_subcommands().filter(|verb| !verb.is_hide_set()).map(of_verb).collect();
    std::iter::once(of_program(pages)).chain(verbs).collect()
}

fn of_verb(verb: &Command) -> ManPage {
    let name = format!("rbuild-{}", written(verb.get_name()).replace(' ', "-"));
    render(verb.clone().display_name(&name).version(env!("CARGO_PKG_VERSION")), &name)
}

fn of_program(program: Command) -> ManPage {
    render(program.display_name("rbuild"), "rbuild")
}

fn render(command: Command, name: &str) -> ManPage {
    let page = Man::new(command)
        .title(name.to_uppercase())
        .source(concat!("rbuild ", env!("CARGO_PKG_VERSION")))
        .manual("rbuild manual");
    let mut text = Vec::new();
    // A vector accepts all that is written.
    let _ = page.render(&mut text);
    ManPage { file: format!("{name}.1"), text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page() {
        let all = all();
        let text = |file: &str| {
            let page = all.iter().find(|page| page.file == file).unwrap_or_else(|| panic!("{file} is missing"));
            String::from_utf8(page.text.clone()).unwrap()
        };
        assert!(text("rbuild.1").contains(".SH SYNOPSIS") && text("rbuild.1").contains("rbuild\\-build(1)"));
        let build = text("rbuild-build.1");
        for part in [".TH RBUILD-BUILD 1", "\\-\\-build\\-arg", ".SH CACHE", "Examples:"] {
            assert!(build.contains(part), "{part}: {build}");
        }
        assert!(text("rbuild-ps.1").contains("List containers"));
        assert!(page(Some("builder-prune")).is_none() && page(Some("nosuch")).is_none());
    }
}
