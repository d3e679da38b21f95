//! A raw upstream that writes down every byte's meaning, strictly: whatever could be read in two ways is a fault.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::reader::{Framing, Request};
use crate::support::Origin;

/// What has arrived since it was last looked at.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Whole requests.
    pub(super) requests: Vec<Request>,
    /// Bytes that are not, or not yet, a whole request.
    pub(super) rest: Vec<u8>,
    /// What nobody may send to an upstream.
    pub(super) faults: Vec<String>,
}

/// Answers every whole request with `ok`.
pub(super) struct Recorder {
    pub(super) origin: Origin,
    log: Arc<Mutex<Log>>,
}

impl Recorder {
    pub(super) async fn start() -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let shared = Arc::clone(&log);
        let origin = Origin::raw("127.0.0.1", move |_, stream| {
            serve(stream, Arc::clone(&shared))
        });
        Self {
            origin: origin.await,
            log,
        }
    }

    pub(super) fn take(&self) -> Log {
        std::mem::take(&mut *self.log.lock().expect("a lock"))
    }
}

async fn serve(mut stream: TcpStream, log: Arc<Mutex<Log>>) {
    let mut bytes = Vec::new();
    loop {
        let before = bytes.len();
        match stream.read_buf(&mut bytes).await {
            Ok(1..) => {}
            _ => return,
        }
        log.lock()
            .expect("a lock")
            .rest
            .extend_from_slice(&bytes[before..]);
        loop {
            match decode(&bytes) {
                Ok(None) => break,
                Ok(Some((request, used))) => {
                    bytes.drain(..used);
                    let is_head = request.method == b"HEAD";
                    {
                        let mut log = log.lock().expect("a lock");
                        log.requests.push(request);
                        log.rest.clear();
                        log.rest.extend_from_slice(&bytes);
                    }
                    let body = if is_head { "" } else { "ok" };
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{body}");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
                Err(fault) => {
                    let fault = format!("{fault} in {}", bytes.escape_ascii());
                    log.lock().expect("a lock").faults.push(fault);
                    return;
                }
            }
        }
    }
}

type Decoded = Result<Option<(Request, usize)>, String>;

/// A whole request at the beginning of `bytes`.
fn decode(bytes: &[u8]) -> Decoded {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = &bytes[..end];
    let mut lines = Vec::new();
    let mut rest = head;
    while let Some(line) = rest.windows(2).position(|w| w == b"\r\n") {
        lines.push(&rest[..line]);
        rest = &rest[line + 2..];
    }
    lines.push(rest);
    if lines
        .iter()
        .any(|l| l.contains(&b'\r') || l.contains(&b'\n') || l.contains(&0))
    {
        return Err("a bare line end".into());
    }
    let start: Vec<&[u8]> = lines.remove(0).split(|b| *b == b' ').collect();
    let [method, target, b"HTTP/1.1"] = start[..] else {
        return Err("a bad request line".into());
    };
    let mut fields = Vec::new();
    let (mut length, mut chunked, mut hosts) = (None, false, 0);
    for line in lines {
        let colon = line.iter().position(|b| *b == b':').ok_or("no colon")?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || name.iter().any(|b| b.is_ascii_whitespace()) {
            return Err("a bad name".into());
        }
        match name.to_ascii_lowercase().as_slice() {
            b"content-length" => {
                let text = std::str::from_utf8(value).map_err(|_| "a bad length")?;
                let number: usize = text.parse().map_err(|_| "a bad length")?;
                if length.replace(number).is_some() {
                    return Err("two lengths".into());
                }
                continue;
            }
            b"transfer-encoding" => {
                if chunked || value != b"chunked" {
                    return Err("a bad coding".into());
                }
                chunked = true;
                continue;
            }
            b"host" => hosts += 1,
            _ => {}
        }
        fields.push((name.to_vec(), value.to_vec()));
    }
    if hosts != 1 || (chunked && length.is_some()) {
        return Err("two hosts, none, or two framings".into());
    }
    let mut request = Request {
        method: method.to_vec(),
        target: target.to_vec(),
        fields,
        framing: Framing::None,
        body: Vec::new(),
        trailers: Vec::new(),
    };
    let at = end + 4;
    if let Some(length) = length {
        request.framing = Framing::Length;
        let Some(body) = bytes.get(at..at + length) else {
            return Ok(None);
        };
        request.body = body.to_vec();
        return Ok(Some((request, at + length)));
    }
    if chunked {
        request.framing = Framing::Chunked;
        return chunks(bytes, at, request);
    }
    Ok(Some((request, at)))
}

fn chunks(bytes: &[u8], mut at: usize, mut request: Request) -> Decoded {
    let line = |at: usize| {
        let length = bytes[at..].windows(2).position(|w| w == b"\r\n")?;
        Some(&bytes[at..at + length])
    };
    loop {
        let Some(digits) = line(at) else {
            return Ok(None);
        };
        let text = std::str::from_utf8(digits).map_err(|_| "a bad size")?;
        let size = usize::from_str_radix(text, 16).map_err(|_| "a bad size")?;
        at += digits.len() + 2;
        if size == 0 {
            break;
        }
        let Some(chunk) = bytes.get(at..at + size + 2) else {
            return Ok(None);
        };
        let (data, end) = chunk.split_at(size);
        if end != b"\r\n" {
            return Err("a bad chunk".into());
        }
        request.body.extend_from_slice(data);
        at += size + 2;
    }
    loop {
        let Some(field) = line(at) else {
            return Ok(None);
        };
        at += field.len() + 2;
        if field.is_empty() {
            return Ok(Some((request, at)));
        }
        let colon = field.iter().position(|b| *b == b':').ok_or("no colon")?;
        let value = field[colon + 1..].trim_ascii().to_vec();
        request.trailers.push((field[..colon].to_vec(), value));
    }
}

/// Without what the gateway adds, the host first, names of fields that it writes itself in lower case.
pub(super) fn plain(mut request: Request, any_case: bool) -> Request {
    const ADDED: [&str; 7] = [
        "traceparent",
        "tracestate",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-request-id",
    ];
    const OWN: [&[u8]; 3] = [b"connection", b"host", b"upgrade"];
    let is = |name: &[u8], other: &[u8]| name.eq_ignore_ascii_case(other);
    request
        .fields
        .retain(|(name, _)| !ADDED.iter().any(|added| is(name, added.as_bytes())));
    for (name, _) in &mut request.fields {
        if any_case || OWN.iter().any(|own| is(name, own)) {
            name.make_ascii_lowercase();
        }
    }
    // Where the gateway puts its own fields is its business.
    request.fields.sort_by_key(|(name, _)| {
        OWN.iter()
            .rposition(|own| own == name)
            .map_or(9, |at| match at {
                1 => 0,
                at => at + 1,
            })
    });
    request
}
