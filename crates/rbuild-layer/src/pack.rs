//! Packs a directory tree, the diff of a step, into a layer. The result is deterministic: entries
//! are sorted, times are in whole seconds, and everything has a single encoding.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use rbuild_image::{BlobDigest, DiffId, Hashed};
use rbuild_linux::parallel::start_in;
use rbuild_linux::{RootDir, UidGid, quoted};
use zstd::zstd_safe::CParameter;

use crate::chunks::ChunkWriter;
use crate::compress::Decoder;
use crate::entry::{EntryKind, TarEntry};
use crate::error::{LayerError, Result, WRITING};
use crate::external::ExternalFiles;
use crate::gzip::ParallelGzip;
use crate::hash_thread::ChunkHash;
use crate::item::{PackItem, entry_changed};
use crate::options::{CompressionLevel, LayerForm, Times, WhiteoutEncoding};
use crate::remainder::{EntryDetails, Remainder};
use crate::walk::Walk;
use crate::writer::TarWriter;
use crate::xattrs::{is_lost, keep_in_layer};

/// The usual levels.
const GZIP_LEVEL: u8 = 6;
const ZSTD_LEVEL: u8 = 3;

/// Highest zstd level with [`ZSTD_PART`]. Higher ones would take up to two thirds more time.
const ZSTD_PARTS: u8 = 5;
/// Size in bytes of the parts that zstd compresses in parallel. Its usual size is twice as large.
/// Each thread and three buffers take one in memory. Smaller parts either compress worse or, with a
/// larger overlap, take a tenth more time.
const ZSTD_PART: u32 = 4 << 20;

/// Digests and sizes of a written layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Digest of the bytes before compression.
    pub diff_id: DiffId,
    /// Digest of the bytes as written, compressed.
    pub digest: BlobDigest,
    /// Number of bytes as written, compressed.
    pub size: u64,
    /// Number of bytes before compression.
    pub unpacked: u64,
}

enum Encoder<W: Write> {
    Gzip(ParallelGzip<W>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Encoder::Gzip(w) => w.write(bytes),
            Encoder::Zstd(w) => w.write(bytes),
        }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes the overlay upper directory `tree` to `out` as an image layer.
///
/// # Errors
///
/// Fails if the tree cannot be read, if a name in it begins with `.wh.`, or if `out` fails.
pub fn pack_layer(tree: &RootDir, form: LayerForm, times: Times, out: impl Write) -> Result<Packed> {
    pack(form, out, |chunks| {
        let mut packer = TreePacker::to(WhiteoutEncoding::Encode, chunks);
        packer.pack(tree, Path::new(""), times)?;
        packer.finish()
    })
}

/// Writes the overlay upper directory `tree` to `out` as an image layer. Also returns the metadata
/// of the tree that the layer lacks, or `None` if the layer cannot be completed.
///
/// # Errors
///
/// Fails as [`pack_layer`] does.
pub fn pack_exact(tree: &RootDir, form: LayerForm, out: impl Write) -> Result<(Packed, Option<Remainder>)> {
    let mut remainder = None;
    let packed = pack(form, out, |chunks| {
        let mut packer = TreePacker::to(WhiteoutEncoding::Encode, chunks);
        packer.pack(tree, Path::new(""), Times::AsIs)?;
        remainder = packer.remainder(tree)?;
        packer.finish()
    })?;
    Ok((packed, remainder))
}

/// Writes the overlay upper directory `tree` to `out` as an image layer, together with the external
/// files `external`.
///
/// # Errors
///
/// Fails as [`pack_layer`] does, and with [`LayerError::Changed`] if an external file has changed.
pub fn pack_with_external(tree: &RootDir, external: ExternalFiles, form: LayerForm, out: impl Write) -> Result<Packed> {
    pack(form, out, |chunks| {
        let mut packer = TreePacker::to(WhiteoutEncoding::Encode, chunks);
        packer.pack_walk(Walk::new(tree, Path::new(""), WhiteoutEncoding::Encode, Times::AsIs, external)?)?;
        packer.finish()
    })
}

/// Writes a mounted file system to `out` as a single, self-contained image layer.
///
/// # Errors
///
/// Fails as [`pack_layer`] does.
pub fn pack_whole(view: &RootDir, form: LayerForm, times: Times, out: impl Write) -> Result<Packed> {
    pack(form, out, |chunks| {
        let mut packer = TreePacker::to(WhiteoutEncoding::Reject, chunks);
        packer.pack(view, Path::new(""), times)?;
        packer.finish()
    })
}

/// Recompresses a layer of any compression. The uncompressed bytes, and so the diffID, stay the
/// same.
///
/// # Errors
///
/// Fails if the layer cannot be read, or if `out` fails.
pub fn repack_layer(layer: impl Read, form: LayerForm, out: impl Write) -> Result<Packed> {
    pack(form, out, |mut chunks| {
        let unread = LayerError::decompressing("the content");
        let mut decoder = Decoder::new(layer).map_err(&unread)?;
        loop {
            match decoder.read(chunks.free()) {
                Ok(0) => return chunks.finish().map_err(writing),
                Ok(n) => chunks.advance(n).map_err(writing)?,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(unread(e)),
            }
        }
    })
}

fn writing(e: std::io::Error) -> LayerError {
    LayerError::io("writing the layer")(e)
}

pub(crate) fn pack(
    form: LayerForm,
    mut out: impl Write,
    fill: impl FnOnce(ChunkWriter<'_>) -> Result<()>,
) -> Result<Packed> {
    let encoder = match form {
        LayerForm::Uncompressed => return pack_uncompressed(out, fill),
        LayerForm::Gzip(level) => gzip_encoder(level, Hashed::new(&mut out)),
        LayerForm::Zstd(level) => zstd_encoder(level, Hashed::new(&mut out)),
    };
    let mut plain = Hashed::new(encoder.map_err(writing)?);
    fill(ChunkWriter::new(|chunk| plain.write_all(&chunk).map(|()| chunk)))?;
    let (encoder, diff_id, unpacked) = plain.finish();
    let mut compressed = match encoder {
        Encoder::Gzip(w) => w.finish().map_err(writing)?,
        Encoder::Zstd(w) => w.finish().map_err(writing)?,
    };
    compressed.flush().map_err(writing)?;
    let (_, digest, size) = compressed.finish();
    Ok(Packed { diff_id, digest, size, unpacked })
}

fn pack_uncompressed(mut out: impl Write, fill: impl FnOnce(ChunkWriter<'_>) -> Result<()>) -> Result<Packed> {
    let mut hash = ChunkHash::new();
    fill(ChunkWriter::new(|chunk| {
        out.write_all(&chunk)?;
        Ok(hash.push(chunk))
    }))?;
    let (digest, size): (BlobDigest, u64) = hash.finish();
    out.flush().map_err(writing)?;
    Ok(Packed { diff_id: digest.of_plain_layer(), digest, size, unpacked: size })
}

fn gzip_encoder<W: Write>(level: CompressionLevel<9>, out: W) -> std::io::Result<Encoder<W>> {
    Ok(Encoder::Gzip(ParallelGzip::new(out, level.or(GZIP_LEVEL).into())?))
}

fn zstd_encoder<W: Write>(level: CompressionLevel<22>, out: W) -> std::io::Result<Encoder<W>> {
    let level = level.or(ZSTD_LEVEL);
    let mut encoder = zstd::Encoder::new(out, level.into())?;
    // The output is the same for any number of workers from one up, but differs without workers.
    encoder.multithread(rbuild_linux::parallel::cores() as u32)?;
    if level <= ZSTD_PARTS {
        encoder.set_parameter(CParameter::JobSize(ZSTD_PART))?;
    }
    Ok(Encoder::Zstd(encoder))
}

/// Writes several directory trees into one uncompressed tar archive.
pub struct TreePacker<'a> {
    out: TarWriter<ChunkWriter<'a>>,
    whiteouts: WhiteoutEncoding,
    /// Nanoseconds of the modification times of the entries; `None` once an entry was omitted.
    nanoseconds: Option<Vec<u32>>,
    /// Highest user and group ID of the entries.
    highest_ids: UidGid,
}

/// Number of entries written before a thread is started to read ahead.
const FEW: usize = 200;
/// Number of batches the reading thread may be ahead.
const AHEAD: usize = 8;

impl<'a> TreePacker<'a> {
    /// Creates a packer that writes to `out` in large chunks.
    pub fn new(whiteouts: WhiteoutEncoding, out: &'a mut dyn Write) -> TreePacker<'a> {
        TreePacker::to(whiteouts, ChunkWriter::new(|chunk| out.write_all(&chunk).map(|()| chunk)))
    }

    pub(crate) fn to(whiteouts: WhiteoutEncoding, out: ChunkWriter<'a>) -> TreePacker<'a> {
        TreePacker { out: TarWriter::new(out), whiteouts, nanoseconds: Some(Vec::new()), highest_ids: UidGid::ROOT }
    }

    /// Writes the content of `tree` with paths below `folder`.
    ///
    /// # Errors
    ///
    /// Fails if the tree cannot be read, if a name in it is not allowed in a layer, or if the
    /// output fails.
    pub fn pack(&mut self, tree: &RootDir, folder: &Path, times: Times) -> Result<()> {
        if !folder.as_os_str().is_empty() {
            self.put(PackItem::Header(TarEntry::plain_dir(folder)))?;
        }
        self.pack_walk(Walk::new(tree, folder, self.whiteouts, times, ExternalFiles::default())?)
    }

    /// Writes one entry of the directory `dir` under its own name, including its descendants.
    ///
    /// # Errors
    ///
    /// Fails as [`TreePacker::pack`] does.
    pub fn pack_entry(&mut self, dir: &RootDir, name: &OsStr, times: Times) -> Result<()> {
        self.pack_walk(Walk::of_entry(dir, name, self.whiteouts, times)?)
    }

    fn pack_walk(&mut self, mut walk: Walk) -> Result<()> {
        for _ in 0..FEW {
            match walk.next()? {
                Some(item) => self.put(item)?,
                None => return Ok(()),
            }
        }
        // Opening and reading many files takes as long as writing and hashing them.
        std::thread::scope(|scope| {
            let (sender, batches) = sync_channel(AHEAD);
            start_in(scope, move || walk.send_all(&sender))?;
            // On an error, dropping the receiver ends the other thread at its next batch.
            for batch in batches {
                for item in batch? {
                    self.put(item)?;
                }
            }
            Ok(())
        })
    }

    /// Returns the metadata of `tree`, the only content of the archive, that the archive lacks.
    pub(crate) fn remainder(&mut self, tree: &RootDir) -> Result<Option<Remainder>> {
        let Some(nanoseconds) = self.nanoseconds.take() else { return Ok(None) };
        let attributes = tree.xattrs(OsStr::new(""))?;
        if attributes.keys().any(|attr| keep_in_layer(attr) || is_lost(attr)) {
            return Ok(None);
        }
        let root = tree.stat_self()?;
        let highest_ids = self.highest_ids.max(root.owner());
        Ok(Some(Remainder {
            root_owner: root.owner(),
            root_mode: root.mode,
            root_mtime: root.mtime,
            highest_ids,
            nanoseconds,
        }))
    }

    /// Writes the end of the archive.
    ///
    /// # Errors
    ///
    /// Fails if the output fails.
    pub fn finish(self) -> Result<()> {
        self.out.finish().and_then(ChunkWriter::finish).map_err(LayerError::io(WRITING))
    }

    /// Writes entries as they are in the layer `from`, at these offsets.
    pub(crate) fn copy_entries(&mut self, from: &File, at: Range<u64>) -> Result<()> {
        let chunks = self.out.entries_writer().map_err(LayerError::io(WRITING))?;
        let mut at = at;
        while at.start < at.end {
            let free = chunks.free();
            let most = free.len().min(usize::try_from(at.end - at.start).unwrap_or(usize::MAX));
            let n = from.read_at(&mut free[..most], at.start).map_err(LayerError::reading("the earlier layer"))?;
            if n == 0 {
                return Err(LayerError::Truncated("the earlier layer".into()));
            }
            chunks.advance(n).map_err(LayerError::io(WRITING))?;
            at.start += n as u64;
        }
        Ok(())
    }

    /// Adds an entry to the remainder.
    fn add_to_remainder(&mut self, entry: &TarEntry) {
        // Where devices cannot be created, commands see empty files instead, so the tree has no
        // remainder.
        if matches!(entry.kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
            self.nanoseconds = None;
        } else {
            self.add_details(EntryDetails { uid: entry.uid, gid: entry.gid, nanoseconds: entry.mtime.nsec });
        }
    }

    /// Adds details of an entry to the remainder.
    pub(crate) fn add_details(&mut self, entry: EntryDetails) {
        match (u32::try_from(entry.uid), u32::try_from(entry.gid), &mut self.nanoseconds) {
            (Ok(uid), Ok(gid), Some(nanoseconds)) => {
                nanoseconds.push(entry.nanoseconds);
                self.highest_ids = self.highest_ids.max(UidGid { uid, gid });
            }
            _ => self.nanoseconds = None,
        }
    }

    pub(crate) fn put(&mut self, item: PackItem) -> Result<()> {
        let entry = match &item {
            PackItem::Header(entry) | PackItem::Small(entry, _) | PackItem::Large(entry, ..) => entry,
            PackItem::Incomplete => {
                self.nanoseconds = None;
                return Ok(());
            }
        };
        self.add_to_remainder(entry);
        self.out.entry(entry).map_err(LayerError::io(WRITING))?;
        let (entry, file, unchanged) = match item {
            PackItem::Header(_) | PackItem::Incomplete => return Ok(()),
            PackItem::Small(_, content) => return self.out.content(&content).map_err(LayerError::io(WRITING)),
            PackItem::Large(entry, file, unchanged) => (entry, file, unchanged),
        };
        let mut left = entry.size;
        let mut file = file.take(left);
        let chunks = self.out.content_writer();
        while left > 0 {
            let n = file.read(chunks.free()).map_err(LayerError::io(format!("reading {}", quoted(&entry.path))))?;
            if n == 0 {
                return Err(unchanged.map_or_else(|| entry_changed(&entry), |unchanged| unchanged.broken()));
            }
            chunks.advance(n).map_err(LayerError::io(WRITING))?;
            left -= n as u64;
        }
        unchanged.map_or(Ok(()), |unchanged| unchanged.check(file.get_ref()))
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    fn pack_all(tree: &RootDir, out: &mut dyn Write) -> Result<()> {
        let mut packer = TreePacker::new(WhiteoutEncoding::Literal, out);
        packer.pack(tree, Path::new(""), Times::AsIs)?;
        packer.finish()
    }

    /// Enough files that a thread reads ahead: all arrive in order and with their content.
    #[test]
    fn a_tree_of_many_files_is_packed_completely_and_in_order() {
        let dir = Scratch::new();
        let mut wanted = Vec::new();
        for d in 0..5 {
            std::fs::create_dir_all(dir.join(format!("d{d}"))).unwrap();
            wanted.push((format!("d{d}/"), Vec::new()));
            for f in 0..200 {
                let name = format!("d{d}/{f:03}");
                let content = if f == 77 { vec![d as u8; 300_000] } else { vec![b'x'; f] };
                std::fs::write(dir.join(&name), &content).unwrap();
                wanted.push((name, content));
            }
        }
        let tree = RootDir::open(&dir).unwrap();
        let mut bytes = Vec::new();
        pack_all(&tree, &mut bytes).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let found = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        assert!(found.collect::<Vec<_>>() == wanted, "entries are not those of the tree");
        // A failing writer ends the reading thread as well.
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        for free in [0, 100_000, 500_000] {
            let failed = pack_all(&tree, &mut Full(free)).unwrap_err();
            assert!(failed.is_disk_full(), "{failed}");
        }
    }
}
