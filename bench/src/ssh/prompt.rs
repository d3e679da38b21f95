//! The time of a command: over a connection of its own, and over one that is there.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Result, ensure};
use tokio::time::{sleep, timeout};

use super::ground::{Ground, LIMIT, Way};
use crate::stats::{Samples, millis};

/// By turns on both ways.
pub(super) async fn measure(ground: &Ground, commands: u32) -> Result<()> {
    let [mut alone, mut shared] = [(); 2].map(|()| [Samples::default(), Samples::default()]);
    let mut masters = Vec::new();
    for way in Way::BOTH {
        let mut master = ground.ssh(
            way,
            &["-N", "-o", "ControlMaster=yes", "-S", &socket(ground, way)],
        );
        masters.push(master.stdin(Stdio::null()).spawn()?);
        let began = Instant::now();
        while !std::fs::exists(socket(ground, way))? {
            ensure!(began.elapsed() < LIMIT, "no master connection");
            sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    for _ in 0..commands {
        for (way, (alone, shared)) in Way::BOTH.into_iter().zip(alone.iter_mut().zip(&mut shared)) {
            run(ground, way, &[], alone).await?;
            run(ground, way, &["-S", &socket(ground, way)], shared).await?;
        }
    }
    for (name, samples) in [
        ("a new connection", &alone),
        ("a shared connection", &shared),
    ] {
        for (way, samples) in Way::BOTH.into_iter().zip(samples) {
            println!("a command over {name:<19} {:<7}   {samples}", way.name());
        }
    }
    let [[direct, gateway], [direct_shared, _]] =
        [&alone, &shared].map(|both| [&both[0], &both[1]].map(|samples| samples.percentile(500)));
    // What a log-in costs: the gateway makes two of them.
    let login = direct.saturating_sub(direct_shared);
    println!(
        "beyond a second log-in (p50)   {}",
        millis(gateway.saturating_sub(direct + login))
    );
    for mut master in masters {
        master.kill().await?;
    }
    Ok(())
}

async fn run(ground: &Ground, way: Way, options: &[&str], samples: &mut Samples) -> Result<()> {
    let began = Instant::now();
    let mut ssh = ground.ssh(way, options);
    ssh.arg("true").stdin(Stdio::null());
    let status = timeout(LIMIT, ssh.status()).await??;
    ensure!(status.success(), "ssh: {status}");
    samples.push(began.elapsed());
    Ok(())
}

fn socket(ground: &Ground, way: Way) -> String {
    let path = ground.folder().join(way.name());
    path.display().to_string()
}
