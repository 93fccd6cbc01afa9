//! Build contexts other than a directory: archives and Dockerfiles on standard input, named
//! contexts.

use crate::lab::{Lab, exists};

const COPY_ALL: &str = "FROM scratch\nCOPY . /\n";

#[test]
fn a_context_can_be_a_tar_of_any_compression() {
    let lab = Lab::bare();
    lab.write("Dockerfile", "FROM scratch\nCOPY sub /\n").write("sub/a", "one").write("other/Dockerfile", COPY_ALL);
    lab.sh("chmod 666 sub/a").ok();
    for pack in ["cat", "gzip", "bzip2", "xz", "zstd -q"] {
        let out = lab.path("out");
        lab.sh(&format!("rm -rf $LAB/out; tar -c . | {pack} | $RB build --output $LAB/out -")).ok();
        assert_eq!(std::fs::read_to_string(out.join("a")).unwrap(), "one", "{pack}");
        // The mode does not depend on the umask.
        assert_eq!(lab.sh("stat -c %a $LAB/out/a").ok().stdout, "666\n");
        assert!(!exists(out.join("Dockerfile")));
    }
    // `-f` names a file of the archive; ignore files do not apply to it.
    lab.write(".dockerignore", "*\n");
    lab.sh("rm -rf $LAB/out; tar -c . | $RB build -f other/Dockerfile --output $LAB/out -").ok();
    assert!(exists(lab.path("out/sub/a")) && exists(lab.path("out/.dockerignore")));
    lab.sh("tar -c . | $RB build -f missing -").fails(1, &["the Dockerfile `missing` does not exist in the archive"]);
    // Suggestions are files of the archive, not of the working directory.
    let ran = lab.sh("tar -c sub | $RB build -").fails(1, &["the Dockerfile `Dockerfile` does not exist", "-f FILE"]);
    assert!(!ran.stderr.contains("did you mean"), "{}", ran.stderr);
    lab.sh("tar -C other -c . | $RB build -f Dockerfil -").fails(1, &["did you mean `Dockerfile`?"]);
    // The unpacked context does not stay in the store.
    let left = std::fs::read_dir(lab.store().join("tmp")).unwrap().count();
    assert_eq!(left, 0, "the archive's files are still there");
}

#[test]
fn a_dockerfile_can_be_read_from_standard_input() {
    let lab = Lab::bare();
    lab.write("f", "content").write(".dockerignore", "hidden\n").write("hidden", "x");
    lab.sh("printf 'FROM scratch\\nCOPY <<A /a\\nalone\\nA\\n' | $RB build --output $LAB/out -").ok();
    assert_eq!(lab.read("out/a"), "alone\n");
    lab.sh("printf 'FROM scratch\\nCOPY . /\\n' | $RB build -f - --output $LAB/out2 .").ok();
    assert!(exists(lab.path("out2/f")) && !exists(lab.path("out2/hidden")));
    lab.sh("printf 'FROM scratch\\nCOPY f /\\n' | $RB build -").fails(1, &["there is no build context"]);
    lab.sh("printf x | $RB build -f - -").fails(2, &["the context and the Dockerfile cannot both be standard input"]);
    lab.sh("printf 'FROM scratch\\n' | $RB build -f Dockerfile -").fails(2, &["-f selects another: `Dockerfile`"]);
    lab.sh("printf '' | $RB build -").fails(2, &["empty"]);
}

#[test]
fn source_date_epoch_can_be_taken_from_the_context_archive() {
    let lab = Lab::bare();
    lab.write("Dockerfile", COPY_ALL).write("f", "x");
    lab.sh("touch -d @1000000 f Dockerfile .; tar -c . | $RB build --build-arg SOURCE_DATE_EPOCH=context -t x -").ok();
    let json = lab.rbuild(["inspect", "x"]).ok().stdout;
    assert!(json.contains("1970-01-12T13:46:40Z"), "{json}");
}

#[test]
fn the_store_is_skipped_in_a_context_that_contains_it() {
    let lab = Lab::new();
    lab.write("f", "x");
    let left_out = "warning: `store` in the build context is the store of this build and was left out";
    let build = |dockerfile: &str, args: &str| lab.sh(&format!("printf '{dockerfile}' | $RB build -f - {args} $LAB"));
    for args in ["--no-cache", ""] {
        let ran = build("FROM busybox\nCOPY . /c\n", &format!("-t copy {args}")).ok();
        assert_eq!(ran.stderr.matches(left_out).count(), 1, "{}", ran.stderr);
    }
    // Nothing changed, although the build wrote to the store.
    let ran = build("FROM busybox\nCOPY . /c\n", "").ok();
    assert_eq!(ran.steps().0, 0, "{}", ran.stderr);
    let layer = lab.top_layer("copy");
    let has = |path: &str| layer.iter().any(|line| line.contains(path));
    assert!(has("c/ctx/f") && !has("store"), "{layer:?}");
    let list = "cd /c; find . -name store";
    build(&format!("FROM busybox\nRUN --mount=target=/c test -z \"$({list})\" -a -e /c/ctx/f\n"), "").ok();
    let named = format!("FROM busybox\nCOPY --from=all . /c\nRUN test -z \"$({list})\" -a -e /c/ctx/f\n");
    let ran = build(&named, "--build-context all=$LAB").ok();
    assert_eq!(ran.stderr.matches(left_out).count(), 1, "{}", ran.stderr);
    for source in ["store", "store/index.json", "store/*"] {
        build(&format!("FROM busybox\nCOPY {source} /c/\n"), "")
            .fails(1, &["is in the store of this build", "hint: use a store outside the build context: --root DIR"]);
    }
    build("FROM busybox\nCOPY --from=it . /c\n", "--build-context it=$LAB/store")
        .fails(1, &["the build context is the store of this build"]);
    lab.sh("echo store >$LAB/.dockerignore").ok();
    let ran = build("FROM busybox\nCOPY . /c\n", "").ok();
    assert!(!ran.stderr.contains("left out"), "{}", ran.stderr);
}

#[test]
fn a_named_directory_replaces_stages_images_and_copy_sources() {
    let lab = Lab::new();
    lab.write("extra/f", "named").write("extra/skip", "x").write("extra/.dockerignore", "skip\n");
    lab.write("Dockerfile", "FROM scratch\nCOPY --from=extra . /\n");
    let context = "extra=extra";
    lab.sh(&format!("$RB build --build-context {context} --output $LAB/out .")).ok();
    assert_eq!(lab.read("out/f"), "named");
    assert!(!exists(lab.path("out/skip")));
    // A named context replaces a stage, whose own instructions are then ignored, and is the base of
    // another stage.
    let file = "FROM nowhere AS extra\nRUN false\nFROM extra\nCOPY --from=extra f /g\n";
    let out = lab.build_local(file, &["--build-context", context]);
    assert!(exists(out.join("f")) && exists(out.join("g")));
    // A bind mount from the named context.
    let file = "FROM busybox\nRUN --mount=from=extra,target=/m cat /m/f > /o && test ! -e /m/skip\n";
    let out = lab.build_local(file, &["--build-context", context]);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "named");
    // Its content is part of the cache key.
    assert_eq!(lab.build(file, &["--build-context", context]).ok().steps(), (0, 1));
    lab.write("extra/f", "changed");
    assert_eq!(lab.build(file, &["--build-context", context]).ok().steps(), (1, 0));
    lab.build(file, &["--build-context", "extra=nowhere"]).fails(2, &["--build-context extra=nowhere"]);
}

#[test]
fn a_named_context_can_be_an_image_or_a_layout() {
    let lab = Lab::new();
    lab.build("FROM busybox\nENV A=from-image\nRUN echo one > /mark\n", &["-t", "real:1"]).ok();
    let file = "FROM base\nRUN echo $A >> /mark\n";
    let out = lab.build_local(file, &["--build-context", "base=docker-image://real:1"]);
    assert_eq!(std::fs::read_to_string(out.join("mark")).unwrap(), "one\nfrom-image\n");
    lab.sh(
        "$RB save --format oci-archive -o $LAB/l.tar real:1 && mkdir $LAB/layout && tar -C $LAB/layout -xf $LAB/l.tar",
    )
    .ok();
    // The same in a store that has never contained the image.
    lab.write("Dockerfile", file);
    let build = |context: &str| {
        lab.sh(&format!(
            "RBUILD_ROOT=$LAB/other $RB build --build-context base=oci-layout://{context} --output $LAB/out2 ."
        ))
    };
    build("$LAB/layout").ok();
    assert_eq!(lab.read("out2/mark"), "one\nfrom-image\n");
    let manifest = lab.sh("sed 's/.*\"digest\":\"\\([^\"]*\\)\".*/\\1/' $LAB/layout/index.json").ok().stdout;
    build(&format!("$LAB/layout@{}", manifest.trim())).ok();
    build("$LAB/layout:nine").fails(1, &["has no image `nine`"]);
    build("$LAB/nowhere").fails(1, &["the OCI layout"]);
    lab.sh("RBUILD_ROOT=$LAB/other $RB prune -a").ok();
    // `load` accepts the same directory.
    let loaded = lab.sh("RBUILD_ROOT=$LAB/third $RB load -i $LAB/layout").ok();
    assert_eq!(loaded.stdout, "Loaded image: real:1\n");
    let out = lab.build_local("FROM base\nCOPY Dockerfile /\n", &["--build-context", "base=docker-image://scratch"]);
    assert_eq!(std::fs::read_dir(out).unwrap().count(), 1);
}

#[test]
fn git_modes_make_results_independent_of_the_umask() {
    let lab = Lab::new();
    lab.write("d/f", "text").write("run", "#!/bin/sh\n");
    let file = "FROM busybox\nCOPY d/ /d/\nCOPY run /run\nRUN --mount=type=bind,target=/c stat -c '%a %n' /d/f /run /c/d/f | tee /o\n";
    let modes = |context: [u32; 4], flag: &str| {
        use std::os::unix::fs::PermissionsExt;
        for (path, mode) in ["d", "d/f", "run", "."].into_iter().zip(context) {
            std::fs::set_permissions(lab.ctx().join(path), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        lab.build(file, &["--context-modes", flag, "-t", "x"]).ok()
    };
    let (loose, tight) = ([0o777, 0o666, 0o777, 0o777], [0o700, 0o600, 0o700, 0o700]);
    assert_eq!(modes(loose, "git").steps().0, 3);
    // Files of a context do not depend on the umask, so everything is cached.
    assert_eq!(modes(tight, "git").steps(), (0, 3));
    assert_eq!(lab.rbuild(["run", "x", "cat", "/o"]).ok().stdout, "644 /d/f\n755 /run\n644 /c/d/f\n");
    assert!(modes(loose, "as-is").steps().0 > 0);
    assert_eq!(lab.rbuild(["run", "x", "cat", "/o"]).ok().stdout, "666 /d/f\n777 /run\n666 /c/d/f\n");
    lab.build(file, &["--context-modes", "svn"]).fails(2, &["as-is or git"]);
}

/// The ignore file applies regardless of the sources of the Dockerfile and of the context.
#[test]
fn a_given_ignore_file_applies_to_every_context() {
    let lab = Lab::new();
    lab.write("kept", "").write("secret", "").write("Dockerfile", "FROM scratch\nCOPY . /\n");
    let ignore = lab.path("only.ignore");
    std::fs::write(&ignore, "*\n!kept\n").unwrap();
    for (at, input) in ["-f $CTX/Dockerfile $CTX", "-f - $CTX < $CTX/Dockerfile", "-"].into_iter().enumerate() {
        let feed = if input == "-" { "tar -C $CTX -c . | " } else { "" };
        let build = |ignore: &str| {
            let flags = format!("-o $LAB/out{at} --ignorefile $LAB/{ignore}");
            lab.sh(&format!("CTX={}; {feed}$RB build -q {flags} {input}", lab.ctx().display()))
        };
        build("only.ignore").ok();
        let names = std::fs::read_dir(lab.path(&format!("out{at}"))).unwrap().map(|e| e.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["kept"], "{input}");
        build("none.ignore").fails(2, &["cannot read the ignore file"]);
    }
}
