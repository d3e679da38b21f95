//! What one transaction over everything costs: a stream made anew, compute's snapshot, a lost
//! database that is seeded.
//!
//! `EDD_WHOLE_CONTAINERS=100000` measures, `cargo test -p edd-gateway --lib whole -- --nocapture`
//! prints.

use std::time::Instant;

use edd_route::{ContainerId, Origin, UserId};
use edd_store::DatabaseUrl;
use edd_store::testing::{Postgres, database_of};

use super::{Cause, Commit, GatewayStore as _, Line, Place, SqlStore};
use crate::control::reconcile::{Change, Effects, Stamp, State, What};

/// Containers of a usual run.
const CONTAINERS: u32 = 2_500;

/// Running containers with a rule each, and a key for every tenth.
fn changes(containers: u32) -> Vec<Change> {
    let mut whats = Vec::new();
    for n in 0..containers {
        let id = ContainerId::new(&format!("container-{n}")).expect("an id");
        let owner = UserId(i64::from(1 + n / 10));
        if n % 10 == 0 {
            whats.push(What::KeyCreated {
                id: i64::from(n + 1),
                user: owner,
                fingerprint: format!("SHA256:{n:043}"),
            });
        }
        whats.push(What::ContainerCreated {
            id: id.clone(),
            owner,
            name: format!("name of {n}"),
        });
        let [_, a, b, c] = n.to_be_bytes();
        whats.push(What::ContainerStarted {
            id: id.clone(),
            address: [10, a, b, c].into(),
            ssh_host_key: Some(format!("ssh-ed25519 {n:068}")),
        });
        whats.push(What::RuleRequested {
            id,
            port: 80,
            target: 8080,
        });
    }
    let change = |(sequence, what)| Change {
        stamp: Stamp::unversioned(sequence),
        origin: Origin::Event {
            subject: "compute.container.of-some-length.started".into(),
            sequence,
            event_id: format!("01919191-0000-7000-8000-{sequence:012}"),
            at_ms: 0,
        },
        what,
    };
    (1..).zip(whats).map(change).collect()
}

async fn measure(url: &DatabaseUrl, changes: &[Change]) {
    let store = SqlStore::open(url).await.expect("opened");
    let begun = Instant::now();
    let (mut state, mut effects) = (State::default(), Effects::default());
    for change in changes {
        state.apply(change, 1, &mut effects);
    }
    println!("  reduced in {:?}", begun.elapsed());
    effects.announcements.clear();
    let mut position = Place::default();
    for what in ["inserted", "replaced"] {
        let mut turn = store.begin(position, &[]).await.expect("a turn").turn;
        let rows = changes.len();
        store.prolong(&mut turn, rows).await.expect("more time");
        let begun = Instant::now();
        let mut next = state.clone();
        next.forget_sequences();
        let all = next.all();
        let journal = Line::of(&next, &all, &Cause::last_good_table());
        let lines = journal.len();
        println!("  {lines} lines made in {:?}", begun.elapsed());
        let commit = Commit {
            changes: Some((&next, &all)),
            journal,
            position,
            ..Commit::default()
        };
        let begun = Instant::now();
        position = store.commit(turn, &commit).await.expect("committed");
        println!("  {what} in {:?}", begun.elapsed());
    }
    let begun = Instant::now();
    let stored = store.load().await.expect("read");
    println!("  read in {:?}", begun.elapsed());
    assert_eq!(stored.state.digest(), state.digest());
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_written_in_one_transaction() {
    let containers = match std::env::var("EDD_WHOLE_CONTAINERS") {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => CONTAINERS,
    };
    let changes = changes(containers);
    let folder = tempfile::tempdir().expect("a folder");
    println!("{containers} containers, SQLite:");
    measure(&database_of(folder.path()).await, &changes).await;
    println!("{containers} containers, PostgreSQL:");
    measure(&Postgres::shared().await.database().await, &changes).await;
}
