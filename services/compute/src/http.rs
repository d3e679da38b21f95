//! Small questions to other services over HTTP/1.1, each on a connection of its own.

use std::{fmt, io, net::SocketAddr};

use axum::http::{StatusCode, Uri, header, uri::Scheme};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, lookup_host},
    task::AbortHandle,
};

/// Largest answer, in bytes.
const ANSWER_LEN_MAX: usize = 16 * 1024;

/// A checked `http://HOST:PORT`, without a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PlainUrl {
    authority: String,
    host: String,
    port: u16,
}

impl PlainUrl {
    /// Checks the URL.
    pub fn parse(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not a URL such as http://127.0.0.1:9101");
        let uri: Uri = text.parse().map_err(|_| error())?;
        let authority = uri.authority().ok_or_else(error)?;
        let plain = uri.scheme() == Some(&Scheme::HTTP)
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
            && !authority.as_str().contains('@')
            && !authority.host().is_empty();
        if !plain {
            return Err(error());
        }
        Ok(Self {
            authority: authority.as_str().to_owned(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
        })
    }

    /// Everyone behind the name.
    ///
    /// # Errors
    /// It does not resolve.
    pub async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let found = lookup_host((self.host.as_str(), self.port)).await?;
        Ok(found.collect())
    }
}

impl fmt::Display for PlainUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

/// GETs `target` from the first of `addresses` that takes the connection. The
/// caller sets the deadline.
///
/// # Errors
/// Nobody answers, or with more than 16 KiB.
pub async fn get(
    url: &PlainUrl,
    addresses: &[SocketAddr],
    target: &str,
    token: Option<&str>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(addresses).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the exchange, also when that is given up.
    let _connection = AbortOnDrop(
        tokio::spawn(async move {
            let _ = connection.await;
        })
        .abort_handle(),
    );
    let mut request = Request::get(target)
        .header(header::HOST, &url.authority)
        .header(header::CONNECTION, "close");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let response = sender
        .send_request(request.body(Empty::<Bytes>::new())?)
        .await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_LEN_MAX)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!("bad answer: {error}"))?
        .to_bytes();
    Ok((status, body))
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_plain_http_without_path() {
        let url = PlainUrl::parse("http://[::1]:9101").unwrap();
        assert_eq!((url.host.as_str(), url.port), ("::1", 9101));
        assert_eq!(PlainUrl::parse("http://auth/").unwrap().port, 80);
        for bad in [
            "",
            "auth:80",
            "https://auth",
            "http://",
            "http://a/b",
            "http://a/?b",
            "http://u:p@a",
        ] {
            assert!(PlainUrl::parse(bad).is_err(), "{bad}");
        }
    }
}
