//! Two connections that an upstream's 101 has joined.

use edd_route::Admission;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::body::Record;
use super::connection::Loan;
use crate::listener::Worker;
use crate::tcp;

/// Both halves, each about to be released by hyper.
#[derive(Debug)]
pub(super) struct Switched {
    pub(super) client: OnUpgrade,
    pub(super) server: OnUpgrade,
    pub(super) admission: Admission,
    /// Written when the last byte has passed.
    pub(super) record: Record,
    /// Keeps the upstream connection counted; it is never given back.
    pub(super) _loan: Loan,
}

impl Switched {
    /// Carries bytes both ways until both sides are done, the silence is too long, or the admission is over.
    pub(super) async fn run(mut self, worker: &Worker) {
        let timeouts = &worker.shared.config.timeouts;
        let exchange = &mut self.record.exchange;
        let released = async { tokio::try_join!(self.client, self.server) };
        let released = tokio::time::timeout(timeouts.header, released).await;
        let Ok(Ok((client, server))) = released else {
            return exchange.note("upgrade was not completed");
        };
        let relayed = tcp::relay(
            &mut TokioIo::new(client),
            &mut TokioIo::new(server),
            &self.admission,
            timeouts.stream_idle,
            worker.shared.drain.cut(),
        )
        .await;
        exchange.bytes_in.set(relayed.bytes_in);
        exchange.bytes_out = relayed.bytes_out;
        if let Some(note) = relayed.end.note() {
            exchange.note(note);
        }
    }
}
