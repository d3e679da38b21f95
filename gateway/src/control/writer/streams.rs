//! How far the database has the streams, and which streams these are.

use super::{Floor, WriteError, Writer};
use crate::control::last_good::now_ms;
use crate::control::plan::Plan;
use crate::control::store::{Commit, GatewayStore, Line};

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
            let known = session
                .store
                .stream_created(&mut turn, floor.stream)
                .await?;
            if known == Some(floor.created) {
                let stream = floor.stream.to_owned();
                commit.floors.insert(stream, floor.sequence);
            }
        }
        self.store_and_publish(turn, None, Plan::default(), commit)
            .await
    }

    /// Whether it is another stream than the database knows by this name: facts
    /// keep their versions then, and forget where in the old one they stood.
    pub(super) async fn stream(
        &mut self,
        name: &'static str,
        created: i64,
        is_shorter: bool,
    ) -> Result<bool, WriteError> {
        let mut turn = self.turn().await?;
        let session = self.session.as_ref().ok_or(WriteError::Closed)?;
        let known = session.store.stream_created(&mut turn, name).await?;
        let is_another = is_shorter || known.is_some_and(|known| known != created);
        if !is_another && known.is_some() {
            return Ok(false);
        }
        let mut commit = Commit {
            stream: Some((name, created)),
            now_ms: now_ms(),
            ..Commit::default()
        };
        let change = is_another.then(|| {
            tracing::warn!(
                stream = name,
                "the stream was made anew, its sequences start over"
            );
            let mut next = self.state.clone();
            next.forget_sequences();
            let effects = next.all();
            commit.restarted = Some(name);
            commit.journal = Line::of(&next, &effects, None);
            (next, effects)
        });
        self.store_and_publish(turn, change, Plan::default(), commit)
            .await?;
        Ok(is_another)
    }
}
