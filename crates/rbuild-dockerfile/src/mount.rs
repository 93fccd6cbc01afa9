//! Parses the value of `RUN --mount=…`.

use crate::ast::Word;
use crate::boolean::parse_bool;
use crate::csv::{CsvField, csv_record};
use crate::diagnostic::{Diagnostic, Span};
use crate::variables::Vars;

/// Type of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MountKind {
    /// Files of the build context, a stage, an image or a named context.
    #[default]
    Bind,
    /// A directory that persists between builds.
    Cache,
    /// An in-memory file system.
    Tmpfs,
    /// A file or variable that is never stored in a layer.
    Secret,
    /// An SSH agent socket.
    Ssh,
}

/// Sharing of a cache mount between concurrent commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sharing {
    /// All commands use the same directory.
    #[default]
    Shared,
    /// A command gets a separate directory while the first one is in use.
    Private,
    /// A command waits until the directory is not in use.
    Locked,
}

/// A parsed `--mount`, after expansion. Options that were not given are `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// `type`.
    pub kind: MountKind,
    /// `target`, `dst` or `destination`.
    pub target: Option<String>,
    /// `source` or `src`.
    pub source: Option<String>,
    /// `from`: stage, image or named context.
    pub from: Option<String>,
    /// `ro`/`readonly`, or the negation of `rw`/`readwrite`.
    pub read_only: Option<bool>,
    /// `id` of a cache, secret or SSH agent.
    pub id: Option<String>,
    /// `sharing` of a cache.
    pub sharing: Sharing,
    /// `required`: the build fails without the secret or SSH agent.
    pub required: bool,
    /// `size` of a tmpfs, in bytes.
    pub size: Option<u64>,
    /// `mode`: permission bits of the mounted file or directory.
    pub mode: Option<u32>,
    /// `uid` of the owner.
    pub uid: Option<u32>,
    /// `gid` of the group.
    pub gid: Option<u32>,
    /// `env`: variable that receives the secret.
    pub env: Option<String>,
    /// Range of the value of `source` in the Dockerfile.
    pub source_span: Option<Span>,
    /// Range of the value of `from` in the Dockerfile.
    pub from_span: Option<Span>,
}

/// The flag that precedes the options.
const FLAG: &str = "--mount=";
const SHARINGS: [&str; 3] = ["shared", "private", "locked"];
pub(crate) const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];
pub(crate) const KEYS: [&str; 19] = [
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
];

/// Parses the value of `--mount`: comma-separated options, with CSV quoting. Variables are not
/// expanded.
///
/// `span` is the range of the value in the Dockerfile. If it is as long as `text`, errors point at
/// single options; otherwise (after removal of quotes) they point at the whole value.
///
/// # Errors
///
/// Returns an error for each unknown, misplaced or malformed option.
pub fn parse_mount(text: &str, span: Span) -> Result<Mount, Vec<Diagnostic>> {
    of_options(&options(text, span).map_err(|d| vec![d])?, span)
}

/// Parses the value of `--mount` like [`parse_mount`], and expands the values of its options. The
/// value of a variable is part of one option, even if it contains a comma or a quote.
///
/// # Errors
///
/// The errors of [`parse_mount`], of an expansion, and of a variable in `from`.
pub fn expand_mount(word: &Word, vars: &Vars, escape: char) -> Result<Mount, Vec<Diagnostic>> {
    let mut options = options(&word.text, word.span).map_err(|d| vec![d])?;
    let mut errors: Vec<Diagnostic> = check_from(&options).err().into_iter().collect();
    for Assignment { key, value, span, .. } in &mut options {
        if let Some(text) = value.take_if(|_| key != "from") {
            match vars.expand(&Word { text, span: *span }, escape) {
                Ok(text) => *value = Some(text),
                Err(d) => errors.push(d),
            }
        }
    }
    if errors.is_empty() { of_options(&options, word.span) } else { Err(errors) }
}

/// Checks the parts of a `--mount` that no variable can change, also in stages that are not built.
///
/// # Errors
///
/// Returns an error for an invalid list of options, and for a variable in `from`.
pub fn check_mount(word: &Word) -> Result<(), Diagnostic> {
    check_from(&options(&word.text, word.span)?)
}

fn check_from(options: &[Assignment]) -> Result<(), Diagnostic> {
    let variable = |value: &str| value.find('$').is_some_and(|at| at + 1 < value.len());
    match options.iter().find(|o| o.key == "from" && o.value.as_deref().is_some_and(variable)) {
        Some(from) => Err(Diagnostic::new(from.value_span, "mount option `from` does not expand variables")
            .help("define a stage with `FROM $NAME AS x` and use `from=x`")),
        None => Ok(()),
    }
}

fn of_options(options: &[Assignment], span: Span) -> Result<Mount, Vec<Diagnostic>> {
    let mut mount = Mount { kind: kind(options).map_err(|d| vec![d])?, ..Mount::default() };
    let mut errors = Vec::new();
    for Assignment { name, key, value, span, value_span } in options {
        let given = value.as_ref().is_some_and(|value| !value.is_empty());
        match key.as_str() {
            "source" | "src" => mount.source_span = given.then_some(*value_span),
            "from" => mount.from_span = given.then_some(*value_span),
            _ => {}
        }
        let Err(e) = set_option(&mut mount, key, value.as_deref()) else { continue };
        errors.push(match e {
            OptionError::Unknown => Diagnostic::new(*span, format!("unknown mount option `{name}`")).suggest(key, KEYS),
            OptionError::Misplaced => {
                Diagnostic::new(*span, format!("a {} mount has no option `{name}`", mount.kind.name()))
            }
            OptionError::Value(want) => {
                let value = value.as_deref().unwrap_or("");
                let d = Diagnostic::new(*span, format!("invalid mount option `{name}={value}`: {want}"));
                if key == "sharing" { d.suggest(value, SHARINGS) } else { d }
            }
        });
    }
    let (kind, has_source) = (mount.kind, mount.source.is_some());
    let refused = [
        (kind == MountKind::Secret && mount.from.is_some(), "a secret mount has no `from`"),
        (kind == MountKind::Ssh && has_source, "an ssh mount has no `source`"),
        (
            kind == MountKind::Secret && mount.id.is_some() && has_source,
            "a secret mount accepts either `id` or `source`, not both",
        ),
    ];
    let refused = refused.into_iter().filter(|(is_refused, _)| *is_refused);
    errors.extend(refused.map(|(_, message)| Diagnostic::new(span, message)));
    if errors.is_empty() { Ok(mount) } else { Err(errors) }
}

/// Returns the `from` of a mount, unless its type is known to have no files. Other options, the
/// type included, may still contain variables.
pub fn mount_from(word: &Word) -> Option<Word> {
    let options = options(&word.text, word.span).ok()?;
    let of_files = !matches!(kind(&options), Ok(MountKind::Tmpfs | MountKind::Secret | MountKind::Ssh));
    let from = options.into_iter().rfind(|o| o.key == "from")?;
    let text = from.value.filter(|value| of_files && !value.is_empty())?;
    Some(Word { text, span: from.value_span })
}

/// An option of a mount: `key=value` or `key`.
struct Assignment {
    /// The key as written.
    name: String,
    /// The key in lower case.
    key: String,
    value: Option<String>,
    span: Span,
    /// Range of the value, or of the whole option if there is no value.
    value_span: Span,
}

fn options(text: &str, span: Span) -> Result<Vec<Assignment>, Diagnostic> {
    let fields = csv_record(text).map_err(|e| {
        // The span of an empty value is empty, so the excerpt shows the flag before it.
        let start =
            if text.is_empty() && span.start == span.end { span.start.saturating_sub(FLAG.len()) } else { span.start };
        Diagnostic::new(Span::new(start, span.end), format!("mount options: {e}"))
    })?;
    let exact = span.end.saturating_sub(span.start) == text.len();
    let assignment = |CsvField { text, start, end }: CsvField| {
        // An empty field has no span of its own.
        let exact = exact && start < end;
        let span = if exact { Span::new(span.start + start, span.start + end) } else { span };
        let (name, value) = text.split_once('=').map_or((&text[..], None), |(name, value)| (name, Some(value)));
        // If quotes or escapes were removed from the field, offsets in it no longer match the
        // source.
        let is_plain = span.end - span.start == text.len() && value.is_some_and(|value| !value.is_empty());
        let value_span = if is_plain { Span::new(span.start + name.len() + 1, span.end) } else { span };
        Assignment { key: name.to_lowercase(), value: value.map(str::to_string), span, value_span, name: name.into() }
    };
    Ok(fields.into_iter().map(assignment).collect())
}

/// Returns the type of the mount: the last one given. It determines the valid options, so it is
/// read first wherever it occurs.
fn kind(options: &[Assignment]) -> Result<MountKind, Diagnostic> {
    let mut found = MountKind::default();
    for Assignment { value, span, .. } in options.iter().filter(|o| o.key == "type") {
        let Some(name) = value else { return Err(Diagnostic::new(*span, "mount option `type` needs a value")) };
        found = match name.to_lowercase().as_str() {
            "bind" => MountKind::Bind,
            "cache" => MountKind::Cache,
            "tmpfs" => MountKind::Tmpfs,
            "secret" => MountKind::Secret,
            "ssh" => MountKind::Ssh,
            _ => {
                return Err(Diagnostic::new(*span, format!("unknown mount type `{name}`")).suggest_one_of(name, &TYPES));
            }
        };
    }
    Ok(found)
}

impl Mount {
    /// Returns the ID of a secret: `id`, `source`, or the last part of the target.
    pub fn secret_id(&self) -> Option<String> {
        let last = || self.target.as_deref().and_then(|target| target.trim_end_matches('/').rsplit('/').next());
        let id = self.id.as_deref().or(self.source.as_deref()).or_else(last);
        id.filter(|id| !id.is_empty()).map(str::to_string)
    }

    /// Returns the ID of an agent.
    pub fn agent_id(&self) -> String {
        self.id.clone().unwrap_or_else(|| "default".into())
    }
}

impl MountKind {
    /// Returns the value of `type`.
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

/// Returns the mount types that accept an option; `None` if there is no such option.
///
/// As in BuildKit, most options are accepted, and ignored, by types that do not use them.
fn accepted_by(key: &str) -> Option<&'static [MountKind]> {
    use MountKind::*;
    Some(match key {
        "type" | "target" | "dst" | "destination" | "ro" | "readonly" | "rw" | "readwrite" | "source" | "src"
        | "from" | "id" | "env" => &[Bind, Cache, Tmpfs, Secret, Ssh],
        "mode" | "uid" | "gid" => &[Cache, Secret, Ssh],
        "sharing" => &[Cache],
        "required" => &[Secret, Ssh],
        "size" => &[Tmpfs],
        _ => return None,
    })
}

fn set_option(mount: &mut Mount, key: &str, value: Option<&str>) -> Result<(), OptionError> {
    if !accepted_by(key).ok_or(OptionError::Unknown)?.contains(&mount.kind) {
        return Err(OptionError::Misplaced);
    }
    let text = || value.map(str::to_string).ok_or(OptionError::Value("needs a value"));
    // An empty value, which may be that of an unset variable, is the default.
    let any = || text().map(|text| Some(text).filter(|text| !text.is_empty()));
    let digits = |text: String, base| u32::from_str_radix(&text, base).ok().filter(|_| !text.starts_with('+'));
    let number = |base| {
        let wanted = if base == 8 { "must be an octal number, such as 0644" } else { "must be a number" };
        digits(text()?, base).ok_or(OptionError::Value(wanted))
    };
    match key {
        "target" | "dst" | "destination" => mount.target = any()?,
        "source" | "src" => mount.source = any()?,
        "from" => mount.from = any()?,
        "ro" | "readonly" => mount.read_only = Some(boolean(value)?),
        "rw" | "readwrite" => mount.read_only = Some(!boolean(value)?),
        "id" => mount.id = any()?,
        "sharing" => mount.sharing = sharing(&text()?)?,
        "required" => mount.required = boolean(value)?,
        "size" => mount.size = Some(parse_size(&text()?).ok_or(OptionError::Value("must be a size such as 64m"))?),
        "mode" => mount.mode = Some(number(8)?),
        "uid" => mount.uid = Some(id(number(10)?)?),
        "gid" => mount.gid = Some(id(number(10)?)?),
        "env" => mount.env = any()?,
        _ => {}
    }
    Ok(())
}

/// Returns the ID, unless it is the number that means "unchanged" to chown(2).
fn id(number: u32) -> Result<u32, OptionError> {
    if number == u32::MAX { Err(OptionError::Value("must be an ID of at most 4294967294")) } else { Ok(number) }
}

/// Returns the value of a switch. Without a value, it is on.
fn boolean(value: Option<&str>) -> Result<bool, OptionError> {
    value.map_or(Some(true), parse_bool).ok_or(OptionError::Value("must be true or false"))
}

fn sharing(value: &str) -> Result<Sharing, OptionError> {
    match value.to_lowercase().as_str() {
        "shared" => Ok(Sharing::Shared),
        "private" => Ok(Sharing::Private),
        "locked" => Ok(Sharing::Locked),
        _ => Err(OptionError::Value("must be shared, private or locked")),
    }
}

/// Parses a size such as `10`, `64k` or `1.5g` into bytes. Units are powers of 1024. Returns `None`
/// for invalid text.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_ids_are_rejected() {
        for (option, good) in [("uid=4294967295", false), ("gid=4294967295", false), ("uid=4294967294,gid=0", true)] {
            for kind in ["cache,target=/c", "secret,id=s", "ssh"] {
                let parsed = parse_mount(&format!("type={kind},{option}"), Span::default());
                assert_eq!(parsed.is_ok(), good, "{kind} {option}");
            }
        }
    }

    #[test]
    fn options_are_parsed_for_each_type() {
        let m = parse_mount("type=cache,target=/c,id=x,sharing=locked,mode=0700,uid=5", Span::default()).unwrap();
        assert_eq!((m.kind, m.sharing, m.mode, m.uid), (MountKind::Cache, Sharing::Locked, Some(0o700), Some(5)));
        let m = parse_mount("target=.,src=go.mod,rw", Span::default()).unwrap();
        assert_eq!((m.kind, m.read_only, m.source.as_deref()), (MountKind::Bind, Some(false), Some("go.mod")));
        let m = parse_mount(r#"type=tmpfs,"dst=/a,b",size=1.5k"#, Span::default()).unwrap();
        assert_eq!((m.target.as_deref(), m.size), (Some("/a,b"), Some(1536)));
    }

    #[test]
    fn options_are_read_as_buildkit_does() {
        let parse = |text: &str| parse_mount(text, Span::default()).unwrap_or_else(|d| panic!("{text}: {d:?}"));
        assert_eq!(parse("type=bind,type=cache,target=/m").kind, MountKind::Cache);
        assert_eq!(parse("type=tmpfs,from=x,id=y,env=z,source=s,target=/m").kind, MountKind::Tmpfs);
        assert_eq!(parse("type=bind").target, None);
        assert_eq!(parse("type=cache,id=,source=,from=,env=,target="), parse("type=cache"));
        assert_eq!(parse("RO=t,target=/x").read_only, Some(true));
        assert_eq!(parse("target=/x,rw=F").read_only, Some(true));
        assert_eq!(parse("target=/x,rw").read_only, Some(false));
        let id = |text: &str| parse(&format!("type=secret,{text}")).secret_id();
        for (text, want) in [("id=a,target=/b", "a"), ("source=a", "a"), ("target=/x/tok", "tok"), ("target=x/", "x")] {
            assert_eq!(id(text).as_deref(), Some(want), "{text}");
        }
        assert_eq!(id("required"), None);
        assert_eq!(parse("type=ssh,target=/x").agent_id(), "default");
    }

    #[test]
    fn sources_are_found_before_variables_are_expanded() {
        for (text, want) in [
            ("from=a", Some("a")),
            ("type=$K,from=a", Some("a")),
            ("type=cache,from=a,from=b", Some("b")),
            ("type=tmpfs,from=a", None),
            ("from=", None),
        ] {
            let word = Word { text: text.into(), span: Span::new(7, 7 + text.len()) };
            let from = mount_from(&word);
            assert_eq!(from.as_ref().map(|from| &from.text[..]), want, "{text}");
            if let Some(Word { text: name, span }) = from {
                assert_eq!(text[span.start - 7..span.end - 7], name);
            }
        }
        let check = |text: &str| check_mount(&Word { text: text.into(), span: Span::new(0, text.len()) }).is_ok();
        assert!(check("type=overlay,target=/m") && check("from=a$") && check("ro=maybe"));
        assert!(!check("from=$A") && !check("from=a${B}c") && !check("a\"b"));
    }

    #[test]
    fn the_value_of_a_variable_is_part_of_one_option() {
        let mut vars = Vars::default();
        vars.set("list", "a,\"b\",from=x");
        vars.set("kind", "cache");
        let expand = |text: &str| {
            let word = Word { text: text.into(), span: Span::new(0, text.len()) };
            expand_mount(&word, &vars, '\\')
        };
        let m = expand(r#"type=$kind,"source=c,d",target=/$list,id=${list},sharing=locked"#).unwrap();
        assert_eq!((m.kind, m.source.as_deref(), m.from), (MountKind::Cache, Some("c,d"), None));
        assert_eq!((m.target.as_deref(), m.id.as_deref()), (Some("/a,\"b\",from=x"), Some("a,\"b\",from=x")));
        // Every value is one word; an option with an unset variable as its value counts as not
        // given.
        let m = expand(r"target='/a b',id=$unset,source=${unset}").unwrap_or_else(|d| panic!("{d:?}"));
        assert_eq!((m.target.as_deref(), m.id, m.source), (Some("/a b"), None, None));
        for (text, want) in [
            ("from=$list,target=/x", "`from` does not expand"),
            (r#""FROM=a,$list",target=/x"#, "`from` does not expand"),
            ("$Kind=/x,target=/x", "unknown mount option `$Kind`"),
            ("Type=$list,target=/x", "unknown mount type `a,\"b\",from=x`"),
            ("type=$list,target=/x", "unknown mount type"),
        ] {
            let message = expand(text).unwrap_err().remove(0).message;
            assert!(message.contains(want), "{text}: {message}");
        }
    }

    #[test]
    fn sources_are_located_by_their_values() {
        for (text, source, from) in [
            ("type=bind,source=/a,from=b,target=/x", "/a", "b"),
            ("src=/a,source=/c,from=b", "/c", "b"),
            (r#""source=/a,b",from=c"#, r#""source=/a,b""#, "c"),
            ("target=/x", "", ""),
            ("source=,from=", "", ""),
        ] {
            let mount = parse_mount(text, Span::new(0, text.len())).unwrap();
            let shown = |span: Option<Span>| span.map_or("", |span| &text[span.start..span.end]);
            assert_eq!((shown(mount.source_span), shown(mount.from_span)), (source, from), "{text}");
        }
    }

    #[test]
    fn an_empty_value_is_shown_with_its_flag() {
        let source = "RUN --mount= ls";
        let at = source.find(" ls").unwrap();
        let span = parse_mount("", Span::new(at, at)).unwrap_err()[0].span;
        assert_eq!(&source[span.start..span.end], "--mount=");
    }

    #[test]
    fn errors_name_the_option() {
        for (input, want) in [
            ("type=cach,target=/x", "DidYouMean { word: \"cache\" }"),
            ("type=bind,tagret=/x", "DidYouMean { word: \"target\" }"),
            ("type=cache,type=bnd", "DidYouMean { word: \"bind\" }"),
            ("type,target=/x", "`type` needs a value"),
            ("target=/x,", "unknown mount option ``"),
            ("=,target=/x", "unknown mount option ``"),
            ("target=/x, id=y", "unknown mount option ` id`"),
            ("target=/x,ro=yes", "must be true or false"),
            ("target=/x,rw=TRuE", "must be true or false"),
            ("type=cache,target=/x,uid=+5", "must be a number"),
            ("type=bind,target=/x,required", "a bind mount has no option `required`"),
            ("type=secret,from=x", "a secret mount has no `from`"),
            ("type=ssh,source=x", "an ssh mount has no `source`"),
            ("type=tmpfs,target=/x,sharing=locked", "a tmpfs mount has no option `sharing`"),
            ("type=cache,target=/x,mode=9", "must be an octal number"),
            ("type=cache,target=/x,sharing=lockd", "DidYouMean { word: \"locked\" }"),
            ("type=cache,\"target=/x", "unclosed quote"),
            ("type=cache,target=\"/x\"", "quotes enclose a whole field"),
            ("", "the value is empty"),
        ] {
            let d = &parse_mount(input, Span::default()).unwrap_err()[0];
            let text = format!("{} {:?}", d.message, d.help);
            assert!(text.contains(want), "{input}: {text}");
        }
    }
    #[test]
    fn each_wrong_option_is_an_error() {
        let errors = |text: &str| {
            let found = parse_mount(text, Span::new(0, text.len())).unwrap_err();
            found.iter().map(|d| text[d.span.start..d.span.end].to_string()).collect::<Vec<_>>()
        };
        assert_eq!(errors("type=cache,mode=9,target=/c,uid=x,tagret=/d"), ["mode=9", "uid=x", "tagret=/d"]);
        // The options of an unknown type are not known.
        assert_eq!(errors("type=cach,mode=9"), ["type=cach"]);
        let word = Word { text: "id=${a:?},source=${b:?},target=/c".into(), span: Span::new(0, 33) };
        assert_eq!(expand_mount(&word, &Vars::default(), '\\').unwrap_err().len(), 2);
    }
}
