//! `edd-bench ws-echo`: one message over a WebSocket and back. The tour's WebSocket client.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::http::Uri;

use crate::{client, stats};

/// The whole exchange is done within this time or has failed.
const DEADLINE: Duration = Duration::from_secs(10);

/// The arguments of `edd-bench ws-echo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// `wss://HOST[:PORT]/PATH` or `ws://…`; names under `localhost` are 127.0.0.1
    url: Uri,
    /// The CA that signed the server's certificate (for wss)
    #[arg(long)]
    ca: Option<PathBuf>,
    /// What to send
    #[arg(long, default_value = "hello through the gateway")]
    message: String,
}

/// Sends the message and expects it back.
pub(crate) async fn run(args: Args) -> Result<()> {
    timeout(DEADLINE, exchange(&args))
        .await
        .context("no echo in time")?
}

async fn exchange(args: &Args) -> Result<()> {
    let host = args.url.host().context("the URL names no host")?;
    let secure = match args.url.scheme_str() {
        Some("wss") => true,
        Some("ws") => false,
        _ => bail!("the URL is neither wss:// nor ws://"),
    };
    let port = args.url.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let address = if host == "localhost" || host.ends_with(".localhost") {
        "127.0.0.1"
    } else {
        host
    };
    let address = format!("{address}:{port}");
    if secure {
        let ca = args.ca.as_ref().context("wss needs --ca")?;
        echo(
            args,
            client::connect(&address, host, client::tls(ca)?).await?,
        )
        .await
    } else {
        let stream = TcpStream::connect(&address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        echo(args, stream).await
    }
}

async fn echo<S: AsyncRead + AsyncWrite + Unpin>(args: &Args, stream: S) -> Result<()> {
    let (mut socket, _) = tokio_tungstenite::client_async(args.url.clone(), stream)
        .await
        .context("no WebSocket")?;
    let started = Instant::now();
    socket
        .send(Message::text(args.message.as_str()))
        .await
        .context("cannot send")?;
    // Servers may greet or ping first: what counts is that our message comes back.
    let came_back = loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) if text.as_str() == args.message => break true,
            Some(Ok(Message::Close(_))) | None => break false,
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error).context("cannot receive"),
        }
    };
    if !came_back {
        bail!("the server closed without the echo");
    }
    let took = stats::millis(started.elapsed());
    println!("echoed {} bytes in {}", args.message.len(), took.trim());
    // The echo is there; how the other side closes is not ours to judge.
    let _ = socket.close(None).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers each message with what `answer` makes of it.
    async fn server(answer: fn(String) -> Option<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a client");
            let mut socket = tokio_tungstenite::accept_async(stream)
                .await
                .expect("a WebSocket");
            while let Some(Ok(Message::Text(text))) = socket.next().await {
                match answer(text.as_str().to_owned()) {
                    Some(back) => socket.send(Message::text(back)).await.expect("sent"),
                    None => socket.close(None).await.expect("closed"),
                }
            }
        });
        format!("ws://{address}/ws")
    }

    fn args(url: &str) -> Args {
        Args {
            url: url.parse().expect("a URL"),
            ca: None,
            message: "hello".to_owned(),
        }
    }

    #[tokio::test]
    async fn an_echo_is_success() {
        let url = server(Some).await;
        run(args(&url)).await.expect("the echo");
    }

    #[tokio::test]
    async fn a_close_without_the_echo_is_a_failure() {
        let url = server(|_| None).await;
        assert!(run(args(&url)).await.is_err());
    }

    #[tokio::test]
    async fn wss_without_a_ca_says_so() {
        let error = run(args("wss://localhost:1/")).await.expect_err("no CA");
        assert!(error.to_string().contains("--ca"), "{error:#}");
    }
}
