//! `cp` from images.

use crate::lab::Lab;

#[test]
fn cp_copies_files_out_of_images() {
    let lab = Lab::new();
    lab.build(
        "FROM busybox\nRUN mkdir -p /d/sub && echo f > /d/f && echo g > /d/sub/g && ln -s f /d/link && ln -s /d /way\n",
        &["-t", "x:1"],
    )
    .ok();
    let cp = |from: &str, to: &str| lab.rbuild(["cp", from, lab.path(to).to_str().unwrap()]);
    cp("x:1:/d/f", "file").ok();
    assert_eq!(lab.read("file"), "f\n");
    std::fs::create_dir(lab.path("dir")).unwrap();
    cp("x:1:/d/f", "dir").ok();
    cp("x:1:/way/sub/g", "dir/").ok();
    assert_eq!((lab.read("dir/f"), lab.read("dir/g")), ("f\n".into(), "g\n".into()));
    // A directory is copied under its own name into an existing one; into a new directory, or with
    // `/.`, only its contents are copied.
    cp("x:1:/d", "dir").ok();
    assert_eq!(lab.read("dir/d/sub/g"), "g\n");
    cp("x:1:/d", "new").ok();
    cp("x:1:/d/.", "dir").ok();
    assert_eq!((lab.read("new/f"), lab.read("dir/sub/g")), ("f\n".into(), "g\n".into()));
    // Links are copied as links, unless requested otherwise.
    cp("x:1:/d/link", "link").ok();
    assert!(lab.path("link").symlink_metadata().unwrap().is_symlink());
    lab.rbuild(["cp", "-L", "x:1:/d/link", lab.path("real").to_str().unwrap()]).ok();
    assert_eq!(lab.read("real"), "f\n");
    let listed = lab.sh("$RB cp x:1:/d - | tar -t | sort").ok().stdout;
    assert_eq!(listed, "d/\nd/f\nd/link\nd/sub/\nd/sub/g\n");
    cp("x:1:/none", "n").fails(1, &["`/none` does not exist in the image", "list the files with"]);
    cp("x:1:/way/sbu", "n").fails(1, &["`/way/sbu` does not exist in the image", "did you mean `/way/sub`?"]);
    cp("x:1:/d/f", "missing/").fails(1, &["does not exist"]);
    cp("y:/d", "n").fails(1, &["image or container `y` not found", "rbuild pull y"]);
    cp("x:1:d", "n").fails(2, &["is not IMAGE:/path", "write x:1:/d"]);
    lab.rbuild(["cp", "file", "x:1:/d"]).fails(2, &["files are copied into running containers only, not into images"]);
    // A container keeps its image alive until it is removed.
    let id = lab.rbuild(["create", "--name", "c", "x:1", "sleep", "1"]).ok().stdout;
    lab.rbuild(["create", "--name", "c", "x:1"]).fails(1, &["container name `c` is already in use"]);
    lab.rbuild(["rmi", "-f", "x:1"]).ok();
    lab.rbuild(["prune"]).ok();
    cp("c:/d/f", "again").ok();
    cp(&format!("{}:/d/f", &id[..12]), "again2").ok();
    lab.rbuild(["rm", "c"]).ok();
    lab.rbuild(["rm", "c"]).fails(1, &["container `c` not found"]);
    lab.rbuild(["rm", "-f", "c"]).ok();
}

#[test]
fn cp_names_the_damage_of_an_image() {
    let lab = Lab::new();
    lab.sh("cd $RBUILD_ROOT/blobs/sha256; id=$($RB inspect -f '{{.Id}}' busybox); f=${id#sha256:}; \
         printf X | dd of=$f bs=1 seek=3 conv=notrunc status=none")
        .ok();
    let failed = lab.rbuild(["cp", "busybox:/etc/passwd", "."]);
    let failed = failed.fails(1, &["its digest is sha256:", "fsck --repair"]);
    assert!(!failed.stderr.contains("did you mean"), "{}", failed.stderr);
}

#[test]
fn cp_of_an_unknown_container_suggests_a_similar_one() {
    let lab = Lab::new();
    lab.rbuild(["create", "--name", "website", "busybox"]).ok();
    lab.rbuild(["cp", "websit:/etc", "-"])
        .fails(1, &["image or container `websit` not found", "hint: did you mean `website`?"]);
}
