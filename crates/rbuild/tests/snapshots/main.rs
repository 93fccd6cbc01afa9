//! Snapshots of output of the command line: help pages, tables, and error messages. Cases are
//! data in `cases/`; the recorded answers are in `recorded/`. Needs no privileges.
//!
//! `INSTA_UPDATE=always cargo test -p rbuild --test snapshots` records the answers again; review
//! the difference before committing.

mod archive;
mod compatibility;
mod lab;
mod registry;

use lab::{Lab, sections, words};

/// Compares an answer with the recorded one of this name.
fn recorded(name: &str, answer: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("recorded");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, answer));
}

/// Runs each command line of a text in one lab and records all answers under one name.
fn record_lines(name: &str, cases: &str) {
    let lab = Lab::with_images();
    let lines = cases.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let answers: Vec<String> = lines.map(|line| format!("$ {line}\n{}", lab.run(&words(line)))).collect();
    assert!(answers.len() > 5, "{name} has {} cases", answers.len());
    recorded(name, &answers.join("\n"));
}

/// Builds each Dockerfile of a text, with the flags in its heading, and records all answers.
fn record_builds(name: &str, cases: &str) {
    let lab = Lab::with_images();
    let mut answers = String::new();
    for (heading, dockerfile) in sections(cases) {
        lab.write_bytes("context/Dockerfile", &dockerfile);
        let (title, flags) = heading.split_once(" | ").unwrap_or((heading, ""));
        let line = format!("rbuild build {flags} context");
        let answer = lab.run(&words(&line));
        let flags = if flags.is_empty() { String::new() } else { format!("{flags}\n") };
        answers += &format!("=== {title}\n{flags}{answer}\n");
    }
    recorded(name, &answers);
}

#[test]
fn every_help_page_is_as_recorded() {
    let lab = Lab::empty();
    let mut pages = vec![("rbuild".to_string(), "rbuild --help".to_string())];
    for verb in lab.verbs() {
        pages.push((verb.clone(), format!("rbuild {verb} --help")));
    }
    assert!(pages.len() > 20, "{pages:?}");
    for (name, line) in pages {
        recorded(&format!("help-{name}"), &lab.run(&words(&line)));
    }
}

#[test]
fn without_a_dockerfile_the_help_is_shown() {
    recorded("bare", &Lab::empty().run(&words("rbuild")));
}

#[test]
fn answers_to_verbs_and_flags_of_other_tools_are_as_recorded() {
    record_lines("words", include_str!("cases/words.txt"));
}

#[test]
fn errors_on_the_command_line_are_as_recorded() {
    record_lines("mistakes", include_str!("cases/mistakes.txt"));
}

#[test]
fn tables_are_as_recorded() {
    record_lines("tables", include_str!("cases/tables.txt"));
}

#[test]
fn errors_in_dockerfiles_are_as_recorded() {
    record_builds("dockerfiles", include_str!("cases/dockerfiles.txt"));
}

#[test]
fn archives_with_faults_are_refused_as_recorded() {
    let lab = Lab::empty();
    let mut answers = String::new();
    for (heading, lines) in sections(include_str!("cases/archives.txt")) {
        let archive = archive::archive(std::str::from_utf8(&lines).unwrap());
        answers += &format!("=== {heading}\n{}\n", lab.run_with(&words("rbuild build -"), &archive));
    }
    recorded("archives", &answers);
}

#[test]
fn images_with_faults_are_refused_as_recorded() {
    let lab = Lab::empty();
    let mut answers = String::new();
    for (heading, lines) in sections(include_str!("cases/images.txt")) {
        let (title, flags) = heading.split_once(" | ").unwrap_or((heading, ""));
        lab.write_bytes("image.tar", &archive::archive(std::str::from_utf8(&lines).unwrap()));
        let answer = lab.run(&words(&format!("rbuild load -i image.tar {flags}")));
        answers += &format!("=== {title}\n{answer}\n");
    }
    recorded("images", &answers);
}

#[test]
fn faults_of_registries_are_reported_as_recorded() {
    let lab = Lab::with_images();
    let mut answers = String::new();
    for (heading, lines) in sections(include_str!("cases/registries.txt")) {
        let (title, line) = heading.split_once(" | ").unwrap();
        let lines = std::str::from_utf8(&lines).unwrap();
        let host = registry::start(lines);
        let config = lines.lines().find_map(|line| line.strip_prefix("config ")).unwrap_or("{}");
        lab.write_bytes("../.docker/config.json", config.replace("$REGISTRY", &host).as_bytes());
        let answer = lab.run(&words(&line.replace("$REGISTRY", &host)));
        answers += &format!("=== {title}\n{}\n", answer.replace(&host, "[registry]"));
    }
    recorded("registries", &answers);
}

#[test]
fn damaged_files_are_reported_as_recorded() {
    record_lines("damage", include_str!("cases/damage.txt"));
}

#[test]
fn faults_of_commands_on_containers_are_reported_as_recorded() {
    record_lines("containers", include_str!("cases/containers.txt"));
}

#[test]
fn files_that_do_not_fit_are_reported_as_recorded() {
    record_lines("files", include_str!("cases/files.txt"));
}
