//! Gateways on one database: how long after the first has a change the last has it too.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep_until};

use super::changes::{ASKED_AGAIN, Rate, publish};
use crate::client::Client;
use crate::clock::Clock;
use crate::site::{Engine, Site, host};
use crate::stats::{Samples, millis};

/// Between two changes that are looked at: one is over before the next begins, or the looking
/// would be measured.
const GAP: Duration = Duration::from_millis(50);

/// Changes that are looked at while nothing else changes.
const CHANGES: u32 = 400;

/// A change that is not in force after this time never will be.
const LIMIT: Duration = Duration::from_secs(20);

/// Starts all of them at once on a full stream; then stops and starts one container after the
/// other and asks all gateways until they have it, at first alone, then beside the changes of others
/// at their rate.
pub(super) async fn measure(
    gateway: PathBuf,
    guest: SocketAddr,
    replicas: u32,
    containers: u32,
    rate: &Rate,
) -> Result<()> {
    let mut sites = vec![Site::prepare(gateway, Engine::Postgresql, guest).await?];
    for _ in 1..replicas {
        let replica = sites[0].replica(guest).await?;
        sites.push(replica);
    }
    sites[0].fill(containers).await?;
    let began = Instant::now();
    for site in &mut sites {
        site.start()?;
    }
    let mut clients = Vec::new();
    for site in &mut sites {
        site.until_ready().await?;
        clients.push(site.client()?);
    }
    let took = millis(began.elapsed());
    println!("{replicas} gateways on one PostgreSQL: all that start at once ready   {took}");
    // The changes of the others are of the first half.
    let mut looking = Looking {
        site: &sites[0],
        clock: Clock::start()?,
        clients,
        from: containers / 2,
        containers: containers - containers / 2,
        next: 0,
    };
    let alone = looking.look(|looked, _| looked < CHANGES).await?;
    alone.print(replicas, "one change at a time");
    let until = Instant::now() + Duration::from_secs(rate.seconds.into());
    let (published, beside) = tokio::try_join!(
        publish(&sites[0].publisher, containers / 2, rate, Vec::new()),
        looking.look(|_, now| now < until),
    )?;
    beside.print(replicas, &format!("under {:.1} changes/s", published.held));
    for site in sites {
        site.stop().await?;
    }
    Ok(())
}

/// Changes containers of a range and looks at them through all gateways.
struct Looking<'a> {
    site: &'a Site,
    clock: Clock,
    clients: Vec<Client>,
    from: u32,
    containers: u32,
    next: u32,
}

#[derive(Default)]
struct Lags {
    /// From the publishing until the first has it.
    first: Samples,
    /// From then until the last has it.
    last: Samples,
}

impl Lags {
    fn print(&self, replicas: u32, when: &str) {
        let Self { first, last } = self;
        println!("{replicas} gateways on one PostgreSQL, {when}: publish to the first   {first}");
        println!("{replicas} gateways on one PostgreSQL, {when}: the first to the last  {last}");
    }
}

impl Looking<'_> {
    async fn look(&mut self, goes_on: impl Fn(u32, Instant) -> bool) -> Result<Lags> {
        let mut lags = Lags::default();
        let (mut due, mut looked) = (Instant::now(), 0);
        while goes_on(looked, due) {
            sleep_until(due).await;
            looked += 1;
            let began = Instant::now();
            let id = format!("filled-{}", self.from + self.next / 2 % self.containers);
            let publisher = &self.site.publisher;
            let version = publisher.next_version();
            let status = match self.next % 2 {
                0 => {
                    publisher.stop(&id, version).await?.await?;
                    404
                }
                _ => {
                    publisher.start(&id, version).await?.await?;
                    200
                }
            };
            self.next += 1;
            let seen = self.clients.iter_mut();
            let clock = &self.clock;
            let seen = try_join_all(seen.map(|client| until(client, clock, &id, status))).await?;
            let (Some(earliest), Some(latest)) = (seen.iter().min(), seen.iter().max()) else {
                bail!("no gateways");
            };
            lags.first.push(*earliest - began);
            lags.last.push(*latest - *earliest);
            due = Instant::now() + GAP;
        }
        Ok(lags)
    }
}

/// When a request to it is answered so.
async fn until(client: &mut Client, clock: &Clock, id: &str, status: u16) -> Result<Instant> {
    let began = Instant::now();
    let host = host(id);
    loop {
        let answer = client.get(&host, "/").await;
        if answer.as_ref().is_ok_and(|answer| answer.status == status) {
            return Ok(Instant::now());
        }
        if began.elapsed() > LIMIT {
            bail!("{host} is not {status} after {LIMIT:?}");
        }
        clock.pause(ASKED_AGAIN).await;
    }
}
