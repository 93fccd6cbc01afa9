//! Copies that differ little from an earlier one: their trees are stored as changes to the tree of
//! the earlier copy, and the difference is not observable.

use std::time::Duration;

use crate::lab::{Lab, contents};

/// The image contains files at some of the destinations of the copy.
const COPY: &str = "FROM busybox\nRUN mkdir -p /app/d && echo given > /app/given && echo below > /app/d/below\n\
                    COPY app /app\nCOPY --link linked /linked\n";
const LOOK: &str =
    "RUN (find /app /linked | sort; cat /app/given /app/d/* /linked/*; stat -c '%n %a' /app/d/*) > /seen 2>&1; true\n";

/// Prints the name of the base of the only tree of changes.
const BASE: &str = r#"sed 's/.*"base":"\([^"]*\).*/\1/' trees/*/changes.json"#;

fn scene() -> Lab {
    let lab = Lab::new();
    lab.write("linked/a", "linked a\n").write("linked/b", "linked b\n").write("app/given", "of the context\n");
    for i in 0..12 {
        lab.write(&format!("app/d/{i}"), format!("file {i}\n")).write(&format!("app/e/f/{i}"), format!("deep {i}\n"));
    }
    lab.sh("ln -s 1 app/d/link && ln app/d/2 app/d/hard").ok();
    age();
    lab
}

/// Waits until unchanged files are recognized by their metadata.
fn age() {
    std::thread::sleep(Duration::from_millis(3010));
}

/// Returns the number of trees that are stored as changes.
fn stored(lab: &Lab) -> usize {
    lab.sh("find $RBUILD_ROOT/trees -name changes.json | wc -l").ok().stdout.trim().parse().unwrap()
}

/// Returns the listing of the copy's layer, and those of the result's files with their content.
fn results(lab: &Lab) -> (Vec<String>, Vec<String>, Vec<u8>) {
    let file = format!("{COPY}{LOOK}");
    lab.build(&file, &["-t", "x"]).ok();
    let seen = lab.build_local(&format!("{file}FROM scratch\nCOPY --from=0 /seen /\n"), &[]).join("seen");
    lab.build(&COPY.replace("COPY --link linked /linked\n", ""), &["-t", "copied"]).ok();
    (lab.top_layer("copied"), lab.build_listing(&file), std::fs::read(seen).unwrap())
}

#[test]
fn a_changed_copy_equals_one_in_an_empty_store() {
    let lab = scene();
    results(&lab);
    let changes = [
        ("one file", "echo changed > app/d/3"),
        ("another, and a new one", "echo changed > app/e/f/4; echo new > app/d/new"),
        ("a deleted file and a directory", "rm -r app/d/5 app/e/f/6; mkdir app/g; echo g > app/g/g; chmod 700 app/d"),
        ("the mode of a file", "chmod 600 app/d/7"),
        ("a link, and names of one file", "ln -sf 8 app/d/link; rm app/d/hard; ln app/d/9 app/d/hard"),
        ("a directory that is gone", "rm -r app/e/f"),
        ("a file of the image shows again", "rm app/given; echo more > app/d/10"),
        ("a linked copy loses a file", "rm linked/a; echo more > app/d/11"),
        ("a file becomes a directory", "rm app/d/3; mkdir app/d/3; echo deep > app/d/3/x"),
    ];
    for (change_name, change) in changes {
        lab.sh(change).ok();
        age();
        let new = Lab::new();
        new.sh(&format!("cp -a {}/. .", lab.ctx().display())).ok();
        let (ours, theirs) = (results(&lab), results(&new));
        assert_eq!(ours.0, theirs.0, "{change_name}: the layer");
        assert_eq!(ours.1, theirs.1, "{change_name}: the result");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(text(&ours.2), text(&theirs.2), "{change_name}: the files as a command sees them");
    }
    assert_eq!(stored(&lab) > 5, lab.links_copies(), "{} trees are stored as changes", stored(&lab));
    lab.rbuild(["fsck"]).ok();
}

#[test]
fn only_changes_are_stored_and_their_base_is_kept() {
    let lab = scene();
    let file = format!("{COPY}{LOOK}");
    lab.build(&file, &["-t", "x"]).ok();
    lab.sh("echo changed > app/d/3").ok();
    age();
    lab.build(&file, &["-t", "x"]).ok();
    if !lab.links_copies() {
        assert_eq!(stored(&lab), 0);
        return;
    }
    let files = lab.sh("cd $RBUILD_ROOT/trees/*/changes/fs && find . -type f | sort").ok().stdout;
    assert_eq!(files, "./app/d/2\n./app/d/3\n./app/d/hard\n");
    // The base is kept although no record refers to it directly.
    lab.sh(&format!("cd $RBUILD_ROOT && rm $(grep -l $({BASE}) records/*)")).ok();
    lab.rbuild(["prune"]).ok();
    lab.rbuild(["fsck"]).ok();
    let again = lab.build(&format!("{file}RUN grep -q changed /app/d/3 && grep -q 4 /app/d/4\n"), &["-t", "y"]).ok();
    assert_eq!(again.steps(), (1, 4), "{}", again.stderr);
    // Complete trees are made from both, before and after a restart.
    let whole = |end: &str| {
        lab.build(&format!("{file}RUN echo {end}\n"), &["--squash", "-t", "z"]).ok();
        let files = contents(&lab.top_layer_tar("z"));
        assert_eq!((&files["app/d/3"][..], &files["app/d/4"][..]), (&b"changed\n"[..], &b"file 4\n"[..]), "{end}");
    };
    whole("before");
    let tree = "cd $RBUILD_ROOT/trees/*/changes/.. && test -e fs/app/d/4";
    lab.sh(&format!("{tree} && rm fs/app/d/4 && sed -i 's/\"boot\":\"[^\"]*/\"boot\":\"another/' changes.json")).ok();
    whole("after");
    // Without the base, the copy is made again.
    lab.sh(&format!("cd $RBUILD_ROOT && rm -r trees/$({BASE})")).ok();
    let again = lab.build(&format!("{file}RUN grep -q changed /app/d/3 && cat /app/d/4\n"), &["-t", "x"]).ok();
    assert_eq!(again.steps(), (2, 3), "{}", again.stderr);
}
