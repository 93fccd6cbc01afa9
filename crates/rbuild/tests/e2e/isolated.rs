//! The isolated network, which has outbound access only.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;

use crate::lab::Lab;

/// Creates a directory with these programs and those that sub-IDs need, to serve as PATH.
fn only(lab: &Lab, programs: &[&str]) -> String {
    let dir = lab.path(&format!("only-{}", programs.join("-")));
    std::fs::create_dir_all(&dir).unwrap();
    for program in ["newuidmap", "newgidmap"].iter().chain(programs) {
        std::os::unix::fs::symlink(Path::new("/usr/bin").join(program), dir.join(program)).unwrap();
    }
    dir.to_str().unwrap().to_string()
}

#[test]
fn isolated_networks_have_outbound_access_and_no_access_to_the_host() {
    let lab = Lab::new();
    let inside = TcpListener::bind("127.0.0.1:0").unwrap();
    let outside = TcpListener::bind("0.0.0.0:0").unwrap();
    let (in_port, out_port) = (inside.local_addr().unwrap().port(), outside.local_addr().unwrap().port());
    std::thread::spawn(move || {
        outside.incoming().for_each(|stream| drop(stream.unwrap().write_all(b"from-outside\n")))
    });
    // Connecting a UDP socket sends nothing; it reveals the local address of the default route.
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    probe.connect("192.0.2.1:9").unwrap();
    let address = probe.local_addr().unwrap().ip();
    let build = |carrier: &str, run: &str| {
        lab.write("Dockerfile", format!("FROM busybox\nRUN {run}\n"));
        let args = ["build", "--network", "isolated", "--no-cache", "--output", "type=local,dest=out"];
        lab.run_with(&mut lab.command(args), &[("PATH", &only(&lab, &[carrier]))])
    };
    let cut_off =
        format!("ip route | grep -q '^default' && ! nc 127.0.0.1 {in_port} </dev/null && cat /etc/resolv.conf");
    let pasta = build("pasta", &cut_off).ok();
    assert!(pasta.stderr.contains("nameserver 169.254.1.1"), "{}", pasta.stderr);
    // pasta gives commands the host's own address; with slirp4netns, that address is the host.
    let slirp = build("slirp4netns", &format!("{cut_off} && timeout 10 nc {address} {out_port} </dev/null")).ok();
    assert!(slirp.stderr.contains("from-outside") && slirp.stderr.contains("nameserver 10.0.2.3"), "{}", slirp.stderr);
    inside.set_nonblocking(true).unwrap();
    assert!(inside.accept().is_err(), "a command came to the machine's loopback address");
    // The network helper has exited.
    let left = lab.sh("pgrep -af 'pasta|slirp4netns' | grep -- \"$LAB\" || true").ok().stdout;
    assert_eq!(left, "");
    // `--network=host` then needs an entitlement.
    lab.write("Dockerfile", "FROM busybox\nRUN --network=host true\n");
    lab.rbuild(["build", "--network", "isolated"])
        .fails(2, &["`--network=host` is not allowed", "--allow network.host"]);
    lab.rbuild(["build", "--network", "isolated", "--allow", "network.host"]).ok();
    let out = lab.run_with(&mut lab.command(["run", "--network", "isolated", "busybox", "ip", "route"]), &[]).ok();
    assert!(out.stdout.contains("default via"), "{}", out.stdout);
}

#[test]
fn isolated_requires_an_installed_carrier_and_reports_its_absence() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN true\n");
    let nothing = only(&lab, &[]);
    let ran = lab.run_with(&mut lab.command(["build", "--network", "isolated"]), &[("PATH", &nothing)]);
    ran.fails(3, &["requires `pasta` or `slirp4netns`", "apt-get install passt"]);
}

/// Kills the container at the end of the test.
pub struct Kept<'a>(pub &'a Lab, pub &'a str);

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.rbuild(["rm", "-f", self.1]);
    }
}

/// Returns the answer to an HTTP request for the page `/`.
fn page(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text).filter(|text| !text.is_empty())
}

pub fn wait_for_page(port: u16) -> String {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        if let Some(text) = page(port) {
            return text;
        }
        assert!(std::time::Instant::now() < end, "no page at port {port}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server of one page: the httpd of busybox.
const SERVER: &str = "FROM busybox\nRUN mkdir /www && echo welcome > /www/index.html\nEXPOSE 80 443\n\
                      ENTRYPOINT [\"httpd\", \"-f\", \"-p\", \"80\", \"-h\", \"/www\"]\n";

#[test]
fn published_ports_are_forwarded_to_a_server() {
    let lab = Lab::new();
    lab.build(SERVER, &["-q", "-t", "server"]).ok();
    let _kept = [Kept(&lab, "n"), Kept(&lab, "m")];
    let port = free_port();
    let publish = format!("{port}:80");
    lab.rbuild(["run", "--name", "n", "-d", "-p", &publish, "server"]).ok();
    let text = wait_for_page(port);
    assert!(text.ends_with("welcome\n"), "{text}");
    assert_eq!(lab.rbuild(["ps", "--format", "{{.Ports}}"]).ok().stdout, format!("0.0.0.0:{port}->80/tcp\n"));
    assert_eq!(lab.rbuild(["port", "n"]).ok().stdout, format!("80/tcp -> 0.0.0.0:{port}\n"));
    assert_eq!(lab.rbuild(["port", "n", "80"]).ok().stdout, format!("0.0.0.0:{port}\n"));
    lab.rbuild(["port", "n", "81"]).fails(1, &["does not publish that port", "rbuild port n"]);
    let host_port = "{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}}";
    assert_eq!(lab.rbuild(["inspect", "-f", host_port, "n"]).ok().stdout, format!("{port}\n"));
    // The command has its own loopback interface, and the way out of any isolated network.
    let out = lab.rbuild(["exec", "n", "wget", "-qO-", "http://127.0.0.1/"]).ok();
    assert_eq!(out.stdout, "welcome\n");
    let refused = lab.rbuild(["run", "-d", "-p", &publish, "server"]);
    refused.fails(125, &[&format!("port {port}/tcp is already in use"), "publish another port: -p "]);
    // All exposed ports, at free ports of the machine.
    lab.rbuild(["run", "--name", "m", "-d", "-P", "server"]).ok();
    let ports = lab.rbuild(["port", "m"]).ok().stdout;
    assert_eq!(ports.lines().count(), 2, "{ports}");
    let of_80 = ports.lines().find(|line| line.starts_with("80/tcp")).unwrap();
    assert!(wait_for_page(of_80.rsplit(':').next().unwrap().parse().unwrap()).ends_with("welcome\n"));
    // The program that forwards waits for no children, so it must have none.
    let zombies = "for p in $(pgrep -f 'slirp4netns.*'$LAB); do ps -o stat= --ppid $p; done";
    assert_eq!(lab.sh(zombies).stdout, "");
    lab.rbuild(["rm", "-f", "n", "m"]).ok();
    assert!(page(port).is_none(), "the port is still open");
    let left = lab.sh("pgrep -af 'pasta|slirp4netns' | grep -- \"$LAB\" || true").ok().stdout;
    assert_eq!(left, "");
}

#[test]
fn ports_that_cannot_be_published_are_reported() {
    let lab = Lab::new();
    lab.rbuild(["run", "-p", "x:80", "busybox", "true"]).fails(125, &["--publish x:80", "-p 8080:80"]);
    lab.rbuild(["run", "-p", "[::1]:8080:80", "busybox", "true"]).fails(125, &["only IPv4 addresses"]);
    let warned = lab.rbuild(["run", "--rm", "--network", "host", "-p", "8080:80", "busybox", "echo", "ran"]).ok();
    assert!(warned.stdout == "ran\n" && warned.stderr.contains("ports are not published"), "{}", warned.stderr);
    let nothing = only(&lab, &[]);
    let ran = lab.run_with(&mut lab.command(["run", "-d", "-p", "0:80", "busybox", "true"]), &[("PATH", &nothing)]);
    ran.fails(125, &["requires `pasta` or `slirp4netns`"]);
    assert_eq!(lab.rbuild(["ps", "-aq"]).ok().stdout, "");
    let restricted = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if !nix::unistd::geteuid().is_root() && restricted.trim() == "1024" {
        lab.rbuild(["run", "-d", "-p", "80:80", "busybox", "true"]).fails(125, &["reserved for root", "-p 8080:80"]);
    }
}
