//! The verbs `cache export` and `cache import`: the build cache of a store in a directory or an
//! archive, for CI systems that keep files between jobs.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rbuild_engine::{ImportReport, MountChoice, StoreChoice, StoreContent, import_steps, pack_store};
use rbuild_image::human_size;
use rbuild_linux::{Destination, Timestamp, quoted};
use rbuild_remedy::counted;
use rbuild_sandbox::{Builder, SandboxError, enter};
use rbuild_store::{BuildId, Store, Workspace};
use rbuild_transport::{
    CacheLimits, CacheNote, ImportedCache, ImportedCaches, LocalCache, OwnSteps, RecordBudget, RecordKeys,
    TransportError, WrittenCache, day_of, unpack_cache_archive, write_cache_archive, write_destination,
    write_local_cache,
};

use crate::args::{CacheExportArgs, CacheImportArgs};
use crate::commands::cache_export::{remark, report};
use crate::commands::in_builder::{exit_code, store_config, store_in};
use crate::exit::{Failure, code};
use crate::input::cache::{mount_choice, signing_with, trusted_keys};
use crate::input::settings::Settings;
use crate::input::stdin::{self, StdinUse};
use crate::input::{flags, output, request};
use crate::ui::hints::{InputRemedy, ValueRemedy};
use crate::ui::terminal;

/// The place of a cache that is written.
enum ExportPlace {
    Directory(LocalCache),
    Archive(Destination),
}

pub fn export(settings: &Settings, args: CacheExportArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let bytes = flags::size("--max-size", &args.max_size)?;
    let choice = StoreChoice {
        form: output::layer_form(&args.compression)?,
        limits: CacheLimits { bytes, ..CacheLimits::default() },
        mounts: mount_choice(args.mounts.as_deref().unwrap_or_default()),
        max_mount: flags::size("--mounts-max", &args.mounts_max)?,
    };
    // No command is started that could read the key.
    let keys = match &args.sign {
        Some(path) => signing_with(RecordKeys::default(), path, |p| Failure::usage(format!("--sign: {p}")))?,
        None => RecordKeys::default(),
    };
    let place = match &args.dest {
        dest if dest.as_os_str() == "-" => ExportPlace::Archive(output::stdout()?),
        dest if dest.extension().is_some_and(|end| end == "tar") && !dest.is_dir() => {
            ExportPlace::Archive(output::archive(dest)?)
        }
        dest => ExportPlace::Directory(LocalCache { dir: output::directory(dest)?, tag: args.tag.clone() }),
    };
    let ended = enter(&store_config(&store), settings.isolation, |builder| {
        ended(write(builder, &store, &choice, &place, &args, &keys))
    })?;
    if ended.code == i32::from(code::OK)
        && let ExportPlace::Archive(dest) = &place
    {
        dest.publish().map_err(|e| output::unwritten("the cache", &dest.path(), e))?;
    }
    Ok(exit_code(ended.code, ended.stopped))
}

fn ended(done: Result<(), Failure>) -> i32 {
    match done {
        Ok(()) => i32::from(code::OK),
        Err(failure) => i32::from(failure.report()),
    }
}

/// Writes the cache in the builder process.
fn write(
    builder: Result<Builder, SandboxError>,
    store: &Store,
    choice: &StoreChoice,
    place: &ExportPlace,
    args: &CacheExportArgs,
    keys: &RecordKeys,
) -> Result<(), Failure> {
    let store = store_in(&builder?, store)?;
    let work = Workspace::open(&store)?;
    let StoreContent { steps, left_out, warnings } = pack_store(&store, &work, choice)?;
    warnings.into_iter().for_each(terminal::warning);
    let blobs = store.blobs();
    let written = match place {
        ExportPlace::Archive(dest) => {
            let mut written = WrittenCache::default();
            write_destination(dest, |out| {
                written = write_cache_archive(out, &args.tag, &steps, &blobs, keys)?;
                Ok::<_, TransportError>(())
            })?;
            written
        }
        ExportPlace::Directory(to) => {
            let (lost, refreshed) = Default::default();
            let (limits, today) = (choice.limits, day_of(Timestamp::now().sec));
            let own = OwnSteps { steps: &steps, lost: &lost, refreshed: &refreshed, limits, today, keys };
            write_local_cache(to, &own, &[&blobs])?
        }
    };
    let place = quoted(&args.dest).to_string();
    // In a directory, a step may be larger than in the store.
    let limit = format!("--max-size {}", human_size(choice.limits.bytes));
    let left_out = [left_out, written.left_out].iter().filter_map(|left_out| left_out.sentence("", &limit)).next();
    for text in remark(&place, written.note).into_iter().chain(left_out) {
        terminal::warning(rbuild_engine::Warning { text, help: None });
    }
    if written.note != CacheNote::NewerFormat {
        terminal::err(&format!("{}\n", report(&place, &written)));
    }
    Ok(())
}

pub fn import(settings: &Settings, args: CacheImportArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let work = Workspace::open(&store)?;
    let keys = match &args.verify {
        Some(given) => trusted_keys(given, |problem| Failure::usage(format!("--verify: {problem}")))?,
        None => RecordKeys::default(),
    };
    let cache = open(&store, &work, &args, &keys)?;
    let name = quoted(&args.source).to_string();
    let cache =
        cache.ok_or_else(|| Failure::new(format!("there is no cache with the tag `{}` in {name}", args.tag)))?;
    if cache.has_unsigned() {
        let problem = format!("{name} has records without a valid signature, so nothing was imported");
        return Err(Failure::new(problem).help(ValueRemedy::SignExport));
    }
    if cache.is_of_other_builder() {
        return Err(Failure::new(format!("{name} is a cache of BuildKit, whose steps only builds can find"))
            .help(InputRemedy::UseCacheFrom));
    }
    let (caches, mounts) = (ImportedCaches::new(vec![cache.named(&name)]), mount_choice(&args.mounts));
    let build = request::build_id(Timestamp::now().sec)?;
    let ended = enter(&store_config(&store), settings.isolation, |builder| {
        ended(read(builder, &store, &build, &caches, &mounts).map(|report| {
            terminal::err(&format!("{}\n", imported(&name, &report)));
            report.warnings.into_iter().for_each(terminal::warning);
        }))
    })?;
    drop(work);
    Ok(exit_code(ended.code, ended.stopped))
}

/// Opens the cache. An archive is unpacked into the workspace.
fn open(
    store: &Store,
    work: &Workspace,
    args: &CacheImportArgs,
    keys: &RecordKeys,
) -> Result<Option<ImportedCache>, Failure> {
    let budget = RecordBudget::default();
    let source = &args.source;
    let failed = |cause: String| Failure::new(format!("cannot read the cache {}: {cause}", quoted(source)));
    let archive: Box<dyn Read> = match source {
        source if source.as_os_str() == "-" => Box::new(stdin::piped(StdinUse::Archive)?),
        source if source.is_dir() => {
            return ImportedCache::local(source, &args.tag, keys, &budget).map_err(|e| failed(e.message()));
        }
        source => Box::new(file(source)?),
    };
    let (path, dir) = work.new_dir()?;
    unpack_cache_archive(archive, &dir, store.limits()).map_err(|e| failed(e.message()))?;
    ImportedCache::local(&path, &args.tag, keys, &budget).map_err(|e| failed(e.message()))
}

fn file(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|e: io::Error| {
        let failure =
            Failure::new(format!("cannot open the cache {}: {}", quoted(path), flags::reason(&e))).because(&e);
        if e.kind() == io::ErrorKind::NotFound { failure.help(ValueRemedy::SkipFirstImport) } else { failure }
    })
}

/// Imports the cache in the builder process.
fn read(
    builder: Result<Builder, SandboxError>,
    store: &Store,
    build: &BuildId,
    caches: &ImportedCaches,
    mounts: &MountChoice,
) -> Result<ImportReport, Failure> {
    let store = store_in(&builder?, store)?;
    let work = Workspace::open(&store)?;
    Ok(import_steps(&store, &work, build, caches, mounts)?)
}

fn imported(name: &str, report: &ImportReport) -> String {
    let known = match report.known {
        0 => String::new(),
        known => format!("; the store had {} already", counted(known as u64, "step")),
    };
    let mounts = match report.mounts {
        0 => String::new(),
        mounts => format!(", {}", counted(mounts as u64, "cache mount")),
    };
    format!("imported {}{mounts} from the cache {name}{known}", counted(report.steps as u64, "step"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_in_words() {
        for (steps, known, mounts, want) in [
            (2, 0, 0, "imported 2 steps from the cache `c`"),
            (1, 3, 1, "imported 1 step, 1 cache mount from the cache `c`; the store had 3 steps already"),
        ] {
            assert_eq!(imported("`c`", &ImportReport { steps, known, mounts, warnings: Vec::new() }), want);
        }
    }
}
