//! Records finished builds in the store's logs.

use std::path::PathBuf;

use rbuild_linux::{FileKind, RootDir, Timestamp};
use rbuild_store::{BuildLog, BuildStatus, FailureLog, LayerLog, Store};

use crate::error::BuildError;
use crate::events::Events;
use crate::exports::Export;
use crate::prepare::PreparedBuild;
use crate::request::BuildRequest;

/// Number of largest files recorded per layer.
const BIGGEST: usize = 5;

/// Writes the build to the store's logs, with its error if it failed. Errors of this are ignored: a
/// build does not fail because its log cannot be kept.
pub fn remember(
    build: PreparedBuild<'_>,
    store: &Store,
    events: &Events,
    error: Option<&BuildError>,
    mut layers: Vec<LayerLog>,
) {
    let PreparedBuild { request, platforms } = build;
    let seconds = events.journal().now();
    let (mut steps, phases) = events.journal().read();
    let mut first = 0;
    for prepared in platforms {
        let count = prepared.graph.vertices.len();
        for step in steps.iter_mut().filter(|step| (first..first + count).contains(&step.step)) {
            step.inputs = prepared.graph.vertices[step.step - first]
                .inputs()
                .iter()
                .map(|input| first + input.position())
                .collect();
        }
        first += count;
    }
    let secrets = request.secret_values();
    for (path, _) in layers.iter_mut().flat_map(|layer| &mut layer.biggest) {
        *path = secrets.mask(std::mem::take(path));
    }
    let status = match error {
        None => BuildStatus::Done,
        // A failed step cancels the others, too.
        Some(BuildError::Canceled) => BuildStatus::Stopped,
        Some(_) => BuildStatus::Failed,
    };
    let failure = error.filter(|_| status == BuildStatus::Failed).map(failure);
    let failure = failure.map(|failure| FailureLog { message: secrets.mask(failure.message), ..failure });
    let _ = store.logs().put_build_log(&BuildLog {
        id: request.build_id.clone(),
        result: secrets.mask(result(request)),
        // The time of the request is another one in builds with `--verify`.
        started: Timestamp::now().sec - seconds as i64,
        seconds,
        status,
        steps,
        phases,
        layers,
        failure,
    });
}

/// Returns the record of an error.
fn failure(error: &BuildError) -> FailureLog {
    let (span, step) = match error {
        BuildError::Step(failure) => (Some(failure.span), Some(failure.label.clone())),
        BuildError::Dockerfile(list) | BuildError::Unmet(list) => (list.first().map(|d| d.span), None),
        _ => (None, None),
    };
    let place = span.filter(|span| span.start < span.end).map(|span| (span.start, span.end));
    FailureLog { message: error.message(), place, step }
}

/// Returns the names of the result; without names, the paths of the outputs; without those, the
/// Dockerfile and the context.
fn result(request: &BuildRequest) -> String {
    let names = || request.tags.iter().map(|tag| tag.familiar());
    let paths = || request.exports.iter().filter_map(Export::path).map(|path| path.display().to_string());
    let texts: Vec<String> = if request.tags.is_empty() { paths().collect() } else { names().collect() };
    match (&texts[..], &request.context) {
        ([], Some(context)) => format!("{} in {}", request.dockerfile_name, context.path.display()),
        ([], None) => request.dockerfile_name.clone(),
        _ => texts.join(", "),
    }
}

/// Returns the number and total size in bytes of a tree's files, and the largest ones.
pub fn measure(tree: &RootDir, step: usize) -> rbuild_linux::Result<LayerLog> {
    let mut layer = LayerLog { step, bytes: 0, files: 0, biggest: Vec::new() };
    let mut open = vec![(PathBuf::from("/"), tree.sub(".")?)];
    while let Some((path, dir)) = open.pop() {
        for entry in dir.entries()? {
            let stat = dir.stat_name(&entry.name)?;
            let path = path.join(&entry.name);
            if stat.kind == FileKind::Dir {
                open.push((path, dir.sub(&entry.name)?));
                continue;
            }
            layer.files += 1;
            layer.bytes += stat.size;
            let smallest = layer.biggest.last().map_or(0, |(_, bytes)| *bytes);
            if stat.size > 0 && (layer.biggest.len() < BIGGEST || stat.size > smallest) {
                layer.biggest.push((path.to_string_lossy().into_owned(), stat.size));
                layer.biggest.sort_by(|(a, x), (b, y)| (y, a).cmp(&(x, b)));
                layer.biggest.truncate(BIGGEST);
            }
        }
    }
    Ok(layer)
}
