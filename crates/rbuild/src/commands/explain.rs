//! The verb `explain`: prints the page of a lint rule.

use crate::args::ExplainArgs;
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

pub fn explain(args: ExplainArgs) -> Result<u8, Failure> {
    let Some(wanted) = args.rule else {
        terminal::out(&list());
        return Ok(code::OK);
    };
    if let Some((_, page)) = PAGES.iter().find(|(name, _)| name.eq_ignore_ascii_case(&wanted)) {
        terminal::out(page);
        return Ok(code::OK);
    }
    let close = rbuild_dockerfile::closest(&wanted, PAGES.iter().map(|(name, _)| *name));
    Err(Failure::usage(format!("rule `{wanted}` does not exist")).help(match close {
        Some(close) => hints::did_you_mean(close),
        None => VerbRemedy::ListRules.into(),
    }))
}

/// Returns the names of all rules, each with the first sentence of its page.
fn list() -> String {
    let summary = |page: &str| page.lines().nth(2).unwrap_or_default().to_string();
    PAGES.iter().map(|(name, page)| format!("{name:33}{}\n", summary(page))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_a_page() {
        let rules: Vec<&str> = rbuild_dockerfile::lint::RULES.iter().map(|rule| rule.name).collect();
        assert_eq!(rules.len(), PAGES.len());
        for rule in rules {
            assert!(PAGES.iter().any(|(name, page)| *name == rule && page.lines().count() > 5), "{rule}");
        }
    }
}
