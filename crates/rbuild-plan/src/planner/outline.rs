//! The inputs of a build target: arguments, secrets, SSH agents and caches. No image is read, so
//! the environments of base images are unknown.

use std::collections::HashMap;

use rbuild_dockerfile::ast::{ArgDecl, Comment, Dockerfile, Instruction, Op, Run, Stage};
use rbuild_dockerfile::{Diagnostic, MountKind, Vars, expand_mount};

use crate::parameters::Parameters;
use crate::planner::args;
use crate::planner::state::Planner;

/// The inputs of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// `None` if the target's stage has no name.
    pub name: Option<String>,
    /// From the comment above the target's stage; empty without one.
    pub description: String,
    pub args: Vec<OutlineArg>,
    pub secrets: Vec<OutlineMount>,
    pub agents: Vec<OutlineMount>,
    pub caches: Vec<OutlineMount>,
}

/// A build argument of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineArg {
    pub name: String,
    /// Value in this build. A default that contains undeclared variables or cannot be expanded
    /// is returned as written.
    pub value: String,
    pub description: String,
}

/// A secret, an SSH agent or a cache of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineMount {
    pub id: String,
    pub required: bool,
}

/// Collects the inputs of the requested target from the global arguments, its stage and the stages
/// that it needs.
///
/// # Errors
///
/// Fails if the Dockerfile has no such target, or if a global argument or the name of a base image
/// cannot be expanded.
pub fn outline(file: &Dockerfile, params: &Parameters) -> Result<Outline, Vec<Diagnostic>> {
    let images = HashMap::new();
    let mut planner = Planner::new(file, params, &images);
    let target = planner.target().map_err(|d| vec![d])?;
    args::global_args(&mut planner, target)?;
    let stage = &file.stages[target];
    let name = stage.from.name.as_ref().map(|name| name.text.to_lowercase());
    let description = name.as_deref().map_or(String::new(), |name| description(&stage.comments, name));
    let mut outline = Outline { name, description, ..Outline::default() };
    for (declaration, instruction) in file.global_args.iter().flat_map(declarations) {
        let value = planner.globals.get(&declaration.name.text).unwrap_or_default();
        outline.add_arg(declaration, instruction, value.to_string());
    }
    let mut scopes: HashMap<usize, Vars> = HashMap::new();
    let needed = planner.needed(target);
    for (index, stage) in file.stages.iter().enumerate().filter(|(index, _)| needed[*index]) {
        // The instructions of a stage that a named context replaces have no effect.
        if planner.replacement(stage).is_some() {
            continue;
        }
        let base = planner.globals.expand(&stage.from.image, file.escape).map_err(|d| vec![d])?;
        let base = planner.base_stage(&base, index).and_then(|base| scopes.get(&base));
        let mut scope = Scope { planner: &planner, vars: base.cloned().unwrap_or_default() };
        outline.add_stage(stage, &mut scope);
        scopes.insert(index, scope.vars);
    }
    Ok(outline)
}

impl Outline {
    fn add_stage(&mut self, stage: &Stage, scope: &mut Scope<'_>) {
        for instruction in &stage.instructions {
            for (declaration, instruction) in declarations(instruction) {
                let value = scope.declare(declaration);
                self.add_arg(declaration, instruction, value);
            }
            match &instruction.op {
                // Words that cannot be expanded are reported by a build.
                Op::Env(pairs) => drop(scope.vars.env(pairs, scope.planner.file.escape)),
                Op::Run(run) => self.add_mounts(run, scope),
                _ => {}
            }
        }
    }

    /// Adds an argument. One that is declared again keeps its value and description unless the
    /// later declaration has its own.
    fn add_arg(&mut self, declaration: &ArgDecl, instruction: &Instruction, value: String) {
        let name = &declaration.name.text;
        let description = description(&instruction.comments, name);
        let Some(known) = self.args.iter_mut().find(|arg| arg.name == *name) else {
            self.args.push(OutlineArg { name: name.clone(), value, description });
            return;
        };
        if !value.is_empty() {
            known.value = value;
        }
        if !description.is_empty() {
            known.description = description;
        }
    }

    /// Adds the mounts of a command. Invalid ones are skipped; a build reports them.
    fn add_mounts(&mut self, run: &Run, scope: &Scope<'_>) {
        let expand = |word| expand_mount(word, &scope.vars, scope.planner.file.escape).ok();
        for mount in run.mounts.iter().filter_map(expand) {
            let (id, list) = match mount.kind {
                MountKind::Secret => (mount.secret_id(), &mut self.secrets),
                MountKind::Ssh => (Some(mount.agent_id()), &mut self.agents),
                MountKind::Cache => (mount.id.or(mount.target).or(Some(".".into())), &mut self.caches),
                MountKind::Bind | MountKind::Tmpfs => continue,
            };
            let Some(id) = id else { continue };
            if !list.iter().any(|known| known.id == id) {
                list.push(OutlineMount { id, required: mount.required });
            }
        }
    }
}

/// The variables of a stage, except for those of the environment of its base image.
struct Scope<'a> {
    planner: &'a Planner<'a>,
    vars: Vars,
}

impl Scope<'_> {
    /// Declares an argument and returns its value.
    fn declare(&mut self, declaration: &ArgDecl) -> String {
        let (name, escape) = (&declaration.name.text, self.planner.file.escape);
        let given = self.planner.params.build_arg(name).map(str::to_string);
        let written = declaration.default.as_ref().filter(|_| given.is_none());
        let value = match written {
            Some(word) if !self.vars.undeclared(word, escape).is_empty() => Some(word.text.clone()),
            _ => {
                let value = self.vars.argument(declaration, escape, given, self.planner.globals.get(name));
                value.unwrap_or_else(|_| written.map(|word| word.text.clone()))
            }
        };
        self.vars.declare(name, value.as_deref());
        value.unwrap_or_default()
    }
}

/// Returns the declarations of an ARG, each with its instruction; none for other instructions.
fn declarations(instruction: &Instruction) -> impl Iterator<Item = (&ArgDecl, &Instruction)> {
    let list = if let Op::Arg(list) = &instruction.op { &list[..] } else { &[] };
    list.iter().map(move |declaration| (declaration, instruction))
}

/// Returns the description of `name`, the rest of the first comment above its instruction that
/// begins with the name; empty if there is none.
pub fn description(comments: &[Comment], name: &str) -> String {
    let rest = comments.iter().find_map(|comment| comment.text.strip_prefix(name)?.strip_prefix(' '));
    rest.unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use rbuild_dockerfile::parse;
    use rbuild_image::Platform;

    use super::*;
    use crate::parameters::{ContextSource, NamedContext};

    fn params() -> Parameters {
        let [host, platform] = ["linux/amd64", "linux/s390x"].map(|text| text.parse::<Platform>().unwrap());
        Parameters::new(host, platform)
    }

    fn outline_of(source: &str, params: &Parameters) -> Outline {
        outline(&parse(source.as_bytes()).unwrap(), params).unwrap()
    }

    /// Returns the arguments as `NAME=VALUE`, separated by blanks.
    fn args(source: &str, params: &Parameters) -> String {
        let args = outline_of(source, params).args;
        args.iter().map(|arg| format!("{}={}", arg.name, arg.value)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn arguments_have_the_values_that_the_planner_uses() {
        let given = Parameters { build_args: vec![("A".into(), "7".into())], ..params() };
        for (source, params, want) in [
            ("ARG A=1\nFROM base\n", params(), "A=1"),
            ("ARG A=1\nFROM base\nARG A\n", given.clone(), "A=7"),
            ("ARG A=1\nFROM base\nARG A=2\n", params(), "A=2"),
            ("FROM base\nARG A=1 B=x$A C=$A-$UNKNOWN\n", given.clone(), "A=7 B=x7 C=$A-$UNKNOWN"),
            ("FROM base\nENV A=1\nARG B=$A\n", params(), "B=1"),
            ("FROM base\nARG A\nARG A=${A:?none}\n", params(), "A=${A:?none}"),
            (
                "FROM base AS last\nARG TARGETSTAGE TARGETARCH BUILDARCH\n",
                params(),
                "TARGETSTAGE=last TARGETARCH=s390x BUILDARCH=amd64",
            ),
            // The variables of the base stage are visible, and those of other stages are not.
            ("FROM base AS a\nARG A=1\nFROM a\nARG B=$A\n", params(), "A=1 B=1"),
            ("FROM base AS A\nENV V=1\nFROM a AS b\nFROM b\nARG B=$V\n", params(), "B=1"),
            ("FROM base AS a\nENV V=1\nFROM base AS a\nENV V=2\nFROM a\nARG B=$V\n", params(), "B=2"),
            ("FROM base AS a\nARG A=1\nFROM base\nCOPY --from=a / /\nARG B=$A\n", params(), "A=1 B=$A"),
            ("ARG BASE=a\nFROM base AS a\nENV V=1\nFROM $BASE\nARG B=$V\n", params(), "BASE=a B=1"),
            ("FROM base AS unused\nARG A=1\nFROM base\nARG B=2\n", params(), "B=2"),
        ] {
            assert_eq!(args(source, &params), want, "{source}");
        }
    }

    #[test]
    fn a_replaced_stage_has_no_inputs() {
        let source = "FROM base AS a\nARG A=1\nENV V=1\nFROM a\nARG B=$V\n";
        let replaced = NamedContext { name: "a".into(), platform: None, source: ContextSource::Scratch };
        let params = Parameters { contexts: vec![replaced], ..params() };
        assert_eq!(args(source, &params), "B=$V");
        assert_eq!(outline_of(source, &Parameters { target: Some("a".into()), ..params }).args, []);
    }

    #[test]
    fn mounts_are_listed_once_with_expanded_ids() {
        let source = "FROM base\nARG K=secret M=0400\nRUN --mount=type=$K,id=tok-$M,mode=$M,required=true true\n\
            RUN --mount=type=secret,id=tok-0400 --mount=type=ssh --mount=type=cache,id=pkg,target=/p true\n\
            RUN --mount=type=cache,target=/c --mount=type=cache --mount=type=tmpfs,target=/t true\n\
            RUN --mount=type=nothing true\n";
        let found = outline_of(source, &params());
        let list = |mounts: &[OutlineMount]| {
            mounts.iter().map(|mount| format!("{} {}", mount.id, mount.required)).collect::<Vec<_>>().join(", ")
        };
        let lists = [list(&found.secrets), list(&found.agents), list(&found.caches)];
        assert_eq!(lists, ["tok-0400 true", "default false", "pkg false, /c false, . false"]);
    }

    #[test]
    fn descriptions_are_comments_that_begin_with_the_name() {
        let source = "# VERSION is what to build\nARG VERSION=1\n# other text\nARG B=1\n# old\n\n\
            # other text\n# app compiles all of it\n# and more\n\
            FROM base AS App\n# VERSION again\n# VERSION is not this\nARG VERSION\n# b is another name\nARG B\n";
        let found = outline_of(source, &params());
        assert_eq!((found.name.as_deref(), found.description.as_str()), (Some("app"), "compiles all of it"));
        let descriptions: Vec<_> = found.args.iter().map(|arg| arg.description.as_str()).collect();
        assert_eq!(descriptions, ["again", ""]);
        assert_eq!(outline_of("FROM base\n", &params()).name, None);
    }

    #[test]
    fn an_unknown_target_is_an_error() {
        let file = parse(b"FROM base AS app\n").unwrap();
        let params = Parameters { target: Some("ap".into()), ..params() };
        assert_eq!(outline(&file, &params).unwrap_err()[0].message, "target stage `ap` does not exist");
    }
}
