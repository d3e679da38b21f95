//! A client that keeps its connection and says what came of each request.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::support::client::Greeting;
use crate::support::{DEADLINE, Gateway};

/// One HTTPS connection to a gateway, opened when needed.
pub(super) struct Caller<'g> {
    gateway: &'g Gateway,
    host: &'static str,
    stream: Option<BufReader<TlsStream<TcpStream>>>,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl<'g> Caller<'g> {
    pub(super) fn new(gateway: &'g Gateway, host: &'static str) -> Self {
        Self {
            gateway,
            host,
            stream: None,
        }
    }

    pub(super) async fn get(&mut self, path: &str) -> Answer {
        self.ask("GET", path, "").await
    }

    pub(super) async fn post(&mut self, path: &str, body: &str) -> Answer {
        self.ask("POST", path, body).await
    }

    /// Asks; a connection that breaks is a status 0.
    pub(super) async fn ask(&mut self, method: &str, path: &str, body: &str) -> Answer {
        let asked = timeout(DEADLINE, self.try_ask(method, path, body)).await;
        match asked.expect("an answer in time") {
            Ok(answer) => answer,
            Err(error) => {
                self.stream = None;
                Answer {
                    status: 0,
                    body: error.to_string(),
                }
            }
        }
    }

    async fn try_ask(&mut self, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            slot => {
                let greeting = Greeting::anyone(self.host);
                let stream = greeting.dial(self.gateway.addresses.https).await?;
                slot.insert(BufReader::new(stream))
            }
        };
        let length = match body.len() {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\n"),
        };
        let host = self.host;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{length}\r\n{body}");
        stream.write_all(head.as_bytes()).await?;
        stream.flush().await?;
        let bad = |line: &str| io::Error::other(format!("bad line {line:?}"));
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| bad(&line))?;
        let (mut length, mut close) = (0, false);
        loop {
            line.clear();
            stream.read_line(&mut line).await?;
            let field = line.trim_end().to_ascii_lowercase();
            match field.split_once(": ") {
                Some(("content-length", value)) => {
                    length = value.parse().map_err(|_| bad(&line))?;
                }
                Some(("connection", "close")) => close = true,
                Some(_) => {}
                None if field.is_empty() => break,
                None => return Err(bad(&line)),
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        if close {
            self.stream = None;
        }
        Ok(Answer {
            status,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}
