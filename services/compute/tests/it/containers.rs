//! What happens to containers, and what the others hear of it.

use edd_events::testing::NatsServer;
use edd_proto::compute;
use edd_store::query;
use prost::Message as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::{
    ALICE, Events, Service, auth_on, auth_over_http, command_line, eventually, gone, id_of, ip_of,
    processes_with,
};

#[tokio::test]
async fn a_creation_is_told_in_order_with_growing_versions() {
    let nats = NatsServer::start().await;
    let _auth = auth_on(&nats).await;
    let mut events = Events::of_compute(&nats).await;
    let service = Service::start(&nats).await;
    let created = service
        .create(&json!({
            "name": " box ", "image": "debian:12", "memory_mb": 256, "storage_gb": 7,
            "instance_type": "micro", "ssh_enabled": true,
            "ingress": [
                { "port": 443, "target_port": 8080 },
                { "port": 8001, "target_port": 8080 },
            ],
        }))
        .await;
    let id = id_of(&created).to_owned();
    assert_eq!(created["status"], "pending");
    assert_eq!(created["name"], "box");
    assert_eq!(created["hostname"], format!("{id}.compute.example.org"));
    let ssh_command = created["ssh_command"].as_str().unwrap();
    assert!(
        ssh_command.ends_with(&format!("{id}@example.org")),
        "{ssh_command}"
    );
    assert_eq!(created["ssh_enabled"], true);
    assert_eq!(created["https_enabled"], true);
    assert_eq!(
        created["ingress"],
        json!([
            { "port": 443, "target_port": 8080, "status": "pending" },
            { "port": 8001, "target_port": 8080, "status": "pending" },
        ])
    );

    let subject = |action: &str| format!("compute.container.{id}.{action}");
    let (event, v1) = events
        .expect::<compute::ContainerCreated>(&subject("created"))
        .await;
    assert_eq!(
        (event.container_id.as_str(), event.user_id),
        (id.as_str(), 1)
    );
    assert_eq!(
        (event.owner_username.as_str(), event.name.as_str()),
        ("name1", "box")
    );
    assert_eq!((event.memory_mb, event.storage_gb), (256, 7));
    assert_eq!(event.image, "debian:12");
    assert_eq!(event.namespace, format!("compute-1-{id}"));
    let requested = format!("compute.ingress.{id}.requested");
    let (event, v2) = events
        .expect::<compute::IngressRuleRequested>(&requested)
        .await;
    assert_eq!((event.port, event.target_port), (443, 8080));
    let (event, v3) = events
        .expect::<compute::IngressRuleRequested>(&requested)
        .await;
    assert_eq!((event.port, event.target_port), (8001, 8080));
    let (event, v4) = events
        .expect::<compute::ContainerSshToggled>(&subject("ssh_toggled"))
        .await;
    assert!(event.ssh_enabled);
    let (event, v5) = events
        .expect::<compute::ContainerStarted>(&subject("started"))
        .await;
    assert!(event.external_ip.starts_with("127.64."), "{event:?}");
    assert!(event.ssh_host_key.starts_with("ssh-ed25519 "), "{event:?}");
    assert_eq!([v1, v2, v3, v4, v5], [1, 2, 3, 4, 5]);

    let running = service.wait_for(&id, "running").await;
    assert_eq!(ip_of(&running), event.external_ip);
    assert!(running["started_at"].is_string(), "{running}");
    service.stop().await;
}

#[tokio::test]
async fn row_and_events_of_a_creation_are_one_transaction() {
    let (url, _auth) = auth_over_http().await;
    // No NATS: what is said stays in the outbox.
    let service = Service::start_with(&["--auth-url", &url]).await;
    let refused = json!({ "name": "a", "ssh_key_ids": [77], "ssh_enabled": true });
    let answer = service
        .api
        .post("/compute/containers", ALICE, &refused)
        .await;
    answer.assert_error(400, "unknown_key");
    assert!(service.outbox().await.is_empty(), "half a creation");
    let list = service.api.get("/compute/containers", ALICE).await;
    assert_eq!(list.body, json!({ "containers": [] }));

    let rule = json!({ "port": 80, "target_port": 8080 });
    let created = service
        .create(&json!({ "name": "a", "ingress": [rule] }))
        .await;
    let id = id_of(&created);
    let expected = [
        format!("compute.container.{id}.created"),
        format!("compute.ingress.{id}.requested"),
    ];
    assert_eq!(service.outbox().await[..2], expected);
    service.stop().await;
}

#[tokio::test]
async fn a_container_without_wishes_gets_https_to_its_page() {
    let (url, _auth) = auth_over_http().await;
    let service = Service::start_with(&["--auth-url", &url]).await;
    let created = service.create(&json!({ "name": "a" })).await;
    let rule = json!({ "port": 443, "target_port": 8080, "status": "pending" });
    assert_eq!(created["ingress"], json!([rule]));
    assert_eq!(created["ssh_enabled"], false);
    let none = service.create(&json!({ "name": "b", "ingress": [] })).await;
    assert_eq!(none["ingress"], json!([]));
    service.stop().await;
}

#[tokio::test]
async fn start_stop_switches_and_end_are_told() {
    let nats = NatsServer::start().await;
    let _auth = auth_on(&nats).await;
    let service = Service::start(&nats).await;
    let api = service.api;
    let running = service
        .create_running(&json!({ "name": "a", "ingress": [] }))
        .await;
    let (id, ip) = (id_of(&running).to_owned(), ip_of(&running).to_owned());
    let mut events = Events::of_compute(&nats).await;
    let subject = |action: &str| format!("compute.container.{id}.{action}");
    events
        .expect::<compute::ContainerCreated>(&subject("created"))
        .await;
    events
        .expect::<compute::ContainerStarted>(&subject("started"))
        .await;
    let path = |below: &str| format!("/compute/containers/{id}/{below}");

    // What does not change is not told.
    for (below, field) in [("ssh", "ssh_enabled"), ("https", "https_enabled")] {
        for wanted in [true, true, false] {
            let answer = api
                .put(&path(below), ALICE, &json!({ field: wanted }))
                .await;
            assert_eq!(
                (answer.status, &answer.body[field]),
                (200, &wanted.into()),
                "{answer:?}"
            );
        }
    }
    let toggled = subject("ssh_toggled");
    let (event, v3) = events
        .expect::<compute::ContainerSshToggled>(&toggled)
        .await;
    assert!(event.ssh_enabled);
    let (event, v4) = events
        .expect::<compute::ContainerSshToggled>(&toggled)
        .await;
    assert!(!event.ssh_enabled);
    let toggled = subject("https_toggled");
    let (event, v5) = events
        .expect::<compute::ContainerHttpsToggled>(&toggled)
        .await;
    assert!(!event.https_enabled, "it was on from the start");
    assert_eq!([v3, v4, v5], [3, 4, 5]);

    assert!(!processes_with(&id).is_empty());
    for _ in 0..2 {
        let answer = api.post(&path("stop"), ALICE, &json!({})).await;
        assert_eq!(
            (answer.status, &answer.body["status"]),
            (200, &"stopped".into()),
            "{answer:?}"
        );
    }
    assert_eq!(
        processes_with(&id),
        [0; 0],
        "answered before its processes were gone"
    );
    let (_, v6) = events
        .expect::<compute::ContainerStopped>(&subject("stopped"))
        .await;
    assert_eq!(v6, 6);

    for _ in 0..2 {
        let answer = api.post(&path("start"), ALICE, &json!({})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let (event, v7) = events
        .expect::<compute::ContainerStarted>(&subject("started"))
        .await;
    assert_eq!(
        (event.external_ip, v7),
        (ip.clone(), 7),
        "a container keeps its address"
    );
    assert_eq!(ip_of(&service.wait_for(&id, "running").await), ip);

    let own = format!("/compute/containers/{id}");
    assert_eq!(api.delete(&own, ALICE).await.status, 204);
    assert_eq!(
        processes_with(&id),
        [0; 0],
        "answered before its processes were gone"
    );
    let (event, v8) = events
        .expect::<compute::ContainerDeleted>(&subject("deleted"))
        .await;
    assert_eq!((event.user_id, v8), (1, 8));
    api.get(&own, ALICE).await.assert_error(404, "not_found");
    api.delete(&own, ALICE).await.assert_error(404, "not_found");
    let left: i64 = query("SELECT COUNT(*) FROM local_addresses")
        .value(&service.database().await)
        .await
        .unwrap();
    assert_eq!(left, 0, "its address is free again");
    assert!(!service.folder.path().join("state/local").join(&id).exists());
    service.stop().await;
}

#[tokio::test]
async fn a_stop_while_it_starts_wins() {
    let (url, _auth) = auth_over_http().await;
    let service = Service::start_with(&["--auth-url", &url]).await;
    let created = service.create(&json!({ "name": "a" })).await;
    let id = id_of(&created);
    let path = format!("/compute/containers/{id}/stop");
    let answer = service.api.post(&path, ALICE, &json!({})).await;
    assert_eq!(answer.body["status"], "stopped", "{answer:?}");
    assert_eq!(processes_with(id), [0; 0]);
    service.wait_for(id, "stopped").await;
    service.stop().await;
}

#[tokio::test]
async fn a_failing_start_says_why() {
    let (url, _auth) = auth_over_http().await;
    let folder = crate::support::new_folder();
    let service = Service::start_in(folder, &["--auth-url", &url], |config| {
        config.guest_binary = Some("/does/not/exist".into());
    })
    .await;
    let created = service.create(&json!({ "name": "a" })).await;
    let failed = service.wait_for(id_of(&created), "failed").await;
    let reason = failed["failure"].as_str().unwrap();
    assert!(reason.contains("cannot start its guest"), "{failed}");
    let outbox = service.outbox().await;
    assert!(
        !outbox.iter().any(|subject| subject.ends_with(".stopped")),
        "{outbox:?}"
    );
    service.stop().await;
}

#[tokio::test]
async fn a_container_that_ends_by_itself_has_failed_and_can_be_started_again() {
    let (url, _auth) = auth_over_http().await;
    let service = Service::start_with(&["--auth-url", &url]).await;
    for victim in [" guest ", "[listener]"] {
        let running = service.create_running(&json!({ "name": "a" })).await;
        let id = id_of(&running);
        let pid = processes_with(id)
            .into_iter()
            .find(|pid| command_line(*pid).contains(victim))
            .expect("a process of the container");
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        let failed = service.wait_for(id, "failed").await;
        assert!(failed["failure"].is_string(), "{failed}");
        gone(id).await;
        let stopped = format!("compute.container.{id}.stopped");
        assert!(service.outbox().await.contains(&stopped));
        let path = format!("/compute/containers/{id}/start");
        let answer = service.api.post(&path, ALICE, &json!({})).await;
        assert_eq!(answer.body["status"], "pending", "{answer:?}");
        assert_eq!(
            ip_of(&service.wait_for(id, "running").await),
            ip_of(&running)
        );
    }
    service.stop().await;
}

#[tokio::test]
async fn an_address_that_somebody_else_has_is_left_to_him() {
    let (url, _auth) = auth_over_http().await;
    let service = Service::start_with(&["--auth-url", &url]).await;
    let running = service.create_running(&json!({ "name": "a" })).await;
    let (id, ip) = (id_of(&running), ip_of(&running));
    let path = |below: &str| format!("/compute/containers/{id}/{below}");
    assert_eq!(
        service
            .api
            .post(&path("stop"), ALICE, &json!({}))
            .await
            .status,
        200
    );
    let _somebody = std::net::TcpListener::bind((ip, 8080)).unwrap();
    assert_eq!(
        service
            .api
            .post(&path("start"), ALICE, &json!({}))
            .await
            .status,
        200
    );
    assert_ne!(ip_of(&service.wait_for(id, "running").await), ip);
    service.stop().await;
}

#[tokio::test]
async fn what_ran_runs_again_after_a_restart_at_the_same_address() {
    let nats = NatsServer::start().await;
    let _auth = auth_on(&nats).await;
    let service = Service::start(&nats).await;
    let running = service
        .create_running(&json!({ "name": "a", "ingress": [] }))
        .await;
    let stopped = service
        .create_running(&json!({ "name": "b", "ingress": [] }))
        .await;
    let (id, ip) = (id_of(&running), ip_of(&running));
    let path = format!("/compute/containers/{}/stop", id_of(&stopped));
    assert_eq!(service.api.post(&path, ALICE, &json!({})).await.status, 200);
    let folder = service.stop().await;
    assert_eq!(processes_with(id), [0; 0], "a process outlived the service");

    let service = Service::start_in(folder, &["--nats-url", &nats.url()], |_| ()).await;
    service.connected().await;
    assert_eq!(ip_of(&service.wait_for(id, "running").await), ip);
    service.wait_for(id_of(&stopped), "stopped").await;
    let mut events = Events::of_compute(&nats).await;
    let mut starts = Vec::new();
    while starts.len() < 2 {
        let message = events.next().await;
        if message.subject.as_str() == format!("compute.container.{id}.started") {
            starts.push(compute::ContainerStarted::decode(message.payload.clone()).unwrap());
        }
    }
    let version = |at: usize| starts[at].metadata.as_ref().unwrap().version;
    assert!(version(0) < version(1), "{starts:?}");
    assert_eq!(
        starts[0].ssh_host_key, starts[1].ssh_host_key,
        "a container keeps its host key"
    );
    service.stop().await;
}

#[tokio::test]
async fn there_are_no_more_than_the_quota() {
    let (url, _auth) = auth_over_http().await;
    let flags = ["--auth-url", &url, "--containers-per-user", "1"];
    let service = Service::start_with(&flags).await;
    let created = service.create(&json!({ "name": "a" })).await;
    let second = json!({ "name": "b" });
    let answer = service
        .api
        .post("/compute/containers", ALICE, &second)
        .await;
    answer.assert_error(403, "quota_exceeded");
    let own = format!("/compute/containers/{}", id_of(&created));
    assert_eq!(service.api.delete(&own, ALICE).await.status, 204);
    service.create(&second).await;
    service.stop().await;
}

#[tokio::test]
async fn an_event_names_the_request_that_caused_it() {
    let (url, _auth) = auth_over_http().await;
    let service = Service::start_with(&["--auth-url", &url]).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = format!(
        "Content-Type: application/json\r\nAuthorization: Bearer user-1\r\n\
         X-Request-ID: my-request\r\ntraceparent: {trace}\r\n"
    );
    let answer = service
        .api
        .call("POST", "/compute/containers", &headers, r#"{"name":"a"}"#)
        .await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let caused = eventually("the entry", async || {
        query("SELECT correlation_id, traceparent FROM outbox ORDER BY id LIMIT 1")
            .optional::<(Option<String>, Option<String>)>(&service.database().await)
            .await
            .unwrap()
    })
    .await;
    let (request, told) = caused;
    assert_eq!(request.as_deref(), Some("my-request"));
    let told = told.unwrap_or_default();
    assert_eq!(told.get(..36), trace.get(..36), "the same trace");
    assert_ne!(told, trace, "a span of its own");
    service.stop().await;
}

/// From the HTTP request to the last event that follows from it, whoever is asked
/// in between: one trace, one correlation id.
#[tokio::test]
async fn all_that_follows_from_a_request_carries_its_trace() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let nats = NatsServer::start().await;
    let _auth = auth_on(&nats).await;
    let mut events = Events::of_compute(&nats).await;
    let service = Service::start(&nats).await;
    let body = json!({
        "name": "box", "ssh_enabled": true,
        "ingress": [{ "port": 443, "target_port": 8080 }],
    })
    .to_string();
    let headers = format!(
        "Content-Type: application/json\r\nX-Request-ID: request-1\r\n\
         traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\nAuthorization: Bearer {}\r\n",
        ALICE.unwrap()
    );
    let answer = service
        .api
        .call("POST", "/compute/containers", &headers, &body)
        .await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let id = id_of(&answer.body).to_owned();
    let mut subjects = Vec::new();
    while !subjects.contains(&format!("compute.container.{id}.started")) {
        let message = events.next().await;
        let headers = message.headers.as_ref().unwrap();
        let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        let what = (message.subject.as_str(), headers);
        assert_eq!(
            text("Edd-Correlation-Id").as_deref(),
            Some("request-1"),
            "{what:?}"
        );
        let trace = text("traceparent").unwrap_or_default();
        assert!(trace.starts_with(&format!("00-{TRACE}-")), "{what:?}");
        assert!(
            !trace.contains("00f067aa0ba902b7"),
            "a span of our own: {what:?}"
        );
        subjects.push(message.subject.to_string());
    }
    assert_eq!(subjects.len(), 4, "{subjects:?}");
    // And so does the archive.
    let database = service.database().await;
    let archived = edd_events::event_store::by_correlation(&database, "request-1", 0, 10).await;
    assert_eq!(archived.unwrap().len(), 4);
    service.stop().await;
}
