//! Large transfers: what comes through in a second.

use std::fs::File;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use super::ground::{Ground, LIMIT, Way};

/// What is transferred how.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Download,
    Upload,
    SftpGet,
    SftpPut,
}

/// Each kind by turns on both ways.
pub(super) async fn measure(ground: &Ground, megabytes: u32, rounds: u32) -> Result<()> {
    let file = ground.folder().join("file");
    File::create(&file)?.set_len(u64::from(megabytes) << 20)?;
    for kind in [Kind::Download, Kind::Upload, Kind::SftpGet, Kind::SftpPut] {
        let mut best = [Duration::MAX; 2];
        let mut cpu = Duration::ZERO;
        for _ in 0..rounds {
            for (way, best) in Way::BOTH.into_iter().zip(&mut best) {
                let before = ground.gateway_cpu()?;
                let took = timeout(LIMIT, transfer(ground, way, kind, megabytes)).await??;
                *best = took.min(*best);
                if way == Way::Gateway {
                    cpu += ground.gateway_cpu()? - before;
                }
            }
        }
        let [direct, gateway] = best.map(|took| f64::from(megabytes) / took.as_secs_f64());
        let cpu = cpu.as_secs_f64() * 1024.0 / f64::from(megabytes * rounds);
        println!(
            "{:<9} {megabytes} MiB   direct {direct:>6.0} MiB/s   gateway {gateway:>6.0} MiB/s   \
             ratio {:.2}   the gateway's CPU {cpu:.2} s/GiB",
            format!("{kind:?}"),
            gateway / direct,
        );
    }
    std::fs::remove_file(file)?;
    Ok(())
}

async fn transfer(ground: &Ground, way: Way, kind: Kind, megabytes: u32) -> Result<Duration> {
    let began = Instant::now();
    match kind {
        Kind::Download => {
            let mut ssh = ground.ssh(way, &[]);
            ssh.arg(format!("head -c {megabytes}M /dev/zero"));
            finish(ssh.stdin(Stdio::null()).stdout(Stdio::null())).await?;
        }
        Kind::Upload => {
            let mut ssh = ground.ssh(way, &[]);
            let file = File::open(ground.folder().join("file"))?;
            finish(ssh.arg("cat >/dev/null").stdin(file)).await?;
        }
        Kind::SftpGet => sftp(ground, way, "get", "file", "got").await?,
        Kind::SftpPut => sftp(ground, way, "put", "file", "put").await?,
    }
    Ok(began.elapsed())
}

async fn sftp(ground: &Ground, way: Way, verb: &str, from: &str, to: &str) -> Result<()> {
    let [from, to] = [from, to].map(|name| ground.folder().join(name));
    let mut command = ground.sftp(way);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start sftp")?;
    let mut input = child.stdin.take().context("no input")?;
    let line = format!("{verb} {} {}\n", from.display(), to.display());
    input.write_all(line.as_bytes()).await?;
    drop(input);
    let status = child.wait().await?;
    ensure!(status.success(), "sftp {verb} {}: {status}", way.name());
    let size = std::fs::metadata(&to)?.len();
    ensure!(size == std::fs::metadata(&from)?.len(), "{size} bytes came");
    std::fs::remove_file(&to)?;
    Ok(())
}

async fn finish(command: &mut Command) -> Result<()> {
    let status = command.status().await?;
    ensure!(status.success(), "ssh: {status}");
    Ok(())
}
