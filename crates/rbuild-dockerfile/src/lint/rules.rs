//! Rules about instructions and stages.

use std::collections::HashSet;

use rbuild_paths::is_pattern;

use crate::ast::{Command, Comment, Dockerfile, Healthcheck, Instruction, Op, Stage, Word};
use crate::lint::catalog::*;
use crate::lint::facts::Facts;
use crate::words;

/// Appends the violations of rules about instructions and stages.
pub fn check(file: &Dockerfile, facts: &Facts<'_>, found: &mut Vec<LintWarning>) {
    for span in &file.empty_continuations {
        let message = "empty line in a continued instruction; future versions will reject it".into();
        found.push(LintWarning { rule: &NO_EMPTY_CONTINUATION, span: *span, message, help: None });
    }
    casing(file, found);
    let mut names: HashSet<String> = HashSet::new();
    for stage in &file.stages {
        stage_line(stage, &mut names, found);
        for i in &stage.instructions {
            instruction(i, facts, found);
        }
        repeated(stage, found);
    }
    for i in &file.global_args {
        secrets(i, found);
    }
    descriptions(file, found);
}

fn casing(file: &Dockerfile, found: &mut Vec<LintWarning>) {
    let stages = file.stages.iter().map(|s| &s.keyword);
    let others = file.global_args.iter().chain(file.stages.iter().flat_map(|s| &s.instructions)).map(|i| &i.keyword);
    let mut keywords: Vec<&Word> = stages.chain(others).collect();
    keywords.sort_by_key(|w| w.span.start);
    let lower = |w: &&&Word| w.text.chars().all(|c| c.is_ascii_lowercase());
    let upper = |w: &&&Word| w.text.chars().all(|c| c.is_ascii_uppercase());
    let want_lower = keywords.iter().filter(lower).count() > keywords.iter().filter(upper).count();
    for word in keywords {
        let want = if want_lower { word.text.to_lowercase() } else { word.text.to_uppercase() };
        if word.text != want {
            let message = format!("`{}` should be `{want}`, to match the case of the other instructions", word.text);
            warn(found, &CONSISTENT_INSTRUCTION_CASING, word, message);
        }
    }
}

fn stage_line(stage: &Stage, names: &mut HashSet<String>, found: &mut Vec<LintWarning>) {
    if let Some(name) = &stage.from.name {
        let lower = name.text.to_lowercase();
        if lower != name.text {
            warn(found, &STAGE_NAME_CASING, name, format!("stage name `{}` should be `{lower}`", name.text));
        }
        if ["scratch", "context"].contains(&lower.as_str()) {
            warn(found, &RESERVED_STAGE_NAME, name, format!("stage name `{lower}` is reserved"));
        }
        if names.contains(&lower) {
            let message = format!("duplicate stage name `{lower}`; later uses of the name refer to the last one");
            warn(found, &DUPLICATE_STAGE_NAME, name, message);
        }
        names.insert(lower);
    }
    if let Some(word) = &stage.from.as_word {
        let upper = |t: &str| t.chars().all(|c| c.is_ascii_uppercase());
        if upper(&word.text) != upper(&stage.keyword.text) {
            let message = format!("`{}` and `{}` should use the same case", stage.keyword.text, word.text);
            warn(found, &FROM_AS_CASING, word, message);
        }
    }
    if let Some(platform) = &stage.from.platform {
        if ["$TARGETPLATFORM", "${TARGETPLATFORM}"].contains(&platform.text.as_str()) {
            warn(
                found,
                &REDUNDANT_TARGET_PLATFORM,
                platform,
                "redundant --platform: the target platform is the default",
            );
        } else if !platform.text.contains('$') {
            let name = stage.from.name.as_ref().map_or(String::new(), |n| n.text.to_lowercase());
            let named = platform.text.split('/').any(|part| !part.is_empty() && name.contains(&part.to_lowercase()));
            if !named {
                let message =
                    format!("constant platform `{}`; the stage ignores the platform of the build", platform.text);
                warn(found, &FROM_PLATFORM_FLAG_CONST_DISALLOWED, platform, message);
            }
        }
    }
}

/// Returns the error in a command that begins like a JSON array of strings but is not one.
pub fn json_mistake(text: &str) -> Option<String> {
    let begun = text.strip_prefix('[')?.trim_start();
    if begun.starts_with('\'') {
        return Some("JSON strings require double quotes".into());
    }
    if !begun.starts_with('"') {
        // `[ -f x ]` and `[[ -f x ]]` are commands of the shell.
        let is_command = text[1..].starts_with(|c: char| c.is_whitespace() || c == '[');
        return (!is_command && text != "[").then(|| "JSON strings require double quotes".into());
    }
    // Offsets in the replaced text are offsets in `text`.
    let replaced = words::without_lone_surrogates(text);
    let syntax = serde_json::from_str::<Vec<serde_json::Value>>(&replaced).err();
    let mistake = syntax.or_else(|| serde_json::from_str::<Vec<String>>(&replaced).err())?;
    // The column is counted from the start of the line.
    let line = text.split_inclusive('\n').take(mistake.line().saturating_sub(1)).map(str::len).sum::<usize>();
    let at = (line + mistake.column().saturating_sub(1)).min(text.len());
    Some(match text.get(..at).map(str::trim_end) {
        Some(_) if text[at..].starts_with('\'') => "JSON strings require double quotes".into(),
        Some(before) if before.ends_with(',') => "there is a comma without a string after it".into(),
        Some(before)
            if mistake.is_syntax() && before.ends_with('"') && text[before.len()..].trim_start().starts_with('"') =>
        {
            "there is no comma between two strings".into()
        }
        _ if mistake.is_eof() => "the closing `]` is missing".into(),
        _ => format!("invalid JSON at character {}", at + 1),
    })
}

/// Warns about the shell form of CMD and ENTRYPOINT in a stage without SHELL.
pub(super) fn shell_form(i: &Instruction, found: &mut Vec<LintWarning>) {
    let (Op::Cmd(Command::Shell(word)) | Op::Entrypoint(Command::Shell(word))) = &i.op else { return };
    let name = &i.keyword.text;
    match json_mistake(&word.text) {
        Some(mistake) => {
            let message = format!("{name} is not in JSON form, but run by the shell: {mistake}");
            warn(found, &JSON_ARGS_RECOMMENDED, word, message);
        }
        None => {
            let message = format!("{name} in shell form does not receive signals");
            warn_with_help(found, &JSON_ARGS_RECOMMENDED, word, message, "use the JSON form");
        }
    }
}

/// Warns about a list of words or a command, other than those of [`shell_form`], that begins like a
/// JSON array but is not one.
fn other_json(i: &Instruction, found: &mut Vec<LintWarning>) {
    let is_quoted = |text: &str| text.starts_with("[\"") || text.starts_with("['");
    // A word of the JSON form has the range of its quotes, too.
    let is_plain = |word: &Word| word.span.end - word.span.start == word.text.len();
    let list = |words: Vec<&Word>| {
        let (first, last) = (words.first()?, words.last()?);
        let text = words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ");
        is_plain(first).then(|| Word { text, span: first.span.to(last.span) })
    };
    let (word, effect) = match &i.op {
        Op::Run(run) => match &run.command {
            Command::Shell(word) => (Some(word.clone()), "run by the shell"),
            Command::Exec(_) => return,
        },
        Op::Healthcheck(Healthcheck::Check { command: Command::Shell(word), .. }) => {
            (Some(word.clone()), "run by the shell")
        }
        Op::Volume(words) => (list(words.iter().collect()), "a list of words"),
        // A pattern may begin with a bracket.
        Op::Copy(copy) => {
            let words = copy.sources.iter().chain([&copy.dest]).collect();
            (list(words).filter(|word| is_quoted(&word.text)), "a list of words")
        }
        _ => return,
    };
    let Some(word) = word else { return };
    let Some(mistake) = json_mistake(&word.text) else { return };
    let message = format!("{} is not in JSON form, but {effect}: {mistake}", i.keyword.text);
    warn(found, &JSON_ARGS_RECOMMENDED, &word, message);
}

fn instruction(i: &Instruction, facts: &Facts<'_>, found: &mut Vec<LintWarning>) {
    secrets(i, found);
    other_json(i, found);
    match &i.op {
        Op::Maintainer(_) => {
            let help = "use LABEL org.opencontainers.image.authors=…";
            warn_with_help(found, &MAINTAINER_DEPRECATED, &i.keyword, "MAINTAINER is deprecated", help);
        }
        Op::Env(pairs) | Op::Label(pairs) => {
            for pair in pairs.iter().filter(|p| p.legacy) {
                let message = format!("use the form `{} {}=…`", i.keyword.text, pair.name.text);
                warn(found, &LEGACY_KEY_VALUE_FORMAT, &pair.name, message);
            }
        }
        Op::Expose(words) => words.iter().for_each(|w| expose(w, found)),
        Op::Copy(copy) if copy.from.is_none() => {
            for source in copy.sources.iter().filter(|s| !s.text.contains('$') && !is_pattern(&s.text)) {
                let path = source.text.trim_start_matches("./").trim_matches('/');
                if !path.is_empty() && path != "." && !path.contains("://") && (facts.ignored)(path) {
                    let message = format!("`{path}` is excluded by the ignore file");
                    warn(found, &COPY_IGNORED_FILE, source, message);
                }
            }
        }
        _ => {}
    }
}

fn expose(word: &Word, found: &mut Vec<LintWarning>) {
    let (ports, proto) = word.text.split_once('/').unwrap_or((&word.text, "tcp"));
    if !word.text.contains('$') && proto != proto.to_lowercase() {
        let message = format!("protocol `{proto}` should be `{}`", proto.to_lowercase());
        warn(found, &EXPOSE_PROTO_CASING, word, message);
    }
    if !word.text.contains('$') && ports.contains(':') {
        let message = format!("`{}` maps a host port, which an image cannot do", word.text);
        warn(found, &EXPOSE_INVALID_FORMAT, word, message);
    }
}

fn repeated(stage: &Stage, found: &mut Vec<LintWarning>) {
    let kind = |i: &Instruction| match &i.op {
        Op::Cmd(_) => Some("CMD"),
        Op::Entrypoint(_) => Some("ENTRYPOINT"),
        Op::Healthcheck(Healthcheck::None | Healthcheck::Check { .. }) => Some("HEALTHCHECK"),
        _ => None,
    };
    let mut later: Vec<&str> = Vec::new();
    for i in stage.instructions.iter().rev() {
        let Some(name) = kind(i) else { continue };
        if later.contains(&name) {
            let message = format!("this {name} is overridden by a later one in the same stage");
            warn(found, &MULTIPLE_INSTRUCTIONS_DISALLOWED, &i.keyword, message);
        } else {
            later.push(name);
        }
    }
}

/// Words that mark a secret at the start or end of a name.
const SECRET: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
/// Words that mark a name as harmless.
const HARMLESS: [&str; 3] = ["public", "file", "version"];

/// Returns true if a word of a variable's name marks a secret. The lint rule ignores some of these
/// names.
pub fn may_name_secret(name: &str) -> bool {
    words(&name.to_lowercase()).iter().any(|word| SECRET.contains(word))
}

fn words(name: &str) -> Vec<&str> {
    name.split(['_', '-', '.']).collect()
}

fn secrets(i: &Instruction, found: &mut Vec<LintWarning>) {
    let names: Vec<&Word> = match &i.op {
        Op::Env(pairs) => pairs.iter().map(|p| &p.name).collect(),
        Op::Arg(decls) => decls.iter().map(|d| &d.name).collect(),
        _ => return,
    };
    for name in names {
        let lower = name.text.to_lowercase();
        let parts = words(&lower);
        let ends = [parts.first(), parts.last()].into_iter().flatten().any(|p| SECRET.contains(p));
        if ends && !parts.iter().any(|p| HARMLESS.contains(p)) {
            let message = format!("`{}` looks like a secret, and the image stores its value", name.text);
            warn_with_help(found, &SECRETS_USED_IN_ARG_OR_ENV, name, message, "use a secret mount");
        }
    }
}

/// Checks that a comment above a stage or an ARG begins with its name, or with one of its names.
fn descriptions(file: &Dockerfile, found: &mut Vec<LintWarning>) {
    let mut look = |comments: &[Comment], names: &[&str], place: &Word| {
        let Some(last) = comments.last().filter(|c| !c.text.starts_with("check=")) else { return };
        let first = last.text.split(' ').next().unwrap_or_default();
        if !names.contains(&first) {
            let message = format!("the comment above should start with the name: `# {} …`", names[0]);
            warn(found, &INVALID_DEFINITION_DESCRIPTION, place, message);
        }
    };
    for stage in &file.stages {
        if let Some(name) = &stage.from.name {
            look(&stage.comments, &[&name.text.to_lowercase()], name);
        }
    }
    for i in file.global_args.iter().chain(file.stages.iter().flat_map(|s| &s.instructions)) {
        if let Op::Arg(decls) = &i.op {
            let names: Vec<&str> = decls.iter().map(|declaration| declaration.name.text.as_str()).collect();
            look(&i.comments, &names, &decls[0].name);
        }
    }
}
