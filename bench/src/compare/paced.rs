//! Requests at a fixed rate, whatever the answers do: latency without the queue that a closed
//! loop makes, and what a proxy costs when it has time.
//!
//! A timer of the kernel's ticks once per request; runtimes' own timers are too coarse for this.

use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

use super::client::Asker;
use super::measure::{Common, Tally, Window};

/// Ticks that may wait for a free connection. More, and the proxy is too slow for this rate.
const WAITING_MAX: usize = 1000;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Asks `rate` times per second over the connections, whichever is free.
pub(super) async fn run(
    common: &Common,
    connections: usize,
    path: &str,
    body: usize,
    rate: u64,
) -> Result<String> {
    let target = common.target(false)?;
    let tally = Rc::new(Tally::default());
    // A permit is a request to be made. Waiters are served first come, first served: the
    // connections take turns.
    let ticks = Rc::new(Semaphore::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let mut asker = Asker::connect(&target, path, body).await?;
        let (tally, ticks) = (Rc::clone(&tally), Rc::clone(&ticks));
        tasks.spawn_local(async move {
            loop {
                ticks.acquire().await.context("closed")?.forget();
                let asked = Instant::now();
                asker.ask().await?;
                tally.done(asked);
            }
        });
    }
    #[expect(
        deprecated,
        reason = "unsound for what is not an open descriptor; an OwnedFd is one"
    )]
    let timer = AsyncFd::new(ticker(rate)?).context("cannot watch a timer")?;
    tasks.spawn_local(async move {
        loop {
            let mut ready = timer.readable().await?;
            let mut expired = [0; 8];
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut expired)?));
            if let Ok(read) = read {
                read.context("a timer that does not tick")?;
                let expired = u64::from_ne_bytes(expired);
                ticks.add_permits(usize::try_from(expired).unwrap_or(WAITING_MAX));
                if ticks.available_permits() > WAITING_MAX {
                    bail!("too slow for {rate} requests per second");
                }
            }
        }
    });
    let seen = Window::new(common, &tally)?.watch(&mut tasks).await?;
    Ok(seen.json(&tally, ""))
}

fn ticker(rate: u64) -> Result<rustix::fd::OwnedFd> {
    let nanos = NANOS_PER_SECOND / rate.max(1);
    let period = Timespec {
        tv_sec: i64::try_from(nanos / NANOS_PER_SECOND)?,
        tv_nsec: i64::try_from(nanos % NANOS_PER_SECOND)?,
    };
    let timer = timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
    )
    .context("no timer")?;
    let setting = Itimerspec {
        it_interval: period,
        it_value: period,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &setting).context("no timer")?;
    Ok(timer)
}
