//! Docker's groups of verbs (`image ls`, `buildx build`), and what their words mean.

/// A word of a group of verbs.
#[derive(Clone, Copy)]
pub enum GroupWord {
    /// A verb of rbuild.
    Verb(&'static str),
    /// A verb of rbuild with a flag.
    VerbWith(&'static str, &'static str),
    /// A command without effect: text for standard output, and a note.
    Nothing(&'static str, &'static str),
}

const NO_BUILDERS: &str = "rbuild has no builders; nothing to do";

/// Groups of docker verbs, with the words that rbuild supports.
const GROUPS: [(&str, &[(&str, GroupWord)]); 7] = [
    (
        "volume",
        &[
            ("ls", GroupWord::Verb("volume-ls")),
            ("list", GroupWord::Verb("volume-ls")),
            ("create", GroupWord::Verb("volume-create")),
            ("rm", GroupWord::Verb("volume-rm")),
            ("remove", GroupWord::Verb("volume-rm")),
            ("inspect", GroupWord::Verb("volume-inspect")),
            ("prune", GroupWord::Verb("volume-prune")),
        ],
    ),
    (
        "image",
        &[
            ("ls", GroupWord::Verb("images")),
            ("list", GroupWord::Verb("images")),
            ("rm", GroupWord::Verb("rmi")),
            ("remove", GroupWord::Verb("rmi")),
            ("prune", GroupWord::Verb("image-prune")),
            ("build", GroupWord::Verb("build")),
            ("history", GroupWord::Verb("history")),
            ("import", GroupWord::Verb("import")),
            ("inspect", GroupWord::VerbWith("inspect", "--type=image")),
            ("load", GroupWord::Verb("load")),
            ("pull", GroupWord::Verb("pull")),
            ("push", GroupWord::Verb("push")),
            ("save", GroupWord::Verb("save")),
            ("tag", GroupWord::Verb("tag")),
        ],
    ),
    (
        "container",
        &[
            ("ls", GroupWord::Verb("ps")),
            ("list", GroupWord::Verb("ps")),
            ("ps", GroupWord::Verb("ps")),
            ("rm", GroupWord::Verb("rm")),
            ("remove", GroupWord::Verb("rm")),
            ("prune", GroupWord::Verb("container-prune")),
            ("cp", GroupWord::Verb("cp")),
            ("create", GroupWord::Verb("create")),
            ("run", GroupWord::Verb("run")),
            ("exec", GroupWord::Verb("exec")),
            ("start", GroupWord::Verb("start")),
            ("stop", GroupWord::Verb("stop")),
            ("restart", GroupWord::Verb("restart")),
            ("kill", GroupWord::Verb("kill")),
            ("wait", GroupWord::Verb("wait")),
            ("port", GroupWord::Verb("port")),
            ("diff", GroupWord::Verb("diff")),
            ("commit", GroupWord::Verb("commit")),
            ("logs", GroupWord::Verb("logs")),
            ("pause", GroupWord::Verb("pause")),
            ("unpause", GroupWord::Verb("unpause")),
            ("top", GroupWord::Verb("top")),
            ("stats", GroupWord::Verb("stats")),
            ("rename", GroupWord::Verb("rename")),
            ("export", GroupWord::Verb("export")),
            ("inspect", GroupWord::VerbWith("inspect", "--type=container")),
        ],
    ),
    (
        "buildx",
        &[
            ("build", GroupWord::Verb("build")),
            ("b", GroupWord::Verb("build")),
            ("du", GroupWord::Verb("df")),
            ("prune", GroupWord::Verb("builder-prune")),
            ("version", GroupWord::Verb("--version")),
            ("create", GroupWord::Nothing("rbuild\n", NO_BUILDERS)),
            ("use", GroupWord::Nothing("", NO_BUILDERS)),
            ("rm", GroupWord::Nothing("", NO_BUILDERS)),
            ("stop", GroupWord::Nothing("", NO_BUILDERS)),
            ("install", GroupWord::Nothing("", NO_BUILDERS)),
            (
                "inspect",
                GroupWord::Nothing("Name:   rbuild\nDriver: none\nStatus: running\n", "rbuild has no builders"),
            ),
            (
                "ls",
                GroupWord::Nothing(
                    "NAME/NODE   DRIVER   STATUS\nrbuild*     none     running\n",
                    "rbuild has no builders",
                ),
            ),
        ],
    ),
    (
        "builder",
        &[
            ("build", GroupWord::Verb("build")),
            ("du", GroupWord::Verb("df")),
            ("prune", GroupWord::Verb("builder-prune")),
        ],
    ),
    ("cache", &[("export", GroupWord::Verb("cache-export")), ("import", GroupWord::Verb("cache-import"))]),
    (
        "system",
        &[
            ("df", GroupWord::Verb("df")),
            ("prune", GroupWord::Verb("system-prune")),
            ("info", GroupWord::Nothing(INFO, INFO_NOTE)),
        ],
    ),
];

/// The answer to `info` and `system info`.
pub const INFO: &str = concat!("Client: rbuild ", env!("CARGO_PKG_VERSION"), "\nServer: none; rbuild has no daemon\n");
/// The note below that answer.
pub const INFO_NOTE: &str = "run `rbuild doctor` to check this machine";

/// Returns true for the name of a group.
pub fn is_group(word: &str) -> bool {
    names().any(|name| name == word)
}

/// Returns the names of the groups.
pub fn names() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().map(|(name, _)| *name)
}

/// Returns the groups, each with its words that stand for verbs of rbuild, and those verbs.
pub fn groups() -> impl Iterator<Item = (&'static str, impl Iterator<Item = (&'static str, &'static str)>)> {
    GROUPS.iter().map(|(group, words)| {
        let verbs = words.iter().filter_map(|(word, meaning)| match meaning {
            GroupWord::Verb(verb) | GroupWord::VerbWith(verb, _) => Some((*word, *verb)),
            GroupWord::Nothing(..) => None,
        });
        (*group, verbs)
    })
}

/// Returns the words of a group, with their meanings.
pub fn words_of_group(group: &str) -> &'static [(&'static str, GroupWord)] {
    GROUPS.iter().find(|(name, _)| *name == group).map_or(&[], |(_, words)| words)
}

/// Returns the help page of a group.
pub fn page_of_group(group: &str) -> String {
    let pages = crate::cli::clap_command::pages();
    let about = |word: &GroupWord| match word {
        GroupWord::Verb(verb) | GroupWord::VerbWith(verb, _) => {
            pages.find_subcommand(verb).and_then(|verb| verb.get_about().map(ToString::to_string))
        }
        GroupWord::Nothing(..) => Some("Accepted for compatibility".into()),
    };
    let mut text = format!("Usage: rbuild {group} COMMAND …\n\nCommands:\n");
    for (name, word) in words_of_group(group) {
        text += &format!("  {name:10}{}\n", about(word).unwrap_or("Print the version".into()));
    }
    text
}
