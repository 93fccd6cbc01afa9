//! Proxies of the environment, by the rules of Go's `net/http`.

use std::net::IpAddr;

use crate::environment::ProcessEnvironment;

/// Returns the URL of the proxy for a request, if one applies.
pub(crate) fn proxy_for(environment: &ProcessEnvironment, scheme: &str, host: &str, port: u16) -> Option<String> {
    let variable = |names: &[&str]| names.iter().find_map(|name| environment.variable(name)).map(str::to_string);
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    if is_loopback(plain) {
        return None;
    }
    let no_proxy = variable(&["no_proxy", "NO_PROXY"]).unwrap_or_default();
    if is_exempt(&no_proxy, plain, port) {
        return None;
    }
    let proxy = match scheme {
        "https" => variable(&["https_proxy", "HTTPS_PROXY"]),
        // In a CGI program, HTTP_PROXY is the `Proxy` header of the request.
        _ if environment.variable("REQUEST_METHOD").is_some() => variable(&["http_proxy"]),
        _ => variable(&["http_proxy", "HTTP_PROXY"]),
    };
    let proxy = proxy.or_else(|| variable(&["all_proxy", "ALL_PROXY"]))?;
    Some(if proxy.contains("://") { proxy } else { format!("http://{proxy}") })
}

/// Returns true for names and addresses of this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_exempt(no_proxy: &str, host: &str, port: u16) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    no_proxy.split([',', ' ']).map(|rule| rule.trim().to_ascii_lowercase()).filter(|rule| !rule.is_empty()).any(
        |rule| {
            if rule == "*" {
                return true;
            }
            if let Some((network, length)) = rule.split_once('/') {
                return address.is_some_and(|address| in_network(address, network, length));
            }
            let (name, at) = split_port(&rule);
            if at.is_some_and(|at| at != port) {
                return false;
            }
            if let Ok(rule) = name.parse::<IpAddr>() {
                return address == Some(rule);
            }
            match name.strip_prefix("*.").or_else(|| name.strip_prefix('.')) {
                Some(domain) => host.ends_with(&format!(".{domain}")),
                None => host == name || host.ends_with(&format!(".{name}")),
            }
        },
    )
}

/// Splits `host:port`, `[v6]:port`, or an address without a port.
fn split_port(rule: &str) -> (&str, Option<u16>) {
    if let Some((address, rest)) = rule.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (address, rest.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match rule.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, port.parse().ok()),
        _ => (rule, None),
    }
}

fn in_network(address: IpAddr, network: &str, length: &str) -> bool {
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    };
    let ((address, size), (network, other)) = (bits(address), bits(network));
    size == other && length <= size && (length == 0 || (address ^ network) >> (128 - length) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(variables: &[(&str, &str)], scheme: &str, host: &str) -> Option<String> {
        proxy_for(&ProcessEnvironment::of(variables.iter().copied(), std::path::Path::new("/")), scheme, host, 443)
    }

    #[test]
    fn the_scheme_selects_the_proxy() {
        let both = [("https_proxy", "https://s:1"), ("http_proxy", "p:2"), ("ALL_PROXY", "http://a:3")];
        assert_eq!(proxy(&both, "https", "a.io").as_deref(), Some("https://s:1"));
        assert_eq!(proxy(&both, "http", "a.io").as_deref(), Some("http://p:2"));
        assert_eq!(proxy(&both[2..], "https", "a.io").as_deref(), Some("http://a:3"));
        assert_eq!(proxy(&[("HTTP_PROXY", "p:2"), ("REQUEST_METHOD", "GET")], "http", "a.io"), None);
        for local in ["localhost", "127.0.0.9", "[::1]"] {
            assert_eq!(proxy(&both, "https", local), None, "{local}");
        }
    }

    #[test]
    fn no_proxy_accepts_names_domains_addresses_networks_and_ports() {
        let exempt =
            |rules: &str, host: &str| proxy(&[("https_proxy", "p:1"), ("no_proxy", rules)], "https", host).is_none();
        assert!(exempt("a.io", "a.io") && exempt("a.io", "x.A.io") && !exempt("a.io", "ba.io"));
        assert!(exempt(".a.io", "x.a.io") && !exempt(".a.io", "a.io"));
        assert!(exempt("x, *", "any") && exempt("a.io:443", "a.io") && !exempt("a.io:80", "a.io"));
        assert!(exempt("10.0.0.0/8", "10.1.2.3") && !exempt("10.0.0.0/8", "11.1.2.3"));
        assert!(exempt("fd00::/8", "fd12::1") && exempt("fd12::1", "[fd12::1]") && !exempt("10.0.0.0/99", "10.0.0.1"));
        assert!(exempt("0.0.0.0/0", "8.8.8.8"));
    }
}
