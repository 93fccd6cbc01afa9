//! Network of commands: `--network`, the program that connects an isolated network, and
//! resolv.conf.

use rbuild_plan::NetworkMode;
use rbuild_sandbox::{Carrier, SandboxError};

use crate::exit::Failure;

/// Finds the program that connects an isolated network; `None` for other networks. `forwards` is
/// true if it forwards ports.
///
/// # Errors
///
/// Fails if the network is isolated and neither pasta nor slirp4netns is usable.
pub fn carrier(network: NetworkMode, forwards: bool) -> Result<Option<Carrier>, Failure> {
    match network {
        NetworkMode::Isolated => Ok(Some(Carrier::find(forwards).map_err(SandboxError::from)?)),
        NetworkMode::Host | NetworkMode::None => Ok(None),
    }
}

/// Returns the content of /etc/resolv.conf for commands. In an isolated network, the carrier is the
/// only name server.
pub fn resolv_conf(carrier: Option<&Carrier>) -> String {
    let host = host_resolv_conf();
    let Some(carrier) = carrier else { return host };
    let rest = host.lines().filter(|line| !line.trim_start().starts_with("nameserver"));
    [format!("nameserver {}", carrier.nameserver()).as_str()].into_iter().chain(rest).flat_map(|l| [l, "\n"]).collect()
}

/// Returns the resolv.conf of this machine, or the file with the actual servers if resolv.conf
/// contains only the stub resolver of systemd-resolved (127.0.0.53).
fn host_resolv_conf() -> String {
    let read = |p: &str| std::fs::read_to_string(p).unwrap_or_default();
    let own = read("/etc/resolv.conf");
    let mut servers = own.lines().filter_map(|l| l.trim().strip_prefix("nameserver")).map(str::trim).peekable();
    if servers.peek().is_some() && servers.all(|s| s == "127.0.0.53") {
        let real = read("/run/systemd/resolve/resolv.conf");
        if !real.is_empty() {
            return real;
        }
    }
    own
}
