//! Ports of the host that a carrier forwards to the isolated network.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rbuild_container::{PortProtocol, PublishedPort};
use serde::Deserialize;
use serde_json::json;

use crate::error::{RunnerProblem, library};

/// Maximum time until outbound access works, and until ports are forwarded.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// Address of the isolated network's interface, to which slirp4netns forwards.
const GUEST: &str = "10.0.2.100";

/// An answer of slirp4netns (slirp4netns(1), "API socket").
#[derive(Deserialize)]
struct ForwardAnswer {
    error: Option<ForwardFailure>,
}

#[derive(Deserialize)]
struct ForwardFailure {
    desc: String,
}

/// Returns the arguments of pasta that forward these ports, and no others.
pub(super) fn pasta_arguments(ports: &[PublishedPort]) -> Vec<String> {
    let mut words = Vec::new();
    for (flag, protocol) in [("-t", PortProtocol::Tcp), ("-u", PortProtocol::Udp)] {
        let of_protocol: Vec<&PublishedPort> = ports.iter().filter(|port| port.target.protocol == protocol).collect();
        if of_protocol.is_empty() {
            words.extend([flag.to_string(), "none".to_string()]);
        }
        for PublishedPort { address, port, target } in of_protocol {
            words.extend([flag.to_string(), format!("{address}/{port}:{}", target.number)]);
        }
    }
    words
}

/// Requests that slirp4netns forward the ports, once it listens at `api`. Writes the failure, if
/// there is one, to `result`.
pub(super) fn forward(ports: &[PublishedPort], api: &Path, mut result: PipeWriter) {
    let outcome = ports.iter().try_for_each(|port| {
        let reason = match ask(port, api) {
            Ok(ForwardAnswer { error: None }) => return Ok(()),
            Ok(ForwardAnswer { error: Some(ForwardFailure { desc }) }) => desc,
            Err(e) => rbuild_remedy::message(&e),
        };
        let port = format!("{}:{}/{}", port.address, port.port, port.target.protocol.name());
        Err(RunnerProblem::PortNotForwarded { port, reason })
    });
    // A failure that cannot be reported is reported as the end of this process.
    let _ = serde_json::to_vec(&outcome).map(|text| result.write_all(&text));
}

fn ask(PublishedPort { address, port, target }: &PublishedPort, api: &Path) -> std::io::Result<ForwardAnswer> {
    let end = Instant::now() + TIMEOUT;
    let mut socket = loop {
        match UnixStream::connect(api) {
            Err(e) if Instant::now() > end => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
            Ok(socket) => break socket,
        }
    };
    let request = json!({"execute": "add_hostfwd", "arguments": {
        "proto": target.protocol.name(), "host_addr": address.to_string(), "host_port": port,
        "guest_addr": GUEST, "guest_port": target.number,
    }});
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.write_all(request.to_string().as_bytes())?;
    socket.shutdown(std::net::Shutdown::Write)?;
    let mut text = Vec::new();
    socket.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Reads the result of [`forward`].
///
/// # Errors
///
/// Fails if a port is not forwarded.
pub(super) fn result(forwarded: &mut PipeReader) -> Result<(), RunnerProblem> {
    let mut text = Vec::new();
    forwarded.read_to_end(&mut text).map_err(library)?;
    serde_json::from_slice::<Result<(), RunnerProblem>>(&text).map_err(library)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pasta_forwards_the_published_ports_only() {
        let port = |address: &str, port, target: &str| PublishedPort {
            address: address.parse().unwrap(),
            port,
            target: target.parse().ok().unwrap(),
        };
        assert_eq!(pasta_arguments(&[]).join(" "), "-t none -u none");
        let ports = [port("0.0.0.0", 8080, "80"), port("127.0.0.1", 5353, "53/udp"), port("0.0.0.0", 8443, "443")];
        let expected = "-t 0.0.0.0/8080:80 -t 0.0.0.0/8443:443 -u 127.0.0.1/5353:53";
        assert_eq!(pasta_arguments(&ports).join(" "), expected);
    }
}
