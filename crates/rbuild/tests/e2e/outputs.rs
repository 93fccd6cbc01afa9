//! The image's configuration and manifest, compared field by field.

use serde_json::{Value, json};

use crate::lab::{Lab, base, contents};

/// Returns the configuration and the manifest of a built image.
fn documents(lab: &Lab, image: &str) -> (Value, Value) {
    let tar = lab.path("documents.tar");
    lab.rbuild(["save", "-o", tar.to_str().unwrap(), image]).ok();
    let files = contents(&std::fs::read(&tar).unwrap());
    let parse = |name: &str| serde_json::from_slice::<Value>(&files[name]).unwrap();
    let blob = |digest: &str| parse(&format!("blobs/sha256/{}", digest.trim_start_matches("sha256:")));
    let manifest = blob(parse("index.json")["manifests"][0]["digest"].as_str().unwrap());
    (blob(manifest["config"]["digest"].as_str().unwrap()), manifest)
}

const EVERYTHING: &str = r#"ARG BASE=scratch
FROM ${BASE}
MAINTAINER somebody
ARG V=1 W
ENV A=$V B="b c"
ENV A=2
LABEL one=1 two="2 3"
COPY f dir/
COPY --chown=1:2 --chmod=600 f g /there/
COPY <<EOF /inline
x
EOF
ADD f /added
WORKDIR /w
WORKDIR sub
WORKDIR /
USER 5:6
EXPOSE 90 80/udp 100-101
VOLUME /v1 "/v2"
VOLUME ["/v3"]
STOPSIGNAL SIGTERM
SHELL ["/bin/bash", "-c"]
HEALTHCHECK --interval=5m --timeout=3s --retries=2 CMD curl x
ONBUILD RUN later
CMD echo $A "q"
ENTRYPOINT ["/e", "x y"]
"#;

/// The history of [`EVERYTHING`]: the text of each entry, and true if it has no layer.
const HISTORY: [(&str, bool); 21] = [
    ("MAINTAINER somebody", true),
    ("ARG V=1 W", true),
    ("ENV A=1 B=b c", true),
    ("ENV A=2", true),
    ("LABEL one=1 two=2 3", true),
    ("COPY f dir/ # buildkit", false),
    ("COPY --chown=1:2 --chmod=600 f g /there/ # buildkit", false),
    ("COPY <<EOF /inline # buildkit", false),
    ("ADD f /added # buildkit", false),
    ("WORKDIR /w", false),
    ("WORKDIR /w/sub", false),
    ("WORKDIR /", true),
    ("USER 5:6", true),
    ("EXPOSE [100/tcp 101/tcp 80/udp 90/tcp]", true),
    ("VOLUME [/v1 /v2]", true),
    ("VOLUME [/v3]", true),
    ("STOPSIGNAL SIGTERM", true),
    ("SHELL [/bin/bash -c]", true),
    ("HEALTHCHECK {Test:[CMD-SHELL curl x] Interval:5m0s Timeout:3s StartPeriod:0s StartInterval:0s Retries:2}", true),
    ("CMD [\"/bin/bash\" \"-c\" \"echo $A \\\"q\\\"\"]", true),
    ("ENTRYPOINT [\"/e\" \"x y\"]", true),
];

#[test]
fn configuration_and_history_are_exact() {
    let lab = Lab::bare();
    lab.write("f", "x").write("g", "y");
    lab.build(EVERYTHING, &["-t", "x", "--label", "cli=last", "--build-arg", "SOURCE_DATE_EPOCH=1000000000"]).ok();
    let (config, manifest) = documents(&lab, "x");
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let time = "2001-09-09T01:46:40Z";
    assert_eq!(
        config["config"],
        json!({
            "User": "5:6",
            "ExposedPorts": { "100/tcp": {}, "101/tcp": {}, "80/udp": {}, "90/tcp": {} },
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=2", "B=b c"],
            "Entrypoint": ["/e", "x y"],
            "Cmd": ["/bin/bash", "-c", "echo $A \"q\""],
            "Healthcheck": { "Test": ["CMD-SHELL", "curl x"], "Interval": 300_000_000_000u64, "Timeout": 3_000_000_000u64, "Retries": 2 },
            "Volumes": { "/v1": {}, "/v2": {}, "/v3": {} },
            "WorkingDir": "/",
            "Labels": { "cli": "last", "one": "1", "two": "2 3" },
            "StopSignal": "SIGTERM",
            "ArgsEscaped": true,
            "OnBuild": ["RUN later"],
            "Shell": ["/bin/bash", "-c"],
        })
    );
    let outer = |key: &str| config[key].as_str().unwrap().to_string();
    assert_eq!((outer("architecture"), outer("os"), outer("author")), (arch.into(), "linux".into(), "somebody".into()));
    assert_eq!(outer("created"), time);
    assert_eq!(config["rootfs"]["type"], "layers");
    let history: Vec<(String, bool)> = config["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|h| {
            assert_eq!((h["created"].as_str(), h["comment"].as_str()), (Some(time), Some("buildkit.dockerfile.v0")));
            (h["created_by"].as_str().unwrap().to_string(), h["empty_layer"].as_bool().unwrap_or(false))
        })
        .collect();
    let want: Vec<(String, bool)> = HISTORY.iter().map(|(t, e)| (t.to_string(), *e)).collect();
    assert_eq!(history, want);
    let layers = manifest["layers"].as_array().unwrap().len();
    assert_eq!((layers, config["rootfs"]["diff_ids"].as_array().unwrap().len()), (6, 6));
}

#[test]
fn history_shows_arguments_and_unknown_configuration_keys_are_kept() {
    let lab = Lab::new();
    lab.write("f", "x");
    // A base image whose configuration has keys unknown to rbuild.
    lab.sh("$RB save -o b.tar busybox && mkdir b && tar -C b -xf b.tar && cd b && python3 - <<'P'\n\
         import json, hashlib\n\
         m = json.load(open('manifest.json'))[0]\n\
         c = json.load(open(m['Config']))\n\
         c['os.version'] = '1.2'; c['x.own'] = {'deep': [1]}; c['config']['Future'] = 'kept'\n\
         b = json.dumps(c).encode(); n = 'blobs/sha256/' + hashlib.sha256(b).hexdigest()\n\
         open(n, 'wb').write(b); m['Config'] = n; m['RepoTags'] = ['odd:1']\n\
         json.dump([m], open('manifest.json', 'w'))\nP\n\
         rm index.json oci-layout repositories; tar -cf ../odd.tar * && $RB load -i ../odd.tar")
        .ok();
    let file = "FROM odd:1\nARG foo=1\nARG bar\nRUN --mount=type=tmpfs,target=/t echo $foo\nARG foo=2\nRUN [\"echo\", \"a b\"]\n\
                RUN <<EOF\necho one\necho two\nEOF\nCOPY --from=busybox --link --exclude=x /etc/passwd /p\n";
    lab.build(file, &["-t", "x", "--build-arg", "bar=3", "--build-arg", "HTTP_PROXY=http://p"]).ok();
    let (config, _) = documents(&lab, "x");
    assert_eq!((config["os.version"].as_str(), &config["x.own"]["deep"]), (Some("1.2"), &json!([1])));
    assert_eq!(config["config"]["Future"], "kept");
    let history: Vec<&str> =
        config["history"].as_array().unwrap().iter().filter_map(|h| h["created_by"].as_str()).collect();
    assert_eq!(
        history,
        [
            "ARG foo=1",
            "ARG bar=3",
            "RUN |2 foo=1 bar=3 /bin/sh -c echo $foo # buildkit",
            "ARG foo=2",
            "RUN |2 foo=2 bar=3 echo a b # buildkit",
            "RUN |2 foo=2 bar=3 /bin/sh -c echo one\necho two\n # buildkit",
            "COPY /etc/passwd /p # buildkit",
        ]
    );
}

#[test]
fn annotations_are_on_the_manifest() {
    let lab = Lab::bare();
    lab.build("FROM scratch\n", &["-t", "x", "--annotation", "a.b=c", "--annotation", "manifest:d=e"]).ok();
    let (_, manifest) = documents(&lab, "x");
    assert_eq!(manifest["annotations"], json!({"a.b": "c", "d": "e"}));
}

#[test]
fn one_build_writes_images_in_several_forms() {
    let lab = Lab::new();
    lab.write("f", "x".repeat(100_000));
    let dest = |name: &str, rest: &str| format!("type=oci,dest={}{rest}", lab.path(name).display());
    let outputs = [
        dest("gzip.tar", ""),
        dest("zstd.tar", ",compression=zstd,compression-level=19"),
        dest("plain.tar", ",compression=uncompressed,force-compression=true"),
    ];
    let mut args = vec!["-t", "x"];
    outputs.iter().for_each(|o| args.extend(["-o", o]));
    lab.build("FROM busybox\nCOPY f /\n", &args).ok();
    let mut ids = Vec::new();
    for (name, base, own) in
        [("gzip.tar", "tar", "tar+gzip"), ("zstd.tar", "tar", "tar+zstd"), ("plain.tar", "tar", "tar")]
    {
        let files = contents(&std::fs::read(lab.path(name)).unwrap());
        let parse = |name: &str| serde_json::from_slice::<Value>(&files[name]).unwrap();
        let blob =
            |d: &Value| parse(&format!("blobs/sha256/{}", d["digest"].as_str().unwrap().trim_start_matches("sha256:")));
        let manifest = blob(&parse("index.json")["manifests"][0]);
        let types: Vec<&str> =
            manifest["layers"].as_array().unwrap().iter().filter_map(|l| l["mediaType"].as_str()).collect();
        assert_eq!(types, [base, own].map(|t| format!("application/vnd.oci.image.layer.v1.{t}")), "{name}");
        ids.push(manifest["config"]["digest"].as_str().unwrap().to_string());
        // Each output can be loaded again and has the same content.
        let run = format!(
            "RBUILD_ROOT=$LAB/{name}-store $RB load -i $LAB/{name} && printf 'FROM x\\n' | RBUILD_ROOT=$LAB/{name}-store $RB build -o $LAB/{name}-out -"
        );
        lab.sh(&run).ok();
        assert_eq!(lab.read(&format!("{name}-out/f")).len(), 100_000);
        let size = lab.sh(&format!("RBUILD_ROOT=$LAB/{name}-store $RB inspect -f '{{{{.Size}}}}' x")).ok().stdout;
        assert_eq!(size, lab.rbuild(["inspect", "-f", "{{.Size}}", "x"]).ok().stdout, "{name}");
        lab.sh(&format!("RBUILD_ROOT=$LAB/{name}-store $RB prune -a")).ok();
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "the image is the same in every form: {ids:?}");
    // The base was loaded as an uncompressed tar; its layer is compressed again for another format.
    let gz = dest("forced.tar", ",force-compression=true");
    lab.build("FROM busybox\nCOPY f /\n", &["-o", &gz]).ok();
    let listed = lab.sh("tar -xOf $LAB/forced.tar index.json | grep -c manifest").ok();
    assert!(listed.stdout.starts_with('1'));
}

/// Returns everything below the root of an image, with owners and modes, as listed in a single tar.
fn whole(lab: &Lab, image: &str) -> Vec<String> {
    let mut all = lab.build_listing(&format!("FROM {image}\n"));
    all.sort();
    all
}

const MANY_LAYERS: &str = r#"FROM busybox
RUN mkdir -p /d/sub /gone /turns && echo 1 > /d/a && ln /d/a /d/b && echo x > /gone/f && echo f > /turns/f
RUN rm -r /gone && echo 2 > /d/a && chmod 4711 /d/b && rm /bin/yes
RUN mkdir /gone && echo new > /gone/g && rm -r /turns && echo file > /turns && mknod /fifo p
RUN rm -r /d/sub /srv && mkdir /srv && chown 5:6 /d && ln -s /d /link && touch /bin/yes
ENV A=b
"#;

#[test]
fn squashed_layers_contain_the_same_files() {
    let lab = Lab::new();
    lab.build(MANY_LAYERS, &["-t", "plain"]).ok();
    let files = whole(&lab, "plain");
    let (plain, _) = documents(&lab, "plain");
    assert_eq!(plain["rootfs"]["diff_ids"].as_array().unwrap().len(), 5);
    for (flag, layers) in [("--squash", 2), ("--squash=all", 1)] {
        lab.build(MANY_LAYERS, &["-t", "squashed", flag]).ok();
        let (config, manifest) = documents(&lab, "squashed");
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), layers, "{flag}");
        assert_eq!(manifest["layers"].as_array().unwrap().len(), layers, "{flag}");
        assert_eq!(config["config"], plain["config"]);
        let history = config["history"].as_array().unwrap();
        assert_eq!(history.len(), plain["history"].as_array().unwrap().len());
        assert_eq!(history.iter().filter(|h| h["empty_layer"] != json!(true)).count(), layers, "{flag}");
        assert_eq!(whole(&lab, "squashed"), files, "{flag}");
        lab.rbuild(["inspect", "--verify", "squashed"]).ok();
        // A cached build gives the same image.
        let id = |ran: crate::lab::Ran| ran.ok().stdout;
        assert_eq!(
            id(lab.build(MANY_LAYERS, &["-q", flag])),
            id(lab.rbuild(["images", "-q", "--no-trunc", "squashed"]))
        );
    }
    // Files deleted in the base stay deleted, whatever happened in between.
    let own = lab.top_layer("squashed");
    assert!(own.iter().all(|l| !l.contains(".wh.")), "{own:?}");
}

const TWO_PLATFORMS: &str = r#"FROM --platform=$BUILDPLATFORM busybox AS build
ARG TARGETARCH
RUN echo for $TARGETARCH > /o
FROM scratch
COPY --from=build /o /o
"#;

#[test]
fn one_build_can_have_several_platforms() {
    let lab = Lab::new();
    let platforms = "linux/arm/v7,linux/amd64,linux/arm64";
    let out = lab.build_local(TWO_PLATFORMS, &["--platform", platforms]);
    for (folder, arch) in [("linux_arm_v7", "arm"), ("linux_amd64", "amd64"), ("linux_arm64", "arm64")] {
        let text = std::fs::read_to_string(out.join(folder).join("o")).unwrap();
        assert_eq!(text, format!("for {arch}\n"));
    }
    let tar = lab.path("all.tar");
    let ran =
        lab.build(TWO_PLATFORMS, &["--platform", platforms, "-o", &format!("type=tar,dest={}", tar.display())]).ok();
    assert!(ran.stderr.contains("[linux/arm/v7 build 2/2] RUN"), "{}", ran.stderr);
    let names: Vec<String> = contents(&std::fs::read(&tar).unwrap()).into_keys().collect();
    assert!(names.contains(&"linux_arm_v7/o".into()) && names.contains(&"linux_amd64/o".into()), "{names:?}");
    // A single platform gets its own directory only on request.
    let out = lab.build_local(TWO_PLATFORMS, &["--platform", "linux/arm64"]);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "for arm64\n");
    let split = format!("type=local,dest={},platform-split=true", lab.path("split").display());
    lab.build(TWO_PLATFORMS, &["--platform", "linux/arm64", "-o", &split]).ok();
    assert_eq!(lab.read("split/linux_arm64/o"), "for arm64\n");
}

/// As in docker, these refer to the index, because the digest of one image would not cover the
/// others.
#[test]
fn the_digests_of_a_build_for_several_platforms_are_those_of_the_index() {
    let lab = Lab::new();
    let archive = format!("type=oci,dest={}", lab.path("all.tar").display());
    let path = |name: &str| lab.path(name).display().to_string();
    let (meta, iid) = (path("meta"), path("iid"));
    let args = ["--platform", "linux/amd64,linux/arm64", "--metadata-file", &meta, "--iidfile", &iid, "-o", &archive];
    for names in [&["-t", "multi"][..], &[]] {
        let ran = lab.build(TWO_PLATFORMS, &[&args[..], names].concat()).ok();
        let files = contents(&std::fs::read(lab.path("all.tar")).unwrap());
        let top: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let digest = |entry: &Value| entry["digest"].as_str().unwrap().to_string();
        let index = digest(&top["manifests"][0]);
        let metadata: Value = serde_json::from_str(&lab.read("meta")).unwrap();
        assert_eq!((digest(&metadata["containerimage.descriptor"]), lab.read("iid")), (index.clone(), index.clone()));
        assert_eq!(metadata["containerimage.digest"], index.as_str());
        assert_eq!(metadata["containerimage.descriptor"]["mediaType"], "application/vnd.oci.image.index.v1+json");
        assert!(
            metadata.get("containerimage.config.digest").is_none() && ran.stderr.contains(&index[7..19]),
            "{}",
            ran.stderr
        );
        let quiet = lab.build(TWO_PLATFORMS, &[&args[..], names, &["-q"]].concat());
        assert_eq!(quiet.ok().stdout, format!("{index}\n"));
    }
}

/// In one Dockerfile, the same name may refer to an image for each of several platforms.
#[test]
fn stages_of_different_platforms_use_different_images_of_one_name() {
    let lab = Lab::new();
    let both = "FROM busybox\nARG TARGETARCH\nCOPY --chmod=644 arch-$TARGETARCH /arch\n";
    lab.write("arch-amd64", "amd64").write("arch-arm64", "arm64").write("arch-s390x", "s390x");
    lab.build(both, &["--platform", "linux/amd64,linux/arm64,linux/s390x", "-t", "both"]).ok();
    let file = "FROM --platform=linux/amd64 both AS a\nFROM --platform=linux/s390x both AS b\nFROM both\n\
                COPY --from=a /arch /a\nCOPY --from=b /arch /b\nCOPY --from=both /arch /c\n";
    let all = |out: &std::path::Path| ["a", "b", "c", "arch"].map(|f| std::fs::read_to_string(out.join(f)).unwrap());
    let out = lab.build_local(file, &["--platform", "linux/arm64"]);
    assert_eq!(all(&out), ["amd64", "s390x", "arm64", "arm64"]);
    // A named context is for the platform of the stage that uses it.
    let replaced = file.replace("both AS", "base AS");
    let out = lab.build_local(&replaced, &["--platform", "linux/arm64", "--build-context", "base=docker-image://both"]);
    assert_eq!(all(&out), ["amd64", "s390x", "arm64", "arm64"]);
}

/// A stage that all platforms share is executed once, even if it ignores the cache.
#[test]
fn no_cache_runs_a_shared_stage_once_for_all_platforms() {
    let lab = Lab::new();
    let file = "FROM --platform=$BUILDPLATFORM busybox AS build\nWORKDIR /w\nCOPY Dockerfile .\n\
        RUN head -c 12 /dev/urandom | base64 > /o\nRUN cp /o /p\n\
        FROM scratch\nCOPY --from=build /o /p /\n";
    let mut seen = std::collections::BTreeSet::new();
    for args in [&["--no-cache"][..], &["--no-cache-filter", "build"], &["--no-cache"]] {
        let out = lab.build_local(file, &[&["--platform", "linux/arm64,linux/amd64,linux/s390x"], args].concat());
        let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
        let first = read("linux_arm64/o");
        for name in ["linux_arm64/p", "linux_amd64/o", "linux_amd64/p", "linux_s390x/o", "linux_s390x/p"] {
            assert_eq!(read(name), first, "{args:?} {name}");
        }
        assert!(seen.insert(first), "{args:?}: the cache was used");
    }
}

#[test]
fn an_archive_of_several_platforms_has_an_index_and_one_of_them_is_loaded() {
    let lab = Lab::new();
    let host = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    for kind in ["oci", "docker"] {
        let tar = lab.path("all.tar");
        let output = format!("type={kind},dest={}", tar.display());
        lab.build(TWO_PLATFORMS, &["--platform", "linux/s390x,linux/arm64,linux/amd64", "-t", "many", "-o", &output])
            .ok();
        let files = contents(&std::fs::read(&tar).unwrap());
        let parse = |name: &str| serde_json::from_slice::<Value>(&files[name]).unwrap();
        let top = &parse("index.json")["manifests"][0];
        assert_eq!(top["mediaType"], "application/vnd.oci.image.index.v1+json");
        let index = parse(&format!("blobs/sha256/{}", &top["digest"].as_str().unwrap()[7..]));
        let of = |i: usize| index["manifests"][i]["platform"]["architecture"].as_str().unwrap().to_string();
        assert_eq!([of(0), of(1), of(2)], ["s390x", "arm64", "amd64"]);
        let mut loaded = lab.command(["load", "-i", tar.to_str().unwrap()]);
        loaded.env("RBUILD_ROOT", lab.path("other"));
        let loaded = loaded.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&loaded.stdout), "Loaded image: many:latest\n");
        let mut inspected = lab.command(["inspect", "--format", "{{.Architecture}}", "many"]);
        let inspected = inspected.env("RBUILD_ROOT", lab.path("other")).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&inspected.stdout).trim(), host, "{kind}");
    }
    // The store has the image for the platform of this machine.
    assert_eq!(lab.rbuild(["inspect", "--format", "{{.Architecture}}", "many"]).ok().stdout.trim(), host);
}

#[test]
fn metadata_iidfile_and_rawjson_describe_the_build() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN echo said; echo also >&2\n";
    let metadata_file = lab.path("metadata.json");
    let ran = lab
        .build(
            file,
            &["-t", "x:1", "-t", "y", "--metadata-file", metadata_file.to_str().unwrap(), "--progress", "rawjson"],
        )
        .ok();
    let metadata: Value = serde_json::from_str(&lab.read("metadata.json")).unwrap();
    let (config, manifest) = documents(&lab, "x:1");
    assert_eq!(metadata["containerimage.config.digest"], manifest["config"]["digest"]);
    assert_eq!(metadata["containerimage.descriptor"]["digest"], metadata["containerimage.digest"]);
    assert_eq!(metadata["image.name"], "docker.io/library/x:1,docker.io/library/y:latest");
    assert_eq!(config["os"], "linux");
    let lines: Vec<Value> =
        ran.stderr.lines().filter(|l| l.starts_with('{')).map(|l| serde_json::from_str(l).unwrap()).collect();
    let logs: Vec<&str> = lines.iter().filter_map(|l| l["logs"][0]["data"].as_str()).collect();
    assert!(logs.contains(&"c2FpZAo="), "{logs:?}");
    assert!(lines.iter().any(|l| l["vertexes"][0]["name"] == "[2/2] RUN echo said; echo also >&2"));
    // A cached build prints the same, and steps are marked with their platform.
    let again = lab
        .build(file, &["-t", "x:1", "--metadata-file", metadata_file.to_str().unwrap(), "--progress", "github"])
        .ok();
    assert!(again.stderr.contains("[2/2] RUN echo said; echo also >&2 CACHED\n"), "{}", again.stderr);
    let second: Value = serde_json::from_str(&lab.read("metadata.json")).unwrap();
    assert_eq!(second["containerimage.digest"], metadata["containerimage.digest"]);
    let grouped = lab.build(file, &["--no-cache", "--progress", "github"]).ok();
    assert!(grouped.stderr.contains("::group::[2/2] RUN echo said"), "{}", grouped.stderr);
}

/// GitHub executes lines that begin with `::`.
#[test]
fn the_log_for_github_has_no_commands_of_the_build_and_places_of_errors() {
    let lab = Lab::new();
    for (file, code, line) in [
        ("FROM busybox\nRUN echo ::warning::x; printf ' ::error::y'; exit 1\n", 1, 2),
        ("FROM busybox\nCOPY nosuch /\n", 1, 2),
        ("FROM busybox\n\nRUNN x\n", 2, 3),
    ] {
        let ran = lab.build(file, &["--progress", "github"]).fails(code, &[]);
        let commands: Vec<&str> = ran.stderr.lines().filter(|line| line.trim_start().starts_with("::")).collect();
        let errors: Vec<&&str> = commands.iter().filter(|line| line.starts_with("::error")).collect();
        let place = format!("::error file=Dockerfile,line={line}::");
        assert!(errors.len() == 1 && errors[0].starts_with(&place), "{}", ran.stderr);
        let is_of_build = |line: &&str| line.ends_with("::warning::x") || line.ends_with("::error::y");
        assert!(!commands.iter().any(is_of_build), "{}", ran.stderr);
    }
    // The other forms of progress contain output of commands, too.
    lab.write("Dockerfile", "FROM busybox\nRUN echo '::add-mask::x'; exit 1\n");
    for form in ["-q", "--progress=plain"] {
        let ran = lab.run_with(&mut lab.command(["build", form, "."]), &[("GITHUB_ACTIONS", "true")]);
        assert!(ran.stderr.contains("\n| ::add-mask::x\n") && !ran.stderr.contains("\n::"), "{}", ran.stderr);
    }
}

/// GitHub also executes `##[…]` within lines, and annotates a run with the errors in the log.
#[test]
fn no_line_of_the_log_for_github_contains_a_command() {
    let lab = Lab::new();
    let run = "FROM busybox\nRUN echo 'x ##[add-mask]true'; echo '##[set-output name=image]evil'\n";
    let args = |more: &'static str| -> Vec<&str> {
        ["--progress", "github"].into_iter().chain(more.split_terminator(' ')).collect()
    };
    for (file, more, code, want) in [
        (run, "", 0, "x ## [add-mask]true\n"),
        (run, "--explain", 0, "'## [set-output name=image]evil' CACHED\n"),
        ("FROM busybox\nRUN echo '##[error]x'; exit 1\n", "", 1, "\n## [error]x\n"),
        ("FROM busybox\nRUNN ##[a]\n", "", 2, "RUNN ## [a]"),
        ("FROM busybox\nMAINTAINER ##[a]b\n", "--check", 1, "MAINTAINER ## [a]b"),
        ("# check=error=true\nFROM busybox\nMAINTAINER ##[a]b\n", "", 1, "::error file=Dockerfile,line=3::Maintainer"),
        ("FROM busybox\n", "--call=x\n::add-mask::##[a]", 2, "\n| ::add-mask::## [a]: unknown call\n"),
        (
            "FROM busybox\n",
            "--call=x\n::add-mask::##[a]",
            2,
            "\n::error::--call x%0A::add-mask::## [a]: unknown call\n",
        ),
    ] {
        let ran = lab.build(file, &args(more));
        let ran = if code == 0 { ran.ok() } else { ran.fails(code, &[]) };
        let all = ran.stdout + &ran.stderr;
        assert!(all.contains(want) && !all.contains("##["), "{want}: {all}");
    }
    // More errors than are shown are not annotated either.
    let file = "FROM busybox\n".to_string() + &"RUNN x\n".repeat(30);
    let ran = lab.build(&file, &args("")).fails(2, &["10 more errors"]);
    assert_eq!(ran.stderr.matches("::error file=").count(), 20, "{}", ran.stderr);
}

#[test]
fn logs_of_the_last_builds_are_complete() {
    let lab = Lab::new();
    lab.write("token", "masked-value\n");
    let file =
        "FROM busybox AS a\nRUN echo first >&2\nRUN --mount=type=secret,id=t seq 200; cat /run/secrets/t; exit 3\n";
    let ran = lab
        .build(file, &["--secret", "id=t,src=token", "-t", "x"])
        .fails(1, &["exited with code 3", "last 50 lines; for the whole log, run: rbuild logs"]);
    let list = lab.rbuild(["logs"]).ok().stdout;
    let line = list.lines().nth(1).unwrap_or_else(|| panic!("{list}\n{}", ran.stderr));
    assert!(line.contains("failed") && line.ends_with("x:latest"), "{list}");
    let id = line.split_whitespace().next().unwrap();
    let all = lab.rbuild(["logs", id]).ok().stdout;
    assert!(all.contains("\n1\n2\n") && all.contains("\n200\n****") && all.contains("first\n"), "{all}");
    let one = lab.rbuild(["logs", "latest", "2/3"]).ok().stdout;
    assert!(one.contains("first\n") && !one.contains("200"), "{one}");
    lab.rbuild(["logs", "latest", "9/9"]).fails(1, &["no step `9/9`", "use a 1/3, a 2/3 or a 3/3"]);
    lab.rbuild(["logs", "zzz"]).fails(1, &["run `rbuild logs` to list"]);
    lab.build("FROM busybox\nRUN echo fine\n", &["-t", "y"]).ok();
    assert!(lab.rbuild(["logs"]).ok().stdout.lines().nth(1).unwrap().contains("done"));
}

/// A build that fails while it writes an archive has not named any image.
#[test]
fn a_failed_output_changes_no_name() {
    let lab = Lab::new();
    lab.build("FROM busybox\nCMD 1\n", &["-t", "x"]).ok();
    let id = || lab.rbuild(["inspect", "x"]).ok().stdout;
    let before = id();
    lab.build("FROM busybox\nCMD 2\n", &["-t", "x", "-o", "type=oci,dest=/dev/full"]).fails(1, &["full"]);
    assert_eq!(id(), before);
}

/// An image that is streamed into an archive is not stored; its reports are complete nevertheless.
#[test]
fn a_streamed_image_is_reported_and_not_stored() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN echo hi > /x\n";
    let reports = ["--metadata-file", "m.json", "--iidfile", "iid", "--cache-limit", "10k"];
    for kind in ["oci", "docker"] {
        let output = format!("type={kind},compression=uncompressed,dest=o.tar");
        let ran = lab.build(file, &[&["--no-cache", "-o", &output], &reports[..]].concat()).ok();
        assert!(ran.stderr.contains("\nBuilt the image "), "{}", ran.stderr);
        let id = std::fs::read_to_string(lab.ctx().join("iid")).unwrap();
        let metadata = std::fs::read_to_string(lab.ctx().join("m.json")).unwrap();
        assert!(metadata.contains(&id) && metadata.contains("\"size\""), "{metadata}");
        lab.rbuild(["inspect", &id]).fails(1, &[]);
    }
}

#[test]
fn a_reader_that_ends_early_is_reported_as_a_failed_write() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\n");
    for (command, message) in [
        ("build -q -o - .", "error: cannot write the output tar: broken pipe"),
        ("build -q -o type=oci,dest=- .", "error: cannot write the image: broken pipe"),
        ("cp busybox:/ -", "error: cannot write the tar: broken pipe"),
        ("save busybox", "error: cannot write the "),
    ] {
        let ran = lab.sh(&format!("$RB {command} | head -c 1 > /dev/null"));
        assert!(ran.stderr.contains(message), "{command}: {}", ran.stderr);
    }
}

#[test]
fn the_store_as_an_output_keeps_the_image_that_it_has() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN echo x > /x\n";
    lab.build(file, &["-t", "app:1"]).ok();
    let format = "{{.Repository}}:{{.Tag}} {{.ID}} {{.CreatedAt}} {{.Size}}";
    let list = || lab.rbuild(["images", "-a", "--no-trunc", "--format", format]).ok().stdout;
    let images = list();
    for args in [&["-o", "type=docker", "-t", "app:1"][..], &["-o", "type=docker"], &["-o", "type=image"], &[]] {
        let built = lab.build(file, args).ok().stderr;
        let has_name = if args.contains(&"-t") { "\nBuilt app:1 (" } else { "; it has the name app:1)" };
        assert!(built.contains(has_name), "{args:?}: {built}");
        assert_eq!(list(), images, "{args:?}");
    }
}

/// The kernel accepts an empty value, which has no effect, and then refuses to return it.
#[test]
fn an_empty_file_capability_is_omitted() {
    let lab = Lab::new();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian"]).ok();
    let set = "perl -e 'my ($f, $name, $value) = (q(/f), q(security.capability), q()); exit syscall(188, $f, $name, $value, 0, 0)'";
    lab.build(&format!("FROM debian\nRUN echo x > /f; {set}\nRUN cat /f\n"), &["-t", "x", "-o", "type=tar,dest=o.tar"])
        .ok();
}

#[test]
fn an_output_to_the_cache_only_makes_no_image() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN echo a > /a\n";
    let images = || lab.rbuild(["images", "-q"]).ok().stdout;
    let before = images();
    lab.build(file, &["-o", "type=cacheonly"]).ok();
    assert_eq!(images(), before);
    let ran = lab.build(file, &["-t", "x"]).ok();
    assert_eq!(ran.steps(), (0, 1), "{}", ran.stderr);
    assert_ne!(images(), before);
}
