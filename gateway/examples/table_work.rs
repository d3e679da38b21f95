//! What one change costs among many containers: reduction, plan, table, swap, revocation.
//!
//! `cargo xtask bench events` runs it optimised and keeps what it says.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use edd_gateway::control::plan::Plan;
use edd_gateway::control::reconcile::{Change, Effects, Stamp, State, What};
use edd_route::table::Settings;
use edd_route::{ContainerId, Origin, RouteTable, TableWriter, UserId};

const CHANGES: usize = 20_000;

fn main() {
    for containers in [1_000, 10_000, 100_000] {
        println!(
            "one change among {containers:>6} containers            {}",
            measure(containers)
        );
    }
}

fn measure(containers: u32) -> String {
    let mut log = Log::default();
    let mut state = State::default();
    let mut effects = Effects::default();
    for n in 0..containers {
        let created = What::ContainerCreated {
            id: id(n),
            owner: UserId(i64::from(n / 10) + 1),
            name: format!("container {n}"),
        };
        for what in [created, started(n, 0), rule(n, Some(8080))] {
            state.apply(&log.change(what), 0, &mut effects);
        }
    }
    let empty = RouteTable::empty(Settings::new("example.com", vec![443]));
    let mut writer = TableWriter::new(empty);
    writer.replace_dynamic(state.container_specs(), state.all_key_specs());
    let Some(published) = writer.publish(1) else {
        return "no table".into();
    };
    let in_force = ArcSwap::new(published.table.clone());
    published.revoke();

    let mut took = Vec::with_capacity(CHANGES);
    for n in 0..CHANGES {
        let at = u32::try_from(n * 7919 % containers as usize).unwrap_or(0);
        let what = match n % 4 {
            0 => What::ContainerStopped { id: id(at) },
            1 => started(at, 1),
            2 => rule(at, Some(9090)),
            _ => rule(at, None),
        };
        let change = log.change(what);
        let begun = Instant::now();
        // As the writer does it, one event a batch: the dearest way.
        let mut next = state.clone();
        let mut touched = Effects::default();
        next.apply(&change, 0, &mut touched);
        let mut plan = Plan::default();
        plan.step(writer.table(), &next, &touched);
        state = next;
        plan.take(&mut writer);
        if let Some(published) = writer.publish(1) {
            in_force.store(published.table.clone());
            published.revoke();
        }
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    let sum: Duration = took.iter().sum();
    let micros = |time: Duration| format!("{:>7.2} us", time.as_secs_f64() * 1e6);
    let at = |per_mille: usize| micros(took[(took.len() * per_mille / 1000).min(took.len() - 1)]);
    let mean = micros(sum / u32::try_from(CHANGES).unwrap_or(1));
    format!(
        "mean {mean}   p50 {}   p99 {}   max {}",
        at(500),
        at(990),
        at(1000)
    )
}

fn id(n: u32) -> ContainerId {
    ContainerId::new(&format!("c{n}")).unwrap_or_else(|error| panic!("c{n} {error}"))
}

fn started(n: u32, more: u32) -> What {
    What::ContainerStarted {
        id: id(n),
        address: IpAddr::from((0x0a00_0000_u32 + 2 * n + more).to_be_bytes()),
        ssh_host_key: None,
    }
}

fn rule(n: u32, target: Option<u16>) -> What {
    match target {
        Some(target) => What::RuleRequested {
            id: id(n),
            port: 443,
            target,
        },
        None => What::RuleDeleted {
            id: id(n),
            port: 443,
        },
    }
}

/// Numbers what happens.
#[derive(Default)]
struct Log(u64);

impl Log {
    fn change(&mut self, what: What) -> Change {
        self.0 += 1;
        let sequence = self.0;
        Change {
            stamp: Stamp {
                version: i64::try_from(sequence).unwrap_or(i64::MAX),
                sequence,
            },
            origin: Origin::Event {
                subject: "compute.container.c0.started".into(),
                sequence,
                event_id: format!("{sequence:032x}"),
                at_ms: 0,
            },
            what,
        }
    }
}
