//! Published ports: `--publish`, `--publish-all` and `--expose`.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

use rbuild_plan::{ContainerPort, PortProtocol, PublishedPort};

use crate::exit::Failure;
use crate::ui::hints::ValueRemedy;

/// Port that hints suggest instead of one that is reserved for root: 8080 for 80.
const HIGH: u16 = 8000;

/// A port to publish. A missing port of the machine is chosen by the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    address: IpAddr,
    port: Option<u16>,
    target: ContainerPort,
}

/// Returns the ports that flags publish. `publish` are the values of `--publish`; `all` are the
/// ports of `--publish-all`. A missing port of the machine is one that is free at the time of the
/// call; the others are not checked.
///
/// # Errors
///
/// Fails if a value is not valid, or if no port is free.
pub fn published(publish: &[String], all: &BTreeSet<ContainerPort>) -> Result<Vec<PublishedPort>, Failure> {
    let mut wanted: Vec<Wanted> = publish.iter().map(|text| parse(text)).collect::<Result<_, _>>()?;
    for target in all {
        if !wanted.iter().any(|port| port.target == *target) {
            wanted.push(Wanted { address: Ipv4Addr::UNSPECIFIED.into(), port: None, target: *target });
        }
    }
    // Held until all are chosen.
    let mut held = Vec::new();
    let mut choose = |wanted: &Wanted| {
        let open = Held::open(wanted)?;
        let port = open.port();
        held.push(open);
        port
    };
    let mut ports = Vec::new();
    for wanted in wanted {
        let port = wanted.port.map_or_else(|| choose(&wanted).map_err(|e| refused(&wanted, &e)), Ok)?;
        ports.push(PublishedPort { address: wanted.address, port, target: wanted.target });
    }
    Ok(ports)
}

/// Fails unless all ports are free, and published once.
pub fn check(ports: &[PublishedPort]) -> Result<(), Failure> {
    let mut held = Vec::new();
    for PublishedPort { address, port, target } in ports {
        let wanted = Wanted { address: *address, port: Some(*port), target: *target };
        held.push(Held::open(&wanted).map_err(|e| refused(&wanted, &e))?);
    }
    Ok(())
}

/// Parses the ports of `--expose` and of an image.
///
/// # Errors
///
/// Fails if a text is not a port.
pub fn exposed<'a>(texts: impl IntoIterator<Item = &'a String>) -> Result<BTreeSet<ContainerPort>, Failure> {
    let parse = |text: &String| {
        let invalid = |_| Failure::usage(format!("`{text}` is not a port")).help(ValueRemedy::PortForm);
        text.parse().map_err(invalid)
    };
    texts.into_iter().map(parse).collect()
}

/// Parses `[[ADDRESS:]PORT:]CONTAINER-PORT[/PROTOCOL]`. The port of the machine may be empty.
fn parse(text: &str) -> Result<Wanted, Failure> {
    let bad = |problem: &str| Failure::usage(format!("--publish {text}: {problem}")).help(ValueRemedy::PublishForm);
    let (place, target) = text.rsplit_once(':').unwrap_or(("", text));
    if text.split('/').next().is_some_and(|ports| ports.contains('-')) {
        return Err(bad("ranges of ports are not supported"));
    }
    let target = target.parse().map_err(|_| bad("not a port of a container"))?;
    let (address, port) = place.rsplit_once(':').unwrap_or(("", place));
    let address = match address.trim_start_matches('[').trim_end_matches(']') {
        "" => Ipv4Addr::UNSPECIFIED.into(),
        address => address.parse().map_err(|_| bad("not an address of this machine"))?,
    };
    if !matches!(address, IpAddr::V4(_)) {
        return Err(bad("only IPv4 addresses are supported"));
    }
    let port = match port {
        "" | "0" => None,
        port => Some(port.parse().map_err(|_| bad("not a port of this machine"))?),
    };
    Ok(Wanted { address, port, target })
}

/// An open port.
enum Held {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Held {
    fn open(wanted: &Wanted) -> io::Result<Held> {
        let place = (wanted.address, wanted.port.unwrap_or(0));
        Ok(match wanted.target.protocol {
            PortProtocol::Tcp => Held::Tcp(TcpListener::bind(place)?),
            PortProtocol::Udp => Held::Udp(UdpSocket::bind(place)?),
        })
    }

    fn port(&self) -> io::Result<u16> {
        let address = match self {
            Held::Tcp(socket) => socket.local_addr(),
            Held::Udp(socket) => socket.local_addr(),
        };
        Ok(address?.port())
    }
}

/// Returns the failure for a port that cannot be opened.
fn refused(Wanted { address, port, target }: &Wanted, e: &io::Error) -> Failure {
    let port = port.unwrap_or(0);
    let place = format!("{port}/{}", target.protocol.name());
    let publish = |port: u16| {
        let suffix = if target.protocol == PortProtocol::Udp { "/udp" } else { "" };
        if address.is_unspecified() {
            format!("{port}:{}{suffix}", target.number)
        } else {
            format!("{address}:{port}:{}{suffix}", target.number)
        }
    };
    match e.kind() {
        io::ErrorKind::AddrInUse => Failure::new(format!("port {place} is already in use on this machine"))
            .help(ValueRemedy::OtherPort { publish: publish(port.wrapping_add(1).max(1024)) }),
        io::ErrorKind::PermissionDenied => Failure::new(format!("port {place} is reserved for root"))
            .help(ValueRemedy::OtherPort { publish: publish(HIGH.saturating_add(port)) }),
        io::ErrorKind::AddrNotAvailable => {
            Failure::new(format!("this machine does not have the address {address}")).help(ValueRemedy::PublishForm)
        }
        _ => Failure::caused(format!("cannot open port {place}"), e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_publish_have_the_forms_of_docker() {
        for (text, address, port, target) in [
            ("80", "0.0.0.0", None, "80/tcp"),
            ("8080:80", "0.0.0.0", Some(8080), "80/tcp"),
            (":80", "0.0.0.0", None, "80/tcp"),
            ("127.0.0.1:8080:80/udp", "127.0.0.1", Some(8080), "80/udp"),
            ("127.0.0.1::80", "127.0.0.1", None, "80/tcp"),
        ] {
            let wanted = Wanted { address: address.parse().unwrap(), port, target: target.parse().ok().unwrap() };
            assert_eq!(parse(text).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn refused_ports_are_as_recorded() {
        let invalid = ["", "x", "8080:", "a:80", "70000:80", "x:1:80", "[::1]:8080:80", "1-2:1-2", "80/sctp"];
        let mut text: String = invalid.map(|text| parse(text).unwrap_err().text()).concat();
        let wanted = |text: &str| parse(text).unwrap();
        for (value, kind) in [
            ("8080:80", io::ErrorKind::AddrInUse),
            ("127.0.0.1:53:53/udp", io::ErrorKind::AddrInUse),
            ("80:80", io::ErrorKind::PermissionDenied),
            ("192.0.2.1:8080:80", io::ErrorKind::AddrNotAvailable),
            ("8080:80", io::ErrorKind::OutOfMemory),
        ] {
            text += &refused(&wanted(value), &kind.into()).text();
        }
        text += &exposed([&"x".to_string()]).unwrap_err().text();
        rbuild_testkit::assert_recorded!("ports", text);
    }

    #[test]
    fn a_port_is_published_once() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let twice = [format!("127.0.0.1:{free}:80"), format!("127.0.0.1:{free}:81")];
        // `create` does not open ports: another program may use them until the start.
        let failure = check(&published(&twice, &BTreeSet::new()).unwrap()).unwrap_err();
        assert!(failure.message.ends_with("is already in use on this machine"), "{}", failure.message);
        let all = exposed(&["80".to_string(), "443/tcp".to_string()]).unwrap();
        let ports = published(&twice[..1], &all).unwrap();
        assert_eq!(ports.iter().map(|port| port.target.number).collect::<Vec<_>>(), [80, 443]);
        assert!(ports[0].port == free && ports[1].port > 0);
        check(&ports).unwrap();
    }
}
