//! The value of `RUN --mount=…`.

use crate::diagnostic::{Diagnostic, Span};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MountKind {
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sharing {
    #[default]
    Shared,
    Private,
    Locked,
}

/// A mount as it is written, after expansion; `None` where an option was not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub kind: MountKind,
    pub target: Option<String>,
    pub source: Option<String>,
    pub from: Option<String>,
    pub read_only: Option<bool>,
    pub id: Option<String>,
    pub sharing: Sharing,
    pub required: bool,
    /// Bytes.
    pub size: Option<u64>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub env: Option<String>,
}

const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];
const KEYS: [&str; 20] = [
    "type",
    "target",
    "dst",
    "destination",
    "source",
    "src",
    "from",
    "ro",
    "readonly",
    "rw",
    "readwrite",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "env",
    "",
];

/// Reads the comma-separated options; fields may be quoted as in CSV.
pub fn parse_mount(text: &str, span: Span) -> Result<Mount, Diagnostic> {
    let fail = |message: String| Diagnostic::new(span, message);
    let fields = csv_fields(text).ok_or_else(|| fail("a quote in the mount options is not closed".into()))?;
    let mut mount = Mount {
        kind: MountKind::Bind,
        target: None,
        source: None,
        from: None,
        read_only: None,
        id: None,
        sharing: Sharing::default(),
        required: false,
        size: None,
        mode: None,
        uid: None,
        gid: None,
        env: None,
    };
    // Each option where it stands, as long as the text is the source's own, without expansions and quotes taken out.
    let exact = span.end.saturating_sub(span.start) == text.len();
    let place = |start: usize, end: usize| {
        if exact { Span::new(span.start + start, span.start + end) } else { span }
    };
    let pairs: Vec<(String, Option<String>, Span)> = fields
        .into_iter()
        .map(|(f, start, end)| match f.split_once('=') {
            Some((k, v)) => (k.trim().to_lowercase(), Some(v.to_string()), place(start, end)),
            None => (f.trim().to_lowercase(), None, place(start, end)),
        })
        .collect();
    if let Some((_, Some(kind), at)) = pairs.iter().find(|(k, _, _)| k == "type") {
        mount.kind = match kind.to_lowercase().as_str() {
            "bind" => MountKind::Bind,
            "cache" => MountKind::Cache,
            "tmpfs" => MountKind::Tmpfs,
            "secret" => MountKind::Secret,
            "ssh" => MountKind::Ssh,
            other => {
                return Err(Diagnostic::new(*at, format!("`{other}` is not a mount type"))
                    .help(format!("the types are {}", TYPES.join(", ")))
                    .suggest(other, TYPES));
            }
        };
    }
    for (key, value, at) in &pairs {
        set_option(&mut mount, key, value.as_deref()).map_err(|e| match e {
            OptionError::Unknown => Diagnostic::new(*at, format!("a mount has no option `{key}`")).suggest(key, KEYS),
            OptionError::Misplaced => {
                Diagnostic::new(*at, format!("a {} mount has no option `{key}`", mount.kind.name()))
            }
            OptionError::Value(want) => {
                let value = value.as_deref().unwrap_or("");
                Diagnostic::new(*at, format!("`{key}={value}` in a mount: {want}"))
            }
        })?;
    }
    if mount.target.is_none() && matches!(mount.kind, MountKind::Bind | MountKind::Cache | MountKind::Tmpfs) {
        return Err(fail(format!("a {} mount needs a target", mount.kind.name())).help("add `target=/path`"));
    }
    if mount.kind == MountKind::Secret && mount.id.is_some() && mount.source.is_some() {
        return Err(fail("a secret mount takes `id` or `source`, not both".into()));
    }
    Ok(mount)
}

impl MountKind {
    pub fn name(self) -> &'static str {
        match self {
            MountKind::Bind => "bind",
            MountKind::Cache => "cache",
            MountKind::Tmpfs => "tmpfs",
            MountKind::Secret => "secret",
            MountKind::Ssh => "ssh",
        }
    }
}

enum OptionError {
    Unknown,
    Misplaced,
    Value(&'static str),
}

fn set_option(mount: &mut Mount, key: &str, value: Option<&str>) -> Result<(), OptionError> {
    use MountKind::*;
    let kind = mount.kind;
    let allowed = |kinds: &[MountKind]| if kinds.contains(&kind) { Ok(()) } else { Err(OptionError::Misplaced) };
    let text = || value.filter(|v| !v.is_empty()).map(str::to_string).ok_or(OptionError::Value("needs a value"));
    let number =
        |base| text().and_then(|v| u32::from_str_radix(&v, base).map_err(|_| OptionError::Value("must be a number")));
    let flag = || match value.map(str::to_lowercase).as_deref() {
        None | Some("true") | Some("1") => Ok(true),
        Some("false") | Some("0") => Ok(false),
        Some(_) => Err(OptionError::Value("must be true or false")),
    };
    match key {
        "type" => {}
        "target" | "dst" | "destination" => mount.target = Some(text()?),
        "source" | "src" => {
            allowed(&[Bind, Cache, Secret])?;
            mount.source = Some(text()?);
        }
        "from" => {
            allowed(&[Bind, Cache])?;
            mount.from = Some(text()?);
        }
        "ro" | "readonly" => mount.read_only = Some(flag()?),
        "rw" | "readwrite" => mount.read_only = Some(!flag()?),
        "id" => {
            allowed(&[Cache, Secret, Ssh])?;
            mount.id = Some(text()?);
        }
        "sharing" => {
            allowed(&[Cache])?;
            mount.sharing = match text()?.to_lowercase().as_str() {
                "shared" => Sharing::Shared,
                "private" => Sharing::Private,
                "locked" => Sharing::Locked,
                _ => return Err(OptionError::Value("must be shared, private or locked")),
            };
        }
        "required" => {
            allowed(&[Secret, Ssh])?;
            mount.required = flag()?;
        }
        "size" => {
            allowed(&[Tmpfs])?;
            mount.size = Some(parse_size(&text()?).ok_or(OptionError::Value("must be a size such as 64m"))?);
        }
        "mode" => {
            allowed(&[Cache, Secret, Ssh])?;
            mount.mode = Some(number(8)?);
        }
        "uid" | "gid" => {
            allowed(&[Cache, Secret, Ssh])?;
            let id = Some(number(10)?);
            if key == "uid" { mount.uid = id } else { mount.gid = id }
        }
        "env" => {
            allowed(&[Secret])?;
            mount.env = Some(text()?);
        }
        _ => return Err(OptionError::Unknown),
    }
    Ok(())
}

/// Bytes of `10`, `64k`, `1.5g` and the like; binary multiples.
pub fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &lower[digits.len()..] {
        "" | "b" => 1u64,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return None,
    };
    let n: f64 = digits.trim().parse().ok()?;
    (n >= 0.0 && n.is_finite()).then_some((n * unit as f64) as u64)
}

/// One CSV record, each field with where it starts and ends in the text; `None` if a quote stays open.
fn csv_fields(text: &str) -> Option<Vec<(String, usize, usize)>> {
    let mut fields = vec![(String::new(), 0, 0)];
    let mut quoted = false;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let field = fields.last_mut()?;
        match c {
            '"' if quoted && matches!(chars.peek(), Some((_, '"'))) => {
                field.0.push('"');
                chars.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => {
                field.2 = at;
                fields.push((String::new(), at + 1, at + 1));
            }
            c => field.0.push(c),
        }
    }
    fields.last_mut()?.2 = text.len();
    (!quoted).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_for_each_type() {
        let m = parse_mount("type=cache,target=/c,id=x,sharing=locked,mode=0700,uid=5", Span::default()).unwrap();
        assert_eq!((m.kind, m.sharing, m.mode, m.uid), (MountKind::Cache, Sharing::Locked, Some(0o700), Some(5)));
        let m = parse_mount("target=.,src=go.mod,rw", Span::default()).unwrap();
        assert_eq!((m.kind, m.read_only, m.source.as_deref()), (MountKind::Bind, Some(false), Some("go.mod")));
        let m = parse_mount(r#"type=tmpfs,"dst=/a,b",size=1.5k"#, Span::default()).unwrap();
        assert_eq!((m.target.as_deref(), m.size), (Some("/a,b"), Some(1536)));
    }

    #[test]
    fn mistakes_are_named() {
        for (input, want) in [
            ("type=cach,target=/x", "did you mean `cache`"),
            ("type=bind,tagret=/x", "did you mean `target`"),
            ("type=bind", "needs a target"),
            ("type=tmpfs,target=/x,sharing=locked", "a tmpfs mount has no option `sharing`"),
            ("type=cache,target=/x,mode=9", "must be a number"),
            ("type=cache,target=\"/x", "not closed"),
        ] {
            let d = parse_mount(input, Span::default()).unwrap_err();
            let text = format!("{} {}", d.message, d.help.unwrap_or_default());
            assert!(text.contains(want), "{input}: {text}");
        }
    }
}
