//! What clients without an account can have written to the log, and how often.

use std::collections::HashSet;
use std::fmt::{Debug, Write as _};
use std::sync::{Mutex, Once};

use tokio::io::AsyncWriteExt as _;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::ports::tls_echo;
use crate::support::client::{Greeting, hear, say};
use crate::support::containers::{Containers, container_address};
use crate::support::{Gateway, Options, eventually};

/// What the names of containers begin with whose lines are kept.
const LOGGED: &str = "logged-";

/// The container of this file.
const CONTAINER: &str = "logged-raw";

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps what the default filter lets through and names a container of [`LOGGED`].
struct Log;

/// Keeps lines from now on, for the whole process.
pub(crate) fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Log).expect("the only one"));
}

/// The lines about a container, whose name begins with [`LOGGED`] and is no other test's.
pub(crate) fn lines(container: &str) -> Vec<String> {
    let lines = LINES.lock().unwrap();
    let about = lines.iter().filter(|line| line.contains(container));
    about.cloned().collect()
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let mut line = Line(format!("{} {}", metadata.level(), metadata.target()));
        event.record(&mut line);
        if line.0.contains(LOGGED) {
            LINES.lock().unwrap().push(line.0);
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

#[tokio::test]
async fn a_raw_connection_to_a_closed_port_is_one_record_and_no_warning() {
    watch();
    let gateway = Gateway::start(Options::default()).await;
    let mut containers = Containers::of(&gateway);
    let port = gateway.port(0);
    containers.run(CONTAINER, container_address(), &[(port.port(), 9)]);
    for _ in 0..3 {
        say(port, &[b"\0"]).await.expect_err("a reset");
    }
    eventually("all are over", || async { gateway.shared.gate.open() == 0 }).await;
    eventually("all are told", || async { lines(CONTAINER).len() >= 3 }).await;
    let lines = lines(CONTAINER);
    assert_eq!(lines.len(), 3, "{lines:#?}");
    for line in &lines {
        assert!(line.starts_with("INFO access "), "{line}");
        assert!(line.contains("note=\"no upstream\""), "{line}");
        is_complete(line, "tcp");
    }
    let ids: HashSet<_> = lines.iter().map(|line| value(line, "request_id")).collect();
    assert_eq!(ids.len(), lines.len(), "each has its own");
}

/// A field's value, without its quotes.
fn value<'l>(line: &'l str, field: &str) -> &'l str {
    let found = line.split(&format!(" {field}=")).nth(1);
    let found = found.unwrap_or_else(|| panic!("{field}: {line}"));
    found.split(' ').next().unwrap_or(found).trim_matches('"')
}

/// A raw connection's line says what a request's says.
fn is_complete(line: &str, kind: &str) {
    assert_eq!(value(line, "kind"), kind);
    assert_eq!(value(line, "route"), "container");
    assert!(value(line, "request_id").len() >= 16, "{line}");
    for number in ["revision", "bytes_in", "bytes_out", "ms"] {
        assert!(value(line, number).parse::<f64>().is_ok(), "{line}");
    }
    assert!(value(line, "upstream").contains(':'), "{line}");
}

#[tokio::test]
async fn tls_that_is_passed_through_is_one_record_too() {
    watch();
    let gateway = Gateway::start(Options::default()).await;
    let mut containers = Containers::of(&gateway);
    let (id, port, through) = ("logged-tls", gateway.port(0), container_address());
    tls_echo((through, 8443).into(), "logged-tls.compute.localhost").await;
    containers.run(id, through, &[(port.port(), 8443)]);
    let greeting = Greeting::anyone("logged-tls.compute.localhost");
    let mut stream = greeting.dial(port).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(hear(&mut stream).await.unwrap(), b"hello");
    eventually("it is told", || async { !lines(id).is_empty() }).await;
    let lines = lines(id);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    is_complete(&lines[0], "tls-passthrough");
}
