//! The page `docs/reference/compatibility.md`: flags and commands of other programs, and what each
//! does here. It is made by running them.

use std::path::Path;

use crate::lab::{Lab, words};

/// The effect of a flag or a command of another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Works,
    /// Works where control groups are delegated to the user, and else causes a warning.
    Delegated,
    /// Accepts other values than the other program.
    OtherValues,
    Warning,
    Refused,
    Unknown,
}

impl Effect {
    /// Returns the effect of a flag from the answer to a command line with it.
    fn of_answer(flag: &str, answer: &str) -> Effect {
        let warns = |text: &str| answer.lines().any(|line| line.starts_with(&format!("warning: {flag}{text}")));
        if answer.contains("error: unsupported ") {
            Effect::Refused
        } else if answer.contains("error: unknown flag ") || answer.contains("error: unexpected argument ") {
            Effect::Unknown
        } else if warns(" has no effect: ") {
            Effect::Delegated
        } else if warns(" is not supported yet and has no effect") {
            Effect::Warning
        } else if ["exit 2\n", "exit 125\n"].iter().any(|code| answer.starts_with(code))
            && answer.contains(&format!("error: {flag}"))
        {
            Effect::OtherValues
        } else {
            Effect::Works
        }
    }

    fn text(self) -> &'static str {
        match self {
            Effect::Works => "works",
            Effect::Delegated => "works where control groups are delegated, else a warning",
            Effect::OtherValues => "has other values",
            Effect::Warning => "no effect, with a warning",
            Effect::Refused => "refused, with the reason and the alternative",
            Effect::Unknown => "unknown",
        }
    }
}

/// A flag of other programs.
struct Flag<'a> {
    verb: &'a str,
    /// The programs, by their first letters: d, x (buildx) and p.
    programs: &'a str,
    short: Option<&'a str>,
    /// The name with dashes, and a value.
    text: &'a str,
    /// The meaning here, if it differs from that of the other programs.
    meaning: Option<&'a str>,
}

impl Flag<'_> {
    fn all() -> Vec<Flag<'static>> {
        let lines = include_str!("compatibility/flags.txt").lines().filter(|line| !line.starts_with('#'));
        let flag = |line: &'static str| {
            let (flag, meaning) = line.split_once(" | ").map_or((line, None), |(flag, meaning)| (flag, Some(meaning)));
            let mut words = flag.split_whitespace();
            let (Some(verb), Some(programs), Some(short), Some(text)) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                panic!("`{line}` is incomplete")
            };
            Flag { verb, programs, short: Some(short).filter(|short| *short != "-"), text, meaning }
        };
        lines.map(flag).collect()
    }

    fn name(&self) -> &str {
        self.text.split('=').next().unwrap_or_default()
    }

    fn effect(&self, lab: &Lab) -> String {
        // The image has no program, so that no container is started.
        let rest = if self.verb == "build" { "." } else { "demo nosuch" };
        let answer = lab.run(&words(&format!("rbuild {} {} {rest}", self.verb, self.text)));
        match (Effect::of_answer(self.name(), &answer), self.meaning) {
            (Effect::Works, Some(meaning)) => format!("works with another meaning: {meaning}"),
            (effect, _) => effect.text().to_string(),
        }
    }

    fn shown(&self) -> String {
        let short = self.short.map_or(String::new(), |short| format!("`{short}`, "));
        format!("{short}`{}`", self.name())
    }
}

/// Returns a table. Each row has a name, the letters of the programs, and an effect.
fn table(heading: &str, programs: &[(char, &str)], rows: &[(String, String, String)]) -> String {
    let names = programs.iter().map(|(_, name)| format!(" {name} |")).collect::<String>();
    let mut text = format!("| {heading} |{names} rbuild |\n|---|{}---|\n", "---|".repeat(programs.len()));
    for (name, has, effect) in rows {
        let marks = programs.iter().map(|(letter, _)| if has.contains(*letter) { " x |" } else { " |" });
        text += &format!("| {name} |{} {} |\n", marks.collect::<String>(), effect);
    }
    text
}

fn page() -> String {
    let lab = Lab::with_images();
    lab.write_bytes("Dockerfile", b"FROM base AS last\nCMD [\"true\"]\n");
    lab.write_bytes("auth.json", b"{}\n");
    let flags = Flag::all();
    let of_verb = |verb: &str| -> Vec<(String, String, String)> {
        let of = flags.iter().filter(|flag| flag.verb == verb);
        of.map(|flag| (flag.shown(), flag.programs.to_string(), flag.effect(&lab))).collect()
    };
    let build = table("flag", &[('d', "docker"), ('x', "buildx"), ('p', "podman")], &of_verb("build"));
    let run = table("flag", &[('d', "docker"), ('p', "podman")], &of_verb("run"));
    let lines = include_str!("compatibility/commands.txt").lines().filter(|line| !line.starts_with('#'));
    let commands: Vec<(String, String, String)> = lines
        .filter_map(|line| line.split_once(' '))
        .map(|(programs, command)| {
            // The help of a command of a missing group is the page of the group.
            let help = if command.starts_with("compose ") { "" } else { "help " };
            let answer = lab.run(&words(&format!("rbuild {help}{command}")));
            let effect = match Effect::of_answer("", &answer) {
                Effect::Works if answer.starts_with("exit ") => Effect::Unknown,
                effect => effect,
            };
            (format!("`{command}`"), programs.to_string(), effect.text().to_string())
        })
        .collect();
    let commands = table("command", &[('d', "docker"), ('p', "podman")], &commands);
    format!("{HEAD}\n## Flags of build\n\n{build}\n## Flags of run\n\n{run}\n## Commands\n\n{commands}")
}

const HEAD: &str = "# Compatibility with docker, buildx and podman

This page lists the flags of `docker build` (28), `docker buildx build`, `podman build` (4.3),
`docker run` and `podman run`, and the commands of docker and podman, with the effect of each in
rbuild. It is generated: a test runs rbuild with each of them, and `cargo xtask bless` writes the
page again.

A flag that is refused is named in the error, with the reason and the alternative. Flags that work
may differ in details: see [SHORTCOMINGS.md](../SHORTCOMINGS.md).
";

#[test]
fn the_page_about_compatibility_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/compatibility.md");
    let page = page();
    if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
        std::fs::write(&path, &page).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), page, "run `cargo xtask bless`");
    // A word that is answered as unknown misleads users of other programs.
    let unknown: Vec<&str> = page.lines().filter(|line| line.ends_with("| unknown |")).collect();
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
}
