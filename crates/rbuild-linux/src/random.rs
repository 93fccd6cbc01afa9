//! Cryptographically secure random bytes.

use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Error, Result, described};

/// Returns bytes from the kernel's random number generator.
pub fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::new("getrandom", described("random bytes"), e)),
        }
    }
    Ok(bytes)
}
