//! The words before the flags: verbs, docker's groups of verbs, and words that rbuild answers without having them.

use std::ffi::OsString;
use std::path::Path;

use crate::exit::{Failure, code};

const VERBS: [&str; 24] = [
    "image-prune",
    "container-prune",
    "ps",
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
    "df",
    "doctor",
    "debug",
    "help",
];

/// Groups of docker's verbs, and what rbuild has of each: the word, and the verb that it means.
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

/// Verbs of docker and podman that rbuild lacks: the words, why, and what to do.
const LACKING: [(&[&str], &str, &str); 9] = [
    (
        &["pull"],
        "pulling from a registry is not supported yet",
        "bring the image as a file: skopeo copy docker://NAME docker-archive:FILE:NAME, then rbuild load -i FILE",
    ),
    (
        &["push"],
        "pushing to a registry is not supported yet",
        "write the image to a file and push that: rbuild save -o FILE NAME, then skopeo copy docker-archive:FILE docker://NAME",
    ),
    (
        &["login", "logout", "search"],
        "rbuild has no registry client yet",
        "images come and go as files: rbuild load, rbuild save, rbuild import",
    ),
    (
        &[
            "start", "stop", "kill", "restart", "exec", "attach", "wait", "top", "stats", "port", "pause", "unpause",
            "rename", "update",
        ],
        "rbuild runs containers in the foreground only, and keeps none of them",
        "run a command in a container of an image: rbuild run IMAGE COMMAND",
    ),
    (&["commit"], "rbuild makes images of Dockerfiles", "write what was done into a Dockerfile, as RUN instructions"),
    (&["export"], "rbuild keeps no containers", "write the files of an image as a tar: rbuild cp IMAGE:/ -"),
    (
        &["info"],
        "there is no daemon to ask",
        "see what this machine allows with rbuild doctor, and what the store holds with rbuild df",
    ),
    (
        &[
            "compose", "volume", "network", "context", "swarm", "stack", "service", "node", "plugin", "secret",
            "trust", "manifest",
        ],
        "rbuild builds images, and manages nothing beside them",
        "rbuild --help lists the verbs",
    ),
    (&["bake"], "bake files are not supported yet", "build each target with rbuild --target STAGE"),
];

/// Flags of all verbs, each with a value.
const VALUED: [&str; 5] = ["--root", "--limit", "--isolation", "--lock-timeout", "--debug-log"];

/// Flags of all verbs without a value.
const SWITCHES: [&str; 2] = ["-D", "--debug"];

/// Puts the default verb where none was typed, and turns long forms (`image ls`, `buildx build`) into short ones.
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

/// Tells whether a first word that is no verb was meant as one: it names nothing that could be built.
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
        "" => Failure::usage(format!("`{group}` needs a verb")),
        "prune" => {
            return Err(Failure::usage(format!("`{group} prune` is called `prune` here")).help(
                "rbuild prune removes what no image and no recent build needs; rbuild prune -a empties the cache",
            ));
        }
        _ if lacking(word).is_some() => return Err(unknown(word)),
        _ => Failure::usage(format!("`{group} {word}` is not a verb of rbuild")),
    };
    let listed = || format!("rbuild has `{group}` with {}", known.clone().collect::<Vec<_>>().join(", "));
    let close = rbuild_dockerfile::closest(word, known.clone()).filter(|_| !word.is_empty());
    Err(failure.help(close.map_or_else(listed, |close| format!("did you mean `rbuild {group} {close}`?"))))
}

fn lacking(word: &str) -> Option<&'static (&'static [&'static str], &'static str, &'static str)> {
    LACKING.iter().find(|(words, _, _)| words.contains(&word))
}

fn unknown(word: &str) -> Failure {
    if let Some((_, why, help)) = lacking(word) {
        return Failure::usage(format!("there is no `{word}`: {why}")).help(*help);
    }
    let failure = Failure::usage(format!("`{word}` is neither a verb of rbuild nor a directory to build"));
    let close = match word {
        "ls" | "list" => Some("images"),
        _ => rbuild_dockerfile::closest(word, VERBS.into_iter().chain(GROUPS.map(|(name, _)| name))),
    };
    match close {
        Some(close) => failure.help(format!("did you mean `rbuild {close}`?")),
        None => failure.help("rbuild --help lists the verbs"),
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
    fn the_verb_may_be_left_out_or_long() {
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
    fn words_that_are_no_verbs_are_answered_by_name_whatever_follows() {
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
                "rbuild --help lists the verbs",
            ),
            ("rbuild image", "`image` needs a verb", "rbuild has `image` with ls, list, rm"),
            ("rbuild image tga a b", "`image tga` is not a verb of rbuild", "did you mean `rbuild image tag`?"),
            ("rbuild system prune -af", "`system prune` is called `prune` here", "rbuild prune -a empties the cache"),
            (
                "rbuild pull debian",
                "there is no `pull`: pulling from a registry is not supported yet",
                "rbuild load -i FILE",
            ),
            (
                "rbuild image push x",
                "there is no `push`: pushing to a registry is not supported yet",
                "rbuild save -o FILE NAME",
            ),
            (
                "rbuild exec -it x sh",
                "there is no `exec`: rbuild runs containers in the foreground only",
                "rbuild run IMAGE COMMAND",
            ),
        ] {
            let failure = run(typed, false).unwrap_err();
            assert!(failure.message.starts_with(message), "{typed}: {failure:?}");
            assert!(failure.help.as_deref().unwrap_or_default().contains(help), "{typed}: {failure:?}");
            assert_eq!(failure.code, code::USAGE);
        }
        for typed in ["docker swarm init", "docker container tag a b", "docker pull debian"] {
            let failure = run(typed, true).unwrap_err();
            assert_eq!(failure.code, code::DOCKER_USAGE);
            assert!(failure.message.starts_with("docker here is rbuild "), "{failure:?}");
        }
    }
}
