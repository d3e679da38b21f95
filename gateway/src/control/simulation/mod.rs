//! The control path in a world of its own: simulated streams, database and clock.
//!
//! The writer is the real one. Around it, [`process`] plays what feeds it, [`world`]
//! the streams with their durable consumers, [`database`] a database that fails before
//! and after a commit, is away, lost or put back from a copy. Everything waits on a
//! paused clock in one thread and every choice comes from the seed, so a seed replays
//! exactly. The process is dropped at any await of its surroundings: before and after
//! the effect of each statement, between two acknowledgements, between a dead letter
//! and its acknowledgement.
//!
//! [`model`] says what must be so. `EDD_SIMULATION_SEED=7` runs one seed,
//! `EDD_SIMULATION_SEEDS=10000` makes it long, `EDD_SIMULATION_TOLD=1` tells what happens.

mod database;
mod events;
mod model;
mod process;
mod random;
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use random::Random;
use world::World;

/// Seeds of a usual run.
const SEEDS: u64 = 300;

/// What the last faults leave behind is over after this much of the simulated time.
const SETTLE: Duration = Duration::from_secs(15 * 60);

#[test]
fn every_crash_and_fault_ends_at_the_models_table() {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse::<u64>()
                .unwrap_or_else(|_| panic!("{name}={text}")),
        )
    };
    let count = number("EDD_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let seeds = match number("EDD_SIMULATION_SEED") {
        Some(one) => one..one + 1,
        None => 0..count,
    };
    let begun = Instant::now();
    let mut sum = world::Counts::default();
    let parts = process::Parts::new();
    for seed in seeds.clone() {
        let run = || simulate(seed, &parts);
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            Ok(counts) => sum.add(counts),
            Err(panic) => {
                println!(
                    "replay: EDD_SIMULATION_SEED={seed} cargo test -p edd-gateway --lib simulation"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{seeds:?} in {:.1?}: {sum:?}", begun.elapsed());
    if seeds.end - seeds.start >= SEEDS {
        assert!(sum.is_everything_seen(), "{sum:?}");
    }
}

#[test]
fn a_seed_replays_exactly() {
    let parts = process::Parts::new();
    for seed in 0..5 {
        assert_eq!(
            simulate(seed, &parts),
            simulate(seed, &parts),
            "seed {seed}"
        );
    }
}

/// Lives through one seed.
fn simulate(seed: u64, parts: &process::Parts) -> world::Counts {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let world = World::new(seed);
        let mut random = Random::new(seed);
        tokio::select! {
            biased;
            () = lives(Arc::clone(&world), parts) => {}
            () = script(&world, &mut random) => {}
        }
        world.counts()
    })
}

/// One process after the other; each ends by a crash.
async fn lives(world: Arc<World>, parts: &process::Parts) {
    loop {
        let process = process::Process::boot(&world, parts);
        tokio::select! {
            biased;
            () = world.crashed() => {}
            () = process.run() => unreachable!("a process ends by a crash only"),
        }
        world.pause(2_000).await;
    }
}

/// What happens to the process.
async fn script(world: &Arc<World>, random: &mut Random) {
    for _ in 0..3 + random.below(3) {
        for _ in 0..4 + random.below(10) {
            turn(world, random).await;
            world.pause(random.next() % 3_000).await;
        }
        world.spare();
        settled(world).await;
        // What was left out as deadly may come late, or be gone.
        if world.counts().left_out > 0 {
            return;
        }
        model::check(world);
        if random.percent(50) {
            world.keep_a_copy(true);
        }
        // Only between the scenes: what a stream has lost, no gateway can know.
        if random.percent(15) {
            world.reset_stream(usize::from(random.percent(70)), random.percent(50));
            if random.percent(50) {
                settled(world).await;
            }
        }
    }
}

async fn turn(world: &Arc<World>, random: &mut Random) {
    match random.below(100) {
        0..45 => {
            for _ in 0..1 + random.below(12) {
                let (stream, message) = events::message(random, world);
                world.publish(stream, message);
            }
        }
        45..50 => world.say_again(random),
        50..60 => world.edit_routes(random.below(6)),
        60..85 => world.crash_in(random.below(60)),
        85..93 => world.fail_for(1 + random.below(4)),
        93..95 => world.database_away(Duration::from_millis(random.next() % 60_000)),
        95..97 => world.keep_a_copy(false),
        97..99 => world.put_the_copy_back(),
        _ => world.lose_the_database(),
    }
}

/// Waits until all is handled and in force.
async fn settled(world: &Arc<World>) {
    let settled = async {
        while !world.is_settled() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let in_time = tokio::time::timeout(SETTLE, settled).await.is_ok();
    assert!(in_time, "it never ends: {}", world.describe());
}
