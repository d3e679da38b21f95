//! Steps in which things end: a container, a user, the daemons.

use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::Tour;
use super::clients::{raw_echo, until};
use crate::report::seconds;
use crate::up::rest::{GUEST_HTTP_PORT, User};
use crate::up::stack::STOP_GRACE;

/// A live connection ends within 1 s of its reason; a loaded machine gets some more.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);

/// Stopped: nothing of it is reachable, and what was under way is cut.
pub(super) fn stop_container(tour: &mut Tour) -> Result<String> {
    let guest = tour.guest()?;
    let mut session = guest.ssh.session()?;
    session.check_running()?;
    guest.container.call("POST", "stop", None)?;
    let ended = session.wait_for_end(REVOKED_WITHIN)?;
    tour.curl.https_until(&guest.container.hostname, "/", 404)?;
    closed(guest.raw_port)?;
    if guest.ssh.run("true")?.0 == 0 {
        bail!("expected SSH into a stopped container to be refused, saw a session");
    }
    Ok(format!(
        "the session ended {} after the answer to stop",
        seconds(ended)
    ))
}

/// And back, so that there is something for the user's deletion to end.
pub(super) fn start_again(tour: &mut Tour) -> Result<String> {
    let guest = tour.guest()?;
    guest.container.call("POST", "start", None)?;
    tour.curl.https_until(&guest.container.hostname, "/", 200)?;
    until("echo on the port", || {
        raw_echo(guest.raw_port, "back again")
    })?;
    let (code, ..) = guest.ssh.run("exit 4")?;
    if code != 4 {
        bail!("expected ssh to return 4, saw {code}");
    }
    Ok(String::new())
}

/// The user is deleted: his sessions, containers, ports, keys and live connections go with him.
pub(super) fn delete_user(tour: &mut Tour) -> Result<String> {
    let (tourist, guest) = (tour.tourist()?, tour.guest()?);
    let address = address(tour, &guest.container.id)?;
    TcpStream::connect((address, GUEST_HTTP_PORT)).context("the container's own web server")?;
    let mut session = guest.ssh.session()?;
    tourist
        .user
        .auth
        .call("DELETE", &format!("/api/users/{}", tourist.user.id), None)?;
    let ended = session.wait_for_end(REVOKED_WITHIN)?;
    tour.curl.https_until(&guest.container.hostname, "/", 404)?;
    closed(guest.raw_port)?;
    if guest.ssh.run("true")?.0 == 0 {
        bail!("expected SSH for a deleted user to be refused, saw a session");
    }
    let (auth, compute) = (tour.stack.auth_api(), tour.stack.compute_api());
    if User::log_in(&auth, &compute, &tourist.user.name, &tourist.password)?.is_some() {
        bail!("expected the deleted user to be unable to log in, saw a session");
    }
    until("end of his token", || {
        let answer = tourist
            .user
            .compute
            .ask("GET", "/compute/containers", None)?;
        if answer.status == 401 {
            Ok(())
        } else {
            bail!("expected 401, saw {}: {}", answer.status, answer.text())
        }
    })?;
    until("gateway without his container", || {
        let all = tour
            .stack
            .admin_api()
            .ask("GET", "/api/v1/containers", None)?;
        if all.status == 200 && !all.text().contains(&guest.container.id) {
            Ok(())
        } else {
            bail!(
                "expected no {} in it, saw {}",
                guest.container.id,
                all.text()
            )
        }
    })?;
    until(
        "end of the container's processes",
        || match TcpStream::connect((address, GUEST_HTTP_PORT)) {
            Ok(_) => bail!("{address}:{GUEST_HTTP_PORT} still accepts connections"),
            Err(_) => Ok(()),
        },
    )?;
    Ok(format!(
        "the session ended {} after the answer to the deletion",
        seconds(ended)
    ))
}

/// The container's own address, as the gateway knows it.
fn address(tour: &Tour, id: &str) -> Result<IpAddr> {
    let all = tour
        .stack
        .admin_api()
        .call("GET", "/api/v1/containers", None)?;
    all["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|container| container["id"] == id)
        .and_then(|container| container["address"].as_str()?.parse().ok())
        .with_context(|| format!("the gateway knows no address of {id}: {all}"))
}

/// The gateway's own numbers: nothing was given up.
pub(super) fn no_dead_letters(tour: &mut Tour) -> Result<String> {
    let metrics = until("stream without pending events", || {
        let metrics = tour.stack.admin_api().ask("GET", "/metrics", None)?.text();
        if sum(&metrics, "edd_gateway_consumer_pending")? > 0.0 {
            bail!("events are pending");
        }
        Ok(metrics)
    })?;
    let applied = sum(&metrics, "edd_gateway_events_total")?;
    let dead = sum(&metrics, "edd_gateway_dlq_messages").unwrap_or(0.0);
    if dead > 0.0 {
        bail!("expected no dead letters, saw {dead}");
    }
    Ok(format!("{applied} events"))
}

/// SIGTERM: an answer under way is finished, then the gateway exits 0.
pub(super) fn drain_gateway(tour: &mut Tour) -> Result<String> {
    let mut answer = tour.curl.stream("localhost", "/slow")?;
    answer.wait_for_line(|line| line.starts_with("it was asked"))?;
    let status = tour.stack.gateway.stop(STOP_GRACE)?;
    answer.wait_for_line(|line| line.starts_with("GET /slow"))?;
    answer
        .wait_for_success()
        .context("the answer under way was cut")?;
    if !status.success() {
        bail!("expected exit 0, saw {status}");
    }
    Ok(String::new())
}

/// The others.
pub(super) fn stop_services(tour: &mut Tour) -> Result<String> {
    for (name, daemon) in [
        ("edd-compute", &mut tour.stack.compute),
        ("edd-auth", &mut tour.stack.auth),
    ] {
        let status = daemon.stop(STOP_GRACE)?;
        if !status.success() {
            bail!("expected {name} to exit 0, saw {status}");
        }
    }
    tour.stack.nats.stop(STOP_GRACE).map(drop)?;
    Ok(String::new())
}

fn closed(port: u16) -> Result<()> {
    until("closed port", || match raw_echo(port, "anybody?") {
        Ok(()) => bail!("port {port} still echoes"),
        Err(_) => Ok(()),
    })
}

/// The sum of a metric's samples over its labels.
fn sum(metrics: &str, name: &str) -> Result<f64> {
    let mut samples = metrics
        .lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
        .peekable();
    samples
        .peek()
        .with_context(|| format!("no metric {name}"))?;
    Ok(samples.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_a_metric_over_its_labels() {
        let metrics = "# TYPE a counter\na_total{x=\"1 2\"} 3\na_total{x=\"2\"} 4\na_totals 9\n";
        assert_eq!(sum(metrics, "a_total").ok(), Some(7.0));
        assert!(sum(metrics, "b_total").is_err());
    }
}
