//! A strict client for HTTP/1 and HTTP/2 that says how an answer came and how it ended.
//!
//! Its HTTP/1 half reads byte by byte what RFC 9112 allows and panics at anything else, so that a
//! gateway that writes sloppy framing fails the test that only looked at a status.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::DEADLINE;
use super::client::dial;

/// How an answer ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// As its framing announced.
    Whole,
    /// Before that, by a close, a reset or a broken frame.
    Cut,
}

/// An answer as it came.
#[derive(Clone)]
pub(crate) struct Heard {
    /// The 1xx answers before it: status and fields.
    pub(crate) before: Vec<(u16, Fields)>,
    /// 0: there was none.
    pub(crate) status: u16,
    pub(crate) fields: Fields,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Fields,
    pub(crate) end: End,
}

/// Names in lower case, and values, in order.
pub(crate) type Fields = Vec<(String, String)>;

impl std::fmt::Debug for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let begin = &self.body[..self.body.len().min(200)];
        write!(
            f,
            "{} {:?} of {} bytes \"{}\", fields {:?}, trailers {:?}, before it {:?}",
            self.status,
            self.end,
            self.body.len(),
            begin.escape_ascii(),
            self.fields,
            self.trailers,
            self.before
        )
    }
}

impl Heard {
    fn nothing() -> Self {
        Self {
            before: Vec::new(),
            status: 0,
            fields: Vec::new(),
            body: Vec::new(),
            trailers: Vec::new(),
            end: End::Cut,
        }
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        field(&self.fields, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whole, with this status and body.
    pub(crate) fn is(&self, status: u16, body: &str) -> bool {
        self.status == status && self.end == End::Whole && self.body == body.as_bytes()
    }
}

pub(crate) fn field<'f>(fields: &'f Fields, name: &str) -> Option<&'f str> {
    let found = fields.iter().find(|(n, _)| n == name);
    found.map(|(_, value)| value.as_str())
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Question<'q> {
    pub(crate) method: &'q str,
    pub(crate) host: &'q str,
    pub(crate) path: &'q str,
    pub(crate) fields: &'q [(&'q str, &'q str)],
    /// Sent with its length.
    pub(crate) body: Option<Bytes>,
}

impl<'q> Question<'q> {
    pub(crate) fn get(host: &'q str, path: &'q str) -> Self {
        Self {
            method: "GET",
            host,
            path,
            fields: &[],
            body: None,
        }
    }

    pub(crate) fn post(host: &'q str, path: &'q str, body: impl Into<Bytes>) -> Self {
        Self {
            method: "POST",
            body: Some(body.into()),
            ..Self::get(host, path)
        }
    }
}

/// For those who do not care when an answer's body begins.
pub(crate) fn unwatched() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(0))
}

/// A client connection of either version.
pub(crate) enum Asker {
    H1(H1),
    H2(H2),
}

/// Which version of HTTP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Speaks {
    H1,
    H2,
}

impl Asker {
    /// In clear; HTTP/2 with prior knowledge.
    pub(crate) async fn dial(speaks: Speaks, address: SocketAddr) -> Self {
        match speaks {
            Speaks::H1 => Self::H1(H1::dial(address).await),
            Speaks::H2 => Self::H2(H2::dial(address).await),
        }
    }

    /// Asks and reads the answer to its end; `seen` gets a permit when the first byte of the
    /// answer's body is here. The body goes out while the answer is read.
    pub(crate) async fn ask(&mut self, question: &Question<'_>, seen: &Arc<Semaphore>) -> Heard {
        let heard = async {
            match self {
                Self::H1(h1) => h1.ask(question, seen).await,
                Self::H2(h2) => h2.ask(question, seen).await,
            }
        };
        let path = question.path;
        let heard = timeout(DEADLINE, heard).await;
        heard.unwrap_or_else(|_| panic!("no end of the answer to {path} in {DEADLINE:?}"))
    }

    /// Whether another request may be sent on it.
    pub(crate) fn goes_on(&self) -> bool {
        match self {
            Self::H1(h1) => !h1.over,
            Self::H2(_) => true,
        }
    }
}

/// A client connection of HTTP/1.1.
pub(crate) struct H1 {
    pub(crate) stream: TcpStream,
    /// Read and not yet understood.
    buffer: Vec<u8>,
    /// The connection is at its end, or announced to be.
    over: bool,
}

impl H1 {
    pub(crate) async fn dial(address: SocketAddr) -> Self {
        Self::on(dial(address).await)
    }

    pub(crate) fn on(stream: TcpStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            over: false,
        }
    }

    /// Sends bytes as they are; a refusal in the middle is seen by who reads.
    pub(crate) async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = timeout(DEADLINE, self.stream.write_all(bytes.as_ref())).await;
        let _ = sent.expect("taken in time");
    }

    async fn ask(&mut self, question: &Question<'_>, seen: &Arc<Semaphore>) -> Heard {
        let Question { method, path, .. } = question;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", question.host);
        for (name, value) in question.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = &question.body {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let body = question.body.clone().unwrap_or_default();
        let (read, mut write) = self.stream.split();
        let upload = async move {
            let _ = write.write_all(head.as_bytes()).await;
            let _ = write.write_all(&body).await;
            // The rest of the answer matters now.
            std::future::pending::<()>().await;
        };
        let mut reader = Reader {
            read,
            buffer: &mut self.buffer,
        };
        let (heard, over) = tokio::select! {
            heard = reader.answer(question.method == "HEAD", seen) => heard,
            () = upload => unreachable!("it waits for ever"),
        };
        self.over |= over;
        heard
    }

    /// Reads one answer; `seen` as for [`Asker::ask`].
    pub(crate) async fn answer(&mut self, to_head: bool, seen: &Arc<Semaphore>) -> Heard {
        let (read, _) = self.stream.split();
        let mut reader = Reader {
            read,
            buffer: &mut self.buffer,
        };
        let answer = timeout(DEADLINE, reader.answer(to_head, seen)).await;
        let (heard, over) = answer.expect("an answer in time");
        self.over |= over;
        heard
    }

    /// Reads one head, whatever its status: first line and fields; none at the end.
    pub(crate) async fn head(&mut self) -> Option<(String, Fields)> {
        let (read, _) = self.stream.split();
        let mut reader = Reader {
            read,
            buffer: &mut self.buffer,
        };
        let head = timeout(DEADLINE, reader.head()).await;
        head.expect("a head in time")
    }

    /// What was read beyond what was understood.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    /// Reads that many bytes of a body and drops them; false if it ends earlier.
    pub(crate) async fn swallow(&mut self, mut len: u64) -> bool {
        len -= std::mem::take(&mut self.buffer).len() as u64;
        let mut into = vec![0; 256 << 10];
        while len > 0 {
            match self.stream.read(&mut into).await {
                Ok(read @ 1..) => len -= read as u64,
                _ => return false,
            }
        }
        true
    }

    /// Nothing more comes: the end, clean or not; true if clean.
    pub(crate) async fn ends(&mut self) -> bool {
        let mut rest = std::mem::take(&mut self.buffer);
        let end = timeout(DEADLINE, self.stream.read_to_end(&mut rest)).await;
        let end = end.expect("an end in time");
        assert!(rest.is_empty(), "more: {}", rest.escape_ascii());
        end.is_ok()
    }
}

/// Reads answers; what was read too much stays in the buffer.
struct Reader<'r, R> {
    read: R,
    buffer: &'r mut Vec<u8>,
}

impl<R: tokio::io::AsyncRead + Unpin> Reader<'_, R> {
    /// False at the end, clean or not.
    async fn more(&mut self) -> bool {
        matches!(self.read.read_buf(self.buffer).await, Ok(1..))
    }

    /// A line without its CRLF.
    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let rest = self.buffer.split_off(at + 2);
                let mut line = std::mem::replace(self.buffer, rest);
                line.truncate(at);
                assert!(
                    !line.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0)),
                    "a stray control byte: {}",
                    line.escape_ascii()
                );
                // Field values may be any bytes above 0x7f.
                return Some(line.iter().map(|&byte| char::from(byte)).collect());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn fields(&mut self) -> Option<Fields> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Some(fields);
            }
            let (name, value) = line.split_once(':').expect("a colon");
            assert!(!name.is_empty() && !name.contains([' ', '\t']), "{line:?}");
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    async fn head(&mut self) -> Option<(String, Fields)> {
        let line = self.line().await?;
        Some((line, self.fields().await?))
    }

    /// The answer, and whether the connection is over after it.
    async fn answer(&mut self, to_head: bool, seen: &Arc<Semaphore>) -> (Heard, bool) {
        let mut heard = Heard::nothing();
        let version = loop {
            let Some((line, fields)) = self.head().await else {
                return (heard, true);
            };
            let (version, rest) = line.split_once(' ').expect("a status line");
            assert!(matches!(version, "HTTP/1.1" | "HTTP/1.0"), "{line:?}");
            let status: u16 = rest.get(..3).and_then(|s| s.parse().ok()).expect("status");
            if status == 101 || status >= 200 {
                heard.status = status;
                heard.fields = fields;
                break version.to_owned();
            }
            heard.before.push((status, fields));
        };
        let chunked = heard.field("transfer-encoding").map(str::to_owned);
        let length = heard.field("content-length").map(str::to_owned);
        let bodiless = to_head || matches!(heard.status, 101 | 204 | 304);
        if !bodiless {
            assert!(chunked.is_none() || length.is_none(), "{heard:?}");
        }
        let closes = heard
            .field("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let closes = closes || version == "HTTP/1.0";
        if bodiless {
            heard.end = End::Whole;
            return (heard, closes);
        }
        if let Some(coding) = chunked {
            assert_eq!(coding, "chunked");
            let whole = self.chunks(&mut heard, seen).await.is_some();
            heard.end = if whole { End::Whole } else { End::Cut };
            return (heard, closes || !whole);
        }
        if let Some(length) = length {
            let length: usize = length.parse().expect("a length");
            let whole = self.exactly(length, &mut heard.body, seen).await;
            heard.end = if whole { End::Whole } else { End::Cut };
            return (heard, closes || !whole);
        }
        loop {
            if !self.buffer.is_empty() {
                seen.add_permits(1);
            }
            heard.body.append(self.buffer);
            match self.read.read_buf(self.buffer).await {
                Ok(0) => break heard.end = End::Whole,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        (heard, true)
    }

    async fn exactly(&mut self, mut len: usize, body: &mut Vec<u8>, seen: &Semaphore) -> bool {
        while len > 0 {
            if self.buffer.is_empty() && !self.more().await {
                return false;
            }
            if body.is_empty() {
                seen.add_permits(1);
            }
            let take = len.min(self.buffer.len());
            body.extend(self.buffer.drain(..take));
            len -= take;
        }
        true
    }

    async fn chunks(&mut self, heard: &mut Heard, seen: &Semaphore) -> Option<()> {
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).expect("a chunk's size");
            if size == 0 {
                heard.trailers = self.fields().await?;
                return Some(());
            }
            if !self.exactly(size, &mut heard.body, seen).await {
                return None;
            }
            assert_eq!(self.line().await?, "", "a chunk's end");
        }
    }
}

/// A client connection of HTTP/2.
pub(crate) struct H2 {
    pub(crate) send: SendRequest<Bytes>,
}

impl H2 {
    pub(crate) async fn dial(address: SocketAddr) -> Self {
        Self::on(dial(address).await).await
    }

    pub(crate) async fn on<S>(stream: S) -> Self
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(1 << 20)
            .initial_connection_window_size(8 << 20);
        let shake = timeout(DEADLINE, builder.handshake(stream)).await;
        let (send, connection) = shake.expect("in time").expect("HTTP/2");
        tokio::spawn(connection);
        Self { send }
    }

    /// The head of a question.
    pub(crate) fn head(question: &Question<'_>) -> http::Request<()> {
        let uri = format!("http://{}{}", question.host, question.path);
        let mut request = http::Request::builder().method(question.method).uri(uri);
        for &(name, value) in question.fields {
            request = request.header(name, value);
        }
        if let Some(body) = &question.body {
            request = request.header("content-length", body.len());
        }
        request.version(http::Version::HTTP_2).body(()).unwrap()
    }

    async fn ask(&mut self, question: &Question<'_>, seen: &Arc<Semaphore>) -> Heard {
        let ready = self.send.clone().ready().await;
        let Ok(mut ready) = ready else {
            return Heard::nothing();
        };
        let body = question.body.clone();
        let sent = ready.send_request(Self::head(question), body.is_none());
        let (answer, stream) = sent.expect("a stream");
        let upload = async move {
            let _stream = match body {
                Some(body) => upload(stream, body).await,
                None => Some(stream),
            };
            std::future::pending::<()>().await;
        };
        tokio::select! {
            heard = listen(answer, seen) => heard,
            () = upload => unreachable!("it waits for ever"),
        }
    }
}

/// Sends a body as the window allows, and ends the stream; none if that was refused.
pub(crate) async fn upload(
    mut stream: h2::SendStream<Bytes>,
    mut body: Bytes,
) -> Option<h2::SendStream<Bytes>> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len().min(1 << 20));
        let room = poll_fn(|cx| stream.poll_capacity(cx)).await?.ok()?;
        let piece = body.split_to(room.min(body.len()));
        stream.send_data(piece, false).ok()?;
    }
    stream.send_data(Bytes::new(), true).ok()?;
    Some(stream)
}

/// Reads an answer to its end.
pub(crate) async fn listen(mut answer: h2::client::ResponseFuture, seen: &Semaphore) -> Heard {
    let mut heard = Heard::nothing();
    let response = poll_fn(|cx| {
        while let Poll::Ready(Some(Ok(before))) = answer.poll_informational(cx) {
            let fields = texts(before.headers());
            heard.before.push((before.status().as_u16(), fields));
        }
        std::pin::Pin::new(&mut answer).poll(cx)
    });
    let Ok(response) = response.await else {
        return heard;
    };
    heard.status = response.status().as_u16();
    heard.fields = texts(response.headers());
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        let Ok(data) = data else {
            return heard;
        };
        if heard.body.is_empty() && !data.is_empty() {
            seen.add_permits(1);
        }
        let _ = body.flow_control().release_capacity(data.len());
        heard.body.extend_from_slice(&data);
    }
    let Ok(trailers) = body.trailers().await else {
        return heard;
    };
    heard.trailers = trailers.as_ref().map(texts).unwrap_or_default();
    heard.end = End::Whole;
    heard
}

/// Fields as text.
pub(crate) fn texts(fields: &http::HeaderMap) -> Fields {
    fields
        .iter()
        .map(|(name, value)| {
            let value = value.as_bytes().iter().map(|&byte| char::from(byte));
            (name.as_str().to_owned(), value.collect())
        })
        .collect()
}
