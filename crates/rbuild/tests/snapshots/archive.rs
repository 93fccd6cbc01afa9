//! Archives described as text, one line per entry, so that cases with faults are data.
//!
//! | line | meaning |
//! |---|---|
//! | `file NAME [OPTION…] [= CONTENT]` | a regular file |
//! | `dir`, `symlink`, `link`, `fifo`, `char`, `type-X` | other types of entries |
//! | `blob NAME = CONTENT` | a file of an OCI layout; `$NAME` is its digest, `$NAME.size` its size
//! |
//! | `pax RECORD`, `global RECORD` | a record `KEY=VALUE` for the next entry, or for all |
//! | `record TEXT` | an extended header with that text, which may be invalid |
//! | `zeros COUNT` | bytes after the entries |
//! | `cut COUNT` | the archive ends that many bytes early |
//!
//! Options set fields of the header as text: `mode`, `uid`, `gid`, `size`, `sum`, `dev`, `to`.

use rbuild_image::BlobDigest;

use crate::lab::words;

/// Returns the archive that the lines describe.
pub fn archive(lines: &str) -> Vec<u8> {
    let mut made = Archive::default();
    lines.lines().filter(|line| !line.is_empty()).for_each(|line| made.add(line));
    made.bytes.resize(made.bytes.len() + 1024 + made.zeros, 0);
    made.bytes.truncate(made.bytes.len() - made.cut);
    made.bytes
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    zeros: usize,
    cut: usize,
    /// Names of variables, and their values.
    variables: Vec<(String, String)>,
}

impl Archive {
    fn add(&mut self, line: &str) {
        let (head, content) = line.split_once(" = ").unwrap_or((line, ""));
        let (kind, rest) = head.split_once(' ').unwrap_or((head, ""));
        let content = self.expanded(content);
        match kind {
            "pax" | "global" => {
                let record = format!(" {}\n", rest.replace("\\0", "\0"));
                // The length counts its own digits.
                let length =
                    (1..4).map(|digits| record.len() + digits).find(|n| n.to_string().len() + record.len() == *n);
                self.entry(
                    if kind == "pax" { b'x' } else { b'g' },
                    "pax",
                    &[],
                    format!("{}{record}", length.unwrap()).as_bytes(),
                );
            }
            "record" => self.entry(b'x', "pax", &[], rest.replace("\\n", "\n").as_bytes()),
            "zeros" => self.zeros = rest.parse().unwrap(),
            "cut" => self.cut = rest.parse().unwrap(),
            "blob" => {
                let digest = BlobDigest::of(content.as_bytes());
                self.entry(b'0', &format!("blobs/sha256/{}", digest.hex()), &[], content.as_bytes());
                self.variables.push((format!("${rest}.size"), content.len().to_string()));
                self.variables.push((format!("${rest}"), digest.to_string()));
            }
            kind => {
                let parts = words(rest);
                let options: Vec<(&str, &str)> = parts[1..].iter().map(|part| part.split_once('=').unwrap()).collect();
                let flag = match kind {
                    "file" => b'0',
                    "link" => b'1',
                    "symlink" => b'2',
                    "char" => b'3',
                    "dir" => b'5',
                    "fifo" => b'6',
                    other => *other.strip_prefix("type-").expect(other).as_bytes().first().unwrap(),
                };
                self.entry(flag, &parts[0].replace("\\0", "\0"), &options, content.as_bytes());
            }
        }
    }

    /// Replaces the variables in a text. The longer of two names comes first.
    fn expanded(&self, text: &str) -> String {
        self.variables.iter().fold(text.to_string(), |text, (name, value)| text.replace(name, value))
    }

    fn entry(&mut self, flag: u8, name: &str, options: &[(&str, &str)], content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        let fields = header.as_gnu_mut().unwrap();
        put(&mut fields.name, name.as_bytes());
        put(&mut fields.mode, b"0000644");
        put(&mut fields.uid, b"0000000");
        put(&mut fields.gid, b"0000000");
        put(&mut fields.mtime, b"00000250600");
        put(&mut fields.size, format!("{:011o}", content.len()).as_bytes());
        fields.typeflag = [flag];
        for (option, value) in options {
            let value = value.as_bytes();
            match *option {
                "mode" => put(&mut fields.mode, value),
                "uid" => put(&mut fields.uid, value),
                "gid" => put(&mut fields.gid, value),
                "size" => put(&mut fields.size, value),
                "dev" => put(&mut fields.dev_major, value),
                "to" => put(&mut fields.linkname, value),
                "sum" => {}
                other => panic!("no option {other}"),
            }
        }
        header.set_cksum();
        if let Some((_, value)) = options.iter().find(|(option, _)| *option == "sum") {
            put(&mut header.as_gnu_mut().unwrap().cksum, value.as_bytes());
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }
}

fn put(field: &mut [u8], value: &[u8]) {
    field.fill(0);
    field[..value.len()].copy_from_slice(value);
}
