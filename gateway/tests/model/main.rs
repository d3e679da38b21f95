//! The gateway against a model: random logs of events, random kills, one end.
//!
//! Each seed makes a log of at least 2,000 messages (facts with and without
//! versions, out of order, twice, poison, unknown), publishes it through a real
//! nats-server to a real `edd-gateway`, and kills the gateway, NATS and PostgreSQL
//! at random instants on the way. At the end everything is compared with
//! [`oracle`], a naive reading of the same streams that shares no code with the
//! gateway. What differs from run to run of a seed is only when the kills hit.
//!
//! `EDD_MODEL_SEED=7` runs one seed, `EDD_MODEL_SEEDS=500` more of them,
//! `EDD_MODEL_LOG=debug` with another log level of the gateway.

mod check;
mod oracle;
mod random;
mod rig;
mod run;
mod script;

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt as _;
use rig::Engine;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Runs at once: most of the time they wait for redeliveries.
const AT_ONCE: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_logs_and_kills_end_at_the_models_table_on_sqlite() {
    seeds(Engine::Sqlite, 0, 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_logs_and_kills_end_at_the_models_table_on_postgresql() {
    seeds(Engine::Postgres, 1000, 10).await;
}

/// Runs `count` seeds from `first` on, or what the environment says.
async fn seeds(engine: Engine, first: u64, count: u64) {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse()
                .unwrap_or_else(|_| panic!("{name}={text}: a number is wanted")),
        )
    };
    let one = number("EDD_MODEL_SEED");
    let count = number("EDD_MODEL_SEEDS").unwrap_or(count);
    let seeds = one.map_or(first..first + count, |one| one..one + 1);
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for seed in seeds {
        let places = Arc::clone(&places);
        running.spawn(async move {
            let _place = places.acquire_owned().await;
            let run = std::panic::AssertUnwindSafe(run::run(engine, seed));
            (seed, run.catch_unwind().await)
        });
    }
    let (mut messages, mut kills, mut failed) = (0, 0, Vec::new());
    while let Some(ended) = running.join_next().await {
        match ended.expect("panics are caught") {
            (_, Ok(done)) => {
                messages += done.messages;
                kills += done.kills;
            }
            (seed, Err(_)) => {
                let test = engine.name();
                println!(
                    "replay: EDD_MODEL_SEED={seed} cargo test -p edd-gateway --test model {test}"
                );
                failed.push(seed);
            }
        }
    }
    println!(
        "{}: {messages} messages and {kills} kills in {:.1?}",
        engine.name(),
        begun.elapsed()
    );
    assert!(failed.is_empty(), "failed seeds: {failed:?}");
}
