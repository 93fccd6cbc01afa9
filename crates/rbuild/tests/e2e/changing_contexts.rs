//! Contexts that change during a build: a copy is never cached under the key of the previous
//! content.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::lab::{Lab, contents, listing};

/// A context with every kind of file, in a directory and as the named context `n`.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.sh("mkdir -p d/e d/empty d/skip $LAB/sig && echo 1 > d/f && echo y > d/e/y && ln -s f d/link && ln -s d/f l && ln -s d ld && \
            chmod 755 d d/e d/empty && tar -cf t.tar -C d e && echo d/skip > .dockerignore && cp -a d $LAB/n && \
            chmod 777 $LAB/sig")
        .ok();
    lab
}

/// The entries and the contents of a result.
type Tree = (Vec<String>, BTreeMap<String, Vec<u8>>);

fn args(lab: &Lab, more: &[&str]) -> Vec<String> {
    let out = format!("type=tar,dest={}", lab.path("out.tar").display());
    let volume = format!("{}:/sig", lab.path("sig").display());
    let named = format!("n={}", lab.path("n").display());
    let all = ["build", "--output", &out, "--volume", &volume, "--build-context", &named];
    all.iter().chain(more).map(|arg| arg.to_string()).collect()
}

fn result(lab: &Lab) -> Tree {
    let tar = std::fs::read(lab.path("out.tar")).unwrap();
    let of_copy = |name: &str| name.contains("d/");
    let entries = listing(&tar).into_iter().filter(|line| of_copy(line)).collect();
    (entries, contents(&tar).into_iter().filter(|(name, _)| of_copy(name)).collect())
}

fn built(lab: &Lab, more: &[&str]) -> Tree {
    let args = args(lab, more);
    lab.rbuild(args.iter().map(String::as_str)).ok();
    result(lab)
}

/// Builds, and changes the context while the Dockerfile's command runs.
fn built_while(lab: &Lab, change: &str) -> Tree {
    let args = args(lab, &[]);
    let mut child = lab.command(args.iter().map(String::as_str)).spawn().unwrap();
    let start = Instant::now();
    while !lab.path("sig/ready").exists() {
        assert!(start.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    lab.sh(change).ok();
    lab.sh("touch $LAB/sig/go").ok();
    assert!(child.wait().unwrap().success(), "{change}");
    lab.sh("rm -f $LAB/sig/*").ok();
    result(lab)
}

/// Checks for each change that the build during which it happens has the state before or after it,
/// and no mixture. After the change is undone, the next build has the original state, so neither
/// state is cached under the other's key.
fn holds(copy: &str, changes: &[(&str, &str)]) {
    let lab = lab();
    for (number, (change, undo)) in changes.iter().enumerate() {
        lab.write(
            "Dockerfile",
            format!(
                "FROM busybox\nRUN : {number}; touch /sig/ready; chmod 666 /sig/ready; while ! test -e /sig/go; do sleep 0.1; done\n\
                 {copy}\n"
            ),
        );
        let during = built_while(&lab, change);
        lab.sh("touch $LAB/sig/go").ok();
        let changed = built(&lab, &[]);
        assert_eq!(changed, built(&lab, &["--no-cache"]), "{copy}, {change}");
        lab.sh(undo).ok();
        let undone = built(&lab, &[]);
        assert_eq!(undone, built(&lab, &["--no-cache"]), "{copy}, {undo}");
        assert_ne!(undone, changed, "{copy}: `{change}` changes nothing");
        // A copy that does not depend on the command may be made before the change.
        assert!(during == changed || during == undone, "{copy}, {change}: {during:?}");
        lab.sh("rm -f $LAB/sig/*").ok();
    }
}

const CHANGES: [(&str, &str); 9] = [
    ("mv d/empty d/void", "mv d/void d/empty"),
    ("ln -sfn e d/link", "ln -sfn f d/link"),
    ("rmdir d/empty", "mkdir -m 755 d/empty"),
    ("chmod 700 d/e", "chmod 755 d/e"),
    ("echo 2 > d/f", "echo 1 > d/f"),
    ("echo 2 > d/new && mv d/new d/f", "echo 1 > d/f"),
    ("echo new > d/e/new", "rm d/e/new"),
    ("rm d/f", "echo 1 > d/f"),
    ("rm d/link && mkdir d/link", "rmdir d/link && ln -s f d/link"),
];

#[test]
fn a_directory_that_changes_during_a_build_is_not_cached_under_its_old_key() {
    holds("COPY d /d/", &CHANGES);
}

#[test]
fn changing_linked_copies_and_patterns_are_detected() {
    holds("COPY --link d /d/", &CHANGES[..4]);
    // For a directory matched by a pattern, only the contents are copied; its own name has no
    // effect.
    holds("COPY d/* /d/", &[CHANGES[1], CHANGES[6]]);
    holds("COPY d/f* /d/", &[("echo new > d/fnew", "rm d/fnew"), CHANGES[4], CHANGES[5]]);
    holds("COPY --exclude=f d /d/", &CHANGES[2..4]);
    holds("COPY d/l* l* /d/", &[("ln -sfn d/e/y l", "ln -sfn d/f l"), ("ln -sfn d/e ld", "ln -sfn d ld")]);
    holds("COPY --parents d/e/y d/link /d/", &[CHANGES[1], CHANGES[3], ("chmod 711 d", "chmod 755 d")]);
}

#[test]
fn changing_archives_mounts_and_named_contexts_are_detected() {
    holds("ADD t.tar /d/", &[("tar -cf t.tar -C d f", "tar -cf t.tar -C d e")]);
    let mounted: Vec<(&str, &str)> = [1, 2, 3, 4, 6].map(|i| CHANGES[i]).into();
    holds("RUN --mount=source=d,target=/m cp -a /m /d", &mounted);
    holds("COPY --from=n . /d/", &[("mv $LAB/n/empty $LAB/n/void", "mv $LAB/n/void $LAB/n/empty")]);
}

/// Files that no step copies may change freely: the copy is made once.
#[test]
fn excluded_files_may_change_during_a_build() {
    let lab = lab();
    lab.write(
        "Dockerfile",
        "FROM busybox\nRUN touch /sig/ready; chmod 666 /sig/ready; while ! test -e /sig/go; do sleep 0.1; done\nCOPY d /d/\n",
    );
    let during =
        built_while(&lab, "touch d/skip/more other && chmod 700 d/skip && echo '# a comment' >> .dockerignore");
    assert_eq!(during, built(&lab, &[]));
}
