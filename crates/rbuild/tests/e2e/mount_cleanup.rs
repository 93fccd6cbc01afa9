//! Temporary content of a command (caches, secrets, system files) is never part of its result,
//! regardless of the actions of the command. With real mounts, many of these operations fail in the
//! command, which is equally acceptable.

use std::collections::HashMap;
use std::path::Path;

use crate::lab::{Lab, contents, exists, listing};

/// Reads a file of a result.
fn read(out: &Path, name: &str) -> String {
    std::fs::read_to_string(out.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The listing of a layer, and its files.
type LayerContent = (Vec<String>, HashMap<String, Vec<u8>>);

/// Returns the layer that a command makes with a secret mounted, or
/// `None` if the build was refused because of the secret.
fn layer_of(lab: &Lab, mounts: &str, command: &str) -> Option<LayerContent> {
    let file = format!("FROM busybox\nRUN --mount=type=secret,id=s {mounts} {command}; true\n");
    let ran = lab.build(&file, &["--no-cache", "--secret", "id=s,src=secret", "-t", "made"]);
    if ran.code != Some(0) {
        let hint = "pass --allow secret-in-image";
        assert!(ran.stderr.contains(hint), "{command}: {}", ran.stderr);
        // Without mounts, moving and linking work, so no copy of the secret can be left.
        assert!(!is_bare(), "{command}: {}", ran.stderr);
        return None;
    }
    let tar = lab.top_layer_tar("made");
    Some((listing(&tar), contents(&tar)))
}

/// Returns true if mounts are emulated by entries of the root directory itself.
fn is_bare() -> bool {
    std::env::var_os("RBUILD_ISOLATION").is_some_and(|mode| mode == "chroot")
}

/// If a cache's directory was removed, only files of the command can take its place.
#[test]
fn a_removed_cache_directory_is_not_replaced_by_a_mount() {
    let lab = Lab::new();
    let mounts = "--mount=type=cache,target=/c --mount=type=cache,target=/d --mount=type=tmpfs,target=/t";
    for command in [
        "rmdir /c && mv /dev /c",
        "rmdir /c && mv /t /c",
        "rmdir /c && mv /proc /c",
        "rmdir /c && mkdir /new && mv /dev /t /sys /new && mv /new /c",
        "rmdir /c /d && mv /dev /d && mv /t /c",
        "rmdir /c && mv /d /c",
    ] {
        lab.build(&format!("FROM busybox\nRUN {mounts} {command}; true\n"), &["--no-cache"]).ok();
        let kept = format!(
            "FROM busybox\nRUN {mounts} cp -a /c /d /kept; find /c /d ! -type d > /o; ls /c/dev /c/t >> /o; true\n"
        );
        let kept = kept.replace("cp -a", "mkdir /kept && cp -a");
        let out = lab.build_local(&kept, &["--no-cache"]);
        assert_eq!(read(&out, "o"), "", "{command}");
        let _ = std::fs::remove_dir_all(out);
    }
    // Each of two caches keeps its own content.
    let two = "FROM busybox\nRUN --mount=type=cache,target=/c --mount=type=cache,target=/d echo x > /c/f; rmdir /d && mv /c /d; true\n";
    lab.build(two, &["--no-cache"]).ok();
    let out = lab.build_local(&format!("FROM busybox\nRUN {mounts} find /c /d > /o\n"), &["--no-cache"]);
    assert_eq!(read(&out, "o"), "/c\n/c/f\n/d\n");
}

const LINKS: &str = r#"FROM busybox
RUN mkdir /own && echo tree > /own/f && echo in > /in
RUN --mount=type=cache,target=/c mkdir -p /c/d && echo one > /c/d/f && echo two > /c/moved && echo three > /c/hard && ln /c/hard /c/hard2
RUN --mount=type=cache,target=/c \
    (ln /c/d/f /linked || cp /c/d/f /linked) && (ln /own/f /c/own || cp /own/f /c/own) && mv /c/moved /moved && mv /in /c/in && \
    (ln /c/hard2 /third || cp /c/hard2 /third) && (ln /own/f /own/g && ln /own/g /c/own2 || cp /own/g /c/own2)
"#;

#[test]
fn a_cache_shares_no_file_with_a_result() {
    let lab = Lab::new();
    lab.build(LINKS, &[]).ok();
    // All files of the cache are modified in place.
    let append = "FROM busybox\nRUN --mount=type=cache,target=/c for f in d/f own in hard; do echo changed >> /c/$f; done && chmod 700 /c/own\n";
    lab.build(append, &[]).ok();
    let out = lab.build_local(LINKS, &[]);
    assert_eq!(
        ["linked", "moved", "own/f", "own/g", "third"].map(|f| read(&out, f)),
        ["one\n", "two\n", "tree\n", "tree\n", "three\n"]
    );
    // Conversely, a later step modifies the files it got from the cache.
    let on_top = format!(
        "{LINKS}RUN for f in linked moved own/f third; do echo later >> /$f; done\n\
         RUN --mount=type=cache,target=/c cat /c/d/f /c/own /c/in /c/hard /c/hard2 > /o; ls /c >> /o\n"
    );
    let out = lab.build_local(&on_top, &[]);
    let lines = read(&out, "o").replace('\n', " ");
    assert_eq!(lines, "one changed tree changed in changed three changed three changed d hard hard2 in own own2 ");
}

#[test]
fn root_trees_and_caches_share_no_file() {
    let lab = Lab::new();
    lab.build(LINKS, &[]).ok();
    let script = "cd $RBUILD_ROOT; find mounts -type f -printf '%i\\n' | sort -u > $LAB/a; find trees -type f -printf '%i\\n' | sort -u > $LAB/b; \
                  wc -l < $LAB/a; comm -12 $LAB/a $LAB/b | wc -l";
    // The files d/f, hard (two names), in, own and own2. Where linking worked, `own` and `own2` are
    // one file.
    let counted = lab.sh(script).ok().stdout;
    let counts: Vec<&str> = counted.lines().collect();
    assert!(["4", "5"].contains(&counts[0]) && counts[1] == "0", "{counted}");
}

#[test]
fn writes_to_a_read_only_cache_are_discarded() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN --mount=type=cache,target=/c mkdir /c/d && echo first > /c/f && echo first > /c/d/g\n\
                RUN --mount=type=cache,target=/c,ro echo bad > /c/f; rm -f /c/d/g; echo new > /c/new; chmod 700 /c/d; (ln /c/f /f && echo bad >> /f); true\n\
                RUN --mount=type=cache,target=/c,readonly,source=/d echo bad > /c/g; rmdir /c; true\n\
                RUN --mount=type=cache,target=/c cat /c/f /c/d/g > /o && ls -l /c | grep -c drwxr-xr-x >> /o && ls /c >> /o\n";
    let out = lab.build_local(file, &[]);
    assert_eq!(read(&out, "o"), "first\nfirst\n1\nd\nf\n");
}

#[test]
fn several_mounts_of_one_cache_keep_all_written_files() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN --mount=type=cache,id=i,target=/a mkdir /a/d && echo old > /a/gone && echo old > /a/d/f\n\
                RUN --mount=type=cache,id=i,target=/a --mount=type=cache,id=i,target=/b --mount=type=cache,id=i,target=/d,source=/d \
                echo 1 > /a/one; echo 2 > /b/two; rm /b/gone; echo 3 > /d/three\n\
                RUN --mount=type=cache,id=i,target=/a cd /a && find . -type f | sort > /o\n";
    let out = lab.build_local(file, &[]);
    assert_eq!(read(&out, "o"), "./d/f\n./d/three\n./one\n./two\n");
}

#[test]
fn concurrent_commands_keep_each_others_cache_files() {
    let lab = Lab::new();
    let work = |name: &str| {
        format!(
            "FROM busybox AS {name}\nRUN --mount=type=cache,id=shared,target=/c touch /c/{name} && sleep 2 && touch /c/{name}2 && touch /{name}\n"
        )
    };
    let file = format!(
        "{}{}FROM busybox\nCOPY --from=a /a /\nCOPY --from=b /b /\nRUN --mount=type=cache,id=shared,target=/c ls /c > /o\n",
        work("a"),
        work("b")
    );
    let out = lab.build_local(&file, &["--jobs", "2"]);
    assert_eq!(read(&out, "o"), "a\na2\nb\nb2\n");
}

#[test]
fn cache_files_of_a_failed_command_are_kept() {
    let lab = Lab::new();
    lab.build("FROM busybox\nRUN --mount=type=cache,target=/c echo 1 > /c/f && mkdir /c/d && exit 3\n", &[])
        .fails(1, &[]);
    let out = lab.build_local("FROM busybox\nRUN --mount=type=cache,target=/c rm -rf /c/d; ls /c > /o\n", &[]);
    assert_eq!(read(&out, "o"), "f\n");
    // A cache directory that a command removes is empty afterwards and still exists.
    lab.build("FROM busybox\nRUN --mount=type=cache,target=/c rm -rf /c; true\n", &[]).ok();
    let out = lab.build_local("FROM busybox\nRUN --mount=type=cache,target=/c ls -A /c > /o\n", &[]);
    assert_eq!(read(&out, "o"), "");
}

#[test]
fn a_secret_is_removed_wherever_it_was_moved() {
    let lab = Lab::new();
    lab.write("secret", "a secret value\n");
    let apart = "--mount=type=tmpfs,target=/t --mount=type=cache,target=/c --mount=type=bind,target=/b,rw";
    // Commands, each with the entries that it creates itself.
    let own = &["run/", "run/secrets/", "run/secrets/s"][..];
    for (command, own) in [
        ("mv /run/secrets /x", &[][..]),
        ("mv /run/secrets/s /x", &[]),
        ("mv /run /x", &[]),
        ("ln /run/secrets/s /x", &[]),
        ("ln /run/secrets/s /x && rm -r /run/secrets", &[]),
        ("mkdir -p /x/y/z && mv /run/secrets /x/y/z/", &["x/", "x/y/", "x/y/z/"]),
        ("mv /run/secrets /x; mkdir -p /run/secrets; echo own > /run/secrets/s", own),
        ("mv /run/secrets/s /t/s; mv /t /x", &[]),
        ("mv /run/secrets/s /b/; mv /b /x", &[]),
        ("mv /run/secrets /c/; mv /c /x", &[]),
        ("ln /run/secrets/s /c/s", &[]),
        ("ln /run/secrets/s /b/s", &[]),
        ("mkdir -p /x && ln /run/secrets/s /x/x && ln /x/x /dev/x && mv /dev /x", &["x/"]),
    ] {
        let Some((names, files)) = layer_of(&lab, apart, command) else { continue };
        for (name, content) in &files {
            let text = String::from_utf8_lossy(content);
            assert!(!text.contains("secret value"), "{command}: {name} of {names:?}");
        }
        let more: Vec<&String> = files.keys().filter(|name| !own.contains(&name.as_str())).collect();
        assert!(!is_bare() || more.is_empty(), "{command}: {more:?}");
    }
    let out = lab.build_local("FROM busybox\nRUN --mount=type=cache,target=/c find /c -type f > /o\n", &["--no-cache"]);
    // With a real mount, `mv` copies the secret, which is allowed.
    if is_bare() {
        assert_eq!(read(&out, "o"), "");
    }
}

#[test]
fn system_files_are_in_no_layer() {
    let lab = Lab::new();
    lab.write("secret", "a secret value\n");
    let (names, _) = layer_of(
        &lab,
        "",
        "echo 1 > /dev/shm/x; echo 2 > /dev/x; mkdir /proc/x /sys/x /dev/shm/d; mknod /dev/p p; echo 3 > /proc/y; rm -f /dev/null /dev/zero; \
         chmod 700 /dev /proc /sys /dev/shm; echo more >> /etc/hosts; echo more >> /etc/resolv.conf; touch /made",
    )
    .unwrap();
    assert!(names.iter().any(|n| n.ends_with(" made")), "{names:?}");
    let left = |n: &&String| [" dev", " proc", " sys", " etc"].iter().any(|part| n.contains(part));
    assert!(!names.iter().any(|n| left(&n)), "{names:?}");
    // The same under another name.
    for command in [
        "mv /dev /x",
        "mv /dev/shm /x",
        "mv /proc /x",
        "ln /etc/hosts /x",
        "ln /etc/resolv.conf /x",
        "mv /etc/hosts /x",
    ] {
        let (names, _) = layer_of(&lab, "", command).unwrap();
        let left =
            |n: &&String| n.ends_with("hosts") || n.ends_with("resolv.conf") || n.ends_with(" x") || n.contains(" x/");
        assert!(!is_bare() || !names.iter().any(|n| left(&n)), "{command}: {names:?}");
    }
}

#[test]
fn system_files_are_writable_only_by_root() {
    let lab = Lab::new();
    let out = lab.build_local(
        "FROM busybox\nRUN ls -ln /etc/hosts /etc/resolv.conf | cut -d ' ' -f 1 > /o; ls -ld /dev /dev/shm | cut -d ' ' -f 1 >> /o\n",
        &[],
    );
    assert_eq!(read(&out, "o"), "-rw-r--r--\n-rw-r--r--\ndrwxr-xr-x\ndrwxrwxrwt\n");
}

#[test]
fn covered_files_are_restored_after_the_command() {
    let lab = Lab::new();
    lab.write("secret", "a secret value\n").write("f", "context\n");
    let file = "FROM busybox AS s\nRUN mkdir /m && echo stage > /m/f\n\
                FROM busybox\nRUN mkdir -p /d /run/secrets && echo own > /d/f && echo own > /file && echo own > /run/secrets/s && echo own > /d/g\n\
                RUN --mount=type=secret,id=s --mount=type=tmpfs,target=/d --mount=type=bind,target=/file,source=f --mount=from=s,source=/m,target=/m,rw \
                    cat /file /m/f > /o && echo x > /d/x && echo x > /m/x && mv /m/f /f\n\
                RUN --mount=type=bind,source=f,target=/d/f rm -f /d/g; mv /d /e; ls /d /e > /list; true\n";
    let out = lab.build_local(file, &["--secret", "id=s,src=secret"]);
    assert_eq!(
        ["o", "file", "run/secrets/s", "f"].map(|f| read(&out, f)),
        ["context\nstage\n", "own\n", "own\n", "stage\n"]
    );
    assert!(!exists(out.join("m")));
    // If the directory could be moved, the covered file moved with it.
    if is_bare() {
        assert_eq!(read(&out, "e/f"), "own\n");
        assert!(!exists(out.join("d")));
    }
}

#[test]
fn mounts_can_be_nested() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN --mount=type=cache,id=n,target=/a --mount=type=tmpfs,target=/a/t --mount=type=cache,id=m,target=/a/t/c \
                echo 1 > /a/one && echo 2 > /a/t/two && echo 3 > /a/t/c/three\n\
                RUN --mount=type=cache,id=n,target=/a --mount=type=cache,id=m,target=/b --mount=type=cache,id=m,target=/dev/x/y \
                cat /a/one /b/three > /o; ls /a/t /dev/x/y/three >> /o; true\n";
    let out = lab.build_local(file, &[]);
    let output = read(&out, "o");
    assert!(output.starts_with("1\n3\n") && !output.contains("two"), "{output}");
    assert!(!exists(out.join("a")) && !exists(out.join("b")));
}
