//! An upstream that remembers what it was asked, and the gateway before it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::ask::{Fields, H1, Heard, unwatched};
use crate::support::{Gateway, Options, Origin, Table, read_head};

/// The container that the spy is.
pub(super) const HOST: &str = "spy1.compute.localhost";

/// Answers every request, and keeps the heads. Requests with a body are not for it.
pub(super) struct Spy {
    pub(super) origin: Origin,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Spy {
    pub(super) async fn on(ip: &str) -> Self {
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let kept = Arc::clone(&heads);
        let origin = Origin::raw(ip, move |_, mut stream: TcpStream| {
            let heads = Arc::clone(&kept);
            async move {
                loop {
                    let head = read_head(&mut stream).await;
                    let Some(target) = head.split(' ').nth(1).map(str::to_owned) else {
                        return;
                    };
                    heads.lock().unwrap().push(head);
                    let length = target.len();
                    let answer =
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{target}");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        Self { origin, heads }
    }

    /// What came since the last look.
    pub(super) fn heads(&self) -> Vec<String> {
        std::mem::take(&mut *self.heads.lock().unwrap())
    }

    pub(super) fn was_dialled(&self) -> bool {
        self.origin.connections.load(Ordering::SeqCst) > 0
    }
}

/// A gateway before a spy that has rules for 80, 443 and the first dynamic port.
pub(super) async fn gateway() -> (Gateway, Table, Spy) {
    let spy = Spy::on("127.64.0.2").await;
    let gateway = Gateway::start(Options::default()).await;
    let mut table = Table::of(&gateway);
    for (id, port) in [
        ("spy1", 80),
        ("spy2", 443),
        ("spy3", gateway.port(0).port()),
    ] {
        table.run(id, port, spy.origin.address);
    }
    (gateway, table, spy)
}

/// The fields of a head.
pub(super) fn fields(head: &str) -> Fields {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect()
}

/// All values of a field.
pub(super) fn values<'f>(fields: &'f Fields, name: &str) -> Vec<&'f str> {
    let found = fields.iter().filter(|(n, _)| n == name);
    found.map(|(_, value)| value.as_str()).collect()
}

/// Sends bytes to the HTTP listener; the first answer, and whether the connection was closed.
pub(super) async fn say(gateway: &Gateway, bytes: impl AsRef<[u8]>) -> (Heard, bool) {
    let mut h1 = H1::dial(gateway.addresses.http).await;
    h1.say(bytes).await;
    let heard = h1.answer(false, &unwatched()).await;
    let closed = heard.field("connection") == Some("close");
    (heard, closed)
}
