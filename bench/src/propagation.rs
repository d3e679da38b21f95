//! `edd-bench propagation`: from publish to the first request served under a change.
//!
//! Publishes the events of many containers straight to JetStream, as compute's relay would, then
//! makes changes one by one: a new container, a stop, a start. Each is timed from before its
//! first event is sent until a request over a kept HTTPS connection, polled without a pause, is
//! answered as the change wants it (200, or 404 after a stop).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::client::Client;
use crate::guest;
use crate::publisher::Publisher;
use crate::stats::{Samples, machine_noise, millis};

/// Changes of one container: made, stopped, started again.
const STEPS: [Step; 3] = [Step::Create, Step::Stop, Step::Start];

/// The ports that a container's rules open.
const PORTS: [u16; 1] = [443];

/// A change not in effect after this time never will be.
const CHANGE_LIMIT: Duration = Duration::from_secs(10);

/// The first fill may take this long.
const FILL_LIMIT: Duration = Duration::from_secs(120);

/// Events on their way while filling, so that no queue of the client's overflows.
const FILL_WINDOW: usize = 256;

/// Requests that measure what one request costs when nothing changes.
const BASELINE: usize = 1000;

/// The arguments of `edd-bench propagation`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to publish
    #[arg(long)]
    nats_url: String,
    /// The gateway's HTTPS listener, `HOST:PORT`
    #[arg(long)]
    https: String,
    /// The CA that signed the gateway's certificate
    #[arg(long)]
    ca: PathBuf,
    /// The gateway's platform domain
    #[arg(long, default_value = "localhost")]
    platform_domain: String,
    /// Where the containers' web server of this program listens; the gateway must accept it
    #[arg(long, default_value = "127.64.255.1:8080")]
    guest: SocketAddr,
    /// Containers that are there before the first change
    #[arg(long, default_value_t = 1000)]
    containers: u32,
    /// Changes to measure
    #[arg(long, default_value_t = 500)]
    changes: u32,
    /// Fail when the 99th percentile is above so many milliseconds
    #[arg(long)]
    p99_max_ms: Option<u64>,
}

#[derive(Clone, Copy)]
enum Step {
    Create,
    Stop,
    Start,
}

/// Fills, changes, prints.
pub(crate) async fn run(args: Args) -> Result<()> {
    guest::start(args.guest)?;
    let publisher = Publisher::connect(&args.nats_url, args.guest).await?;
    let sni = format!("x.compute.{}", args.platform_domain);
    let mut gateway = Gateway {
        client: Client::new(&args.https, &sni, &args.ca)?,
        suffix: format!("compute.{}", args.platform_domain),
    };

    println!(
        "machine's noise (lateness of a 1 ms sleep)   {}",
        machine_noise()
    );
    let filled = fill(&publisher, &mut gateway, args.containers).await?;
    println!(
        "{} containers filled and served after        {}",
        args.containers,
        millis(filled)
    );
    let baseline = baseline(&mut gateway, args.containers).await?;
    println!("a request when nothing changes               {baseline}");
    let acks = publisher.ack_times().await?;
    println!("a publish until the stream's ack             {acks}");

    let [mut creates, mut stops, mut starts] = [(); 3].map(|()| Samples::default());
    for change in 0..args.changes {
        let (container, step) = (change / 3, STEPS[change as usize % STEPS.len()]);
        let id = format!("changed-{container}");
        let version = i64::from(change) + 1;
        let started = Instant::now();
        let (acks, wanted) = match step {
            Step::Create => (publisher.create(&id, &PORTS, version).await?, 200),
            Step::Stop => (vec![publisher.stop(&id, version).await?], 404),
            Step::Start => (vec![publisher.start(&id, version).await?], 200),
        };
        gateway.until(&id, wanted, CHANGE_LIMIT).await?;
        let took = started.elapsed();
        match step {
            Step::Create => creates.push(took),
            Step::Stop => stops.push(took),
            Step::Start => starts.push(took),
        }
        for ack in acks {
            ack.await.context("the stream did not take an event")?;
        }
    }
    let mut all = Samples::default();
    for (name, samples) in [
        ("new container", &creates),
        ("stop", &stops),
        ("start", &starts),
    ] {
        println!("{name:<44} {samples}");
        all.extend(samples);
    }
    println!("every change, publish to first request       {all}");
    let p99 = all.percentile(990);
    match args.p99_max_ms {
        Some(max) if p99 > Duration::from_millis(max) => {
            bail!(
                "the 99th percentile is {}, wanted: at most {max} ms",
                millis(p99).trim()
            )
        }
        _ => Ok(()),
    }
}

/// Publishes many containers and waits until the last of them is served.
async fn fill(publisher: &Publisher, gateway: &mut Gateway, containers: u32) -> Result<Duration> {
    let started = Instant::now();
    let mut under_way = std::collections::VecDeque::new();
    for container in 0..containers {
        let id = format!("filled-{container}");
        under_way.extend(publisher.create(&id, &PORTS, 1).await?);
        while under_way.len() > FILL_WINDOW {
            if let Some(ack) = under_way.pop_front() {
                ack.await.context("the stream did not take an event")?;
            }
        }
    }
    for ack in under_way {
        ack.await.context("the stream did not take an event")?;
    }
    if let Some(last) = containers.checked_sub(1) {
        gateway
            .until(&format!("filled-{last}"), 200, FILL_LIMIT)
            .await?;
    }
    Ok(started.elapsed())
}

async fn baseline(gateway: &mut Gateway, containers: u32) -> Result<Samples> {
    let mut samples = Samples::default();
    for n in (0..containers).cycle().take(BASELINE) {
        let started = Instant::now();
        gateway
            .until(&format!("filled-{n}"), 200, CHANGE_LIMIT)
            .await?;
        samples.push(started.elapsed());
    }
    Ok(samples)
}

/// The gateway as its clients see it.
struct Gateway {
    client: Client,
    suffix: String,
}

impl Gateway {
    /// Asks for a container again and again until the status is the wanted one. A 200 counts
    /// only with the container's own name in it. A request under way when its container stops is
    /// cut with its connection: then the next one is asked on a new one.
    async fn until(&mut self, id: &str, wanted: u16, limit: Duration) -> Result<()> {
        let host = format!("{id}.{}", self.suffix);
        let started = Instant::now();
        loop {
            let seen = match self.client.get(&host, "/").await {
                Ok(answer) if answer.status == wanted && (wanted != 200 || answer.body == host) => {
                    return Ok(());
                }
                Ok(answer) => format!("{} {:?}", answer.status, answer.body),
                Err(error) => format!("{error:#}"),
            };
            if started.elapsed() > limit {
                bail!("{host} after {limit:.0?}: wanted {wanted}, saw {seen}");
            }
        }
    }
}
