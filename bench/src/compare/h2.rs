//! HTTP/2 by h2load, which is told for how long, and the origin's counter, which is read at both
//! ends of the window. What h2load says at its end must agree.

use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

use super::measure::{Common, Tally, Window};

/// How much longer the load goes on than the window, in milliseconds.
const TAIL_MS: u64 = 150;

/// Runs h2load and looks at the window inside its run.
pub(super) async fn run(
    common: &Common,
    connections: usize,
    streams: usize,
    path: &str,
    body: usize,
    h2load: &Path,
) -> Result<String> {
    let scheme = if common.ca.is_some() { "https" } else { "http" };
    let duration = common.warm_up_ms + common.window_ms + TAIL_MS;
    let mut command = Command::new(h2load);
    command
        .args(["-t", "1", "-c", &connections.to_string()])
        .args(["-m", &streams.to_string()])
        .args(["-D", &format!("{duration}ms"), "--warm-up-time", "1ms"])
        .args(["--tls13-ciphers", "TLS_AES_128_GCM_SHA256"])
        .args(["--groups", "X25519", "--npn-list", "h2"])
        .args(["--connect-to", &common.address.to_string()])
        .arg(format!(
            "{scheme}://{}:{}{path}",
            common.host,
            common.address.port()
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {}", h2load.display()))?;
    let finished = child.wait_with_output();
    let mut finished = std::pin::pin!(finished);
    let tally = Rc::new(Tally::default());
    let window = Window::new(common, &tally)?;
    let mut seen = tokio::select! {
        ended = &mut finished => {
            let ended = ended.context("h2load")?;
            bail!("h2load ended too early: {}", String::from_utf8_lossy(&ended.stderr))
        }
        seen = window.between() => seen?,
    };
    let output = finished.await.context("h2load")?;
    let said = String::from_utf8_lossy(&output.stdout);
    check(&said, body, connections * streams)?;
    seen.count_by_origin();
    Ok(seen.json(&tally, ""))
}

/// Every answer was a 200 with the whole body, but for those on their way at the end, at most
/// `cut`.
fn check(said: &str, body: usize, cut: usize) -> Result<()> {
    let line = |start: &str| {
        said.lines()
            .find_map(|line| line.trim().strip_prefix(start))
            .with_context(|| format!("h2load said nothing about {start} {said}"))
    };
    let number_before = |line: &str, word: &str| -> Option<u64> {
        let before = line.split(word).next()?.trim();
        before.rsplit([' ', '(']).next()?.parse().ok()
    };
    if !said.contains("Application protocol: h2") {
        bail!("h2load did not speak HTTP/2: {said}");
    }
    let requests = line("requests:")?;
    for fault in [" failed", " errored", " timeout"] {
        if number_before(requests, fault) != Some(0) {
            bail!("h2load: requests:{requests}");
        }
    }
    let codes = line("status codes:")?;
    let good = number_before(codes, " 2xx").unwrap_or(0);
    let bad = [" 3xx", " 4xx", " 5xx"].map(|class| number_before(codes, class));
    if good == 0 || bad != [Some(0); 3] {
        bail!("h2load: status codes:{codes}");
    }
    // "(1234567) data" at the end of the line.
    let data = line("traffic:")?;
    let bytes = number_before(&data.replace(") data", " data"), " data").unwrap_or(0);
    let (body, cut) = (body as u64, cut as u64);
    let whole = good.saturating_sub(cut) * body..=(good + cut) * body;
    if !whole.contains(&bytes) {
        bail!("h2load: {good} answers with {bytes} bytes, not {body} each");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Application protocol: h2\n\
        finished in 3.00s, 33.33 req/s, 35.00KB/s\n\
        requests: 100 total, 110 started, 100 done, 100 succeeded, 0 failed, 0 errored, 0 timeout\n\
        status codes: 100 2xx, 0 3xx, 0 4xx, 0 5xx\n\
        traffic: 105.00KB (107520) total, 1.00KB (1024) headers (space savings 90.00%), 100.00KB (102400) data\n";

    #[test]
    fn takes_what_went_well() {
        check(SAID, 1024, 0).expect("fine");
        // Two were cut by the end.
        check(&SAID.replace("(102400)", "(101000)"), 1024, 2).expect("fine");
    }

    #[test]
    fn refuses_what_did_not() {
        for (from, to) in [
            (
                "100 2xx, 0 3xx, 0 4xx, 0 5xx",
                "99 2xx, 0 3xx, 0 4xx, 1 5xx",
            ),
            ("0 failed", "3 failed"),
            ("(102400) data", "(51200) data"),
            ("protocol: h2", "protocol: http/1.1"),
        ] {
            assert!(check(&SAID.replace(from, to), 1024, 10).is_err(), "{to}");
        }
    }
}
