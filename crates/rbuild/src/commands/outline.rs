//! Output of `--call=outline`: the arguments, secrets, SSH agents and caches of a build target.

use rbuild_plan::{Outline, OutlineArg, OutlineMount};
use serde_json::{Value, json};

use crate::ui::terminal;

/// Returns the outline with the keys of `docker buildx build --call=outline,format=json`.
pub fn json(outline: &Outline) -> Value {
    let list = |mounts: &[OutlineMount]| -> Vec<Value> {
        mounts.iter().map(|m| json!({ "name": m.id, "required": m.required })).collect()
    };
    let arg = |a: &OutlineArg| json!({ "name": a.name, "value": a.value, "description": a.description });
    json!({
        "name": outline.name,
        "description": outline.description,
        "args": outline.args.iter().map(arg).collect::<Vec<_>>(),
        "secrets": list(&outline.secrets),
        "ssh": list(&outline.agents),
        "cache": outline.caches.iter().map(|m| json!({ "ID": m.id })).collect::<Vec<_>>(),
    })
}

/// Returns the outline as tables.
pub fn text(outline: &Outline) -> String {
    let mut text = format!("TARGET:      {}\n", outline.name.as_deref().unwrap_or("default"));
    if !outline.description.is_empty() {
        text.push_str(&format!("DESCRIPTION: {}\n", outline.description));
    }
    if !outline.args.is_empty() {
        let row = |a: &OutlineArg| vec![a.name.clone(), a.value.clone(), a.description.clone()];
        let rows: Vec<Vec<String>> = outline.args.iter().map(row).collect();
        text.push('\n');
        text.push_str(&terminal::table(&["BUILD ARG", "VALUE", "DESCRIPTION"], &rows));
    }
    for (heading, mounts) in [("SECRET", &outline.secrets), ("SSH", &outline.agents), ("CACHE", &outline.caches)] {
        if !mounts.is_empty() {
            let required = |m: &OutlineMount| if m.required { "true".to_string() } else { String::new() };
            let rows: Vec<Vec<String>> = mounts.iter().map(|m| vec![m.id.clone(), required(m)]).collect();
            text.push('\n');
            text.push_str(&terminal::table(&[heading, "REQUIRED"], &rows));
        }
    }
    text
}
