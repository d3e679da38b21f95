//! What the requests of one client connection have in common.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use edd_http1::write;
use smallvec::SmallVec;

use super::ConnectionFacts;
use super::decide::Ground;
use super::fields;
use super::head::Destination;
use super::policy::{self, Chain};
use super::side::Field;
use crate::listener::Worker;

/// A client connection, as its requests see it.
#[derive(Debug)]
pub(crate) struct Downstream {
    /// The thread it is served by.
    pub(crate) worker: Rc<Worker>,
    /// What is known of it.
    pub(crate) facts: ConnectionFacts,
    /// Whether the peer is a proxy whose words are believed.
    pub(crate) is_trusted: bool,
    /// What the upstream is told about the client with every request: lines of its head.
    told: Box<[u8]>,
}

/// What the upstream is told about the client of one request: names and values, in order.
pub(crate) type Identity<'r> = SmallVec<[(&'r str, Cow<'r, str>); 1]>;

impl Downstream {
    /// A connection of which nothing was asked yet.
    pub(crate) fn new(worker: &Rc<Worker>, mut facts: ConnectionFacts) -> Self {
        let peer = facts.peer.ip().to_canonical();
        let is_trusted =
            facts.is_known && policy::is_trusted(peer, &worker.shared.config.trusted_proxies);
        let certificate = facts.tls.as_mut().and_then(|tls| tls.client_cert.take());
        let mut told = Vec::new();
        let mut tell = |name: &str, value: &str| {
            let told = write::field(&mut told, name.as_bytes(), value.as_bytes());
            debug_assert!(told.is_ok(), "made here: {name}");
        };
        if let Some(certificate) = certificate {
            tell("client-cert", &certificate);
        }
        if !is_trusted {
            tell("x-forwarded-for", &peer.to_string());
            tell("x-forwarded-proto", scheme(&facts));
        }
        Self {
            is_trusted,
            worker: Rc::clone(worker),
            told: told.into(),
            facts,
        }
    }

    /// Lines of a request's head that tell about the client, the same for all requests.
    pub(crate) fn told(&self) -> &[u8] {
        &self.told
    }

    /// The client's address.
    pub(crate) fn client(&self, fields: &[Field<'_>]) -> IpAddr {
        let peer = self.facts.peer.ip();
        if !self.is_trusted {
            return peer.to_canonical();
        }
        let chain = joined(fields, b"x-forwarded-for");
        let hops = policy::tokens(chain.as_deref().unwrap_or_default());
        policy::client_address(peer, hops, &self.worker.shared.config.trusted_proxies)
    }

    /// [`Self::client`] for the routes' lists: whoever is unknown is on none but those of everybody.
    pub(crate) fn listed(&self, client: IpAddr) -> IpAddr {
        match self.facts.is_known {
            true => client,
            false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        }
    }

    /// What a decision needs to know of the connection.
    pub(crate) fn ground(&self, to: &Destination<'_>) -> Ground {
        self.facts.ground(&self.worker.shared, to.host.as_str())
    }

    /// What else the upstream is told about the client of a request.
    pub(crate) fn identity<'r>(&'r self, fields: &[Field<'_>], authority: &'r str) -> Identity<'r> {
        let mut said = Identity::new();
        if !self.is_trusted {
            said.push(("x-forwarded-host", Cow::Borrowed(authority)));
            return said;
        }
        let one = |name| {
            fields::first(fields, name)
                .and_then(text)
                .map(str::to_owned)
        };
        let chain = Chain {
            forwarded_for: joined(fields, b"x-forwarded-for"),
            proto: one(b"x-forwarded-proto"),
            host: one(b"x-forwarded-host"),
            forwarded: joined(fields, b"forwarded"),
        };
        let secure = self.facts.tls.is_some();
        let seen = chain.extend(self.facts.peer.ip(), secure, authority);
        said.push(("x-forwarded-for", Cow::Owned(seen.forwarded_for)));
        said.push(("x-forwarded-proto", Cow::Owned(seen.proto)));
        said.push(("x-forwarded-host", Cow::Owned(seen.host)));
        if let Some(forwarded) = seen.forwarded {
            said.push(("forwarded", Cow::Owned(forwarded)));
        }
        said
    }
}

/// What the client uses.
fn scheme(facts: &ConnectionFacts) -> &'static str {
    match facts.tls {
        Some(_) => "https",
        None => "http",
    }
}

/// Printable ASCII only, as everything that is read here is.
fn text(value: &[u8]) -> Option<&str> {
    let printable = value.iter().all(|b| matches!(b, b' '..=b'~'));
    printable.then(|| std::str::from_utf8(value).ok()).flatten()
}

/// The values of all fields of that name.
fn joined(fields: &[Field<'_>], name: &[u8]) -> Option<String> {
    let named = fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut values = named.filter_map(|(_, value)| text(value));
    let mut all = values.next()?.to_owned();
    for value in values {
        all.push_str(", ");
        all.push_str(value);
    }
    Some(all)
}
