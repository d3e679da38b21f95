//! Why there is no answer from an upstream, and what the client and the log are told.

use std::borrow::Cow;

use crate::http::answer::Answer;
use crate::http::side::SideError;
use crate::upstream::{ConnectError, NoTarget};

/// Why there is no answer from the upstream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The connection broke, or what came is no answer.
    #[error("the upstream broke off before its answer")]
    Broke(#[source] SideError),
    /// The client's body was malformed, or it left in the middle of it.
    #[error("the request's body broke off")]
    ClientBroke(#[source] SideError),
    /// The client left.
    #[error("client left")]
    ClientLeft,
    /// The client stopped sending its body.
    #[error("the request's body stalled")]
    ClientStalled,
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The drain's deadline came first.
    #[error("the gateway is shutting down")]
    Drained,
    /// No target takes it.
    #[error(transparent)]
    NoTarget(#[from] NoTarget),
    /// What admitted the request is over.
    #[error("no longer admitted")]
    Revoked,
    /// The upstream's protocol has no form for the request: the client's fault, not the upstream's.
    #[error("the request cannot be put to this upstream")]
    Unaskable,
    /// No response head in time.
    #[error("the upstream did not answer in time")]
    TimedOut,
}

impl Failure {
    /// What the client is told; nothing where nobody listens.
    pub(crate) fn answer(&self) -> Option<Answer> {
        Some(match self {
            Self::Broke(_)
            | Self::Connect(
                ConnectError::Loop(_)
                | ConnectError::Refused { .. }
                | ConnectError::Tls { .. }
                | ConnectError::Unresolved(_)
                | ConnectError::Unusable(_),
            )
            | Self::Revoked => Answer::bad_gateway(),
            Self::ClientBroke(SideError::Malformed(_)) | Self::Unaskable => {
                Answer::bad_request(self)
            }
            Self::ClientBroke(_) | Self::ClientLeft => return None,
            Self::ClientStalled => Answer::request_timeout(),
            Self::Connect(ConnectError::Limit(_)) => Answer::overloaded(),
            Self::NoTarget(_) => Answer::unavailable(),
            Self::Drained => Answer::draining(),
            Self::Connect(ConnectError::TimedOut) | Self::TimedOut => Answer::gateway_timeout(),
        })
    }

    /// What the access log is told.
    pub(crate) fn note(&self) -> Cow<'static, str> {
        if let Self::ClientLeft = self {
            return "client left".into();
        }
        let mut note = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            note.push_str(": ");
            note.push_str(&error.to_string());
            cause = error.source();
        }
        note.into()
    }
}
