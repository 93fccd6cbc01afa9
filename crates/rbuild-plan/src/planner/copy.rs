//! COPY and ADD: options, sources and here-documents.

use rbuild_dockerfile::ast;
use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_image::{ChecksumError, SourceUrl};
use rbuild_paths::SourcePattern;
use rbuild_remedy::{IsolationRemedy, Remedy};

use crate::Chmod;
use crate::graph::{CopyItem, CopySource, CopyStep, FileSource, InlineFile, Step, UrlSource, WordSpans};
use crate::history;
use crate::planner::paths::{cwd, join, native_path};
use crate::planner::state::{Planned, Planner, StageState, all, both, unsupported};

/// Name of a downloaded file if its URL contains no file name, as in BuildKit.
const UNNAMED: &str = "__unnamed__";

pub(super) fn copy(planner: &mut Planner<'_>, state: &mut StageState, copy: &ast::Copy, span: Span) -> Planned<()> {
    let from = copy_input(planner, copy);
    let sources = sources(planner, state, copy);
    let dest = destination(planner, state, &copy.dest);
    let attributes = attributes(planner, state, copy);
    let inline = inline_files(state, &copy.heredocs);
    let files = both(from, both(sources, inline));
    let ((from, ((sources, written), inline)), ((dest, place), attributes)) = both(files, both(dest, attributes))?;
    let CopyAttributes { chown, chmod_text, chmod, link } = attributes;
    let dest_is_dir = place.is_empty() || place == "." || place.ends_with('/') || place.ends_with("/.");
    let others = other_flags(state, copy, planner.file.escape);
    let words = history::CopyWords {
        add: copy.add,
        others: &others,
        parents: copy.parents.is_some(),
        chown: chown.as_deref(),
        chmod: chmod_text.as_deref(),
        sources: &written,
        heredocs: &copy.heredocs,
        dest: &dest,
    };
    let (text, created_by) = (words.instruction(), words.created_by());
    let step = CopyStep {
        from,
        from_name: copy.from.as_ref().map(|word| word.text.clone()).filter(|from| !from.is_empty()),
        sources,
        inline,
        dest: join(&cwd(&state.config), &place),
        dest_is_dir,
        chown,
        chmod,
        exclude: copy.exclude.iter().map(|w| w.text.clone()).collect(),
        parents: copy.parents.is_some(),
        link,
        unpack: copy.unpack.as_ref().map_or(copy.add, |w| w.text == "true"),
    };
    planner.step(state, Step::Copy(step), text, created_by, span);
    planner.vertices[state.vertex].word_spans =
        WordSpans { owner: copy.chown.as_ref().map(|word| word.span), dest: Some(copy.dest.span) };
    Ok(())
}

/// Returns the destination as expanded, and as a path of the platform.
fn destination(planner: &mut Planner<'_>, state: &StageState, word: &ast::Word) -> Planned<(String, String)> {
    let written = planner.word(state, word)?;
    let path = native_path(&state.config, &written, word.span)?;
    Ok((written, path))
}

/// The attributes that a copy gives to files.
struct CopyAttributes {
    chown: Option<String>,
    chmod_text: Option<String>,
    chmod: Option<Chmod>,
    link: bool,
}

fn attributes(planner: &mut Planner<'_>, state: &StageState, copy: &ast::Copy) -> Planned<CopyAttributes> {
    // As in BuildKit, an empty value counts as none.
    let mut value = |word: Option<&ast::Word>| -> Planned<Option<String>> {
        let text = word.map(|word| planner.word(state, word)).transpose()?;
        Ok(text.filter(|text| !text.is_empty()))
    };
    let (chown, mode) = (value(copy.chown.as_ref()), value(copy.chmod.as_ref()));
    let mode = mode.and_then(|text| {
        let mode = text.as_deref().zip(copy.chmod.as_ref());
        let mode = mode.map(|(text, word)| chmod(text, word.span)).transpose()?;
        Ok((text, mode))
    });
    let (chown, (chmod_text, chmod)) = both(chown, mode)?;
    // BuildKit ignores --link together with --chmod.
    let link = copy.link.as_ref().filter(|_| chmod.is_none());
    if let (Some(link), Some(owner)) = (link, &chown) {
        numeric_owner(owner, if copy.add { "ADD" } else { "COPY" }, link.span)?;
    }
    Ok(CopyAttributes { chown, chmod_text, chmod, link: link.is_some() })
}

/// Returns the flags that the history of the image does not show.
fn other_flags(state: &StageState, copy: &ast::Copy, escape: char) -> Vec<String> {
    let one = |name: &'static str| move |word: &ast::Word| format!("--{name}={}", word.text);
    let switch = |name: &'static str| {
        move |word: &ast::Word| {
            if word.text == "true" { format!("--{name}") } else { format!("--{name}={}", word.text) }
        }
    };
    let from = copy.from.iter().filter(|from| !from.text.is_empty()).map(one("from"));
    let link = copy.link.iter().map(|word| word.text.clone());
    let exclude = copy.exclude.iter().map(one("exclude"));
    let checksum = copy.checksum.iter().map(|word| {
        let text = state.vars.expand(word, escape).unwrap_or_else(|_| word.text.clone());
        format!("--checksum={text}")
    });
    let keep_git_dir = copy.keep_git_dir.iter().map(switch("keep-git-dir"));
    let unpack = copy.unpack.iter().map(switch("unpack"));
    from.chain(link).chain(exclude).chain(checksum).chain(keep_git_dir).chain(unpack).collect()
}

/// Returns the sources, and their expanded words, in which logins of URLs are hidden.
fn sources(planner: &mut Planner<'_>, state: &StageState, copy: &ast::Copy) -> Planned<(Vec<CopySource>, Vec<String>)> {
    let parse = if copy.parents.is_some() { SourcePattern::with_parents } else { SourcePattern::parse };
    let unpack = copy.unpack.as_ref().is_some_and(|word| word.text == "true");
    let parsed = copy.sources.iter().map(|word| {
        let text = planner.word(state, word)?;
        let (item, text) = match remote(copy, &text, word.span)? {
            Some(url) => {
                let (text, name) = (url.written(), url.file_name().unwrap_or_else(|| UNNAMED.to_string()));
                (CopyItem::Download { file: UrlSource { url, name, checksum: None }, unpack }, text)
            }
            None => (CopyItem::Files(parse(&native_path(&state.config, &text, word.span)?)), text),
        };
        Ok((CopySource { item, span: word.span }, text))
    });
    let (mut sources, written): (Vec<_>, Vec<_>) = all(parsed)?.into_iter().unzip();
    if let Some((text, word)) = checksum(planner, state, copy)? {
        set_checksum(&mut sources, &text, word.span)?;
    }
    Ok((sources, written))
}

/// Returns the URL of a source that is to be downloaded; `None` for a path.
fn remote(copy: &ast::Copy, source: &str, span: Span) -> Result<Option<SourceUrl>, Diagnostic> {
    let is_git = ["git://", "git@", "ssh://"].iter().any(|prefix| source.starts_with(prefix));
    if !is_git && !SourceUrl::has_scheme(source) {
        return Ok(None);
    }
    if !copy.add {
        return Err(Diagnostic::new(span, "COPY cannot download a URL").help("use ADD"));
    }
    let git =
        || unsupported(span, "ADD of a git repository").help("clone it before the build, or in a RUN instruction");
    if is_git {
        return Err(git());
    }
    let url = SourceUrl::parse(source).map_err(|e| Diagnostic::new(span, format!("the URL is invalid: {e}")))?;
    if url.is_git() { Err(git()) } else { Ok(Some(url)) }
}

/// Returns the value of `--checksum`, if there is one.
fn checksum<'c>(
    planner: &mut Planner<'_>,
    state: &StageState,
    copy: &'c ast::Copy,
) -> Planned<Option<(String, &'c ast::Word)>> {
    let Some(word) = &copy.checksum else { return Ok(None) };
    let text = planner.word(state, word)?;
    Ok(Some((text, word)).filter(|(text, _)| !text.is_empty()))
}

/// Sets the checksum of the only source, which must be downloaded.
fn set_checksum(sources: &mut [CopySource], text: &str, span: Span) -> Result<(), Diagnostic> {
    let problem = match sources {
        [CopySource { item: CopyItem::Download { file, .. }, .. }] => {
            let parsed = text.parse().map_err(|e: ChecksumError| {
                let d = Diagnostic::new(span, format!("`{text}` is not a checksum: {e}"));
                d.help("write the algorithm and the digits, for example sha256:0123…")
            });
            file.checksum = Some(parsed?);
            return Ok(());
        }
        [_] => "`--checksum` requires a source that is downloaded",
        _ => "`--checksum` applies to a single source",
    };
    Err(Diagnostic::new(span, problem).help("use an ADD of its own for each URL with a checksum"))
}

/// Returns the tree that a COPY or ADD reads.
fn copy_input(planner: &mut Planner<'_>, copy: &ast::Copy) -> Planned<FileSource> {
    match &copy.from {
        None => Ok(FileSource::Context),
        Some(word) if word.text.is_empty() => Ok(FileSource::Context),
        Some(word) if word.text.contains('$') => {
            let d = Diagnostic::new(word.span, "`--from` does not expand variables");
            Err(d.help("define a stage with `FROM $NAME AS x` and use `--from=x`").into())
        }
        Some(word) => planner.input_named(&word.text, word.span),
    }
}

fn inline_files(state: &StageState, docs: &[ast::Heredoc]) -> Planned<Vec<InlineFile>> {
    all(docs.iter().map(|doc| {
        file_name(doc)?;
        let content = if doc.expand { state.vars.expand_heredoc(doc)? } else { doc.content().into_owned() };
        Ok(InlineFile { name: doc.name.clone(), content })
    }))
}

/// Checks that the name of a here-document is a plain file name. A path could place the file
/// outside the destination.
pub(super) fn file_name(doc: &ast::Heredoc) -> Result<(), Diagnostic> {
    if matches!(doc.name.as_str(), "." | "..") || doc.name.contains(['/', '\0']) {
        let d = Diagnostic::new(doc.opener, format!("here-document name `{}` is not a file name", doc.name));
        return Err(d.help("use a name without slashes; the destination sets the directory"));
    }
    Ok(())
}

/// Checks that the owner of files copied with `--link` is numeric, so that no account files are
/// needed.
fn numeric_owner(owner: &str, instruction: &str, link: Span) -> Result<(), Diagnostic> {
    if owner.split(':').all(|part| is_id(part) || part == "root") {
        return Ok(());
    }
    if let Some(id) = owner.split(':').find(|part| part.bytes().all(|b| b.is_ascii_digit()) && !is_id(part)) {
        let d = Diagnostic::new(link, format!("`--chown={owner}`: `{id}` is too large for an ID"));
        return Err(d.help(Remedy::Isolation(IsolationRemedy::LowerId { most: i32::MAX.unsigned_abs() })));
    }
    let user = owner.split(':').next().unwrap_or_default();
    let file = if is_id(user) || user == "root" { "/etc/group" } else { "/etc/passwd" };
    let message = format!("`--chown={owner}` needs {file}, which `{instruction} --link` cannot read");
    Err(Diagnostic::new(link, message).help("use numeric IDs, or remove --link"))
}

/// Returns true for a numeric ID of at most 31 bits, and for an empty text.
fn is_id(part: &str) -> bool {
    part.is_empty() || part.parse::<u32>().is_ok_and(|id| i32::try_from(id).is_ok())
}

fn chmod(text: &str, span: Span) -> Result<Chmod, Diagnostic> {
    Chmod::parse(text).ok_or_else(|| {
        let d = Diagnostic::new(span, format!("`{text}` is not a file mode"));
        d.help("use octal digits from 0 to 7777, for example 644, or a symbolic mode such as u=rwX,go=rX")
    })
}
