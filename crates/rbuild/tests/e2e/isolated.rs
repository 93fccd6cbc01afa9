//! The isolated network, which has outbound access only.

use std::io::Write;
use std::net::{TcpListener, UdpSocket};
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
