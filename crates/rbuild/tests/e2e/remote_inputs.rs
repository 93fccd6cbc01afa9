//! Dockerfiles, contexts and archives from URLs, on a loopback address.

use crate::downloads::files::{ServedFile, Trouble};
use crate::downloads::{DATE, Scene};
use crate::lab::{Ran, base, listing};

impl Scene {
    fn put(&self, path: &str, content: impl Into<Vec<u8>>) -> String {
        self.server.put(path, ServedFile { modified: Some(DATE), ..ServedFile::tagged(content, "\"1\"") });
        self.server.url(path)
    }

    /// Returns a tar archive of files that a script creates, compressed by `program`.
    fn archive(&self, script: &str, program: &str) -> Vec<u8> {
        let tar = self.lab.path("packed");
        let commands = format!(
            "rm -rf src && mkdir src && (cd src && {script}) && tar -C src -c . | {program} > {}",
            tar.display()
        );
        self.lab.sh(&commands).ok();
        std::fs::read(tar).unwrap()
    }

    /// Builds to a tar and lists it.
    fn result(&self, args: &[&str]) -> Vec<String> {
        let tar = self.lab.path("out.tar");
        let output = format!("type=tar,dest={}", tar.display());
        self.build_here(&[&["--output", &output], args].concat()).ok();
        listing(&std::fs::read(&tar).unwrap())
    }

    /// Builds in the directory of the lab's context.
    fn build_here(&self, args: &[&str]) -> Ran {
        self.lab.rbuild(["build"].into_iter().chain(args.iter().copied()))
    }
}

#[test]
fn a_dockerfile_from_a_url_can_be_used_with_any_context() {
    let scene = Scene::new();
    scene.lab.write("app", "x").write("key", "x").write(".dockerignore", "key").write("Dockerfile", "nothing");
    let url = scene.put("/d/Dockerfile?v=1", "FROM scratch\nCOPY . /\n");
    assert_eq!(scene.result(&["-f", &url, "."]), ["644 0:0 .dockerignore", "644 0:0 Dockerfile", "644 0:0 app"]);
    scene.server.requests();
    scene.build_here(&["-f", &url, "."]).ok();
    assert_eq!(scene.server.requests(), ["GET /d/Dockerfile?v=1 if-none-match: \"1\""]);
    let archive = scene.archive("echo x > inside && echo nothing > Dockerfile", "cat");
    std::fs::write(scene.lab.path("stdin"), archive).unwrap();
    let mut command = scene.lab.command(["build", "-f", &url, "-t", "x", "-"]);
    command.stdin(std::fs::File::open(scene.lab.path("stdin")).unwrap());
    scene.lab.run_with(&mut command, &[]).ok();
    assert!(scene.lab.top_layer("x").contains(&"644 0:0 inside".to_string()));
    // Errors are reported as for other Dockerfiles.
    let wrong = scene.put("/wrong?sig=hunter2", "FROM scratch\nCOPPY x /\n");
    let ran = scene.build_here(&["-f", &wrong, "."]).fails(2, &["unknown instruction", "/wrong:2:1", "COPY"]);
    assert!(!ran.stderr.contains("hunter2"), "{}", ran.stderr);
    let gone = scene.server.url("/gone");
    scene
        .build_here(&["-f", &gone, "."])
        .fails(1, &[&format!("cannot download {gone}"), "HTTP status 404", "check the address"]);
    scene.build_here(&["-f", "http://joe:hunter2@a:b/x", "."]).fails(2, &["`http://***@a:b/x`: the URL is invalid"]);
    scene.build_here(&["-f", "https://a.io/x.git", "."]).fails(2, &["not supported yet"]);
}

#[test]
fn a_context_from_a_url_is_an_archive_with_any_compression() {
    let scene = Scene::new();
    let files = "echo x > app && echo x > ignored && echo ignored > .dockerignore && \
        printf 'FROM scratch\\nCOPY . /\\n' > Dockerfile && mkdir d && printf 'FROM scratch\\nCOPY app /other\\n' > d/File && \
        chmod 644 app ignored Dockerfile .dockerignore d/File && chmod 755 d";
    let mut hits = Vec::new();
    for program in ["cat", "gzip", "bzip2", "xz", "zstd"] {
        let url = scene.put(&format!("/{program}"), scene.archive(files, program));
        let found = scene.result(&[&url]);
        assert!(
            found.contains(&"644 0:0 app".to_string()) && found.contains(&"644 0:0 ignored".to_string()),
            "{found:?}"
        );
        assert_eq!(scene.result(&["-f", "d/File", &url]), ["644 0:0 other"]);
        hits.push(scene.build_here(&[&url]).ok().steps());
    }
    assert!(hits.iter().all(|steps| *steps == (0, 1)), "{hits:?}");
    let url = scene.server.url("/gzip");
    scene.server.requests();
    scene.build_here(&[&url]).ok();
    assert_eq!(scene.server.requests(), ["GET /gzip if-none-match: \"1\""]);
    scene.build_here(&["-f", "none", &url]).fails(1, &["the Dockerfile `none` does not exist"]);
    let outer = scene.put("/outer", "FROM scratch\nCOPY ignored /outer\n");
    assert_eq!(scene.result(&["-f", &outer, &url]), ["644 0:0 outer"]);
    // The time of the server.
    scene.build_here(&["--build-arg", "SOURCE_DATE_EPOCH=context", "-t", "x", &url]).ok();
    let created = scene.lab.rbuild(["inspect", "-f", "{{.Created}}", "x"]).ok().stdout;
    assert!(created.starts_with("2015-10-21T07:28:00"), "{created}");
    scene.build_here(&["--verify", "--build-arg", "SOURCE_DATE_EPOCH=context", &url]).ok();
    let damaged = scene.put("/damaged", &scene.archive(files, "gzip")[..100]);
    scene.build_here(&[&damaged]).fails(1, &["cannot unpack the context `http://127.0.0.1:"]);
    scene.server.trouble([Trouble::Status(503, Some(0))]);
    scene.build_here(&[&url]).ok();
    assert!(scene.stored("tmp").is_empty(), "{:?}", scene.stored("tmp"));
}

#[test]
fn a_context_url_of_another_file_is_the_dockerfile() {
    let scene = Scene::new();
    let file = "FROM scratch\nCOPY context /d/\nCOPY * /all/\n";
    let url = scene.put("/Dockerfile", file);
    let found = ["755 0:0 all/", "600 0:0 all/context", "755 0:0 d/", "600 0:0 d/context"];
    assert_eq!(scene.result(&[&url]), found);
    assert_eq!(scene.build_here(&[&url]).ok().steps(), (0, 2));
    scene.build_here(&["-f", "Other", &url]).fails(2, &["is a Dockerfile, and -f selects another: `Other`"]);
    // A given ignore file applies to the only file, too.
    let ignore = scene.lab.path("all.ignore");
    std::fs::write(&ignore, "*\n").unwrap();
    scene.build_here(&["--ignorefile", ignore.to_str().unwrap(), &url]).fails(1, &["`context` not found", "ignore"]);
    scene.build_here(&["--ignorefile", "nosuch", &url]).fails(2, &["cannot read the ignore file"]);
    // Any file, if the Dockerfile comes from elsewhere.
    let data = scene.put("/data", "data");
    let outer = scene.put("/outer", "FROM scratch\nCOPY --chmod=644 context /f\n");
    assert_eq!(scene.result(&["-f", &outer, &data]), ["644 0:0 f"]);
    let mut command = scene.lab.command(["build", "-f", "-", "-t", "x", &data]);
    std::fs::write(scene.lab.path("stdin"), "FROM scratch\nCOPY context /f\n").unwrap();
    command.stdin(std::fs::File::open(scene.lab.path("stdin")).unwrap());
    scene.lab.run_with(&mut command, &[]).ok();
    // A login for the server of the context.
    scene.server.put("/private", ServedFile { login: Some("Bearer hunter2"), ..ServedFile::new(file) });
    let private = scene.server.url("/private");
    scene.build_here(&[&private]).fails(1, &["without a login", "--secret id=HTTP_AUTH_TOKEN_127.0.0.1"]);
    std::fs::write(scene.lab.path("token"), "hunter2").unwrap();
    let secret = format!("id=HTTP_AUTH_TOKEN_127.0.0.1,src={}", scene.lab.path("token").display());
    scene.build_here(&["--secret", &secret, &private]).ok();
    scene
        .build_here(&["https://example.org/x.git#main"])
        .fails(2, &["is a git repository, which is not supported yet"]);
}

#[test]
fn a_named_context_from_a_url_is_a_directory_with_one_file() {
    let scene = Scene::new();
    let archive = scene.archive("echo x > inside", "gzip");
    let url = scene.put("/x.tgz", archive.clone());
    let context = format!("files={url}");
    let from = |file: &str| {
        scene.lab.write("Dockerfile", file);
        scene.result(&["--build-context", &context, "."])
    };
    assert_eq!(from("FROM scratch\nCOPY --from=files . /d/\n"), ["755 0:0 d/", "600 0:0 d/context"]);
    assert_eq!(from("FROM files\n"), ["600 0:0 context"]);
    assert_eq!(from("FROM scratch\nCOPY --from=files context /f\n"), ["600 0:0 f"]);
    assert_eq!(scene.build_here(&["--build-context", &context, "."]).ok().steps(), (0, 1));
    let ran = scene.build_here(&["--build-context", "files=http://joe:hunter2@127.0.0.1:x/", "."]);
    ran.fails(2, &["http://***@127.0.0.1:x/", "the URL is invalid"]);
    scene.build_here(&["--build-context", "files=git@a.io:x", "."]).fails(2, &["not supported yet"]);
}

#[test]
fn archives_from_urls_are_imported_and_loaded() {
    let scene = Scene::new();
    let busybox = std::fs::read(base("busybox.tar")).unwrap();
    let url = scene.put("/busybox.tar?sig=1", busybox);
    scene.server.trouble([Trouble::Cut(200_000), Trouble::Status(503, Some(0))]);
    let ran = scene.lab.rbuild(["import", &url, "busybox"]).ok();
    assert!(ran.stderr.contains("at byte 200000"), "{}", ran.stderr);
    assert_eq!(scene.server.requests().last().unwrap(), "GET /busybox.tar?sig=1 range: bytes=200000- if-range: \"1\"");
    let history = scene.lab.rbuild(["history", "--no-trunc", "busybox"]).ok().stdout;
    assert!(history.contains("Imported from http://127.0.0.1") && !history.contains("sig="), "{history}");
    let saved = scene.lab.path("saved");
    scene.lab.rbuild(["save", "-o", saved.to_str().unwrap(), "busybox"]).ok();
    let url = scene.put("/saved.tar", std::fs::read(&saved).unwrap());
    let blobs = scene.stored("blobs/sha256");
    scene.lab.rbuild(["rmi", "busybox"]).ok();
    scene.lab.rbuild(["prune", "-a"]).ok();
    let loaded = scene.lab.rbuild(["load", "-i", &url]).ok();
    assert!(loaded.stdout.contains("Loaded image: busybox"), "{}", loaded.stdout);
    assert_eq!((scene.stored("blobs/sha256").len(), scene.stored("downloads").len()), (blobs.len(), 0));
    assert!(scene.stored("tmp").is_empty());
    let gone = scene.server.url("/gone");
    for args in [["import", gone.as_str()].as_slice(), &["load", "-i", &gone]] {
        scene.lab.rbuild(args.iter().copied()).fails(1, &[&format!("cannot download {gone}"), "HTTP status 404"]);
    }
    scene.lab.rbuild(["load", "-i", "ftp://a.io/x"]).fails(2, &["only http and https URLs are supported"]);
}
