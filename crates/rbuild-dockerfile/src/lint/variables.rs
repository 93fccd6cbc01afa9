//! Rules about inherited properties of a stage: variables and their declarations, default values
//! used in FROM, the working directory and the shell.

use std::collections::HashMap;

use rbuild_remedy::Remedy;

use crate::ast::{ArgDecl, Dockerfile, Instruction, Op, Pair, Stage, Word};
use crate::lint::catalog::*;
use crate::lint::facts::{BaseFacts, Facts, StageRole};
use crate::lint::rules;
use crate::parse::parse_trigger;
use crate::variables::Vars;
use crate::{closest, is_windows};

/// Returns true for variables that need no declaration.
fn always(name: &str) -> bool {
    name == "PATH" || crate::PROXY_ARGS.contains(&name)
}

/// Variables of a stage, and other settings that a later stage inherits.
#[derive(Clone)]
struct StageVars {
    vars: Vars,
    /// The environment of the base image is unknown, so no variable is reported as undefined.
    open: bool,
    /// The stage has a WORKDIR already.
    workdir: bool,
    /// Paths follow the rules of Windows.
    windows: bool,
    /// The configuration names a shell: SHELL was set, here or in the base image.
    shell: bool,
    /// ONBUILD triggers that a stage based on this one executes first.
    triggers: Vec<Instruction>,
}

impl StageVars {
    /// Returns the variables of a base image. `windows` is true if the stage is built for Windows.
    fn of(base: Option<BaseFacts>, windows: bool) -> StageVars {
        let open = base.is_none();
        let BaseFacts { env, has_shell, triggers, foreign: _ } = base.unwrap_or_default();
        // The planner reports an invalid trigger.
        let triggers = triggers.iter().filter_map(|text| parse_trigger(text).ok()).collect();
        StageVars { vars: Vars::of_environment(&env), open, workdir: false, windows, shell: has_shell, triggers }
    }
}

/// A Dockerfile whose stages are checked.
#[derive(Clone, Copy)]
struct CheckedFile<'a> {
    file: &'a Dockerfile,
    facts: &'a Facts<'a>,
    globals: &'a Globals,
}

/// The global scope.
struct Globals {
    /// Values in this build.
    vars: Vars,
    /// Values in a build without build arguments. The names are those of `vars`.
    defaults: Vars,
}

/// Appends the violations of rules about inherited properties of stages.
pub fn check(file: &Dockerfile, facts: &Facts<'_>, found: &mut Vec<LintWarning>) {
    let globals = globals(file, facts, found);
    let checked = CheckedFile { file, facts, globals: &globals };
    let mut stages: HashMap<String, StageVars> = HashMap::new();
    for (index, stage) in file.stages.iter().enumerate() {
        from(file, &stage.from.image, &globals, found);
        if let Some(platform) = &stage.from.platform {
            undefined(file, platform, &globals.vars, &UNDEFINED_ARG_IN_FROM, found);
        }
        let image = globals.vars.expand(&stage.from.image, file.escape).unwrap_or_default();
        let mut scope = match ((facts.role)(index), stages.get(&image.to_lowercase())) {
            (StageRole::Replaced(base), _) => {
                StageVars::of(base, builds_for_windows(stage_platform(file, stage, &globals).as_deref(), facts))
            }
            (_, Some(stage)) => stage.clone(),
            (_, None) => base_vars(checked, stage, &image, found),
        };
        // The instructions of a replaced stage have no effect.
        if !matches!((facts.role)(index), StageRole::Replaced(_)) {
            for trigger in std::mem::take(&mut scope.triggers) {
                // Mistakes in a trigger are reported for the image or stage that defines it, not
                // here.
                apply(checked, &trigger, &mut scope, &mut Vec::new());
            }
            for i in &stage.instructions {
                undefined_words(file, i, &scope, found);
                apply(checked, i, &mut scope, found);
            }
        }
        if let Some(name) = &stage.from.name {
            stages.insert(name.text.to_lowercase(), scope);
        }
    }
}

/// Applies an instruction to the scope, and checks those whose meaning depends on it.
fn apply(checked: CheckedFile<'_>, i: &Instruction, scope: &mut StageVars, found: &mut Vec<LintWarning>) {
    match &i.op {
        Op::Env(pairs) => env(checked.file, pairs, &mut scope.vars),
        Op::Arg(decls) => args(checked, decls, scope, found),
        Op::Workdir(word) => workdir(checked.file, word, scope, found),
        Op::Shell(_) => scope.shell = true,
        Op::Onbuild { inner, .. } => scope.triggers.push((**inner).clone()),
        Op::Cmd(_) | Op::Entrypoint(_) if !scope.shell => rules::shell_form(i, found),
        _ => {}
    }
}

/// Returns the variables that a stage takes from its base image, and checks the image's platform. A
/// platform that cannot be expanded is left out: the planner reports the error.
fn base_vars(checked: CheckedFile<'_>, stage: &Stage, image: &str, found: &mut Vec<LintWarning>) -> StageVars {
    let CheckedFile { file, facts, globals } = checked;
    // As in BuildKit, `scratch` has the platform of the build, regardless of `FROM --platform`.
    let platform = stage_platform(file, stage, globals).filter(|_| image != "scratch");
    let base = match image {
        "scratch" => Some(BaseFacts::default()),
        _ => (facts.base)(image, platform.as_deref()),
    };
    if let Some(foreign) = base.as_ref().and_then(|base| base.foreign.as_ref()) {
        warn(found, &INVALID_BASE_IMAGE_PLATFORM, &stage.from.image, format!("base image `{image}` is for {foreign}"));
    }
    StageVars::of(base, builds_for_windows(platform.as_deref(), facts))
}

/// Returns the expanded value of `FROM --platform`.
fn stage_platform(file: &Dockerfile, stage: &Stage, globals: &Globals) -> Option<String> {
    stage.from.platform.as_ref().and_then(|word| globals.vars.expand(word, file.escape).ok())
}

/// Returns true if a stage is built for Windows. Without `platform`, the platform of the result
/// applies.
fn builds_for_windows(platform: Option<&str>, facts: &Facts<'_>) -> bool {
    let target = || facts.automatic.iter().find(|(name, _)| name == "TARGETPLATFORM").map(|(_, value)| value.as_str());
    let os = platform.or_else(target).and_then(|platform| platform.split('/').next());
    // Platforms are normalized to lower case before they become part of a configuration.
    os.is_some_and(|os| is_windows(&os.to_lowercase()))
}

fn globals(file: &Dockerfile, facts: &Facts<'_>, found: &mut Vec<LintWarning>) -> Globals {
    let mut vars = Vars::default();
    facts.automatic.iter().for_each(|(name, value)| vars.set(name, value));
    let mut globals = Globals { defaults: vars.clone(), vars };
    for i in &file.global_args {
        let Op::Arg(decls) = &i.op else { continue };
        for decl in decls {
            if let Some(default) = &decl.default {
                undefined(file, default, &globals.vars, &UNDEFINED_VAR, found);
            }
            let given = (facts.build_arg)(&decl.name.text);
            arg(file, decl, given, None, &mut globals.vars);
            arg(file, decl, None, None, &mut globals.defaults);
        }
    }
    globals
}

/// Applies a declaration. A default that cannot be expanded is empty: the planner reports the
/// error.
fn arg(file: &Dockerfile, decl: &ArgDecl, given: Option<String>, inherited: Option<&str>, vars: &mut Vars) {
    let value = vars.argument(decl, file.escape, given, inherited).unwrap_or_else(|_| Some(String::new()));
    vars.declare(&decl.name.text, value.as_deref());
}

/// Applies an ENV. If it cannot be expanded, its names are declared as written: the planner reports
/// the error.
fn env(file: &Dockerfile, pairs: &[Pair], vars: &mut Vars) {
    if vars.env(pairs, file.escape).is_err() {
        pairs.iter().for_each(|pair| vars.declare(&pair.name.text, None));
    }
}

/// Applies an ARG. Each declaration sees those before it in the same instruction, unlike the pairs
/// of ENV.
fn args(checked: CheckedFile<'_>, decls: &[ArgDecl], scope: &mut StageVars, found: &mut Vec<LintWarning>) {
    let CheckedFile { file, facts, globals } = checked;
    for decl in decls {
        if let Some(default) = decl.default.as_ref().filter(|_| !scope.open) {
            undefined(file, default, &scope.vars, &UNDEFINED_VAR, found);
        }
        let name = &decl.name.text;
        arg(file, decl, (facts.build_arg)(name), globals.vars.get(name), &mut scope.vars);
    }
}

/// Checks the first WORKDIR of a stage. Later ones are relative to it, so they are absolute if it
/// is.
fn workdir(file: &Dockerfile, word: &Word, scope: &mut StageVars, found: &mut Vec<LintWarning>) {
    if std::mem::replace(&mut scope.workdir, true) {
        return;
    }
    // The variables of an unknown image are unknown. Only the text before the first one can be
    // checked.
    let (known, shown) = match scope.open.then(|| word.text.split_once('$')).flatten() {
        Some((start, _)) => {
            let start = Word { text: start.trim_start_matches(['"', '\'']).to_string(), span: word.span };
            (scope.vars.expand(&start, file.escape).unwrap_or_default(), Some(&word.text))
        }
        None => (scope.vars.expand(word, file.escape).unwrap_or_default(), None),
    };
    let may_be_drive = shown.is_some() && scope.windows && ["c", "c:"].iter().any(|c| known.eq_ignore_ascii_case(c));
    // The planner reports an empty path.
    if !known.is_empty() && !may_be_drive && !is_absolute(&known, scope.windows) {
        let path = shown.unwrap_or(&known);
        let message = format!("`{path}` is relative to the WORKDIR of the base image");
        warn_with_help(found, &WORKDIR_RELATIVE_PATH, word, message, "use an absolute path");
    }
}

/// Returns true if the path is absolute on its operating system. An image for Windows has only
/// drive C: and no network shares.
fn is_absolute(path: &str, windows: bool) -> bool {
    if !windows {
        return path.starts_with('/');
    }
    let path = path.replace('\\', "/");
    match path.split_once(':') {
        _ if path.starts_with("//") => false,
        Some((drive, rest)) => drive.eq_ignore_ascii_case("c") && rest.starts_with('/'),
        None => path.starts_with('/'),
    }
}

/// Checks that variables in FROM are declared and that their defaults form a valid image name.
fn from(file: &Dockerfile, image: &Word, globals: &Globals, found: &mut Vec<LintWarning>) {
    if undefined(file, image, &globals.vars, &UNDEFINED_ARG_IN_FROM, found) || !image.text.contains('$') {
        return;
    }
    // A malformed word is an error of its own.
    let Ok(name) = globals.defaults.expand(image, file.escape) else { return };
    let broken =
        name.is_empty() || name.contains("//") || name.ends_with([':', '/', '@']) || name.starts_with([':', '/']);
    if broken || name.contains(char::is_whitespace) {
        let message = format!("with default values, `{}` expands to `{name}`, an invalid image name", image.text);
        warn(found, &INVALID_DEFAULT_ARG_IN_FROM, image, message);
    }
}

/// Warns about each undeclared variable of a word. Returns true if there is any.
fn undefined(file: &Dockerfile, word: &Word, vars: &Vars, rule: &'static Rule, found: &mut Vec<LintWarning>) -> bool {
    report(&vars.undeclared(word, file.escape), word, vars, rule, found)
}

/// Warns about the undeclared variables `names` of a word, except for those that may be unset.
/// Returns true if any warning was added.
fn report(names: &[String], word: &Word, vars: &Vars, rule: &'static Rule, found: &mut Vec<LintWarning>) -> bool {
    let mut any = false;
    // `${x:-default}` handles an unset variable.
    let guarded = |name: &str| ["-", ":-", "+", ":+"].iter().any(|op| word.text.contains(&format!("${{{name}{op}")));
    for name in names.iter().filter(|n| !always(n) && !guarded(n)) {
        any = true;
        let message = format!("variable `{name}` is not declared here");
        match closest(name, vars.names()) {
            Some(close) => warn_with_help(found, rule, word, message, Remedy::did_you_mean(close)),
            None => warn(found, rule, word, message),
        }
    }
    any
}

/// Warns about undeclared variables in the words of an instruction, except for those of ARG.
fn undefined_words(file: &Dockerfile, i: &Instruction, scope: &StageVars, found: &mut Vec<LintWarning>) {
    if scope.open {
        return;
    }
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
    for word in words {
        undefined(file, word, &scope.vars, &UNDEFINED_VAR, found);
    }
    let Op::Copy(copy) = &i.op else { return };
    for doc in copy.heredocs.iter().filter(|doc| doc.expand) {
        let body = Word { text: doc.content().into_owned(), span: doc.opener };
        report(&scope.vars.undeclared_in_heredoc(doc), &body, &scope.vars, &UNDEFINED_VAR, found);
    }
}
