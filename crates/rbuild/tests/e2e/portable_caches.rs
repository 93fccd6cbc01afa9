//! `cache export` and `cache import`, and explanations of misses on other machines.

use std::path::Path;

use crate::fleet_caches::Keys;
use crate::lab::Lab;

const FILE: &str = "FROM busybox AS tools\nRUN echo tool > /tool\n\
    FROM busybox\nARG VERSION=1.1\nRUN echo $VERSION > /version\nCOPY src /src\n\
    RUN --mount=type=cache,target=/c cat /c/* > /seen 2>/dev/null || true; echo one > /c/one\n\
    COPY --from=tools /tool /tool\n";

/// Returns a machine with an empty store and the same sources.
fn machine() -> Lab {
    let lab = Lab::new();
    lab.write(".dockerignore", "Dockerfile\n").write("src/a", "source\n");
    lab
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The cache of a store goes to another one in a directory or an archive. What the other store has
/// stays, and what is damaged is missing.
#[test]
fn a_store_takes_the_steps_and_the_cache_mounts_of_another_one() {
    let (one, other) = (machine(), machine());
    one.write("token", "hunter2-hunter2").write(".dockerignore", "token\nDockerfile\n");
    one.build(FILE, &["-t", "x"]).ok();
    // This command is not exported, nor is the mount of a build with a secret.
    let volume = format!("{}:/v:ro", one.ctx().join("src").display());
    one.build("FROM busybox\nRUN ls /v > /list\n", &["-v", &volume]).ok();
    let secret = "FROM busybox\nRUN --mount=type=cache,target=/secret --mount=type=secret,id=t true\n";
    one.build(secret, &["--secret", "id=t,src=token"]).ok();
    let (dir, archive) = (one.path("cache"), one.path("cache.tar"));
    other.build("FROM busybox\nRUN echo other > /other\n", &["-t", "y"]).ok();
    other.rbuild(["cache", "export", text(&dir)]).ok();
    for dest in [&dir, &archive] {
        let ran = one.rbuild(["cache", "export", "--mounts", "all", text(dest)]).ok();
        assert!(ran.stderr.contains("`/secret` was used by a build with secrets"), "{}", ran.stderr);
        let steps = if dest == &dir { ": 7 steps, 1 cache mount, " } else { ": 6 steps, 1 cache mount, " };
        assert!(ran.stderr.contains("wrote the cache") && ran.stderr.contains(steps), "{}", ran.stderr);
    }
    for (number, source) in [&dir, &archive].into_iter().enumerate() {
        let two = machine();
        let ran = two.rbuild(["cache", "import", text(source)]).ok();
        assert!(ran.stderr.contains(" steps, 1 cache mount from the cache"), "{}", ran.stderr);
        let ran = two.build(FILE, &["-t", "x", "--explain"]).ok();
        assert_eq!(ran.steps(), (0, 5), "{number}: {}", ran.stderr);
        assert!(ran.stderr.contains(&format!("imported from the cache `{}`", source.display())), "{}", ran.stderr);
        assert_eq!(two.rbuild(["run", "--rm", "x", "cat", "/tool"]).ok().stdout, "tool\n");
        // The mount has the content of the other machine.
        let seen = two.build(&FILE.replace("cat /c/*", "cat  /c/*"), &["-t", "z"]).ok();
        assert_eq!(seen.steps(), (2, 3), "{}", seen.stderr);
        assert_eq!(two.rbuild(["run", "--rm", "z", "cat", "/seen"]).ok().stdout, "one\n");
        let again = two.rbuild(["cache", "import", text(source)]).ok();
        assert!(again.stderr.contains("imported 0 steps from the cache"), "{}", again.stderr);
        two.rbuild(["fsck"]).ok();
    }
    // A blob is missing: its step runs, and so does what follows.
    one.sh("find $LAB/cache/blobs -type f -size -400c | xargs grep -LE '^\\{' | xargs rm").ok();
    let three = machine();
    let ran = three.rbuild(["cache", "import", "--mounts", "none", text(&dir)]).ok();
    assert!(ran.stderr.contains("so its step is not imported") && !ran.stderr.contains("mount from"), "{}", ran.stderr);
    three.build(FILE, &["-t", "x"]).ok();
    three
        .rbuild(["cache", "import", text(&three.path("none"))])
        .fails(1, &["cannot open the cache", "until a job has exported"]);
    three
        .rbuild(["cache", "import", "--tag", "main", text(&archive)])
        .fails(1, &["there is no cache with the tag `main`"]);
}

/// An export is signed, and an import of records that nobody or somebody else has signed, or that
/// were changed, fails and leaves the store as it is.
#[test]
fn exported_records_are_signed_and_imported_ones_verified() {
    let (one, keys) = (machine(), Keys::new());
    one.build(FILE, &["-t", "x"]).ok();
    let (ours, theirs) = (keys.path("ours"), keys.path("theirs"));
    let (own_key, other_key) = (format!("{ours}.pub"), format!("{theirs}.pub"));
    let verified = |source: &Path, key: &str| {
        let two = machine();
        let ran = two.rbuild(["cache", "import", "--verify", key, text(source)]);
        let stored = two.build(FILE, &["-t", "x"]).ok().steps();
        (ran, stored)
    };
    for place in [one.path("cache"), one.path("cache.tar")] {
        let export = |more: &[&str]| one.rbuild([&["cache", "export"], more, &[text(&place)]].concat()).ok();
        export(&[]);
        let unsigned = "records without a valid signature, so nothing was imported\nhint: write the cache with --sign";
        let (ran, stored) = verified(&place, &own_key);
        ran.fails(1, &[unsigned]);
        assert_eq!(stored, (5, 0));
        let ran = export(&["--sign", &ours]);
        let dropped = "had records without a valid signature, so their steps were dropped";
        assert_eq!(ran.stderr.contains(dropped), place.is_dir(), "{}", ran.stderr);
        for key in [own_key.clone(), format!("{other_key};{own_key}")] {
            let (ran, stored) = verified(&place, &key);
            assert!(ran.ok().stderr.contains("imported 5 steps"), "{key}");
            assert_eq!(stored, (0, 5), "{key}");
        }
        let (ran, stored) = verified(&place, &other_key);
        ran.fails(1, &[unsigned]);
        assert_eq!(stored, (5, 0));
        // The signature is no obstacle to an import without keys.
        machine().rbuild(["cache", "import", text(&place)]).ok();
    }
    // Other records with the signature of these ones.
    let other = machine();
    other.build(&FILE.replace("echo tool", "echo evil"), &["-t", "x"]).ok();
    other.rbuild(["cache", "export", "--sign", &theirs, text(&other.path("cache"))]).ok();
    let document = |dir: &Path| -> (std::path::PathBuf, serde_json::Value, serde_json::Value) {
        let index = std::fs::read(dir.join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap();
        let path = dir.join("blobs/sha256").join(&digest["sha256:".len()..]);
        (path.clone(), serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap(), index)
    };
    let (_, signed, _) = document(&one.path("cache"));
    let (path, mut changed, mut index) = document(&other.path("cache"));
    changed["layers"][0]["annotations"] = signed["layers"][0]["annotations"].clone();
    let bytes = changed.to_string();
    let digest = rbuild_image::BlobDigest::of(bytes.as_bytes());
    std::fs::write(path.with_file_name(digest.hex()), &bytes).unwrap();
    index["manifests"][0]["digest"] = digest.to_string().into();
    index["manifests"][0]["size"] = bytes.len().into();
    std::fs::write(other.path("cache/index.json"), index.to_string()).unwrap();
    verified(&other.path("cache"), &own_key).0.fails(1, &["records without a valid signature"]);
    // Keys that cannot be used are reported before anything is written.
    for (args, want) in [
        (["export", "--sign", &own_key], "--sign: "),
        (["export", "--sign", "none"], "--sign: cannot read the key `none`"),
        (["import", "--verify", &ours], "--verify: "),
        (["import", "--verify", "none"], "--verify: `none`: "),
    ] {
        one.rbuild([&["cache"], &args[..], &[text(&one.path("new"))]].concat()).fails(2, &[want]);
    }
    let key = std::fs::read_to_string(&ours).unwrap();
    for (verb, flag) in [("export", "--sign"), ("import", "--verify")] {
        let ran = one.rbuild(["cache", verb, flag, &key, text(&one.path("new"))]).fails(2, &["the name of a file"]);
        assert!(!ran.stderr.contains("OPENSSH"), "{}", ran.stderr);
    }
    assert!(!one.path("new").exists());
}

/// The records of a cache state the inputs of keys, so a machine with an empty store knows what is
/// different.
#[test]
fn a_cold_machine_explains_why_a_cache_misses() {
    let one = machine();
    let cache = one.path("cache");
    let to = format!("type=local,dest={},mode=max", cache.display());
    one.build(FILE, &["-t", "x", "--cache-to", &to]).ok();
    one.build(FILE, &["-t", "x", "--build-arg", "VERSION=1.0", "--cache-to", &to]).ok();
    let from = format!("type=local,src={}", cache.display());
    let explain = |change: &dyn Fn(&Lab) -> String, args: &[&str]| {
        let two = machine();
        let file = change(&two);
        two.build(&file, &[&["-t", "x", "--explain", "--cache-from", &from], args].concat()).ok().stderr
    };
    let in_cache = format!("(compared with a build in the cache `{}`)", cache.display());
    let same = |_: &Lab| FILE.to_string();
    for (text, want) in [
        (explain(&same, &["--build-arg", "VERSION=1.2"]), "`VERSION` changed from `1."),
        (
            explain(
                &|two| {
                    two.write("src/a", "changed\n");
                    FILE.into()
                },
                &[],
            ),
            "context files or their modes changed",
        ),
        (explain(&|_| FILE.replace("echo tool", "echo other"), &[]), "the command changed"),
        (
            explain(
                &|two| {
                    two.build("FROM busybox\nRUN echo moved > /moved\n", &["-t", "busybox"]).ok();
                    FILE.into()
                },
                &[],
            ),
            "image `busybox` changed: its manifest was ",
        ),
        (explain(&|_| format!("{FILE}RUN echo new step\n"), &[]), "recorded here or in the caches"),
    ] {
        let line = text.lines().find(|line| line.contains(want)).unwrap_or_else(|| panic!("{want}: {text}"));
        assert!(line.contains(&in_cache) || want.contains("or in the caches"), "{line}");
    }
}
