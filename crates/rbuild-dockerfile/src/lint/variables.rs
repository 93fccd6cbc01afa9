//! Rules about variables: declarations, and default values used in FROM.

use std::collections::{HashMap, HashSet};

use crate::ast::{Dockerfile, Instruction, Op, Word};
use crate::closest;
use crate::expand::Lexer;
use crate::lint::catalog::*;
use crate::lint::facts::Facts;

/// Returns true for variables that need no declaration.
fn always(name: &str) -> bool {
    name == "PATH" || crate::PROXY_ARGS.contains(&name)
}

#[derive(Clone)]
struct VariableScope {
    names: HashSet<String>,
    /// The environment of the base image is unknown, so no variable is reported as undefined.
    open: bool,
    /// The stage has an absolute WORKDIR already.
    workdir: bool,
}

pub fn check(file: &Dockerfile, facts: &Facts<'_>, found: &mut Vec<LintWarning>) {
    let globals = globals(file, facts, found);
    let global_names: HashSet<String> = globals.keys().cloned().collect();
    let mut stages: HashMap<String, VariableScope> = HashMap::new();
    for stage in &file.stages {
        from(file, &stage.from.image, &globals, &global_names, found);
        if let Some(platform) = &stage.from.platform {
            undefined(file, platform, &global_names, &UNDEFINED_ARG_IN_FROM, found);
        }
        let image = expand(file, &stage.from.image.text, &|name| globals.get(name)?.value.clone());
        let of_image = || {
            let env = if image == "scratch" { Some(Vec::new()) } else { (facts.base_env)(&image) };
            let open = env.is_none();
            let names = env.unwrap_or_default().iter().map(|e| e.split('=').next().unwrap_or(e).to_string()).collect();
            VariableScope { names, open, workdir: false }
        };
        let mut scope = stages.get(&image.to_lowercase()).cloned().unwrap_or_else(of_image);
        for i in &stage.instructions {
            instruction(file, i, &mut scope, found);
        }
        if let Some(name) = &stage.from.name {
            stages.insert(name.text.to_lowercase(), scope);
        }
    }
}

/// A variable of the global scope.
struct Global {
    /// Value in this build.
    value: Option<String>,
    /// Value in a build without build arguments.
    default: Option<String>,
}

type Globals = HashMap<String, Global>;

fn globals(file: &Dockerfile, facts: &Facts<'_>, found: &mut Vec<LintWarning>) -> Globals {
    let automatic = |value: &String| Global { value: Some(value.clone()), default: Some(value.clone()) };
    let mut globals: Globals = facts.automatic.iter().map(|(k, v)| (k.clone(), automatic(v))).collect();
    let mut names: HashSet<String> = globals.keys().cloned().collect();
    for i in &file.global_args {
        let Op::Arg(decls) = &i.op else { continue };
        for decl in decls {
            if let Some(default) = &decl.default {
                undefined(file, default, &names, &UNDEFINED_VAR, found);
            }
            let name = &decl.name.text;
            let written = |of: fn(&Global) -> Option<String>| {
                let lookup = |name: &str| globals.get(name).and_then(of);
                decl.default.as_ref().map(|d| expand(file, &d.text, &lookup))
            };
            // An ARG without a value keeps the one of a predefined variable.
            let before = |of: fn(&Global) -> Option<String>| globals.get(name).and_then(of);
            let (value, default) = (|global: &Global| global.value.clone(), |global: &Global| global.default.clone());
            let global = Global {
                value: (facts.build_arg)(name).or_else(|| written(value)).or_else(|| before(value)),
                default: written(default).or_else(|| before(default)),
            };
            names.insert(name.clone());
            globals.insert(name.clone(), global);
        }
    }
    globals
}

fn expand(file: &Dockerfile, text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    Lexer::new(file.escape).word(text, lookup).map(|e| e.text).unwrap_or_default()
}

/// Checks that variables in FROM are declared and that their defaults form a valid image name.
fn from(file: &Dockerfile, image: &Word, globals: &Globals, names: &HashSet<String>, found: &mut Vec<LintWarning>) {
    if undefined(file, image, names, &UNDEFINED_ARG_IN_FROM, found) || !image.text.contains('$') {
        return;
    }
    let name = expand(file, &image.text, &|name| globals.get(name)?.default.clone());
    let broken =
        name.is_empty() || name.contains("//") || name.ends_with([':', '/', '@']) || name.starts_with([':', '/']);
    if broken || name.contains(char::is_whitespace) {
        let message = format!("with default values, `{}` expands to `{name}`, an invalid image name", image.text);
        warn(found, &INVALID_DEFAULT_ARG_IN_FROM, image, message);
    }
}

/// Warns about each variable that is not in `names`. Returns true if there was one.
fn undefined(
    file: &Dockerfile,
    word: &Word,
    names: &HashSet<String>,
    rule: &'static Rule,
    found: &mut Vec<LintWarning>,
) -> bool {
    let lookup = |name: &str| names.contains(name).then(String::new);
    let Ok(got) = Lexer::new(file.escape).word(&word.text, &lookup) else { return false };
    let mut any = false;
    // `${x:-default}` handles an unset variable.
    let guarded = |name: &str| ["-", ":-", "+", ":+"].iter().any(|op| word.text.contains(&format!("${{{name}{op}")));
    for name in got.unmatched.iter().filter(|n| !always(n) && !guarded(n)) {
        any = true;
        let hint =
            closest(name, names.iter().map(String::as_str)).map_or(String::new(), |c| format!("; did you mean `{c}`?"));
        warn(found, rule, word, format!("variable `{name}` is not declared here{hint}"));
    }
    any
}

fn instruction(file: &Dockerfile, i: &Instruction, scope: &mut VariableScope, found: &mut Vec<LintWarning>) {
    let words: Vec<&Word> = match &i.op {
        Op::Env(pairs) | Op::Label(pairs) => pairs.iter().flat_map(|p| [&p.name, &p.value]).collect(),
        Op::Workdir(word) | Op::User(word) | Op::Stopsignal(word) => vec![word],
        Op::Expose(words) | Op::Volume(words) => words.iter().collect(),
        Op::Copy(copy) => {
            let flags = [&copy.chown, &copy.chmod, &copy.checksum].into_iter().flatten();
            copy.sources.iter().chain([&copy.dest]).chain(flags).collect()
        }
        Op::Run(run) => run.mounts.iter().collect(),
        _ => Vec::new(),
    };
    if !scope.open {
        for word in words {
            undefined(file, word, &scope.names, &UNDEFINED_VAR, found);
        }
    }
    match &i.op {
        Op::Env(pairs) => scope.names.extend(pairs.iter().map(|p| p.name.text.clone())),
        // Each declaration sees those before it in the same instruction, unlike the pairs of ENV.
        Op::Arg(decls) => {
            for decl in decls {
                if let Some(default) = decl.default.as_ref().filter(|_| !scope.open) {
                    undefined(file, default, &scope.names, &UNDEFINED_VAR, found);
                }
                scope.names.insert(decl.name.text.clone());
            }
        }
        Op::Workdir(word) if word.text.starts_with('/') || word.text.starts_with('$') => scope.workdir = true,
        Op::Workdir(word) if !scope.workdir => {
            let message = format!("`{}` is relative to the WORKDIR of the base image; use an absolute path", word.text);
            warn(found, &WORKDIR_RELATIVE_PATH, word, message);
        }
        _ => {}
    }
}
