//! The outputs of a build.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use rbuild_image::Digest;
use rbuild_layer::{Deletions, Times, pack_tree};
use rbuild_linux::{AtomicFile, RootDir};
use rbuild_store::Store;

use crate::archive::{self, ArchiveFormat};
use crate::error::{BuildError, Result};
use crate::event::{Event, Events};
use crate::request::{BuildRequest, Destination, ImageForm, Output, OutputKind};
use crate::{Finished, local};

/// Writes the outputs that are files of the result: a directory, or one tar.
/// With an epoch, that is the time of all of them.
pub(crate) fn files(output: &Output, view: &RootDir, epoch: Option<i64>) -> Result<()> {
    match (output.kind, &output.dest) {
        (OutputKind::Local, Destination::Path { base, rest }) => {
            let fail = BuildError::kernel(format!("the output directory {}", base.label().join(rest).display()));
            let dest = base.create_dir_all(rest, 0o755, None, |_| ()).map_err(fail)?;
            if output.delete {
                local::remove_others(view, &dest)?;
            }
            local::export(view, &dest, epoch)
        }
        (OutputKind::Tar, dest) => write(dest, |out| {
            pack_tree(view, Deletions::None, epoch.map_or(Times::AsIs, Times::Always), out)
                .map(|_| ())
                .map_err(BuildError::layer("the output tar"))
        }),
        _ => Ok(()),
    }
}

/// Writes to standard output, or to a file that appears when it is complete.
pub(crate) fn write(dest: &Destination, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let io = |e| BuildError::io("writing the output")(e);
    match dest {
        Destination::None => Ok(()),
        Destination::Stdout(file) => {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            fill(&mut out)?;
            out.flush().map_err(io)
        }
        Destination::Path { base, rest } => {
            let what = || BuildError::kernel(format!("the output file {}", base.label().join(rest).display()));
            let above = rest.parent().unwrap_or(Path::new(""));
            let dir = base.create_dir_all(above, 0o755, None, |_| ()).map_err(what())?;
            let name = rest.file_name().ok_or_else(|| BuildError::other("the output file has no name"))?;
            let mut file = AtomicFile::create(&dir, 0o644).map_err(what())?;
            let mut out = BufWriter::with_capacity(1 << 20, &mut file);
            fill(&mut out)?;
            out.flush().map_err(io)?;
            drop(out);
            file.publish(name).map_err(what())
        }
    }
}

/// Names the first image and writes the archives that are made of each.
pub(crate) fn publish(
    request: &BuildRequest,
    store: &Store,
    manifests: &[(ImageForm, Digest)],
    events: &Events,
) -> Result<Finished> {
    let Some((_, named)) = manifests.first() else { return Ok(Finished::default()) };
    if request.tags.is_empty() {
        store.tag(named, None)?;
    }
    for tag in &request.tags {
        store.tag(named, Some(tag))?;
    }
    for output in &request.outputs {
        let format = match output.kind {
            OutputKind::OciArchive | OutputKind::OciDirectory => ArchiveFormat::Oci,
            OutputKind::DockerArchive => ArchiveFormat::Docker,
            OutputKind::Local | OutputKind::Tar | OutputKind::Image => continue,
        };
        let started = Instant::now();
        let made = manifests.iter().find(|(form, _)| *form == output.form);
        let (_, manifest) = made.ok_or_else(|| BuildError::other("an output has no image"))?;
        let entries = [(store.image(manifest)?, request.tags.clone())];
        match output.kind {
            OutputKind::OciDirectory => archive::save_directory(store, &entries, &BTreeSet::new(), &output.dest)?,
            _ => write(&output.dest, |out| archive::save(store, &entries, &BTreeSet::new(), format, out))?,
        }
        events.send(Event::Phase { text: "writing the archive".into(), seconds: started.elapsed().as_secs_f64() });
    }
    Ok(Finished { image: Some((store.image(named)?.id, *named)) })
}
