//! `edd-bench origin`: the server behind every proxy of a comparison.
//!
//! Answers `GET` over kept connections with a body of fixed length and does as little as it can,
//! because it shares its core with the load. A second port tells what it has counted, so that a
//! measurement can see requests that a load generator cannot report, and upstream connections
//! that were not kept.

use std::cell::Cell;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream as BlockingStream};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

/// The longest request head it reads.
const HEAD_MAX: usize = 64 * 1024;

/// How long its counters may take to come.
const COUNTS_DEADLINE: Duration = Duration::from_secs(5);

/// The arguments of `edd-bench origin`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to answer
    #[arg(long)]
    address: SocketAddr,
    /// Where to tell the counters
    #[arg(long)]
    counts: SocketAddr,
}

/// Answers until the process is ended.
pub(crate) async fn run(args: Args) -> Result<()> {
    let listen = |address| async move {
        TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))
    };
    let (listener, counters) = (listen(args.address).await?, listen(args.counts).await?);
    let tally = Rc::new(Tally::default());
    let answers = Rc::new(Answers::new());
    LocalSet::new()
        .run_until(async move {
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        tally.connections.set(tally.connections.get() + 1);
                        let (tally, answers) = (Rc::clone(&tally), Rc::clone(&answers));
                        tokio::task::spawn_local(serve(stream, answers, tally));
                    }
                    asked = counters.accept() => {
                        let Ok((mut stream, _)) = asked else { continue };
                        let counts =
                            format!("{} {}", tally.requests.get(), tally.connections.get());
                        // Who asked and went away needs no answer.
                        let _ = stream.write_all(counts.as_bytes()).await;
                    }
                }
            }
        })
        .await
}

/// What it has counted since its start.
#[derive(Default)]
struct Tally {
    requests: Cell<u64>,
    connections: Cell<u64>,
}

/// What an origin has counted.
#[derive(Clone, Copy)]
pub(crate) struct Counts {
    /// Requests answered.
    pub(crate) requests: u64,
    /// Connections accepted.
    pub(crate) connections: u64,
}

/// Asks an origin what it has counted. Blocks for a moment.
pub(crate) fn counts(address: SocketAddr) -> Result<Counts> {
    let mut stream = BlockingStream::connect_timeout(&address, COUNTS_DEADLINE)
        .context("the origin is not there")?;
    stream.set_read_timeout(Some(COUNTS_DEADLINE))?;
    let mut said = String::new();
    stream
        .read_to_string(&mut said)
        .context("the origin told no counts")?;
    let mut numbers = said.split(' ').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(requests)), Some(Ok(connections))) => Ok(Counts {
            requests,
            connections,
        }),
        _ => anyhow::bail!("the origin told no counts: {said}"),
    }
}

/// The byte at a place of every body.
pub(crate) fn body_byte(place: usize) -> u8 {
    b"abcdefghijklmnopqrstuvw"[place % 23]
}

/// The whole answers, head and body.
struct Answers {
    small: Vec<u8>,
    large: Vec<u8>,
    none: Vec<u8>,
}

impl Answers {
    fn new() -> Self {
        Self {
            small: answer("200 OK", 1024),
            large: answer("200 OK", 1024 * 1024),
            none: answer("404 Not Found", 0),
        }
    }

    fn of(&self, head: &[u8]) -> &[u8] {
        if head.starts_with(b"GET /1k ") {
            &self.small
        } else if head.starts_with(b"GET /1m ") {
            &self.large
        } else {
            &self.none
        }
    }
}

fn answer(status: &str, length: usize) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nServer: origin\r\nContent-Type: text/plain\r\n\
         Cache-Control: no-store\r\nContent-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    answer.extend((0..length).map(body_byte));
    answer
}

async fn serve(mut stream: TcpStream, answers: Rc<Answers>, tally: Rc<Tally>) {
    let _ = stream.set_nodelay(true);
    let mut bytes = Vec::with_capacity(4096);
    loop {
        match stream.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // Requests have no bodies: each blank line ends one.
        while let Some(end) = head_end(&bytes) {
            let answer = answers.of(bytes.get(..end).unwrap_or_default());
            // Counted when it is asked, so that a count never lags behind a client's.
            tally.requests.set(tally.requests.get() + 1);
            if stream.write_all(answer).await.is_err() {
                return;
            }
            if end == bytes.len() {
                bytes.clear();
            } else {
                bytes.drain(..end);
            }
        }
        if bytes.len() > HEAD_MAX {
            return;
        }
    }
}

/// Where the first head ends, its blank line included.
fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_long_as_it_says() {
        let answers = Answers::new();
        for (path, length) in [("/1k", 1024), ("/1m", 1024 * 1024), ("/other", 0)] {
            let answer = answers.of(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes());
            let end = head_end(answer).expect("a head");
            assert_eq!(answer.len() - end, length, "{path}");
            let head = String::from_utf8_lossy(&answer[..end]);
            assert!(
                head.contains(&format!("Content-Length: {length}\r\n")),
                "{head}"
            );
        }
    }

    #[tokio::test]
    async fn counts_requests_and_connections() {
        let [address, counts_at] = ["127.0.0.1:0"; 2].map(|any| {
            let listener = std::net::TcpListener::bind(any).expect("bound");
            listener.local_addr().expect("an address")
        });
        let args = Args {
            address,
            counts: counts_at,
        };
        let asking = async move {
            let mut stream = loop {
                match TcpStream::connect(address).await {
                    Ok(stream) => break stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            let request = b"GET /1k HTTP/1.1\r\n\r\n";
            stream
                .write_all(&[&request[..], request].concat())
                .await
                .expect("sent");
            let mut answers = vec![0; 2 * Answers::new().small.len()];
            stream.read_exact(&mut answers).await.expect("two answers");
            tokio::task::spawn_blocking(move || counts(counts_at))
                .await
                .expect("joined")
        };
        let counted = tokio::select! {
            _ = run(args) => panic!("it serves until it is ended"),
            counted = asking => counted.expect("counts"),
        };
        assert_eq!((counted.requests, counted.connections), (2, 1));
    }
}
