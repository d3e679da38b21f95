//! All that compute knows, in one turn: what it does not tell is gone.

use edd_events::consumer::Verdict;
use edd_events::envelope::Cause;
use edd_events::stream::COMPUTE;
use edd_route::Origin;

use super::{Incoming, Reached, WriteError, Writer};
use crate::control::reconcile::{Change, absent};
use crate::control::store::{self, GatewayStore};

impl<S: GatewayStore> Writer<S> {
    /// Reduces the facts and removes what they do not mention, as far as it is
    /// not newer than COMPUTE's `sequence`; one verdict per fact.
    pub(super) async fn snapshot(
        &mut self,
        mut batch: Vec<Incoming>,
        sequence: u64,
        doubted: &[u8],
    ) -> Result<Vec<Verdict>, WriteError> {
        if !doubted.is_empty() {
            // Not stored by itself: what is doubted and not told anew is gone, what is told is
            // stored with its own stamp.
            self.state.doubt(doubted, sequence);
        }
        let facts = batch.len();
        let told = batch.iter().filter_map(|fact| fact.change.as_ref().ok());
        let gone = absent(&self.state, told, sequence);
        batch.extend(gone.into_iter().map(|change| removal(change, sequence)));
        let reached = Reached {
            stream: COMPUTE.name,
            floor: sequence,
            tries: 0,
            acknowledged: 0,
            restarts: None,
        };
        // What it says of some buckets only is no reason to believe all the rest.
        let reached = doubted.is_empty().then_some(reached);
        let mut verdicts = self.events(&batch, None, reached).await?;
        verdicts.truncate(facts);
        Ok(verdicts)
    }
}

fn removal(change: Change, sequence: u64) -> Incoming {
    let subject = match &change.origin {
        Origin::Event { subject, .. } => subject.clone(),
        _ => String::new(),
    };
    Incoming {
        event_id: String::new(),
        stream: COMPUTE.name.to_owned(),
        sequence,
        told: store::Cause {
            subject,
            stream: COMPUTE.name.to_owned(),
            sequence,
            event_id: String::new(),
            source: "edd-compute".to_owned(),
        },
        cause: Cause::default(),
        change: Ok(change),
    }
}
