//! Docker's default seccomp profile as a BPF program (seccomp(2), bpf(4)).
//!
//! Calls that the profile allows are allowed; calls newer than the profile fail with ENOSYS, so
//! that programs use a fallback; all others fail with EPERM. Calls of an architecture's 32-bit
//! sibling have their own rules. Of the profile's capability-dependent parts, only those for
//! CAP_SYS_CHROOT apply, the one such capability that a build has.

mod bpf;
mod calls;
mod refusals;

use rbuild_linux::seccomp::{FilterStep, NOTIFY};

use crate::id_emulation::InterceptCondition;
use bpf::{
    ALLOW, ARCHITECTURE, ENOSYS, EPERM, FIRST_ARGUMENT, JUMP, JUMP_IF_ANY_BIT, JUMP_IF_AT_LEAST, JUMP_IF_EQUAL,
    JUMP_IF_GREATER, LOAD, NUMBER, X32, answer, fail, step,
};
use calls::{ALLOWED, ARCHITECTURES, CLONE, CLONE3, PERSONALITY, SOCKET};
pub use refusals::KeyringRefusal;

/// `AUDIT_ARCH_…` of each architecture (linux/audit.h).
const AUDIT: [u32; 4] = [0xC000_003E, 0x4000_0003, 0xC000_00B7, 0x4000_0028];

/// Flags of clone(2) that create namespaces.
const NEW_NAMESPACES: u32 = 0x7E02_0000;
/// Permitted arguments of personality(2): the default, 32-bit uname and no randomization, their
/// combination, and the query.
const PERSONALITIES: [u32; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Denied families of socket(2): AF_VSOCK, the host's channel to virtual machines, and AF_ALG, the
/// kernel's ciphers.
const NO_FAMILIES: [u32; 2] = [40, 38];

/// Returns an instruction that allows all calls.
pub fn allowing() -> FilterStep {
    answer(ALLOW)
}

/// Returns the filter for the architecture of this build, or `None` if the profile does not cover
/// it.
pub fn filter() -> Option<Vec<FilterStep>> {
    let native = native()?;
    Some(program([native, native + 1], &Default::default()))
}

/// The calls that are sent to the supervisor, on this architecture and on its 32-bit sibling: their
/// numbers and conditions.
pub type InterceptedCalls = [Vec<(u32, InterceptCondition)>; 2];

/// Like [`filter`], but sends the given calls to the supervisor.
pub fn filter_with_supervisor(about: &InterceptedCalls) -> Option<Vec<FilterStep>> {
    let native = native()?;
    Some(program([native, native + 1], about))
}

/// Returns the filter for commands that the profile does not confine: refuses the calls that no
/// command may make ([`refusals`]), sends the given calls to the supervisor, and allows all others.
pub fn filter_for_insecure(about: &InterceptedCalls, keys: KeyringRefusal) -> Option<Vec<FilterStep>> {
    let native = native()?;
    Some(least([native, native + 1], about, keys))
}

fn least(architectures: [usize; 2], about: &InterceptedCalls, keys: KeyringRefusal) -> Vec<FilterStep> {
    let [of_native, of_sibling] = [0, 1].map(|i| {
        let mut steps = vec![step(LOAD, NUMBER, 0, 0)];
        steps.extend(refusals::refuse_keyring_calls(architectures[i], keys));
        steps.extend(refusals::refuse_bypasses(architectures[i]));
        steps.extend(refusals::refuse_whiteouts(architectures[i]));
        steps.extend(forwarding(architectures[i], &about[i]));
        steps.push(answer(ALLOW));
        steps
    });
    by_architecture(architectures, of_native, of_sibling, answer(ALLOW))
}

fn native() -> Option<usize> {
    ARCHITECTURES.iter().position(|name| *name == std::env::consts::ARCH)
}

/// Returns the instructions that send calls to the supervisor, if there is one, and refuse what
/// would deceive it. They expect the call number in the accumulator and leave it there.
fn forwarding(architecture: usize, about: &[(u32, InterceptCondition)]) -> Vec<FilterStep> {
    let mut steps = if about.is_empty() { Vec::new() } else { refusals::refuse_forgeries(architecture) };
    for (number, when) in about {
        let (argument, tests) = match *when {
            InterceptCondition::Always => {
                steps.extend([step(JUMP_IF_EQUAL, *number, 0, 1), answer(NOTIFY)]);
                continue;
            }
            InterceptCondition::AnyBit(argument, bits) => {
                (argument, vec![step(JUMP_IF_ANY_BIT, bits, 0, 1), answer(NOTIFY)])
            }
            InterceptCondition::OneOf(argument, values) => (
                argument,
                values.iter().flat_map(|value| [step(JUMP_IF_EQUAL, *value, 0, 1), answer(NOTIFY)]).collect(),
            ),
        };
        let load = step(LOAD, FIRST_ARGUMENT + 8 * u32::from(argument), 0, 0);
        steps.extend([step(JUMP_IF_EQUAL, *number, 0, tests.len() as u8 + 2), load]);
        steps.extend(tests);
        steps.push(answer(ALLOW));
    }
    steps
}

/// Assembles the rules of two architectures, with the given calls sent to the supervisor.
fn program(architectures: [usize; 2], about: &InterceptedCalls) -> Vec<FilterStep> {
    let [mut native, mut sibling] = architectures.map(rules);
    // After the instruction that loads the call number.
    for (rules, architecture, about) in
        [(&mut native, architectures[0], &about[0]), (&mut sibling, architectures[1], &about[1])]
    {
        let mut first = refusals::refuse_whiteouts(architecture);
        first.extend(forwarding(architecture, about));
        rules.splice(1..1, first);
    }
    by_architecture(architectures, native, sibling, answer(fail(ENOSYS)))
}

/// Prefixes the rules of two architectures with a dispatch on the call's architecture; calls of any
/// other architecture get `other`.
fn by_architecture(
    architectures: [usize; 2],
    native: Vec<FilterStep>,
    sibling: Vec<FilterStep>,
    other: FilterStep,
) -> Vec<FilterStep> {
    let mut steps = vec![
        step(LOAD, ARCHITECTURE, 0, 0),
        step(JUMP_IF_EQUAL, AUDIT[architectures[0]], 3, 0),
        step(JUMP_IF_EQUAL, AUDIT[architectures[1]], 0, 1),
        step(JUMP, 1 + native.len() as u32, 0, 0),
        other,
    ];
    // The native rules follow; the first comparison jumps over the three instructions in between.
    steps.extend(native);
    steps.extend(sibling);
    steps
}

fn rules(architecture: usize) -> Vec<FilterStep> {
    let mut steps = vec![step(LOAD, NUMBER, 0, 0)];
    let mut special = |call: [i32; 4], looks: &[FilterStep]| {
        if let Ok(number) = u32::try_from(call[architecture]) {
            steps.push(step(JUMP_IF_EQUAL, number, 0, looks.len() as u8));
            steps.extend(looks);
        }
    };
    let argument = step(LOAD, FIRST_ARGUMENT, 0, 0);
    special(CLONE, &[argument, step(JUMP_IF_ANY_BIT, NEW_NAMESPACES, 0, 1), answer(fail(EPERM)), answer(ALLOW)]);
    // Its flags are in memory, which filters cannot read: libraries fall back to clone.
    special(CLONE3, &[answer(fail(ENOSYS))]);
    let mut looks = vec![argument];
    looks.extend(PERSONALITIES.iter().flat_map(|value| [step(JUMP_IF_EQUAL, *value, 0, 1), answer(ALLOW)]));
    looks.push(answer(fail(EPERM)));
    special(PERSONALITY, &looks);
    let mut looks = vec![argument];
    looks.extend(NO_FAMILIES.iter().flat_map(|family| [step(JUMP_IF_EQUAL, *family, 0, 1), answer(fail(EPERM))]));
    looks.push(answer(ALLOW));
    special(SOCKET, &looks);
    let ranges = ranges(architecture);
    for (first, last) in &ranges {
        steps.push(step(JUMP_IF_GREATER, *last, 3, 0));
        steps.push(step(JUMP_IF_AT_LEAST, *first, 0, 1));
        steps.push(answer(ALLOW));
        steps.push(answer(fail(EPERM)));
    }
    if ARCHITECTURES[architecture] == "x86_64" {
        steps.push(step(JUMP_IF_AT_LEAST, X32, 0, 1));
        steps.push(answer(fail(EPERM)));
    }
    steps.push(answer(fail(ENOSYS)));
    steps
}

/// Returns the allowed numbers as ranges.
fn ranges(architecture: usize) -> Vec<(u32, u32)> {
    let mut numbers: Vec<u32> =
        ALLOWED.iter().filter_map(|(_, numbers)| u32::try_from(numbers[architecture]).ok()).collect();
    numbers.sort_unstable();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if number <= *last + 1 => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::bpf::{AND, EINVAL, RETURN};
    use super::*;

    fn run(program: &[FilterStep], architecture: u32, number: u32, argument: u32) -> u32 {
        run_with(program, architecture, number, [argument, 0, 0, 0, 0, 0])
    }

    /// Emulates the kernel's BPF machine.
    fn run_with(program: &[FilterStep], architecture: u32, number: u32, arguments: [u32; 6]) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let FilterStep { code, yes, no, k } = program[at];
            at += 1;
            let holds = match code {
                LOAD => {
                    value = match k {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        argument => arguments[(argument - FIRST_ARGUMENT) as usize / 8],
                    };
                    continue;
                }
                AND => {
                    value &= k;
                    continue;
                }
                RETURN => return k,
                JUMP => {
                    at += k as usize;
                    continue;
                }
                JUMP_IF_EQUAL => value == k,
                JUMP_IF_GREATER => value > k,
                JUMP_IF_AT_LEAST => value >= k,
                JUMP_IF_ANY_BIT => value & k != 0,
                other => panic!("the code {other:#x}"),
            };
            at += usize::from(if holds { yes } else { no });
        }
    }

    #[test]
    fn every_architecture_allows_what_the_profile_names_and_nothing_else() {
        for pair in [[0, 1], [2, 3]] {
            let program = program(pair, &Default::default());
            assert!(program.len() < 4096, "{}", program.len());
            for a in pair {
                let allowed: Vec<u32> = ALLOWED.iter().filter_map(|(_, n)| u32::try_from(n[a]).ok()).collect();
                let newest = *allowed.iter().filter(|n| **n < 2000).max().unwrap();
                for number in 0..newest + 50 {
                    let got = run(&program, AUDIT[a], number, 0xffff);
                    let special = [CLONE, CLONE3, PERSONALITY, SOCKET].iter().any(|s| s[a] == number as i32);
                    if allowed.contains(&number) {
                        assert_eq!(got, ALLOW, "{number} of {}", ARCHITECTURES[a]);
                    } else if !special {
                        // ARM has private calls far above the others.
                        let errno = if number > newest && a != 3 { ENOSYS } else { EPERM };
                        assert_eq!(got, fail(errno), "{number} of {}", ARCHITECTURES[a]);
                    }
                }
            }
        }
    }

    #[test]
    fn emulated_calls_are_forwarded() {
        let native_calls = vec![
            (102, InterceptCondition::Always),
            (257, InterceptCondition::AnyBit(0, 0o100)),
            (302, InterceptCondition::OneOf(0, &[9, 12])),
        ];
        let asks = program(
            [0, 1],
            &[native_calls, vec![(199, InterceptCondition::Always), (295, InterceptCondition::AnyBit(0, 0o100))]],
        );
        let open = least(
            [0, 1],
            &[vec![(102, InterceptCondition::Always)], vec![(199, InterceptCondition::Always)]],
            KeyringRefusal::Missing,
        );
        assert_eq!(run(&asks, AUDIT[0], 102, 0), NOTIFY);
        assert_eq!(run(&asks, AUDIT[0], 257, 0o101), NOTIFY);
        assert_eq!(run(&asks, AUDIT[0], 257, 0), ALLOW);
        let of_302 = [9, 12, 13].map(|argument| run(&asks, AUDIT[0], 302, argument));
        assert_eq!(of_302, [NOTIFY, NOTIFY, ALLOW]);
        // The 32-bit sibling has different numbers.
        assert_eq!((run(&asks, AUDIT[1], 102, 0), run(&asks, AUDIT[1], 199, 0)), (ALLOW, NOTIFY));
        assert_eq!((run(&asks, AUDIT[1], 295, 0o101), run(&asks, AUDIT[1], 295, 0)), (NOTIFY, ALLOW));
        assert_eq!(run(&asks, AUDIT[0], 199, 0), ALLOW);
        assert_eq!((run(&open, AUDIT[1], 199, 0), run(&open, AUDIT[1], 102, 0)), (NOTIFY, ALLOW));
        assert_eq!(run(&open, 0x1234, 199, 0), ALLOW, "another architecture");
        assert_eq!(run(&asks, AUDIT[0], 165, 0), fail(EPERM), "mount");
        assert_eq!((run(&open, AUDIT[0], 102, 0), run(&open, AUDIT[0], 165, 0)), (NOTIFY, ALLOW));
    }

    #[test]
    fn whiteouts_are_refused_and_other_nodes_are_not() {
        let asked = [vec![(133, InterceptCondition::Always), (259, InterceptCondition::Always)], vec![]];
        let least = least([0, 1], &InterceptedCalls::default(), KeyringRefusal::Forbidden);
        for (program, other) in
            [(program([0, 1], &InterceptedCalls::default()), ALLOW), (program([0, 1], &asked), NOTIFY), (least, ALLOW)]
        {
            let got = |number, arguments| run_with(&program, AUDIT[0], number, arguments);
            for (number, front) in [(133, 1), (259, 2)] {
                let node = |mode: u32, device: u32| {
                    let mut arguments = [7; 6];
                    (arguments[front], arguments[front + 1]) = (mode, device);
                    got(number, arguments)
                };
                assert_eq!(node(0o020_000, 0), fail(EPERM));
                assert_eq!(node(0o020_644, 0), fail(EPERM));
                let others = [(0o020_644, 1), (0o060_644, 0), (0o010_644, 0), (0o644, 0), (0o140_644, 0)];
                for (mode, device) in others {
                    assert_eq!(node(mode, device), other, "{mode:o} {device}");
                }
            }
            assert_eq!(got(316, [0, 0, 0, 0, 4, 0]), fail(EINVAL));
            assert_eq!(got(316, [0, 0, 0, 0, 3, 0]), ALLOW);
            assert_eq!(run_with(&program, AUDIT[1], 14, [0, 0o020_000, 0, 0, 0, 0]), fail(EPERM));
            assert_eq!(run_with(&program, AUDIT[1], 353, [0, 0, 0, 0, 5, 0]), fail(EINVAL));
        }
    }

    #[test]
    fn keys_are_out_of_reach_in_every_abi() {
        for pair in [[0, 1], [2, 3]] {
            for (keys, errno) in [(KeyringRefusal::Forbidden, EPERM), (KeyringRefusal::Missing, ENOSYS)] {
                let least = least(pair, &InterceptedCalls::default(), keys);
                for a in pair {
                    for call in calls::KEYS {
                        let number = call[a] as u32;
                        assert_eq!(run(&least, AUDIT[a], number, 0), fail(errno), "{number} of {}", ARCHITECTURES[a]);
                        let with_x32 = if a == 0 { fail(ENOSYS) } else { ALLOW };
                        assert_eq!(run(&least, AUDIT[a], X32 | number, 0), with_x32);
                        assert_eq!(run(&program(pair, &InterceptedCalls::default()), AUDIT[a], number, 0), fail(EPERM));
                    }
                    assert_eq!(run(&least, AUDIT[a], calls::KEYS[2][a] as u32 + 1, 0), ALLOW);
                }
            }
        }
    }

    #[test]
    fn requests_invisible_to_filters_are_refused() {
        for pair in [[0, 1], [2, 3]] {
            for a in pair {
                for number in 425..428 {
                    let least = least(pair, &InterceptedCalls::default(), KeyringRefusal::Missing);
                    assert_eq!(run(&least, AUDIT[a], number, 0), fail(ENOSYS), "{number} of {}", ARCHITECTURES[a]);
                    assert_eq!(run(&program(pair, &InterceptedCalls::default()), AUDIT[a], number, 0), fail(EPERM));
                }
            }
        }
        let least = least([0, 1], &InterceptedCalls::default(), KeyringRefusal::Missing);
        assert_eq!((run(&least, AUDIT[0], X32 | 133, 0), run(&least, AUDIT[0], 428, 0)), (fail(ENOSYS), ALLOW));
    }

    #[test]
    fn commands_cannot_change_execution_records_or_use_recent_xattr_calls() {
        for pair in [[0, 1], [2, 3]] {
            let asked: InterceptedCalls = [0, 1].map(|_| vec![(1000, InterceptCondition::Always)]);
            let asks = [program(pair, &asked), least(pair, &asked, KeyringRefusal::Missing)];
            let others = [
                program(pair, &InterceptedCalls::default()),
                least(pair, &InterceptedCalls::default(), KeyringRefusal::Missing),
            ];
            for a in pair {
                let got = |program: &[FilterStep], number, argument| run(program, AUDIT[a], number, argument);
                let prctl = calls::PRCTL[a] as u32;
                for (asks, other) in asks.iter().zip(&others) {
                    assert_eq!((got(asks, prctl, 35), got(asks, prctl, 15)), (fail(EPERM), ALLOW));
                    assert_eq!(got(other, prctl, 35), ALLOW);
                    for number in 463..467 {
                        assert_eq!((got(asks, number, 0), got(other, number, 0)), (fail(ENOSYS), ALLOW));
                    }
                    for number in 468..470 {
                        assert_eq!(got(asks, number, 0), fail(ENOSYS), "{number} of {}", ARCHITECTURES[a]);
                    }
                }
            }
        }
    }

    #[test]
    fn filters_check_arguments() {
        let program = program([0, 1], &Default::default());
        for (a, family) in [(0, 41), (1, 359)] {
            assert_eq!(run(&program, AUDIT[a], CLONE[a] as u32, 0x11), ALLOW);
            assert_eq!(run(&program, AUDIT[a], CLONE[a] as u32, 0x1000_0000), fail(EPERM), "CLONE_NEWUSER");
            assert_eq!(run(&program, AUDIT[a], CLONE3[a] as u32, 0), fail(ENOSYS));
            assert_eq!(run(&program, AUDIT[a], PERSONALITY[a] as u32, 0x2_0008), ALLOW);
            assert_eq!(run(&program, AUDIT[a], PERSONALITY[a] as u32, 0x40_0000), fail(EPERM));
            assert_eq!(run(&program, AUDIT[a], family, 2), ALLOW);
            assert_eq!(run(&program, AUDIT[a], family, 40), fail(EPERM), "AF_VSOCK");
        }
        assert_eq!(run(&program, AUDIT[0], 335, 0), ALLOW, "uretprobe");
        assert_eq!(run(&program, AUDIT[0], X32 + 1, 0), fail(EPERM));
        assert_eq!(run(&program, 0x1234, 1, 0), fail(ENOSYS), "another architecture");
    }
}
