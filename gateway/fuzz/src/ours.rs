//! A connection's bytes as `edd-http1` reads them, in pieces as they might arrive.

use edd_http1::{
    BodyError, BodyReader, Limits, Progress, Question, RequestError, ResponseError, Slots,
    Trailers, Version, What, parse_request, parse_response,
};

use crate::{Message, sorted};

/// Why the reading stopped.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stop {
    /// After a message that allows no other on its connection.
    Closed,
    /// Inside a head.
    HeadOpen,
    /// Inside a body.
    BodyOpen,
    /// A request that is refused.
    Request(RequestError),
    /// A response that is refused.
    Response(ResponseError),
    /// A body that is refused.
    Body(BodyError),
}

/// What the bytes were understood as.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reading {
    /// Whole messages, interim responses left out.
    pub messages: Vec<Message>,
    /// Whether each message's target is one that hyper's `http::Uri` knows (requests).
    pub plain_targets: usize,
    /// Bytes that the whole messages took.
    pub consumed: usize,
    /// Why it ended.
    pub stop: Stop,
}

/// Which side's bytes are read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// A client's.
    Requests,
    /// An upstream's: one answer, then the end.
    Response(Question),
}

/// Reads until the bytes are at an end. `cut` is the size of the pieces they arrive in; zero: in one.
pub fn read(bytes: &[u8], cut: usize, side: Side) -> Reading {
    let limits = Limits::default();
    let cut = if cut == 0 { bytes.len().max(1) } else { cut };
    let mut reading = Reading {
        messages: Vec::new(),
        plain_targets: 0,
        consumed: 0,
        stop: Stop::HeadOpen,
    };
    let mut at = 0;
    let mut end = 0;
    loop {
        // A head.
        let (mut message, mut body, keep_alive, interim) = loop {
            let input = &bytes[at..end];
            let mut slots = Slots::new();
            match side {
                Side::Requests => match parse_request(input, &mut slots, &limits) {
                    Ok(Progress::Partial) => {}
                    Ok(Progress::Complete(head, n)) => {
                        assert!(n <= input.len() && n > 0);
                        check_request(&head);
                        at += n;
                        if is_plain(&head) && reading.plain_targets == reading.messages.len() {
                            reading.plain_targets += 1;
                        }
                        let message = Message {
                            start: format!("{} {}", head.method, head.target),
                            version: u8::from(head.version == Version::H11),
                            fields: sorted(head.fields.iter()),
                            ..Message::default()
                        };
                        break (message, BodyReader::from(head.body), head.keep_alive, false);
                    }
                    Err(error) => {
                        reading.stop = Stop::Request(error);
                        return reading;
                    }
                },
                Side::Response(question) => {
                    match parse_response(input, &mut slots, &limits, question) {
                        Ok(Progress::Partial) => {}
                        Ok(Progress::Complete(head, n)) => {
                            assert!(n <= input.len() && n > 0);
                            at += n;
                            let message = Message {
                                start: head.status.to_string(),
                                version: u8::from(head.version == Version::H11),
                                fields: sorted(head.fields.iter()),
                                ..Message::default()
                            };
                            let body = BodyReader::from(head.body);
                            break (message, body, false, head.is_interim());
                        }
                        Err(error) => {
                            reading.stop = Stop::Response(error);
                            return reading;
                        }
                    }
                }
            }
            if end == bytes.len() {
                reading.stop = Stop::HeadOpen;
                return reading;
            }
            end = (end + cut).min(bytes.len());
        };
        if interim {
            continue;
        }
        // Its body.
        loop {
            let step = match body.read(&bytes[at..end]) {
                Ok(step) => step,
                Err(error) => {
                    reading.stop = Stop::Body(error);
                    return reading;
                }
            };
            assert!(step.consumed <= end - at);
            at += step.consumed;
            match step.what {
                What::Data(data) => {
                    assert!(!data.is_empty());
                    message.body.extend_from_slice(data);
                }
                What::Trailers(trailers) => message.trailers = sorted(trailers.iter()),
                What::End => break,
                What::NeedMore => {
                    assert_eq!(at, end, "bytes left behind");
                    if end == bytes.len() {
                        if body.ended_by_close().is_ok() {
                            break;
                        }
                        reading.stop = Stop::BodyOpen;
                        return reading;
                    }
                    end = (end + cut).min(bytes.len());
                }
            }
        }
        reading.messages.push(message);
        reading.consumed = at;
        if !keep_alive {
            reading.stop = Stop::Closed;
            return reading;
        }
    }
}

/// What holds for every accepted request.
fn check_request(head: &edd_http1::RequestHead<'_, '_>) {
    assert!(head.path.starts_with('/') || (head.path == "*" && head.method == "OPTIONS"));
    assert!(head.host.is_some() || head.version == Version::H10);
    assert!(!head.expect_continue || head.body != edd_http1::RequestBody::None);
    for (name, value) in head.fields.iter() {
        let mut out = Vec::new();
        edd_http1::write::field(&mut out, name, value).expect("what was read can be written");
    }
}

/// Whether `http::Uri` knows the target: it refuses some characters that browsers send and nobody misreads.
fn is_plain(head: &edd_http1::RequestHead<'_, '_>) -> bool {
    let Ok(uri) = http::Uri::try_from(head.target) else {
        return false;
    };
    let origin = head.authority.is_none();
    assert_eq!(
        uri.authority().map(http::uri::Authority::as_str),
        head.authority
    );
    assert_eq!(uri.query(), head.query);
    // The asterisk that the last hop makes of an absolute target without a path.
    assert!(uri.path() == head.path || (!origin && head.path == "*"));
    true
}

/// Writes a message anew, in other pieces, as a gateway does.
pub fn write_request(message: &Message, in_chunks: bool) -> Vec<u8> {
    let (method, target) = message.start.split_once(' ').expect("a start line");
    let mut out = Vec::new();
    edd_http1::write::request_line(&mut out, method.as_bytes(), target.as_bytes())
        .expect("what was read can be written");
    for (name, value) in &message.fields {
        if matches!(&name[..], b"content-length" | b"transfer-encoding") {
            continue;
        }
        edd_http1::write::field(&mut out, name, value).expect("what was read can be written");
    }
    write_body(&mut out, message, in_chunks);
    out
}

fn write_body(out: &mut Vec<u8>, message: &Message, in_chunks: bool) {
    use edd_http1::write;
    if in_chunks {
        write::chunked(out);
        write::end_of_head(out);
        for piece in message.body.chunks(7) {
            write::chunk(out, piece);
        }
        let mut trailers = Trailers::new();
        for (name, value) in &message.trailers {
            trailers
                .push(name, value)
                .expect("what was read can be written");
        }
        write::last_chunk(out, &trailers).expect("what was read can be written");
    } else {
        write::content_length(out, message.body.len() as u64);
        write::end_of_head(out);
        out.extend_from_slice(&message.body);
    }
}
