//! Two connections that an upstream's 101 has joined.

use edd_route::Admission;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::body::Record;
use super::connection::Loan;
use crate::listener::Worker;
use crate::tcp::{self, End};

/// Both halves, each about to be released by hyper.
#[derive(Debug)]
pub(super) struct Switched {
    pub(super) client: OnUpgrade,
    pub(super) server: OnUpgrade,
    pub(super) admission: Admission,
    /// Written when the last byte has passed.
    pub(super) record: Record,
    /// The upstream connection, counted until the end and never given back.
    pub(super) loan: Loan,
}

impl Switched {
    /// Carries bytes both ways until both sides are done, the silence is too long, or the admission is over.
    pub(super) async fn run(mut self, worker: &Worker) {
        let timeouts = &worker.shared.config.timeouts;
        let Record { exchange, turn } = &mut self.record;
        let sever = || {
            turn.sever();
            self.loan.connection.fuse.blow();
        };
        let released = async { tokio::try_join!(self.client, self.server) };
        let released = tokio::time::timeout(timeouts.header, released).await;
        let Ok(Ok((client, server))) = released else {
            sever();
            return exchange.note("upgrade was not completed");
        };
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        let relayed = tcp::relay(
            &mut client,
            &mut server,
            &self.admission,
            timeouts.stream_idle,
            worker.shared.drain.cut(),
        )
        .await;
        exchange.bytes_in.set(relayed.bytes_in);
        exchange.bytes_out = relayed.bytes_out;
        if relayed.end != End::Closed {
            // Neither side may take what it got for the whole.
            sever();
        }
        if let Some(note) = relayed.end.note() {
            exchange.note(note);
        }
    }
}
