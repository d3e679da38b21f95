//! `edd-gateway dlq` against a running gateway.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;

use super::{get, publish_raw, request, runs_at};
use crate::support::{Bus, Gateway, Options, eventually};

/// `edd-gateway dlq ARGS`: exit code, stdout, stderr.
async fn dlq(admin: SocketAddr, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edd-gateway"));
    command
        .arg("dlq")
        .args(args)
        .env_clear()
        .env("EDD_GATEWAY_ADMIN_ADDR", admin.to_string());
    let run = move || command.output().expect("it starts");
    let output = tokio::task::spawn_blocking(run).await.expect("it ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().expect("a code"),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// The letters as `dlq list --json` has them.
async fn listed(admin: SocketAddr, args: &[&str]) -> Vec<Value> {
    let (code, out, err) = dlq(admin, &[&["list", "--json"], args].concat()).await;
    assert_eq!(code, 0, "{err}");
    match serde_json::from_str(&out) {
        Ok(Value::Array(letters)) => letters,
        _ => panic!("no JSON list: {out}"),
    }
}

async fn metric(admin: SocketAddr, line: &str) -> bool {
    let (_, body) = request(admin, "GET", "/metrics").await;
    body.lines().any(|found| found == line)
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_shown_replayed_and_dropped() {
    let bus = Bus::start().await;
    let options = Options::default().bus(&bus);
    let gateway = Gateway::start(options.clone()).await;
    let admin = gateway.admin;
    let (code, out, err) = dlq(admin, &["list"]).await;
    assert_eq!((code, out.trim()), (0, "0 dead letters"), "{err}");

    // A port outside the range, an address outside the networks, no message.
    bus.created("c1", 7).await;
    bus.rule("c1", 9, 80).await;
    bus.started("c1", "127.99.0.1", None).await;
    publish_raw(&bus, "compute.container.c2.stopped", *b"\xff\xff").await;
    eventually("three dead letters", || async {
        metric(admin, r#"edd_gateway_dlq_messages{stream="COMPUTE"} 3"#).await
    })
    .await;
    let letters = listed(admin, &[]).await;
    let subjects: Vec<_> = letters
        .iter()
        .map(|letter| letter["subject"].as_str().expect("text"))
        .collect();
    assert_eq!(
        subjects,
        [
            "compute.ingress.c1.requested",
            "compute.container.c1.started",
            "compute.container.c2.stopped",
        ]
    );
    let name = |n: usize| letters[n]["letter"].as_str().expect("text");
    let (port, address, garbage) = (name(0), name(1), name(2));
    let (code, out, _) = dlq(admin, &["list"]).await;
    assert_eq!(code, 0);
    assert!(
        out.contains(port) && out.ends_with("3 dead letters\n"),
        "{out}"
    );
    assert_eq!(
        listed(admin, &["--subject", "compute.container.>"])
            .await
            .len(),
        2
    );
    assert_eq!(listed(admin, &["--reason", "DECODE"]).await.len(), 1);
    assert_eq!(listed(admin, &["--stream", "AUTH"]).await.len(), 0);

    let (code, out, err) = dlq(admin, &["show", port]).await;
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("Edd-Dlq-Subject: compute.ingress.c1.requested"),
        "{out}"
    );
    assert!(out.contains("\"target_port\": 80"), "{out}");
    let (_, out, _) = dlq(admin, &["show", garbage]).await;
    assert!(out.contains("payload (2 bytes): ffff"), "{out}");
    let (code, _, err) = dlq(admin, &["show", "COMPUTE:1"]).await;
    assert_eq!(code, 1, "an event is no dead letter");
    assert!(err.contains("no dead letter at COMPUTE:1"), "{err}");
    assert_eq!(dlq(admin, &["show", "nonsense"]).await.0, 1);

    // Nothing is selected by saying nothing.
    assert_eq!(dlq(admin, &["replay"]).await.0, 64);
    assert_eq!(dlq(admin, &["drop"]).await.0, 64);

    // The cause persists: a new letter instead of the old one, once.
    let (code, out, err) = dlq(admin, &["replay", port]).await;
    assert_eq!(code, 0, "{err}");
    assert!(
        out.starts_with(&format!("{port} replayed as COMPUTE:")),
        "{out}"
    );
    eventually("a new letter", || async {
        let letters = listed(admin, &["--subject", "compute.ingress.>"]).await;
        letters.len() == 1 && letters[0]["letter"] != port
    })
    .await;
    // The same by way of NATS itself, as an operator would.
    let url = bus.server.url();
    let direct = ["--nats-url", &url];
    let (code, out, err) = dlq(admin, &[&["show", garbage], &direct[..]].concat()).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("payload (2 bytes): ffff"), "{out}");
    assert_eq!(listed(admin, &direct).await.len(), 3);
    let (code, out, _) = dlq(admin, &["drop", garbage]).await;
    assert_eq!((code, out), (0, format!("{garbage} dropped\n")));
    assert_eq!(dlq(admin, &["drop", garbage]).await.0, 1, "it is gone");
    eventually("two are left", || async {
        metric(admin, r#"edd_gateway_dlq_messages{stream="COMPUTE"} 2"#).await
    })
    .await;

    // With the network allowed the replayed event is in effect.
    gateway.stop().await;
    let options = options.flag("--container-cidrs", "127.64.0.0/16,127.99.0.0/16");
    let gateway = Gateway::start(options).await;
    let admin = gateway.admin;
    eventually("it answers", || async {
        get(admin, "/api/v1/dlq").await.0 == 200
    })
    .await;
    let (code, out, err) = dlq(admin, &["replay", "--subject", "compute.container.>"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with(address), "{out}");
    gateway
        .until("the container runs", |table| {
            runs_at(table, "c1", "127.99.0.1")
        })
        .await;
    publish_raw(&bus, "compute.container.c3.stopped", *b"\xff").await;
    let more = || async { listed(admin, &["--subject", "compute.container.c3.*"]).await };
    eventually("another", || async { more().await.len() == 1 }).await;
    let again = more().await[0]["letter"].as_str().expect("text").to_owned();
    let (code, _, err) = dlq(admin, &["replay", &again, "--nats-url", &url]).await;
    assert_eq!(code, 0, "{err}");
    eventually("a new letter of it", || async {
        let letters = more().await;
        letters.len() == 1 && letters[0]["letter"] != again
    })
    .await;
    let (code, _, err) = dlq(admin, &["drop", "--all"]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(listed(admin, &[]).await.len(), 0);
    // At once, but for a count that began before.
    eventually("none are left", || async {
        metric(admin, r#"edd_gateway_dlq_messages{stream="COMPUTE"} 0"#).await
    })
    .await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn web_pages_cannot_touch_dead_letters() {
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    for header in ["Origin: http://evil.example", "Sec-Fetch-Site: cross-site"] {
        for (method, target) in [
            ("POST", "/api/v1/dlq/COMPUTE:1/replay"),
            ("DELETE", "/api/v1/dlq/COMPUTE:1"),
        ] {
            let target = format!("{target} HTTP/1.1\r\n{header}\r\nX-Rest:");
            assert_eq!(request(gateway.admin, method, &target).await.0, 403);
        }
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_there_are_no_dead_letters_to_speak_of() {
    let gateway = Gateway::start(Options::default()).await;
    let (code, body) = get(gateway.admin, "/api/v1/dlq").await;
    assert_eq!(
        (code, body["error"]["code"].as_str()),
        (503, Some("unavailable"))
    );
    let (code, _, err) = dlq(gateway.admin, &["list"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("--nats-url"), "{err}");
    gateway.stop().await;
}

/// A renamed metric would make its alert silent.
#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_alerts_is_served() {
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    let rules =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/alerts/edd.rules.yml");
    let rules = std::fs::read_to_string(rules).expect("the alerts");
    // Those of the gateway by name, those of all services with the services' names before.
    let names: BTreeSet<&str> = ["edd_gateway_", "sfs)_"]
        .iter()
        .flat_map(|prefix| rules.split(prefix).skip(1))
        .map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            end.map_or(rest, |end| &rest[..end])
        })
        .collect();
    assert!(names.len() >= 10, "{names:?}");
    for name in names {
        let family = format!("\nedd_gateway_{name}");
        eventually(name, || async {
            let (_, body) = request(gateway.admin, "GET", "/metrics").await;
            body.contains(&format!("{family}{{")) || body.contains(&format!("{family} "))
        })
        .await;
    }
    // What was never counted is there with 0, or the first time would not be seen as growth.
    for counter in [
        r#"edd_gateway_events_total{subject="unknown",result="lost"} 0"#,
        r#"edd_gateway_reload_failures_total{kind="routes"} 0"#,
        r#"edd_gateway_reload_failures_total{kind="certificate"} 0"#,
        "edd_gateway_ssh_buffer_limit_closed_total 0",
        "edd_gateway_digest_drift_total 0",
    ] {
        assert!(metric(gateway.admin, counter).await, "{counter}");
    }
    let growing = rules
        .lines()
        .filter(|line| line.contains("increase("))
        .count();
    assert_eq!(growing, 4, "another one has to be looked at here");
    assert!(
        metric(
            gateway.admin,
            r#"edd_gateway_consumer_breaker{stream="AUTH"} 0"#
        )
        .await
    );
    eventually("an up-to-date table", || async {
        metric(gateway.admin, "edd_gateway_stale_since_timestamp_seconds 0").await
    })
    .await;
    gateway.stop().await;
}
