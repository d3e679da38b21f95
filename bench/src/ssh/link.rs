//! The same over links of a given speed, where the machine is not what limits.
//!
//! A network namespace of its own, in which loopback is shaped: what goes to
//! and comes from the gateway, and what goes to and comes from the container's
//! sshd, each has a link of that speed to itself. Needs root, `unshare` and `tc`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;
use tokio::time::timeout;

use super::ground::{Ground, Way};

/// For all transfers over the links.
const LIMIT: Duration = Duration::from_secs(900);

/// What a link lets through at once after a pause: two packets as loopback has them.
const BURST: &str = "128k";

/// The largest packet of loopback.
const PACKET: u32 = 64 << 10;

/// Runs this program again in a namespace of its own; what it says goes where ours goes.
pub(super) async fn run_apart(gateway: &Path, args: &[String]) -> Result<()> {
    let mut again = Command::new("unshare");
    again.args(["--net", "--"]);
    again.arg(std::env::current_exe()?).arg("ssh");
    again.arg("--gateway").arg(gateway).args(args);
    let mut child = again.kill_on_drop(true).spawn()?;
    let status = timeout(LIMIT, child.wait()).await??;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// Makes loopback work in a new namespace.
pub(super) async fn open() -> Result<()> {
    call("ip", "link set lo up").await
}

/// From now on both ways have links of `mbit` Mbit/s in either direction.
pub(super) async fn shape(ground: &Ground, mbit: u32) -> Result<()> {
    call("tc", "qdisc add dev lo root handle 1: htb").await?;
    let mut class = 0;
    for way in Way::BOTH {
        let port = ground.address(way).port();
        for side in ["sport", "dport"] {
            class += 1;
            let made = format!(
                "class add dev lo parent 1: classid 1:{class} \
                 htb rate {mbit}mbit burst {BURST} cburst {BURST} quantum {PACKET}"
            );
            call("tc", &made).await?;
            let led = format!(
                "filter add dev lo parent 1: protocol ip \
                 u32 match ip {side} {port} 0xffff flowid 1:{class}"
            );
            call("tc", &led).await?;
        }
    }
    Ok(())
}

async fn call(program: &str, args: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args.split_whitespace()).stdin(Stdio::null());
    let status = command.status().await.with_context(|| program.to_owned())?;
    ensure!(status.success(), "{program} {args}: {status}");
    Ok(())
}
