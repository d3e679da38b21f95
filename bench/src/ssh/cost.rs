//! Processor time of everybody who takes part, as the kernel counts it.

use std::ops::Sub;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::param::clock_ticks_per_second;
use tokio::time::sleep;

use super::ground::LIMIT;

/// How often it is looked whether all have been counted.
const POLL: Duration = Duration::from_millis(2);

/// User and system time so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Of the clients that have ended, `ssh` under `sftp` included.
    pub(super) client: Duration,
    pub(super) gateway: Duration,
    /// Of the sessions that have ended, with what ran in them.
    pub(super) sshd: Duration,
}

impl Sub for Cost {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            client: self.client.saturating_sub(before.client),
            gateway: self.gateway.saturating_sub(before.gateway),
            sshd: self.sshd.saturating_sub(before.sshd),
        }
    }
}

impl Cost {
    /// As it is when no session is left: the kernel counts a process for its parent at its end.
    pub(super) async fn so_far(gateway: u32, sshd: u32) -> Result<Self> {
        let began = Instant::now();
        while !children(sshd)?.is_empty() {
            ensure!(began.elapsed() < LIMIT, "a session does not end");
            sleep(POLL).await;
        }
        let own = Times::of("self")?;
        Ok(Self {
            client: own.ended,
            gateway: Times::of(&gateway.to_string())?.own,
            sshd: Times::of(&sshd.to_string())?.ended,
        })
    }
}

fn children(process: u32) -> Result<String> {
    let file = format!("/proc/{process}/task/{process}/children");
    std::fs::read_to_string(&file).with_context(|| file)
}

struct Times {
    own: Duration,
    /// Of the children that have ended and been waited for.
    ended: Duration,
}

impl Times {
    fn of(process: &str) -> Result<Self> {
        let file = format!("/proc/{process}/stat");
        let stat = std::fs::read_to_string(&file).with_context(|| file)?;
        Self::parse(&stat)
    }

    fn parse(stat: &str) -> Result<Self> {
        // Behind the name, which may hold anything: fields 14 to 17 of all.
        let (_, rest) = stat.rsplit_once(')').context("no stat")?;
        let mut ticks = rest.split_whitespace().skip(11).map(str::parse::<u64>);
        let mut two = || -> Result<Duration> {
            let mut next = || ticks.next().context("a short stat");
            let sum = next()?? + next()??;
            Ok(Duration::from_secs_f64(
                sum as f64 / clock_ticks_per_second() as f64,
            ))
        };
        Ok(Self {
            own: two()?,
            ended: two()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 100 200 300 400 20 0";
        let times = Times::parse(stat).unwrap();
        let second = clock_ticks_per_second() as f64;
        assert_eq!(times.own.as_secs_f64(), 300.0 / second);
        assert_eq!(times.ended.as_secs_f64(), 700.0 / second);
        assert!(Times::parse("7 (a) S 1 2").is_err());
    }
}
