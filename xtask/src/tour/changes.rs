//! Steps that change things under a running gateway: its routes file, its broker.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::Tour;
use super::clients::{raw_echo, until};
use crate::child;
use crate::up::plan::write_whole;
use crate::up::rest::{GUEST_ECHO_PORT, GUEST_HTTP_PORT};
use crate::up::stack::{self, STOP_GRACE};

/// A line is added to the copy of routes.yaml, in place, as an editor would.
pub(super) fn new_route(tour: &mut Tour) -> Result<String> {
    tour.curl.unnamed("new.localhost", "/")?.expect(404)?;
    let path = tour.stack.plan.routes();
    let mut text = fs::read_to_string(&path).context("cannot read the copy of routes.yaml")?;
    text.push_str(&format!(
        "\n  - host: new.localhost\n    target: 127.0.0.1:{}\n",
        tour.stack.plan.ports.site
    ));
    fs::write(&path, text).context("cannot write the copy of routes.yaml")?;
    tour.curl.https_until("new.localhost", "/", 200)?;
    Ok(String::new())
}

/// A bad target and an unknown key: both are named with line and column, by `check` and in the
/// gateway's log, and nothing changes.
pub(super) fn broken_routes(tour: &mut Tour) -> Result<String> {
    let path = tour.stack.plan.routes();
    let good = fs::read_to_string(&path).context("cannot read the copy of routes.yaml")?;
    let lines = good.lines().count();
    let broken =
        format!("{good}  - host: newer.localhost\n    target: 127.0.0.1:99999\n    colour: blue\n");
    write_whole(&path, broken.as_bytes())?;
    let mut check = Command::new(tour.binaries.path("edd-gateway")?);
    check
        .args(["check", "--platform-domain", "localhost", "--routes"])
        .arg(&path);
    let output = child::try_output(&mut check, "edd-gateway check", None)?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.code() != Some(1) {
        bail!(
            "expected `edd-gateway check` to exit 1, saw {}: {said}",
            output.status
        );
    }
    // The line of the target, the line of the unknown key.
    let target = mistake_at(&said, &path, lines + 2)?;
    let unknown_key = mistake_at(&said, &path, lines + 3)?;
    until("refusal of the broken file in the gateway's log", || {
        let log = tour.stack.gateway.log();
        for mistake in [&target, &unknown_key] {
            // Without the time, which has colons and numbers of its own.
            let named = log
                .lines()
                .filter_map(|line| line.split_once(' '))
                .any(|(_, line)| line.contains("routes") && line.contains(&mistake.position));
            if !named {
                bail!("the log has no {} in a line on routes", mistake.position);
            }
        }
        Ok(())
    })?;
    tour.curl.https("new.localhost", "/", &[])?.expect(200)?;
    tour.curl.https("localhost", "/", &[])?.expect(200)?;
    tour.curl.unnamed("newer.localhost", "/")?.expect(404)?;
    write_whole(&path, good.as_bytes())?;
    Ok(format!(
        "routes.yaml:{}:{}",
        target.position, target.message
    ))
}

/// A mistake as `check` prints it.
struct Mistake {
    /// `LINE:COL`.
    position: String,
    message: String,
}

/// The mistake in this line of the file, printed as `FILE:LINE:COL: message`.
fn mistake_at(said: &str, file: &Path, line: usize) -> Result<Mistake> {
    let start = format!("{}:{line}:", file.display());
    let rest = said.lines().find_map(|said| said.strip_prefix(&start));
    let (column, message) = rest
        .and_then(|rest| rest.split_once(':'))
        .with_context(|| format!("expected a mistake at {start}COL, saw {said}"))?;
    column
        .parse::<usize>()
        .with_context(|| format!("expected a column after {start}"))?;
    Ok(Mistake {
        position: format!("{line}:{column}"),
        message: message.to_owned(),
    })
}

/// The broker is away: what is in force serves on, a wanted change waits in compute's outbox.
pub(super) fn without_nats(tour: &mut Tour) -> Result<String> {
    // Only the broker's absence is judged here, not how it leaves.
    let _ = tour.stack.nats.stop(STOP_GRACE);
    let guest = tour.guest()?;
    tour.curl.https("localhost", "/", &[])?.expect(200)?;
    tour.curl
        .https(&guest.container.hostname, "/", &[])?
        .expect(200)?;
    let (code, ..) = guest.ssh.run("exit 3")?;
    if code != 3 {
        bail!("expected ssh to work without the broker and return 3, saw {code}");
    }
    raw_echo(guest.raw_port, "still here")?;
    guest.container.ensure_rule(80, GUEST_HTTP_PORT)?;
    guest
        .container
        .ensure_rule(guest.raw_port + 1, GUEST_ECHO_PORT)?;
    until("/readyz that says disconnected", || {
        nats_is(tour, "disconnected")
    })?;
    Ok(String::new())
}

/// It is back: the waiting changes come into force, new ones too.
pub(super) fn nats_is_back(tour: &mut Tour) -> Result<String> {
    tour.stack.nats = stack::start_nats(&tour.stack.plan, &tour.tools)?;
    let guest = tour.guest()?;
    until("echo on the port asked for meanwhile", || {
        raw_echo(guest.raw_port + 1, "asked for meanwhile")
    })?;
    until("page on the HTTP port asked for meanwhile", || {
        tour.curl.http(&guest.container.hostname, "/")?.expect(200)
    })?;
    guest
        .container
        .call("DELETE", &format!("ingress/{}", guest.raw_port + 1), None)?;
    until("closed port after its rule's deletion", || {
        match raw_echo(guest.raw_port + 1, "gone?") {
            Ok(()) => bail!("port {} still echoes", guest.raw_port + 1),
            Err(_) => Ok(()),
        }
    })?;
    until("/readyz that says connected", || nats_is(tour, "connected"))?;
    Ok(String::new())
}

fn nats_is(tour: &Tour, expected: &str) -> Result<()> {
    let ready = tour.stack.admin_api().ask("GET", "/readyz", None)?.json()?;
    if ready["nats"] != expected {
        bail!("expected nats: {expected}, saw {ready}");
    }
    Ok(())
}
