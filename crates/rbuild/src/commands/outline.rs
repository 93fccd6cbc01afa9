//! `--call=outline`: the arguments, secrets, SSH agents and caches of a build target.

use rbuild_dockerfile::ast::{ArgDecl, Comment, Dockerfile, Instruction, Op, Run, Stage};
use rbuild_dockerfile::expand::Lexer;
use rbuild_dockerfile::{Diagnostic, MountKind, parse_mount};
use rbuild_engine::BuildRequest;
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
        let stages = rbuild_plan::needed_stages(file, &request.parameters)?;
        let stages: Vec<&Stage> = stages.into_iter().map(|index| &file.stages[index]).collect();
        let stage = stages[stages.len() - 1];
        let name = stage.from.name.as_ref().map(|n| n.text.to_lowercase());
        let description = name.as_deref().map_or(String::new(), |n| description(&stage.comments, n));
        let mut outline =
            Outline { name, description, args: Vec::new(), secrets: Vec::new(), ssh: Vec::new(), caches: Vec::new() };
        for instruction in file.global_args.iter().chain(stages.iter().flat_map(|s| &s.instructions)) {
            match &instruction.op {
                Op::Arg(declarations) => {
                    declarations.iter().for_each(|d| outline.add_arg(d, instruction, request, file.escape));
                }
                Op::Run(run) => outline.add_mounts(run),
                _ => {}
            }
        }
        Ok(outline)
    }

    /// Adds an argument. A stage that redeclares a global one keeps its default and description
    /// unless it has its own.
    fn add_arg(&mut self, declaration: &ArgDecl, instruction: &Instruction, request: &BuildRequest, escape: char) {
        let name = &declaration.name.text;
        let given = request.parameters.build_arg(name).map(str::to_string);
        let default = declaration.default.as_ref().map(|word| self.expand(&word.text, escape));
        let value = given.or(default).unwrap_or_default();
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

    /// Expands the arguments that are known. Text with other variables stays as it is written.
    fn expand(&self, text: &str, escape: char) -> String {
        let lookup = |name: &str| self.args.iter().find(|arg| arg.name == name).map(|arg| arg.value.clone());
        match Lexer::new(escape).word(text, &lookup) {
            Ok(expanded) if expanded.unmatched.is_empty() => expanded.text,
            _ => text.to_string(),
        }
    }

    fn add_mounts(&mut self, run: &Run) {
        for mount in run.mounts.iter().filter_map(|w| parse_mount(&w.text, w.span).ok()) {
            let id = mount.id.or(mount.target).unwrap_or_else(|| "default".into());
            let list = match mount.kind {
                MountKind::Secret => &mut self.secrets,
                MountKind::Ssh => &mut self.ssh,
                MountKind::Cache => &mut self.caches,
                MountKind::Bind | MountKind::Tmpfs => continue,
            };
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
