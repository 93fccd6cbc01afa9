use crate::lab::{Lab, base, contents, listing};

#[test]
fn save_is_deterministic_and_can_be_loaded() {
    let lab = Lab::new();
    lab.write("f", "x");
    lab.build("FROM busybox\nCOPY f /f\n", &["-t", "a:1", "-t", "b:2"]).ok();
    let (one, two) = (lab.path("1.tar"), lab.path("2.tar"));
    lab.rbuild(["save", "-o", one.to_str().unwrap(), "a:1", "b:2", "busybox"]).ok();
    lab.rbuild(["save", "-o", two.to_str().unwrap(), "a:1", "b:2", "busybox"]).ok();
    assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap(), "saved twice, different bytes");
    let id = lab.rbuild(["images", "-q", "--no-trunc", "a"]).ok().stdout;
    let other = Lab::bare();
    let loaded = other.sh(&format!("gzip -c {} | $RB load", one.display())).ok();
    for name in ["Loaded image: a:1", "Loaded image: b:2", "Loaded image: busybox:latest"] {
        assert!(loaded.stdout.contains(name), "{}", loaded.stdout);
    }
    assert_eq!(other.rbuild(["images", "-q", "--no-trunc", "a"]).ok().stdout, id);
    other.build("FROM b:2\nRUN test -f /f\n", &[]).ok();
    let oci = lab.path("oci.tar");
    lab.rbuild(["save", "--format", "oci-archive", "-o", oci.to_str().unwrap(), "a:1"]).ok();
    let names: Vec<String> = contents(&std::fs::read(&oci).unwrap()).into_keys().collect();
    assert!(names.contains(&"oci-layout".to_string()) && !names.contains(&"manifest.json".to_string()));
    assert_eq!(Lab::bare().rbuild(["load", "-i", oci.to_str().unwrap()]).ok().stdout, "Loaded image: a:1\n");
}

#[test]
fn import_applies_changes_to_the_configuration() {
    let lab = Lab::bare();
    let tar = base("busybox.tar");
    let tar = tar.to_str().unwrap();
    let id =
        lab.rbuild(["import", "-c", "CMD [\"x\"]", "-c", "ENV A=b", "-m", "my message", tar, "me/b:1"]).ok().stdout;
    let json: serde_json::Value = serde_json::from_str(&lab.rbuild(["inspect", "me/b:1"]).ok().stdout).unwrap();
    assert_eq!(json[0]["Id"], id.trim());
    assert_eq!(json[0]["Config"]["Cmd"][0], "x");
    assert!(json[0]["Config"]["Env"].as_array().unwrap().iter().any(|e| e == "A=b"));
    assert!(lab.rbuild(["history", "me/b:1"]).ok().stdout.contains("my message"));
    lab.sh(&format!("bzip2 -c {tar} | $RB import - from-bz")).ok();
    lab.build("FROM from-bz\nRUN true\n", &[]).ok();
    lab.rbuild(["import", "-c", "RUN x", tar])
        .fails(1, &["--change `RUN x`: this instruction cannot change an image", "hint: use CMD, "]);
}

#[test]
fn tag_and_rmi_add_and_remove_names() {
    let lab = Lab::new();
    lab.rbuild(["tag", "busybox", "other:1"]).ok();
    let id = lab.rbuild(["images", "-q", "other"]).ok().stdout.trim().to_string();
    assert_eq!(id.len(), 12);
    lab.rbuild(["rmi", &id]).fails(1, &["has names in several repositories", "with -f"]);
    assert_eq!(lab.rbuild(["rmi", "busybox"]).ok().stdout, "Untagged: busybox:latest\n");
    let last = lab.rbuild(["rmi", "other:1"]).ok().stdout;
    assert!(last.starts_with("Untagged: other:1\nDeleted: sha256:"), "{last}");
    lab.rbuild(["rmi", "other:1"]).fails(1, &["image `other:1` not found"]);
    assert_eq!(std::fs::read_dir(lab.store().join("blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn an_image_stored_in_two_forms_is_listed_once() {
    let lab = Lab::new();
    let file = "FROM busybox\nCMD [\"x\"]\n";
    let env = [("SOURCE_DATE_EPOCH", "1000")];
    lab.write("Dockerfile", file);
    for output in [&["-t", "one"][..], &["-o", "type=oci,dest=x.tar"]] {
        lab.run_with(&mut lab.command([&["build"], output].concat()), &env).ok();
    }
    let listed = lab.rbuild(["images"]).ok().stdout;
    assert!(listed.lines().count() == 3 && !listed.contains("<none>"), "{listed}");
    assert_eq!(lab.rbuild(["images", "--filter", "dangling=true", "-q"]).ok().stdout, "");
}

#[test]
fn prune_removes_unreferenced_content() {
    let lab = Lab::new();
    lab.write("f", "x");
    lab.build("FROM busybox\nCOPY f /f\nRUN --mount=type=cache,target=/c touch /c/x\n", &["-t", "keep"]).ok();
    lab.build("FROM busybox\nRUN echo other > /x\n", &["-t", "keep"]).ok();
    assert!(lab.rbuild(["prune"]).ok().stdout.contains("Removed 1 image,"));
    let df = lab.rbuild(["df"]).ok().stdout;
    assert!(df.contains("Images") && df.contains("Cache mounts"), "{df}");
    let all = lab.rbuild(["prune", "-a"]).ok().stdout;
    assert!(all.contains("1 cache mount"), "{all}");
    assert_eq!(std::fs::read_dir(lab.store().join("trees")).unwrap().count(), 0);
    // The named images still work.
    lab.build("FROM keep\nRUN test -f /x\n", &[]).ok();
}

#[test]
fn one_build_can_write_outputs_of_all_types() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN echo x > /x\n");
    let p = |n: &str| lab.path(n).display().to_string();
    let outputs = [
        format!("type=oci,dest={}", p("o.tar")),
        format!("type=docker,dest={}", p("d.tar")),
        format!("type=tar,dest={}", p("t.tar")),
        p("dir"),
    ];
    let mut args = vec!["build", "-t", "x:1"];
    outputs.iter().for_each(|o| args.extend(["-o", o]));
    let iid = p("iid");
    args.extend(["--iidfile", &iid]);
    lab.rbuild(args).ok();
    assert!(lab.read("dir/x") == "x\n");
    assert!(listing(&std::fs::read(lab.path("t.tar")).unwrap()).iter().any(|l| l.ends_with(" x")));
    let docker = contents(&std::fs::read(lab.path("d.tar")).unwrap());
    let manifest: serde_json::Value = serde_json::from_slice(&docker["manifest.json"]).unwrap();
    assert_eq!(manifest[0]["RepoTags"][0], "x:1");
    let id = lab.read("iid");
    assert_eq!(manifest[0]["Config"].as_str().unwrap().rsplit('/').next(), id.strip_prefix("sha256:"));
    assert!(contents(&std::fs::read(lab.path("o.tar")).unwrap()).contains_key("index.json"));
    let piped = lab.sh("\"$RB\" build -o - | tar -t | grep -cx x").ok();
    assert_eq!(piped.stdout, "1\n");
    // Merging keeps existing files, and a partly written file is never visible.
    std::fs::write(lab.path("dir/mine"), "kept").unwrap();
    lab.rbuild(["build", "-o", &p("dir")]).ok();
    assert_eq!(lab.read("dir/mine"), "kept");
}

#[test]
fn equal_inputs_give_equal_images_with_source_date_epoch() {
    let build = |lab: &Lab| {
        lab.write("d/f", "x");
        let f = std::fs::File::options().write(true).open(lab.ctx().join("d/f")).unwrap();
        f.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(5)).unwrap();
        for path in ["d", "d/f"] {
            let mode = if path == "d" { 0o755 } else { 0o644 };
            std::fs::set_permissions(lab.ctx().join(path), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        }
        lab.build("FROM scratch\nCOPY d/f /f\nENV A=b\n", &["-q", "--build-arg", "SOURCE_DATE_EPOCH=100"]).ok().stdout
    };
    let (one, two) = (Lab::bare(), Lab::bare());
    let first = build(&one);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(first, build(&two));
}

#[test]
fn format_and_filter_work_as_in_docker() {
    let lab = Lab::new();
    lab.build("FROM busybox\nLABEL team=a\nENV K=V\nCMD [\"run\", \"it\"]\n", &["-t", "app:1", "-t", "app:2"]).ok();
    let out = |args: &[&str]| lab.rbuild(args.iter().copied()).ok().stdout;
    assert_eq!(out(&["images", "--format", "{{.Repository}}:{{.Tag}}", "app"]), "app:1\napp:2\n");
    let table = out(&["images", "--format", "table {{.Repository}}\\t{{.Tag}}", "-f", "reference=app:*"]);
    assert_eq!(table, "REPOSITORY   TAG\napp          1\napp          2\n");
    assert_eq!(out(&["images", "-q", "--filter", "label=team=b"]), "");
    assert_eq!(out(&["images", "--format", "{{.Tag}}", "--filter", "label=team"]), "1\n2\n");
    assert_eq!(out(&["images", "--filter", "dangling=true", "-q"]), "");
    let json: serde_json::Value = serde_json::from_str(out(&["images", "--format", "json", "busybox"]).trim()).unwrap();
    assert_eq!((json["Repository"].as_str(), json["Tag"].as_str()), (Some("busybox"), Some("latest")));
    let inspect = |format: &str| out(&["inspect", "-f", format, "app:1"]);
    assert_eq!(inspect("{{json .Config.Cmd}} {{index .Config.Labels \"team\"}}"), "[\"run\",\"it\"] a\n");
    assert_eq!(inspect("{{range .Config.Env}}{{println .}}{{end}}").lines().nth(1), Some("K=V"));
    assert_eq!(inspect("{{.Config.Entrypoint}}{{.Config.User}}|{{len .RootFS.Layers}}"), "[]|1\n");
    assert_eq!(inspect("{{.Config.Volumes}} {{json .Config.OnBuild}} {{.Config.Healthcheck}}"), "map[] null <nil>\n");
    assert_eq!(inspect("{{.Id}}").len(), 72);
    assert_eq!(out(&["history", "--format", "{{.CreatedBy}}", "app:1"]).lines().next(), Some("CMD [\"run\" \"it\"]"));
    lab.rbuild(["inspect", "-f", "{{.Confg}}", "app:1"]).fails(2, &["did you mean `Config`"]);
    assert_eq!(out(&["images", "-q", "--filter", "until=24h"]), "");
    lab.write("Dockerfile", "FROM scratch\nLABEL old=1\n");
    lab.run_with(&mut lab.command(["build", "-t", "old"]), &[("SOURCE_DATE_EPOCH", "1")]).ok();
    assert_eq!(out(&["images", "--format", "{{.Repository}}", "--filter", "until=24h"]), "old\n");
    lab.rbuild(["images", "-f", "until=x"]).fails(2, &["`x` is not a duration"]);
    lab.rbuild(["images", "-f", "nothing=x"]).fails(2, &["unknown filter"]);
}

#[test]
fn fsck_finds_and_repairs_damage() {
    let lab = Lab::new();
    lab.build("FROM busybox\nRUN echo x > /f\n", &["-t", "x"]).ok();
    let report = lab.rbuild(["fsck"]).ok().stdout;
    assert!(report.contains(": 0 problems"), "{report}");
    lab.rbuild(["inspect", "--verify", "x"]).ok();
    // Corrupts one byte of the layer that only `x` uses.
    lab.sh(
        "cd $RBUILD_ROOT/blobs/sha256; l=$($RB inspect -f '{{index .RootFS.Layers 1}}' x); \
         f=$(grep -l \"$l\" ../../trees/*/layer-*.json); d=$(sed 's/.*\"digest\":\"sha256:\\([0-9a-f]*\\)\".*/\\1/' $f); \
         printf X | dd of=$d bs=1 seek=30 conv=notrunc status=none",
    )
    .ok();
    lab.rbuild(["inspect", "--verify", "x"]).fails(1, &["layer"]);
    lab.rbuild(["fsck"]).fails(1, &["is corrupt", "image `x:latest` is incomplete", "fsck --repair"]);
    let repaired = lab.rbuild(["fsck", "--repair"]).ok();
    assert!(repaired.stderr.contains("hint: pull, load or build the images again"), "{}", repaired.stderr);
    assert!(!lab.rbuild(["fsck", "--repair"]).ok().stderr.contains("hint"));
    assert!(lab.rbuild(["fsck"]).ok().stdout.contains(": 0 problems"));
    lab.rbuild(["inspect", "x"]).fails(1, &["image `x` not found"]);
    // The lost layer is built again.
    lab.build("FROM busybox\nRUN echo x > /f\n", &["-t", "x"]).ok();
    lab.rbuild(["inspect", "--verify", "x"]).ok();
}

#[test]
fn an_image_without_its_configuration_blob_is_rebuilt() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN echo x > /f\n";
    lab.build(file, &["-t", "x"]).ok();
    lab.sh("c=$($RB inspect -f '{{.Id}}' x); echo >> $RBUILD_ROOT/blobs/sha256/${c#sha256:}").ok();
    lab.rbuild(["fsck", "--repair"]).ok();
    lab.build(file, &["-t", "x"]).ok();
    lab.rbuild(["inspect", "--verify", "x"]).ok();
}

#[test]
fn an_image_receives_all_of_its_names_atomically() {
    let lab = Lab::new();
    let names: Vec<String> = (0..40).map(|n| format!("many:{n}")).collect();
    let args: Vec<&str> = names.iter().flat_map(|name| ["-t", name]).collect();
    lab.write("Dockerfile", "FROM busybox\nRUN echo x > /f\n");
    let mut build = lab.command(["build", "-q"].into_iter().chain(args)).spawn().unwrap();
    let index = lab.store().join("index.json");
    let mut seen = std::collections::BTreeSet::new();
    while build.try_wait().unwrap().is_none() {
        seen.insert(std::fs::read_to_string(&index).unwrap().matches("many:").count());
    }
    assert!(build.wait().unwrap().success());
    seen.insert(std::fs::read_to_string(&index).unwrap().matches("many:").count());
    assert_eq!(Vec::from_iter(seen), [0, 40]);
}

#[test]
fn an_image_in_use_by_a_container_is_removed_only_with_force() {
    let lab = Lab::new();
    lab.build("FROM busybox\nLABEL a=b\n", &["-t", "used"]).ok();
    lab.rbuild(["create", "--name", "holds", "used"]).ok();
    lab.rbuild(["rmi", "used"]).fails(1, &["image `used` is used by container `holds`", "rbuild rm holds", "-f"]);
    // Another name can be removed, and with -f the last one, too; the content remains.
    lab.rbuild(["tag", "used", "other"]).ok();
    assert_eq!(lab.rbuild(["rmi", "other"]).ok().stdout, "Untagged: other:latest\n");
    assert_eq!(lab.rbuild(["rmi", "-f", "used"]).ok().stdout, "Untagged: used:latest\n");
    lab.rbuild(["prune"]).ok();
    lab.sh("$RB cp holds:/bin/busybox - | tar -t").ok();
    lab.rbuild(["rm", "holds"]).ok();
}

/// Steps depend on the files of their base image and on the parts of its configuration that they
/// use.
#[test]
fn a_changed_base_configuration_reruns_only_dependent_steps() {
    let lab = Lab::new();
    lab.write("f", "f");
    let file = "FROM base\nRUN echo \"$V in $(pwd)\" > /k\nCOPY f /g\n";
    let more = "FROM busybox\nCOPY --from=base /base /b\nRUN --mount=from=base,target=/m cp /m/base /c\n";
    let base = |line: &str| lab.build(&format!("FROM busybox\nCOPY f /base\n{line}\n"), &["-t", "base"]).ok();
    base("LABEL v=1");
    assert_eq!(lab.build(file, &["-t", "x"]).ok().steps(), (2, 0));
    assert_eq!(lab.build(more, &["-t", "y"]).ok().steps(), (2, 0));
    for (line, ran, label) in [
        ("LABEL v=2", (0, 2), "2"),
        ("LABEL v=2 w=3\nCMD [\"x\"]\nEXPOSE 80", (0, 2), "2"),
        ("ENV V=v", (2, 0), "<no value>"),
        ("USER 0:0\nLABEL v=5", (2, 0), "5"),
    ] {
        base(line);
        let made = lab.build(file, &["-t", "x", "--explain"]).ok();
        assert_eq!(made.steps(), ran, "{line}: {}", made.stderr);
        let shown = lab.rbuild(["inspect", "--format", "{{.Config.Labels.v}}", "x"]).ok().stdout;
        assert_eq!(shown.trim(), label, "{line}");
        let history = lab.rbuild(["history", "--no-trunc", "x"]).ok().stdout;
        assert!(history.contains(line.lines().next().unwrap().split(' ').next().unwrap()), "{line}: {history}");
        assert_eq!(lab.build(more, &["-t", "y"]).ok().steps(), (0, 2), "{line}");
    }
    lab.rbuild(["fsck"]).ok();
}

#[test]
fn save_exclude_omits_layers_of_the_receiver() {
    let lab = Lab::new();
    lab.sh("dd if=/dev/urandom of=big bs=1M count=3 2>/dev/null").ok();
    lab.build("FROM busybox\nCOPY big /\n", &["-t", "base:1"]).ok();
    lab.build("FROM base:1\nRUN echo small > /small\n", &["-t", "app:1"]).ok();
    lab.sh("$RB save -o base.tar base:1; $RB save -o whole.tar app:1; $RB save -o part.tar --exclude base:1 app:1; \
            $RB save -o since.tar --since base.tar app:1; $RB save --format oci -o layout app:1")
        .ok();
    let size = |name: &str| lab.ctx().join(name).metadata().unwrap().len();
    assert!(size("whole.tar") > 3 << 20 && size("part.tar") < 100_000, "{}", size("part.tar"));
    assert_eq!(size("part.tar"), size("since.tar"));
    let other = |args: &str| lab.sh(&format!("RBUILD_ROOT=$LAB/other $RB {args}"));
    // Without the base, the error names the missing layers, and nothing incomplete is kept.
    other("load -i part.tar")
        .fails(1, &["2 layers are missing from the archive and the store: sha256:", "load the base image first"]);
    assert_eq!(other("images -q").ok().stdout, "");
    other("load -i base.tar").ok();
    assert_eq!(other("load -i part.tar").ok().stdout, "Loaded image: app:1\n");
    other("inspect --verify app:1").ok();
    assert_eq!(other("cp app:1:/small - | tar -xO").ok().stdout, "small\n");
    lab.sh("RBUILD_ROOT=$LAB/other $RB prune -a").ok();
    assert_eq!(lab.sh("RBUILD_ROOT=$LAB/third $RB load -i layout").ok().stdout, "Loaded image: app:1\n");
    lab.build("FROM app:1\n", &["-o", "type=oci,dest=direct,tar=false", "-t", "d:1"]).ok();
    assert!(lab.ctx().join("direct/index.json").is_file());
}

#[test]
fn mode_delete_mirrors_the_result_into_a_directory() {
    let lab = Lab::bare();
    lab.write("src/sub/a", "1").write("src/b", "2").write("src/was-dir", "3");
    lab.write("out/old", "x").write("out/sub/old", "x").write("out/was-dir/x", "y").write("out/b/deep", "z");
    let file = "FROM scratch\nCOPY src /\n";
    lab.build(file, &["-o", "type=local,dest=out,mode=delete"]).ok();
    assert_eq!(lab.sh("cd out && find . -type f | sort | xargs").ok().stdout, "./b ./sub/a ./was-dir\n");
    // Elsewhere only with an entitlement: above, next to it, the working directory itself, and
    // through a link.
    let outside = lab.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("mine"), "").unwrap();
    std::os::unix::fs::symlink(&outside, lab.ctx().join("link")).unwrap();
    for dest in ["..", "../outside", ".", "link", "out/../.."] {
        let output = format!("type=local,dest={dest},mode=delete");
        lab.build(file, &["-o", &output]).fails(2, &["outside the working directory", "--allow local.delete"]);
    }
    assert!(outside.join("mine").exists());
    lab.build(file, &["-o", "type=local,dest=../outside,mode=delete", "--allow", "local.delete"]).ok();
    assert!(!outside.join("mine").exists() && outside.join("b").exists());
    lab.build(file, &["-o", "type=tar,dest=x,mode=delete"]).fails(2, &["mode=delete requires type=local"]);
}

#[test]
fn limit_raises_and_lowers_archive_limits_by_name() {
    let lab = Lab::new();
    let build = |args: &[&str]| lab.build("FROM busybox\nRUN true\n", args);
    let lowered = build(&["--limit", "entries=3"]);
    lowered.fails(1, &["more than 3 entries", "--limit entries=N"]);
    build(&["--limit", "bytes=1k"]).fails(1, &["--limit bytes=N"]);
    build(&["--limit", "entires=3"]).fails(2, &["did you mean `entries`"]);
    build(&["--limit", "entries=30000000,header=4m"]).ok();
}

/// Serves these bytes once for each path. `/moved` redirects to `/root.tar`; any other path is not
/// found.
fn web_server(content: Vec<u8>) -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut asked = [0; 2048];
            let n = connection.read(&mut asked).unwrap();
            let asked = String::from_utf8_lossy(&asked[..n]).into_owned();
            let (status, more, length, body) = match asked.split(' ').nth(1).unwrap_or("") {
                "/root.tar" => ("200 OK", "", content.len(), &content[..]),
                "/short" => ("200 OK", "", content.len(), &content[..content.len() / 2]),
                "/moved" => ("302 Found", "Location: /root.tar\r\n", 0, &[][..]),
                _ => ("404 Not Found", "", 0, &[][..]),
            };
            let head = format!("HTTP/1.1 {status}\r\n{more}Content-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(body));
        }
    });
    format!("http://{address}")
}

#[test]
fn import_downloads_urls() {
    let lab = Lab::bare();
    let server = web_server(std::fs::read(crate::lab::base("busybox.tar")).unwrap());
    let import = |path: &str| {
        let mut command = lab.command(["import", &format!("{server}{path}"), "web"]);
        ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].iter().for_each(|name| {
            command.env_remove(name);
        });
        lab.run(command)
    };
    let id = import("/moved").ok().stdout;
    assert_eq!(lab.rbuild(["images", "-q", "--no-trunc", "web"]).ok().stdout, id);
    assert!(lab.rbuild(["history", "web"]).ok().stdout.contains("Imported from http://127.0.0.1"));
    import("/nothing").fails(1, &["HTTP status 404", "check the address"]);
    import("/short").fails(1, &["the connection broke at byte"]);
    lab.rbuild(["import", "ftp://somewhere/x.tar"]).fails(2, &["only http and https"]);
    // The interrupted download left nothing behind.
    assert_eq!(lab.rbuild(["images", "-a", "-q"]).ok().stdout.lines().count(), 1);
    lab.rbuild(["fsck"]).ok();
}

/// Uncompressed layers are written straight to the output and not to the store. The image is
/// identical to the one that the store would contain.
#[test]
fn uncompressed_unnamed_images_are_streamed_to_the_output() {
    let lab = Lab::new();
    lab.write("big", vec![5u8; 3_000_000]);
    // Two steps make the same layer; a command follows only the first.
    let file = "FROM busybox\nCOPY --link big /a/big\nRUN --mount=type=cache,target=/c echo x > /x\nCOPY --link big /a/big\nCMD [\"/bin/sh\"]\n";
    let outputs = ["type=docker,dest=d.tar", "type=oci,dest=o.tar", "type=oci,dest=layout,tar=false"];
    let plain: Vec<String> = outputs.iter().map(|o| format!("{o},compression=uncompressed")).collect();
    let args: Vec<&str> = plain.iter().flat_map(|o| ["-o", o.as_str()]).chain(["--iidfile", "id"]).collect();
    lab.build(file, &args).ok();
    let id = lab.read("ctx/id");
    let stored = lab.sh("find $RBUILD_ROOT/blobs/sha256 -size +2900k | wc -l").ok().stdout;
    assert_eq!(stored.trim(), "0", "a layer is in the store, too");
    let first = std::fs::read(lab.ctx().join("d.tar")).unwrap();
    // A build from the cache has the same bytes.
    lab.build(file, &args).ok();
    assert!(std::fs::read(lab.ctx().join("d.tar")).unwrap() == first, "another archive");
    lab.sh("tar -tf d.tar > list; [ $(grep -c . list) = $(sort -u list | grep -c .) ]").ok();
    lab.sh("mkdir u && tar -xf o.tar -C u && \
         sed -i 's/,\"annotations\":{\"org.opencontainers.image.ref.name\":\"latest\"}//' layout/index.json && diff -r u layout").ok();
    // An image with a name is kept in the store and is identical.
    lab.build(file, &["-t", "named", "-o", "type=docker,dest=n.tar,compression=uncompressed"]).ok();
    assert_eq!(lab.rbuild(["images", "-q", "--no-trunc", "named"]).ok().stdout.trim(), id);
    for place in ["d.tar", "o.tar", "layout", "n.tar"] {
        let other = Lab::bare();
        let path = lab.ctx().join(place);
        other.rbuild(["load", "-q", "-i", path.to_str().unwrap()]).ok();
        assert_eq!(other.rbuild(["images", "-a", "-q", "--no-trunc"]).ok().stdout.trim(), id, "{place}");
        other.rbuild(["inspect", "--verify", &id]).ok();
    }
}

/// The content of a compressed layer of a docker-archive is verified when it is unpacked; on a
/// mismatch, nothing of it is used.
#[test]
fn a_layer_that_contradicts_its_configuration_is_rejected() {
    let lab = Lab::new();
    let load = |compress: &str| {
        lab.sh(&format!(
            r#"set -e; rm -rf f; mkdir f && echo 1 > f/a && tar -C f --owner=0 --group=0 -cf l.tar a; {compress} < l.tar > l
            echo '{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:'$(echo | sha256sum | cut -c1-64)'"]}}}}' > c.json
            echo '[{{"Config":"c.json","RepoTags":["wrong:latest"],"Layers":["l"]}}]' > manifest.json
            tar -cf image.tar c.json manifest.json l && $RB load -i image.tar"#
        ))
    };
    load("cat").fails(1, &["the image's layer `l` has diffID", "write or transfer the archive again"]);
    load("xz").fails(1, &["the image's layer `l` has diffID"]);
    for compress in ["gzip", "zstd"] {
        load(compress).ok();
        lab.rbuild(["inspect", "--verify", "wrong"]).fails(1, &["diffID"]);
        lab.build("FROM wrong\nCOPY --from=busybox /bin/busybox /\n", &["-o", "type=tar,dest=o.tar"])
            .fails(1, &["has diffID"]);
    }
}

/// The reported size of an image is that of its files, regardless of the compression, even before
/// its layers are unpacked.
#[test]
fn sizes_are_known_for_layers_of_every_compression() {
    let lab = Lab::new();
    lab.write("f/data", vec![b'x'; 3_000_000]);
    lab.sh("tar -C f --owner=0 --group=0 -cf l.tar data").ok();
    for compress in ["cat", "gzip", "zstd", "(head -c 2000000 | gzip; tail -c +1 l.tar | tail -c +2000001 | gzip)"] {
        lab.sh(&format!(
            r#"set -e; export RBUILD_ROOT=$LAB/other; {compress} < l.tar > l
            echo '{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:'$(sha256sum < l.tar | cut -c1-64)'"]}}}}' > c.json
            echo '[{{"Config":"c.json","RepoTags":["sized:latest"],"Layers":["l"]}}]' > manifest.json
            tar -cf image.tar c.json manifest.json l && $RB load -i image.tar && $RB images --format '{{{{.Size}}}}' > size
            $RB images --format '{{{{.Size}}}}' | cmp - size; rm -rf $LAB/other"#
        ))
        .ok();
        assert_eq!(std::fs::read_to_string(lab.ctx().join("size")).unwrap(), "3.01MB\n", "{compress}");
    }
}

/// Several builds that squash the same steps at the same time, and one after them.
#[test]
fn concurrent_squashed_builds_do_not_interfere() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN echo 1 > /1\nRUN seq 200 | while read n; do echo $n > /f$n; done\n");
    lab.rbuild(["build", "-t", "plain"]).ok();
    for round in 0..3 {
        let start = |n: usize| {
            let annotation = format!("round={round}.{n}");
            let mut command = lab.command(["build", "--squash", "-t", &format!("s{n}"), "--annotation", &annotation]);
            command.stderr(std::process::Stdio::piped()).spawn().unwrap()
        };
        for child in (0..4).map(start).collect::<Vec<_>>() {
            let out = child.wait_with_output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        lab.rbuild(["inspect", "--verify", "s0", "s1", "s2", "s3"]).ok();
        // Without its layers, the merged tree is packed again.
        lab.sh("rm $RBUILD_ROOT/trees/*/layer*.json $RBUILD_ROOT/results/*").ok();
    }
    assert_eq!(lab.rbuild(["run", "s3", "cat", "/1", "/f200"]).ok().stdout, "1\n200\n");
}

#[test]
fn load_of_a_truncated_archive_names_it() {
    let lab = Lab::new();
    lab.sh("cd $LAB && $RB save busybox -o a.tar && head -c 100000 a.tar > cut.tar && ! $RB load -i cut.tar 2> said")
        .ok();
    let said = lab.read("said");
    assert!(said.contains("the archive `cut.tar`: the archive ends in the middle of the content of `blobs/"), "{said}");
}
