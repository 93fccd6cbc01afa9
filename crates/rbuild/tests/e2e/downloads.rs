//! ADD of URLs, from a web server on a loopback address.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rbuild_image::{Checksum, ChecksumAlgorithm};

use crate::lab::{Lab, Ran};

#[allow(dead_code)]
#[path = "../../../rbuild-registry/tests/client/files.rs"]
pub mod files;

use files::{FileServer, ServedFile, Trouble};

pub const DATE: &str = "Wed, 21 Oct 2015 07:28:00 GMT";
const SECONDS: i64 = 1_445_412_480;

/// A lab with a web server.
pub struct Scene {
    pub lab: Lab,
    pub server: FileServer,
}

impl Scene {
    pub fn new() -> Scene {
        Scene { lab: Lab::bare(), server: FileServer::start() }
    }

    fn url(&self, path: &str) -> String {
        self.server.url(path)
    }

    /// Builds on scratch; `@/` stands for the URL of the server.
    fn build(&self, steps: &str, args: &[&str]) -> Ran {
        self.lab.build(&format!("FROM scratch\n{}\n", self.filled(steps)), args)
    }

    fn filled(&self, steps: &str) -> String {
        steps.replace("@/", &self.url("/"))
    }

    /// Returns the entries of the result: mode, owner and name.
    fn listing(&self, steps: &str) -> Vec<String> {
        self.lab.build_listing(&format!("FROM scratch\n{}\n", self.filled(steps)))
    }

    /// Builds to a directory and returns the content and the time of one of its files.
    fn file(&self, steps: &str, path: &str, args: &[&str]) -> (String, i64) {
        let out = self.lab.build_local(&format!("FROM scratch\n{}\n", self.filled(steps)), args);
        // A file of mode 600 may belong to another user than that of the test.
        let found = std::fs::metadata(out.join(path)).unwrap();
        (std::fs::read_to_string(out.join(path)).unwrap(), found.mtime())
    }

    /// Returns the names in a directory of the store.
    pub fn stored(&self, dir: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.lab.store().join(dir)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

/// Returns a tar archive with `d/f`, which contains `text`.
fn archive(text: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o640);
    header.set_uid(5);
    header.set_gid(6);
    tar.append_data(&mut header, "d/f", text.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn a_file_gets_its_name_from_the_url_and_its_time_from_the_server() {
    let scene = Scene::new();
    for path in ["/dir/app.txt", "/dir/app.txt?v=1", "/dir/a%20b", "/", "/dir/"] {
        scene.server.put(path, ServedFile::dated("content", DATE));
    }
    scene.server.put("/undated", ServedFile::new("content"));
    let steps = "ARG FILE=app\nADD @/dir/${FILE}.txt?v=1#part /d/\nADD @/dir/app.txt /renamed\nADD @/ /n/\n\
        ADD [\"@/dir/a%20b\", \"/n/\"]\nADD --chmod=u=rwx,go=rx --chown=1:2 @/dir/app.txt /own\nWORKDIR /w\nADD @/dir/app.txt .\nADD @/dir/ /n/";
    assert_eq!(
        scene.listing(steps),
        [
            "755 0:0 d/",
            "600 0:0 d/app.txt",
            "755 0:0 n/",
            "600 0:0 n/__unnamed__",
            "600 0:0 n/a b",
            "600 0:0 n/dir",
            "755 1:2 own",
            "600 0:0 renamed",
            "755 0:0 w/",
            "600 0:0 w/app.txt",
        ]
    );
    assert_eq!(scene.file("ADD --chmod=644 @/dir/app.txt /f", "f", &[]), ("content".into(), SECONDS));
    assert_eq!(scene.file("ADD --chmod=644 @/undated /f", "f", &[]), ("content".into(), 0));
    // A name without a slash that is a directory of the image.
    assert_eq!(scene.listing("WORKDIR /d\nADD @/undated /d"), ["755 0:0 d/", "600 0:0 d/undated"]);
    assert_eq!(scene.listing("ADD --exclude=un* @/undated @/dir/app.txt /d/"), ["755 0:0 d/", "600 0:0 d/app.txt"]);
    let history = scene.build("ADD --chown=1 @/undated /f", &["-t", "x"]).ok();
    assert!(history.stderr.contains(&format!("ADD --chown=1 {} /f", scene.url("/undated"))), "{}", history.stderr);
    let shown = scene.lab.rbuild(["history", "--no-trunc", "x"]).ok().stdout;
    assert!(shown.contains(&format!("ADD --chown=1 {} /f # buildkit", scene.url("/undated"))), "{shown}");
}

#[test]
fn an_unchanged_file_is_a_cache_hit_and_a_changed_one_is_named() {
    let scene = Scene::new();
    let steps = |args: &[&str]| {
        let ran = scene.build("ADD @/x /f", args).ok();
        (ran.steps(), scene.server.requests().join(", "), ran.stderr)
    };
    scene.server.put("/x", ServedFile { modified: Some(DATE), ..ServedFile::tagged("one", "\"1\"") });
    let (first, requests, output) = steps(&[]);
    assert_eq!((first, requests.as_str()), ((1, 0), "GET /x"));
    assert!(output.contains(&format!("downloaded {} (3B)", scene.url("/x"))), "{output}");
    let (second, requests, _) = steps(&[]);
    assert_eq!((second, requests.as_str()), ((0, 1), "GET /x if-none-match: \"1\""));
    // Another tag, but the same file.
    scene.server.put("/x", ServedFile { modified: Some(DATE), ..ServedFile::tagged("one", "\"2\"") });
    assert_eq!(steps(&[]).0, (0, 1));
    scene.server.put("/x", ServedFile { modified: Some(DATE), ..ServedFile::tagged("two", "\"3\"") });
    let (changed, _, output) = steps(&["--explain"]);
    assert_eq!(changed, (1, 0));
    assert!(output.contains("`downloaded file` changed from `x sha256:"), "{output}");
    scene.server.put("/x", ServedFile::tagged("two", "\"4\""));
    let (undated, _, output) = steps(&["--explain"]);
    assert_eq!(undated, (1, 0));
    assert!(output.contains(&format!("changed from `{SECONDS}` to `unknown`")), "{output}");
    // Without an entity tag, the date is compared; without a date, the content.
    scene.server.put("/x", ServedFile::dated("two", DATE));
    steps(&[]);
    assert_eq!(steps(&[]).1, format!("GET /x if-modified-since: {DATE}"));
    scene.server.put("/x", ServedFile::new("two"));
    steps(&[]);
    let (plain, requests, _) = steps(&[]);
    assert_eq!((plain, requests.as_str()), ((0, 1), "GET /x"));
    // The same content from elsewhere, under the same name.
    scene.server.put("/mirror/x", ServedFile::new("two"));
    assert_eq!(scene.build("ADD @/mirror/x /f", &[]).ok().steps(), (0, 1));
    // With `--no-cache`, the file is not downloaded again, but added again.
    scene.server.put("/x", ServedFile::tagged("two", "\"5\""));
    steps(&[]);
    assert_eq!(steps(&["--no-cache"]).0, (1, 0));
}

#[test]
fn a_file_with_a_checksum_is_downloaded_once() {
    let scene = Scene::new();
    let sum = |algorithm| Checksum::of(algorithm, b"content").to_string();
    for algorithm in ChecksumAlgorithm::ALL {
        let path = format!("/{}", algorithm.name());
        scene.server.put(&path, ServedFile::dated("content", DATE));
        let step = format!("ARG SUM={}\nADD --checksum=$SUM @{path} /{}", sum(algorithm), algorithm.name());
        assert_eq!(scene.build(&step, &[]).ok().steps(), (1, 0));
        assert_eq!(scene.server.requests(), [format!("GET {path}")]);
        scene.server.remove(&path);
        assert_eq!(scene.build(&step, &[]).ok().steps(), (0, 1));
        assert_eq!(scene.build(&step, &["--no-cache"]).ok().steps(), (1, 0));
        assert!(scene.server.requests().is_empty());
    }
    // From a server that cannot be reached, under another name.
    let sum = sum(ChecksumAlgorithm::Sha256);
    let step = format!("ADD --chmod=755 --checksum={sum} http://127.0.0.1:1/other /d/");
    assert_eq!(scene.file(&step, "d/other", &[]), ("content".into(), SECONDS));
    // Without a checksum, a request is sent.
    scene
        .build("ADD http://127.0.0.1:1/other /d/", &[])
        .fails(1, &["cannot download http://127.0.0.1:1/other", "refused"]);
    // The content was downloaded without a checksum before.
    scene.server.put("/later", ServedFile::tagged("content", "\"1\""));
    scene.build("ADD @/later /f", &[]).ok();
    let sum = Checksum::of(ChecksumAlgorithm::Sha512, b"content");
    scene.build(&format!("ADD --checksum={sum} @/later /f"), &[]).ok();
    scene.lab.rbuild(["prune"]).ok();
    scene.server.requests();
    scene.build(&format!("ADD --checksum={sum} @/later /f"), &["--no-cache"]).ok();
    assert!(scene.server.requests().is_empty(), "prune keeps downloads");
    scene.lab.rbuild(["prune", "-a"]).ok();
    assert_eq!((scene.stored("downloads").len(), scene.stored("blobs/sha256").len()), (0, 0));
}

#[test]
fn a_file_with_another_checksum_is_refused() {
    let scene = Scene::new();
    scene.server.put("/x", ServedFile::tagged("content", "\"1\""));
    for algorithm in ChecksumAlgorithm::ALL {
        let (found, wanted) = (Checksum::of(algorithm, b"content"), Checksum::of(algorithm, b"other"));
        let ran = scene.build(&format!("ADD --checksum={wanted} @/x /f"), &[]);
        let text = format!("{} has the checksum {found}, not {wanted}", scene.url("/x"));
        ran.fails(1, &[&text, "Dockerfile:2:", "^^^", "hint: "]);
    }
    assert_eq!((scene.stored("blobs/sha256").len(), scene.stored("tmp").len()), (0, 0), "nothing of it is kept");
    // A stored file that the server confirms is refused as well.
    scene.build("ADD @/x /f", &[]).ok();
    let wanted = Checksum::of(ChecksumAlgorithm::Sha512, b"other");
    scene.build(&format!("ADD --checksum={wanted} @/x /f"), &[]).fails(1, &["has the checksum sha512:", "not sha512:"]);
    for (step, text) in [
        ("ADD --checksum=sha256:0 @/x /f", "sha256 requires 64 lower-case hexadecimal digits"),
        ("ADD --checksum=md5:0 @/x /f", "the algorithm is not sha256, sha384 or sha512"),
        ("ADD --checksum=sha256:0 @/x @/y /f/", "applies to a single source"),
        ("ADD --checksum=sha256:0 x /f", "requires a source that is downloaded"),
        ("ADD http://a:b/x /f", "the URL is invalid"),
    ] {
        scene.build(step, &[]).fails(2, &[text, "Dockerfile:2:"]);
    }
}

#[test]
fn several_sources_are_added_in_their_order() {
    let scene = Scene::new();
    scene.server.put("/one", ServedFile::new("from the server"));
    scene.server.put("/two", ServedFile::new("two"));
    scene.lab.write("one", "from the context").write("three", "three");
    let content = |steps: &str| scene.file(steps, "d/one", &[]).0;
    assert_eq!(content("ADD --chmod=755 one @/one /d/"), "from the server");
    assert_eq!(content("ADD --chmod=755 @/one one /d/"), "from the context");
    assert_eq!(content("ADD --chmod=755 @/one one <<one /d/\ntext\none"), "text\n");
    let steps = "ADD --chmod=755 one @/two thr* <<four /d/\ntext\nfour";
    let all = scene.listing(steps);
    assert_eq!(all, ["755 0:0 d/", "755 0:0 d/four", "755 0:0 d/one", "755 0:0 d/three", "755 0:0 d/two"]);
    assert_eq!(scene.build(steps, &[]).ok().steps(), (0, 1));
    scene.lab.write("one", "changed");
    assert_eq!(scene.build(steps, &[]).ok().steps(), (1, 0));
    scene.server.put("/two", ServedFile::new("changed"));
    assert_eq!(scene.build(steps, &[]).ok().steps(), (1, 0));
    assert_eq!(scene.file(steps, "d/two", &[]).0, "changed");
    scene.build("ADD @/two @/one /d/\nADD @/two @/one /d/one", &[]).fails(1, &["several sources require a directory"]);
    // A linked copy does not depend on the layers below it.
    let linked = |below: &str| scene.build(&format!("COPY {below} /below\nADD --link @/two /d/"), &[]).ok().steps();
    assert_eq!((linked("one"), linked("three")), ((2, 0), (1, 1)));
    // The build needs no context.
    let mut command = scene.lab.command(["build", "-"]);
    let file = scene.lab.path("alone");
    std::fs::write(&file, format!("FROM scratch\nADD {} /f\n", scene.url("/two"))).unwrap();
    command.stdin(std::fs::File::open(&file).unwrap());
    scene.lab.run_with(&mut command, &[]).ok();
}

#[test]
fn archives_are_unpacked_on_request_only() {
    let scene = Scene::new();
    let gzip = |bytes: &[u8]| {
        std::fs::write(scene.lab.path("packed"), bytes).unwrap();
        scene.lab.sh(r#"gzip -f "$LAB/packed""#).ok();
        std::fs::read(scene.lab.path("packed.gz")).unwrap()
    };
    scene.server.put("/x.tar", ServedFile::new(archive("text")));
    scene.server.put("/x.tgz", ServedFile::new(gzip(&archive("text"))));
    scene.server.put("/x.gz", ServedFile::new(gzip(b"no archive")));
    for name in ["x.tar", "x.tgz"] {
        assert_eq!(
            scene.listing(&format!("ADD @/{name} /w/")),
            ["755 0:0 w/".to_string(), format!("600 0:0 w/{name}")]
        );
        let unpacked = ["755 0:0 w/", "755 0:0 w/d/", "640 5:6 w/d/f"];
        assert_eq!(scene.listing(&format!("ADD --unpack @/{name} /w")), unpacked);
        let owned = scene.listing(&format!("ADD --unpack=true --chown=7 @/{name} /w"));
        assert_eq!(owned[2], "640 7:7 w/d/f");
    }
    assert_eq!(scene.listing("ADD --unpack @/x.gz /w/"), ["755 0:0 w/", "600 0:0 w/x.gz"]);
    assert_eq!(scene.listing("ADD --unpack=false @/x.tar /w/"), ["755 0:0 w/", "600 0:0 w/x.tar"]);
    // The server compresses the response although the client did not request it.
    let packed = ServedFile { headers: vec![("Content-Encoding", "gzip".into())], ..ServedFile::new(gzip(b"plain")) };
    scene.server.put("/plain", packed);
    assert_eq!(scene.file("ADD --chmod=644 @/plain /f", "f", &[]).0, "plain");
}

#[test]
fn logins_are_sent_to_their_host_and_occur_nowhere_else() {
    let (scene, other) = (Scene::new(), FileServer::start());
    scene.server.put("/token", ServedFile { login: Some("Bearer hunter2"), ..ServedFile::tagged("x", "\"1\"") });
    scene.server.put("/header", ServedFile { login: Some("Basic aHVudGVyMg=="), ..ServedFile::new("x") });
    scene.server.put("/pair", ServedFile { login: Some("Basic am9lOmh1bnRlcjI="), ..ServedFile::new("x") });
    scene.server.put("/moved", ServedFile { moved: Some(other.url("/x?sig=hunter2")), ..ServedFile::default() });
    other.put("/x?sig=hunter2", ServedFile::new("x"));
    std::fs::write(scene.lab.path("token"), "hunter2\n").unwrap();
    std::fs::write(scene.lab.path("header"), "Basic aHVudGVyMg==").unwrap();
    let secret = |kind: &str, file: &str| {
        let file = scene.lab.path(file);
        format!("--secret=id=HTTP_AUTH_{kind}_127.0.0.1,src={}", file.display())
    };
    let (token, header) = (secret("TOKEN", "token"), secret("HEADER", "header"));
    let mut output = String::new();
    let mut builds = |steps: &str, args: &[&str]| {
        let ran = scene.build(steps, &[&["--explain", "-t", "x"], args].concat());
        output.push_str(&ran.stdout);
        output.push_str(&ran.stderr);
        ran
    };
    builds("ADD @/token /f", &[]).fails(1, &["without a login", "--secret id=HTTP_AUTH_TOKEN_127.0.0.1"]);
    scene.server.requests();
    builds("ADD @/token /f", &[&token]).ok();
    builds("ADD @/token /f", &[&token, &header]).ok();
    builds("ADD @/header /f", &[&header]).ok();
    builds("ADD @/moved /f", &[&token]).ok();
    assert!(scene.server.requests().iter().all(|request| request.ends_with('+')));
    assert_eq!(other.requests(), ["GET /x?sig=hunter2"]);
    let pair = format!("ADD http://joe:hunter2@{}/pair /f", scene.server.address);
    builds(&pair, &[]).ok();
    builds(&format!("{pair}\nCOPY none /"), &[]).fails(1, &["`none` not found"]);
    builds(&pair.replace("/pair", "/none"), &[]).fails(1, &["HTTP status 404", "***@127.0.0.1"]);
    output.push_str(&scene.lab.rbuild(["history", "--no-trunc", "x"]).ok().stdout);
    output.push_str(&scene.lab.rbuild(["logs"]).ok().stdout);
    for text in ["hunter2", "aHVudGVyMg", "am9lOmh1bnRlcjI"] {
        assert!(!output.contains(text), "{text} in {output}");
    }
    let found = scene.lab.sh(r#"grep -rlE 'hunter2|aHVudGVyMg|am9lOmh1bnRlcjI' "$LAB/store""#);
    assert_eq!(found.stdout, "");
    let mut command = scene.lab.command(["-D", "build", "--no-cache", &token, "."]);
    scene.lab.write("Dockerfile", format!("FROM scratch\nADD {} /f\n", scene.url("/token")));
    let env = [("RBUILD_LOG", "trace"), ("RBUILD_DEBUG_LOG", "log.json")];
    let ran = scene.lab.run_with(&mut command, &env).ok();
    let log = std::fs::read_to_string(scene.lab.ctx().join("log.json")).unwrap();
    assert!(!format!("{}{log}", ran.stderr).contains("hunter2"));
}

#[test]
fn failures_name_the_url_in_the_dockerfile() {
    let scene = Scene::new();
    scene.server.put("/x", ServedFile::tagged(bytes(100_000), "\"1\""));
    let ran = scene.build("ADD @/none?sig=hunter2 /f\nADD @/gone /g", &[]);
    let (none, gone) = (scene.url("/none"), scene.url("/gone"));
    let ran = ran.fails(
        1,
        &[&format!("cannot download {none}: GET /none"), "HTTP status 404", "check the address", "Dockerfile:2:5"],
    );
    assert!(ran.stderr.contains(&format!("cannot download {gone}")), "all failures are reported: {}", ran.stderr);
    assert_eq!(ran.steps(), (0, 0));
    scene.server.trouble([Trouble::Status(429, Some(0)), Trouble::Status(500, Some(0)), Trouble::Cut(50_000)]);
    let ran = scene.build("ADD @/x /f", &[]).ok();
    assert!(
        ran.stderr.contains("HTTP status 429; trying again") && ran.stderr.contains("at byte 50000"),
        "{}",
        ran.stderr
    );
    assert_eq!(scene.server.requests().last().unwrap(), "GET /x range: bytes=50000- if-range: \"1\"");
    let sum = Checksum::of(ChecksumAlgorithm::Sha256, &bytes(100_000));
    scene.build(&format!("ADD --checksum={sum} @/x /f"), &[]).ok();
    scene.server.put("/large", ServedFile::new(bytes(2000)));
    scene.server.put("/unsized", ServedFile { chunked: true, ..ServedFile::new(bytes(2000)) });
    for path in ["/large", "/unsized"] {
        let ran = scene.build(&format!("ADD @{path} /f"), &["--limit", "bytes=1999"]);
        ran.fails(1, &["has more than 1999 bytes", "--limit bytes="]);
        scene.build(&format!("ADD @{path} /f"), &["--limit", "bytes=2000"]).ok();
    }
    // Neither COPY nor a check downloads anything.
    scene.server.requests();
    scene.build("COPY @/x /f", &[]).fails(2, &["COPY cannot download a URL", "use ADD"]);
    scene.build("ADD @/x /f", &["--check"]).ok();
    assert!(scene.server.requests().is_empty());
}

#[test]
fn two_builds_at_once_download_a_file_once() {
    let scene = Scene::new();
    scene.server.put("/x", ServedFile::tagged(bytes(100_000), "\"1\""));
    scene.server.trouble([Trouble::Stall(Duration::from_millis(1500))]);
    scene.lab.write("Dockerfile", format!("FROM scratch\nADD {} /f\n", scene.url("/x")));
    std::thread::scope(|scope| {
        let builds = [(), ()].map(|()| scope.spawn(|| scene.lab.rbuild(["build", "."])));
        builds.into_iter().for_each(|build| drop(build.join().unwrap().ok()));
    });
    assert_eq!(scene.server.requests(), ["GET /x", "GET /x if-none-match: \"1\""]);
    // All platforms of a build get the same content, by one request.
    scene.build("ADD @/x /f", &["--platform", "linux/amd64,linux/s390x", "-t", "multi"]).ok();
    assert_eq!(scene.server.requests().len(), 1);
}

#[test]
fn an_interrupted_download_leaves_nothing() {
    let scene = Scene::new();
    scene.server.put("/x", ServedFile::tagged(bytes(4_000_000), "\"1\""));
    scene.server.trouble([Trouble::Stall(Duration::from_secs(20))]);
    scene.lab.write("Dockerfile", format!("FROM scratch\nADD {} /f\n", scene.url("/x")));
    let mut build = scene.lab.command(["build", "."]).stderr(std::process::Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    let is_receiving = || {
        let dirs = scene.stored("tmp").into_iter().filter(|name| !name.ends_with(".lock"));
        dirs.flat_map(|dir| std::fs::read_dir(scene.lab.store().join("tmp").join(dir)).into_iter().flatten())
            .any(|file| file.is_ok_and(|file| file.metadata().is_ok_and(|meta| meta.len() > 1_000_000)))
    };
    while !is_receiving() {
        assert!(started.elapsed() < Duration::from_secs(15), "nothing arrives");
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = std::process::Command::new("kill").args(["-TERM", &build.id().to_string()]).status().unwrap();
    assert!(status.success());
    assert!(!build.wait().unwrap().success());
    assert!(started.elapsed() < Duration::from_secs(18), "it ends at once");
    assert_eq!((scene.stored("blobs/sha256").len(), scene.stored("downloads").len()), (0, 0));
    scene.server.requests();
    scene.build("ADD @/x /f", &[]).ok();
    assert_eq!(scene.server.requests(), ["GET /x"]);
    assert!(scene.stored("tmp").is_empty(), "{:?}", scene.stored("tmp"));
}
