//! Resolves the verb on the command line: rbuild's verbs, docker's groups of verbs, and errors for
//! verbs that rbuild does not have.

use std::ffi::OsString;
use std::path::Path;

use crate::exit::{Failure, code};

const VERBS: [&str; 28] = [
    "image-prune",
    "container-prune",
    "ps",
    "login",
    "logout",
    "logs",
    "run",
    "completion",
    "build",
    "cp",
    "create",
    "rm",
    "fsck",
    "import",
    "save",
    "load",
    "images",
    "history",
    "inspect",
    "tag",
    "rmi",
    "prune",
    "pull",
    "push",
    "df",
    "doctor",
    "debug",
    "help",
];

/// Groups of docker verbs. Maps each supported word to a verb of rbuild.
const GROUPS: [(&str, &[(&str, &str)]); 5] = [
    (
        "image",
        &[
            ("ls", "images"),
            ("list", "images"),
            ("rm", "rmi"),
            ("remove", "rmi"),
            ("prune", "image-prune"),
            ("build", "build"),
            ("history", "history"),
            ("import", "import"),
            ("inspect", "inspect"),
            ("load", "load"),
            ("pull", "pull"),
            ("push", "push"),
            ("save", "save"),
            ("tag", "tag"),
        ],
    ),
    (
        "container",
        &[
            ("ls", "ps"),
            ("list", "ps"),
            ("ps", "ps"),
            ("rm", "rm"),
            ("remove", "rm"),
            ("prune", "container-prune"),
            ("cp", "cp"),
            ("create", "create"),
            ("run", "run"),
        ],
    ),
    ("buildx", &[("build", "build"), ("b", "build"), ("du", "df")]),
    ("builder", &[("build", "build"), ("du", "df")]),
    ("system", &[("df", "df")]),
];

/// Verbs of docker and podman that rbuild does not have: words, reason, help.
const LACKING: [(&[&str], &str, &str); 7] = [
    (&["search"], "rbuild does not search registries", "search on the registry's web page"),
    (
        &[
            "start", "stop", "kill", "restart", "exec", "attach", "wait", "top", "stats", "port", "pause", "unpause",
            "rename", "update",
        ],
        "rbuild runs containers in the foreground only and does not keep them",
        "run a command in a new container: rbuild run IMAGE COMMAND",
    ),
    (&["commit"], "rbuild builds images from Dockerfiles", "add RUN instructions to a Dockerfile"),
    (
        &["export"],
        "rbuild does not keep containers",
        "write the files of an image as a tar archive: rbuild cp IMAGE:/ -",
    ),
    (&["info"], "rbuild has no daemon", "run rbuild doctor to check this machine, and rbuild df for disk usage"),
    (
        &[
            "compose", "volume", "network", "context", "swarm", "stack", "service", "node", "plugin", "secret",
            "trust", "manifest",
        ],
        "rbuild only builds and manages images",
        "run rbuild --help to list the verbs",
    ),
    (&["bake"], "bake files are not supported yet", "build each target with rbuild --target STAGE"),
];

/// Global flags with a value.
const VALUED: [&str; 5] = ["--root", "--limit", "--isolation", "--lock-timeout", "--debug-log"];

/// Global flags without a value.
const SWITCHES: [&str; 2] = ["-D", "--debug"];

/// Inserts the default verb if there is none, and replaces long forms (`image ls`, `buildx build`)
/// by verbs of rbuild. `as_docker` is true if rbuild was started under the name docker.
pub fn with_verb(mut argv: Vec<OsString>, as_docker: bool) -> Result<Vec<OsString>, Failure> {
    let mut at = 1;
    while let Some(arg) = argv.get(at) {
        match arg.to_str() {
            Some(flag) if VALUED.contains(&flag) => at += 2,
            Some(flag) if SWITCHES.contains(&flag) => at += 1,
            Some(a) if a.split_once('=').is_some_and(|(flag, _)| VALUED.contains(&flag)) => at += 1,
            _ => break,
        }
    }
    let at = at.min(argv.len());
    let word = |i: usize| argv.get(at + i).and_then(|a| a.to_str()).unwrap_or("").to_string();
    let (first, second) = (word(0), word(1));
    let answer = match first.as_str() {
        "-h" | "--help" | "-V" | "--version" => Ok(None),
        "version" => Ok(Some("--version")),
        "bud" => Ok(Some("build")),
        verb if VERBS.contains(&verb) => Ok(None),
        group if GROUPS.iter().any(|(name, _)| *name == group) => {
            let verb = verb_of_group(group, &second);
            if verb.is_ok() && !second.is_empty() {
                argv.remove(at);
            }
            verb.map(Some)
        }
        verb if is_meant_as_verb(verb) || as_docker && !verb.starts_with('-') => Err(unknown(verb)),
        _ => {
            argv.insert(at, "build".into());
            Ok(None)
        }
    };
    match answer {
        Ok(Some(verb)) => argv[at] = verb.into(),
        Ok(None) => {}
        Err(failure) if as_docker => {
            let message = format!("docker here is rbuild {}: {}", env!("CARGO_PKG_VERSION"), failure.message);
            return Err(Failure { code: code::DOCKER_USAGE, message, ..failure });
        }
        Err(failure) => return Err(failure),
    }
    Ok(argv)
}

/// Returns true if an unknown first word was probably meant as a verb: it is neither a path nor a
/// URL.
fn is_meant_as_verb(word: &str) -> bool {
    !word.is_empty() && !word.starts_with('-') && !word.contains(['/', '.', ':']) && !Path::new(word).exists()
}

fn verb_of_group(group: &str, word: &str) -> Result<&'static str, Failure> {
    let verbs = GROUPS.iter().find(|(name, _)| *name == group).map_or(&[][..], |(_, verbs)| verbs);
    if let Some((_, verb)) = verbs.iter().find(|(name, _)| *name == word) {
        return Ok(verb);
    }
    if ["-h", "--help", "help"].contains(&word) {
        return Ok("--help");
    }
    let known = verbs.iter().map(|(name, _)| *name);
    let failure = match word {
        "" => Failure::usage(format!("`{group}` requires a verb")),
        "prune" => {
            return Err(Failure::usage(format!("`{group} prune` is called `prune` here"))
                .help("run rbuild prune to remove unused cache entries, or rbuild prune -a to empty the cache"));
        }
        _ if lacking(word).is_some() => return Err(unknown(word)),
        _ => Failure::usage(format!("`{group} {word}` is not a verb of rbuild")),
    };
    let listed = || format!("rbuild supports `{group}` with {}", known.clone().collect::<Vec<_>>().join(", "));
    let close = rbuild_dockerfile::closest(word, known.clone()).filter(|_| !word.is_empty());
    Err(failure.help(close.map_or_else(listed, |close| format!("did you mean `rbuild {group} {close}`?"))))
}

fn lacking(word: &str) -> Option<&'static (&'static [&'static str], &'static str, &'static str)> {
    LACKING.iter().find(|(words, _, _)| words.contains(&word))
}

fn unknown(word: &str) -> Failure {
    if let Some((_, why, help)) = lacking(word) {
        return Failure::usage(format!("unsupported verb `{word}`: {why}")).help(*help);
    }
    let failure = Failure::usage(format!("`{word}` is neither a verb of rbuild nor a directory to build"));
    let close = match word {
        "ls" | "list" => Some("images"),
        _ => rbuild_dockerfile::closest(word, VERBS.into_iter().chain(GROUPS.map(|(name, _)| name))),
    };
    match close {
        Some(close) => failure.help(format!("did you mean `rbuild {close}`?")),
        None => failure.help("run rbuild --help to list the verbs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &str, docker: bool) -> Result<String, Failure> {
        let argv = words.split_whitespace().map(OsString::from).collect();
        with_verb(argv, docker).map(|v| v.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_verb_is_optional_and_has_long_forms() {
        for (typed, want) in [
            ("rbuild", "rbuild build"),
            ("rbuild .", "rbuild build ."),
            ("rbuild src -t a", "rbuild build src -t a"),
            ("rbuild --output type=local,dest=bin", "rbuild build --output type=local,dest=bin"),
            ("rbuild --root /x images", "rbuild --root /x images"),
            ("rbuild -D images", "rbuild -D images"),
            ("rbuild --debug -t a .", "rbuild --debug build -t a ."),
            ("rbuild --root=/x -t a .", "rbuild --root=/x build -t a ."),
            ("rbuild buildx build -t a .", "rbuild build -t a ."),
            ("rbuild builder build -t a .", "rbuild build -t a ."),
            ("rbuild bud -t a .", "rbuild build -t a ."),
            ("rbuild image ls -q", "rbuild images -q"),
            ("rbuild image rm x", "rbuild rmi x"),
            ("rbuild image pull x", "rbuild pull x"),
            ("rbuild image prune -a", "rbuild image-prune -a"),
            ("rbuild --root /x container ls", "rbuild --root /x ps"),
            ("rbuild container prune -f", "rbuild container-prune -f"),
            ("rbuild container rm x", "rbuild rm x"),
            ("rbuild system df", "rbuild df"),
            ("rbuild buildx du", "rbuild df"),
            ("rbuild image --help", "rbuild --help"),
            ("rbuild version", "rbuild --version"),
            ("docker version", "docker --version"),
            ("rbuild ./save", "rbuild build ./save"),
            ("rbuild --version", "rbuild --version"),
        ] {
            assert_eq!(run(typed, false).unwrap(), want);
        }
    }

    #[test]
    fn unknown_verbs_are_named_regardless_of_the_rest() {
        for (typed, message, help) in [
            (
                "rbuild imagse",
                "`imagse` is neither a verb of rbuild nor a directory to build",
                "did you mean `rbuild images`?",
            ),
            (
                "rbuild biuld .",
                "`biuld` is neither a verb of rbuild nor a directory to build",
                "did you mean `rbuild build`?",
            ),
            (
                "rbuild ls -a",
                "`ls` is neither a verb of rbuild nor a directory to build",
                "did you mean `rbuild images`?",
            ),
            (
                "rbuild xyzzy -a",
                "`xyzzy` is neither a verb of rbuild nor a directory to build",
                "run rbuild --help to list the verbs",
            ),
            ("rbuild image", "`image` requires a verb", "rbuild supports `image` with ls, list, rm"),
            ("rbuild image tga a b", "`image tga` is not a verb of rbuild", "did you mean `rbuild image tag`?"),
            ("rbuild system prune -af", "`system prune` is called `prune` here", "rbuild prune -a to empty the cache"),
            (
                "rbuild exec -it x sh",
                "unsupported verb `exec`: rbuild runs containers in the foreground only",
                "rbuild run IMAGE COMMAND",
            ),
        ] {
            let failure = run(typed, false).unwrap_err();
            assert!(failure.message.starts_with(message), "{typed}: {failure:?}");
            assert!(failure.help.as_deref().unwrap_or_default().contains(help), "{typed}: {failure:?}");
            assert_eq!(failure.code, code::USAGE);
        }
        for typed in ["docker swarm init", "docker container tag a b", "docker search debian"] {
            let failure = run(typed, true).unwrap_err();
            assert_eq!(failure.code, code::DOCKER_USAGE);
            assert!(failure.message.starts_with("docker here is rbuild "), "{failure:?}");
        }
    }
}
