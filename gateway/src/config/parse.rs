//! Single values of the command line.

use std::net::{IpAddr, SocketAddr};

use edd_route::Host;
use ipnet::IpNet;

use super::ProxyProtocol;

pub(super) fn parse_ip(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not an IP address"))
}

pub(super) fn parse_net(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| format!("{text:?} is not a network such as 10.0.0.0/8"))
}

pub(super) fn parse_port(text: &str) -> Result<u16, String> {
    text.parse::<u16>()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("{text:?} is not a port from 1 to 65535"))
}

pub(super) fn parse_proxy_protocol(text: &str) -> Result<ProxyProtocol, String> {
    match text {
        "off" => Ok(ProxyProtocol::Off),
        "optional" => Ok(ProxyProtocol::Optional),
        "required" => Ok(ProxyProtocol::Required),
        _ => Err(format!("{text:?} is not off, optional or required")),
    }
}

pub(super) fn parse_number(text: &str, min: usize, max: usize) -> Result<usize, String> {
    text.parse::<usize>()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| match max {
            usize::MAX => format!("{text:?} is not a whole number"),
            max => format!("{text:?} is not a whole number from {min} to {max}"),
        })
}

pub(super) fn parse_domain(text: &str) -> Result<String, String> {
    Host::parse(text)
        .map(|host| host.to_string())
        .map_err(|error| format!("{text:?} {error}"))
        .and_then(|host| match text.contains(':') {
            true => Err(format!("{text:?} is not a domain name")),
            false => Ok(host),
        })
}

/// A name server: an address, port 53 unless it has one.
pub(super) fn parse_server(text: &str) -> Result<SocketAddr, String> {
    text.parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|address| (address, 53).into()))
        .map_err(|_| format!("{text:?} is not ADDRESS or ADDRESS:PORT such as 127.0.0.53"))
}
