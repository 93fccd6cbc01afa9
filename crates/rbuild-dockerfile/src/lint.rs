//! Things in a Dockerfile that are allowed and likely not meant. Rules are data; each has a page in docs/rules/.

mod rules;
mod variables;

use crate::ast::{Dockerfile, Word};
use crate::diagnostic::Span;

/// One rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    pub name: &'static str,
    /// What it is about, in a sentence.
    pub description: &'static str,
    /// Only where it is asked for by name.
    pub experimental: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub rule: &'static Rule,
    pub span: Span,
    pub message: String,
}

macro_rules! rules {
    ($($id:ident $name:literal $description:literal $experimental:literal;)*) => {
        $(pub static $id: Rule = Rule { name: $name, description: $description, experimental: $experimental };)*
        /// All rules, in the order of their names.
        pub static RULES: &[&Rule] = &[$(&$id),*];
    };
}

rules! {
    CONSISTENT_INSTRUCTION_CASING "ConsistentInstructionCasing" "All instructions of a file should be written in the same case." false;
    COPY_IGNORED_FILE "CopyIgnoredFile" "A source of COPY or ADD is left out by the ignore file." false;
    DUPLICATE_STAGE_NAME "DuplicateStageName" "Stage names should be unique." false;
    EXPOSE_INVALID_FORMAT "ExposeInvalidFormat" "EXPOSE takes container ports, without addresses and host ports." false;
    EXPOSE_PROTO_CASING "ExposeProtoCasing" "The protocol in EXPOSE should be in lower case." false;
    FROM_AS_CASING "FromAsCasing" "FROM and AS should be written in the same case." false;
    FROM_PLATFORM_FLAG_CONST_DISALLOWED "FromPlatformFlagConstDisallowed" "FROM --platform should not be a constant." false;
    INVALID_BASE_IMAGE_PLATFORM "InvalidBaseImagePlatform" "The base image is for another platform than the build." false;
    INVALID_DEFAULT_ARG_IN_FROM "InvalidDefaultArgInFrom" "The default values of global ARGs should give a valid base image." false;
    INVALID_DEFINITION_DESCRIPTION "InvalidDefinitionDescription" "A comment above a stage or an ARG should describe it." true;
    JSON_ARGS_RECOMMENDED "JSONArgsRecommended" "CMD and ENTRYPOINT in JSON form receive signals." false;
    LEGACY_KEY_VALUE_FORMAT "LegacyKeyValueFormat" "ENV and LABEL should be written with an equals sign." false;
    MAINTAINER_DEPRECATED "MaintainerDeprecated" "MAINTAINER is deprecated; a label says the same." false;
    MULTIPLE_INSTRUCTIONS_DISALLOWED "MultipleInstructionsDisallowed" "Of several CMD, ENTRYPOINT or HEALTHCHECK in a stage only the last counts." false;
    NO_EMPTY_CONTINUATION "NoEmptyContinuation" "An empty line inside a continued instruction." false;
    REDUNDANT_TARGET_PLATFORM "RedundantTargetPlatform" "FROM --platform=$TARGETPLATFORM is what happens anyway." false;
    RESERVED_STAGE_NAME "ReservedStageName" "`scratch` and `context` cannot be used as names of stages." false;
    SECRETS_USED_IN_ARG_OR_ENV "SecretsUsedInArgOrEnv" "ARG and ENV end up in the image; secrets should not." false;
    STAGE_NAME_CASING "StageNameCasing" "Stage names should be in lower case." false;
    UNDEFINED_ARG_IN_FROM "UndefinedArgInFrom" "FROM uses an ARG that is not declared before it." false;
    UNDEFINED_VAR "UndefinedVar" "A variable is used that nothing declares." false;
    WORKDIR_RELATIVE_PATH "WorkdirRelativePath" "A relative WORKDIR depends on the base image." false;
}

/// What the rules need to know from outside.
pub struct Surroundings<'a> {
    /// The environment of a base image by its name; `None` if it is not known.
    pub base_env: &'a dyn Fn(&str) -> Option<Vec<String>>,
    /// The platform of a base image by its name, if it is not the build's.
    pub foreign_base: &'a dyn Fn(&str) -> Option<String>,
    /// Whether a path of the context is left out.
    pub ignored: &'a dyn Fn(&str) -> bool,
    /// Variables that global scope always has.
    pub automatic: &'a [(String, String)],
}

/// What a `check` directive says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    pub skip: Vec<String>,
    pub skip_all: bool,
    pub experimental: Vec<String>,
    pub experimental_all: bool,
    /// Warnings fail the build.
    pub error: bool,
}

impl Settings {
    /// Reads `skip=A,B|all;error=true|false;experimental=A,B|all`.
    pub fn parse(text: &str) -> Result<Settings, String> {
        let mut settings = Settings::default();
        for part in text.split(';') {
            let (key, value) = part.trim().split_once('=').ok_or(format!("`{part}` is not of the form key=value"))?;
            let names = || value.split(',').map(|n| n.trim().to_string()).filter(|n| n != "all").collect();
            let all = value.split(',').any(|n| n.trim() == "all");
            match key.trim() {
                "skip" => (settings.skip, settings.skip_all) = (names(), all),
                "experimental" => (settings.experimental, settings.experimental_all) = (names(), all),
                "error" => {
                    settings.error = match value.trim() {
                        "true" => true,
                        "false" => false,
                        other => return Err(format!("error is true or false, not `{other}`")),
                    }
                }
                other => return Err(format!("`{other}` is none of skip, error and experimental")),
            }
        }
        Ok(settings)
    }

    fn wants(&self, rule: &Rule) -> bool {
        let named = |list: &[String]| list.iter().any(|n| n.eq_ignore_ascii_case(rule.name));
        if rule.experimental {
            return self.experimental_all || named(&self.experimental);
        }
        !self.skip_all && !named(&self.skip)
    }
}

/// Checks all stages. `settings` are those of the command line, or of the file where there are none.
pub fn check(file: &Dockerfile, around: &Surroundings<'_>, settings: &Settings) -> Vec<Warning> {
    let mut found = Vec::new();
    rules::check(file, around, &mut found);
    variables::check(file, around, &mut found);
    let exceptions = exceptions(file);
    found.retain(|w| settings.wants(w.rule) && !excepted(&exceptions, w));
    found.sort_by_key(|w| (w.span.start, w.rule.name));
    found.dedup();
    found
}

/// The settings of the file's `# check=` directive.
pub fn settings(file: &Dockerfile) -> Result<Settings, (Span, String)> {
    match file.directives.iter().find(|d| d.name == "check") {
        Some(d) => Settings::parse(&d.value.text).map_err(|e| (d.value.span, e)),
        None => Ok(Settings::default()),
    }
}

/// Comments `# check=skip=…` directly above instructions speak for those alone: (where from, where to, settings).
fn exceptions(file: &Dockerfile) -> Vec<(usize, usize, Settings)> {
    let instructions = file.global_args.iter().chain(file.stages.iter().flat_map(|s| &s.instructions));
    let stages = file.stages.iter().map(|s| (s.span, &s.comments));
    let mut found: Vec<(usize, usize, Settings)> = instructions
        .map(|i| (i.span, &i.comments))
        .chain(stages)
        .flat_map(|(span, comments)| comments.iter().map(move |c| (span, c)))
        .filter_map(|(span, c)| Some((span.start, span.end, Settings::parse(c.text.strip_prefix("check=")?).ok()?)))
        .collect();
    found.sort_by_key(|(start, ..)| *start);
    found
}

fn excepted(exceptions: &[(usize, usize, Settings)], warning: &Warning) -> bool {
    let at = warning.span.start;
    let before = exceptions.partition_point(|(start, ..)| *start <= at);
    exceptions[..before].last().is_some_and(|(_, end, settings)| at <= *end && !settings.wants(warning.rule))
}

pub(crate) fn warn(found: &mut Vec<Warning>, rule: &'static Rule, word: &Word, message: impl Into<String>) {
    found.push(Warning { rule, span: word.span, message: message.into() });
}

#[cfg(test)]
mod tests;
