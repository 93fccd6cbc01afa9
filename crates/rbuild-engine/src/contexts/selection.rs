//! The files that the sources of a COPY and the mounts of a RUN select.

use rbuild_dockerfile::Span;
use rbuild_image::Hasher;
use rbuild_plan::{CopyItem, CopyStep, FileSource, RunCache, RunMount, RunMountKind, RunStep};
use rbuild_source::{
    CopiedPart, Fingerprint, HardLinks, Ignore, Selected, Selection, SelectionContent, SelectionHash, SourceError,
    SourceTree, content, content_without_links,
};

use crate::contexts::source_errors::{bad_exclusion, source_error};
use crate::error::{BuildError, Result};

/// Returns the patterns of `--exclude`.
pub fn exclusions(copy: &CopyStep) -> Result<Ignore> {
    Ignore::from_patterns(&copy.exclude).map_err(|e| {
        let span = copy.sources.first().map(|source| source.span).unwrap_or_default();
        BuildError::Dockerfile(vec![bad_exclusion(&e, span)])
    })
}

/// Returns the digest of the content that a mount of a stage, `tree`, shows; `None` if the path
/// does not exist. The digest includes mode and owner of the mounted file or directory itself, but
/// not its name.
pub fn mounted_content(tree: &SourceTree<'_>, source: &str) -> std::result::Result<Option<SelectionHash>, SourceError> {
    match tree.select_literal(source) {
        Ok(item) => {
            let item = Selected { name: "mounted".into(), take: CopiedPart::Kept, ..item };
            Ok(Some(content(tree, &[item])?.digest))
        }
        Err(SourceError::NotFound { .. } | SourceError::DeadLink { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Selects the files of all sources of a COPY. A source that is downloaded selects none.
pub fn selection(tree: &SourceTree<'_>, copy: &CopyStep) -> Result<Selection> {
    let exclude = exclusions(copy)?;
    let tree = SourceTree { exclude: Some(&exclude), ..*tree };
    let mut hasher = Hasher::new();
    let mut fingerprint = Fingerprint::default();
    let links = HardLinks::default();
    let mut sources = Vec::with_capacity(copy.sources.len());
    for source in &copy.sources {
        let CopyItem::Files(pattern) = &source.item else {
            sources.push(Vec::new());
            continue;
        };
        let fail = |e| source_error(e, source.span, copy.from_name.as_deref());
        let selected = tree.select(pattern).map_err(fail)?;
        let one = content_without_links(&tree, &selected, &links).map_err(fail)?;
        hasher.field(one.digest.bytes());
        fingerprint += one.fingerprint;
        sources.push(selected);
    }
    Ok(Selection { sources, content: SelectionContent { digest: links.added_to(hasher.finish()), fingerprint } })
}

/// A mount that reads files of a context: its position in the Dockerfile, the context, and the
/// path in it.
pub struct ContextMount<'a> {
    pub span: Span,
    pub from: FileSource,
    /// `from=` as written.
    pub from_name: Option<&'a str>,
    pub source: &'a str,
    /// True if the files are the initial content of a cache, and not mounted themselves.
    pub seeds_cache: bool,
}

/// Returns true if a mount reads files of a context.
pub fn reads_context(mount: &RunMount) -> bool {
    match &mount.kind {
        RunMountKind::Bind { from, .. } | RunMountKind::Cache(RunCache { from: Some(from), .. }) => {
            !matches!(from, FileSource::Vertex(_))
        }
        _ => false,
    }
}

/// Returns the mounts that read files of a context, in order.
pub fn context_mounts(run: &RunStep) -> impl Iterator<Item = ContextMount<'_>> {
    run.mounts.iter().filter_map(|mount| {
        let (from, source, seeds_cache) = match &mount.kind {
            RunMountKind::Bind { from, source } => (*from, source, false),
            RunMountKind::Cache(RunCache { from: Some(from), source, .. }) => (*from, source, true),
            _ => return None,
        };
        let from_name = mount.from_name.as_deref();
        reads_context(mount).then_some(ContextMount { span: mount.span, from, from_name, source, seeds_cache })
    })
}
