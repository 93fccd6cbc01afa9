//! ARG, build arguments, and the arguments that configure the builder itself.

use std::collections::HashSet;

use rbuild_dockerfile::ast::{ArgDecl, Op, Stage, Word};
use rbuild_dockerfile::{Diagnostic, Span, Vars};
use rbuild_image::Platform;
use rbuild_remedy::{BuildRemedy, DockerfileRemedy, Remedy};

use crate::parameters::Parameters;
use crate::planner::state::{Planned, Planner, StageState, unsupported};

/// Build arguments that have an effect without an ARG.
pub(super) const BUILT_IN_ARGS: [&str; 11] = [
    EPOCH,
    CACHE_NAMESPACE,
    SANDBOX_HOSTNAME,
    "BUILDKIT_BUILD_NAME",
    "BUILDKIT_CONTEXT_KEEP_GIT_DIR",
    "BUILDKIT_DOCKERFILE_CHECK",
    "BUILDKIT_INLINE_CACHE",
    "BUILDKIT_MULTI_PLATFORM",
    "BUILDKIT_SBOM_SCAN_CONTEXT",
    "BUILDKIT_SBOM_SCAN_STAGE",
    "BUILDKIT_SYNTAX",
];

const EPOCH: &str = "SOURCE_DATE_EPOCH";
/// Prefix of the IDs of cache mounts: separates the caches of builds that share a store.
pub(super) const CACHE_NAMESPACE: &str = "BUILDKIT_CACHE_MOUNT_NS";
/// Host name of the containers of RUN.
pub(super) const SANDBOX_HOSTNAME: &str = "BUILDKIT_SANDBOX_HOSTNAME";
/// Arguments that only the builder reads: even an ARG in a stage does not pass them to commands.
const NEVER_IN_ENV: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// Returns the predefined global arguments. Build arguments of the same name override them.
pub(super) fn automatic_args(target: &Stage, params: &Parameters) -> Vec<(String, String)> {
    let name = || target.from.name.as_ref().map_or("default".into(), |name| name.text.to_lowercase());
    let stage = params.target.clone().unwrap_or_else(name);
    let of = |prefix: &str, p: &Platform| {
        [
            (format!("{prefix}PLATFORM"), p.to_string()),
            (format!("{prefix}OS"), p.os.clone()),
            (format!("{prefix}OSVERSION"), String::new()),
            (format!("{prefix}ARCH"), p.arch.clone()),
            (format!("{prefix}VARIANT"), p.variant.clone().unwrap_or_default()),
        ]
    };
    let platforms = [of("BUILD", &params.host), of("TARGET", &params.platform)].concat();
    let all = platforms.into_iter().chain([("TARGETSTAGE".to_string(), stage)]);
    all.map(|(name, value)| (name.clone(), params.build_arg(&name).map_or(value, str::to_string))).collect()
}

/// Checks the requested frontend. The standard one is built in; others are errors.
pub(super) fn syntax(planner: &mut Planner<'_>) -> Planned<()> {
    let directive = planner.file.directives.iter().find(|d| d.name == "syntax").map(|d| d.value.clone());
    let argument = build_arg(planner, "BUILDKIT_SYNTAX");
    let first = Span::new(0, 0);
    let wanted = match argument {
        Some(text) => Some(Word { text, span: directive.as_ref().map_or(first, |d| d.span) }),
        None => directive,
    };
    let Some(wanted) = wanted else { return Ok(()) };
    let image = wanted.text.split_whitespace().next().unwrap_or("");
    if image == "dockerfile.v0" || is_standard(image) {
        return Ok(());
    }
    let d = Diagnostic::new(wanted.span, format!("frontend `{image}` is not supported"));
    Err(d.help(Remedy::from(DockerfileRemedy::RemoveSyntax)).into())
}

pub(super) fn declared_args(planner: &Planner<'_>) -> Vec<String> {
    let all = planner.file.global_args.iter().chain(planner.file.stages.iter().flat_map(|s| &s.instructions));
    all.filter_map(|i| if let Op::Arg(decls) = &i.op { Some(decls) } else { None })
        .flatten()
        .map(|d| d.name.text.clone())
        .collect()
}

/// Returns the value of a build argument and marks it as used.
pub(super) fn build_arg(planner: &mut Planner<'_>, name: &str) -> Option<String> {
    let value = planner.params.build_arg(name).map(str::to_string);
    if value.is_some() && !planner.used_args.iter().any(|a| a == name) {
        planner.used_args.push(name.to_string());
    }
    value
}

/// Returns the value of a build argument that configures the builder, and marks it as used. As in
/// BuildKit, an empty value counts as unset, because CI systems pass unset variables as empty ones.
pub(super) fn builder_arg(planner: &mut Planner<'_>, name: &str) -> Option<String> {
    build_arg(planner, name).filter(|value| !value.is_empty())
}

/// Sets the global scope: the predefined arguments, and the ARGs before the first FROM.
///
/// # Errors
///
/// Returns the errors of the first ARG that has any.
pub(super) fn global_args(planner: &mut Planner<'_>, target: usize) -> Result<(), Vec<Diagnostic>> {
    for (key, value) in automatic_args(&planner.file.stages[target], planner.params) {
        build_arg(planner, &key);
        planner.globals.set(&key, &value);
    }
    for instruction in &planner.file.global_args {
        let Op::Arg(decls) = &instruction.op else { continue };
        let mut errors = DeclarationErrors::default();
        for decl in decls {
            let given = build_arg(planner, &decl.name.text);
            let read = DeclarationErrors::read_by(decl, &planner.globals, planner.file.escape, given.is_some());
            let value = planner.globals.argument(decl, planner.file.escape, given, None);
            if let Some(value) = errors.without(decl, &read, value) {
                planner.globals.declare(&decl.name.text, value.as_deref());
            }
        }
        errors.check()?;
    }
    Ok(())
}

/// Errors in the declarations of one ARG.
#[derive(Default)]
struct DeclarationErrors<'d> {
    /// Names whose values are unknown, because their declarations failed or read such a name.
    unknown: HashSet<&'d str>,
    errors: Vec<Diagnostic>,
}

impl<'d> DeclarationErrors<'d> {
    /// Returns the variables that a declaration reads: those of its default if no value is given.
    fn read_by(decl: &ArgDecl, vars: &Vars, escape: char, is_given: bool) -> Vec<String> {
        let default = decl.default.as_ref().filter(|_| !is_given);
        default.map(|word| vars.read_by(word, escape)).unwrap_or_default()
    }

    /// Returns the value of a declaration, or notes its error, unless that may be a consequence of
    /// an earlier one: each declaration sees the variables of those before it. `read` contains the
    /// variables that it reads.
    fn without(
        &mut self,
        decl: &'d ArgDecl,
        read: &[String],
        value: Result<Option<String>, Diagnostic>,
    ) -> Option<Option<String>> {
        let is_consequence = read.iter().any(|name| self.unknown.contains(name.as_str()));
        if is_consequence || value.is_err() {
            self.unknown.insert(&decl.name.text);
        } else {
            self.unknown.remove(decl.name.text.as_str());
        }
        match value {
            Ok(value) => Some(value),
            Err(d) => {
                self.errors.extend((!is_consequence).then_some(d));
                None
            }
        }
    }

    fn check(self) -> Result<(), Vec<Diagnostic>> {
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors) }
    }
}

/// Returns `SOURCE_DATE_EPOCH` in seconds: the build argument, or else the default of the global
/// ARG. An empty value means that there is no bound, other than that of the parameters.
pub(super) fn epoch(planner: &mut Planner<'_>) -> Planned<Option<i64>> {
    let given = build_arg(planner, EPOCH);
    let decls = planner.file.global_args.iter().filter_map(|i| if let Op::Arg(d) = &i.op { Some(d) } else { None });
    let declared = decls.flatten().filter(|d| d.name.text == EPOCH).map(|d| d.name.span).next_back();
    let span = declared.unwrap_or_default();
    let text = given.or_else(|| planner.globals.get(EPOCH).map(str::to_string)).unwrap_or_default();
    if text.is_empty() {
        return Ok(planner.params.default_epoch);
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return Ok(Some(seconds));
    }
    if text == "context" {
        return Ok(planner.params.context_epoch);
    }
    if planner.find_stage(&text, planner.file.stages.len()).is_some()
        || planner.params.context_index(&text, &planner.params.platform).is_some()
    {
        return Err(unsupported(span, &format!("{EPOCH} taken from `{text}`")).into());
    }
    let d = Diagnostic::new(span, format!("{EPOCH}={text} is neither a number of seconds nor `context`"));
    Err(d.help(Remedy::Build(BuildRemedy::TimeOfCommit)).into())
}

pub(super) fn arg(planner: &mut Planner<'_>, state: &mut StageState, decls: &[ArgDecl]) -> Planned<()> {
    let mut text = String::from("ARG");
    let mut errors = DeclarationErrors::default();
    for decl in decls {
        let name = decl.name.text.as_str();
        let given = build_arg(planner, name);
        let global = planner.globals.get(name).map(str::to_string);
        let (given, global) = match name {
            EPOCH => resolved(planner.epoch, given, global),
            _ => (given, global),
        };
        let read = DeclarationErrors::read_by(decl, &state.vars, planner.file.escape, given.is_some());
        let value = state.vars.argument(decl, planner.file.escape, given, global.as_deref());
        let Some(value) = errors.without(decl, &read, value) else { continue };
        text.push_str(&format!(" {name}"));
        if let Some(value) = &value {
            text.push_str(&format!("={value}"));
        }
        state.vars.declare(name, value.as_deref().filter(|_| !NEVER_IN_ENV.contains(&name)));
        state.args.set(name, value.as_deref().unwrap_or_default());
    }
    errors.check()?;
    planner.push_empty_layer(state, text);
    Ok(())
}

/// Returns the values of `SOURCE_DATE_EPOCH` as a build argument and as a global ARG that commands
/// see. As in BuildKit, it is the number that was resolved, and not set if there is none, except by
/// an empty default.
fn resolved(epoch: Option<i64>, given: Option<String>, global: Option<String>) -> (Option<String>, Option<String>) {
    if given.is_none() && global.as_deref() == Some("") {
        return (given, global);
    }
    let number = epoch.map(|seconds| seconds.to_string());
    (given.and(number.clone()), global.and(number))
}

/// Returns true if `image` is the standard frontend, possibly on a mirror
/// (`mirror:5000/docker/dockerfile:1`).
fn is_standard(image: &str) -> bool {
    let name = image.split('@').next().unwrap_or("");
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let name = name[last..].find(':').map_or(name, |colon| &name[..last + colon]);
    ["docker/dockerfile", "docker/dockerfile-upstream"]
        .iter()
        .any(|standard| name.strip_suffix(standard).is_some_and(|host| host.is_empty() || host.ends_with('/')))
}
