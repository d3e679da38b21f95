//! What the gateway answers by itself: status, short body, and whether the connection goes on.
//!
//! Details go to the access log; the client is told no more than it needs.

use std::fmt::Write as _;

use edd_route::decide::HttpRefusal;

use super::policy;

/// An answer of the gateway's own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Answer {
    /// Status code.
    pub(crate) status: u16,
    /// The error in one word, for programs.
    pub(crate) code: &'static str,
    /// The error in one line, for people.
    pub(crate) message: String,
    /// `Location` of a redirect.
    pub(crate) location: Option<String>,
    /// `Retry-After`, in seconds.
    pub(crate) retry_after_secs: Option<u64>,
    /// Whether an HTTP/1 connection ends with it.
    pub(crate) close: bool,
}

/// As the client can read it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Form {
    /// A status in the head, to a gRPC client.
    Grpc,
    /// `application/json`, as the services' APIs answer errors.
    Json,
    /// `text/plain`.
    Text,
}

impl Form {
    /// What a request's `Content-Type` and `Accept` ask for.
    pub(crate) fn of(content_type: &[u8], accept: &[u8]) -> Self {
        let is_grpc = |kind: &[u8]| kind.eq_ignore_ascii_case(GRPC.as_bytes());
        match content_type.split_at_checked(GRPC.len()) {
            // Not `application/grpc-web`, which has its status in the body.
            Some((kind, rest)) if is_grpc(kind) && matches!(rest, [] | [b'+' | b';', ..]) => {
                Self::Grpc
            }
            _ => Self::asked(std::str::from_utf8(accept).unwrap_or_default()),
        }
    }

    /// What an `Accept` value asks for; text unless JSON is named before anything readable.
    pub(crate) fn asked(accept: &str) -> Self {
        for range in policy::tokens(accept) {
            let kind = range.split(';').next().unwrap_or_default().trim();
            if kind.eq_ignore_ascii_case("application/json") || kind.ends_with("+json") {
                return Self::Json;
            }
            if kind.len() >= 5
                && kind
                    .get(..5)
                    .is_some_and(|t| t.eq_ignore_ascii_case("text/"))
            {
                return Self::Text;
            }
        }
        Self::Text
    }

    /// The `Content-Type`.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Grpc => GRPC,
            Self::Json => "application/json",
            Self::Text => "text/plain; charset=utf-8",
        }
    }
}

impl Answer {
    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            location: None,
            retry_after_secs: None,
            close: false,
        }
    }

    /// 400: malformed or ambiguous. The connection closes: what follows cannot be believed.
    pub(crate) fn bad_request(why: impl ToString) -> Self {
        Self {
            close: true,
            ..Self::new(400, "bad_request", why.to_string())
        }
    }

    /// A head that is not understood: 400, 414, 431, 501 or 505. The connection closes.
    pub(crate) fn malformed(status: u16, why: impl ToString) -> Self {
        let code = match status {
            414 => "uri_too_long",
            417 => "expectation_failed",
            431 => "headers_too_large",
            501 => "not_implemented",
            505 => "version_not_supported",
            _ => "bad_request",
        };
        Self {
            close: true,
            ..Self::new(status, code, why.to_string())
        }
    }

    /// 408: the client stopped sending.
    pub(crate) fn request_timeout() -> Self {
        Self {
            close: true,
            ..Self::new(408, "request_timeout", "the request did not arrive in time")
        }
    }

    /// 421: another connection is needed for this host.
    pub(crate) fn misdirected() -> Self {
        Self::new(
            421,
            "misdirected_request",
            "this connection is not for this host",
        )
    }

    /// 429: this client asks too often.
    pub(crate) fn too_many_requests(retry_after_secs: u64) -> Self {
        Self {
            retry_after_secs: Some(retry_after_secs),
            ..Self::new(
                429,
                "too_many_requests",
                "too many requests, come again later",
            )
        }
    }

    /// 502: the upstream refused or broke.
    pub(crate) fn bad_gateway() -> Self {
        Self::new(502, "bad_gateway", "the upstream did not answer")
    }

    /// 503: the gateway is ending.
    pub(crate) fn draining() -> Self {
        Self {
            close: true,
            ..Self::new(503, "draining", "the gateway is shutting down")
        }
    }

    /// 503: there are as many connections as there may be.
    pub(crate) fn overloaded() -> Self {
        Self::new(503, "overloaded", "the gateway has too much to do")
    }

    /// 503: no target of the route takes requests.
    pub(crate) fn unavailable() -> Self {
        Self::new(
            503,
            "unavailable",
            "the upstream fails; it is tried again soon",
        )
    }

    /// 504: the upstream took too long.
    pub(crate) fn gateway_timeout() -> Self {
        Self::new(
            504,
            "gateway_timeout",
            "the upstream did not answer in time",
        )
    }

    /// What a refused decision is answered with.
    pub(crate) fn refusal(refusal: HttpRefusal) -> Self {
        match refusal.status() {
            400 => Self::bad_request(refusal),
            403 => Self::new(403, "forbidden", "this client is not admitted"),
            421 => Self::misdirected(),
            // Which part is missing is the owner's business, not the client's.
            _ => Self::new(404, "not_found", "nothing here answers to this address"),
        }
    }

    /// 308 to the same address by https; method and body stay the same (RFC 9110, section 15.4.9).
    ///
    /// `path_and_query` as the client wrote it; `port` is left out if it is 443.
    pub(crate) fn redirect_to_https(host: &str, port: u16, path_and_query: &str) -> Self {
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        let location = match port {
            443 => format!("https://{host}{path_and_query}"),
            port => format!("https://{host}:{port}{path_and_query}"),
        };
        Self {
            location: Some(location),
            ..Self::new(308, "permanent_redirect", "use https")
        }
    }

    /// The `grpc-status` that says the same (the gRPC project's http-grpc-status-mapping, where it has one).
    pub(crate) fn grpc_status(&self) -> &'static str {
        match self.status {
            401 => "16",
            403 => "7",
            404 | 501 => "12",
            408 | 504 => "4",
            413 | 414 | 429 | 431 => "8",
            421 | 502 | 503 => "14",
            308 | 400 | 417 => "13",
            _ => "2",
        }
    }

    /// The `grpc-message`: the message, percent-encoded where it is not printable.
    pub(crate) fn grpc_message(&self) -> String {
        let mut text = String::with_capacity(self.message.len());
        for byte in self.message.bytes() {
            match byte {
                b' '..=b'~' if byte != b'%' => text.push(char::from(byte)),
                _ => {
                    let _ = write!(text, "%{byte:02X}");
                }
            }
        }
        text
    }

    /// The body.
    pub(crate) fn body(&self, form: Form, request_id: &str) -> String {
        match form {
            // Codes, messages and valid request ids need no escaping.
            Form::Json => serde_json::json!({
                "error": { "code": self.code, "message": self.message },
                "request_id": request_id,
            })
            .to_string(),
            Form::Text => format!("{} {}\n", self.status, self.message),
            Form::Grpc => String::new(),
        }
    }
}

const GRPC: &str = "application/grpc";

#[cfg(test)]
mod tests {
    use edd_route::decide::ContainerRefusal;
    use edd_route::path::PathError;

    use super::*;

    #[test]
    fn json_is_answered_where_it_is_asked_for_first() {
        for (accept, form) in [
            ("", Form::Text),
            ("*/*", Form::Text),
            ("application/json", Form::Json),
            ("application/problem+json;q=0.9", Form::Json),
            ("Application/JSON, text/plain", Form::Json),
            (
                "text/html,application/xhtml+xml,application/json",
                Form::Text,
            ),
        ] {
            assert_eq!(Form::asked(accept), form, "{accept}");
        }
    }

    #[test]
    fn grpc_clients_are_known_by_what_they_send() {
        for (kind, form) in [
            ("application/grpc", Form::Grpc),
            ("Application/GRPC+proto", Form::Grpc),
            ("application/grpc;x", Form::Grpc),
            ("application/grpc-web", Form::Json),
            ("", Form::Json),
        ] {
            let form_of = Form::of(kind.as_bytes(), b"application/json");
            assert_eq!(form_of, form, "{kind}");
        }
    }

    #[test]
    fn a_grpc_status_says_the_same_as_the_http_one() {
        for (answer, status) in [
            (Answer::bad_gateway(), "14"),
            (Answer::draining(), "14"),
            (Answer::gateway_timeout(), "4"),
            (Answer::refusal(HttpRefusal::Denied), "7"),
            (Answer::refusal(HttpRefusal::NoHost), "12"),
            (Answer::bad_request("x"), "13"),
        ] {
            assert_eq!(answer.grpc_status(), status, "{answer:?}");
        }
        assert_eq!(
            Answer::bad_request("100% caf\u{e9}").grpc_message(),
            "100%25 caf%C3%A9"
        );
    }

    #[test]
    fn redirects_name_the_public_port_and_keep_path_and_query() {
        for (host, port, location) in [
            ("a.example", 443, "https://a.example/x?y=1"),
            ("a.example", 8443, "https://a.example:8443/x?y=1"),
            ("::1", 8443, "https://[::1]:8443/x?y=1"),
        ] {
            let answer = Answer::redirect_to_https(host, port, "/x?y=1");
            assert_eq!(answer.status, 308);
            assert_eq!(answer.location.as_deref(), Some(location));
        }
    }

    #[test]
    fn refusals_have_their_status_and_only_bad_requests_close() {
        for (refusal, status, close) in [
            (HttpRefusal::NoHost, 404, false),
            (HttpRefusal::NoPath, 404, false),
            (
                HttpRefusal::Container(ContainerRefusal::NotRunning),
                404,
                false,
            ),
            (HttpRefusal::Denied, 403, false),
            (HttpRefusal::TlsPassthrough, 421, false),
            (HttpRefusal::Path(PathError::Nul), 400, true),
        ] {
            let answer = Answer::refusal(refusal);
            assert_eq!((answer.status, answer.close), (status, close), "{refusal}");
        }
    }

    #[test]
    fn bodies_carry_the_request_id_for_programs() {
        let answer = Answer::bad_gateway();
        assert_eq!(
            answer.body(Form::Text, "id"),
            "502 the upstream did not answer\n"
        );
        let json: serde_json::Value = serde_json::from_str(&answer.body(Form::Json, "id")).unwrap();
        assert_eq!(json["error"]["code"], "bad_gateway");
        assert_eq!(json["request_id"], "id");
    }
}
