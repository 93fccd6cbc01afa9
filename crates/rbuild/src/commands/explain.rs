//! The verb `explain`: prints the page of a lint rule or of an error.

use std::io::Read;

use crate::args::ExplainArgs;
use crate::cli::error_pages;
use crate::exit::{Failure, code};
use crate::ui::hints::{self, VerbRemedy};
use crate::ui::terminal;

/// Includes the page of each rule.
macro_rules! pages {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../../../docs/rules/", $name, ".md")))),*]
    };
}

const PAGES: &[(&str, &str)] = pages! {
    "ConsistentInstructionCasing"
    "CopyIgnoredFile"
    "DuplicateStageName"
    "ExposeInvalidFormat"
    "ExposeProtoCasing"
    "FromAsCasing"
    "FromPlatformFlagConstDisallowed"
    "InvalidBaseImagePlatform"
    "InvalidDefaultArgInFrom"
    "InvalidDefinitionDescription"
    "JSONArgsRecommended"
    "LegacyKeyValueFormat"
    "MaintainerDeprecated"
    "MultipleInstructionsDisallowed"
    "NoEmptyContinuation"
    "RedundantTargetPlatform"
    "ReservedStageName"
    "SecretsUsedInArgOrEnv"
    "StageNameCasing"
    "UndefinedArgInFrom"
    "UndefinedVar"
    "WorkdirRelativePath"
};

/// Returns the names of all rules.
pub fn rules() -> impl Iterator<Item = &'static str> {
    PAGES.iter().map(|(name, _)| *name)
}

/// Maximum size of a log on standard input.
const MAX_LOG: u64 = 64 << 20;

/// Returns the names of all errors.
pub fn errors() -> impl Iterator<Item = &'static str> {
    error_pages::all().flat_map(|page| page.names())
}

pub fn explain(args: ExplainArgs) -> Result<u8, Failure> {
    let wanted = match &args.text[..] {
        [] => {
            terminal::out(&list());
            return Ok(code::OK);
        }
        [only] if only == "-" => log()?,
        words => words.join(" "),
    };
    let rule = PAGES.iter().find(|(name, _)| name.eq_ignore_ascii_case(&wanted)).map(|(_, page)| page.to_string());
    let page =
        rule.or_else(|| error_pages::named(&wanted).or_else(|| error_pages::about(&wanted)).map(|page| page.text()));
    match page {
        Some(page) => {
            terminal::out(&page);
            Ok(code::OK)
        }
        None => Err(unknown(&wanted)),
    }
}

/// Reads a log from standard input, and prints it, so that it is not lost.
fn log() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().take(MAX_LOG).read_to_end(&mut bytes);
    read.map_err(|e| Failure::caused("cannot read standard input", &e))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    terminal::err(&text);
    Ok(text)
}

fn unknown(wanted: &str) -> Failure {
    if wanted.contains(char::is_whitespace) {
        return Failure::usage("no explanation of this text").help(VerbRemedy::ListExplanations);
    }
    let names: Vec<&str> = rules().chain(errors()).collect();
    let failure = Failure::usage(format!("no rule or error is called `{wanted}`"));
    let begins = |name: &&&str| name.get(..wanted.len()).is_some_and(|start| start.eq_ignore_ascii_case(wanted));
    let beginning = match names.iter().filter(begins).collect::<Vec<_>>()[..] {
        [only] if wanted.len() >= 3 => Some(*only),
        _ => None,
    };
    failure.help(match beginning.or_else(|| rbuild_dockerfile::closest(wanted, names.iter().copied())) {
        Some(close) => hints::did_you_mean(close),
        None => VerbRemedy::ListExplanations.into(),
    })
}

/// Returns the names of all rules, each with the first sentence of its page, and those of all
/// errors, each with a message.
fn list() -> String {
    let summary = |page: &str| page.lines().nth(2).unwrap_or_default().to_string();
    let rules = PAGES.iter().map(|(name, page)| format!("{name:33}{}\n", summary(page)));
    let errors = error_pages::all().map(|page| {
        let name = page.names().next().unwrap_or_default();
        format!("{name:33}{}\n", page.summary())
    });
    format!("Rules of --check:\n{}\nErrors:\n{}", rules.collect::<String>(), errors.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_suggests_the_whole_name() {
        for (word, name) in [("Stagename", "StageNameCasing"), ("undefinedv", "UndefinedVar")] {
            assert_eq!(unknown(word).help.unwrap().to_string(), format!("did you mean `{name}`?"));
        }
    }

    #[test]
    fn every_rule_has_a_page() {
        let rules: Vec<&str> = rbuild_dockerfile::lint::RULES.iter().map(|rule| rule.name).collect();
        assert_eq!(rules.len(), PAGES.len());
        for rule in rules {
            assert!(PAGES.iter().any(|(name, page)| *name == rule && page.lines().count() > 5), "{rule}");
        }
    }
}
