//! A request to the running gateway's admin listener.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use edd_daemon::cli::Exit;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// An answer takes milliseconds; this is for a gateway that hangs.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Larger than the table of 100,000 containers as JSON.
const ANSWER_MAX: usize = 256 * 1024 * 1024;

/// GETs `path` from the admin listener at `addr`.
pub(super) fn get(addr: &str, path: &str) -> Result<Bytes, Exit> {
    ask(Method::GET, addr, path)
}

/// A request without a body to the admin listener at `addr`.
pub(super) fn ask(method: Method, addr: &str, path: &str) -> Result<Bytes, Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let answer = runtime.block_on(async {
        tokio::time::timeout(TIMEOUT, exchange(method, addr, path))
            .await
            .unwrap_or_else(|_| Err(anyhow!("no answer within {} s", TIMEOUT.as_secs())))
    });
    Ok(answer.with_context(|| format!("the gateway's admin listener at {addr} (--admin-addr)"))?)
}

async fn exchange(method: Method, addr: &str, path: &str) -> anyhow::Result<Bytes> {
    let stream = TcpStream::connect(addr).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", addr)
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX)
            .collect()
            .await;
        let body = body
            .map_err(|error| anyhow!("the answer broke off: {error}"))?
            .to_bytes();
        if !status.is_success() {
            bail!("{status}: {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(body)
    };
    tokio::select! {
        answer = answer => answer,
        ended = connection => match ended {
            Ok(()) => bail!("the connection ended before the answer"),
            Err(error) => Err(error.into()),
        },
    }
}

/// Percent-encodes a query value (RFC 3986, section 2.1).
pub(super) fn encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
