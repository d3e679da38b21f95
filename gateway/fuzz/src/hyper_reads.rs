//! The same bytes as hyper reads them: the oracle.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use http_body_util::{BodyExt as _, Empty, combinators::BoxBody};
use hyper::body::{Bytes, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};

use crate::{Message, sorted};

/// The bytes of one side of a connection; what is written is forgotten.
struct Wire {
    bytes: Vec<u8>,
    at: usize,
    /// Nothing to be read before the other side has spoken.
    waits: Option<Rc<Cell<bool>>>,
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.waits.as_ref().is_some_and(|spoken| !spoken.get()) {
            return Poll::Pending;
        }
        let rest = &self.bytes[self.at..];
        let n = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..n]);
        self.at += n;
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(spoken) = &self.waits {
            spoken.set(true);
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Polls that an input of a fuzzer's size never needs.
const POLLS_MAX: usize = 20_000;

/// The whole requests that hyper's server sees.
pub fn requests(bytes: &[u8]) -> Vec<Message> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let wire = Wire {
        bytes: bytes.to_vec(),
        at: 0,
        waits: None,
    };
    let service = {
        let seen = Rc::clone(&seen);
        service_fn(move |request: Request<Incoming>| {
            let seen = Rc::clone(&seen);
            async move {
                let (head, body) = request.into_parts();
                let mut message = Message {
                    start: format!("{} {}", head.method, head.uri),
                    version: u8::from(head.version == http::Version::HTTP_11),
                    fields: fields(&head.headers),
                    ..Message::default()
                };
                if collect(body, &mut message).await {
                    seen.borrow_mut().push(message);
                }
                Ok::<_, Infallible>(Response::new(BoxBody::<Bytes, Infallible>::default()))
            }
        })
    };
    let connection = hyper::server::conn::http1::Builder::new()
        .max_headers(edd_http1::FIELDS_MAX)
        .half_close(true)
        .serve_connection(wire, service);
    let mut connection = pin!(connection);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..POLLS_MAX {
        if connection.as_mut().poll(&mut cx).is_ready() {
            break;
        }
    }
    seen.take()
}

/// The answer that hyper's client sees, if it is whole.
pub fn response(bytes: &[u8], method: &str) -> Option<Message> {
    let wire = Wire {
        bytes: bytes.to_vec(),
        at: 0,
        waits: Some(Rc::default()),
    };
    let mut cx = Context::from_waker(Waker::noop());
    let handshake = hyper::client::conn::http1::Builder::new()
        .max_headers(edd_http1::FIELDS_MAX)
        .handshake::<_, Empty<Bytes>>(wire);
    let Poll::Ready(Ok((mut sender, connection))) = pin!(handshake).poll(&mut cx) else {
        return None;
    };
    let mut connection = pin!(connection);
    let request = Request::builder()
        .method(method)
        .uri("/")
        .header("host", "a")
        .body(Empty::new())
        .ok()?;
    let mut exchange = pin!(async {
        let (head, body) = sender.send_request(request).await.ok()?.into_parts();
        let mut message = Message {
            start: head.status.as_u16().to_string(),
            version: u8::from(head.version == http::Version::HTTP_11),
            fields: fields(&head.headers),
            ..Message::default()
        };
        collect(body, &mut message).await.then_some(message)
    });
    let mut open = true;
    for _ in 0..POLLS_MAX {
        if open {
            open = connection.as_mut().poll(&mut cx).is_pending();
        }
        if let Poll::Ready(message) = exchange.as_mut().poll(&mut cx) {
            return message;
        }
    }
    None
}

fn fields(map: &HeaderMap) -> Vec<(Vec<u8>, Vec<u8>)> {
    sorted(
        map.iter()
            .map(|(n, v)| (n.as_str().as_bytes(), v.as_bytes())),
    )
}

/// Whether the body came whole.
async fn collect(mut body: Incoming, message: &mut Message) -> bool {
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => match frame.into_data() {
                Ok(data) => message.body.extend_from_slice(&data),
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        message.trailers = fields(&trailers);
                    }
                }
            },
            Err(_) => return false,
        }
    }
    true
}
