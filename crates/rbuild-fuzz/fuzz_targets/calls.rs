//! Decodes arbitrary registers and memory as a system call of the ID emulation. Every input must be
//! decoded or rejected.
#![no_main]

#[path = "../../rbuild-sandbox/src/id_emulation/calls.rs"]
mod calls;
#[allow(dead_code)]
#[path = "../../rbuild-sandbox/src/id_emulation/decode.rs"]
mod decode;

/// The modules under the paths that they have in their own crate.
mod id_emulation {
    pub(crate) use crate::calls;
}

use decode::{Request, Subject, TimeForm, Width, decode, ids_of, open_how, without};
use libfuzzer_sys::fuzz_target;

const ARCHITECTURES: [u32; 4] = [0xC000_003E, 0x4000_0003, 0xC000_00B7, 0x4000_0028];

fuzz_target!(|bytes: &[u8]| {
    let Some((head, rest)) = bytes.split_at_checked(5 + 6 * 8) else { return };
    let number = i32::from_le_bytes([head[0], head[1], head[2] & 1, 0]);
    let architecture = ARCHITECTURES[usize::from(head[4] & 3)];
    let mut args = [0; 6];
    for (arg, bytes) in args.iter_mut().zip(head[5..].chunks_exact(8)) {
        *arg = u64::from_le_bytes(bytes.try_into().unwrap());
    }
    // The filter must intercept exactly the calls that can be decoded.
    let [native, sibling] = calls::numbers();
    let asked = if calls::is_of_sibling(architecture) { &sibling } else { &native };
    let request = decode(number, architecture, args);
    assert_eq!(request.is_some(), asked.iter().any(|(n, _)| *n == number as u32));
    if let Some(Request::SetTimes { file: Subject::Named(named), .. }) = request {
        assert!(named.at.path != 0 || named.flags != 0 || named.at.dir == decode::HERE);
    }
    for form in [TimeForm::Seconds, TimeForm::Microseconds, TimeForm::Nanoseconds] {
        for width in [Width::Short, Width::Long, Width::Padded] {
            let times = form.read(width, rest);
            assert!(times.is_none() || rest.len() >= form.size(width));
            for (_, nano) in times.into_iter().flatten() {
                assert!((0..1_000_000_000).contains(&nano) || nano == decode::NOW || nano == decode::OMIT);
            }
        }
    }
    open_how(rest);
    assert_eq!(ids_of(rest).len(), rest.len() / 4);
    // A name removed from a list must no longer be in it, and no other name may be lost.
    let name = &rest[..rest.len().min(3)];
    let left = without(rest, name);
    assert!(left.split(|byte| *byte == 0).filter(|one| !one.is_empty()).all(|one| one != name));
    assert!(
        left.len() <= rest.len() && (rest.len() - left.len()).is_multiple_of(name.len() + 1).max(!rest.ends_with(&[0]))
    );
});
