//! `--cache-to` and `--cache-from`: steps of one machine are hits on another one.

use std::path::{Path, PathBuf};

use crate::lab::{Lab, base, is_bare};

/// Two stages, of which one is only copied from.
const FILE: &str = "FROM busybox AS tools\nRUN echo tool > /tool; echo unused > /unused\n\
    FROM busybox\nWORKDIR /w\nCOPY src /w/\nRUN cat /w/a > /w/made; chmod 600 /w/made; ln -s made /w/link\n\
    COPY --from=tools /tool /tool\n";

/// Returns a machine with an empty store and the same sources.
fn machine() -> Lab {
    let lab = Lab::new();
    lab.write(".dockerignore", "Dockerfile\n").write("src/a", "source\n");
    lab
}

pub fn to(cache: &Path, more: &str) -> String {
    format!("type=local,dest={}{more}", cache.display())
}

pub fn from(cache: &Path, more: &str) -> String {
    format!("type=local,src={}{more}", cache.display())
}

/// Builds the files of the result, and returns what `find` prints of them.
fn build_files(lab: &Lab, file: &str, args: &[&str]) -> (crate::lab::Ran, Vec<String>) {
    let tar = lab.path("files.tar");
    let output = format!("type=tar,dest={}", tar.display());
    let ran = lab.build(file, &[&["--output", &output], args].concat()).ok();
    let mut listing = crate::lab::listing(&std::fs::read(&tar).unwrap());
    listing.retain(|line| line.contains(" w") || line.contains("tool"));
    (ran, listing)
}

/// Returns the paths of the layers of a cache.
pub fn layers(cache: &Path) -> Vec<PathBuf> {
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(cache.join("index.json")).unwrap()).unwrap();
    let blob = |digest: &serde_json::Value| cache.join("blobs/sha256").join(&digest.as_str().unwrap()[7..]);
    let manifest = std::fs::read(blob(&index["manifests"][0]["digest"])).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["artifactType"], "application/vnd.rbuild.cache.v1+json");
    manifest["layers"].as_array().unwrap()[1..].iter().map(|layer| blob(&layer["digest"])).collect()
}

#[test]
fn another_machine_runs_no_step_and_has_the_same_image() {
    for (number, form) in ["", ",compression=zstd", ",compression=uncompressed,mode=max"].iter().enumerate() {
        let (one, two) = (machine(), machine());
        let cache = one.path("cache");
        let written = one.build(FILE, &["-t", "x", "--cache-to", &to(&cache, &format!(",mode=max{form}"))]).ok();
        assert!(written.stderr.contains("wrote the cache"), "{}", written.stderr);
        assert_eq!(layers(&cache).len(), 5, "{number}");
        let (here, expected) = build_files(&one, FILE, &[]);
        assert_eq!(here.steps(), (0, 5));
        let (there, files) = build_files(&two, FILE, &["--cache-from", &from(&cache, "")]);
        assert_eq!(there.steps(), (0, 5), "{}", there.stderr);
        assert_eq!(files, expected);
        assert!(files.iter().any(|line| line.contains("w/made")), "{files:?}");
        // The image has the same layers, and later builds need those of the cache no longer.
        layers(&cache).iter().for_each(|path| std::fs::remove_file(path).unwrap());
        let image = two.build(FILE, &["-t", "x", "--cache-from", &from(&cache, "")]).ok();
        assert_eq!((image.steps(), image.stderr.contains("warning")), ((0, 5), false), "{}", image.stderr);
        let diff_ids = |lab: &Lab| lab.rbuild(["inspect", "x", "--format", "{{json .RootFS}}"]).ok().stdout;
        assert_eq!(diff_ids(&one), diff_ids(&two));
        two.rbuild(["fsck"]).ok();
    }
}

/// A layer is read only if the build needs its files: none if only the cache is filled, and none of
/// stages that are only copied from.
#[test]
fn layers_are_read_when_their_files_are_needed() {
    let one = machine();
    let cache = one.path("cache");
    one.build(FILE, &["-t", "x", "--cache-to", &to(&cache, ",mode=max")]).ok();
    let source = from(&cache, ",required");
    // Without the layers, a build that needs no files is answered.
    let without = one.path("without");
    one.sh("cp -r $LAB/cache $LAB/without").ok();
    layers(&without).iter().for_each(|path| std::fs::remove_file(path).unwrap());
    let two = machine();
    let filled = two.build(FILE, &["-o", "type=cacheonly", "--cache-from", &from(&without, ",required")]).ok();
    assert_eq!(filled.steps(), (0, 5), "{}", filled.stderr);
    assert!(!filled.stderr.contains("warning"), "{}", filled.stderr);
    // A changed step runs on the files of the cached ones below it; the stage is not unpacked.
    let three = machine();
    three.write("src/a", "changed\n");
    let (ran, files) = build_files(&three, FILE, &["--cache-from", &source]);
    assert_eq!(ran.steps(), (3, 2), "{}", ran.stderr);
    assert!(files.iter().any(|line| line.contains("tool")), "{files:?}");
}

/// Missing, shortened and changed layers of each step.
#[test]
fn a_damaged_layer_is_a_miss_with_one_warning() {
    let one = machine();
    let (cache, broken) = (one.path("cache"), one.path("broken"));
    one.build(FILE, &["-t", "x", "--cache-to", &to(&cache, ",mode=max")]).ok();
    let (_, expected) = build_files(&one, FILE, &[]);
    let mut unread = 0;
    for layer in 0..5 {
        let _ = std::fs::remove_dir_all(&broken);
        one.sh("cp -r $LAB/cache $LAB/broken").ok();
        let path = &layers(&broken)[layer];
        match layer % 3 {
            0 => std::fs::remove_file(path).unwrap(),
            1 => std::fs::write(path, "x").unwrap(),
            _ => {
                let mut bytes = std::fs::read(path).unwrap();
                let last = bytes.len() - 1;
                bytes[last / 2] ^= 1;
                std::fs::write(path, bytes).unwrap();
            }
        }
        let two = machine();
        let (ran, files) =
            build_files(&two, FILE, &["--cache-from", &from(&broken, ""), "--cache-to", &to(&broken, ",mode=max")]);
        assert_eq!(files, expected, "{layer}");
        let warnings = ran.stderr.matches("so its step runs").count();
        let (done, cached) = ran.steps();
        assert!((warnings == 1 && done >= 1) || (warnings == 0 && (done, cached) == (0, 5)), "{layer}: {}", ran.stderr);
        unread += usize::from(warnings == 0);
        // The step that ran replaces the lost one.
        let three = machine();
        let (ran, files) = build_files(&three, FILE, &["--cache-from", &from(&broken, "")]);
        // The `chroot` mode has a warning of its own.
        let warned = |line: &&str| line.starts_with("warning") && !line.contains("commands share this machine's");
        assert_eq!((ran.stderr.lines().find(warned), files), (None, expected.clone()), "{layer}");
    }
    assert_eq!(unread, 1, "the layer of the other stage is not read");
}

#[test]
fn nothing_about_a_cache_fails_a_build_unless_it_is_required() {
    let lab = machine();
    let junk = lab.path("junk");
    std::fs::create_dir(&junk).unwrap();
    let build = |args: &[&str]| lab.build("FROM busybox\nRUN true\n", args);
    let quiet = build(&["--cache-from", &from(&lab.path("none"), "")]).ok();
    // The `chroot` mode has a warning of its own.
    assert_eq!(quiet.stderr.matches("warning").count(), usize::from(is_bare()), "{}", quiet.stderr);
    build(&["--cache-from", &from(&lab.path("none"), ",required")])
        .fails(1, &["/none` does not exist", "hint: correct the path, or write the cache with --cache-to before"]);
    build(&["--cache-from", &from(&junk, ",required")]).fails(1, &["there is no cache with the tag `latest`"]);
    std::fs::write(junk.join("index.json"), "[[").unwrap();
    let warned = build(&["--cache-from", &from(&junk, "")]).ok();
    assert!(warned.stderr.contains("cannot read the cache, so it is not used"), "{}", warned.stderr);
    build(&["--cache-from", &from(&junk, ",required=true")]).fails(1, &["cannot read the cache: index.json"]);
    // An image is not a cache.
    let image = lab.path("image");
    build(&["-o", &format!("type=oci,tar=false,dest={}", image.display())]).ok();
    build(&["--cache-from", &from(&image, ",required")])
        .fails(1, &["it is an image, not a cache", "hint: use another tag"]);
    // A layer that cannot be read is lost.
    let broken = lab.path("broken");
    build(&["-t", "made", "--cache-to", &to(&broken, "")]).ok();
    let blob = layers(&broken).remove(0);
    std::fs::remove_file(&blob).unwrap();
    std::fs::create_dir(&blob).unwrap();
    let two = machine();
    let output = format!("type=tar,dest={}", two.path("x.tar").display());
    let build_two = |args: &[&str]| two.build("FROM busybox\nRUN true\n", &[&["-o", &output], args].concat()).ok();
    let warned = build_two(&["--cache-from", &from(&broken, "")]);
    assert_eq!((warned.steps(), warned.stderr.matches("so its step runs").count()), ((1, 0), 1), "{}", warned.stderr);
    // A cache that cannot be written fails the command after the image is finished.
    let failed =
        build(&["-t", "made", "--cache-to", &to(&junk, "")]).fails(1, &["cannot update the cache", "index.json"]);
    assert!(failed.stderr.contains("Built made:latest"), "{}", failed.stderr);
    lab.rbuild(["inspect", "made"]).ok();
    let ignored = build(&["-t", "made", "--cache-to", &to(&junk, ",ignore-error=true")]).ok();
    assert!(ignored.stderr.contains("warning: --cache-to"), "{}", ignored.stderr);
    for (args, text) in [
        (["--cache-to", "type=local"], "`dest` is missing"),
        (["--cache-from", "type=local"], "`src` is missing"),
        (["--cache-from", "type=locl,src=x"], "unknown type `locl`"),
        (["--cache-from", "src=x"], "the type is missing"),
        (["--cache-to", "type=local,dest=c,mode=all"], "unknown mode"),
        (["--cache-to", "type=local,dest=c,size=1"], "unknown option `size`"),
        (["--cache-to", "type=local,dest=c,max-age=x"], "not a duration"),
    ] {
        build(&args).fails(2, &[text]);
    }
}

#[test]
fn mode_min_writes_the_layers_of_the_result_and_no_change_writes_nothing() {
    let one = machine();
    let cache = one.path("cache");
    let build = |args: &str| one.build(FILE, &["-t", "x", "--cache-to", &to(&cache, args)]).ok().stderr;
    let first = build("");
    assert!(first.contains(": 4 steps, 4 new layers of "), "{first}");
    let hint = "note: 1 step of another stage is not in the cache; mode=max writes it\n";
    assert!(first.ends_with(hint), "{first}");
    let before = one.sh("cd $LAB/cache && find . -type f -printf '%p %T@ %i\\n' | sort").ok().stdout;
    let again = build("");
    assert!(again.contains("is unchanged: 4 steps") && !again.contains("mode=max"), "{again}");
    assert_eq!(one.sh("cd $LAB/cache && find . -type f -printf '%p %T@ %i\\n' | sort").ok().stdout, before);
    let all = build(",mode=max");
    assert!(all.contains(": 5 steps, 1 new layer of ") && !all.contains("mode=max"), "{all}");
    // All steps are those of the result.
    let one_stage = ["-t", "y", "--cache-to", &to(&one.path("one"), "")];
    let ran = one.build("FROM busybox\nRUN echo 1 > /1\n", &one_stage).ok();
    assert!(ran.stderr.contains(": 1 step, 1 new layer of ") && !ran.stderr.contains("mode=max"), "{}", ran.stderr);
    // Two machines that write the same steps write the same bytes.
    let other = one.path("other");
    one.build(FILE, &["-q", "--cache-to", &to(&other, ",mode=max")]).ok();
    one.sh("diff -r $LAB/cache/index.json $LAB/other/index.json").ok();
}

/// Machines that wrote one after the other have one cache, and the first result of a step counts.
#[test]
fn caches_of_several_machines_are_merged() {
    let (one, two, three) = (machine(), machine(), machine());
    let cache = one.path("cache");
    let random = "FROM busybox\nRUN head -c 16 /dev/urandom > /r\n";
    let tagged = format!("{random}RUN echo ");
    let (to_all, source) = (to(&cache, ",mode=max"), from(&cache, ""));
    let build = |lab: &Lab, name: &str| {
        lab.build(&format!("{tagged}{name} > /n\n"), &["-t", "x", "--cache-to", &to_all, "--cache-from", &source])
            .ok()
            .steps()
    };
    assert_eq!(build(&one, "one"), (2, 0));
    assert_eq!(build(&two, "two"), (1, 1));
    assert_eq!(build(&three, "one"), (0, 2));
    assert_eq!(build(&three, "two"), (0, 2));
    // A machine that ran the step itself keeps its own result; the cache keeps that of the first.
    let four = machine();
    assert_eq!(
        four.build(&format!("{tagged}four > /n\n"), &["-t", "x", "--cache-to", &to(&cache, "")]).ok().steps(),
        (2, 0)
    );
    let five = machine();
    assert_eq!(build(&five, "two"), (0, 2));
}

/// Commands with secrets are hits if their files were searched, with any secret. A layer that
/// contains the value of a secret is never written.
#[test]
fn steps_with_secrets_are_shared_and_layers_with_secrets_are_not() {
    let (one, two) = (machine(), machine());
    let cache = one.path("cache");
    one.write("token", "hunter2-hunter2");
    two.write("token", "another-token-value");
    let file = "FROM busybox AS stage\nRUN --mount=type=secret,id=t cp /run/secrets/t /leaked || echo none > /leaked\n\
        FROM busybox\nRUN --mount=type=secret,id=t wc -c < /run/secrets/t > /size\nCOPY --from=stage /etc/passwd /p\n";
    for lab in [&one, &two] {
        lab.write(".dockerignore", "token\nDockerfile\n");
    }
    let secret = ["--secret", "id=t,src=token"];
    one.build(file, &[&["-t", "x", "--cache-to", &to(&cache, ",mode=max")][..], &secret].concat()).ok();
    assert_eq!(layers(&cache).len(), 2, "not the stage");
    one.sh("! grep -r hunter2 $LAB/cache && ! for f in $LAB/cache/blobs/sha256/*; do zcat $f; done 2>/dev/null | grep hunter2").ok();
    let ran = two.build(file, &[&["-t", "x", "--cache-from", &from(&cache, "")][..], &secret].concat()).ok();
    // The stage runs, and the copy is found by the content that it reads.
    assert_eq!(ran.steps(), (1, 2), "{}", ran.stderr);
}

/// `--allow secret-in-image` permits a secret in the image, not in a cache. A value that is too
/// short to search for may be in any file of its command.
#[test]
fn no_secret_that_the_build_permits_or_cannot_search_for_is_written() {
    let lab = machine();
    lab.write("token", "hunter2-hunter2").write("pin", "1234");
    let secret = ["--secret", "id=t,src=token", "--allow", "secret-in-image"];
    let copied = "FROM busybox\nCOPY token /t\nRUN true\n";
    let (before, cache) = (lab.path("before"), lab.path("cache"));
    // Without the secret, nothing is searched, and the layer is packed.
    lab.build(copied, &["-t", "x", "--cache-to", &to(&before, "")]).ok();
    assert_eq!(layers(&before).len(), 2);
    for _ in 0..2 {
        let ran = lab.build(copied, &[&["-t", "x", "--cache-to", &to(&cache, "")][..], &secret].concat()).ok();
        assert_eq!((ran.steps(), layers(&cache).len()), ((0, 2), 1), "{}", ran.stderr);
    }
    // The steps of the other cache have not been searched, and their layers are not read.
    let (two, passed) = (machine(), lab.path("passed"));
    two.write("token", "hunter2-hunter2");
    let file = format!("{}FROM busybox\nCOPY --from=0 /etc/passwd /p\n", copied);
    lab.build(&file, &["-t", "y", "--cache-to", &to(&before, ",mode=max")]).ok();
    let (source, target) = (from(&before, ""), to(&passed, ",mode=max"));
    let ran = two.build(&file, &[&["-t", "y", "--cache-from", &source, "--cache-to", &target][..], &secret].concat());
    assert_eq!((ran.ok().steps(), layers(&passed).len()), ((0, 3), 1));
    let short = "FROM busybox\nRUN --mount=type=secret,id=p cat /run/secrets/p > /p\nRUN true\n";
    for _ in 0..2 {
        let cache = to(&lab.path("short"), ",mode=max");
        lab.build(short, &["-t", "z", "--secret", "id=p,src=pin", "--cache-to", &cache]).ok();
        assert_eq!(layers(&lab.path("short")).len(), 1);
    }
}

/// Layers with the right digests that are no archive, or that leave the root. No record of them
/// remains.
#[test]
fn a_layer_that_cannot_be_unpacked_is_lost() {
    let one = machine();
    let file = "FROM busybox\nRUN echo made > /made\n";
    let cache = one.path("cache");
    one.build(file, &["-t", "x", "--cache-to", &to(&cache, ",compression=uncompressed")]).ok();
    let layer = layers(&cache).remove(0);
    let old = layer.file_name().unwrap().to_str().unwrap().to_string();
    let bytes = std::fs::read(&layer).unwrap();
    let escaping = {
        let mut tar = rbuild_layer::TarWriter::new(Vec::new());
        tar.entry(&rbuild_layer::TarEntry::plain_file("../../x", 0)).unwrap();
        tar.finish().unwrap()
    };
    let long = {
        let mut tar = rbuild_layer::TarWriter::new(Vec::new());
        tar.entry(&rbuild_layer::TarEntry::plain_file("x".repeat(300), 0)).unwrap();
        tar.finish().unwrap()
    };
    for content in [b"no archive".to_vec(), escaping, long, refused_layer()] {
        let bad = one.path("bad");
        let _ = std::fs::remove_dir_all(&bad);
        one.sh("cp -r $LAB/cache $LAB/bad").ok();
        forge(&bad, &old, bytes.len(), &content);
        let two = machine();
        let source = from(&bad, ",required");
        let output = format!("type=tar,dest={}", two.path("x.tar").display());
        let ran = two.build(file, &["-o", &output, "--cache-from", &source]).ok();
        // An attempt that ends in the layer counts, too.
        let warnings = ran.stderr.matches("so its step runs").count();
        assert_eq!((ran.steps().0, warnings), (1, 1), "{}", ran.stderr);
        assert_eq!(two.build(file, &["-o", &output]).ok().steps(), (0, 1));
    }
}

/// Returns a layer that only the kernel refuses: with a link whose target is too long.
pub fn refused_layer() -> Vec<u8> {
    use rbuild_layer::{EntryKind, TarEntry, TarWriter};
    let (mut tar, link) = (TarWriter::new(Vec::new()), "x".repeat(5000).into());
    tar.entry(&TarEntry { kind: EntryKind::Symlink, link, ..TarEntry::plain_file("link", 0) }).unwrap();
    tar.finish().unwrap()
}

/// Replaces a layer of a cache by other bytes, in all documents.
pub fn forge(cache: &Path, old: &str, old_size: usize, content: &[u8]) {
    use rbuild_image::BlobDigest;
    let blobs = cache.join("blobs/sha256");
    let put = |bytes: &[u8]| {
        let digest = BlobDigest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        digest.hex().to_string()
    };
    let index = std::fs::read_to_string(cache.join("index.json")).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&index).unwrap();
    let hex = |value: &serde_json::Value| value["digest"].as_str().unwrap()[7..].to_string();
    let manifest_hex = hex(&parsed["manifests"][0]);
    let manifest = std::fs::read_to_string(blobs.join(&manifest_hex)).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let records_hex = hex(&parsed["layers"][0]);
    let packed = std::fs::File::open(blobs.join(&records_hex)).unwrap();
    let lines = std::io::read_to_string(rbuild_layer::Decoder::new(packed).unwrap()).unwrap();
    let new = put(content);
    let lines = lines.replace(old, &new);
    let lines = lines.replace(&format!("\"s\":{old_size},"), &format!("\"s\":{},", content.len()));
    // Readers detect the compression.
    let records = put(lines.as_bytes());
    let manifest = put(manifest.replace(old, &new).replace(&records_hex, &records).as_bytes());
    std::fs::write(cache.join("index.json"), index.replace(&manifest_hex, &manifest)).unwrap();
}

/// A path of this machine is part of the key of commands with volumes, and its content is not.
#[test]
fn commands_with_volumes_are_not_shared() {
    let one = machine();
    let cache = one.path("cache");
    std::fs::create_dir(one.path("volume")).unwrap();
    let volume = format!("{}:/v:ro", one.path("volume").display());
    let file = "FROM busybox\nWORKDIR /w\nRUN ls /v > /w/list\n";
    let ran = one.build(file, &["-t", "x", "-v", &volume, "--cache-to", &to(&cache, ",mode=max")]).ok();
    assert!(ran.stderr.contains(": 1 step, "), "{}", ran.stderr);
}

/// The other isolation mode, another base archive with the same files, and another user's store.
#[test]
fn steps_are_shared_between_isolation_modes() {
    if is_bare() {
        return;
    }
    let (one, two) = (machine(), Lab::bare());
    let cache = one.path("cache");
    one.build(FILE, &["-t", "x", "--cache-to", &to(&cache, ",mode=max")]).ok();
    two.write(".dockerignore", "Dockerfile\n").write("src/a", "source\n").write("Dockerfile", FILE);
    two.rbuild(["import", "-c", "LABEL other=1", base("busybox.tar").to_str().unwrap(), "busybox"]).ok();
    let source = from(&cache, "");
    let (ran, files) = build_files(&two, FILE, &["--isolation", "single-id", "--cache-from", &source]);
    assert_eq!(ran.steps(), (0, 5), "{}", ran.stderr);
    assert_eq!(files, build_files(&one, FILE, &[]).1);
    two.rbuild(["fsck"]).ok();
}

/// Steps that were used last stay.
#[test]
fn a_cache_is_limited() {
    let lab = machine();
    let cache = lab.path("cache");
    let ran = lab.build(FILE, &["-t", "x", "--cache-to", &to(&cache, ",mode=max,max-size=300")]).ok();
    assert!(!ran.stderr.contains(": 5 steps"), "{}", ran.stderr);
    assert!(ran.stderr.contains("do not fit in max-size=300B of the cache"), "{}", ran.stderr);
    let export = |dest: &str| lab.rbuild(["cache", "export", "--max-size", "300", lab.path(dest).to_str().unwrap()]);
    for dest in ["exported", "exported.tar"] {
        let ran = export(dest).ok();
        assert!(ran.stderr.contains("do not fit in --max-size 300B\n"), "{}", ran.stderr);
    }
    let ran = lab.build(FILE, &["-t", "x", "--cache-to", &to(&cache, ",mode=max,max-age=2d")]).ok();
    assert!(ran.stderr.contains(": 5 steps") && !ran.stderr.contains("fit"), "{}", ran.stderr);
}

/// The first use of a cache mount on a machine finds the files of another one.
#[test]
fn cache_mounts_travel_with_a_cache() {
    let (one, two) = (machine(), machine());
    let cache = one.path("cache");
    let file = |text: &str| {
        format!(
            "FROM busybox\nRUN --mount=type=cache,target=/c --mount=type=cache,id=other,target=/o \\\n\
             cat /c/* > /seen 2>/dev/null || true; echo {text} > /c/{text}; chown 7:8 /c/{text}; echo o > /o/{text}\n"
        )
    };
    let seen = |lab: &Lab, text: &str, args: &[&str]| {
        let out = lab.path("out");
        let output = format!("type=local,dest={},mode=delete", out.display());
        lab.build(&file(text), &[&["-o", &output, "--allow", "local.delete"], args].concat()).ok();
        std::fs::read_to_string(out.join("seen")).unwrap()
    };
    let target = |more: &str| to(&cache, &format!(",mode=max{more}"));
    assert_eq!(seen(&one, "a", &["--cache-to", &target(",mounts=/c")]), "");
    assert_eq!(layers(&cache).len(), 2, "a step and a mount");
    let source = from(&cache, "");
    assert_eq!(seen(&two, "b", &["--cache-from", &source, "--cache-to", &target(",mounts=all")]), "a\n");
    assert_eq!(layers(&cache).len(), 4, "another step, the content that replaced the first, and another mount");
    // The mount of this machine stays.
    assert_eq!(seen(&one, "c", &["--cache-from", &source]), "a\n");
    assert_eq!(seen(&machine(), "d", &["--cache-from", &source]), "a\nb\n");
    // One that is too large is not written, nor is one with a secret.
    let last = machine();
    last.write("secret", "very secret text");
    last.write(".dockerignore", "secret\nDockerfile\n");
    for (number, more) in [(0, ",mounts=all,mounts-max=1"), (1, ",mounts=/c")] {
        let cache = last.path(&format!("cache{number}"));
        let file = "FROM busybox\nRUN --mount=type=secret,id=s --mount=type=cache,target=/c cp /run/secrets/s /c\n";
        let to = to(&cache, more);
        let args = ["-o", "type=cacheonly", "--no-cache", "--secret", "id=s,src=secret", "--cache-to", &to];
        let ran = last.build(file, &args).ok();
        assert!(ran.stderr.contains("contains the value of a secret, so no cache gets it"), "{}", ran.stderr);
        assert_eq!(layers(&cache).len(), 1);
    }
}

#[test]
fn a_cache_mount_that_is_too_large_is_reported() {
    let file = "FROM busybox\nRUN --mount=type=cache,id=m,target=/m head -c 50000 /dev/urandom > /m/f\n";
    let build = |more: &str| {
        let lab = machine();
        let to = to(&lab.path("cache"), &format!(",mounts=all{more}"));
        lab.build(file, &["-o", "type=cacheonly", "--cache-to", &to]).ok().stderr
    };
    let large = build(",mounts-max=40000");
    assert!(large.contains("warning: the cache mount `m` (50") && large.contains("exceeds mounts-max=40kB"), "{large}");
    assert!(large.contains(": 1 step, 1 new layer of "), "{large}");
    let other = build("");
    assert!(!other.contains("exceeds") && other.contains(": 1 step, 1 cache mount, "), "{other}");
}

/// Mounts that do not exist, and records that no image can have, are warnings.
#[test]
fn targets_without_effect_are_reported() {
    let lab = machine();
    let file = "FROM busybox\nRUN --mount=type=cache,id=modules,target=/m echo m > /m/f\n";
    let build = |to: &str, more: &[&str]| lab.build(file, &[&["--cache-to", to], more].concat()).ok().stderr;
    let unused = "no command of this build uses a cache mount `module`, so no cache gets it";
    let named = |mounts: &str| to(&lab.path("cache"), &format!(",\"mounts={mounts}\""));
    let ran = build(&named("modules;module;other"), &["-t", "x"]);
    assert!(ran.contains(unused) && ran.contains("`modules`") && ran.contains("mount `other`"), "{ran}");
    assert!(!build(&named("modules"), &["-t", "x"]).contains("no command"));
    let dest = lab.path("exported");
    let export = |mounts: &str| lab.rbuild(["cache", "export", "--mounts", mounts, dest.to_str().unwrap()]).ok().stderr;
    let ran = export("modules;module");
    assert!(ran.contains("there is no cache mount `module`\n") && ran.contains("`modules`"), "{ran}");
    assert_eq!(ran.matches("there is no cache mount").count(), 1, "{ran}");
    let ran = machine().rbuild(["cache", "import", "--mounts", "modul", dest.to_str().unwrap()]).ok().stderr;
    assert!(ran.contains("there is no cache mount `modul`\n") && ran.contains("`modules`"), "{ran}");
    for (more, effect) in [
        (&["-t", "y"][..], None),
        (&["-t", "y", "--squash"], Some("the layers of a squashed image are not those of its steps")),
        (&["-o", "type=tar,dest=-"], Some("no output is an image")),
        (&["-o", "type=cacheonly"], Some("no output is an image")),
        (&["-o", "type=cacheonly", "-t", "y"], None),
    ] {
        let ran = build("type=inline", more);
        let warning = "the inline cache has no effect: ";
        match effect {
            Some(reason) => assert!(ran.contains(&format!("{warning}{reason}")), "{more:?}: {ran}"),
            None => assert!(!ran.contains(warning), "{more:?}: {ran}"),
        }
    }
}

/// The records and layers of a cache that BuildKit could have written: the digests are computed as
/// there, and the layers have files that no command makes.
#[test]
fn a_cache_of_buildkit_is_read() {
    use base64::Engine;
    use rbuild_image::BlobDigest;
    use serde_json::{Value, json};
    let lab = machine();
    // Layers of BuildKit do not contain the root directory, which has that of the base image.
    let archive = base("busybox.tar");
    lab.sh(&format!(
        "mkdir $LAB/root && tar -C $LAB/root -xf {} && chmod 711 $LAB/root && tar -C $LAB/root -cf $LAB/other.tar .",
        archive.display()
    ))
    .ok();
    lab.rbuild(["import", lab.path("other.tar").to_str().unwrap(), "other"]).ok();
    let inspect = |what: &str| -> Value {
        let format = format!("{{{{json {what}}}}}");
        serde_json::from_str(&lab.rbuild(["inspect", "other", "--format", &format]).ok().stdout).unwrap()
    };
    let of = |text: String| BlobDigest::of(text.as_bytes()).to_string();
    let record = |vertex: String, output: i32| of(format!("{vertex}@{output}"));
    let base: Vec<String> = serde_json::from_value(inspect(".RootFS.Layers")).unwrap();
    let chain = base[1..].iter().fold(base[0].clone(), |chain, next| of(format!("{chain} {next}")));
    let from = record(of(format!("buildkit.source.v0:{chain}")), 0);
    let action = "{\"src\":\"a\",\"dest\":\"/a\",\"mode\":-1,\"followSymlink\":true,\"dirCopyContents\":true,\
        \"createDestPath\":true,\"allowWildcard\":true,\"allowEmptyWildcard\":true,\"timestamp\":-1}";
    let action = base64::prelude::BASE64_STANDARD.encode(action);
    let copy = record(of(format!("{{\"Type\":\"buildkit.file.v0\",\"Actions\":[\"{action}\"]}}")), 0);
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(lab.ctx().join("src/a")).unwrap().permissions().mode() & 0o7777;
    let file = format!("namemode{mode}uid0gid0size7typeflag0linknameunamegnamedevmajor0devminor0source\n");
    let content = record(of(of(file)), -1);
    let env = inspect(".Config.Env").as_array().cloned().unwrap_or_default();
    let mut env: Vec<String> = env.iter().map(|entry| entry.as_str().unwrap().to_string()).collect();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    }
    let arch = inspect(".Architecture");
    let run = format!(
        "{{\"Type\":\"buildkit.exec.v0\",\"Exec\":{{\"meta\":{{\"args\":[\"/bin/sh\",\"-c\",\"echo hi \\u003e /b\"],\
         \"env\":{},\"cwd\":\"/\",\"removeMountStubsRecursive\":true}}}},\"OS\":\"linux\",\"Arch\":{arch}}}",
        json!(env)
    );
    let run = record(of(run), 0);
    let layer = |name: &str| {
        let mut tar = rbuild_layer::TarWriter::new(Vec::new());
        tar.entry(&rbuild_layer::TarEntry::plain_file(name, 0)).unwrap();
        tar.finish().unwrap()
    };
    let (copied, made) = (layer("copied-by-buildkit"), layer("made-by-buildkit"));
    let digests: Vec<String> =
        base.iter().cloned().chain([&copied, &made].map(|bytes| BlobDigest::of(bytes).to_string())).collect();
    let layers = digests.iter().enumerate().map(|(at, blob)| json!({"blob": blob, "parent": at as i64 - 1}));
    let layers: Vec<Value> = layers.collect();
    let config = json!({"layers": layers, "records": [
        {"digest": from},
        {"digest": content},
        {"digest": copy, "inputs": [[{"link": 0}], [{"link": 1}]], "layers": [{"layer": base.len()}]},
        {"digest": run, "inputs": [[{"selector": of("/".into()), "link": 2}]], "layers": [{"layer": base.len() + 1}]},
    ]});
    let config = config.to_string().into_bytes();
    let described = digests.iter().map(|digest| {
        let size = [&copied, &made].into_iter().find(|bytes| BlobDigest::of(bytes).to_string() == *digest);
        json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest,
            "size": size.map_or(1, |bytes| bytes.len()), "annotations": {"containerd.io/uncompressed": digest}})
    });
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.buildkit.cacheconfig.v0",
            "digest": BlobDigest::of(&config).to_string(), "size": config.len()},
        "layers": described.collect::<Vec<_>>()});
    let manifest = manifest.to_string().into_bytes();
    let index = json!({"schemaVersion": 2, "manifests": [{"digest": BlobDigest::of(&manifest).to_string(),
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "latest"}}]});
    let cache = lab.path("cache");
    std::fs::create_dir_all(cache.join("blobs/sha256")).unwrap();
    std::fs::write(cache.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
    std::fs::write(cache.join("index.json"), index.to_string()).unwrap();
    for bytes in [&config, &manifest, &copied, &made] {
        std::fs::write(cache.join("blobs/sha256").join(BlobDigest::of(bytes).hex()), bytes).unwrap();
    }
    let source = from_required(&cache);
    let tar = lab.path("x.tar");
    let output = format!("type=tar,dest={}", tar.display());
    let build =
        |file: &str, args: &[&str]| lab.build(file, &[&["-o", &output, "--cache-from", &source], args].concat()).ok();
    let ran = build("FROM other\nCOPY src/a /a\nRUN echo hi > /b\nRUN test $(stat -c %a /) = 711\n", &[]);
    assert_eq!(ran.steps(), (1, 2), "{}", ran.stderr);
    let listing = crate::lab::listing(&std::fs::read(&tar).unwrap()).join("\n");
    assert!(listing.contains("copied-by-buildkit") && listing.contains("made-by-buildkit"), "{listing}");
    for other in [
        "FROM other\nCOPY src/a /b\nRUN echo hi > /b\n",
        "FROM other\nRUN echo hi > /b\n",
        "FROM other\nCOPY --chmod=600 src/a /a\nRUN echo hi > /b\n",
    ] {
        assert_eq!(build(other, &[]).steps().1, 0, "{other}");
    }
    lab.rbuild(["fsck"]).ok();
}

fn from_required(cache: &Path) -> String {
    from(cache, ",required")
}
