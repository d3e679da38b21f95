//! A database is there, or has become whole: its content is the state.

use edd_events::envelope::Cause;
use edd_events::stream::COMPUTE;
use tokio::time::Instant;

use super::{OpenSession, Session, WriteError, Writer, announce};
use crate::control::last_good::now_ms;
use crate::control::plan::Plan;
use crate::control::status::{DatabaseStatus, NatsStatus};
use crate::control::store::{self, Commit, GatewayStore, Line};

impl<S: GatewayStore> Writer<S> {
    /// A database was opened: its content is the state.
    pub(super) async fn opened(&mut self, session: Session<S>) {
        let stored = session.stored;
        // The same database, as it was before: a standby that lacks the last
        // transactions took over, or a copy was put back into it.
        let mut set_back = false;
        if !session.lost && !session.replaced {
            match session.store.holds(self.position).await {
                Ok(holds) => set_back = !holds,
                Err(error) => {
                    tracing::error!(%error, "the database fails; events wait, the table in use goes on");
                    return session.failed.cancel();
                }
            }
        }
        if set_back {
            tracing::error!(
                known = self.position.number,
                found = stored.position.number,
                "the database is older than it was: it gets the events again"
            );
        }
        let replaced = session.replaced || set_back;
        self.statics_unsaved = true;
        self.revision_min = self.revision_min.max(stored.revision);
        self.stored_revision = stored.revision;
        self.position = stored.position;
        let compute = stored.streams.get(COMPUTE.name);
        self.see_gap(compute.map_or(0, |marks| marks.gap));
        let starts_over = session.lost || stored.rebuilding || replaced;
        if starts_over {
            // The consumers start over. What is still on its way from them is of
            // another database.
            self.round = session.number;
        }
        self.state = stored.state;
        self.session = Some(OpenSession {
            store: session.store,
            waker: session.waker,
            failed: session.failed,
            used: Instant::now(),
        });
        // What serves may be newer than the database (lost, restored from a
        // backup): falling back would end connections for nothing.
        let last_good = std::mem::take(&mut self.last_good_revision);
        let served = match replaced {
            true => self.table.table().revision,
            false => last_good,
        };
        let events = self.board.now().nats != NatsStatus::Off;
        let older = served > stored.revision;
        // Without events nothing would ever end the wait.
        // Begun by an earlier opening, it goes on, whether or not that one came to write it down.
        let rebuilding = events && (session.lost || stored.rebuilding || self.withheld);
        // Until caught up: another opening meanwhile knows less, not more.
        self.withheld = events && (self.withheld || rebuilding || older);
        self.board.update(|status| {
            if rebuilding {
                status.database = DatabaseStatus::Lost;
            }
            // What they have said counts as long as they go on: others may have handled the rest
            // while no database was open here.
            if events && starts_over {
                status.caught_up = false;
            }
            if set_back {
                status.set_back = session.number;
            }
        });
        if self.withheld {
            tracing::warn!(
                lost = session.lost,
                "the database is behind the last good table, which serves until events are replayed"
            );
        } else {
            self.table
                .replace_dynamic(self.state.container_specs(), self.state.all_key_specs());
        }
        let commit = Commit {
            birth: !stored.born,
            rebuilding: self.withheld.then_some(true),
            now_ms: now_ms(),
            ..Commit::default()
        };
        // What a lost database starts from is not in it yet.
        let stored = self.publish_loaded(session.lost, commit).await;
        match stored {
            // Not before its content is in force.
            Ok(()) if !rebuilding => self
                .board
                .update(|status| status.database = DatabaseStatus::Ok),
            Ok(()) => {}
            Err(error) => {
                self.publish(0);
                self.fail(&error);
            }
        }
        if self.withheld && self.board.now().caught_up {
            // The streams were through while no database was open.
            self.caught_up().await;
        }
    }

    /// Everything that was in the streams is in the state.
    pub(super) async fn caught_up(&mut self) {
        // Others may have handled some of it.
        self.follow().await;
        if self.withheld && self.session.is_some() {
            self.withheld = false;
            self.table
                .replace_dynamic(self.state.container_specs(), self.state.all_key_specs());
            let commit = Commit {
                rebuilding: Some(false),
                now_ms: now_ms(),
                ..Commit::default()
            };
            match self.publish_loaded(false, commit).await {
                Ok(()) => tracing::info!("rebuilt from the events"),
                Err(error) => {
                    self.publish(0);
                    self.fail(&error);
                }
            }
        }
        let open = self.session.is_some();
        self.board.update(|status| {
            status.caught_up = true;
            if open {
                status.database = DatabaseStatus::Ok;
            }
        });
    }

    /// Publishes what was put into the table from the whole state, and stores that; with `seed`
    /// the state too.
    async fn publish_loaded(
        &mut self,
        seed: bool,
        mut commit: Commit<'_>,
    ) -> Result<(), WriteError> {
        let mut turn = self.turn().await?;
        if seed {
            self.prolong(&mut turn, 0).await?;
        }
        if !self.withheld && self.table.table().revision < self.stored_revision {
            // Nothing differs but the number: whoever waits for it waits here too.
            self.table.advance();
        }
        let table = self.table.table();
        let revision = match self.table.is_changed() {
            true => self.next_revision(),
            false => table.revision,
        };
        if revision > self.stored_revision {
            let containers = i64::try_from(table.containers().len()).unwrap_or(i64::MAX);
            let statics = table.statics().iter().len();
            commit.revision = Some(revision);
            let refreshed = announce::refreshed(revision, containers, statics, &Cause::default());
            commit.outbox.push(refreshed);
        }
        let change = seed.then(|| {
            let effects = self.state.all();
            commit.journal = Line::of(&self.state, &effects, &store::Cause::last_good_table());
            (self.state.clone(), effects)
        });
        self.publish(commit.revision.unwrap_or_default());
        self.store_and_publish(turn, change, Plan::default(), commit)
            .await
    }
}
