//! Errors of the command line.

use std::error::Error;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::clap_command;
use crate::exit::Failure;
use crate::input::value::BadValue;
use crate::ui::hints::{self, Hint, UsageRemedy, unsupported};

/// Returns the failure for an error of the parser. `verb` is the verb of the command line, `words`
/// are all of its words; `misplaced` is a verb that is not at the beginning.
pub fn failure(e: &clap::Error, verb: &str, words: &[OsString], misplaced: Option<&str>) -> Failure {
    let shown = clap_command::written(verb);
    if e.kind() == ErrorKind::UnknownArgument {
        let given = texts(e, ContextKind::InvalidArg).concat();
        return if given.starts_with('-') {
            unknown(verb, &given, misplaced, options_of(shown, &given))
        } else {
            unexpected(verb, &given, misplaced, words)
        };
    }
    let parser = clap_command::parser();
    let args: Vec<&clap::Arg> =
        texts(e, ContextKind::InvalidArg).iter().filter_map(|s| find(&parser, verb, s)).collect();
    let flag = args.iter().map(|arg| name(arg)).collect::<Vec<_>>().join(" ");
    let value = texts(e, ContextKind::InvalidValue).concat();
    let see = options_of(shown, &flag);
    match e.kind() {
        ErrorKind::MissingRequiredArgument | ErrorKind::TooFewValues => {
            let remedy = taken_as_value(parser.find_subcommand(verb), words).unwrap_or_else(|| use_form(verb));
            Failure::usage(format!("`rbuild {shown}` requires {flag}")).help(remedy)
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            let form = args.first().and_then(|arg| flag_form(arg));
            let failure = Failure::usage(format!("{flag} requires a value"));
            failure.help(form.map_or(see, |form| UsageRemedy::PassOne { form }))
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let setting = args.first().map_or(value.clone(), |arg| setting(arg, &value, words));
            match e.source().and_then(|source| source.downcast_ref::<BadValue>()) {
                Some(bad) => bad.clone().of(setting),
                None => invalid(&setting, &value, texts(e, ContextKind::ValidValue), see),
            }
        }
        ErrorKind::MissingSubcommand | ErrorKind::InvalidSubcommand => {
            Failure::usage("no command given").help(UsageRemedy::ListCommands)
        }
        ErrorKind::InvalidUtf8 => Failure::usage("an argument is not UTF-8").help(see),
        kind => Failure::usage(format!("{}{kind}", if flag.is_empty() { flag } else { flag + ": " })).help(see),
    }
}

/// Returns the texts of this kind in an error of the parser.
fn texts(e: &clap::Error, kind: ContextKind) -> &[String] {
    match e.get(kind) {
        Some(ContextValue::String(text)) => std::slice::from_ref(text),
        Some(ContextValue::Strings(texts)) => texts,
        _ => &[],
    }
}

/// Returns the argument of a verb, or the global argument, that has the name `shown` in errors of
/// the parser.
fn find<'a>(parser: &'a clap::Command, verb: &str, shown: &str) -> Option<&'a clap::Arg> {
    let page = parser.find_subcommand(verb).unwrap_or(parser);
    page.get_arguments().chain(parser.get_arguments()).find(|arg| arg.to_string() == shown)
}

/// Returns the name of an argument in messages: `--jobs`, `IMAGE`.
fn name(arg: &clap::Arg) -> String {
    match (arg.get_long(), arg.get_short(), arg.get_value_names()) {
        (Some(long), ..) => format!("--{long}"),
        (None, Some(short), _) => format!("-{short}"),
        (None, None, Some(names)) => names.join(" "),
        (None, None, None) => arg.get_id().to_string(),
    }
}

/// Returns a flag with the name of its value: `--timings FILE.html`.
fn flag_form(arg: &clap::Arg) -> Option<String> {
    let value = arg.get_value_names()?.first()?.to_string();
    let between = if arg.is_require_equals_set() { "=" } else { " " };
    Some(format!("{}{between}{value}", name(arg)))
}

fn unexpected(verb: &str, given: &str, misplaced: Option<&str>, words: &[OsString]) -> Failure {
    let failure = Failure::usage(format!("unexpected argument `{given}`"));
    if let Some(remedy) = words.iter().find_map(|word| detached(verb, word.to_str()?, words)) {
        return failure.help(remedy);
    }
    failure.help(match misplaced {
        Some(verb) => UsageRemedy::PutFirst { verb: verb.into() },
        None if let Some(remedy) = swallowed_value(verb, words) => remedy,
        None if verb == "load" => UsageRemedy::PassArchive { file: given.into() },
        None => use_form(verb),
    })
}

/// Returns the remedy if a second value of a flag of `build` was taken as the context.
fn swallowed_value(verb: &str, words: &[OsString]) -> Option<UsageRemedy> {
    const FLAGS: [&str; 3] = ["--build-arg", "--label", "--annotation"];
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    let repeats = |three: &&[&str]| FLAGS.contains(&three[0]) && !three[2].starts_with('-') && three[2].contains('=');
    let three = words.windows(3).find(repeats).filter(|_| verb == "build")?;
    Some(UsageRemedy::RepeatFlag { flag: three[0].into(), value: three[2].into() })
}

/// Returns the remedy for a word of this process's command line that was probably meant as the
/// value of the flag before it, which takes a value only after an equals sign.
pub fn detached_value(verb: &str, value: &str) -> Option<UsageRemedy> {
    detached(verb, value, &std::env::args_os().collect::<Vec<_>>())
}

/// Returns the remedy if the last word was taken as the value of a flag, but was probably meant as
/// an argument.
fn taken_as_value(verb: Option<&clap::Command>, words: &[OsString]) -> Option<UsageRemedy> {
    let [.., flag, word] = words else { return None };
    let (flag, word) = (flag.to_str()?, word.to_str()?);
    let takes_value = |arg: &clap::Arg| arg.get_action().takes_values() && !arg.is_require_equals_set();
    let is_flag = |arg: &clap::Arg| {
        arg.get_long().is_some_and(|long| flag.strip_prefix("--") == Some(long))
            || arg.get_short().is_some_and(|short| flag == format!("-{short}"))
    };
    let is_taken = verb?.get_arguments().any(|arg| is_flag(arg) && takes_value(arg));
    is_taken.then(|| UsageRemedy::PassValue { flag: flag.into(), word: word.into() })
}

fn detached(verb: &str, value: &str, words: &[OsString]) -> Option<UsageRemedy> {
    let parser = clap_command::parser();
    let page = parser.find_subcommand(verb)?;
    let before = words.windows(2).filter(|pair| pair[1] == value).filter_map(|pair| pair[0].to_str());
    let flag = before
        .filter_map(|flag| Some((flag, flag.strip_prefix("--")?)))
        .find(|(_, name)| page.get_arguments().any(|arg| arg.get_long() == Some(name) && arg.is_require_equals_set()));
    let (flag, _) = flag?;
    let line = ["rbuild".to_string(), verb.to_string(), format!("{flag}={value}")];
    let is_value = match parser.try_get_matches_from(line) {
        Ok(_) => true,
        Err(e) => !matches!(e.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation),
    };
    is_value.then(|| UsageRemedy::AttachValue { flag: flag.into(), value: value.into() })
}

/// Returns the remedy that names the help page with this flag.
fn options_of(shown: &str, flag: &str) -> UsageRemedy {
    let parser = clap_command::parser();
    let mut common = parser.get_arguments().filter_map(clap::Arg::get_long);
    let command = if flag.strip_prefix("--").is_some_and(|name| common.any(|long| long == name)) {
        "rbuild".to_string()
    } else {
        format!("rbuild {shown}")
    };
    UsageRemedy::ShowOptions { command }
}

fn unknown(verb: &str, flag: &str, misplaced: Option<&str>, see: UsageRemedy) -> Failure {
    if let Some((reason, hint)) = unsupported::flag(verb, flag) {
        return Failure::usage(format!("unsupported flag `{flag}`: {reason}")).help(hint);
    }
    let failure = Failure::usage(format!("unknown flag `{flag}` of `rbuild {}`", clap_command::written(verb)));
    let pages = clap_command::pages();
    let flags: Vec<String> = pages.find_subcommand(verb).map_or(Vec::new(), |page| {
        let shown = page.get_arguments().filter(|arg| !arg.is_hide_set());
        shown.filter_map(|arg| arg.get_long()).map(|name| format!("--{name}")).collect()
    });
    let close = closest_flag(flag, &flags);
    failure.help(match (misplaced, close) {
        (_, Some(close)) => hints::did_you_mean(close),
        (Some(verb), None) => UsageRemedy::PutFirst { verb: verb.into() }.into(),
        (None, None) => match (hidden(verb, flag), relative_with(verb, flag)) {
            (Some(close), _) => hints::did_you_mean(&close),
            (None, Some(verb)) => UsageRemedy::FlagOf { flag: flag.into(), verb }.into(),
            (None, None) => see.into(),
        },
    })
}

/// Verbs that are easily confused, each with others whose flags may be passed to it.
const RELATIVES: [(&str, &[&str]); 7] = [
    ("build", &["run", "pull"]),
    ("run", &["build", "exec", "logs"]),
    ("create", &["run", "start"]),
    ("start", &["run", "logs"]),
    ("exec", &["run"]),
    ("restart", &["run"]),
    ("prune", &["image-prune", "builder-prune", "system-prune"]),
];

/// Returns the relative of a verb that has a flag which the verb lacks. A short flag has another
/// meaning for each verb, so there is none.
fn relative_with(verb: &str, flag: &str) -> Option<String> {
    let name = flag.strip_prefix("--")?;
    let pages = clap_command::pages();
    let has = |verb: &str| {
        let mut shown = pages.find_subcommand(verb)?.get_arguments().filter(|arg| !arg.is_hide_set());
        shown.any(|arg| arg.get_long() == Some(name)).then(|| clap_command::written(verb).to_string())
    };
    let (_, relatives) = RELATIVES.iter().find(|(of, _)| *of == verb)?;
    relatives.iter().find_map(|verb| has(verb))
}

/// Returns the most similar flag of the parser, including flags that the help page does not list.
fn hidden(verb: &str, flag: &str) -> Option<String> {
    let parser = clap_command::parser();
    let of_verb = parser.find_subcommand(verb).into_iter().flat_map(clap::Command::get_arguments);
    let mut flags: Vec<String> = of_verb.filter_map(clap::Arg::get_long).map(|name| format!("--{name}")).collect();
    flags.extend(unsupported::flags_of(verb).map(str::to_string));
    closest_flag(flag, &flags).map(str::to_string)
}

/// Returns the flag of which `flag` is a prefix, or else the most similar one. If several flags
/// have the prefix, the shortest is returned if it is a prefix of all others. There is no result
/// for a one-letter flag, which is similar to all others.
fn closest_flag<'a>(flag: &str, flags: &'a [String]) -> Option<&'a str> {
    let name = flag.strip_prefix("--")?;
    let longer: Vec<&String> = flags.iter().filter(|known| name.len() >= 3 && known.starts_with(flag)).collect();
    match longer.iter().min_by_key(|known| known.len()) {
        Some(first) if longer.iter().all(|known| known.starts_with(first.as_str())) => Some(first),
        _ => rbuild_dockerfile::closest(flag, flags.iter().map(String::as_str)),
    }
}

/// Names a flag and its value as they were given: by a word of the line, or by a variable.
fn setting(arg: &clap::Arg, value: &str, words: &[OsString]) -> String {
    let flag = name(arg);
    let is_given = words.iter().any(|word| word.to_string_lossy().split('=').next() == Some(&flag));
    match arg.get_env() {
        Some(variable) if !is_given && std::env::var_os(variable).is_some_and(|set| set == value) => {
            format!("{}={value}", variable.to_string_lossy())
        }
        _ if arg.is_require_equals_set() => format!("{flag}={value}"),
        _ => format!("{flag} {value}"),
    }
}

/// Returns the failure for a value that is not one of the valid ones.
fn invalid(setting: &str, value: &str, valid: &[String], see: UsageRemedy) -> Failure {
    let valid: Vec<&str> = valid.iter().map(String::as_str).collect();
    let help = if valid.is_empty() { Hint::from(see) } else { hints::suggestion(value, &valid) };
    Failure::usage(format!("{setting}: unknown value")).help(help)
}

fn use_form(verb: &str) -> UsageRemedy {
    UsageRemedy::UseForm { form: form(verb) }
}

/// Returns the usage of a verb on one line.
fn form(verb: &str) -> String {
    let pages = clap_command::pages();
    let page = pages.find_subcommand(verb).cloned();
    page.map(|page| page.help_template("{usage}").render_help().to_string().trim().to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line has the message of its failure, and the start of the hint.
    #[test]
    fn errors_of_the_parser_are_worded_by_their_kind() {
        for (line, message, hint) in [
            ("build --lock-timeout soon .", "--lock-timeout soon: not a number of seconds", "use a number"),
            ("build --lock-timeout=18446744073709551616 .", "--lock-timeout 18446744073709551616: not", "use a number"),
            ("build --no-cache=maybe .", "--no-cache=maybe: unknown value", "use true or false"),
            ("build --progress loud .", "--progress loud: unknown value", "use auto"),
            ("build --jobs -1", "--jobs -1: not a number of steps", "use 1 or more"),
            ("build --cache-limit -1", "--cache-limit -1: not a size", "use a number with a unit"),
            ("build --jobs", "--jobs requires a value", "pass one: --jobs "),
            ("build --timings", "--timings requires a value", "pass one: --timings FILE.html"),
            ("build --timings a.json", "--timings a.json: the page is HTML", "use a name such as build.html"),
            ("tag", "`rbuild tag` requires IMAGE NAME", "use the form: rbuild tag"),
            ("load x.tar", "unexpected argument `x.tar`", "pass the file with -i x.tar"),
            ("run --nam x", "unknown flag `--nam` of `rbuild run`", "did you mean `--name`?"),
            ("prune --filtre", "unknown flag `--filtre` of `rbuild prune`", "did you mean `--filter`?"),
            ("prune --keep 1g", "unknown flag `--keep` of `rbuild prune`", "did you mean `--keep-storage`?"),
            ("run --platfrom a b", "unknown flag `--platfrom` of `rbuild run`", "did you mean `--platform`?"),
            ("run -p web", "`rbuild run` requires IMAGE", "pass a value before `web`, which -p took as its own"),
            ("run --name web", "`rbuild run` requires IMAGE", "pass a value before `web`, which --name took"),
            ("run -d", "`rbuild run` requires IMAGE", "use the form: rbuild run"),
            ("exec -u web", "`rbuild exec` requires CONTAINER COMMAND", "pass a value before `web`, which -u took"),
            ("build -p 80:80 .", "unknown flag `-p` of `rbuild build`", "run `rbuild build --help`"),
            (
                "build --publish 80:80 .",
                "unknown flag `--publish` of `rbuild build`",
                "use --publish with `rbuild run`",
            ),
            ("start --follow a", "unknown flag `--follow` of `rbuild start`", "use --follow with `rbuild logs`"),
            ("stop --follow a", "unknown flag `--follow` of `rbuild stop`", "run `rbuild stop --help`"),
            ("rmi -q a", "unknown flag `-q` of `rbuild rmi`", "run `rbuild rmi --help`"),
            (
                "build --build-arg A=1 B=2 .",
                "unexpected argument `.`",
                "repeat the flag for each value: --build-arg B=2",
            ),
            ("build --no-c", "unknown flag `--no-c` of `rbuild build`", "did you mean `--no-cache`?"),
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let line = std::iter::once(OsString::from("rbuild")).chain(words.iter().cloned());
            let e = clap_command::parser().try_get_matches_from(line).unwrap_err();
            let failure = failure(&e, words[0].to_str().unwrap(), &words, None);
            assert!(failure.message.starts_with(message), "{}", failure.message);
            let help = failure.help.map_or(String::new(), |help| help.to_string());
            assert!(help.starts_with(hint), "{message}: {help}");
        }
    }

    #[test]
    fn errors_of_the_command_line_are_as_recorded() {
        let of_line = |line: String| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let argv = std::iter::once(OsString::from("rbuild")).chain(words.iter().cloned());
            let e = clap_command::parser().try_get_matches_from(argv).expect_err(&line);
            format!("$ rbuild {line}\n{}", failure(&e, words[0].to_str().unwrap(), &words, None).text())
        };
        let text: String = unsupported::all_flags().map(|(verb, flag)| of_line(format!("{verb} {flag}"))).collect();
        rbuild_testkit::assert_recorded!("unsupported-flags", text);
    }

    #[test]
    fn the_form_of_a_verb_is_its_usage_without_a_heading() {
        assert!(form("tag").starts_with("rbuild tag"), "{}", form("tag"));
    }

    #[test]
    fn flags_that_exist_are_not_called_unsupported() {
        let parser = clap_command::parser();
        for (verb, flag) in unsupported::all_flags() {
            let known = parser.find_subcommand(verb).unwrap().get_arguments().any(|arg| {
                let long = arg.get_long_and_visible_aliases().unwrap_or_default();
                let short = arg.get_short().map(|c| format!("-{c}"));
                long.iter().any(|name| format!("--{name}") == flag) || short.as_deref() == Some(flag)
            });
            assert!(!known, "{verb} {flag}");
        }
    }
}
