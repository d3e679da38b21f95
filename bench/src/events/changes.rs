//! Changes that arrive at a fixed rate, and what is seen of them.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::site::{Site, host};
use crate::client::Client;
use crate::stats::Samples;

/// A container that was stopped starts again so many changes later.
const RESTART_AFTER: u32 = 200;

/// The first changes are not counted: connections, caches and prepared statements come with them.
const WARM_UP: Duration = Duration::from_secs(1);

/// A change not in effect after this time never will be.
const CHANGE_LIMIT: Duration = Duration::from_secs(20);

/// Publishes without an answer at most.
const ACKS_MAX: usize = 1000;

/// Paced requests a second.
const REQUESTS: u32 = 1000;

/// How many changes a second, for how long.
pub(super) struct Rate {
    pub(super) per_second: u32,
    pub(super) seconds: u32,
}

/// A change that was published.
struct Change {
    due: Instant,
    id: String,
    /// What a request to it is answered from then on.
    status: u16,
}

/// The time of each change from when it was due until it is seen.
pub(super) async fn effect(site: &Site, containers: u32, rate: &Rate) -> Result<()> {
    let total = rate.per_second * rate.seconds;
    let (sender, receiver) = mpsc::channel(total as usize);
    let began = Instant::now();
    let (held, seen) = tokio::try_join!(
        publish(site, containers, rate, Some(sender)),
        observe(site.client()?, receiver, began),
    )?;
    println!("{containers:>6} containers, {held:>5.1} changes/s: publish to effect   {seen}");
    Ok(())
}

/// Publishes each change when it is due; the rate that was held.
async fn publish(
    site: &Site,
    containers: u32,
    rate: &Rate,
    tell: Option<mpsc::Sender<Change>>,
) -> Result<f64> {
    let gap = Duration::from_secs(1) / rate.per_second;
    let total = rate.per_second * rate.seconds;
    let began = Instant::now();
    let mut acks = VecDeque::new();
    let mut last = began;
    for n in 0..total {
        let due = began + gap * n;
        sleep_until(due).await;
        // Stops and starts take turns, of other containers each.
        let starts = n % 2 == 1;
        let turn = n / 2;
        let container = match starts {
            false => turn,
            true if turn < RESTART_AFTER / 2 => continue,
            true => turn - RESTART_AFTER / 2,
        };
        let id = format!("filled-{}", container % containers);
        let version = site.publisher.next_version();
        let ack = if starts {
            site.publisher.start(&id, version).await?
        } else {
            site.publisher.stop(&id, version).await?
        };
        acks.push_back(ack);
        last = Instant::now();
        if let Some(tell) = &tell {
            let status = if starts { 200 } else { 404 };
            let change = Change { due, id, status };
            tell.send(change).await.ok().context("nobody looks")?;
        }
        if acks.len() > ACKS_MAX
            && let Some(ack) = acks.pop_front()
        {
            ack.await.context("the stream did not take an event")?;
        }
    }
    for ack in acks {
        ack.await.context("the stream did not take an event")?;
    }
    // As it was before, for who comes next.
    for container in 0..containers.min(total) {
        let id = format!("filled-{container}");
        let version = site.publisher.next_version();
        site.publisher.start(&id, version).await?.await?;
    }
    Ok(f64::from(total) / (last - began).as_secs_f64())
}

/// Asks for the oldest change until it is in effect, then for the next.
async fn observe(
    mut client: Client,
    mut changes: mpsc::Receiver<Change>,
    began: Instant,
) -> Result<Samples> {
    let mut samples = Samples::default();
    while let Some(Change { due, id, status }) = changes.recv().await {
        let host = host(&id);
        loop {
            let answer = client.get(&host, "/").await;
            if answer.as_ref().is_ok_and(|answer| answer.status == status) {
                break;
            }
            if due.elapsed() > CHANGE_LIMIT {
                bail!("{host} is not {status} after {CHANGE_LIMIT:?}");
            }
        }
        if due > began + WARM_UP {
            samples.push(due.elapsed());
        }
    }
    Ok(samples)
}

/// Paced requests to a container that nothing changes, without and with changes elsewhere.
pub(super) async fn latency(site: &Site, containers: u32, rate: &Rate) -> Result<()> {
    let stable = host(&format!("filled-{}", containers - 1));
    let (mut quiet, mut busy) = (Samples::default(), Samples::default());
    // By turns, so that neither has the better moments of the machine.
    for _ in 0..2 {
        let part = Rate {
            per_second: rate.per_second,
            seconds: (rate.seconds / 2).max(2),
        };
        let time = Duration::from_secs(part.seconds.into());
        quiet.extend(&paced(site.client()?, &stable, time).await?);
        let (_, samples) = tokio::try_join!(
            publish(site, containers / 2, &part, None),
            paced(site.client()?, &stable, time),
        )?;
        busy.extend(&samples);
    }
    println!("{containers:>6} containers, a request when nothing changes    {quiet}");
    println!(
        "{containers:>6} containers, a request under {} changes/s    {busy}",
        rate.per_second
    );
    Ok(())
}

async fn paced(mut client: Client, host: &str, time: Duration) -> Result<Samples> {
    // The connection is there before the clock runs.
    client.get(host, "/").await?;
    let gap = Duration::from_secs(1) / REQUESTS;
    let began = Instant::now();
    let mut samples = Samples::default();
    let mut due = began;
    while due < began + time {
        sleep_until(due).await;
        let answer = client.get(host, "/").await?;
        if answer.status != 200 {
            bail!("{host}: {}", answer.status);
        }
        samples.push(due.elapsed());
        due += gap;
    }
    Ok(samples)
}
