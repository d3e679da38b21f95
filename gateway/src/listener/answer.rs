//! The few HTTP answers given before any HTTP engine has the connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::shared::Shared;
use crate::telemetry::Text;
use crate::telemetry::access::HttpRecord;

/// What a client is told that does not speak what its port speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// No HTTP on an HTTP port.
    NotHttp,
    /// Plain HTTP on the HTTPS port.
    NotTls,
    /// No request line in time.
    Timeout,
}

impl Answer {
    fn status(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::NotHttp => (400, "Bad Request", "this is no HTTP request\n"),
            Self::NotTls => (400, "Bad Request", "this port speaks HTTPS only\n"),
            Self::Timeout => (408, "Request Timeout", "the request took too long\n"),
        }
    }

    /// The whole answer; counts and logs it.
    pub(super) fn give(self, shared: &Shared, peer: SocketAddr, took: Duration) -> String {
        let (status, reason, text) = self.status();
        let request_id = Uuid::now_v7().to_string();
        let length = text.len();
        let answer = format!(
            "HTTP/1.1 {status} {reason}\r\n\
             Content-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {length}\r\n\
             X-Request-ID: {request_id}\r\n\
             Connection: close\r\n\r\n{text}"
        );
        let record = HttpRecord {
            request_id: request_id.as_str().into(),
            revision: shared.table().revision,
            peer,
            version: "1.1",
            method: "OTHER",
            host: Text::default(),
            path: Text::default(),
            route: Arc::from("none"),
            upstream: None,
            status,
            grpc_status: None,
            bytes_in: 0,
            bytes_out: length as u64,
            duration: took,
            ended: Instant::now(),
            note: Some(text.trim_end().into()),
        };
        shared.request_done(record);
        answer
    }
}
