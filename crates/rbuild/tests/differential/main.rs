//! Differential test of incremental builds: a build that reuses results of earlier builds must have
//! the same result as a build in an empty store.
//!
//! Each case is a sequence of builds of a generated Dockerfile over generated trees, both of which
//! change in between. Every build is made in the store of the case and in a new one, for the same
//! output, and the results are compared entry by entry: names, types, modes, owners, times, links,
//! attributes, content, configurations and digests. Some builds run concurrently with another one
//! in the same store, and some follow a build during which files changed.
//!
//! `RBUILD_DIFFERENTIAL_SECONDS` sets the duration (20 by default), `RBUILD_DIFFERENTIAL_SEED` the
//! first seed (the current time by default), `RBUILD_DIFFERENTIAL_CASES` the number of cases after
//! which the test ends earlier. With `RBUILD_DIFFERENTIAL_AGED=1`, all cases wait until unchanged
//! files are recognized by their metadata, which takes 3 seconds per round.
//!
//! Not generated: several platforms, `ADD` of archives other than tar and tar.gz, mounts of type
//! ssh, the entitlements `security.insecure` and network, contexts as archives, base images with
//! several layers, files that the user cannot read. The content of secrets and cache mounts never
//! reaches a result, because it is not part of any key. Modification times are a function of the
//! size, or later than SOURCE_DATE_EPOCH: a changed modification time does not change a key, so
//! results may differ in times by design. Where several stages can fail, error messages are not
//! compared.

// The log contains the failing seeds and the reduced cases.
#![allow(clippy::print_stderr)]

use rbuild_testkit as lab;

mod compare;
mod generate;
mod mutate;
mod random;
mod run;
mod script;
mod shrink;
mod tree;

use std::time::{Duration, Instant, UNIX_EPOCH};

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{variable} takes a number")))
}

#[test]
fn incremental_builds_equal_builds_from_scratch() {
    let clock = UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs());
    let first = number("RBUILD_DIFFERENTIAL_SEED").unwrap_or(clock % 1_000_000 * 1000);
    let seconds = Duration::from_secs(number("RBUILD_DIFFERENTIAL_SECONDS").unwrap_or(20));
    let most = number("RBUILD_DIFFERENTIAL_CASES").unwrap_or(u64::MAX);
    let scratch = lab::Scratch::new();
    let image = scratch.join("base.tar");
    run::base_image(&image);
    let begun = Instant::now();
    let (mut cases, mut rounds, mut failed) = (0, 0, Vec::new());
    while begun.elapsed() < seconds && cases < most && failed.len() < 20 {
        let mut case = generate::case(first + cases, &lab::Scratch::new());
        case.aged |= number("RBUILD_DIFFERENTIAL_AGED").is_some_and(|aged| aged > 0);
        cases += 1;
        rounds += case.rounds.len();
        if let Some(failure) = run::play(&case, &image) {
            failed.push(case.seed);
            report(case, &failure, &image);
        }
    }
    let succeeded = run::SUCCEEDED.load(std::sync::atomic::Ordering::Relaxed);
    let took = begun.elapsed().as_secs();
    eprintln!("{rounds} rounds ({succeeded} succeed) of {cases} cases from seed {first} in {took} s");
    assert!(failed.is_empty(), "these seeds fail (RBUILD_DIFFERENTIAL_SEED=N RBUILD_DIFFERENTIAL_CASES=1): {failed:?}");
}

/// Reduces the case while it fails in the same way, and prints it.
fn report(case: script::Case, failure: &str, image: &std::path::Path) {
    eprintln!("seed {} fails; it is being cut down", case.seed);
    let raced = case.rounds.iter().any(|r| !r.racing.is_empty() || r.twin.is_some());
    let tries = if raced { 3 } else { 1 };
    let kind = |failure: &str| failure.lines().next().and_then(|l| l.split(": ").nth(1)).map(str::to_string);
    let wanted = kind(failure);
    let fails = |case: &script::Case| (0..tries).any(|_| run::play(case, image).is_some_and(|t| kind(&t) == wanted));
    let time = Duration::from_secs(number("RBUILD_DIFFERENTIAL_SHRINK").unwrap_or(60));
    let small = shrink::shrink(case, time, &fails);
    let again = (0..tries).find_map(|_| run::play(&small, image));
    eprintln!("{small}{}", again.as_deref().unwrap_or(failure));
}
