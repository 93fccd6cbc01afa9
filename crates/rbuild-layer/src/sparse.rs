//! Sparse files in archives: old GNU headers, and GNU's PAX records of versions 0.0, 0.1 and 1.0
//! (GNU tar manual, "Storing Sparse Files").

use std::io::Read;

use tar::Header;

use crate::error::{LayerError, Result};

/// Offset and length of a data region.
pub(crate) type DataRegion = (u64, u64);

/// Maximum number of data regions of a file; no legitimate archive has more.
const MAX_REGIONS: usize = 200_000;

/// The `GNU.sparse.*` records of an entry.
#[derive(Debug, Default, Clone)]
pub(crate) struct SparseRecords {
    /// The `name` record: the path of the file.
    pub name: Option<Vec<u8>>,
    size: Option<u64>,
    regions: Vec<DataRegion>,
    /// In version 0.0, offset and length are separate records, in turn.
    offset: Option<u64>,
    major: u64,
    /// True if there was any such record.
    any: bool,
}

/// The sparse map of a file.
pub(crate) struct SparseFile {
    /// Size of the file including holes, in bytes.
    pub size: u64,
    /// Data regions. `None` if the map precedes the content (version 1.0).
    pub regions: Option<Vec<DataRegion>>,
}

impl SparseRecords {
    /// Adds a record. `key` lacks the prefix `GNU.sparse.`.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.any = true;
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"realsize" | b"size" => self.size = Some(number(value)?),
            b"major" => self.major = number(value)?,
            b"offset" => self.offset = Some(number(value)?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or_else(|| damaged("has a length without an offset"))?;
                self.regions.push((offset, number(value)?));
            }
            b"map" => {
                let numbers: Vec<u64> =
                    value.split(|b| *b == b',').filter(|n| !n.is_empty()).map(number).collect::<Result<_>>()?;
                self.regions = numbers.chunks(2).map(|p| (p[0], p.get(1).copied().unwrap_or(0))).collect();
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns the file's sparse map, or `None` if there was no record.
    pub fn file(&self) -> Result<Option<SparseFile>> {
        if !self.any {
            return Ok(None);
        }
        let size = self.size.ok_or_else(|| damaged("has no size"))?;
        let regions = (self.major == 0).then(|| self.regions.clone());
        if let Some(regions) = &regions {
            check(regions, size)?;
        }
        Ok(Some(SparseFile { size, regions }))
    }
}

/// Reads the map of version 1.0, which precedes the content. Returns it and the number of bytes it
/// occupies, including padding.
pub(crate) fn read_map(content: &mut impl Read, size: u64) -> Result<(Vec<DataRegion>, u64)> {
    let mut taken = 0u64;
    let mut block = [0u8; 512];
    let mut at = block.len();
    let mut next = |content: &mut dyn Read, taken: &mut u64| -> Result<u64> {
        let mut text = Vec::new();
        loop {
            if at == block.len() {
                content.read_exact(&mut block).map_err(LayerError::reading("the map of a sparse file"))?;
                *taken += block.len() as u64;
                at = 0;
            }
            let byte = block[at];
            at += 1;
            match byte {
                b'\n' => return number(&text),
                byte if text.len() < 20 => text.push(byte),
                _ => return Err(damaged("contains an unterminated number")),
            }
        }
    };
    let count = next(content, &mut taken)?;
    if count > MAX_REGIONS as u64 {
        return Err(LayerError::fixed_limit(format!(
            "a sparse file claims {count} data regions; the limit is {MAX_REGIONS}"
        )));
    }
    let mut regions = Vec::new();
    for _ in 0..count {
        regions.push((next(content, &mut taken)?, next(content, &mut taken)?));
    }
    check(&regions, size)?;
    Ok((regions, taken))
}

/// Reads the data regions from an old GNU header and the extension blocks after it. Returns them
/// and the size of the file including holes.
pub(crate) fn read_old(header: &Header, content: &mut impl Read) -> Result<(Vec<DataRegion>, u64)> {
    let gnu = header.as_gnu().ok_or_else(|| damaged("has a header of another format than GNU tar's"))?;
    let size = gnu.real_size().map_err(|_| damaged("has a size that is not a number"))?;
    let mut regions = Vec::new();
    let mut add = |entries: &[tar::GnuSparseHeader]| -> Result<()> {
        for entry in entries.iter().filter(|e| !e.is_empty()) {
            let number = |n: std::io::Result<u64>| {
                n.map_err(|_| damaged("has a data region whose offset or length is not a number"))
            };
            regions.push((number(entry.offset())?, number(entry.length())?));
        }
        if regions.len() > MAX_REGIONS {
            Err(LayerError::fixed_limit(format!("a sparse file has more than {MAX_REGIONS} data regions")))
        } else {
            Ok(())
        }
    };
    add(&gnu.sparse)?;
    let mut more = gnu.is_extended();
    while more {
        let mut next = tar::GnuExtSparseHeader::new();
        content.read_exact(next.as_mut_bytes()).map_err(LayerError::reading("the map of a sparse file"))?;
        add(&next.sparse)?;
        more = next.is_extended();
    }
    check(&regions, size)?;
    Ok((regions, size))
}

/// Checks that the regions are ordered, do not overlap, and end within the file.
fn check(regions: &[DataRegion], size: u64) -> Result<()> {
    if regions.len() > MAX_REGIONS {
        return Err(LayerError::fixed_limit(format!("a sparse file has more than {MAX_REGIONS} data regions")));
    }
    let mut end = 0;
    for (offset, length) in regions {
        let next = offset.checked_add(*length).ok_or_else(|| damaged("has a data region beyond the largest offset"))?;
        if *offset < end || next > size {
            return Err(damaged("has data regions that overlap or exceed its size"));
        }
        end = next;
    }
    Ok(())
}

fn number(text: &[u8]) -> Result<u64> {
    let parsed = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok());
    parsed.ok_or_else(|| damaged("contains an invalid number"))
}

fn damaged(problem: &str) -> LayerError {
    LayerError::Damaged(format!("a sparse file {problem}"))
}
