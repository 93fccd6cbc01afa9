//! Downloads of files from a server with injectable faults.

use std::io;

use rbuild_image::SourceUrl;
use rbuild_registry::{
    DownloadError, FileAnswer, FileEncoding, FileRequest, FileSink, Notice, RegistryProblem, Secret, Validators,
};
use rbuild_remedy::{Remedy, sentence};

use crate::Scene;
use crate::files::{FileServer, ServedFile, Trouble};

const DATE: &str = "Wed, 21 Oct 2015 07:28:00 GMT";
const SECONDS: i64 = 1_445_412_480;

/// Keeps what it receives, up to a limit.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    starts: Vec<Option<u64>>,
    most: Option<usize>,
}

impl FileSink for Kept {
    fn start(&mut self, size: Option<u64>) -> io::Result<()> {
        self.bytes.clear();
        self.starts.push(size);
        Ok(())
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        if self.most.is_some_and(|most| self.bytes.len() > most) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

struct HelperOutput {
    answer: Result<FileAnswer, DownloadError>,
    kept: Kept,
}

fn get(scene: &Scene, url: &str, stored: Option<Validators>, login: Option<&str>) -> HelperOutput {
    let url = SourceUrl::parse(url).unwrap();
    let mut kept = Kept::default();
    let request = FileRequest { url: &url, authorization: login.map(Secret::new), stored };
    HelperOutput { answer: scene.client.download(&request, &mut kept), kept }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

fn received(etag: Option<&str>, modified: Option<i64>) -> FileAnswer {
    FileAnswer::Received {
        validators: Validators { etag: etag.map(str::to_string), modified },
        encoding: FileEncoding::Identity,
    }
}

#[test]
fn files_arrive_with_their_validators() {
    let (server, scene) = (FileServer::start(), Scene::new());
    server.put("/tag", ServedFile { modified: Some(DATE), ..ServedFile::tagged("one", "\"1\"") });
    server.put("/none?q=1", ServedFile { chunked: true, ..ServedFile::new(bytes(5000)) });
    server.put("/gz", ServedFile { headers: vec![("Content-Encoding", "gzip".into())], ..ServedFile::new("z") });
    let got = get(&scene, &server.url("/tag"), None, None);
    assert_eq!((got.answer.unwrap(), got.kept.bytes), (received(Some("\"1\""), Some(SECONDS)), b"one".to_vec()));
    assert_eq!(got.kept.starts, [Some(3)]);
    let got = get(&scene, &server.url("/none?q=1#part"), None, None);
    assert_eq!((got.answer.unwrap(), got.kept.bytes), (received(None, None), bytes(5000)));
    assert!(matches!(
        get(&scene, &server.url("/gz"), None, None).answer,
        Ok(FileAnswer::Received { encoding: FileEncoding::Gzip, .. })
    ));
    assert_eq!(server.requests(), ["GET /tag", "GET /none?q=1", "GET /gz"]);
    // Go's client does not decode this encoding.
    server.put("/a.tgz", ServedFile { headers: vec![("Content-Encoding", "x-gzip".into())], ..ServedFile::new("z") });
    assert_eq!(get(&scene, &server.url("/a.tgz"), None, None).answer.unwrap(), received(None, None));
}

#[test]
fn a_malformed_reply_is_not_reported_as_a_broken_connection() {
    let (server, scene) = (FileServer::start(), Scene::new());
    let headers = vec![("Transfer-Encoding", "chunked".into())];
    server.put("/garbage", ServedFile { headers, ..ServedFile::new("no number\r\n") });
    let error = get(&scene, &server.url("/garbage"), None, None).answer.unwrap_err();
    assert!(sentence(&error).contains("the server's reply is malformed: "), "{error:?}");
    assert_eq!(error.remedy(), Some(rbuild_remedy::ServerRemedy::AwaitServer.into()));
}

#[test]
fn a_stored_version_is_not_downloaded_again() {
    let (server, scene) = (FileServer::start(), Scene::new());
    let stored = |etag: Option<&str>, modified| Some(Validators { etag: etag.map(str::to_string), modified });
    let unchanged = |path: &str, stored| {
        let got = get(&scene, &server.url(path), stored, None);
        assert!(got.kept.starts.len() < 2);
        got.answer.unwrap() == FileAnswer::Unchanged
    };
    server.put("/tag", ServedFile { modified: Some(DATE), ..ServedFile::tagged("one", "\"1\"") });
    server.put("/date", ServedFile::dated("two", DATE));
    // It ignores conditions, and its tag is a weak one of the same version.
    server.put("/plain", ServedFile { plain: true, ..ServedFile::tagged("three", "W/\"1\"") });
    assert!(unchanged("/tag", stored(Some("\"1\""), Some(SECONDS))));
    assert!(unchanged("/date", stored(None, Some(SECONDS))));
    assert!(unchanged("/plain", stored(Some("\"1\""), None)));
    assert!(!unchanged("/tag", stored(Some("\"2\""), Some(SECONDS))), "another tag, although the date is the same");
    assert!(!unchanged("/date", stored(None, Some(SECONDS - 1))));
    assert!(!unchanged("/plain", stored(None, None)));
    let asked = server.requests();
    assert_eq!(asked[0], "GET /tag if-none-match: \"1\"");
    assert_eq!(asked[1], format!("GET /date if-modified-since: {DATE}"));
}

#[test]
fn a_broken_download_is_resumed_if_the_version_is_certain() {
    let (server, scene) = (FileServer::start(), Scene::new());
    let body = bytes(100_000);
    server.put("/tag", ServedFile::tagged(body.clone(), "\"1\""));
    server.put("/weak", ServedFile::tagged(body.clone(), "W/\"1\""));
    server.put("/plain", ServedFile { plain: true, ..ServedFile::tagged(body.clone(), "\"1\"") });
    for (path, starts, second) in [
        ("/tag", 1, "GET /tag range: bytes=40000- if-range: \"1\""),
        ("/weak", 2, "GET /weak"),
        ("/plain", 2, "GET /plain range: bytes=40000- if-range: \"1\""),
    ] {
        server.trouble([Trouble::Cut(40_000)]);
        let got = get(&scene, &server.url(path), None, None);
        assert!(got.answer.is_ok() && got.kept.bytes == body, "{path}");
        assert_eq!((got.kept.starts.len(), server.requests()[1].as_str()), (starts, second));
    }
    assert!(
        matches!(&scene.notices.lock().unwrap()[0], Notice::Waiting { reason, .. } if reason.contains("byte 40000"))
    );
    // The range is invalid, so the whole file is requested.
    for status in [416, 206] {
        server.trouble([Trouble::Cut(40_000), Trouble::Status(status, None)]);
        let got = get(&scene, &server.url("/tag"), None, None);
        assert!(got.answer.is_ok() && got.kept.bytes == body, "{status}");
        assert_eq!(server.requests().last().unwrap(), "GET /tag");
    }
    // The range is one of another version of that size.
    let other: Vec<u8> = body.iter().map(|byte| !byte).collect();
    let (url, next) = (server.url("/new"), ServedFile::tagged(other.clone(), "\"2\""));
    server.put("/new", ServedFile::tagged(body.clone(), "\"1\""));
    server.trouble([Trouble::Replace(40_000, Box::new(next))]);
    let got = get(&scene, &url, None, None);
    assert!(got.answer.is_ok_and(|answer| answer == received(Some("\"2\""), None)) && got.kept.bytes == other);
    // The whole size is known from the range only, and the range is sent in two parts.
    server.put("/chunked", ServedFile { chunked: true, ..ServedFile::tagged(body.clone(), "\"1\"") });
    server.trouble([Trouble::Cut(40_000), Trouble::Short(10)]);
    let got = get(&scene, &server.url("/chunked"), None, None);
    assert!(got.answer.is_ok() && got.kept.bytes == body, "{}", got.kept.bytes.len());
    // Bytes that are received again are not progress, regardless of their number.
    let large = bytes(3 << 20);
    server.put("/large", ServedFile::tagged(large, "\"1\""));
    let again = || [Trouble::Cut(2 << 20), Trouble::Status(416, None)];
    server.trouble((0..20).flat_map(|_| again()));
    server.requests();
    assert!(get(&scene, &server.url("/large"), None, None).answer.is_err());
    assert!(server.requests().len() < 20);
    server.trouble([const { Trouble::Cut(9) }; 9]);
    let error = get(&scene, &server.url("/tag"), None, None).answer.unwrap_err();
    assert!(sentence(&error).contains("the connection broke at byte 45"), "{}", sentence(&error));
    assert_eq!(
        (server.requests().len(), error.remedy()),
        (5, Some(Remedy::Server(rbuild_remedy::ServerRemedy::CheckNetwork)))
    );
}

#[test]
fn temporary_failures_are_retried_and_others_are_not() {
    let (server, scene) = (FileServer::start(), Scene::new());
    server.put("/x", ServedFile::new("x"));
    for status in [408, 429, 500, 503] {
        server.trouble([Trouble::Status(status, Some(0)), Trouble::Status(status, None)]);
        assert!(get(&scene, &server.url("/x"), None, None).answer.is_ok(), "{status}");
        assert_eq!(server.requests().len(), 3, "{status}");
    }
    for status in [400, 404, 410, 416, 501, 304, 206] {
        server.trouble([Trouble::Status(status, None)]);
        let error = get(&scene, &server.url("/x"), None, None).answer.unwrap_err();
        let text = sentence(&error);
        assert!(text.contains(&status.to_string()) && text.contains(&server.url("/x")), "{text}");
        assert_eq!(
            (server.requests().len(), error.remedy() == Some(rbuild_remedy::ServerRemedy::CheckAddress.into())),
            (1, matches!(status, 404 | 410))
        );
    }
    server.trouble([const { Trouble::Status(503, None) }; 9]);
    let error = get(&scene, &server.url("/x?secret=1"), None, None).answer.unwrap_err();
    assert!(!sentence(&error).contains("secret"), "{}", sentence(&error));
    assert_eq!(server.requests().len(), 5);
    let gone = get(&scene, "http://127.0.0.1:1/x", None, None).answer.unwrap_err();
    assert!(sentence(&gone).contains("refused"), "{}", sentence(&gone));
}

#[test]
fn logins_are_sent_to_the_server_of_the_url_only() {
    let (server, other, scene) = (FileServer::start(), FileServer::start(), Scene::new());
    let (token, pair) = ("Bearer t", "Basic am9lOmh1bnRlcjI=");
    server.put("/own", ServedFile { login: Some(token), ..ServedFile::new("x") });
    server.put("/pair", ServedFile { login: Some(pair), ..ServedFile::new("x") });
    server.put("/here", ServedFile { moved: Some("/own".into()), ..ServedFile::default() });
    server.put("/there", ServedFile { moved: Some(other.url("/x")), ..ServedFile::default() });
    server.put("/round", ServedFile { moved: Some("/round".into()), ..ServedFile::default() });
    other.put("/x", ServedFile::new("x"));
    let ok = |url: &str, login| assert!(get(&scene, url, None, login).answer.is_ok(), "{url}");
    ok(&server.url("/here"), Some(token));
    ok(&server.url("/there"), Some(token));
    let with_pair = format!("http://joe:hunter2@{}/pair", server.address);
    ok(&with_pair, None);
    assert_eq!(server.requests(), ["GET /here +", "GET /own +", "GET /there +", "GET /pair +"]);
    assert_eq!(other.requests(), ["GET /x"]);
    let error = get(&scene, &server.url("/own"), None, None).answer.unwrap_err();
    assert_eq!(
        error.remedy(),
        Some(Remedy::Build(rbuild_remedy::BuildRemedy::PassSecret { id: "HTTP_AUTH_TOKEN_127.0.0.1".into() }))
    );
    let error = get(&scene, &with_pair.replace("pair", "own"), None, None).answer.unwrap_err();
    let text = sentence(&error);
    assert!(text.contains("refused to send the file") && !text.contains("hunter2"), "{text}");
    let error = get(&scene, &server.url("/round"), None, None).answer.unwrap_err();
    assert!(sentence(&error).contains("too many redirects"));
}

#[test]
fn a_full_disk_is_not_reported_as_a_failure_of_the_server() {
    let (server, scene) = (FileServer::start(), Scene::new());
    server.put("/x", ServedFile::new(bytes(100_000)));
    let url = SourceUrl::parse(&server.url("/x")).unwrap();
    let mut kept = Kept { most: Some(10), ..Kept::default() };
    let request = FileRequest { url: &url, authorization: None, stored: None };
    let error = scene.client.download(&request, &mut kept).unwrap_err();
    assert!(matches!(error, DownloadError::Sink { .. }) && server.requests().len() == 1, "{error:?}");
    let moved = ServedFile { moved: Some("ftp://a.io/x".into()), ..ServedFile::default() };
    server.put("/ftp", moved);
    let error = get(&scene, &server.url("/ftp"), None, None).answer.unwrap_err();
    assert!(matches!(error, DownloadError::Server { source, .. } if matches!(*source, RegistryProblem::Answer { .. })));
}
