//! Network of commands: `--network`, the program that connects an isolated network, and
//! resolv.conf.

use rbuild_plan::NetworkMode;
use rbuild_sandbox::{Carrier, SandboxError};
use rbuild_store::DnsSettings;

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
    replaced(&host, &["nameserver"], &[format!("nameserver {}", carrier.nameserver())])
}

/// Returns the content of /etc/resolv.conf for a container: as above, with the settings of flags.
pub fn resolv_conf_with(carrier: Option<&Carrier>, dns: &DnsSettings) -> String {
    let DnsSettings { servers, search, options } = dns;
    let mut text = resolv_conf(carrier);
    if !servers.is_empty() {
        let lines: Vec<String> = servers.iter().map(|server| format!("nameserver {server}")).collect();
        text = replaced(&text, &["nameserver"], &lines);
    }
    if !search.is_empty() {
        // As in docker, a dot stands for none.
        let is_none = search.iter().any(|domain| domain == ".");
        let line = (!is_none).then(|| format!("search {}", search.join(" ")));
        text = replaced(&text, &["search", "domain"], line.as_slice());
    }
    if !options.is_empty() {
        text = replaced(&text, &["options"], &[format!("options {}", options.join(" "))]);
    }
    text
}

/// Replaces the lines of a resolv.conf that begin with one of these words.
fn replaced(text: &str, words: &[&str], by: &[String]) -> String {
    let is_kept = |line: &&str| !line.split_whitespace().next().is_some_and(|word| words.contains(&word));
    by.iter().map(String::as_str).chain(text.lines().filter(is_kept)).flat_map(|line| [line, "\n"]).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_name_resolution_are_replaced() {
        let text = "# file\nnameserver 10.0.0.1\nsearch a b\n  nameserver 10.0.0.2\noptions ndots:5\n";
        for (words, by, expected) in [
            (
                &["nameserver"][..],
                &["nameserver 1.1.1.1"][..],
                "nameserver 1.1.1.1\n# file\nsearch a b\noptions ndots:5\n",
            ),
            (&["search", "domain"], &[], "# file\nnameserver 10.0.0.1\n  nameserver 10.0.0.2\noptions ndots:5\n"),
        ] {
            let by: Vec<String> = by.iter().map(|line| line.to_string()).collect();
            assert_eq!(replaced(text, words, &by), expected);
        }
        let dns =
            DnsSettings { servers: vec!["10.9.9.9".into()], search: vec![".".into()], options: vec!["rotate".into()] };
        let text = resolv_conf_with(None, &dns);
        assert!(text.starts_with("options rotate\nnameserver 10.9.9.9\n") && !text.contains("search"), "{text}");
    }
}
