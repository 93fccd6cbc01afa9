//! Volumes that images declare with VOLUME.

use crate::containers::Host;
use crate::lab::is_bare;

/// An image with a volume below another one, and one whose path does not exist in it.
const FILE: &str = "FROM busybox\n\
    RUN mkdir -p /d/below && echo one > /d/f && echo deep > /d/below/g && chmod 750 /d && chown -R 7:8 /d\n\
    ENV AT=/d\n\
    VOLUME $AT /d/below/ /none\n";

fn host() -> Host {
    let host = Host::new();
    host.0.build(FILE, &["-q", "-t", "app"]).ok();
    host
}

/// Runs a script in a new container of the image, which is removed afterwards.
fn run(host: &Host, flags: &str, script: &str) -> String {
    let flags = flags.split_whitespace();
    host.rbuild(["run", "--rm"].into_iter().chain(flags).chain(["app", "sh", "-c", script])).ok().stdout
}

fn volumes(host: &Host) -> usize {
    host.line("volume ls -q").ok().stdout.lines().count()
}

/// Prints the targets of the volumes that are mounted.
const MOUNTED: &str = "grep -o ' /d/below \\| /d \\| /none ' /proc/self/mountinfo | sort | tr -d ' \\n'";

/// As in docker, each container has volumes of its own, with the files and owners of the image.
#[test]
fn each_container_has_the_volumes_of_its_image() {
    let host = host();
    let script = "cat /d/f /d/below/g; stat -c '%u:%g %a' /d /d/f; touch /d/new /d/below/new && ls /d /d/below";
    let shown = "one\ndeep\n7:8 750\n7:8 644\n/d:\nbelow\nf\nnew\n\n/d/below:\ng\nnew\n";
    for _ in 0..2 {
        assert_eq!(run(&host, "", script), shown);
        assert_eq!(volumes(&host), 0, "--rm removes them");
    }
    assert_eq!(run(&host, "-u 7:8", "touch /d/new && touch /d/below/new && id -u"), "7\n");
    host.line("create --name a app sleep 1000").ok();
    host.line("start a").ok();
    host.rbuild(["exec", "a", "sh", "-c", "echo two > /d/f; echo three > /new"]).ok();
    if is_bare() {
        // Without mounts, the paths are those of the container.
        assert_eq!(host.state("a", "{{json .Mounts}}"), "[]");
        assert_eq!(volumes(&host), 0);
        return;
    }
    assert_eq!(run(&host, "", MOUNTED), "/d/d/below/none");
    assert_eq!(run(&host, "", "stat -c '%u:%g %a' /none && touch /none/new"), "0:0 755\n");
    let mounts = "{{range .Mounts}}{{.Type}} {{.Destination}} {{.RW}} {{len .Name}},{{end}}{{json .HostConfig.Binds}}";
    assert_eq!(host.state("a", mounts), "volume /d true 64,volume /none true 64,volume /d/below true 64,null");
    assert_eq!(host.state("a", "{{json .Config.Volumes}}"), r#"{"/d":{},"/d/below/":{},"/none":{}}"#);
    assert_eq!(volumes(&host), 3);
    assert_eq!(host.line("volume ls -q -f dangling=true").ok().stdout, "");
    // They outlive a restart, and are no changes of the container.
    host.line("restart -t 0 a").ok();
    assert_eq!(host.line("exec a cat /d/f").ok().stdout, "two\n");
    let copy = host.0.path("copy");
    host.rbuild(["cp", "a:/d/f", copy.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), "two\n");
    let archive = host.0.path("files.tar");
    host.rbuild(["export", "-o", archive.to_str().unwrap(), "a"]).ok();
    let exported = std::fs::read(&archive).unwrap();
    assert!(contains(&exported, b"three\n") && contains(&exported, b"one\n") && !contains(&exported, b"two\n"));
    if host.line("diff a").code == Some(0) {
        assert_eq!(host.line("diff a").ok().stdout, "A /new\n");
        host.line("commit a kept").ok();
        assert_eq!(host.line("run --rm kept cat /d/f /new").ok().stdout, "one\nthree\n");
        assert_eq!(host.state("kept", "{{json .Config.Volumes}}"), r#"{"/d":{},"/d/below/":{},"/none":{}}"#);
    }
    host.line("rm -f a").ok();
    assert_eq!(volumes(&host), 3, "`rm` without -v leaves them");
    host.line("volume prune -f").ok();
    host.line("run --name b app true").ok();
    assert_eq!(volumes(&host), 3);
    host.line("rm -v b").ok();
    assert_eq!(volumes(&host), 0);
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn mounts_of_the_command_line_take_the_place_of_volumes_of_the_image() {
    let host = host();
    if is_bare() {
        return;
    }
    assert_eq!(run(&host, "--tmpfs /d --tmpfs /d/below", &format!("{MOUNTED}; ls -A /d")), "/d/d/below/nonebelow\n");
    host.0.write("own/f", "mine\n");
    let own = host.0.ctx().join("own");
    let bind = format!("-v {}:/x/../d/ --name a -d", own.display());
    let flags = bind.split_whitespace();
    host.rbuild(["run"].into_iter().chain(flags).chain(["app", "sleep", "1000"])).ok();
    assert_eq!(host.line("exec a cat /d/f").ok().stdout, "mine\n");
    let mounts = "{{range .Mounts}}{{.Type}} {{.Destination}},{{end}}";
    assert_eq!(host.state("a", mounts), "bind /x/../d/,volume /none,volume /d/below,");
    assert_eq!(volumes(&host), 2);
    // One that is mounted by name stays.
    host.line("run --rm -v kept:/none app touch /none/f").ok();
    assert_eq!(host.line("run --rm -v kept:/none busybox ls /none").ok().stdout, "f\n");
    // Anonymous volumes of the command line are properties of the container, and of its image.
    // As in docker, those of `--mount` are not.
    host.line("run --name b -d -v /more --mount type=volume,target=/mm,readonly busybox sleep 1000").ok();
    assert_eq!(host.state("b", "{{json .Config.Volumes}}"), r#"{"/more":{}}"#);
    if host.line("diff b").code == Some(0) {
        host.line("commit b more").ok();
        assert_eq!(host.state("more", "{{json .Config.Volumes}}"), r#"{"/more":{}}"#);
    }
}

#[test]
fn volumes_of_the_image_can_be_written_where_its_files_cannot() {
    let host = host();
    if is_bare() {
        return;
    }
    let script = "touch /d/new /d/below/new /none/new && touch /new 2> /dev/null || echo no";
    assert_eq!(run(&host, "--read-only", script), "no\n");
    // Links of the image are followed, and a file cannot be a volume.
    host.0.build("FROM busybox\nRUN mkdir /r && echo x > /r/f && ln -s /r /l\nVOLUME l\n", &["-q", "-t", "link"]).ok();
    assert_eq!(host.line("run --rm link cat /r/f /l/f").ok().stdout, "x\nx\n");
    host.0.build("FROM busybox\nRUN touch /f\nVOLUME /f\n", &["-q", "-t", "file"]).ok();
    host.line("run --rm file true").fails(
        126,
        &["cannot mount on `/f`: the image has a file there", "a VOLUME instruction of the image requests the mount"],
    );
    assert_eq!((volumes(&host), host.line("ps -aq").ok().stdout), (0, String::new()));
    host.0.build("FROM busybox\nVOLUME / /proc /dev /sys /etc/hosts\n", &["-q", "-t", "root"]).ok();
    host.line("run --rm root ls /bin/sh").ok();
}

/// As in docker, a volume at `/etc` does not hide the host names of the container.
#[test]
fn volumes_do_not_cover_the_files_of_the_network() {
    let host = Host::new();
    host.0.build("FROM busybox\nRUN mkdir -p /etc && echo x > /etc/own\nVOLUME /etc\n", &["-q", "-t", "app"]).ok();
    let script = "cat /etc/own; grep -c '10.1.2.3.*other' /etc/hosts; grep -c '9.9.9.9' /etc/resolv.conf; ls /etc";
    let network = ["--add-host", "other:10.1.2.3", "--dns", "9.9.9.9"];
    let run = |flags: &[&str], image: &str| {
        let all = [&["run", "--rm"], &network[..], flags, &[image, "sh", "-c", script]].concat();
        host.rbuild(all).ok().stdout
    };
    assert!(run(&[], "app").starts_with("x\n1\n1\n"));
    assert!(run(&["--tmpfs", "/etc"], "busybox").starts_with("1\n1\n"));
    // Nothing is created in a directory of the machine.
    host.0.write("dir/hosts", "mine\n");
    host.0.write("dir/own", "x\n");
    let dir = host.0.ctx().join("dir");
    let bind = format!("{}:/etc:ro", dir.display());
    let shown = run(&["-v", &bind], "busybox");
    assert!(shown.starts_with("x\n1\n") && shown.ends_with("hosts\nown\n"), "{shown}");
    assert_eq!(std::fs::read_to_string(dir.join("hosts")).unwrap(), "mine\n");
    if is_bare() {
        return;
    }
    for _ in 0..2 {
        assert!(run(&["-v", "kept:/etc"], "app").starts_with("x\n1\n1\n"));
    }
    // One of the command line takes the place of such a file.
    let own = format!("{}/hosts:/etc/hosts", dir.display());
    assert_eq!(host.rbuild(["run", "--rm", "-v", &own, "app", "cat", "/etc/hosts"]).ok().stdout, "mine\n");
}
