//! Layers written by other tools: devices, and layers that refer to lower layers. Such a layer has
//! files in directories without an entry, whiteouts and files below links of a lower layer, and
//! hard links to files of lower layers.

use crate::forge::{Forged, Layer};
use crate::lab::{Lab, contents};

/// Creates an image `leaning` whose lowest layer is a whole root directory, and whose second layer
/// has single entries only.
fn scene() -> Lab {
    let lab = Lab::new();
    lab.sh(r#"set -e; mkdir -p low/usr/bin/deep low/tmp low/var/lib/db low/hidden/in up/bin/deep up/tmp up/hidden/in up/new/dir up/var/lib/db
        ln -s usr/bin low/bin; ln -s /usr/bin/deep low/usr/deep
        echo tool > low/usr/bin/tool; echo old > low/usr/bin/old; echo data > low/var/lib/db/data; echo x > low/hidden/in/x
        chmod 1777 low/tmp; chmod 700 low/usr/bin/deep; chmod 750 low/var/lib/db; chmod 711 low/hidden/in low
        touch -d @1000000 low/tmp low/usr/bin/deep low/usr/bin low/var/lib/db
        echo new > up/bin/new; touch up/bin/.wh.old; echo far > up/bin/deep/far; echo t > up/tmp/t
        echo y > up/hidden/in/y; touch up/hidden/.wh..wh..opq; echo n > up/new/dir/n
        echo data > up/var/lib/db/data; ln up/var/lib/db/data up/var/lib/db/again; ln up/var/lib/db/data up/first
        tar -C low --owner=0 --group=0 --numeric-owner -cf 1.tar .
        tar -C up --owner=0 --group=0 --numeric-owner --no-recursion -cf 2.tar bin/new bin/.wh.old bin/deep/far tmp/t hidden \
            hidden/.wh..wh..opq hidden/in/y new/dir/n var/lib/db/data var/lib/db/again first
        tar -f 2.tar --delete var/lib/db/data
        d1=$(sha256sum < 1.tar | cut -c1-64); d2=$(sha256sum < 2.tar | cut -c1-64)
        echo '{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:'$d1'","sha256:'$d2'"]}}' > c.json
        echo '[{"Config":"c.json","RepoTags":["leaning:latest"],"Layers":["1.tar","2.tar"]}]' > manifest.json
        tar -cf image.tar c.json manifest.json 1.tar 2.tar && $RB load -i image.tar"#)
    .ok();
    lab
}

#[test]
fn implicit_directories_take_lower_metadata() {
    let lab = scene();
    let seen = lab.build_listing("FROM leaning\n");
    let has = |line: &str| assert!(seen.iter().any(|l| l.contains(line)), "{line} in {seen:#?}");
    for line in ["1777 0:0 tmp/", "700 0:0 usr/bin/deep/", "750 0:0 var/lib/db/"] {
        has(line);
    }
    // A hidden directory provides no metadata, and the layer itself has no entry for the directory.
    for line in ["755 0:0 hidden/in/", "755 0:0 new/dir/"] {
        has(line);
    }
    assert!(!seen.iter().any(|l| l.contains("hidden/in/x")), "{seen:#?}");
    let times = lab.sh("tar --utc -tvf $LAB/out.tar ./tmp/ tmp/ 2>/dev/null | cut -d' ' -f4-").stdout;
    assert!(times.contains("1970-01-12"), "{times}");
}

/// Most layers have no entry for the root directory, which then keeps the metadata of the layers
/// below.
#[test]
fn a_top_directory_without_an_entry_keeps_the_metadata_of_lower_layers() {
    let lab = scene();
    let mode = |base: &str| {
        let out = lab.build_local(
            &format!(
                "FROM {base} AS a\nCOPY --from=busybox /bin/busybox /busybox\nRUN [\"/busybox\", \"sh\", \"-c\", \"/busybox stat -c %a / > /mode\"]\n\
                 FROM scratch\nCOPY --from=a /mode /\n"
            ),
            &[],
        );
        std::fs::read_to_string(out.join("mode")).unwrap()
    };
    assert_eq!(mode("leaning"), "711\n");
    // The same with a layer that has no other references to lower layers.
    lab.sh(r#"set -e; mkdir -p up/top && echo t > up/top/file && tar -C up --owner=0 --group=0 --numeric-owner -cf 2.tar top
        d1=$(sha256sum < 1.tar | cut -c1-64); d2=$(sha256sum < 2.tar | cut -c1-64)
        echo '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:'$d1'","sha256:'$d2'"]}}' > c.json
        sed -i s/leaning:latest/plain:latest/ manifest.json
        tar -cf image.tar c.json manifest.json 1.tar 2.tar && $RB load -i image.tar"#)
        .ok();
    assert_eq!(mode("plain"), "711\n");
}

#[test]
fn entries_below_a_lower_symlink_are_placed_in_its_target() {
    let lab = scene();
    let out = lab.build_local("FROM leaning\n", &[]);
    assert_eq!(std::fs::read_link(out.join("bin")).unwrap().to_str(), Some("usr/bin"));
    for (path, content) in [("usr/bin/new", "new\n"), ("usr/bin/deep/far", "far\n"), ("usr/bin/tool", "tool\n")] {
        assert_eq!(std::fs::read_to_string(out.join(path)).unwrap(), content);
    }
    assert!(!out.join("usr/bin/old").exists());
    // The same if only single files are copied.
    let few = lab.build_local("FROM scratch\nCOPY --from=leaning /usr/bin/new /bin/deep/far /\n", &[]);
    assert_eq!(std::fs::read_to_string(few.join("far")).unwrap(), "far\n");
}

#[test]
fn hard_links_to_files_of_lower_layers_are_created() {
    let lab = scene();
    let out = lab.build_local("FROM leaning\n", &[]);
    let ino = |p: &str| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(out.join(p)).unwrap());
    assert_eq!(std::fs::read_to_string(out.join("first")).unwrap(), "data\n");
    assert_eq!((ino("first"), ino("var/lib/db/again")), (ino("var/lib/db/data"), ino("var/lib/db/data")));
    // A file that no layer contains is an error that names it.
    lab.sh(r#"set -e; tar -f 1.tar --delete ./var/lib/db/data; d1=$(sha256sum < 1.tar | cut -c1-64); d2=$(sha256sum < 2.tar | cut -c1-64)
        echo '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:'$d1'","sha256:'$d2'"]}}' > c.json
        tar -cf image.tar c.json manifest.json 1.tar 2.tar && $RB load -i image.tar"#)
        .ok();
    lab.build("FROM leaning\nRUN true\n", &[])
        .fails(1, &["first", "is a hard link to", "which is neither in its layer nor in a lower one"]);
    // The same with a layer that has no layer below it.
    lab.sh(r#"set -e; d2=$(sha256sum < 2.tar | cut -c1-64)
        echo '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:'$d2'"]}}' > c.json
        echo '[{"Config":"c.json","RepoTags":["lowest:latest"],"Layers":["2.tar"]}]' > manifest.json
        tar -cf image.tar c.json manifest.json 2.tar && $RB load -i image.tar"#)
        .ok();
    lab.build("FROM lowest\nRUN true\n", &[])
        .fails(1, &["first", "is a hard link to", "which is neither in its layer nor in a lower one"]);
}

#[test]
fn devices_of_a_layer_stay_devices() {
    let lab = Lab::new();
    let mut archive = tar::Builder::new(Vec::new());
    for (name, kind, numbers) in [
        ("null", tar::EntryType::Char, (1, 3)),
        ("disk", tar::EntryType::Block, (259, 7)),
        ("empty", tar::EntryType::Regular, (0, 0)),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_device_major(numbers.0).unwrap();
        header.set_device_minor(numbers.1).unwrap();
        header.set_mode(0o640);
        header.set_size(0);
        header.set_uid(0);
        header.set_gid(6);
        header.set_mtime(5);
        header.set_cksum();
        archive.append(&header, &[][..]).unwrap();
    }
    lab.write("dev.tar", archive.into_inner().unwrap());
    lab.rbuild(["import", "dev.tar", "devices"]).ok();
    // In a tar of the result, after a copy to another stage, and in the layer of an added archive.
    let devices = |dockerfile: &str| {
        lab.build(
            dockerfile,
            &["--output", "type=oci,dest=x.tar,compression=uncompressed", "-o", "type=tar,dest=y.tar"],
        )
        .ok();
        let seen = |bytes: &[u8]| -> Vec<String> {
            let mut archive = tar::Archive::new(bytes);
            let entries = archive.entries().unwrap().map_while(Result::ok);
            let lines = entries.filter_map(|e| {
                let (h, name) = (e.header(), e.path().unwrap().file_name()?.to_string_lossy().into_owned());
                let numbers = (h.device_major().ok()??, h.device_minor().ok()??);
                let wanted = ["null", "disk", "empty"].contains(&&*name);
                wanted.then(|| {
                    format!("{name} {:?} {numbers:?} {:o} {}", h.entry_type(), h.mode().unwrap(), h.gid().unwrap())
                })
            });
            lines.collect()
        };
        let layers = contents(&std::fs::read(lab.ctx().join("x.tar")).unwrap());
        let top = layers.values().find(|bytes| !seen(bytes).is_empty()).expect("a layer with the files");
        (seen(top), seen(&std::fs::read(lab.ctx().join("y.tar")).unwrap()))
    };
    let all = ["disk Block (259, 7) 640 6", "empty Regular (0, 0) 640 6", "null Char (1, 3) 640 6"];
    for dockerfile in [
        "FROM devices\n",
        "FROM busybox\nCOPY --from=devices / /put/\n",
        "FROM busybox\nADD dev.tar /put/\n",
        "FROM scratch\nADD dev.tar /\nCOPY Dockerfile /\n",
    ] {
        let (mut layer, tar) = devices(dockerfile);
        layer.sort();
        assert_eq!((layer, tar), (all.map(String::from).to_vec(), all.map(String::from).to_vec()), "{dockerfile}");
    }
}

/// The lowest layer refers to itself: the requested file is behind a symlink of the same layer, or
/// is a hard link whose target is named through such a link.
#[test]
fn partial_unpacking_follows_the_images_own_symlinks() {
    let lab = Lab::new();
    let behind = Layer::new().dir("usr").dir("usr/lib").file("usr/lib/own", "own").symlink("lib", "usr/lib");
    let hard = Layer::new().dir("usr").dir("usr/lib").file("usr/lib/f", "linked").symlink("lib", "usr/lib").dir("x");
    let images = [
        ("behind", behind.file("lib/f", "behind").gzip()),
        ("hard", hard.file("x/own", "own").hard_link("x/g", "lib/f").gzip()),
    ];
    for (name, layer) in images {
        let archive = lab.path("image.tar");
        Forged::new(vec![layer]).write_docker(&archive, &format!("{name}:latest"));
        lab.rbuild(["load", "-i", archive.to_str().unwrap()]).ok();
    }
    let out = lab.build_local("FROM scratch\nCOPY --from=behind /usr/lib /out/\nCOPY --from=hard /x /x/\n", &[]);
    let read = |path: &str| std::fs::read_to_string(out.join(path)).unwrap();
    assert_eq!([read("out/own"), read("out/f"), read("x/own"), read("x/g")], ["own", "behind", "own", "linked"]);
}
