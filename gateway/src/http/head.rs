//! The part of a request's head that names where it wants to go.
//!
//! A view that borrows from whatever engine read the head, and the one function
//! that makes a host of it. Which routes exist is not known here.

use edd_route::Host;
use edd_route::name::NameError;

/// Protocol version of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Version {
    /// HTTP/1.0.
    H10,
    /// HTTP/1.1.
    H11,
    /// HTTP/2.
    H2,
}

impl Version {
    /// As the access log writes it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::H10 => "1.0",
            Self::H11 => "1.1",
            Self::H2 => "2",
        }
    }
}

/// The `Host` fields of a head.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HostField<'r> {
    /// More than one, whatever they say.
    Many,
    /// No such field.
    None,
    /// Exactly one.
    One(&'r [u8]),
}

/// What a head says about its destination.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadView<'r> {
    /// The method, as sent.
    pub(crate) method: &'r str,
    /// Protocol version.
    pub(crate) version: Version,
    /// Authority of an absolute-form target, or `:authority`.
    pub(crate) authority: Option<&'r str>,
    /// The `Host` field.
    pub(crate) host: HostField<'r>,
}

/// A request's destination by name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Destination<'r> {
    /// The name to look up.
    pub(crate) host: Host,
    /// What the upstream is told as `Host`: as the client wrote it, port and all.
    pub(crate) authority: &'r str,
}

/// Why a head is answered with 400.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum HeadError {
    /// Not a host name.
    #[error("the host {0}")]
    BadHost(NameError),
    /// A host with bytes beyond ASCII.
    #[error("the host is not ASCII")]
    Bytes,
    /// This is no forward proxy.
    #[error("CONNECT is not supported")]
    Connect,
    /// More than one `Host`.
    #[error("more than one Host field")]
    DuplicateHost,
    /// `Host` and `:authority` differ.
    #[error("Host and :authority differ")]
    HostMismatch,
    /// No `Host` where the protocol demands one.
    #[error("no Host field")]
    MissingHost,
}

impl<'r> HeadView<'r> {
    /// The destination; an absolute-form target or `:authority` wins over `Host` (RFC 9112, section 3.2.2).
    ///
    /// Over HTTP/2 the two must agree (RFC 9113, section 8.3.1).
    pub(crate) fn destination(&self) -> Result<Destination<'r>, HeadError> {
        if self.method == "CONNECT" {
            return Err(HeadError::Connect);
        }
        let field = match self.host {
            HostField::Many => return Err(HeadError::DuplicateHost),
            HostField::None => None,
            HostField::One(bytes) => {
                let text = std::str::from_utf8(bytes).map_err(|_| HeadError::Bytes)?;
                Some(text)
            }
        };
        if field.is_none() && self.version == Version::H11 {
            return Err(HeadError::MissingHost);
        }
        let authority = match (self.authority, field) {
            (Some(authority), Some(field)) => {
                if self.version == Version::H2 && !authority.eq_ignore_ascii_case(field) {
                    return Err(HeadError::HostMismatch);
                }
                // A bad field is an error even where it does not count.
                Host::parse(field).map_err(HeadError::BadHost)?;
                authority
            }
            (Some(authority), None) => authority,
            (None, Some(field)) => field,
            (None, None) => return Err(HeadError::MissingHost),
        };
        let host = Host::parse(authority).map_err(HeadError::BadHost)?;
        Ok(Destination { host, authority })
    }
}

/// The method as metrics and logs name it: bounded, whatever clients send.
pub(crate) fn method_label(method: &str) -> &'static str {
    match method {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "PATCH" => "PATCH",
        "OPTIONS" => "OPTIONS",
        "TRACE" => "TRACE",
        "CONNECT" => "CONNECT",
        _ => "OTHER",
    }
}

/// Whether a second delivery of the method changes nothing (RFC 9110, section 9.2.1).
pub(crate) fn is_safe(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(
        version: Version,
        authority: Option<&str>,
        host: HostField<'_>,
    ) -> Result<(String, String), HeadError> {
        let view = HeadView {
            method: "GET",
            version,
            authority,
            host,
        };
        let found = view.destination()?;
        Ok((found.host.as_str().to_owned(), found.authority.to_owned()))
    }

    fn names(host: &str, authority: &str) -> Result<(String, String), HeadError> {
        Ok((host.to_owned(), authority.to_owned()))
    }

    #[test]
    fn the_target_wins_over_the_host_field() {
        use HostField::{None as No, One};
        use Version::{H2, H10, H11};
        for (version, authority, host, expected) in [
            (
                H11,
                None,
                One(b"A.example:81"),
                names("a.example", "A.example:81"),
            ),
            (
                H11,
                Some("b.example"),
                One(b"a.example"),
                names("b.example", "b.example"),
            ),
            (
                H10,
                None,
                One(b"a.example"),
                names("a.example", "a.example"),
            ),
            (H10, Some("b.example"), No, names("b.example", "b.example")),
            (H2, Some("b.example"), No, names("b.example", "b.example")),
            (
                H2,
                Some("b.example"),
                One(b"B.example"),
                names("b.example", "b.example"),
            ),
            (H2, None, One(b"b.example"), names("b.example", "b.example")),
        ] {
            assert_eq!(destination(version, authority, host), expected);
        }
    }

    #[test]
    fn missing_doubled_bad_and_differing_hosts_are_refused() {
        use HostField::{Many, None as No, One};
        use Version::{H2, H10, H11};
        for (version, authority, host, error) in [
            (H11, None, No, HeadError::MissingHost),
            (H11, Some("b.example"), No, HeadError::MissingHost),
            (H10, None, No, HeadError::MissingHost),
            (H2, None, No, HeadError::MissingHost),
            (H11, None, Many, HeadError::DuplicateHost),
            (H2, Some("a.example"), Many, HeadError::DuplicateHost),
            (
                H2,
                Some("a.example"),
                One(b"b.example"),
                HeadError::HostMismatch,
            ),
            (H11, None, One(b""), HeadError::BadHost(NameError::Empty)),
            (
                H11,
                None,
                One(b"a b"),
                HeadError::BadHost(NameError::Character),
            ),
            (
                H11,
                None,
                One(b"u@a.example"),
                HeadError::BadHost(NameError::Character),
            ),
            (
                H11,
                Some("b.example"),
                One(b"a b"),
                HeadError::BadHost(NameError::Character),
            ),
            (H11, None, One(b"\xff"), HeadError::Bytes),
        ] {
            assert_eq!(destination(version, authority, host), Err(error));
        }
        let connect = HeadView {
            method: "CONNECT",
            version: H11,
            authority: Some("a.example:443"),
            host: One(b"a.example:443"),
        };
        assert_eq!(connect.destination().err(), Some(HeadError::Connect));
    }

    #[test]
    fn method_labels_are_bounded() {
        assert_eq!(method_label("GET"), "GET");
        assert_eq!(method_label("get"), "OTHER");
        assert_eq!(method_label("PROPFIND"), "OTHER");
    }
}
