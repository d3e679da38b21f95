//! How far the database has the streams, and which streams these are.

use edd_events::stream::COMPUTE;

use super::{Floor, WriteError, Writer};
use crate::control::last_good::now_ms;
use crate::control::plan::Plan;
use crate::control::store::{self, Commit, GatewayStore, Line, Marks};

impl<S: GatewayStore> Writer<S> {
    /// Keeps how far the streams are settled.
    pub(super) async fn acknowledged(&mut self, floors: &[Floor]) {
        if self.session.is_none() {
            return;
        }
        if let Err(error) = self.keep_floors(floors).await {
            self.fail(&error);
        }
    }

    async fn keep_floors(&mut self, floors: &[Floor]) -> Result<(), WriteError> {
        let mut turn = self.turn().await?;
        let session = self.session.as_ref().ok_or(WriteError::Closed)?;
        let mut commit = Commit {
            now_ms: now_ms(),
            ..Commit::default()
        };
        for floor in floors {
            let known = session.store.stream(&mut turn, floor.stream).await?;
            if known.created == Some(floor.created) {
                let stream = floor.stream.to_owned();
                commit.floors.insert(stream, floor.sequence);
            }
        }
        self.store_and_publish(turn, None, Plan::default(), commit)
            .await
    }

    /// Looks whether it is another stream than the database knows by this name:
    /// facts keep their versions then, and forget where in the old one they stood.
    /// How far the database has it.
    ///
    /// Whoever asks compares it with what was known when its sequences had started
    /// over `restarts` times. If they have again since, another gateway has found
    /// another stream, and nothing can be said of this one: it may be the same, or
    /// be gone.
    pub(super) async fn stream(
        &mut self,
        name: &'static str,
        created: i64,
        is_shorter: bool,
        restarts: u64,
    ) -> Result<Marks, WriteError> {
        let mut turn = self.turn().await?;
        let session = self.session.as_ref().ok_or(WriteError::Closed)?;
        let known = session.store.stream(&mut turn, name).await?;
        let is_another = is_shorter || known.created.is_some_and(|known| known != created);
        if known.restarts != restarts || (!is_another && known.created.is_some()) {
            return Ok(known);
        }
        let mut marks = Marks {
            created: Some(created),
            ..known
        };
        let mut commit = Commit {
            stream: Some((name, created)),
            now_ms: now_ms(),
            ..Commit::default()
        };
        if is_another {
            marks = Marks {
                created: Some(created),
                restarts: known.restarts + 1,
                // What the old one had lost is still not known.
                gap: known.gap.min(1),
                ..Marks::default()
            };
            commit.restarted = Some((name, marks.restarts));
            commit.gap = Some((name, marks.gap));
        }
        if is_another {
            self.prolong(&mut turn, 0).await?;
        }
        let change = is_another.then(|| {
            tracing::warn!(
                stream = name,
                "the stream was made anew, its sequences start over"
            );
            let mut next = self.state.clone();
            next.forget_sequences();
            let effects = next.all();
            commit.journal = Line::of(&next, &effects, &store::Cause::stream_made_anew());
            (next, effects)
        });
        self.store_and_publish(turn, change, Plan::default(), commit)
            .await?;
        if name == COMPUTE.name {
            self.see_gap(marks.gap);
        }
        Ok(marks)
    }

    /// Remembers that a snapshot is wanted, whatever becomes of this process.
    pub(super) async fn remember_gap(&mut self, first: u64) -> Result<(), WriteError> {
        let turn = self.turn().await?;
        if self.gap >= first {
            return Ok(());
        }
        let commit = Commit {
            gap: Some((COMPUTE.name, first)),
            now_ms: now_ms(),
            ..Commit::default()
        };
        self.store_and_publish(turn, None, Plan::default(), commit)
            .await?;
        self.see_gap(first);
        Ok(())
    }

    /// The database says so, of COMPUTE.
    pub(super) fn see_gap(&mut self, gap: u64) {
        self.gap = gap;
        self.board
            .update(|status| status.snapshot_wanted = (gap > 0).then_some(gap));
    }
}
