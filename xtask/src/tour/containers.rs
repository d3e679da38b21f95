//! Steps on a container: made through the REST APIs, then reached in every way there is.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::clients::{Live, Ssh, raw_echo, until};
use super::{Guest, Tour, Tourist};
use crate::child;
use crate::report::seconds;
use crate::up::random_hex;
use crate::up::rest::{self, GUEST_ECHO_PORT, GUEST_HTTP_PORT, User};
use crate::up::stack::loopback;

/// What travels by sftp.
const FILE_LENGTH: usize = 3 * 1024 * 1024 + 17;

/// A user, with a key; his registration goes through the gateway.
pub(super) fn register(tour: &mut Tour) -> Result<String> {
    let password = random_hex()?;
    let body = json!({"username": "tourist", "password": password}).to_string();
    let options = ["--json", body.as_str()];
    let page = tour
        .curl
        .https("api.localhost", "/api/register", &options)?;
    if !(200..300).contains(&page.status) {
        bail!("expected 2xx, saw {}: {}", page.status, page.body);
    }
    let (auth, compute) = (tour.stack.auth_api(), tour.stack.compute_api());
    let user = User::log_in(&auth, &compute, "tourist", &password)?
        .context("the user that was just registered cannot log in")?;
    let key = tour.stack.plan.data.join("tourist_ed25519");
    let public_key = rest::ensure_key_pair(&key, &tour.tools)?;
    user.ensure_key("tour", &public_key)?;
    tour.user = Some(Tourist {
        user,
        password,
        key,
    });
    Ok(String::new())
}

/// From the event's publication to the first good answer, polled over a kept connection.
pub(super) fn create(tour: &mut Tour) -> Result<String> {
    let plan = &tour.stack.plan;
    let tourist = tour.tourist()?;
    let container = tourist.user.create_container("tour")?;
    let (id, host) = (&container.id, &container.hostname);
    let mut bench = Command::new(tour.binaries.path("edd-bench")?);
    bench.args([
        "first-answer",
        "--https",
        &loopback(plan.ports.https).to_string(),
    ]);
    bench.args(["--host", host, "--nats-url", &plan.nats_url()]);
    bench.arg("--ca").arg(plan.ca());
    let subjects = format!("compute.container.{id}.started,compute.ingress.{id}.requested");
    bench.args(["--subjects", &subjects]);
    let mut poller = Live::start(bench, "edd-bench first-answer")?;
    container.ensure_rule(443, GUEST_HTTP_PORT)?;
    container.wait_until_running()?;
    let note = poller.wait_for_line(|line| line.contains(" after "))?;
    let ssh = Ssh::new(plan, &tour.tools, &tourist.key, rest::ssh_name(id)?)?;
    let raw_port = *plan.ports.range.start() + 7;
    tour.guest = Some(Guest {
        container,
        ssh,
        raw_port,
    });
    Ok(note)
}

/// Its owner's key is no use until SSH is switched on.
pub(super) fn switch_ssh_on(tour: &mut Tour) -> Result<String> {
    let guest = tour.guest()?;
    let (code, _, said) = guest.ssh.run("true")?;
    if code == 0 {
        bail!("expected SSH to be off before it is switched on, saw a session");
    }
    if !said.contains("denied") {
        bail!("expected a refused log-in, saw {said}");
    }
    guest.container.set_ssh(true)?;
    until("log-in", || match guest.ssh.run("true")? {
        (0, ..) => Ok(()),
        (code, _, said) => bail!("expected to be let in, saw {code}: {said}"),
    })?;
    Ok(String::new())
}

/// A message there and back.
pub(super) fn web_socket(tour: &mut Tour) -> Result<String> {
    let url = format!(
        "wss://{}:{}/ws",
        tour.guest()?.container.hostname,
        tour.stack.plan.ports.https
    );
    let mut bench = Command::new(tour.binaries.path("edd-bench")?);
    bench
        .args(["ws-echo", &url, "--ca"])
        .arg(tour.stack.plan.ca());
    let output = child::output(&mut bench, "edd-bench ws-echo")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// One event of an endless stream, as it happens.
pub(super) fn server_sent_event(tour: &mut Tour) -> Result<String> {
    let host = &tour.guest()?.container.hostname;
    tour.curl.stream_line(host, "/events", "data:")
}

/// A command, its output on both streams, and its exit code.
pub(super) fn ssh(tour: &mut Tour) -> Result<String> {
    let ssh = &tour.guest()?.ssh;
    let started = Instant::now();
    let (code, out, err) = ssh.run("echo out; echo err >&2; exit 7")?;
    let took = seconds(started.elapsed());
    if (code, out.as_str(), err.as_str()) != (7, "out\n", "err\n") {
        bail!("expected exit code 7, out and err, saw {code}, {out:?} and {err:?}");
    }
    Ok(format!("exit code 7 in {took}"))
}

/// A file of 3 MB there and back, compared byte by byte.
pub(super) fn sftp(tour: &mut Tour) -> Result<String> {
    let data = &tour.stack.plan.data;
    let [from, there, back] = ["sent", "there", "back"].map(|name| data.join("sftp").join(name));
    fs::create_dir_all(data.join("sftp")).context("cannot make a folder for sftp")?;
    // Bytes without a pattern that would hide a swapped block.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes: Vec<u8> = (0..FILE_LENGTH)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect();
    fs::write(&from, &bytes).context("cannot write the file to send")?;
    let started = Instant::now();
    tour.guest()?.ssh.round_trip(&from, &there, &back)?;
    let took = seconds(started.elapsed());
    if fs::read(&back).context("sftp brought nothing back")? != bytes {
        bail!("expected the same {FILE_LENGTH} bytes back, saw others");
    }
    Ok(format!("{FILE_LENGTH} bytes each way in {took}"))
}

/// Bytes that are no protocol we know.
pub(super) fn raw_port(tour: &mut Tour) -> Result<String> {
    let guest = tour.guest()?;
    if raw_echo(guest.raw_port, "nobody there yet").is_ok() {
        bail!(
            "expected port {} to be closed without a rule, saw an echo",
            guest.raw_port
        );
    }
    guest
        .container
        .ensure_rule(guest.raw_port, GUEST_ECHO_PORT)?;
    until("echo on the port", || raw_echo(guest.raw_port, "raw bytes"))?;
    Ok(format!("port {}", guest.raw_port))
}
