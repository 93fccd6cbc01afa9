//! The instructions, with their forms and flags.

use crate::flags::Arity;

/// The keywords of instructions.
pub const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Returns true for the keyword of an instruction.
pub fn is_instruction(keyword: &str) -> bool {
    KEYWORDS.iter().any(|known| keyword.eq_ignore_ascii_case(known))
}

/// Returns the form of an instruction that requires arguments.
pub fn form_of(name: &str) -> Option<&'static str> {
    Some(match name {
        "USER" => "USER NAME[:GROUP]",
        "WORKDIR" => "WORKDIR PATH",
        "VOLUME" => "VOLUME PATH…",
        "STOPSIGNAL" => "STOPSIGNAL SIGNAL",
        "EXPOSE" => "EXPOSE PORT…",
        "ARG" => "ARG NAME[=DEFAULT]",
        "ENV" => "ENV NAME=VALUE…",
        "LABEL" => "LABEL NAME=VALUE…",
        "COPY" => "COPY SOURCE… DESTINATION",
        "ADD" => "ADD SOURCE… DESTINATION",
        "HEALTHCHECK" => "HEALTHCHECK CMD COMMAND, or HEALTHCHECK NONE",
        "ONBUILD" => "ONBUILD INSTRUCTION",
        "SHELL" => "SHELL [\"/bin/sh\", \"-c\"]",
        _ => return None,
    })
}

/// Returns the flags of an instruction other than FROM.
pub fn flags_of(name: &str) -> &'static [(&'static str, Arity)] {
    use Arity::{Bool, Many, One};
    match name {
        "RUN" => &[("mount", Many), ("network", One), ("security", One), ("device", Many)],
        "COPY" => {
            &[("from", One), ("chown", One), ("chmod", One), ("link", Bool), ("parents", Bool), ("exclude", Many)]
        }
        "ADD" => &[
            ("chown", One),
            ("chmod", One),
            ("link", Bool),
            ("exclude", Many),
            ("checksum", One),
            ("keep-git-dir", Bool),
            ("unpack", Bool),
        ],
        "HEALTHCHECK" => {
            &[("interval", One), ("timeout", One), ("start-period", One), ("start-interval", One), ("retries", One)]
        }
        _ => &[],
    }
}
