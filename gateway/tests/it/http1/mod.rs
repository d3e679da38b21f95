//! HTTP/1 on both sides, byte by byte: raw clients and raw upstreams.

mod bulk;
mod connection;
mod framing;
mod heads;
mod interim;
mod uploads;

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use crate::support::{DEADLINE, Gateway, Options, Origin, Table, read_head};

pub(super) const HOST: &str = "c1.compute.localhost";

/// A gateway with one thread whose container `c1` is `origin`.
pub(super) async fn gateway_to(origin: &Origin, options: Options) -> (Gateway, Table) {
    let gateway = Gateway::start(options.flag("--workers", "1")).await;
    let mut table = Table::of(&gateway);
    table.run("c1", 80, origin.address);
    (gateway, table)
}

/// A connection of the test's to somewhere.
pub(super) struct Raw(pub(super) TcpStream);

impl Raw {
    pub(super) async fn to(gateway: &Gateway) -> Self {
        let stream = TcpStream::connect(gateway.addresses.http).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    /// Sends `text`, in which `HOST` stands for the container's name.
    pub(super) async fn say(&mut self, text: &str) {
        let text = text.replace("HOST", HOST);
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    pub(super) async fn head(&mut self) -> String {
        let head = timeout(DEADLINE, read_head(&mut self.0)).await;
        head.expect("a head in time")
    }

    pub(super) async fn bytes(&mut self, count: usize) -> String {
        let mut bytes = vec![0; count];
        let read = timeout(DEADLINE, self.0.read_exact(&mut bytes)).await;
        read.expect("bytes in time").expect("bytes");
        String::from_utf8(bytes).unwrap()
    }

    /// Reads up to and with `text`.
    pub(super) async fn until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        let look = async {
            while !seen.ends_with(text.as_bytes()) {
                let byte = self.0.read_u8().await;
                seen.push(byte.unwrap_or_else(|_| panic!("an end before {text:?}")));
            }
        };
        let found = timeout(DEADLINE, look).await;
        found.unwrap_or_else(|_| panic!("no {text:?} in time"));
        String::from_utf8(seen).unwrap()
    }

    /// Everything to the end; an error is the end of a cut connection.
    pub(super) async fn rest(&mut self) -> (String, bool) {
        let mut rest = Vec::new();
        let end = timeout(DEADLINE, self.0.read_to_end(&mut rest)).await;
        let clean = end.expect("an end in time").is_ok();
        (String::from_utf8(rest).unwrap(), clean)
    }

    /// One whole exchange on a connection of its own.
    pub(super) async fn whole(gateway: &Gateway, request: &str) -> String {
        let mut raw = Self::to(gateway).await;
        raw.say(request).await;
        raw.rest().await.0
    }
}

/// An upstream whose connections the test drives itself.
pub(super) struct Hands {
    pub(super) origin: Origin,
    accepted: mpsc::UnboundedReceiver<TcpStream>,
}

impl Hands {
    pub(super) async fn new() -> Self {
        let (accept, accepted) = mpsc::unbounded_channel();
        let origin = Origin::raw("127.64.0.2", move |_, stream: TcpStream| {
            let accept = accept.clone();
            async move {
                let _ = accept.send(stream);
            }
        })
        .await;
        Self { origin, accepted }
    }

    /// The next connection.
    pub(super) async fn next(&mut self) -> Raw {
        let stream = timeout(DEADLINE, self.accepted.recv()).await;
        Raw(stream.expect("a connection in time").expect("a connection"))
    }
}

/// An upstream that answers each head with the next of `answers`, keeps its connections, and tells what it read.
pub(super) async fn scripted(answers: &[&str]) -> (Origin, Arc<Mutex<Vec<String>>>) {
    let answers: Vec<String> = answers.iter().map(|a| (*a).to_owned()).rev().collect();
    let answers = Arc::new(Mutex::new(answers));
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let (answers, seen) = (Arc::clone(&answers), Arc::clone(&seen));
        async move {
            loop {
                let head = read_head(&mut stream).await;
                if head.is_empty() {
                    return;
                }
                seen.lock().await.push(head);
                let Some(answer) = answers.lock().await.pop() else {
                    return;
                };
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (origin, heads)
}
