//! Catalog of the lint rules.

use crate::ast::Word;
use crate::diagnostic::{Help, Span};

/// A lint rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Name in `# check=skip=NAME`.
    pub name: &'static str,
    /// Recommended practice or detected problem, as a sentence.
    pub description: &'static str,
    /// Disabled unless the settings enable it by name or enable all experimental rules.
    pub experimental: bool,
    /// Applies only to stages that are built, and not to those that the target does not need.
    pub built_stages: bool,
}

/// A violation of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LintWarning {
    /// The violated rule.
    pub rule: &'static Rule,
    /// Range in the Dockerfile.
    pub span: Span,
    /// Description of the violation, without a full stop.
    pub message: String,
    /// Help, if there is any.
    pub help: Option<Help>,
}

macro_rules! rules {
    ($($id:ident $name:literal $description:literal $experimental:literal $built_stages:literal;)*) => {
        $(#[doc = $description] pub static $id: Rule = Rule {
            name: $name,
            description: $description,
            experimental: $experimental,
            built_stages: $built_stages,
        };)*
        /// All rules, ordered by name.
        pub static RULES: &[&Rule] = &[$(&$id),*];
    };
}

rules! {
    CONSISTENT_INSTRUCTION_CASING "ConsistentInstructionCasing" "All instructions of a file should use the same case." false false;
    COPY_IGNORED_FILE "CopyIgnoredFile" "A source of COPY or ADD is excluded by the ignore file." false true;
    DUPLICATE_STAGE_NAME "DuplicateStageName" "Stage names should be unique." false false;
    EXPOSE_INVALID_FORMAT "ExposeInvalidFormat" "EXPOSE takes container ports without addresses or host ports." false true;
    EXPOSE_PROTO_CASING "ExposeProtoCasing" "The protocol in EXPOSE should be in lower case." false true;
    FROM_AS_CASING "FromAsCasing" "FROM and AS should use the same case." false false;
    FROM_PLATFORM_FLAG_CONST_DISALLOWED "FromPlatformFlagConstDisallowed" "FROM --platform should not be a constant." false false;
    INVALID_BASE_IMAGE_PLATFORM "InvalidBaseImagePlatform" "The platform of the base image differs from the target platform." false true;
    INVALID_DEFAULT_ARG_IN_FROM "InvalidDefaultArgInFrom" "The default values of global ARGs should form a valid base image name." false false;
    INVALID_DEFINITION_DESCRIPTION "InvalidDefinitionDescription" "A comment above a stage or an ARG should describe it." true false;
    JSON_ARGS_RECOMMENDED "JSONArgsRecommended" "CMD and ENTRYPOINT should use the JSON form, so that they receive signals." false true;
    LEGACY_KEY_VALUE_FORMAT "LegacyKeyValueFormat" "ENV and LABEL should use the form name=value." false true;
    MAINTAINER_DEPRECATED "MaintainerDeprecated" "MAINTAINER is deprecated; use a label instead." false false;
    MULTIPLE_INSTRUCTIONS_DISALLOWED "MultipleInstructionsDisallowed" "Only the last CMD, ENTRYPOINT and HEALTHCHECK of a stage has an effect." false true;
    NO_EMPTY_CONTINUATION "NoEmptyContinuation" "Continued instructions should not contain empty lines." false false;
    REDUNDANT_TARGET_PLATFORM "RedundantTargetPlatform" "FROM --platform=$TARGETPLATFORM is redundant: it is the default." false false;
    RESERVED_STAGE_NAME "ReservedStageName" "`scratch` and `context` are reserved and cannot be stage names." false false;
    SECRETS_USED_IN_ARG_OR_ENV "SecretsUsedInArgOrEnv" "Secrets should not be passed in ARG or ENV: the image stores their values." false true;
    STAGE_NAME_CASING "StageNameCasing" "Stage names should be in lower case." false false;
    UNDEFINED_ARG_IN_FROM "UndefinedArgInFrom" "FROM uses an ARG that is not declared before it." false false;
    UNDEFINED_VAR "UndefinedVar" "Variables should be declared before use." false true;
    WORKDIR_RELATIVE_PATH "WorkdirRelativePath" "A relative WORKDIR depends on the base image." false true;
}

pub(super) fn warn(found: &mut Vec<LintWarning>, rule: &'static Rule, word: &Word, message: impl Into<String>) {
    found.push(LintWarning { rule, span: word.span, message: message.into(), help: None });
}

/// Appends a warning with help.
pub(super) fn warn_with_help(
    found: &mut Vec<LintWarning>,
    rule: &'static Rule,
    word: &Word,
    message: impl Into<String>,
    help: impl Into<Help>,
) {
    found.push(LintWarning { rule, span: word.span, message: message.into(), help: Some(help.into()) });
}
