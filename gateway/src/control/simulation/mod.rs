//! The control path in a world of its own: simulated streams, database and clock.
//!
//! One to three gateways share them, each the real writer. Around it, [`process`] and
//! [`consuming`] play what feeds it, [`streams`] the streams with their durable consumers,
//! [`opening`] and [`turns`] a database that fails before and after a commit, is away, lost
//! or put back from a copy, and gives one writer the turn at a time. Everything waits on a
//! paused clock in one thread and every choice comes from the seed, so a seed replays
//! exactly. A process is dropped at any await of its surroundings: before and after
//! the effect of each statement, between two acknowledgements, between a dead letter
//! and its acknowledgement. There it may also stall while the others go on, and each may be
//! cut off from the database or from NATS alone ([`seat`]).
//!
//! [`model`] says what must be so. `EDD_SIMULATION_SEED=7` runs one seed,
//! `EDD_SIMULATION_SEEDS=10000` makes it long, `EDD_SIMULATION_TOLD=1` tells what happens.

mod consuming;
mod counts;
mod database;
mod events;
mod model;
mod opening;
mod process;
mod random;
mod seat;
mod streams;
mod turns;
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use counts::Counts;
use random::Random;
use seat::{Cut, Fault};
use world::{Telling, World};

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
    let telling = match std::env::var_os("EDD_SIMULATION_TOLD") {
        Some(_) => Telling::Printed,
        None => Telling::Nothing,
    };
    let mut sum = Counts::default();
    let parts = process::Parts::new();
    for seed in seeds.clone() {
        let run = || simulate(seed, telling, &parts);
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
    for seed in 0..9 {
        let run = || simulate(seed, Telling::Counted, &parts);
        assert_eq!(run(), run(), "seed {seed}");
    }
}

/// Lives through one seed.
fn simulate(seed: u64, telling: Telling, parts: &process::Parts) -> Counts {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let world = World::new(seed, telling);
        let mut random = Random::new(seed);
        tokio::select! {
            biased;
            _ = join_all((0..world.gateways()).map(|seat| lives(&world, seat, parts))) => {}
            () = script(&world, &mut random) => {}
        }
        world.counts()
    })
}

/// One process of a gateway after the other; each ends by a crash.
async fn lives(world: &Arc<World>, seat: usize, parts: &process::Parts) {
    loop {
        let process = process::Process::boot(world, seat, parts);
        world.until_crash(seat, process.run()).await;
        world.pause(2_000).await;
    }
}

/// What happens to them.
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
        60..85 if world.is_calm() => {}
        60..85 => {
            let (seat, points) = (random.below(world.gateways()), random.below(60));
            let ms = |random: &mut Random| Duration::from_millis(random.next() % 45_000);
            match random.below(100) {
                0..60 => world.fault_in(seat, points, Fault::Crash),
                60..80 => world.fault_in(seat, points, Fault::Stall(ms(random))),
                80..92 => world.cut_off(seat, Cut::Database, ms(random)),
                _ => world.cut_off(seat, Cut::Nats, ms(random)),
            }
        }
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
