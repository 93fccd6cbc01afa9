//! A directory into layer bytes: sorted, whole seconds, one way of saying each thing.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_image::{Digest, Hashed};
use rbuild_linux::{Kind, RootDir, Stat, Timestamp};

use crate::aside::HashAside;
use crate::compress::{Compression, Decoder};
use crate::error::{LayerError, Result};
use crate::gzip::ParallelGzip;
use crate::reader::{EntryKind, TarEntry};
use crate::writer::TarWriter;
use crate::xattrs::{OPAQUE, keep_in_layer};

/// Names the way layer bytes are made. It changes when, and only when, the same tree gives other bytes.
pub const LAYER_FORMAT: u32 = 1;

const GZIP_LEVEL: i32 = 6;
const ZSTD_LEVEL: i32 = 3;

/// How a layer is packed. The default is what images have had for ever: gzip at its usual level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LayerForm {
    /// Gzip, zstd or none.
    pub compression: Compression,
    /// The compression's usual one if not given.
    pub level: Option<i32>,
}

impl LayerForm {
    /// A short name, different for every form: `gzip`, `zstd-19`.
    pub fn name(&self) -> String {
        let level = self.level.map_or(String::new(), |l| format!("-{l}"));
        format!("{}{level}", self.compression.name())
    }
}

/// A layer that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    pub diff_id: Digest,
    /// Of the bytes that were written, compressed.
    pub digest: Digest,
    pub size: u64,
    /// Bytes before compression.
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
pub fn pack_layer(tree: &RootDir, form: LayerForm, times: Times, out: impl Write) -> Result<Packed> {
    pack(form, out, |encoder| pack_tree(tree, Deletions::Whiteouts, times, encoder).map(drop))
}

/// Writes a mounted file system to `out` as an image layer that stands alone.
pub fn pack_whole(view: &RootDir, form: LayerForm, times: Times, out: impl Write) -> Result<Packed> {
    pack(form, out, |encoder| pack_tree(view, Deletions::None, times, encoder).map(drop))
}

/// Packs a layer of any compression in another form; what it holds stays the same, byte for byte.
pub fn repack_layer(layer: impl Read, form: LayerForm, out: impl Write) -> Result<Packed> {
    pack(form, out, |encoder| {
        let mut decoder = Decoder::new(layer).map_err(LayerError::io("reading the layer"))?;
        std::io::copy(&mut decoder, encoder).map(drop).map_err(LayerError::io("repacking the layer"))
    })
}

fn pack(form: LayerForm, mut out: impl Write, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Packed> {
    let io = |e| LayerError::io("writing the layer")(e);
    if form.compression == Compression::None {
        let mut plain = Plain { out: &mut out, hash: HashAside::new() };
        fill(&mut plain)?;
        let (digest, size) = plain.hash.finish();
        out.flush().map_err(io)?;
        return Ok(Packed { diff_id: digest, digest, size, unpacked: size });
    }
    let mut plain = Hashed::new(encoder(form, Hashed::new(&mut out))?);
    fill(&mut plain)?;
    let (encoder, diff_id, unpacked) = plain.finish();
    let mut compressed = match encoder {
        Encoder::Gzip(w) => w.finish().map_err(io)?,
        Encoder::Zstd(w) => w.finish().map_err(io)?,
    };
    compressed.flush().map_err(io)?;
    let (_, digest, size) = compressed.finish();
    Ok(Packed { diff_id, digest, size, unpacked })
}

/// Bytes that are written as they are, and hashed meanwhile.
struct Plain<W> {
    out: W,
    hash: HashAside,
}

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

fn encoder<W: Write>(form: LayerForm, out: W) -> Result<Encoder<W>> {
    let io = |e| LayerError::io("writing the layer")(e);
    Ok(match form.compression {
        Compression::Gzip => {
            Encoder::Gzip(ParallelGzip::new(out, form.level.unwrap_or(GZIP_LEVEL).clamp(0, 9) as u32).map_err(io)?)
        }
        Compression::Zstd => {
            let mut z = zstd::Encoder::new(out, form.level.unwrap_or(ZSTD_LEVEL)).map_err(io)?;
            // One worker or more give the same bytes; none gives others.
            let workers = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
            z.multithread(workers).map_err(io)?;
            Encoder::Zstd(z)
        }
        Compression::None | Compression::Bzip2 | Compression::Xz => {
            return Err(LayerError::Limit(format!("layers are not written as {}", form.compression.name())));
        }
    })
}

/// What becomes of the overlay's deletion marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletions {
    /// `.wh.` names, as in image layers.
    Whiteouts,
    /// The tree is whole and has none (a mounted view).
    None,
}

/// What becomes of modification times; seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    AsIs,
    /// None is later than this.
    AtMost(i64),
    Always(i64),
}

impl Times {
    fn of(self, seconds: i64) -> i64 {
        match self {
            Times::AsIs => seconds,
            Times::AtMost(latest) => seconds.min(latest),
            Times::Always(time) => time,
        }
    }
}

/// Writes the directory `tree` as an uncompressed tar; gives `out` back.
pub fn pack_tree<W: Write>(tree: &RootDir, deletions: Deletions, times: Times, out: W) -> Result<W> {
    let mut packer = TreePacker::new(deletions, out);
    packer.pack(tree, Path::new(""), times)?;
    packer.finish()
}

struct OpenDir {
    path: PathBuf,
    dir: RootDir,
    entries: Vec<OsString>,
}

/// Writes one directory after the other into one uncompressed tar.
pub struct TreePacker<W: Write> {
    out: TarWriter<W>,
    deletions: Deletions,
    times: Times,
    /// First path of each inode with several names.
    links: HashMap<(u32, u32, u64), PathBuf>,
    buffer: Vec<u8>,
}

impl<W: Write> TreePacker<W> {
    pub fn new(deletions: Deletions, out: W) -> TreePacker<W> {
        let (out, times) = (TarWriter::new(out), Times::AsIs);
        TreePacker { out, deletions, times, links: HashMap::new(), buffer: vec![0; 1 << 20] }
    }

    /// Writes what is below `tree` with paths below `folder`.
    pub fn pack(&mut self, tree: &RootDir, folder: &Path, times: Times) -> Result<()> {
        self.times = times;
        self.links.clear();
        if !folder.as_os_str().is_empty() {
            self.header(&TarEntry::plain_dir(folder))?;
        }
        // Directories still to be listed, deepest last: (path, handle, its entries in reverse).
        let mut stack = vec![self.open(tree.try_clone()?, folder.to_path_buf())?];
        while let Some(top) = stack.last_mut() {
            let Some(entry) = top.entries.pop() else {
                stack.pop();
                continue;
            };
            let path = top.path.join(&entry);
            let stat = top.dir.stat_name(&entry)?;
            self.write(&top.dir, &entry, &path, &stat)?;
            if stat.kind == Kind::Dir {
                let dir = top.dir.sub(&entry)?;
                stack.push(self.open(dir, path)?);
            }
        }
        Ok(())
    }

    /// Ends the archive; gives what it was written to.
    pub fn finish(self) -> Result<W> {
        self.out.finish().map_err(LayerError::io("writing the archive"))
    }

    fn open(&mut self, dir: RootDir, path: PathBuf) -> Result<OpenDir> {
        if self.deletions == Deletions::Whiteouts && !path.as_os_str().is_empty() {
            let opaque = dir.xattrs(OsStr::new(""))?.get(OsStr::new(OPAQUE)).is_some_and(|v| v == b"y");
            if opaque {
                self.header(&TarEntry { mode: 0, ..TarEntry::plain_file(path.join(".wh..wh..opq"), 0) })?;
            }
        }
        let mut entries: Vec<OsString> = dir.entries()?.into_iter().map(|e| e.name).collect();
        entries.reverse();
        Ok(OpenDir { path, dir, entries })
    }

    fn header(&mut self, entry: &TarEntry) -> Result<()> {
        self.out.entry(entry).map_err(LayerError::io("writing the archive"))
    }

    fn write(&mut self, dir: &RootDir, name: &OsStr, path: &Path, stat: &Stat) -> Result<()> {
        if self.deletions == Deletions::Whiteouts && dir.is_whiteout(name, stat)? {
            let hidden = [b".wh.", name.as_bytes()].concat();
            let path = path.with_file_name(OsStr::from_bytes(&hidden));
            return self.header(&TarEntry { mode: 0, ..TarEntry::plain_file(path, 0) });
        }
        let kind = match stat.kind {
            Kind::File => EntryKind::File,
            Kind::Dir => EntryKind::Dir,
            Kind::Symlink => EntryKind::Symlink,
            Kind::CharDevice => EntryKind::CharDevice,
            Kind::BlockDevice => EntryKind::BlockDevice,
            Kind::Fifo => EntryKind::Fifo,
            // A socket means nothing without the process that made it.
            Kind::Socket => return Ok(()),
        };
        let mut entry = TarEntry {
            path: path.as_os_str().to_os_string(),
            kind,
            mode: stat.mode,
            uid: u64::from(stat.uid),
            gid: u64::from(stat.gid),
            mtime: Timestamp { sec: self.times.of(stat.mtime.sec), ..stat.mtime },
            size: 0,
            link: OsString::new(),
            rdev: stat.rdev,
            xattrs: Default::default(),
            sparse: None,
        };
        if kind == EntryKind::Symlink {
            // Always 0777 to the kernel, and nobody reads it.
            entry.mode = 0o777;
            entry.link = dir.read_link(name)?;
        }
        if kind != EntryKind::Dir && stat.nlink > 1 {
            if let Some(first) = self.links.get(&stat.inode()) {
                entry.kind = EntryKind::HardLink;
                entry.link = first.as_os_str().to_os_string();
                return self.header(&entry);
            }
            self.links.insert(stat.inode(), path.to_path_buf());
        }
        if matches!(kind, EntryKind::File | EntryKind::Dir) {
            entry.xattrs = dir.xattrs(name)?.into_iter().filter(|(attr, _)| keep_in_layer(attr)).collect();
        }
        if kind == EntryKind::File {
            entry.size = stat.size;
            return self.file(dir, name, &entry);
        }
        self.header(&entry)
    }

    fn file(&mut self, dir: &RootDir, name: &OsStr, entry: &TarEntry) -> Result<()> {
        let context = || format!("reading {:?}", entry.path);
        self.header(entry)?;
        if entry.size == 0 {
            return Ok(());
        }
        let mut file = dir.open_name(name)?.take(entry.size);
        let mut left = entry.size;
        while left > 0 {
            let n = file.read(&mut self.buffer).map_err(LayerError::io(context()))?;
            if n == 0 {
                return Err(entry_changed(entry));
            }
            self.out.content(&self.buffer[..n]).map_err(LayerError::io("writing the archive"))?;
            left -= n as u64;
        }
        Ok(())
    }
}

fn entry_changed(entry: &TarEntry) -> LayerError {
    LayerError::Entry {
        name: entry.path.to_string_lossy().into_owned(),
        reason: "became shorter while it was read".into(),
    }
}
