//! Errors of the command line, and flags of docker and podman that rbuild does not have.

use std::error::Error;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::clap_command;
use crate::exit::Failure;
use crate::input::value::BadValue;
use crate::ui::hints;

/// Flags of `docker build`, `buildx build` and `podman build`: names, reason, hint.
const BUILD: [(&[&str], &str, &str); 10] = [
    (&["--os", "--arch", "--variant"], "platforms are selected with --platform", "pass --platform OS/ARCH[/VARIANT]"),
    (
        &["--from"],
        "the Dockerfile sets the base image",
        "use `ARG BASE` and `FROM $BASE`, and pass --build-arg BASE=IMAGE",
    ),
    (
        &["--env", "--unsetenv", "--unsetlabel", "-e"],
        "the Dockerfile sets variables and labels",
        "add ENV or LABEL to the Dockerfile, or pass --build-arg or --label",
    ),
    (
        &["--cap-add", "--cap-drop", "--privileged"],
        "capabilities are fixed",
        "use `RUN --security=insecure` and pass --allow security.insecure",
    ),
    (
        &["--device"],
        "devices cannot be passed",
        "remove the flag; commands have /dev/null, zero, full, random, urandom and tty",
    ),
    (
        &["--dns", "--dns-option", "--dns-search"],
        "commands use the name servers of this machine",
        "set them in /etc/resolv.conf, or name hosts with --add-host",
    ),
    (&["--manifest"], "manifest lists are not kept", "pass several --platform values with -o type=oci or --push"),
    (&["--policy"], "policies are not supported", "remove the flag"),
    (&["--retry", "--retry-delay"], "downloads are always retried", "remove the flag"),
    (&["--logfile"], "logs are kept in the store", "run `rbuild logs` after the build, or redirect standard error"),
];

/// Flags of `docker run` and `podman run`.
const RUN: [(&[&str], &str, &str); 12] = [
    (&["-d", "--detach"], "containers run in the foreground", "run it in the shell's background: rbuild run IMAGE &"),
    (
        &["-p", "--publish", "-P", "--publish-all", "--expose"],
        "ports are not forwarded",
        "remove the flag; containers share this machine's network, so their ports are open on it",
    ),
    (&["--tmpfs"], "mounts of type tmpfs are not supported", "mount a directory: -v DIR:PATH"),
    (
        &["--privileged", "--cap-add", "--cap-drop", "--security-opt", "--device", "--gpus"],
        "privileges and devices are fixed",
        "remove the flag, or use podman run",
    ),
    (&["--read-only"], "the root file system is always writable, and its changes are dropped", "remove the flag"),
    (
        &["--restart"],
        "containers are not kept",
        "let the service manager restart the command, for example with systemd-run",
    ),
    (
        &["--platform"],
        "`rbuild run` always selects this machine's platform",
        "pass the ID of the other platform's image, from `rbuild images --tree`",
    ),
    (
        &["--pid", "--ipc", "--uts", "--userns", "--cgroupns"],
        "a container always has its own namespaces",
        "remove the flag",
    ),
    (
        &["--sysctl", "--group-add", "--device-cgroup-rule"],
        "kernel settings and groups are fixed",
        "remove the flag, or use podman run",
    ),
    (&["--volumes-from", "--link"], "containers are not kept", "mount the same directory in both: -v DIR:PATH"),
    (
        &["--dns", "--dns-option", "--dns-search"],
        "containers use the name servers of this machine",
        "set them in /etc/resolv.conf, or name hosts with --add-host",
    ),
    (
        &[
            "--cidfile",
            "--log-driver",
            "--log-opt",
            "--health-cmd",
            "--no-healthcheck",
            "--stop-signal",
            "--stop-timeout",
            "--sig-proxy",
            "-a",
            "--attach",
        ],
        "containers run in the foreground and are not kept",
        "remove the flag",
    ),
];

/// Flags of other verbs, with the verb.
const OTHER: [(&str, &[&str], &str, &str); 7] = [
    ("images", &["--sort", "--noheading", "-n"], "the list is sorted by age", "use --format, and sort its lines"),
    ("import", &["--os", "--arch", "--variant"], "platforms are selected with --platform", "pass --platform OS/ARCH"),
    ("save", &["--compress", "-m", "--multi-image-archive"], "one archive holds all the images", "remove the flag"),
    (
        "save",
        &["--platform"],
        "all platforms of an image are saved",
        "pass the ID of one platform's image, from `rbuild images --tree`",
    ),
    (
        "rm",
        &["-l", "--link", "-a", "--all"],
        "containers have neither links nor processes",
        "pass the containers, or remove all with `rbuild container prune`",
    ),
    ("prune", &["--min-free-space", "--reserved-space"], "the cache has one limit", "pass --keep-storage SIZE"),
    ("cp", &["--overwrite"], "a directory never replaces a file", "remove the destination first"),
];

/// Names of flags of another tool, the reason why rbuild lacks them, and a hint.
type LackingFlags = (&'static [&'static str], &'static str, &'static str);

/// Returns the flags of other tools that a verb lacks.
fn lacking_of(verb: &str) -> impl Iterator<Item = LackingFlags> {
    let table: &[LackingFlags] = match verb {
        "build" => &BUILD,
        "run" | "create" => &RUN,
        _ => &[],
    };
    let verb = if verb == "builder-prune" { "prune" } else { verb }.to_string();
    let other = OTHER.iter().filter(move |(of, ..)| *of == verb).map(|(_, flags, why, hint)| (*flags, *why, *hint));
    table.iter().copied().chain(other)
}

/// Returns the reason and the hint for a flag of another tool.
fn lacking(verb: &str, flag: &str) -> Option<(&'static str, &'static str)> {
    lacking_of(verb).find(|(flags, ..)| flags.contains(&flag)).map(|(_, why, hint)| (why, hint))
}

/// Returns the names of the flags of other tools that a verb lacks.
fn lacking_flags(verb: &str) -> impl Iterator<Item = &'static str> {
    lacking_of(verb).flat_map(|(flags, ..)| flags.iter().copied())
}

/// Returns the failure for an error of the parser. `verb` is the verb of the line, `words` are all
/// its words; `misplaced` is one that is a verb, but does not come first.
pub fn failure(e: &clap::Error, verb: &str, words: &[OsString], misplaced: Option<&str>) -> Failure {
    let shown = clap_command::written(verb);
    if e.kind() == ErrorKind::UnknownArgument {
        let given = texts(e, ContextKind::InvalidArg).concat();
        return if given.starts_with('-') {
            unknown(verb, &given, misplaced, options_of(shown, &given))
        } else {
            unexpected(verb, &given, misplaced)
        };
    }
    let parser = clap_command::parser();
    let args: Vec<&clap::Arg> =
        texts(e, ContextKind::InvalidArg).iter().filter_map(|s| find(&parser, verb, s)).collect();
    let flag = args.iter().map(|arg| name(arg)).collect::<Vec<_>>().join(" ");
    let value = texts(e, ContextKind::InvalidValue).concat();
    let see = options_of(shown, &flag);
    match e.kind() {
        ErrorKind::MissingRequiredArgument => {
            Failure::usage(format!("`rbuild {shown}` requires {flag}")).help(format!("use the form: {}", form(verb)))
        }
        ErrorKind::InvalidValue if value.is_empty() => Failure::usage(format!("{flag} requires a value")).help(see),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let setting = args.first().map_or(value.clone(), |arg| setting(arg, &value, words));
            match e.source().and_then(|source| source.downcast_ref::<BadValue>()) {
                Some(bad) => bad.clone().of(setting),
                None => invalid(&setting, &value, texts(e, ContextKind::ValidValue), see),
            }
        }
        ErrorKind::MissingSubcommand | ErrorKind::InvalidSubcommand => {
            Failure::usage("no command given").help("run `rbuild --help` to list the commands")
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

/// Returns the argument of a verb, or the global argument, that errors of the parser show as
/// `shown`.
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

fn unexpected(verb: &str, given: &str, misplaced: Option<&str>) -> Failure {
    Failure::usage(format!("unexpected argument `{given}`")).help(match misplaced {
        Some(verb) => first(verb),
        None if verb == "load" => format!("pass the file with -i {given}"),
        None => format!("use the form: {}", form(verb)),
    })
}

/// Returns the hint that names the help page with this flag.
fn options_of(shown: &str, flag: &str) -> String {
    let parser = clap_command::parser();
    let mut common = parser.get_arguments().filter_map(clap::Arg::get_long);
    let page = match flag.strip_prefix("--").is_some_and(|name| common.any(|long| long == name)) {
        true => "rbuild".to_string(),
        false => format!("rbuild {shown}"),
    };
    format!("run `{page} --help` for the options")
}

fn unknown(verb: &str, flag: &str, misplaced: Option<&str>, see: String) -> Failure {
    if let Some((why, hint)) = lacking(verb, flag) {
        return Failure::usage(format!("unsupported flag `{flag}`: {why}")).help(hint);
    }
    let failure = Failure::usage(format!("unknown flag `{flag}` of `rbuild {}`", clap_command::written(verb)));
    let pages = clap_command::pages();
    let flags: Vec<String> = pages.find_subcommand(verb).map_or(Vec::new(), |page| {
        let shown = page.get_arguments().filter(|arg| !arg.is_hide_set());
        shown.filter_map(|arg| arg.get_long()).map(|name| format!("--{name}")).collect()
    });
    let close = closest_flag(flag, &flags);
    failure.help(match (misplaced, close) {
        (_, Some(close)) => format!("did you mean `{close}`?"),
        (Some(verb), None) => first(verb),
        (None, None) => match hidden(verb, flag) {
            Some(close) => hints::did_you_mean(&close),
            None => see,
        },
    })
}

/// Returns the most similar flag of the parser, including flags that the help page does not list.
fn hidden(verb: &str, flag: &str) -> Option<String> {
    let parser = clap_command::parser();
    let of_verb = parser.find_subcommand(verb).into_iter().flat_map(clap::Command::get_arguments);
    let mut flags: Vec<String> = of_verb.filter_map(clap::Arg::get_long).map(|name| format!("--{name}")).collect();
    flags.extend(lacking_flags(verb).map(str::to_string));
    closest_flag(flag, &flags).map(str::to_string)
}

/// Returns the flag that begins with a text, if all others that do so begin with that flag, or else
/// the most similar one. A short flag is near to every other one, so it has none.
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
fn invalid(setting: &str, value: &str, valid: &[String], see: String) -> Failure {
    let valid: Vec<&str> = valid.iter().map(String::as_str).collect();
    let help = if valid.is_empty() { see } else { hints::suggestion(value, &valid) };
    Failure::usage(format!("{setting}: unknown value")).help(help)
}

/// Returns the hint for a verb that does not come first.
pub fn first(verb: &str) -> String {
    format!("put the command first: rbuild {verb} …")
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
            ("build --jobs", "--jobs requires a value", "run `rbuild build --help`"),
            ("tag", "`rbuild tag` requires IMAGE NAME", "use the form: rbuild tag"),
            ("load x.tar", "unexpected argument `x.tar`", "pass the file with -i x.tar"),
            ("run --nam x", "unknown flag `--nam` of `rbuild run`", "did you mean `--name`?"),
            ("prune --filtre", "unknown flag `--filtre` of `rbuild prune`", "did you mean `--filter`?"),
            ("prune --keep 1g", "unknown flag `--keep` of `rbuild prune`", "did you mean `--keep-storage`?"),
            ("run --platfrom a b", "unknown flag `--platfrom` of `rbuild run`", "did you mean `--platform`?"),
            ("build --no-c", "unknown flag `--no-c` of `rbuild build`", "did you mean `--no-cache`?"),
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let line = std::iter::once(OsString::from("rbuild")).chain(words.iter().cloned());
            let e = clap_command::parser().try_get_matches_from(line).unwrap_err();
            let failure = failure(&e, words[0].to_str().unwrap(), &words, None);
            assert!(failure.message.starts_with(message), "{}", failure.message);
            let help = failure.help.unwrap_or_default();
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
        let build = BUILD.iter().flat_map(|(flags, ..)| flags.iter().map(|flag| format!("build {flag}")));
        let run = RUN.iter().flat_map(|(flags, ..)| flags.iter().map(|flag| format!("run {flag}")));
        let other = OTHER.iter().flat_map(|(verb, flags, ..)| flags.iter().map(move |flag| format!("{verb} {flag}")));
        let text: String = build.chain(run).chain(other).map(of_line).collect();
        rbuild_testkit::assert_recorded!("unsupported-flags", text);
    }

    #[test]
    fn the_form_of_a_verb_is_its_usage_without_a_heading() {
        assert!(form("tag").starts_with("rbuild tag"), "{}", form("tag"));
    }

    #[test]
    fn flags_that_exist_are_not_called_unsupported() {
        let parser = clap_command::parser();
        let tables = BUILD.iter().map(|(flags, ..)| ("build", *flags));
        let tables = tables.chain(RUN.iter().map(|(flags, ..)| ("run", *flags)));
        for (verb, flags) in tables.chain(OTHER.iter().map(|(verb, flags, ..)| (*verb, *flags))) {
            let page = parser.find_subcommand(verb).unwrap();
            for flag in flags {
                let known = page.get_arguments().any(|arg| {
                    let long = arg.get_long_and_visible_aliases().unwrap_or_default();
                    let short = arg.get_short().map(|c| format!("-{c}"));
                    long.iter().any(|name| format!("--{name}") == *flag) || short.as_deref() == Some(flag)
                });
                assert!(!known, "{verb} {flag}");
            }
        }
    }
}
