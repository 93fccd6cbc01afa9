//! The rules, as data.

use crate::ast::Word;
use crate::diagnostic::Span;

/// A rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Name in `# check=skip=NAME`.
    pub name: &'static str,
    /// The practice that it asks for, as a sentence.
    pub description: &'static str,
    /// Off unless the settings name it or ask for all experimental rules.
    pub experimental: bool,
}

/// A breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The rule.
    pub rule: &'static Rule,
    /// Range in the Dockerfile.
    pub span: Span,
    /// The breach, as a sentence.
    pub message: String,
}

macro_rules! rules {
    ($($id:ident $name:literal $description:literal $experimental:literal;)*) => {
        $(#[doc = $description] pub static $id: Rule = Rule { name: $name, description: $description, experimental: $experimental };)*
        /// All rules, ordered by name.
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

pub(super) fn warn(found: &mut Vec<Warning>, rule: &'static Rule, word: &Word, message: impl Into<String>) {
    found.push(Warning { rule, span: word.span, message: message.into() });
}
