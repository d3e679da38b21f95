//! A connection to an upstream, and its loan to one exchange.

use std::net::SocketAddr;

use edd_route::Admission;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::body::RequestBody;
use crate::telemetry::ConnectionGauge;
use crate::upstream::{Pool, Reusable, UpstreamKey};

/// An HTTP/1.1 connection to an upstream, as the pool keeps it.
#[derive(Debug)]
pub struct UpstreamConnection {
    pub(super) sender: SendRequest<RequestBody>,
    /// Whom it leads to.
    pub(super) peer: SocketAddr,
    /// What it depends on; its driver ends with it.
    admission: Admission,
}

impl UpstreamConnection {
    /// Speaks HTTP on `stream`. Its task ends with the connection, with the admission or by `cut`.
    pub(super) async fn open(
        stream: TcpStream,
        peer: SocketAddr,
        admission: Admission,
        cut: CancellationToken,
        gauge: ConnectionGauge,
    ) -> hyper::Result<Self> {
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(BUFFER_MAX)
            .max_headers(FIELDS_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        let revoked = admission.revoked();
        tokio::task::spawn_local(async move {
            let _gauge = gauge;
            tokio::select! {
                biased;
                ended = driver.with_upgrades() => if let Err(error) = ended {
                    debug!(%peer, %error, "upstream connection ended");
                },
                () = revoked => {}
                () = cut.cancelled() => {}
            }
        });
        Ok(Self {
            sender,
            peer,
            admission,
        })
    }

    /// Whether it depends on exactly what `admission` depends on.
    pub(super) fn is_admitted_by(&self, admission: &Admission) -> bool {
        self.admission.is(admission)
    }
}

impl Reusable for UpstreamConnection {
    fn is_open(&self) -> bool {
        self.sender.is_ready() && !self.admission.is_revoked()
    }
}

/// A connection on loan to one exchange: given back when the answer is complete, else closed.
#[derive(Debug)]
pub(super) struct Loan {
    pub(super) connection: UpstreamConnection,
    pool: Pool,
    key: UpstreamKey,
    _active: ConnectionGauge,
}

impl Loan {
    pub(super) fn new(
        connection: UpstreamConnection,
        pool: Pool,
        key: UpstreamKey,
        active: ConnectionGauge,
    ) -> Self {
        Self {
            connection,
            pool,
            key,
            _active: active,
        }
    }

    /// Back to the pool. The answer is complete; the request's body may still be on its way.
    pub(super) fn give_back(self) {
        let Self {
            mut connection,
            pool,
            key,
            ..
        } = self;
        if connection.sender.is_ready() {
            pool.idle.put(key, connection);
        } else if !connection.sender.is_closed() {
            tokio::task::spawn_local(async move {
                if connection.sender.ready().await.is_ok() {
                    pool.idle.put(key, connection);
                }
            });
        }
    }
}

/// Largest response head, and the read and write buffer of a connection.
const BUFFER_MAX: usize = 128 * 1024;

const FIELDS_MAX: usize = 256;
