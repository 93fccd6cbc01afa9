//! The limit on the size of the cache.

use std::time::Duration;

use crate::lab::Lab;

#[test]
fn the_cache_stays_within_its_budget_and_evicts_the_oldest_first() {
    let lab = Lab::new();
    let step = |n: u32| format!("FROM busybox\nRUN dd if=/dev/urandom of=/f bs=1M count=4 2>/dev/null; echo {n}\n");
    let age = |days: u32| {
        lab.sh(&format!("find $RBUILD_ROOT/records $RBUILD_ROOT/layers -name '*.json' -newermt '-1 hour' -exec touch -d '-{days} days' {{}} +")).ok();
    };
    let out = lab.path("out").display().to_string();
    lab.build(&step(1), &["-o", &out]).ok();
    age(9);
    lab.build(&step(2), &["-o", &out]).ok();
    age(5);
    // Each use refreshes the age.
    assert_eq!(lab.build(&step(1), &["-o", &out]).ok().steps(), (0, 1));
    let ran = lab.build(&step(3), &["-o", &out, "--cache-limit", "11m"]).ok();
    assert!(ran.stderr.contains("cache limit reached: freed "), "{}", ran.stderr);
    let cached = |n: u32| lab.build(&step(n), &["-o", &out]).ok().steps() == (0, 1);
    assert!(cached(1) && cached(3), "the entries used last are gone");
    assert!(!cached(2), "the longest unused is still there");
    // The layers of an image are kept whatever the budget.
    lab.build(&step(4), &["-t", "kept"]).ok();
    lab.rbuild(["prune", "--keep-storage", "1k"]).ok();
    lab.rbuild(["inspect", "--verify", "kept"]).ok();
    assert!(!cached(4));
    age(3);
    let text = lab.rbuild(["prune", "--filter", "until=48h"]).ok().stdout;
    assert!(text.contains("Removed") && !cached(4), "{text}");
    lab.rbuild(["fsck"]).ok();
    lab.build("FROM scratch\n", &["--cache-limit", "lots"]).fails(2, &["--cache-limit lots: not a size"]);
}

/// Trees of earlier executions, to which no record refers, are part of the size and are evicted
/// first.
#[test]
fn trees_of_repeated_steps_count_towards_the_budget() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN dd if=/dev/urandom of=/f bs=1M count=4 2>/dev/null\n";
    let out = lab.path("out").display().to_string();
    for _ in 0..4 {
        lab.build(file, &["-o", &out, "--no-cache", "--cache-limit", "11m"]).ok();
    }
    let left = lab.sh("du -sk $RBUILD_ROOT/trees | cut -f1").ok().stdout;
    assert!(left.trim().parse::<u64>().unwrap() < 11 << 10, "{left} KiB");
    assert_eq!(lab.build(file, &["-o", &out]).ok().steps(), (0, 1), "the last execution is kept");
}

/// The files of copies that share them are counted once in the budget, as on disk.
#[test]
fn files_shared_by_several_copies_count_once() {
    let lab = Lab::new();
    lab.write(".dockerignore", "Dockerfile\n").write("big", vec![7u8; 4 << 20]);
    std::thread::sleep(Duration::from_millis(3100));
    let out = lab.path("out").display().to_string();
    let build = |text: &str| {
        lab.write("small", text);
        lab.build("FROM busybox\nCOPY . /app/\n", &["-o", &out, "--cache-limit", "10m"]).ok()
    };
    for (text, days) in [("1", 9), ("2", 7), ("3", 5), ("4", 3)] {
        let ran = build(text);
        assert_eq!(
            ran.stderr.contains("cache limit reached: freed "),
            !lab.links_copies() && text > "2",
            "{text}: {}",
            ran.stderr
        );
        lab.sh(&format!(
            "find $RBUILD_ROOT/records -name '*.json' -newermt '-1 hour' -exec touch -d '-{days} days' {{}} +"
        ))
        .ok();
    }
    assert_eq!(build("1").steps() == (0, 1), lab.links_copies());
    // One file of 4 MiB then exceeds the budget: all copies of it must be evicted, and only the
    // last eviction frees the space.
    lab.write("small", "5");
    let ran = lab.build("FROM busybox\nCOPY . /app/\n", &["-o", &out, "--cache-limit", "1m"]).ok();
    assert!(ran.stderr.contains("cache limit reached: freed "), "{}", ran.stderr);
    let left = lab.sh("du -sk $RBUILD_ROOT/trees | cut -f1").ok().stdout;
    assert!(left.trim().parse::<u64>().unwrap() < 1024, "{left} KiB");
}

#[test]
fn a_cached_build_keeps_the_cache_within_its_limit() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN head -c 3000000 /dev/urandom > /x\n";
    lab.build(file, &["-t", "x"]).ok();
    let trees = || lab.sh("ls -d $RBUILD_ROOT/trees/s* $RBUILD_ROOT/trees/w* 2>/dev/null | wc -l").ok().stdout;
    assert_eq!(trees().trim(), "1");
    assert_eq!(lab.build(file, &["-t", "x", "--cache-limit", "10g"]).ok().steps(), (0, 1));
    assert_eq!(trees().trim(), "1");
    assert_eq!(lab.build(file, &["-t", "x", "--cache-limit", "1k"]).ok().steps(), (0, 1));
    assert_eq!(trees().trim(), "0");
    lab.rbuild(["run", "x", "test", "-s", "/x"]).ok();
}
