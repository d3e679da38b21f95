//! `edd-bench events`: the speed of the control path, with a gateway and a broker of its own.
//!
//! Four measurements. Catch-up: the events of many containers are in the stream, the database
//! is empty, the gateway starts; the time until all of them are in force, on SQLite and on
//! PostgreSQL. Effect: so many changes a second arrive, whether or not the gateway keeps up
//! (open loop); each is timed from the moment it was due until a request is answered as it wants,
//! then once more until the gateway's log says so, with nobody looking.
//! Replicas: of several gateways on one PostgreSQL that start at once, how long after the first the
//! last has a change, one at a time and under so many other changes a second.
//! Latency: paced requests to one container while nothing changes, and under the same changes.

mod applied;
mod changes;
mod replicas;
mod unobserved;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use crate::guest;
use crate::site::{Engine, Site};
use crate::stats::{machine_noise, millis};

/// The arguments of `edd-bench events`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The gateway's binary
    #[arg(long)]
    gateway: PathBuf,
    /// Containers while changes arrive; each number is measured with an empty database
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000])]
    containers: Vec<u32>,
    /// Containers of the catch-up, three events each; 0: none
    #[arg(long, default_value_t = 10_000)]
    catch_up: u32,
    /// Changes a second
    #[arg(long, default_value_t = 500)]
    per_second: u32,
    /// Gateways on one PostgreSQL whose swaps are compared; below two: none
    #[arg(long, default_value_t = 3)]
    replicas: u32,
    /// How long changes arrive
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// The database while changes arrive: sqlite or postgresql
    #[arg(long, default_value = "sqlite")]
    engine: Engine,
    /// Where the containers' web server of this program listens; the gateway must accept it
    #[arg(long, default_value = "127.64.254.1:8080")]
    guest: SocketAddr,
}

/// Containers that several gateways have.
const REPLICATED: u32 = 400;

/// Runs all of them, prints the figures.
pub(crate) async fn run(args: Args) -> Result<()> {
    guest::start(args.guest)?;
    println!(
        "machine's noise (lateness of a 1 ms sleep)           {}",
        machine_noise()
    );
    if args.catch_up > 0 {
        for engine in [Engine::Sqlite, Engine::Postgresql] {
            catch_up(&args, engine).await?;
        }
    }
    for containers in &args.containers {
        steady(&args, *containers).await?;
    }
    if args.replicas > 1 {
        let (gateway, guest) = (args.gateway.clone(), args.guest);
        let rate = changes::Rate {
            per_second: args.per_second,
            seconds: args.seconds,
        };
        replicas::measure(gateway, guest, args.replicas, REPLICATED, &rate).await?;
    }
    println!(
        "machine's noise (lateness of a 1 ms sleep)           {}",
        machine_noise()
    );
    Ok(())
}

/// The stream is full, the database empty; then the database is lost, and all of it
/// was acknowledged before.
async fn catch_up(args: &Args, engine: Engine) -> Result<()> {
    let mut site = Site::prepare(args.gateway.clone(), engine, args.guest).await?;
    site.fill(args.catch_up).await?;
    let began = Instant::now();
    site.start()?;
    site.until_ready().await?;
    let took = began.elapsed();
    site.expect_served(args.catch_up).await?;
    let events = 3 * args.catch_up;
    println!(
        "catch-up of {events} events ({} containers), {engine:<10} {}   {:.0} events/s",
        args.catch_up,
        millis(took),
        f64::from(events) / took.as_secs_f64()
    );
    site.end().await?;
    site.lose_database().await?;
    let began = Instant::now();
    site.start()?;
    site.until_ready().await?;
    let took = began.elapsed();
    site.expect_served(args.catch_up).await?;
    println!(
        "the same into a database in the place of a lost one, {engine:<10} {}   {:.0} events/s",
        millis(took),
        f64::from(events) / took.as_secs_f64()
    );
    site.stop().await
}

/// Changes arrive at their rate.
async fn steady(args: &Args, containers: u32) -> Result<()> {
    let mut site = Site::prepare(args.gateway.clone(), args.engine, args.guest).await?;
    site.fill(containers).await?;
    let began = Instant::now();
    site.start()?;
    site.until_ready().await?;
    println!(
        "{containers} containers in force on {} after {}",
        args.engine,
        millis(began.elapsed())
    );
    let rate = changes::Rate {
        per_second: args.per_second,
        seconds: args.seconds,
    };
    changes::effect(&site, containers, &rate).await?;
    unobserved::effect(&site, containers, &rate).await?;
    changes::latency(&site, containers, &rate).await?;
    site.stop().await
}
