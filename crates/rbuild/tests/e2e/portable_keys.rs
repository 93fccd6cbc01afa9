//! Cache keys: equal on all machines, and readable in explanations.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use crate::lab::{Lab, base, is_bare};

/// Returns the keys of all steps that were built in the store of a lab.
fn keys(lab: &Lab) -> BTreeSet<String> {
    let entries = std::fs::read_dir(lab.store().join("accounts")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Every run of a command has a result of its own, so commands are the last steps of their stages.
const FILE: &str = "FROM busybox AS a\nARG WHO\nENV A=1 B=\"two words\"\nWORKDIR /w\nCOPY --chown=1:2 --chmod=u=rwX src /w/src\n\
    RUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t,size=1m --mount=type=secret,id=s \\\n\
    --mount=type=bind,source=src,target=/b echo $WHO > /w/out\n\
    FROM busybox AS b\nADD src/a /a\nRUN --network=none cat <<E >/b\nb\nE\n\
    FROM scratch AS c\nCOPY src/link /link\nCOPY --link src/dir /dir\n\
    FROM scratch\nCOPY --from=c / /\nCOPY --from=busybox /bin/busybox /\n";

/// Two checkouts in other directories, written in another order at other times, with other proxies,
/// other names and another configuration of the base image.
#[test]
fn equal_steps_have_equal_keys_on_all_machines() {
    let (one, two) = (Lab::new(), Lab::bare());
    let tar = base("busybox.tar");
    two.rbuild(["import", "-c", "LABEL a=1", tar.to_str().unwrap(), "other/registry/busybox"]).ok();
    two.rbuild(["tag", "other/registry/busybox", "busybox"]).ok();
    let names = ["src/a", "src/b", "src/dir/c"];
    for (first, last) in names.iter().zip(names.iter().rev()) {
        one.write(first, first);
        two.write(last, last);
    }
    for lab in [&one, &two] {
        std::os::unix::fs::symlink("a", lab.ctx().join("src/link")).unwrap();
        lab.write("secret", "hunter2-hunter2");
    }
    let past = SystemTime::now() - Duration::from_secs(100_000);
    std::fs::File::open(two.ctx().join("src/a")).unwrap().set_modified(past).unwrap();
    let build = |lab: &Lab, more: &[&str]| {
        for target in ["a", "b", "c", ""] {
            let args =
                ["--target", target, "--build-arg", "WHO=me", "--secret", "id=s,src=secret", "-o", "type=cacheonly"];
            // The `chroot` mode cannot separate networks.
            let file = if is_bare() { FILE.replace("--network=none ", "") } else { FILE.into() };
            lab.build(&file, &[&args, more].concat()).ok();
        }
    };
    build(&one, &["--add-host", "h:1.2.3.4"]);
    build(&two, &["--add-host", "h:5.6.7.8", "--build-arg", "HTTP_PROXY=http://proxy:1"]);
    let (ours, theirs) = (keys(&one), keys(&two));
    assert_eq!(ours.len(), 9, "{ours:?}");
    assert_eq!(ours, theirs);
}

#[test]
fn options_of_mounts_are_explained_in_words() {
    let lab = Lab::new();
    let reason = |mount: &str, explained: &str| {
        let ran = lab.build(&format!("FROM busybox\nRUN --mount={mount} true\n"), &["--explain"]).ok().stderr;
        assert!(ran.contains(explained), "{explained}\n{ran}");
        assert!(!ran.contains("Some(") && !ran.contains("None"), "{ran}");
    };
    reason("type=tmpfs,target=/t", "no earlier build");
    reason(
        "type=tmpfs,target=/t,size=1m",
        r#"`mount` changed from `"/t" writable tmpfs` to `"/t" writable tmpfs size=1048576`"#,
    );
    reason("type=secret,id=s", r#"`secret` was added: `"s" target="/run/secrets/s" required=false "#);
    reason("type=secret,id=s,env=E", r#"`"s" env="E" required=false mode=0400 uid=0 gid=0`"#);
}

/// A store of a version with other keys: everything is built again, and nothing else happens.
#[test]
fn records_with_keys_of_another_form_are_misses() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN echo 1 > /a\n";
    lab.build(file, &["-t", "x"]).ok();
    lab.sh("cd $LAB/store/accounts && sed -i s/.version.:5,// * && ! grep -q version *").ok();
    let changed = lab.build(&file.replace('1', "2"), &["-t", "x", "--explain"]).ok();
    assert_eq!(changed.steps(), (1, 0));
    assert!(changed.stderr.contains("why: the key format changed"), "{}", changed.stderr);
    lab.sh("cd $LAB/store/records && for f in *; do mv $f $(echo $f | tr 0-7 1-8); done").ok();
    lab.rbuild(["fsck"]).ok();
    assert_eq!(lab.build(file, &["-t", "x"]).ok().steps(), (1, 0));
    assert_eq!(lab.build(file, &["-t", "x"]).ok().steps(), (0, 1));
    lab.rbuild(["prune"]).ok();
    lab.rbuild(["fsck"]).ok();
}
