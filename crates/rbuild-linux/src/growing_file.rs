//! Reads of files that another thread or process is still writing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Reads from position `at`, which moves, but nothing from `end` on.
///
/// # Errors
///
/// Fails with `UnexpectedEof` if the file ends before `end`.
pub fn read_up_to(file: &File, buf: &mut [u8], at: &mut u64, end: u64) -> io::Result<usize> {
    let most = buf.len().min(end.saturating_sub(*at).try_into().unwrap_or(usize::MAX));
    let n = file.read_at(&mut buf[..most], *at)?;
    if n == 0 && most > 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    *at += n as u64;
    Ok(n)
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn only_bytes_before_the_end_are_read() {
        let scratch = Scratch::new();
        std::fs::write(scratch.join("file"), "abcdef").unwrap();
        let file = File::open(scratch.join("file")).unwrap();
        let (mut buf, mut at) = ([0; 8], 1);
        assert_eq!(read_up_to(&file, &mut buf, &mut at, 4).unwrap(), 3);
        assert_eq!((&buf[..3], at), (&b"bcd"[..], 4));
        assert_eq!(read_up_to(&file, &mut buf, &mut at, 4).unwrap(), 0);
        assert_eq!(read_up_to(&file, &mut buf, &mut at, 7).unwrap(), 2);
        let failed = read_up_to(&file, &mut buf, &mut at, 7).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::UnexpectedEof);
    }
}
