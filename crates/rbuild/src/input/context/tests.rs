//! Messages about contexts.

use std::io;
use std::path::Path;

use rbuild_testkit::Scratch;

use super::*;

#[test]
fn a_named_context_may_be_for_one_platform() {
    let root = Scratch::new();
    let store = Store::open(&root).unwrap();
    let given = ["base", "base::linux/arm64", "Base::arm64"].map(|name| format!("{name}=docker-image://scratch"));
    let found = named(&given, &store, &Platform::host(), &|_| panic!()).unwrap();
    let found = found.contexts.iter().map(|context| (context.name.as_str(), context.to_string()));
    let want = [("base", "base"), ("base", "base::linux/arm64"), ("Base", "Base::linux/arm64")];
    assert!(found.eq(want.map(|(name, shown)| (name, shown.to_string()))));
}

#[test]
fn failures_are_as_recorded() {
    let scratch = Scratch::new();
    std::fs::create_dir_all(scratch.join("dir")).unwrap();
    std::fs::write(scratch.join("file"), "").unwrap();
    std::os::unix::fs::symlink("ring", scratch.join("ring")).unwrap();
    let path = |name: &str| scratch.join(name).to_string_lossy().into_owned();
    let root = RootDir::open(&scratch).unwrap();
    let io = |errno: nix::errno::Errno| io::Error::from_raw_os_error(errno as i32);
    let url = |text| remote::file_url("the context", text).map(drop).expect_err(text);
    let read = |name| untrusted::read(&root, Path::new(name), "the Dockerfile").map(drop).expect_err(name);
    let names = ["Dockerfile".to_string(), "Dockerfile.test".to_string()];
    let failures = [
        directory(&path("nosuch")).unwrap_err(),
        directory(&path("file")).unwrap_err(),
        directory(&path("ring")).unwrap_err(),
        directory("prune").unwrap_err(),
        open(&scratch.join("nosuch")).map(drop).unwrap_err(),
        url("https://a.io/%x"),
        url("https://joe:secret@/x"),
        remote::unsupported("the context", "git@a.io:x"),
        remote::unsupported("the context", "ssh://git@a.io/x"),
        remote::unsupported("the Dockerfile", "ftp://a.io/x"),
        remote::unread(&io(nix::errno::Errno::EIO)),
        remote::unwritten(&io(nix::errno::Errno::ENOSPC)),
        two_dockerfiles("`https://a.io/x`", "https://joe:secret@a.io/y", InputRemedy::OmitFileOrPassUrl),
        two_dockerfiles("standard input", "y", InputRemedy::OmitFileOrPipe),
        no_dockerfile("dir/Dockerfil", &not_found(), &names),
        no_dockerfile("other", &not_found(), &names),
        no_dockerfile("dir/Dockerfile", &io(nix::errno::Errno::EACCES), &names),
        read("dir"),
        read("ring"),
        given_ignore(&scratch.join("nosuch")).unwrap_err(),
        given_ignore(&scratch.join("dir")).unwrap_err(),
        outer_ignore(&scratch.join("dir")).unwrap_err(),
        outer_ignore(&scratch.join("ring")).unwrap_err(),
    ];
    let text: String = failures.iter().map(Failure::text).collect();
    rbuild_testkit::assert_recorded!("contexts", text.replace(&*scratch.to_string_lossy(), "[dir]"));
}
