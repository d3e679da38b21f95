//! Gateways on one database: how long after the first has a change the last has it too.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep_until};

use crate::client::Client;
use crate::site::{Engine, Site, host};
use crate::stats::Samples;

/// Between two changes: one is over before the next begins, or the looking would be measured.
const GAP: Duration = Duration::from_millis(50);

/// A change that is not in force after this time never will be.
const LIMIT: Duration = Duration::from_secs(20);

/// Stops and starts one container after the other and asks all gateways without a pause.
pub(super) async fn measure(
    gateway: PathBuf,
    guest: SocketAddr,
    replicas: u32,
    containers: u32,
    changes: u32,
) -> Result<()> {
    let mut sites = vec![Site::prepare(gateway, Engine::Postgresql, guest).await?];
    for _ in 1..replicas {
        let replica = sites[0].replica(guest).await?;
        sites.push(replica);
    }
    sites[0].fill(containers).await?;
    for site in &mut sites {
        site.start()?;
    }
    let mut clients = Vec::new();
    for site in &mut sites {
        site.until_ready().await?;
        clients.push(site.client()?);
    }
    let (mut first, mut lag) = (Samples::default(), Samples::default());
    let mut due = Instant::now();
    for n in 0..changes {
        sleep_until(due).await;
        let began = Instant::now();
        let id = format!("filled-{}", n / 2 % containers);
        let publisher = &sites[0].publisher;
        let version = publisher.next_version();
        let status = match n % 2 {
            0 => {
                publisher.stop(&id, version).await?.await?;
                404
            }
            _ => {
                publisher.start(&id, version).await?.await?;
                200
            }
        };
        let seen = clients.iter_mut().map(|client| until(client, &id, status));
        let seen = try_join_all(seen).await?;
        let (Some(earliest), Some(latest)) = (seen.iter().min(), seen.iter().max()) else {
            bail!("no gateways");
        };
        first.push(*earliest - began);
        lag.push(*latest - *earliest);
        due = Instant::now() + GAP;
    }
    println!("{replicas} gateways on one PostgreSQL: publish to the first   {first}");
    println!("{replicas} gateways on one PostgreSQL: the first to the last  {lag}");
    for site in sites {
        site.stop().await?;
    }
    Ok(())
}

/// When a request to it is answered so.
async fn until(client: &mut Client, id: &str, status: u16) -> Result<Instant> {
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
    }
}
