//! Changes that arrive at a fixed rate, and what is seen of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures_util::future::try_join_all;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::applied::Applied;
use crate::client::Client;
use crate::clock::Clock;
use crate::publisher::Publisher;
use crate::site::{Site, host};
use crate::stats::Samples;

/// A container that was stopped starts again so many changes later.
const RESTART_AFTER: u32 = 500;

/// Connections that look at changes, each at its own: with few, a change that is late would make
/// those behind it count as late, which are in effect by then.
const OBSERVERS: usize = 32;

/// An observer asks again after this: without a pause the observers alone would fill the machine,
/// and what is measured would wait for them.
pub(super) const ASKED_AGAIN: Duration = Duration::from_millis(1);

/// The first changes are not counted: connections, caches and prepared statements come with them.
pub(super) const WARM_UP: Duration = Duration::from_secs(1);

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
pub(super) struct Change {
    due: Instant,
    id: String,
    /// What a request to it is answered from then on.
    status: u16,
}

/// One that nobody looks at.
pub(super) struct Sent {
    pub(super) due: Instant,
    pub(super) id: String,
    /// It starts, or else stops.
    pub(super) starts: bool,
}

/// What came of publishing.
pub(super) struct Published {
    /// Changes a second.
    pub(super) held: f64,
    /// All of them.
    pub(super) sent: Vec<Sent>,
    /// From when a change was due until the stream had it: of what comes after, the broker's part.
    answered: Samples,
}

/// The time of each change from when it was due until it is seen.
pub(super) async fn effect(site: &Site, containers: u32, rate: &Rate) -> Result<()> {
    let total = rate.per_second * rate.seconds;
    let clock = Clock::start()?;
    let began = Instant::now();
    let (mut tell, mut looking) = (Vec::new(), Vec::new());
    for _ in 0..OBSERVERS {
        let (sender, receiver) = mpsc::channel(total as usize);
        tell.push(sender);
        looking.push(observe(site.client()?, receiver, began, clock.clone()));
    }
    let applied = async || Applied::of(&site.ask_admin("/metrics").await?);
    let warm = async {
        clock.until(began + WARM_UP).await;
        applied().await
    };
    let (published, seen, before) = tokio::try_join!(
        publish(&site.publisher, containers, rate, tell),
        try_join_all(looking),
        warm,
    )?;
    let applied = applied().await?.since(&before);
    restore(&site.publisher, containers.min(total)).await?;
    let mut samples = Samples::default();
    for part in seen {
        samples.extend(&part);
    }
    let Published { held, answered, .. } = published;
    println!("{containers:>6} containers, {held:>5.1} changes/s: publish to stream   {answered}");
    println!("{containers:>6} containers, {held:>5.1} changes/s: publish to effect   {samples}");
    println!(
        "{containers:>6} containers, {held:>5.1} changes/s: by the gateway's clock   {applied}"
    );
    Ok(())
}

/// Publishes each change when it is due.
pub(super) async fn publish(
    publisher: &Publisher,
    containers: u32,
    rate: &Rate,
    tell: Vec<mpsc::Sender<Change>>,
) -> Result<Published> {
    let gap = Duration::from_secs(1) / rate.per_second;
    let total = rate.per_second * rate.seconds;
    let clock = Clock::start()?;
    let began = Instant::now();
    let mut acks = JoinSet::new();
    let mut answered = Samples::default();
    let mut sent = Vec::with_capacity(total as usize);
    let mut last = began;
    for n in 0..total {
        let due = began + gap * n;
        clock.until(due).await;
        // Stops and starts take turns, of other containers each.
        let starts = n % 2 == 1;
        let turn = n / 2;
        let container = match starts {
            false => turn,
            true if turn < RESTART_AFTER / 2 => continue,
            true => turn - RESTART_AFTER / 2,
        };
        let id = format!("filled-{}", container % containers);
        let version = publisher.next_version();
        let ack = if starts {
            publisher.start(&id, version).await?
        } else {
            publisher.stop(&id, version).await?
        };
        acks.spawn(async move {
            ack.await.context("the stream did not take an event")?;
            anyhow::Ok(due.elapsed())
        });
        last = Instant::now();
        sent.push(Sent {
            due,
            id: id.clone(),
            starts,
        });
        if let Some(tell) = tell.get(n as usize / 2 % OBSERVERS) {
            let status = if starts { 200 } else { 404 };
            let change = Change { due, id, status };
            tell.send(change).await.ok().context("nobody looks")?;
        }
        if acks.len() > ACKS_MAX
            && let Some(answer) = acks.join_next().await
        {
            answered.push(answer??);
        }
    }
    while let Some(answer) = acks.join_next().await {
        answered.push(answer??);
    }
    Ok(Published {
        held: f64::from(total) / (last - began).as_secs_f64(),
        sent,
        answered,
    })
}

/// As it was before, for who comes next.
pub(super) async fn restore(publisher: &Publisher, containers: u32) -> Result<()> {
    for container in 0..containers {
        let version = publisher.next_version();
        let id = format!("filled-{container}");
        publisher.start(&id, version).await?.await?;
    }
    Ok(())
}

/// Asks for the oldest change until it is in effect, then for the next.
async fn observe(
    mut client: Client,
    mut changes: mpsc::Receiver<Change>,
    began: Instant,
    clock: Clock,
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
            clock.pause(ASKED_AGAIN).await;
        }
        if due > began + WARM_UP {
            samples.push(due.elapsed());
        }
    }
    Ok(samples)
}

/// Paced requests to a container that nothing changes: while nothing is published, while the same
/// events go where no gateway reads them, and while they are changes.
pub(super) async fn latency(site: &Site, containers: u32, rate: &Rate) -> Result<()> {
    let stable = host(&format!("filled-{}", containers - 1));
    let elsewhere = site.publisher.elsewhere().await?;
    let part = Rate {
        per_second: rate.per_second,
        seconds: (rate.seconds / 2).max(2),
    };
    let time = Duration::from_secs(part.seconds.into());
    let beside = async |publisher: &Publisher, samples: &mut Samples| -> Result<()> {
        let (_, seen) = tokio::try_join!(
            publish(publisher, containers / 2, &part, Vec::new()),
            paced(site.client()?, &stable, time),
        )?;
        restore(publisher, part.per_second * part.seconds).await?;
        samples.extend(&seen);
        Ok(())
    };
    let (mut quiet, mut other) = (Samples::default(), Samples::default());
    let mut busy = Samples::default();
    // By turns, so that none has the better moments of the machine.
    for _ in 0..2 {
        quiet.extend(&paced(site.client()?, &stable, time).await?);
        beside(&elsewhere, &mut other).await?;
        beside(&site.publisher, &mut busy).await?;
    }
    let changes = rate.per_second;
    println!("{containers:>6} containers, a request when nothing happens    {quiet}");
    println!("{containers:>6} containers, a request beside {changes} other messages/s    {other}");
    println!("{containers:>6} containers, a request under {changes} changes/s    {busy}");
    Ok(())
}

async fn paced(mut client: Client, host: &str, time: Duration) -> Result<Samples> {
    // The connection is there before the clock runs.
    client.get(host, "/").await?;
    let gap = Duration::from_secs(1) / REQUESTS;
    let clock = Clock::start()?;
    let began = Instant::now();
    let mut samples = Samples::default();
    let mut due = began;
    while due < began + time {
        clock.until(due).await;
        let answer = client.get(host, "/").await?;
        if answer.status != 200 {
            bail!("{host}: {}", answer.status);
        }
        samples.push(due.elapsed());
        due += gap;
    }
    Ok(samples)
}
