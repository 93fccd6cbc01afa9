//! The output of a container: frames of bytes, each with its time and stream.
//!
//! A frame is a header of 13 bytes, followed by the output: the time in nanoseconds since the Unix
//! epoch (8 bytes), the stream (1 byte), and the length of the output (4 bytes), all in
//! little-endian order. One process appends frames, each with one write; readers ignore an
//! incomplete frame at the end. A frame that cannot be written completely, because the disk is
//! full, is removed again. A file that reaches [`MAX_FILE`] replaces the previous one, so that the
//! end of the output is kept.

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rbuild_linux::Timestamp;

use crate::containers::documents::Containers;
use crate::error::Result;
use crate::ids::ContainerId;
use crate::modes;

/// The file to which frames are appended, and the one that was full before.
const NAME: &str = "output";
const PREVIOUS: &str = "output.old";

/// The files of the output.
pub(super) const FILES: [&str; 2] = [NAME, PREVIOUS];

/// Maximum size of each of the two files in bytes.
const MAX_FILE: u64 = 32 << 20;

/// Length of the header of a frame.
const HEADER: usize = 13;

/// A stream of a container's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of a container's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFrame {
    /// Time at which it was written, in nanoseconds since the Unix epoch.
    pub time: i64,
    /// The stream.
    pub stream: OutputStream,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Containers<'_> {
    /// Creates the file that receives the output of a container.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be created.
    pub fn create_output(&self, id: &ContainerId) -> Result<OutputWriter> {
        let path = self.file_of(id, NAME);
        let opened = open_for_appending(&path).map_err(|e| rbuild_linux::Error::new("openat", &path, e))?;
        Ok(OutputWriter { file: opened, length: 0, max: MAX_FILE, path, previous: self.file_of(id, PREVIOUS) })
    }

    /// Opens the output of a container; `None` if it has none.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be opened.
    pub fn output(&self, id: &ContainerId) -> Result<Option<OutputReader>> {
        let path = self.file_of(id, NAME);
        let opened = OutputReader::open(path.clone(), self.file_of(id, PREVIOUS));
        Ok(opened.map_err(|e| rbuild_linux::Error::new("openat", &path, e))?)
    }
}

fn open_for_appending(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).mode(modes::private_file()).open(path)
}

/// Appends to the output of a container.
#[derive(Debug)]
pub struct OutputWriter {
    file: File,
    /// Bytes in the file.
    length: u64,
    max: u64,
    path: PathBuf,
    previous: PathBuf,
}

impl OutputWriter {
    /// Appends a frame with the current time.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be written completely. Then no part of it remains.
    pub fn append(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        let now = Timestamp::now();
        let time = now.sec.saturating_mul(1_000_000_000).saturating_add(i64::from(now.nsec));
        let frame = frame(time, stream, bytes);
        if self.length > 0 && self.length + frame.len() as u64 > self.max {
            // The file is created first: there may be no space for it.
            let new = self.path.with_extension("new");
            let file = open_for_appending(&new)?;
            std::fs::rename(&self.path, &self.previous)?;
            std::fs::rename(&new, &self.path)?;
            (self.file, self.length) = (file, 0);
        }
        if let Err(e) = self.file.write_all(&frame) {
            self.file.set_len(self.length)?;
            return Err(e);
        }
        self.length += frame.len() as u64;
        Ok(())
    }
}

fn frame(time: i64, stream: OutputStream, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("pieces of output are smaller than 4 GiB");
    let stream = match stream {
        OutputStream::Stdout => 1,
        OutputStream::Stderr => 2,
    };
    [&time.to_le_bytes()[..], &[stream], &length.to_le_bytes(), bytes].concat()
}

/// Reads the output of a container.
#[derive(Debug)]
pub struct OutputReader {
    file: BufReader<File>,
    /// Bytes of a frame that is not complete yet.
    pending: Vec<u8>,
    path: PathBuf,
    previous: PathBuf,
}

impl OutputReader {
    /// Opens the oldest file. Returns `None` if there is none.
    fn open(path: PathBuf, previous: PathBuf) -> io::Result<Option<OutputReader>> {
        // The newer file is opened first: it may replace the older one meanwhile.
        let Some(newer) = open_if_any(&path)? else { return Ok(None) };
        let file = open_if_any(&previous)?.unwrap_or(newer);
        Ok(Some(OutputReader { file: BufReader::new(file), pending: Vec::new(), path, previous }))
    }

    /// Returns the next frame; `None` if there is no complete one yet.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be read or is damaged.
    pub fn next_frame(&mut self) -> io::Result<Option<OutputFrame>> {
        loop {
            if let Some(frame) = self.next_in_file()? {
                return Ok(Some(frame));
            }
            let Some(next) = self.next_file()? else { return Ok(None) };
            // Nothing is appended to a file that has a successor.
            if let Some(frame) = self.next_in_file()? {
                return Ok(Some(frame));
            }
            self.file = BufReader::new(next);
            self.pending.clear();
        }
    }

    /// Opens the file after the current one, if there is one. A reader that has missed a file
    /// continues with the oldest one.
    fn next_file(&self) -> io::Result<Option<File>> {
        let current = self.file.get_ref().metadata()?;
        let newer = open_if_any(&self.path)?;
        let Some(newer) = newer.filter(|file| is_other(file.metadata(), &current)) else { return Ok(None) };
        let previous = open_if_any(&self.previous)?;
        Ok(previous.filter(|file| is_other(file.metadata(), &current)).or(Some(newer)))
    }

    fn next_in_file(&mut self) -> io::Result<Option<OutputFrame>> {
        if !self.fill(HEADER)? {
            return Ok(None);
        }
        let time = i64::from_le_bytes(array(&self.pending[..8]));
        let stream = match self.pending[8] {
            1 => OutputStream::Stdout,
            2 => OutputStream::Stderr,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "its file is damaged")),
        };
        let length = u32::from_le_bytes(array(&self.pending[9..HEADER])) as usize;
        if !self.fill(HEADER + length)? {
            return Ok(None);
        }
        let bytes = self.pending.split_off(HEADER);
        self.pending.clear();
        Ok(Some(OutputFrame { time, stream, bytes }))
    }

    /// Reads until that many bytes are pending. Returns false at the end of the file.
    fn fill(&mut self, length: usize) -> io::Result<bool> {
        let missing = length.saturating_sub(self.pending.len());
        (&mut self.file).take(missing as u64).read_to_end(&mut self.pending)?;
        Ok(self.pending.len() >= length)
    }
}

fn open_if_any(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Returns true if a file is not the current one, which is open.
fn is_other(file: io::Result<Metadata>, current: &Metadata) -> bool {
    file.is_ok_and(|file| (file.dev(), file.ino()) != (current.dev(), current.ino()))
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the slice has the length of the number")
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn frames_are_read_once_they_are_complete() {
        let dir = Scratch::new();
        let path = dir.join("output");
        let frames = [
            (1, OutputStream::Stdout, &b"one\n"[..]),
            (-2, OutputStream::Stderr, b""),
            (3, OutputStream::Stderr, b"\xff"),
        ];
        let whole: Vec<u8> = frames.iter().flat_map(|(time, stream, bytes)| frame(*time, *stream, bytes)).collect();
        let mut written = File::create(&path).unwrap();
        let mut reader = OutputReader::open(path, dir.join("previous")).unwrap().unwrap();
        let mut found = Vec::new();
        for byte in whole {
            written.write_all(&[byte]).unwrap();
            found.extend(reader.next_frame().unwrap());
        }
        let expected = frames.map(|(time, stream, bytes)| OutputFrame { time, stream, bytes: bytes.to_vec() });
        assert_eq!(found, expected);
    }

    #[test]
    fn frames_of_unknown_streams_are_refused() {
        let dir = Scratch::new();
        let path = dir.join("output");
        let mut damaged = frame(1, OutputStream::Stdout, b"one");
        damaged.extend_from_slice(b"the middle of another frame");
        std::fs::write(&path, damaged).unwrap();
        let mut reader = OutputReader::open(path, dir.join("previous")).unwrap().unwrap();
        assert_eq!(reader.next_frame().unwrap().unwrap().bytes, b"one");
        assert_eq!(reader.next_frame().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn old_output_is_replaced_and_followed() {
        let dir = Scratch::new();
        let (path, previous) = (dir.join("output"), dir.join("previous"));
        let file = open_for_appending(&path).unwrap();
        // Three frames of 14 bytes fit.
        let mut writer = OutputWriter { file, length: 0, max: 50, path: path.clone(), previous: previous.clone() };
        let mut write = |bytes: std::ops::RangeInclusive<u8>| {
            bytes.for_each(|byte| writer.append(OutputStream::Stdout, &[byte]).unwrap());
        };
        let open = || OutputReader::open(path.clone(), previous.clone()).unwrap().unwrap();
        let rest = |reader: &mut OutputReader| {
            let frames = std::iter::from_fn(|| reader.next_frame().unwrap());
            frames.flat_map(|frame| frame.bytes).collect::<Vec<u8>>()
        };
        write(1..=2);
        let mut follower = open();
        assert_eq!(rest(&mut follower), [1, 2]);
        write(3..=4);
        assert_eq!(rest(&mut follower), [3, 4]);
        write(5..=8);
        assert_eq!(rest(&mut open()), [4, 5, 6, 7, 8]);
        assert_eq!(rest(&mut follower), [5, 6, 7, 8]);
        // Those that are replaced before they are read are lost.
        write(9..=17);
        assert_eq!(rest(&mut follower), [9, 13, 14, 15, 16, 17]);
        assert!(std::fs::metadata(&path).unwrap().len() <= 50);
    }
}
