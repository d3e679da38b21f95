//! A change costs what changed, not the table.

use std::time::{Duration, Instant};

use crate::support::{container, writer};

/// The median cost of a change and its publication in a table of `size` containers.
fn cost(size: usize) -> Duration {
    let spec = |n: usize| container(&format!("c{n:06}"), &[(443, 8080), (8000, 7000)]);
    let mut writer = writer(vec![], (0..size).map(spec).collect());
    let mut old = writer.publish(0).expect("a table").table;
    let mut times: Vec<_> = (0..501)
        .map(|n| {
            let mut changed = spec(n * 7 % size);
            changed.running = None;
            let begun = Instant::now();
            writer.put_container(changed);
            old = writer.publish(0).expect("a change").table;
            begun.elapsed()
        })
        .collect();
    assert_eq!(old.containers().len(), size);
    times.sort();
    times[times.len() / 2]
}

/// P3: every change read everything again, and so did a timer.
#[test]
fn publishing_does_not_grow_with_the_table() {
    let (small, large) = (cost(1_000), cost(100_000));
    println!("a change costs {small:?} among 1,000 containers, {large:?} among 100,000");
    // A full copy would cost a hundred times as much; cache misses cost a few times.
    assert!(
        large < small * 10 + Duration::from_micros(50),
        "{small:?} -> {large:?}"
    );
}
