//! Where a static route leads: its targets, and how they are checked and spoken to.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is spoken to a target.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub enum Scheme {
    /// HTTP/2 without TLS, with prior knowledge.
    H2c,
    /// HTTP/1.1 without TLS.
    Http,
    /// TLS, verified.
    Https,
}

impl Scheme {
    /// As it is written before `://`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::H2c => "h2c",
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// One upstream of a static route.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct TargetSpec {
    /// What is spoken.
    pub scheme: Scheme,
    /// `host:port`, the host in lower case, an IPv6 address in brackets.
    pub authority: String,
    /// Its share, relative to the route's other targets; from 1 to [`WEIGHT_MAX`].
    pub weight: u16,
}

impl TargetSpec {
    /// A target with weight 1 that is spoken to in plain HTTP/1.1.
    pub fn http(authority: &str) -> Self {
        Self {
            scheme: Scheme::Http,
            authority: authority.into(),
            weight: 1,
        }
    }

    /// The host alone, without brackets: what a certificate is checked against.
    pub fn host(&self) -> &str {
        let host = match self.authority.rsplit_once(':') {
            Some((host, _)) => host,
            None => &self.authority,
        };
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
    }
}

/// As short as the file allows: `host:port` for plain HTTP.
impl fmt::Display for TargetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Scheme::Http => f.write_str(&self.authority),
            scheme => write!(f, "{}://{}", scheme.as_str(), self.authority),
        }
    }
}

/// How the gateway itself looks whether a route's targets are well.
#[derive(Clone, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct HealthSpec {
    /// What is asked for, with GET; starts with `/`.
    pub path: String,
    /// From one look to the next.
    pub interval: Duration,
    /// Longest wait for the answer's head, connecting included.
    pub timeout: Duration,
}

/// Whose certificates a route's `https://` targets may have.
#[derive(Clone, Eq, PartialEq, Serialize, Deserialize)]
pub struct CaSpec {
    /// The file as routes.yaml names it.
    pub file: String,
    /// Its content, PEM. Part of the route: another content is another route.
    pub pem: String,
}

impl fmt::Debug for CaSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaSpec")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// The PROXY protocol header that a target's connections begin with.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum ProxyHeader {
    /// Version 2, binary.
    V2,
}

/// The largest weight of a target.
pub const WEIGHT_MAX: u16 = 1000;

/// The most targets that a route has.
pub const TARGETS_MAX: usize = 64;

/// The most often that a request is sent again, and how often if the route says nothing.
pub const RETRIES_MAX: u8 = 2;
