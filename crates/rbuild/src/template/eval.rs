//! Evaluates the nodes of a template.

use rbuild_dockerfile::closest;
use serde_json::Value;

use crate::template::error::TemplateError;
use crate::template::parse::{Operand, Pipeline, Root, TemplateNode};

type Result<T> = std::result::Result<T, TemplateError>;

/// Objects with arbitrary keys, in which a missing key is not an error.
const OPEN: [&str; 7] = ["Labels", "Annotations", "ExposedPorts", "Volumes", "Options", "Data", "Networks"];
/// Text that Go prints for a missing key. It represents the missing value during evaluation.
const NO_VALUE: &str = "<no value>";

/// Fields that are lists in docker. One that is null prints as an empty list, as in Go.
const LISTS: [&str; 15] = [
    "Env",
    "Cmd",
    "Entrypoint",
    "OnBuild",
    "Shell",
    "RepoTags",
    "RepoDigests",
    "Layers",
    "Test",
    "Args",
    "Binds",
    "CapAdd",
    "CapDrop",
    "GroupAdd",
    "SecurityOpt",
];
/// Fields that are maps in docker. One that is null prints as an empty map, as in Go.
const MAPS: [&str; 3] = ["Labels", "ExposedPorts", "Volumes"];

const FUNCTIONS: [&str; 25] = [
    "and", "eq", "ge", "gt", "html", "index", "join", "json", "le", "len", "lower", "lt", "ne", "not", "or", "pad",
    "print", "printf", "println", "slice", "split", "title", "truncate", "upper", "urlquery",
];

/// Renders nodes with `value` as the data.
pub fn render(nodes: &[TemplateNode], value: &Value) -> Result<String> {
    let mut scope = RenderScope { variables: vec![("$".into(), value.clone())], out: String::new() };
    scope.nodes(nodes, value)?;
    Ok(scope.out)
}

struct RenderScope {
    variables: Vec<(String, Value)>,
    out: String,
}

impl RenderScope {
    fn nodes(&mut self, nodes: &[TemplateNode], dot: &Value) -> Result<()> {
        let depth = self.variables.len();
        for node in nodes {
            self.node(node, dot)?;
        }
        self.variables.truncate(depth);
        Ok(())
    }

    fn node(&mut self, node: &TemplateNode, dot: &Value) -> Result<()> {
        match node {
            TemplateNode::Text(text) => self.out.push_str(text),
            TemplateNode::Print(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                self.out.push_str(&shown(&value));
            }
            TemplateNode::Set(name, pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                match self.variables.iter_mut().rev().find(|(n, _)| n == name) {
                    Some(known) => known.1 = value,
                    None => self.variables.push((name.clone(), value)),
                }
            }
            TemplateNode::If(condition, body, otherwise) => {
                let branch = if truth(&self.pipeline(condition, dot)?) { body } else { otherwise };
                self.nodes(branch, dot)?;
            }
            TemplateNode::With(pipeline, body, otherwise) => {
                let value = self.pipeline(pipeline, dot)?;
                if truth(&value) {
                    self.nodes(body, &value)?;
                } else {
                    self.nodes(otherwise, dot)?;
                }
            }
            TemplateNode::Range { names, over, body, otherwise } => {
                let items: Vec<(Value, Value)> = match self.pipeline(over, dot)? {
                    Value::Array(list) => list.into_iter().enumerate().map(|(i, v)| (i.into(), v)).collect(),
                    Value::Object(map) => map.into_iter().map(|(k, v)| (k.into(), v)).collect(),
                    Value::Null => Vec::new(),
                    other => return Err(TemplateError::NotIterable(shown(&other))),
                };
                if items.is_empty() {
                    return self.nodes(otherwise, dot);
                }
                for (key, value) in items {
                    let depth = self.variables.len();
                    match &names[..] {
                        [k, v] => self.variables.extend([(k.clone(), key), (v.clone(), value.clone())]),
                        [v] => self.variables.push((v.clone(), value.clone())),
                        _ => {}
                    }
                    self.nodes(body, &value)?;
                    self.variables.truncate(depth);
                }
            }
        }
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value> {
        let mut last: Option<Evaluated> = None;
        for command in &pipeline.0 {
            last = Some(self.command(command, last, dot)?);
        }
        Ok(last.map_or(Value::Null, Evaluated::typed))
    }

    fn command(&mut self, command: &[Operand], piped: Option<Evaluated>, dot: &Value) -> Result<Evaluated> {
        if let Operand::Function(name) = &command[0] {
            let mut args = Vec::new();
            for operand in &command[1..] {
                args.push(self.operand(operand, dot)?);
            }
            args.extend(piped);
            // In JSON, an empty list that does not exist is null.
            let of_arg = if name == "json" { Evaluated::raw } else { Evaluated::typed };
            let args: Vec<Value> = args.into_iter().map(of_arg).collect();
            return call(name, &args).map(Evaluated::of);
        }
        match (command, piped) {
            ([one], None) => self.operand(one, dot),
            _ => Err(TemplateError::NotAFunction),
        }
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Evaluated> {
        match operand {
            Operand::Literal(value) => Ok(Evaluated::of(value.clone())),
            Operand::Function(name) => call(name, &[]).map(Evaluated::of),
            Operand::Path(root, path) => {
                let value = match root {
                    Root::Dot => dot.clone(),
                    Root::Nested(pipeline) => self.pipeline(pipeline, dot)?,
                    Root::Variable(name) => match self.variables.iter().rev().find(|(n, _)| n == name) {
                        Some((_, value)) => value.clone(),
                        None => return Err(TemplateError::NoVariable(name.clone())),
                    },
                };
                let value = field(value, path)?;
                let empty = path.last().map_or(Value::Null, |name| empty_of(name));
                Ok(Evaluated { value, empty })
            }
        }
    }
}

/// The value of an operand.
struct Evaluated {
    value: Value,
    /// The value that null stands for.
    empty: Value,
}

impl Evaluated {
    fn of(value: Value) -> Evaluated {
        Evaluated { value, empty: Value::Null }
    }

    fn raw(self) -> Value {
        self.value
    }

    /// Returns the value, with an empty list or map in place of null where docker has one.
    fn typed(self) -> Value {
        if self.value.is_null() { self.empty } else { self.value }
    }
}

/// Returns the value of a field that does not exist.
fn empty_of(name: &str) -> Value {
    match name {
        name if LISTS.contains(&name) => Value::Array(Vec::new()),
        name if MAPS.contains(&name) => Value::Object(serde_json::Map::new()),
        _ => Value::Null,
    }
}

/// Looks up a path of fields.
fn field(mut value: Value, path: &[String]) -> Result<Value> {
    let mut open = false;
    for name in path {
        value = match value {
            Value::Object(mut map) => match map.remove(name) {
                Some(found) => found,
                None if open => Value::String(NO_VALUE.into()),
                None => {
                    let known: Vec<&str> = map.keys().map(String::as_str).collect();
                    let closest = closest(name, known).map(str::to_string);
                    return Err(TemplateError::NoField { name: name.clone(), closest });
                }
            },
            Value::Null if open => Value::String(NO_VALUE.into()),
            Value::Null => Value::Null,
            other => return Err(TemplateError::NoFields { value: shown(&other), name: name.clone() }),
        };
        open = OPEN.contains(&name.as_str());
    }
    Ok(value)
}

/// Formats a value like Go.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".into(),
        Value::Array(list) => format!("[{}]", list.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut pairs: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", shown(v))).collect();
            pairs.sort();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

/// Returns the truth value of Go templates: false for empty and zero values.
fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty() && text != NO_VALUE,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Calls a function of docker's templates.
fn call(name: &str, args: &[Value]) -> Result<Value> {
    let text = |i: usize| args.get(i).map(shown);
    Ok(match (name, args) {
        ("json", [v]) => v.to_string().into(),
        ("len", [Value::String(s)]) => s.len().into(),
        ("len", [Value::Array(list)]) => list.len().into(),
        ("len", [Value::Object(map)]) => map.len().into(),
        ("index", [first, keys @ ..]) => return index(first, keys),
        ("join", [Value::Array(list), Value::String(by)]) => list.iter().map(shown).collect::<Vec<_>>().join(by).into(),
        ("split", [Value::String(s), Value::String(by)]) => s.split(by.as_str()).collect::<Vec<_>>().into(),
        ("lower", [Value::String(s)]) => s.to_lowercase().into(),
        ("upper", [Value::String(s)]) => s.to_uppercase().into(),
        ("title", [Value::String(s)]) => title(s).into(),
        ("truncate", [Value::String(s), Value::Number(n)]) => {
            s.chars().take(n.as_u64().unwrap_or(0) as usize).collect::<String>().into()
        }
        ("pad", [Value::String(s), Value::Number(before), Value::Number(after)]) => {
            let blanks = |n: &serde_json::Number| " ".repeat(n.as_u64().unwrap_or(0).min(1000) as usize);
            format!("{}{s}{}", blanks(before), blanks(after)).into()
        }
        ("slice", [Value::String(s), Value::Number(from), rest @ ..]) => {
            let to = rest.first().and_then(Value::as_u64).map_or(s.len(), |n| n as usize);
            match s.get(from.as_u64().unwrap_or(0) as usize..to) {
                Some(part) => part.into(),
                None => return Err(TemplateError::BadSlice),
            }
        }
        ("print", _) => args.iter().map(shown).collect::<Vec<_>>().join(" ").into(),
        ("println", _) => (args.iter().map(shown).collect::<Vec<_>>().join(" ") + "\n").into(),
        ("printf", [Value::String(format), rest @ ..]) => printf(format, rest).into(),
        ("html" | "urlquery", [_]) => text(0).into(),
        ("not", [v]) => (!truth(v)).into(),
        ("and", [_, ..]) => args.iter().find(|v| !truth(v)).or(args.last()).cloned().unwrap_or_default(),
        ("or", [_, ..]) => args.iter().find(|v| truth(v)).or(args.last()).cloned().unwrap_or_default(),
        ("eq", [first, others @ ..]) if !others.is_empty() => others.iter().any(|o| o == first).into(),
        ("ne", [a, b]) => (a != b).into(),
        ("lt" | "le" | "gt" | "ge", [a, b]) => return compare(name, a, b),
        (known, _) if FUNCTIONS.contains(&known) => return Err(TemplateError::BadArguments(known.to_string())),
        (other, _) => {
            let closest = closest(other, FUNCTIONS);
            return Err(TemplateError::NoFunction { name: other.to_string(), closest });
        }
    })
}

fn title(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
}

fn index(value: &Value, keys: &[Value]) -> Result<Value> {
    let mut at = value;
    for key in keys {
        at = match (at, key) {
            (Value::Array(list), Value::Number(n)) => match n.as_u64().and_then(|n| list.get(n as usize)) {
                Some(found) => found,
                None => return Err(TemplateError::BadIndex { index: n.to_string(), items: list.len() }),
            },
            // In Go, a missing key of a map of strings yields an empty string, as does a nil map.
            (Value::Null, Value::String(_)) => return Ok("".into()),
            (Value::Object(map), Value::String(key)) => match map.get(key) {
                Some(found) => found,
                None => return Ok("".into()),
            },
            _ => return Err(TemplateError::NoElement { value: shown(at), key: shown(key) }),
        };
    }
    Ok(at.clone())
}

fn compare(name: &str, a: &Value, b: &Value) -> Result<Value> {
    let order = match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
        _ => None,
    };
    let Some(order) = order else { return Err(TemplateError::DifferentTypes(name.to_string())) };
    Ok(match name {
        "lt" => order.is_lt(),
        "le" => order.is_le(),
        "gt" => order.is_gt(),
        _ => order.is_ge(),
    }
    .into())
}

/// Formats like Go: the verbs `%s %d %v %q %x %t %f %%`, with width, `-`, `0` and precision.
fn printf(format: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut args = args.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = String::new();
        while let Some(c) = chars.next_if(|c| c.is_ascii_digit() || "-+#0. ".contains(*c)) {
            spec.push(c);
        }
        match chars.next() {
            Some('%') => out.push('%'),
            Some(verb) => match args.next() {
                Some(value) => out.push_str(&verb_text(verb, &spec, value)),
                None => out.push_str(&format!("%!{verb}(MISSING)")),
            },
            None => out.push_str("%!(NOVERB)"),
        }
    }
    out
}

fn verb_text(verb: char, spec: &str, value: &Value) -> String {
    let (width, precision) = spec.split_once('.').unwrap_or((spec, ""));
    let precision: Option<usize> = precision.parse().ok().map(|p: usize| p.min(1000));
    let mut text = match (verb, value) {
        ('q', value) => rbuild_image::quote(&shown(value)),
        ('x', Value::Number(n)) => n.as_u64().map_or_else(|| n.to_string(), |n| format!("{n:x}")),
        ('f', Value::Number(n)) => format!("{:.*}", precision.unwrap_or(6), n.as_f64().unwrap_or(0.0)),
        (_, value) => shown(value),
    };
    if let (Some(precision), 's' | 'v') = (precision, verb) {
        text = text.chars().take(precision).collect();
    }
    let left = width.contains('-');
    let fill = if width.starts_with('0') && !left { "0" } else { " " };
    let width: usize = width.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0);
    let missing = fill.repeat(width.min(1000).saturating_sub(text.chars().count()));
    if left { text + &missing } else { missing + &text }
}
