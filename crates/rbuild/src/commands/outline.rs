//! `--call=outline`: the arguments, secrets, SSH agents and caches of a build target.

use std::collections::HashMap;

use rbuild_dockerfile::ast::{ArgDecl, Comment, Dockerfile, Instruction, Op, Run, Stage};
use rbuild_dockerfile::{Diagnostic, MountKind, Vars, expand_mount};
use rbuild_engine::BuildRequest;
use rbuild_plan::{Analysis, Parameters, StageUse};
use serde_json::{Value, json};

use crate::ui::terminal;

/// Inputs of a target.
pub struct Outline {
    /// `None` if the target's stage has no name.
    name: Option<String>,
    description: String,
    args: Vec<Arg>,
    secrets: Vec<OutlineMount>,
    ssh: Vec<OutlineMount>,
    caches: Vec<OutlineMount>,
}

struct Arg {
    name: String,
    value: String,
    description: String,
}

struct OutlineMount {
    id: String,
    required: bool,
}

impl Outline {
    /// Collects the inputs of the requested target from its stage and the stages that it needs.
    ///
    /// # Errors
    ///
    /// Fails if the Dockerfile has no such target, or if a global argument cannot be expanded.
    pub fn of(file: &Dockerfile, request: &BuildRequest) -> Result<Outline, Diagnostic> {
        let Analysis { globals, target, stages, .. } = rbuild_plan::analyze(file, &request.parameters)?;
        let stage = &file.stages[target];
        // The instructions of a stage that a named context replaces have no effect.
        let needed = file.stages.iter().zip(&stages).filter(|(_, used)| **used == StageUse::Needed);
        let stages = needed.map(|(stage, _)| stage);
        let name = stage.from.name.as_ref().map(|n| n.text.to_lowercase());
        let description = name.as_deref().map_or(String::new(), |n| description(&stage.comments, n));
        let mut outline =
            Outline { name, description, args: Vec::new(), secrets: Vec::new(), ssh: Vec::new(), caches: Vec::new() };
        for (declaration, instruction) in file.global_args.iter().flat_map(declarations) {
            let value = globals.get(&declaration.name.text).unwrap_or_default();
            outline.add_arg(declaration, instruction, value.to_string());
        }
        let mut scopes: HashMap<String, Vars> = HashMap::new();
        for stage in stages {
            let base = globals.expand(&stage.from.image, file.escape)?;
            let vars = scopes.get(&base.to_lowercase()).cloned().unwrap_or_default();
            let mut scope = Scope { vars, globals: &globals, escape: file.escape };
            outline.add_stage(stage, &request.parameters, &mut scope);
            if let Some(name) = &stage.from.name {
                scopes.insert(name.text.to_lowercase(), scope.vars);
            }
        }
        Ok(outline)
    }

    fn add_stage(&mut self, stage: &Stage, parameters: &Parameters, scope: &mut Scope<'_>) {
        for instruction in &stage.instructions {
            for (declaration, instruction) in declarations(instruction) {
                let given = parameters.build_arg(&declaration.name.text).map(str::to_string);
                let value = scope.declare(declaration, given);
                self.add_arg(declaration, instruction, value);
            }
            match &instruction.op {
                // Words that cannot be expanded are reported by a build.
                Op::Env(pairs) => drop(scope.vars.env(pairs, scope.escape)),
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
        let Some(known) = self.args.iter_mut().find(|a| a.name == *name) else {
            self.args.push(Arg { name: name.clone(), value, description });
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
        for mount in run.mounts.iter().filter_map(|word| expand_mount(word, &scope.vars, scope.escape).ok()) {
            let (id, list) = match mount.kind {
                MountKind::Secret => (mount.secret_id(), &mut self.secrets),
                MountKind::Ssh => (Some(mount.agent_id()), &mut self.ssh),
                MountKind::Cache => (mount.id.or(mount.target).or(Some(".".into())), &mut self.caches),
                MountKind::Bind | MountKind::Tmpfs => continue,
            };
            let Some(id) = id else { continue };
            if !list.iter().any(|known| known.id == id) {
                list.push(OutlineMount { id, required: mount.required });
            }
        }
    }

    /// Returns the outline with the keys of `docker buildx build --call=outline,format=json`.
    pub fn json(&self) -> Value {
        let list = |mounts: &[OutlineMount]| -> Vec<Value> {
            mounts.iter().map(|m| json!({ "name": m.id, "required": m.required })).collect()
        };
        let arg = |a: &Arg| json!({ "name": a.name, "value": a.value, "description": a.description });
        json!({
            "name": self.name,
            "description": self.description,
            "args": self.args.iter().map(arg).collect::<Vec<_>>(),
            "secrets": list(&self.secrets),
            "ssh": list(&self.ssh),
            "cache": self.caches.iter().map(|m| json!({ "ID": m.id })).collect::<Vec<_>>(),
        })
    }

    /// Returns the outline as tables.
    pub fn text(&self) -> String {
        let mut text = format!("TARGET:      {}\n", self.name.as_deref().unwrap_or("default"));
        if !self.description.is_empty() {
            text.push_str(&format!("DESCRIPTION: {}\n", self.description));
        }
        if !self.args.is_empty() {
            let row = |a: &Arg| vec![a.name.clone(), a.value.clone(), a.description.clone()];
            let rows: Vec<Vec<String>> = self.args.iter().map(row).collect();
            text.push('\n');
            text.push_str(&terminal::table(&["BUILD ARG", "VALUE", "DESCRIPTION"], &rows));
        }
        for (heading, mounts) in [("SECRET", &self.secrets), ("SSH", &self.ssh), ("CACHE", &self.caches)] {
            if !mounts.is_empty() {
                let required = |m: &OutlineMount| if m.required { "true".to_string() } else { String::new() };
                let rows: Vec<Vec<String>> = mounts.iter().map(|m| vec![m.id.clone(), required(m)]).collect();
                text.push('\n');
                text.push_str(&terminal::table(&[heading, "REQUIRED"], &rows));
            }
        }
        text
    }
}

/// Returns the declarations of an ARG, each with its instruction; none for other instructions.
fn declarations(instruction: &Instruction) -> impl Iterator<Item = (&ArgDecl, &Instruction)> {
    let list = if let Op::Arg(list) = &instruction.op { &list[..] } else { &[] };
    list.iter().map(move |declaration| (declaration, instruction))
}

/// The variables of a stage, except for those of the environment of its base image, which is
/// unknown.
struct Scope<'a> {
    vars: Vars,
    globals: &'a Vars,
    escape: char,
}

impl Scope<'_> {
    /// Declares an argument and returns its value. A default that contains undeclared variables or
    /// cannot be expanded is returned as written.
    fn declare(&mut self, declaration: &ArgDecl, given: Option<String>) -> String {
        let name = &declaration.name.text;
        let written = declaration.default.as_ref().filter(|_| given.is_none());
        let value = match written {
            Some(word) if !self.vars.undeclared(word, self.escape).is_empty() => Some(word.text.clone()),
            _ => {
                let inherited = self.globals.get(name);
                let value = self.vars.argument(declaration, self.escape, given, inherited);
                value.unwrap_or_else(|_| written.map(|word| word.text.clone()))
            }
        };
        self.vars.declare(name, value.as_deref());
        value.unwrap_or_default()
    }
}

/// Returns the description of `name` from the comment directly above its instruction; empty unless
/// the comment begins with the name.
pub fn description(comments: &[Comment], name: &str) -> String {
    let lines: Vec<&str> = comments.iter().map(|c| c.text.as_str()).collect();
    let start = lines.iter().rposition(|l| l.is_empty()).map_or(0, |i| i + 1);
    let text = lines[start..].join(" ");
    match text.split_once(' ') {
        Some((first, rest)) if first.eq_ignore_ascii_case(name) => rest.trim().to_string(),
        _ => String::new(),
    }
}
