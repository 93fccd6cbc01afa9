//! Parses a template into nodes.

use serde_json::Value;

use crate::template::error::TemplateError;

type Result<T> = std::result::Result<T, TemplateError>;

#[derive(Debug)]
pub enum TemplateNode {
    Text(String),
    Print(Pipeline),
    Set(String, Pipeline),
    /// Condition, body, and the nodes of the `else` branch.
    If(Pipeline, Vec<TemplateNode>, Vec<TemplateNode>),
    With(Pipeline, Vec<TemplateNode>, Vec<TemplateNode>),
    Range {
        names: Vec<String>,
        over: Pipeline,
        body: Vec<TemplateNode>,
        otherwise: Vec<TemplateNode>,
    },
}

/// Commands. The result of each command is the last argument of the next one.
#[derive(Debug)]
pub struct Pipeline(pub Vec<Vec<Operand>>);

#[derive(Debug)]
pub enum Operand {
    Literal(Value),
    Function(String),
    /// `.`, `$name` or a pipeline in parentheses, with fields.
    Path(Root, Vec<String>),
}

#[derive(Debug)]
pub enum Root {
    Dot,
    Variable(String),
    Nested(Pipeline),
}

/// Maximum nesting of blocks and parentheses.
const MAX_DEPTH: usize = 50;

/// Parses a template.
pub fn parse(text: &str) -> Result<Vec<TemplateNode>> {
    let mut parser = TemplateParser { parts: split(text)?, at: 0 };
    let (nodes, end) = parser.nodes(0)?;
    match end {
        None => Ok(nodes),
        Some(word) => Err(TemplateError::NoBlock(word)),
    }
}

#[derive(Debug)]
enum TemplatePart {
    Text(String),
    Action(Vec<TemplateToken>),
}

#[derive(Debug, Clone, PartialEq)]
enum TemplateToken {
    /// `.` and the name after it, which may be empty; true if no whitespace precedes it.
    Field(String, bool),
    Variable(String),
    Word(String),
    Literal(Value),
    /// `|`, `(`, `)`, `,`, `:=` and `=`.
    Mark(&'static str),
}

/// Splits a template into texts and actions, and trims whitespace at trim markers.
fn split(text: &str) -> Result<Vec<TemplatePart>> {
    let mut parts = Vec::new();
    let mut rest = text;
    let mut trim = false;
    loop {
        let (before, action) = match rest.split_once("{{") {
            Some((before, action)) => (before, Some(action)),
            None => (rest, None),
        };
        let mut plain = if trim { before.trim_start() } else { before };
        let Some(action) = action else {
            parts.push(TemplatePart::Text(plain.to_string()));
            return Ok(parts);
        };
        let trims_before = action.strip_prefix('-').filter(|a| a.starts_with(char::is_whitespace));
        if trims_before.is_some() {
            plain = plain.trim_end();
        }
        parts.push(TemplatePart::Text(plain.to_string()));
        let (tokens, after, trims_after) = tokens(trims_before.unwrap_or(action))?;
        trim = trims_after;
        if let Some(tokens) = tokens {
            parts.push(TemplatePart::Action(tokens));
        }
        rest = after;
    }
}

type Tokens<'a> = (Option<Vec<TemplateToken>>, &'a str, bool);

/// Returns the tokens up to `}}` (`None` for a comment), the text after it, and true for a trim
/// marker at the end.
fn tokens(text: &str) -> Result<Tokens<'_>> {
    if let Some(comment) = text.trim_start().strip_prefix("/*") {
        let (_, after) = comment.split_once("*/").ok_or(TemplateError::UnclosedComment)?;
        let after = after.trim_start();
        let trims = after.starts_with('-');
        let after = after.trim_start_matches('-').strip_prefix("}}").ok_or(TemplateError::UnclosedAction)?;
        return Ok((None, after, trims));
    }
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        let blank = rest.starts_with(char::is_whitespace);
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix("}}") {
            return Ok((Some(tokens), after, false));
        }
        if let Some(after) = rest.strip_prefix("-}}") {
            return Ok((Some(tokens), after, true));
        }
        let Some(first) = rest.chars().next() else { return Err(TemplateError::UnclosedAction) };
        let name_end = |s: &str| s.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(s.len());
        let (token, length) = match first {
            '.' => {
                let length = 1 + name_end(&rest[1..]);
                (TemplateToken::Field(rest[1..length].to_string(), !blank), length)
            }
            '$' => {
                let length = 1 + name_end(&rest[1..]);
                (TemplateToken::Variable(rest[..length].to_string()), length)
            }
            '"' | '\'' => quoted(rest, first)?,
            '`' => {
                let end = rest[1..].find('`').ok_or(TemplateError::UnclosedString('`'))?;
                (TemplateToken::Literal(rest[1..=end].into()), end + 2)
            }
            '|' => (TemplateToken::Mark("|"), 1),
            '(' => (TemplateToken::Mark("("), 1),
            ')' => (TemplateToken::Mark(")"), 1),
            ',' => (TemplateToken::Mark(","), 1),
            ':' if rest.starts_with(":=") => (TemplateToken::Mark(":="), 2),
            '=' => (TemplateToken::Mark("="), 1),
            c if c.is_ascii_digit()
                || ((c == '-' || c == '+') && rest[1..].starts_with(|d: char| d.is_ascii_digit())) =>
            {
                let length = 1 + rest[1..].find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len() - 1);
                let number: Value = serde_json::from_str(rest[..length].trim_start_matches('+'))
                    .map_err(|_| TemplateError::NotANumber(rest[..length].to_string()))?;
                (TemplateToken::Literal(number), length)
            }
            c if c.is_alphabetic() || c == '_' => {
                let length = name_end(rest);
                (word(&rest[..length]), length)
            }
            c => return Err(TemplateError::UnexpectedCharacter(c)),
        };
        tokens.push(token);
        rest = &rest[length..];
    }
}

fn word(text: &str) -> TemplateToken {
    match text {
        "true" => TemplateToken::Literal(true.into()),
        "false" => TemplateToken::Literal(false.into()),
        "nil" => TemplateToken::Literal(Value::Null),
        other => TemplateToken::Word(other.to_string()),
    }
}

/// Parses a quoted string with Go's escapes; returns the literal and its length in the source.
fn quoted(text: &str, quote: char) -> Result<(TemplateToken, usize)> {
    let mut out = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Ok((TemplateToken::Literal(out.into()), at + 1)),
            '\\' => match chars.next() {
                Some((_, 'n')) => out.push('\n'),
                Some((_, 't')) => out.push('\t'),
                Some((_, 'r')) => out.push('\r'),
                Some((_, other)) => out.push(other),
                None => break,
            },
            c => out.push(c),
        }
    }
    Err(TemplateError::UnclosedString(quote))
}

struct TemplateParser {
    parts: Vec<TemplatePart>,
    at: usize,
}

impl TemplateParser {
    /// Parses nodes up to the end of the template or to `else`, `else if` or `end`, and returns
    /// that word.
    fn nodes(&mut self, depth: usize) -> Result<(Vec<TemplateNode>, Option<String>)> {
        if depth > MAX_DEPTH {
            return Err(TemplateError::DeepBlocks);
        }
        let mut nodes = Vec::new();
        while self.at < self.parts.len() {
            let part = std::mem::replace(&mut self.parts[self.at], TemplatePart::Text(String::new()));
            self.at += 1;
            let tokens = match part {
                TemplatePart::Text(text) => {
                    nodes.push(TemplateNode::Text(text));
                    continue;
                }
                TemplatePart::Action(tokens) => tokens,
            };
            match tokens.split_first() {
                None => return Err(TemplateError::EmptyAction),
                Some((TemplateToken::Word(w), [])) if w == "end" || w == "else" => return Ok((nodes, Some(w.clone()))),
                Some((TemplateToken::Word(w), rest)) if w == "else" => {
                    // `else if` is an `if` inside `else` with the same `end`.
                    self.at -= 1;
                    self.parts[self.at] = TemplatePart::Action(rest.to_vec());
                    return Ok((nodes, Some("else if".into())));
                }
                Some((TemplateToken::Word(w), rest)) if w == "if" || w == "with" || w == "range" => {
                    nodes.push(self.block(w, rest, depth)?);
                }
                Some((TemplateToken::Variable(name), [TemplateToken::Mark(":=" | "="), rest @ ..])) => {
                    nodes.push(TemplateNode::Set(name.clone(), pipeline(rest)?));
                }
                Some(_) => nodes.push(TemplateNode::Print(pipeline(&tokens)?)),
            }
        }
        Ok((nodes, None))
    }

    fn block(&mut self, word: &str, rest: &[TemplateToken], depth: usize) -> Result<TemplateNode> {
        let (names, rest) = match (word, rest) {
            (
                "range",
                [
                    TemplateToken::Variable(k),
                    TemplateToken::Mark(","),
                    TemplateToken::Variable(v),
                    TemplateToken::Mark(":="),
                    rest @ ..,
                ],
            ) => (vec![k.clone(), v.clone()], rest),
            ("range", [TemplateToken::Variable(v), TemplateToken::Mark(":="), rest @ ..]) => (vec![v.clone()], rest),
            (_, rest) => (Vec::new(), rest),
        };
        let over = pipeline(rest)?;
        let (body, end) = self.nodes(depth + 1)?;
        let otherwise = match end.as_deref() {
            Some("end") => Vec::new(),
            Some("else if") => {
                let part = std::mem::replace(&mut self.parts[self.at], TemplatePart::Text(String::new()));
                self.at += 1;
                match part {
                    TemplatePart::Action(tokens) if begins_with_if(&tokens) => {
                        vec![self.block("if", &tokens[1..], depth + 1)?]
                    }
                    _ => return Err(TemplateError::AfterElse),
                }
            }
            Some(_) => match self.nodes(depth + 1)? {
                (nodes, Some(end)) if end == "end" => nodes,
                _ => return Err(TemplateError::UnclosedBlock(word.to_string())),
            },
            None => return Err(TemplateError::UnclosedBlock(word.to_string())),
        };
        Ok(match word {
            "if" => TemplateNode::If(over, body, otherwise),
            "with" => TemplateNode::With(over, body, otherwise),
            _ => TemplateNode::Range { names, over, body, otherwise },
        })
    }
}

fn begins_with_if(tokens: &[TemplateToken]) -> bool {
    matches!(tokens.first(), Some(TemplateToken::Word(word)) if word == "if")
}

fn pipeline(tokens: &[TemplateToken]) -> Result<Pipeline> {
    let mut rest = tokens;
    let pipeline = commands(&mut rest, 0)?;
    match rest.first() {
        Some(TemplateToken::Mark(mark)) => Err(TemplateError::UnexpectedMark(mark)),
        // All other tokens are operands.
        _ => Ok(pipeline),
    }
}

/// Parses commands up to the end or a closing parenthesis.
fn commands(rest: &mut &[TemplateToken], depth: usize) -> Result<Pipeline> {
    if depth > MAX_DEPTH {
        return Err(TemplateError::DeepParentheses);
    }
    let mut all = Vec::new();
    loop {
        let mut command = Vec::new();
        while let Some(operand) = operand(rest, depth)? {
            command.push(operand);
        }
        if command.is_empty() {
            return Err(TemplateError::EmptyCommand);
        }
        all.push(command);
        match rest.split_first() {
            Some((TemplateToken::Mark("|"), after)) => *rest = after,
            _ => return Ok(Pipeline(all)),
        }
    }
}

fn operand(rest: &mut &[TemplateToken], depth: usize) -> Result<Option<Operand>> {
    let Some((first, after)) = rest.split_first() else { return Ok(None) };
    let root = match first {
        TemplateToken::Mark("(") => {
            let mut inner = after;
            let nested = commands(&mut inner, depth + 1)?;
            let Some((TemplateToken::Mark(")"), after)) = inner.split_first() else {
                return Err(TemplateError::UnclosedParenthesis);
            };
            *rest = after;
            Root::Nested(nested)
        }
        TemplateToken::Mark(_) => return Ok(None),
        TemplateToken::Literal(value) => {
            *rest = after;
            return Ok(Some(Operand::Literal(value.clone())));
        }
        TemplateToken::Word(name) => {
            *rest = after;
            return Ok(Some(Operand::Function(name.clone())));
        }
        TemplateToken::Variable(name) => {
            *rest = after;
            Root::Variable(name.clone())
        }
        TemplateToken::Field(name, _) => {
            *rest = after;
            let mut path: Vec<String> = Some(name.clone()).filter(|n| !n.is_empty()).into_iter().collect();
            path.extend(fields(rest));
            return Ok(Some(Operand::Path(Root::Dot, path)));
        }
    };
    let path = fields(rest);
    Ok(Some(Operand::Path(root, path)))
}

/// Parses the fields that follow without whitespace.
fn fields(rest: &mut &[TemplateToken]) -> Vec<String> {
    let mut path = Vec::new();
    while let Some((TemplateToken::Field(name, true), after)) = rest.split_first() {
        if name.is_empty() {
            break;
        }
        path.push(name.clone());
        *rest = after;
    }
    path
}
