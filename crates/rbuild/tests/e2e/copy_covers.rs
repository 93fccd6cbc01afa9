//! Copies in which one source overwrites files of another, and later copies. The content of an
//! earlier layer or tree is reused only for the source file from which it was copied.

use crate::lab::{Lab, contents};

/// Two directories, an archive and a file that all provide `f`, with the same size, and old enough
/// that file stamps are trusted.
fn scene() -> Lab {
    let lab = Lab::new();
    lab.write(".dockerignore", "Dockerfile\n.dockerignore\n").write("dir/f", "dir\n").write("dir/g", "gir\n");
    lab.write("two/f", "two\n").write("t/f", "tar\n").write("sub/dir/f", "sub\n");
    std::fs::create_dir_all(lab.path("other/dir")).unwrap();
    std::fs::write(lab.path("other/dir/f"), "oth\n").unwrap();
    lab.sh("touch -d @1000000000 */f dir/g sub/dir/f $LAB/other/dir/f && tar -C t --owner=0 --group=0 --mode=644 -cf x.tar f").ok();
    std::thread::sleep(std::time::Duration::from_millis(2100));
    lab
}

/// Alternative steps at the same position of a Dockerfile, each with the resulting content of
/// /dst/f.
const TURNS: &[&[(&str, &str)]] = &[
    &[("COPY dir <<f /dst/\nher\nf", "her"), ("COPY dir /dst/", "dir")],
    &[("ADD dir <<f /dst/\nher\nf", "her"), ("ADD dir /dst/", "dir"), ("ADD dir two /dst/", "two")],
    &[("COPY dir/f <<f /dst/\nher\nf", "her"), ("COPY dir/f /dst/", "dir")],
    &[("COPY dir <<f /dst\nher\nf", "her"), ("COPY --chmod=755 dir /dst", "dir")],
    &[("ADD dir x.tar /dst/", "tar"), ("ADD dir /dst/", "dir"), ("ADD x.tar dir /dst/", "dir")],
    &[("ADD x.tar dir /dst/", "dir"), ("ADD dir x.tar /dst/", "tar"), ("COPY dir /dst/", "dir")],
    &[("ADD dir x.tar <<f /dst/\nher\nf", "her"), ("ADD dir x.tar /dst/", "tar"), ("ADD dir /dst/", "dir")],
    &[
        ("COPY dir two /dst/", "two"),
        ("COPY dir /dst/", "dir"),
        ("COPY two dir /dst/", "dir"),
        ("COPY two /dst/", "two"),
    ],
    &[("COPY dir/f two/f /dst/", "two"), ("COPY two/f dir/f /dst/", "dir"), ("COPY dir/f /dst/", "dir")],
    &[
        ("COPY --link dir <<f /dst/\nher\nf", "her"),
        ("COPY --link dir /dst/", "dir"),
        ("COPY --link dir two /dst/", "two"),
    ],
    &[("ADD --link dir x.tar /dst/", "tar"), ("ADD --link dir /dst/", "dir")],
    &[
        ("COPY --from=src dir <<f /dst/\nher\nf", "her"),
        ("COPY --from=src dir /dst/", "dir"),
        ("COPY dir /dst/", "dir"),
    ],
    &[
        ("COPY --from=other dir <<f /dst/\nher\nf", "her"),
        ("COPY --from=other dir /dst/", "oth"),
        ("COPY dir /dst/", "dir"),
    ],
    &[("COPY --parents dir/./f <<f /dst/\nher\nf", "her"), ("COPY --parents dir/./f /dst/", "dir")],
    &[
        ("COPY --parents sub/./dir <<f /dst/dir/\nher\nf\nCOPY dir /dst/", "dir"),
        ("COPY --parents sub/./dir /dst/\nCOPY dir /dst/", "dir"),
    ],
    &[("COPY --exclude=g dir <<f /dst/\nher\nf", "her"), ("COPY --exclude=g dir /dst/", "dir")],
];

#[test]
fn a_file_that_is_no_longer_overwritten_has_its_own_content() {
    let lab = scene();
    let head = "FROM scratch AS src\nCOPY . /\nFROM busybox\n";
    let other = format!("other={}", lab.path("other").display());
    let tar = lab.path("out.tar").display().to_string();
    let outputs: [&[&str]; 4] = [
        &["-t", "x"],
        &["-o", &format!("type=tar,dest={tar}")],
        &["-o", &format!("type=oci,dest={tar}")],
        &["-o", &format!("type=docker,dest={tar}")],
    ];
    for (number, output) in outputs.iter().enumerate() {
        for turns in TURNS {
            for (step, want) in turns.iter() {
                let file = format!("{head}{step}\n");
                let args = [&["--build-context", &other], *output].concat();
                lab.build(&file, &args).ok();
                let files = match number {
                    0 => contents(&lab.top_layer_tar("x")),
                    1 => contents(&std::fs::read(&tar).unwrap()),
                    // Layers are identified by their content among the archive's blobs.
                    _ => contents(&std::fs::read(&tar).unwrap())
                        .into_values()
                        .map(|blob| contents_if_tar(&blob))
                        .find(|files| files.contains_key("dst/f"))
                        .unwrap(),
                };
                let got = String::from_utf8_lossy(&files["dst/f"]);
                assert_eq!(got.trim(), *want, "{output:?}\n{step}\nof {turns:?}");
            }
        }
        lab.rbuild(["prune", "-a"]).ok();
        lab.rbuild(["import", crate::lab::base("busybox.tar").to_str().unwrap(), "busybox"]).ok();
    }
}

fn contents_if_tar(blob: &[u8]) -> std::collections::HashMap<String, Vec<u8>> {
    let plain = if blob.starts_with(&[0x1f, 0x8b]) { crate::lab::unzipped(blob) } else { blob.to_vec() };
    if plain.get(257..262) == Some(b"ustar") { contents(&plain) } else { Default::default() }
}

/// The same for commands, later copies and outputs of directories.
#[test]
fn a_second_copy_contains_the_files_of_its_own_sources() {
    let lab = scene();
    let head = "FROM scratch AS src\nCOPY . /\nFROM busybox\n";
    let other = format!("other={}", lab.path("other").display());
    for turns in TURNS {
        for (step, want) in turns.iter() {
            let file = format!("{head}{step}\nRUN [ \"$(cat /dst/f)\" = {want} ]\n");
            lab.build(&file, &["--build-context", &other]).ok();
            let out = lab.build_local(&format!("{head}{step}\n"), &["--build-context", &other]);
            let got = std::fs::read_to_string(out.join("dst/f")).unwrap();
            assert_eq!(got.trim(), *want, "{step}\nof {turns:?}");
        }
    }
}

/// Files with several hard links, one of which is overwritten by another file of the same step.
#[test]
fn hard_links_are_not_extended_to_an_overwriting_file() {
    let lab = scene();
    lab.sh(
        "mkdir h h2 && echo -n one > h/a && ln h/a h/b && ln h/a h2/c && echo -n 222 > h2/a && tar -C h2 -cf h.tar a",
    )
    .ok();
    for (step, wanted) in [
        ("COPY h h2/a h2/c /dst/", [("a", "222"), ("b", "one"), ("c", "one")]),
        ("COPY h/a h2 h/b /dst/", [("a", "222"), ("b", "one"), ("c", "one")]),
        ("ADD h h.tar h2/c /dst/", [("a", "222"), ("b", "one"), ("c", "one")]),
        ("ADD h/a h.tar h2/c h/b /dst/", [("a", "222"), ("b", "one"), ("c", "one")]),
        ("COPY h h2/c <<a /dst/\n222\na", [("a", "222"), ("b", "one"), ("c", "one")]),
    ] {
        let out = lab.build_local(&format!("FROM busybox\n{step}\n"), &[]);
        for (name, want) in wanted {
            let got = std::fs::read_to_string(out.join("dst").join(name)).unwrap();
            assert_eq!(got.trim(), want, "{name} of {step}");
        }
    }
}

/// An archive replaces a directory that an earlier source of the same ADD copied.
#[test]
fn directories_that_an_archive_replaced_are_not_modified() {
    let lab = Lab::new();
    lab.sh(
        "mkdir -p d6/a/s/t m; cd m; for to in /real ../real /nowhere; do ln -sfn $to a; tar -cf ../l$(echo $to | tr -d /.).tar a; done; \
         rm a; echo x > a; tar -cf ../t.tar a; rm a; mkdir -p a/s; ln -s /real a/s/t; tar -cf ../deep.tar a; cd ..; \
         touch -d @1000000000 d6/a/s/t d6/a/s d6/a d6",
    )
    .ok();
    let base =
        "FROM busybox AS base\nRUN mkdir -p /real/s/t && touch -d @1500000000 /real/s/t /real/s /real\nFROM base\n";
    for (sources, shown) in [
        ("d6 lreal.tar", "/w/a"),
        ("d6 lnowhere.tar", "/w/a"),
        ("d6 t.tar", "/w/a"),
        ("d6 deep.tar", "/w/a\n/w/a/s\n/w/a/s/t"),
    ] {
        for flags in ["", "--link ", "--chown=3:4 "] {
            let file = format!(
                "{base}ADD {flags}{sources} /w/\nRUN stat -c %Y /real/s/t /real/s /real > /o; find /w/* | sort > /names\n"
            );
            let out = lab.build_local(&file, &[]);
            let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
            assert_eq!(read("o"), "1500000000\n".repeat(3), "{flags}{sources}");
            assert_eq!(read("names").trim_end(), shown, "{flags}{sources}");
        }
    }
    // Files that are not replaced have the times of the source.
    let out = lab.build_local("FROM busybox\nADD d6 deep.tar /w/\nRUN stat -c %Y /w/a/s/t > /o; true\n", &[]);
    assert!(out.join("o").exists());
}
