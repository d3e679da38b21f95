//! The sagas in the transactions of what they are about.

use std::time::{Duration, SystemTime};

use edd_events::{
    envelope::Cause,
    inbox,
    saga::{self, Transition},
};
use edd_store::{Transaction, query};

use super::{Store, User};
use crate::{
    events,
    sagas::confirmed::{About, Command, Confirmed, Deletion, Input, Registration, Which, begun},
};

/// Overdue sagas driven at one look.
const DUE_MAX: u32 = 100;
/// One that cannot be driven is tried again after this: it would be among the overdue at each look.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(3600);

impl Store {
    /// In the transaction of the registration.
    pub(super) async fn await_cached(
        &self,
        tx: &mut Transaction,
        user: &User,
        cause: &Cause,
    ) -> sqlx::Result<()> {
        self.begin_saga::<Registration>(tx, user, cause).await
    }

    /// In the transaction of the deletion.
    pub(super) async fn await_purged(
        &self,
        tx: &mut Transaction,
        user: &User,
        cause: &Cause,
    ) -> sqlx::Result<()> {
        let (id, now) = (user.id, SystemTime::now());
        saga::drive::<Confirmed<Registration>>(tx, id, &Input::Abandoned, now).await?;
        self.begin_saga::<Deletion>(tx, user, cause).await
    }

    async fn begin_saga<W: Which>(
        &self,
        tx: &mut Transaction,
        user: &User,
        cause: &Cause,
    ) -> sqlx::Result<()> {
        let Some(timeout) = self.saga_timeout.filter(|_| self.database.events()) else {
            return Ok(());
        };
        let about = About {
            user_id: user.id,
            username: user.username.clone(),
            display_name: user.display_name.clone(),
            public_id: user.public_id.clone(),
            version: user.version,
            correlation_id: cause.correlation_id.clone(),
            traceparent: cause.traceparent.clone(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            undo: self.undo_registrations && W::KIND == Registration::KIND,
        };
        let state = begun(about);
        saga::start::<Confirmed<W>>(tx, user.id, &state, SystemTime::now()).await?;
        Ok(())
    }

    /// Compute knows the user. False: nobody waited for that.
    pub(crate) async fn user_known(&self, event_id: &str, user_id: i64) -> sqlx::Result<bool> {
        self.confirmed::<Registration>(event_id, user_id).await
    }

    /// Compute has nothing of the user any more. False: nobody waited for that.
    pub(crate) async fn user_purged(&self, event_id: &str, user_id: i64) -> sqlx::Result<bool> {
        self.confirmed::<Deletion>(event_id, user_id).await
    }

    async fn confirmed<W: Which>(&self, event_id: &str, user_id: i64) -> sqlx::Result<bool> {
        let mut tx = self.database.begin().await?;
        if !inbox::first_time(&mut tx, event_id).await? {
            return Ok(false);
        }
        let now = SystemTime::now();
        let driven = saga::drive::<Confirmed<W>>(&mut tx, user_id, &Input::Confirmed, now).await?;
        tx.commit().await?;
        Ok(driven.is_some())
    }

    /// Drives the sagas whose deadline is over at `now`; returns how many events
    /// there are to publish.
    pub async fn drive_due(&self, now: SystemTime) -> sqlx::Result<u64> {
        let deletions = self.drive_kind::<Deletion>(now).await?;
        Ok(deletions + self.drive_kind::<Registration>(now).await?)
    }

    /// One that cannot be read keeps no other waiting.
    async fn drive_kind<W: Which>(&self, now: SystemTime) -> sqlx::Result<u64> {
        let mut announced = 0;
        for id in saga::due::<Confirmed<W>>(self.database.sql(), now, DUE_MAX).await? {
            match self.drive_one::<W>(&id, now).await {
                Ok(more) => announced += more,
                // Where no event could be written either, none is put off: it is not their fault.
                Err(error) if self.database.failed_on(&error).await.is_ok() => {
                    tracing::error!(kind = W::KIND, id, %error, "a saga cannot be driven");
                    let database = self.database.sql();
                    saga::postpone::<Confirmed<W>>(database, &id, now, now + UNREADABLE_PAUSE)
                        .await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(announced)
    }

    async fn drive_one<W: Which>(&self, id: &str, now: SystemTime) -> sqlx::Result<u64> {
        let mut announced = 0;
        let mut tx = self.database.begin().await?;
        if !saga::is_due::<Confirmed<W>>(&mut tx, id, now).await? {
            return Ok(announced);
        }
        let driven = saga::drive::<Confirmed<W>>(&mut tx, id, &Input::TimedOut, now).await?;
        let Some(Transition { state, commands }) = driven else {
            return Ok(announced);
        };
        let (mut given_up, mut undone) = (false, false);
        for command in commands {
            match command {
                Command::AnnounceAgain => {
                    self.announce_again::<W>(&mut tx, &state.data).await?;
                    announced += 1;
                }
                Command::Report => given_up = true,
                Command::Undo => {
                    let about = &state.data;
                    let cause = about.cause();
                    if let Some(deleted) = self.delete_in(&mut tx, about.user_id, &cause).await? {
                        // Who had it was known to nobody.
                        query("DELETE FROM deleted_usernames WHERE username = $1")
                            .bind(deleted.username.as_str())
                            .run(&mut tx)
                            .await?;
                        undone = true;
                        announced += 1;
                    }
                }
            }
        }
        tx.commit().await?;
        let (kind, user_id, attempts) = (W::KIND, state.data.user_id, state.attempts);
        if undone {
            tracing::error!(
                kind,
                user_id,
                attempts,
                "not confirmed by compute; undone, the user is deleted"
            );
        } else if given_up {
            tracing::error!(
                kind,
                user_id,
                attempts,
                "not confirmed by compute; given up"
            );
        } else {
            tracing::warn!(
                kind,
                user_id,
                attempts,
                "not confirmed by compute; told again"
            );
        }
        Ok(announced)
    }

    /// The same fact at the same version as another event: whoever has had it
    /// finds it stale, and confirms again.
    async fn announce_again<W: Which>(
        &self,
        tx: &mut Transaction,
        about: &About,
    ) -> sqlx::Result<()> {
        let cause = about.cause();
        let user = User {
            id: about.user_id,
            public_id: about.public_id.clone(),
            username: about.username.clone(),
            display_name: about.display_name.clone(),
            version: about.version,
        };
        let entry = if W::KIND == Deletion::KIND {
            events::user_deleted(&user, &cause)
        } else {
            events::user_created(&user, &cause)
        };
        self.database.announce(tx, &entry).await
    }

    /// With sagas that wait this long for confirmations; none: there are none.
    #[must_use]
    pub fn with_saga_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.saga_timeout = timeout;
        self
    }

    /// Whether a registration that compute never confirms is undone, rather than left to somebody
    /// to look at.
    #[must_use]
    pub fn with_undo_registrations(mut self, undo: bool) -> Self {
        self.undo_registrations = undo;
        self
    }
}

#[cfg(test)]
mod tests {
    use edd_events::{
        consumer::{Handler as _, Verdict},
        envelope::seal,
        event::{Decoded, Delivery, Position, decode},
        saga::{Row, list},
        subject::EntityId,
    };
    use edd_proto::compute;
    use edd_store::{Engine, testing::database_of};

    use super::*;
    use crate::{
        identity::{DisplayName, Username},
        sagas::Confirmations,
        store::{NewUser, Registration as Registered},
        token::Token,
    };

    const TIMEOUT: Duration = Duration::from_secs(3600);

    async fn store(folder: &std::path::Path) -> Store {
        let url = database_of(folder).await;
        let store = Store::open(&url, true).await.unwrap();
        store.with_saga_timeout(Some(TIMEOUT))
    }

    async fn registered(store: &Store) -> i64 {
        registered_as(store, "alice").await
    }

    async fn registered_as(store: &Store, name: &str) -> i64 {
        let username = Username::parse(name).unwrap();
        let new = NewUser {
            display_name: DisplayName::from(username.clone()),
            username,
            password_hash: "x".into(),
            never_used: false,
        };
        let token = Token::random();
        let created = store.register(new, token.hash(), &Cause::default()).await;
        match created.unwrap() {
            Registered::Created(user, _) => user.id,
            Registered::UsernameTaken => panic!("taken"),
        }
    }

    async fn rows(store: &Store) -> Vec<Row> {
        let mut rows = list(store.database.sql(), None, 10).await.unwrap();
        rows.sort_by(|a, b| a.id.cmp(&b.id));
        rows
    }

    async fn outbox(store: &Store) -> i64 {
        let count = query("SELECT COUNT(*) FROM outbox");
        count.value(store.database.sql()).await.unwrap()
    }

    /// Compute's word about a user.
    fn known(id: i64) -> Delivery {
        let message = compute::UserCached {
            metadata: None,
            user_id: id,
        };
        let cause = Cause::default();
        let entry = seal("edd-compute", &EntityId::from(id), 1, message, &cause);
        let position = Position {
            stream: "COMPUTE".into(),
            sequence: 1,
            published_at: SystemTime::now(),
        };
        match decode(&entry.subject, &entry.payload, None, &position) {
            Decoded::Event(event) => Delivery {
                event: *event,
                position,
                deliveries: 1,
            },
            other => panic!("{other:?}"),
        }
    }

    async fn damage(store: &Store, user_id: i64) {
        query("UPDATE sagas SET data = '{' WHERE id = $1")
            .bind(saga::id::<Confirmed<Registration>>(user_id))
            .run(store.database.sql())
            .await
            .unwrap();
    }

    /// Every step, first with an end of the process before its commit, then
    /// twice: as if the process had ended after the commit, before anybody heard.
    #[tokio::test]
    async fn a_process_may_end_anywhere_between_and_within_the_steps() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path()).await;
        let id = registered(&store).await;
        assert_eq!(rows(&store).await[0].state, "running");
        store.delete_user(id, &Cause::default()).await.unwrap();
        assert_eq!(rows(&store).await.len(), 2);

        // Time-outs: the first two announce again, the third gives up.
        let mut now = SystemTime::now();
        for (attempt, state) in [(1, "running"), (2, "running"), (3, "failed")] {
            let (before, waiting) = (rows(&store).await, outbox(&store).await);
            now += TIMEOUT + Duration::from_secs(1);
            let mut tx = store.database.begin().await.unwrap();
            saga::drive::<Confirmed<Deletion>>(&mut tx, id, &Input::TimedOut, now)
                .await
                .unwrap()
                .expect("a transition");
            drop(tx);
            assert_eq!(rows(&store).await, before, "nothing happened");
            store.drive_due(now).await.unwrap();
            store.drive_due(now).await.unwrap();
            let after = rows(&store).await;
            let found = (after[1].state.as_str(), after[1].attempts);
            assert_eq!(found, (state, attempt));
            let told = i64::from(state == "running");
            assert_eq!(outbox(&store).await, waiting + told, "once");
        }
        now += TIMEOUT * 2;
        assert_eq!(store.drive_due(now).await.unwrap(), 0, "nothing is due");

        // The confirmation, however often, and by another event of the kind.
        let before = rows(&store).await;
        let mut tx = store.database.begin().await.unwrap();
        assert!(inbox::first_time(&mut tx, "e1").await.unwrap());
        saga::drive::<Confirmed<Deletion>>(&mut tx, id, &Input::Confirmed, now)
            .await
            .unwrap()
            .expect("a transition");
        drop(tx);
        assert_eq!(rows(&store).await, before, "nothing happened");
        assert!(store.user_purged("e1", id).await.unwrap());
        assert!(!store.user_purged("e1", id).await.unwrap());
        assert!(!store.user_purged("e2", id).await.unwrap());
        assert!(!store.user_known("e3", id).await.unwrap());
        assert!(!store.user_purged("e4", 999).await.unwrap());
        for (row, step) in rows(&store).await.iter().zip(["abandoned", "confirmed"]) {
            assert_eq!((row.state.as_str(), row.step.as_str()), ("completed", step));
        }
        let kept = saga::prune(store.database.sql(), Duration::from_secs(60));
        assert_eq!(kept.await.unwrap(), 0);
    }

    /// Whoever has heard of the user hears of the end, and nothing stays but the word of it.
    #[tokio::test]
    async fn a_registration_that_nobody_confirms_is_undone_where_that_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path()).await.with_undo_registrations(true);
        let id = registered(&store).await;
        let mut now = SystemTime::now();
        for _ in 0..3 {
            now += TIMEOUT + Duration::from_secs(1);
            assert_eq!(store.drive_due(now).await.unwrap(), 1);
        }
        let users: i64 = query("SELECT COUNT(*) FROM users")
            .value(store.database.sql())
            .await
            .unwrap();
        assert_eq!(users, 0);
        let last = "SELECT subject FROM outbox ORDER BY id DESC LIMIT 1";
        let last: String = query(last).value(store.database.sql()).await.unwrap();
        assert_eq!(last, format!("auth.user.{id}.deleted"));
        let rows: Vec<_> = rows(&store).await;
        let told = |row: &Row| (row.kind.clone(), row.state.clone(), row.step.clone());
        let told: Vec<_> = rows.iter().map(told).collect();
        let row = |kind: &str, state: &str, step: &str| (kind.into(), state.into(), step.into());
        assert_eq!(
            told,
            [
                row("registration", "completed", "undone"),
                row("user-deletion", "running", "announced"),
            ]
        );
        // The confirmation was on its way, and somebody else tries the name.
        assert!(!store.user_known("late", id).await.unwrap());
        assert_ne!(registered(&store).await, id);
    }

    /// However many there are, and longer overdue.
    #[tokio::test]
    async fn sagas_that_cannot_be_read_are_not_looked_at_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path()).await;
        for n in 0..DUE_MAX {
            let damaged = registered_as(&store, &format!("user{n}")).await;
            damage(&store, damaged).await;
        }
        query("UPDATE sagas SET deadline = 1")
            .run(store.database.sql())
            .await
            .unwrap();
        registered_as(&store, "alice").await;
        let now = SystemTime::now() + TIMEOUT + Duration::from_secs(1);
        assert_eq!(store.drive_due(now).await.unwrap(), 0);
        assert_eq!(store.drive_due(now).await.unwrap(), 1);
        let later = now + UNREADABLE_PAUSE / 2;
        let due = saga::due::<Confirmed<Registration>>(store.database.sql(), later, DUE_MAX);
        assert!(due.await.unwrap().is_empty());
    }

    /// Nor does what is heard of it hold up what is heard of others.
    #[tokio::test]
    async fn a_saga_that_cannot_be_read_holds_up_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path()).await;
        let damaged = registered_as(&store, "alice").await;
        let whole = registered_as(&store, "bob").await;
        damage(&store, damaged).await;
        let waiting = outbox(&store).await;
        let now = SystemTime::now() + TIMEOUT + Duration::from_secs(1);
        assert_eq!(store.drive_due(now).await.unwrap(), 1);
        assert_eq!(outbox(&store).await, waiting + 1);

        let mut confirmations = Confirmations {
            store: store.clone(),
        };
        let batch = [known(damaged), known(whole), known(999)];
        let verdicts = confirmations.handle(&batch).await.unwrap();
        assert!(matches!(verdicts[0], Verdict::Retry(_)), "{verdicts:?}");
        assert_eq!(verdicts[1..], [Verdict::Applied, Verdict::Stale]);
        let states: Vec<_> = rows(&store)
            .await
            .into_iter()
            .map(|row| row.state)
            .collect();
        assert_eq!(states, ["running", "completed"]);
    }

    /// No event is at fault for a database that takes none.
    #[tokio::test]
    async fn a_database_that_takes_no_event_at_all_makes_no_dead_letters() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path()).await;
        let id = registered(&store).await;
        damage(&store, id).await;
        let mut confirmations = Confirmations {
            store: store.clone(),
        };
        let counts = "SELECT (SELECT COUNT(*) FROM inbox) + (SELECT COUNT(*) FROM outbox) \
                      + (SELECT COUNT(*) FROM event_store)";
        let count = async || -> i64 { query(counts).value(store.database.sql()).await.unwrap() };
        let before = count().await;
        let verdicts = confirmations.handle(&[known(id)]).await.unwrap();
        assert!(matches!(verdicts[0], Verdict::Retry(_)), "{verdicts:?}");
        assert_eq!(count().await, before, "nothing of the trial stays");
        let broken = match store.database.sql().engine() {
            // As after a restore without the sequences.
            Engine::Postgres => "ALTER SEQUENCE event_store_id_seq RESTART",
            Engine::Sqlite => {
                "CREATE TRIGGER refused BEFORE INSERT ON event_store \
                 BEGIN SELECT RAISE(ABORT, 'refused'); END"
            }
        };
        let whole = registered_as(&store, "bob").await;
        query(broken).run(store.database.sql()).await.unwrap();
        confirmations.handle(&[known(id)]).await.unwrap_err();
        let now = SystemTime::now() + TIMEOUT + Duration::from_secs(1);
        store.drive_due(now).await.unwrap_err();
        let due = saga::due::<Confirmed<Registration>>(store.database.sql(), now, DUE_MAX);
        let due = due.await.unwrap();
        assert_eq!(due, [id, whole].map(|id| id.to_string()), "none is put off");
    }
}
