//! Large transfers: what comes through in a second, and whose time it takes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use super::cost::Cost;
use super::ground::{Ground, LIMIT, Way};

/// What is transferred how.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Kind {
    Download,
    Upload,
    SftpGet,
    SftpPut,
}

/// A way to a container, and what the transfers on it took.
struct Lane<'g> {
    name: &'static str,
    ground: &'g Ground,
    way: Way,
    done: Vec<(Duration, Cost)>,
}

/// Each kind on all ways by turns: straight, through the gateway, and through another one on a
/// ground of its own if there is one.
pub(super) async fn measure(
    ground: &Ground,
    beside: Option<&Ground>,
    kinds: &[Kind],
    megabytes: u32,
    rounds: u32,
) -> Result<()> {
    let files = Files::prepare(ground.folder(), megabytes)?;
    for &kind in kinds {
        let lane = |name, ground, way| Lane {
            name,
            ground,
            way,
            done: Vec::new(),
        };
        let mut lanes = vec![
            lane("direct", ground, Way::Direct),
            lane("gateway", ground, Way::Gateway),
        ];
        lanes.extend(beside.map(|ground| lane("beside", ground, Way::Gateway)));
        for round in 0..rounds as usize {
            // Whatever comes first has another machine before it than what comes last.
            for turn in 0..lanes.len() {
                let at = (turn + round) % lanes.len();
                if let Some(lane) = lanes.get_mut(at) {
                    lane.pass(kind, &files, megabytes).await?;
                }
            }
        }
        report(kind, megabytes, &mut lanes);
    }
    Ok(())
}

impl Lane<'_> {
    async fn pass(&mut self, kind: Kind, files: &Files, megabytes: u32) -> Result<()> {
        let before = self.ground.cost().await?;
        let transfer = transfer(self.ground, self.way, kind, files, megabytes);
        let took = timeout(LIMIT, transfer).await??;
        let cost = self.ground.cost().await? - before;
        self.done.push((took, cost));
        Ok(())
    }

    /// Best and median of the times.
    fn times(&mut self) -> [Duration; 2] {
        self.done.sort_unstable_by_key(|(took, _)| *took);
        let at = |index: usize| self.done.get(index).map(|(took, _)| *took);
        [0, self.done.len() / 2].map(|index| at(index).unwrap_or(Duration::MAX))
    }

    /// The median of what one party's time took in all transfers.
    fn median(&self, of: impl Fn(&Cost) -> Duration) -> Duration {
        let mut all: Vec<_> = self.done.iter().map(|(_, cost)| of(cost)).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or_default()
    }
}

fn report(kind: Kind, megabytes: u32, lanes: &mut [Lane<'_>]) {
    let rate = |took: Duration| f64::from(megabytes) / took.as_secs_f64();
    let mut straight = None;
    for lane in lanes {
        let [best, median] = lane.times().map(rate);
        let [straight_best, straight_median] = *straight.get_or_insert([best, median]);
        let per_gib = |of: fn(&Cost) -> Duration| {
            lane.median(of).as_secs_f64() * 1024.0 / f64::from(megabytes)
        };
        let [client, gateway, sshd] =
            [|c: &Cost| c.client, |c: &Cost| c.gateway, |c: &Cost| c.sshd].map(per_gib);
        println!(
            "{:<9} {megabytes} MiB   {:<8} median {median:>5.0} MiB/s  best {best:>5.0}   \
             ratio {:.2}, of the best {:.2}   CPU s/GiB: client {client:.2}  gateway {gateway:.2}  \
             sshd {sshd:.2}",
            format!("{kind:?}"),
            lane.name,
            median / straight_median,
            best / straight_best,
        );
    }
}

/// What is sent and where it is put: in memory if there is room, so that no disk is measured.
struct Files {
    from: PathBuf,
    to: PathBuf,
    /// Holds them, if it is not the ground's folder.
    _folder: Option<tempfile::TempDir>,
}

impl Files {
    fn prepare(ground: &Path, megabytes: u32) -> Result<Self> {
        let room = |folder: &Path| {
            rustix::fs::statvfs(folder).is_ok_and(|fs| {
                fs.f_bavail.saturating_mul(fs.f_frsize) > 2 * (u64::from(megabytes) << 20)
            })
        };
        let memory = Path::new("/dev/shm");
        let folder = room(memory)
            .then(|| {
                tempfile::Builder::new()
                    .prefix("edd-bench-")
                    .tempdir_in(memory)
            })
            .transpose()?;
        let path = folder.as_ref().map_or(ground, tempfile::TempDir::path);
        println!(
            "files in {}",
            if folder.is_some() {
                "memory"
            } else {
                "the scratch folder"
            }
        );
        let files = Self {
            from: path.join("file"),
            to: path.join("taken"),
            _folder: folder,
        };
        File::create(&files.from)?.set_len(u64::from(megabytes) << 20)?;
        Ok(files)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for file in [&self.from, &self.to] {
            let _ = std::fs::remove_file(file);
        }
    }
}

async fn transfer(
    ground: &Ground,
    way: Way,
    kind: Kind,
    files: &Files,
    megabytes: u32,
) -> Result<Duration> {
    let began = Instant::now();
    match kind {
        Kind::Download => {
            let mut ssh = ground.ssh(way, &[]);
            ssh.arg(format!("head -c {megabytes}M /dev/zero"));
            finish(ssh.stdin(Stdio::null()).stdout(Stdio::null())).await?;
        }
        Kind::Upload => {
            let mut ssh = ground.ssh(way, &[]);
            let file = File::open(&files.from)?;
            finish(ssh.arg("cat >/dev/null").stdin(file)).await?;
        }
        Kind::SftpGet => sftp(ground, way, "get", files).await?,
        Kind::SftpPut => sftp(ground, way, "put", files).await?,
    }
    let took = began.elapsed();
    if matches!(kind, Kind::SftpGet | Kind::SftpPut) {
        let [came, sent] = [&files.to, &files.from].map(std::fs::metadata);
        let (came, sent) = (came?.len(), sent?.len());
        ensure!(came == sent, "{came} bytes came");
        std::fs::remove_file(&files.to)?;
    }
    Ok(took)
}

async fn sftp(ground: &Ground, way: Way, verb: &str, files: &Files) -> Result<()> {
    let mut command = ground.sftp(way);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start sftp")?;
    let mut input = child.stdin.take().context("no input")?;
    let line = format!("{verb} {} {}\n", files.from.display(), files.to.display());
    input.write_all(line.as_bytes()).await?;
    drop(input);
    let status = child.wait().await?;
    ensure!(status.success(), "sftp {verb} {}: {status}", way.name());
    Ok(())
}

async fn finish(command: &mut Command) -> Result<()> {
    let status = command.status().await?;
    ensure!(status.success(), "ssh: {status}");
    Ok(())
}
