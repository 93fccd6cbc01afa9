//! Ports of containers that are reachable from outside.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl PortProtocol {
    /// Returns the name, as in `80/tcp`.
    pub fn name(self) -> &'static str {
        match self {
            PortProtocol::Tcp => "tcp",
            PortProtocol::Udp => "udp",
        }
    }
}

/// A port in a container, `80/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerPort {
    /// The number.
    pub number: u16,
    /// The protocol.
    pub protocol: PortProtocol,
}

impl fmt::Display for ContainerPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol.name())
    }
}

/// A text that is not a port from 1 to 65535 with the protocol `tcp` or `udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidPort;

impl FromStr for ContainerPort {
    type Err = InvalidPort;

    /// Parses `NUMBER[/PROTOCOL]`.
    fn from_str(text: &str) -> Result<ContainerPort, InvalidPort> {
        let (number, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.split('/').next().unwrap_or_default(), PortProtocol::Tcp),
            Some((number, "udp")) => (number, PortProtocol::Udp),
            Some(_) => return Err(InvalidPort),
        };
        let number = number.parse().ok().filter(|number| *number > 0).ok_or(InvalidPort)?;
        Ok(ContainerPort { number, protocol })
    }
}

/// A port of the machine whose connections go to a port of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Address of the machine at which the port is open.
    pub address: IpAddr,
    /// Port of the machine.
    pub port: u16,
    /// Port of the container.
    pub target: ContainerPort,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_parsed_and_shown() {
        for (text, shown) in [("80", "80/tcp"), ("80/tcp", "80/tcp"), ("53/udp", "53/udp"), ("65535", "65535/tcp")] {
            assert_eq!(text.parse::<ContainerPort>().unwrap().to_string(), shown);
        }
        for text in ["", "0", "65536", "-1", "80/", "80/sctp", "80/tcp/udp", "http"] {
            assert_eq!(text.parse::<ContainerPort>(), Err(InvalidPort), "{text}");
        }
    }
}
