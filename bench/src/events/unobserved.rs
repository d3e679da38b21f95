//! The time from publish to effect with nobody looking: from the gateway's log.
//!
//! Who looks from outside takes part of the cores, and what he sees is later by his own way. The
//! gateway writes a line when an event is in effect; its time stamp, less the moment at which the
//! event was due to be published, has everything in it: publisher, broker, gateway.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};

use super::changes::{Rate, Sent, WARM_UP, publish, restore};
use crate::site::Site;
use crate::stats::Samples;

/// How long the last change may take to be in the log.
const LIMIT: Duration = Duration::from_secs(20);

/// How often the log is read until it is.
const POLL: Duration = Duration::from_millis(100);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// An event, and at which time of the day it was in effect.
type Line<'l> = ((&'l str, &'l str), Duration);

/// Publishes at the rate, then reads the log.
pub(super) async fn effect(site: &Site, containers: u32, rate: &Rate) -> Result<()> {
    let (wall, began) = (SystemTime::now(), Instant::now());
    let published = publish(&site.publisher, containers, rate, Vec::new()).await?;
    let ended = Instant::now();
    let samples = loop {
        let log = std::fs::read_to_string(site.folder().join("log"))?;
        match times(&log, &published.sent, wall, began) {
            Ok(samples) => break samples,
            Err(error) if ended.elapsed() > LIMIT => return Err(error),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    };
    restore(
        &site.publisher,
        containers.min(rate.per_second * rate.seconds),
    )
    .await?;
    println!(
        "{containers:>6} containers, {:>5.1} changes/s: with nobody looking     {samples}",
        published.held
    );
    Ok(())
}

/// What each change took; `began` was at `wall`. One that is not in the log is an error.
fn times(log: &str, sent: &[Sent], wall: SystemTime, began: Instant) -> Result<Samples> {
    let mut lines = HashMap::<_, Vec<Duration>>::new();
    for (event, at) in log.lines().filter_map(line) {
        lines.entry(event).or_default().push(at);
    }
    let mut samples = Samples::default();
    for Sent { due, id, starts } in sent {
        let kind = if *starts {
            "ContainerStarted"
        } else {
            "ContainerStopped"
        };
        let at = (wall + (*due - began)).duration_since(UNIX_EPOCH)?;
        let passed = |line: &Duration| {
            let since = line.as_micros() + DAY.as_micros() - at.as_micros() % DAY.as_micros();
            Duration::from_micros((since % DAY.as_micros()) as u64)
        };
        // Lines of earlier changes of the same container are a day late, all but.
        let times = lines.get(&(kind, id.as_str())).into_iter().flatten();
        let took = times.map(passed).min().unwrap_or(DAY);
        ensure!(took < LIMIT, "{kind} of {id} is not in the log");
        if *due > began + WARM_UP {
            samples.push(took);
        }
    }
    Ok(samples)
}

/// An event that was applied; none: another line.
fn line(line: &str) -> Option<Line<'_>> {
    if !line.ends_with(" result=\"applied\"") {
        return None;
    }
    let (_, time) = line.split_once('T')?;
    let (time, rest) = time.split_once('Z')?;
    let (_, kind) = rest.split_once(" type=\"")?;
    let (kind, rest) = kind.split_once("\" entity=")?;
    let (entity, _) = rest.split_once(' ')?;
    let mut parts = time.splitn(3, ':');
    let [hours, minutes] = [parts.next()?, parts.next()?].map(str::parse::<u64>);
    let seconds: f64 = parts.next()?.parse().ok()?;
    let time = Duration::from_secs((hours.ok()? * 60 + minutes.ok()?) * 60);
    Some((
        (kind, entity),
        time + Duration::try_from_secs_f64(seconds).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-11-22T23:59:58.000000Z  INFO edd_events: event id=\"1\" type=\"ContainerStarted\" entity=a latency_us=1 result=\"applied\"
2026-11-22T23:59:59.500000Z  INFO edd_events: event id=\"2\" type=\"ContainerStopped\" entity=a latency_us=1 result=\"applied\"
2026-11-23T00:00:02.003000Z  INFO edd_events: event id=\"3\" type=\"ContainerStarted\" entity=a latency_us=1 result=\"applied\"
2026-11-23T00:00:02.003000Z DEBUG edd_events: event id=\"4\" type=\"ContainerStarted\" entity=b latency_us=1 result=\"stale\"
";

    fn sent(began: Instant, id: &str, starts: bool, millis: u64) -> Sent {
        Sent {
            due: began + Duration::from_millis(millis),
            id: id.to_owned(),
            starts,
        }
    }

    #[test]
    fn each_change_has_the_first_line_behind_it_over_midnight_too() {
        // One second before midnight.
        let (wall, began) = (UNIX_EPOCH + DAY - Duration::from_secs(1), Instant::now());
        let changes = [sent(began, "a", false, 400), sent(began, "a", true, 3_000)];
        let samples = times(LOG, &changes, wall, began).unwrap();
        // The first was in the warm-up.
        assert_eq!(samples.percentile(1000), Duration::from_millis(3));
        assert_eq!(samples.percentile(1), Duration::from_millis(3));
        let missing = [sent(began, "b", true, 3_000)];
        assert!(times(LOG, &missing, wall, began).is_err());
        let later = [sent(began, "a", true, 3_004)];
        assert!(times(LOG, &later, wall, began).is_err());
    }
}
