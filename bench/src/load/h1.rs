//! The load's HTTP/1.1: one request at a time on each kept connection.

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

use super::{DEADLINE, Lane, Tally, tls};

/// No answer that is asked for is longer.
const ANSWER_MAX: usize = 1 << 20;

/// Asks until it is stopped; a connection that the server ended is replaced.
pub(super) async fn run(lane: Lane) {
    let Lane {
        plan, tally, stop, ..
    } = &lane;
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", plan.path, plan.host);
    let mut pace = lane.pace(0, 1);
    let mut kept: Option<TlsStream<TcpStream>> = None;
    loop {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => match tls::connect(&lane).await {
                Ok(stream) => stream,
                Err(error) => {
                    tally.failed(&error);
                    if stop.run_until_cancelled(pace.tick()).await.is_none() {
                        return;
                    }
                    continue;
                }
            },
        };
        let mut unasked = [0];
        tokio::select! {
            biased;
            // Nothing is asked, so whatever comes is the end.
            _ = stream.read(&mut unasked) => {
                Tally::add(&tally.closed);
                continue;
            }
            () = stop.cancelled() => return,
            _ = pace.tick() => {}
        }
        Tally::add(&tally.sent);
        let begun = Instant::now();
        let asked = timeout(DEADLINE, ask(&mut stream, request.as_bytes())).await;
        match asked.context("no answer in time").flatten() {
            Ok(goes_on) => {
                tally.answered(begun.elapsed());
                if goes_on {
                    kept = Some(stream);
                } else {
                    Tally::add(&tally.closed);
                }
            }
            Err(error) => {
                Tally::add(&tally.closed);
                tally.failed(&error.context("HTTP/1.1"));
            }
        }
    }
}

/// One request and its whole answer; whether the connection goes on.
async fn ask(stream: &mut TlsStream<TcpStream>, request: &[u8]) -> Result<bool> {
    stream.write_all(request).await.context("cannot send")?;
    let mut bytes = Vec::with_capacity(4096);
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        read_more(stream, &mut bytes).await?;
    };
    let text = std::str::from_utf8(bytes.get(..head).unwrap_or_default())?.to_ascii_lowercase();
    let status = text.lines().next().unwrap_or_default();
    ensure!(status.starts_with("http/1.1 200"), "answered {status:?}");
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let length: usize = match field("content-length") {
        Some(length) => length.parse()?,
        None => bail!("an answer without a length"),
    };
    while bytes.len() < head + 4 + length {
        read_more(stream, &mut bytes).await?;
    }
    Ok(field("connection") != Some("close"))
}

async fn read_more(stream: &mut TlsStream<TcpStream>, bytes: &mut Vec<u8>) -> Result<()> {
    ensure!(bytes.len() < ANSWER_MAX, "an endless answer");
    let read = stream.read_buf(bytes).await.context("cannot receive")?;
    ensure!(read > 0, "closed after {} bytes of the answer", bytes.len());
    Ok(())
}
