//! NATS away and back, events switched off, and what the admin endpoint says.

use edd_events::{
    bus::AnyBus,
    digest::{self, Digest, Fact},
    snapshot::fetch,
    subject::subject,
    testing::NatsServer,
};
use edd_proto::compute;
use futures_util::StreamExt as _;
use serde_json::json;

use crate::support::{
    ALICE, Events, Service, auth_on, auth_over_http, eventually, gateway_key, id_of, ip_of,
    make_key, private_keys_in, publish, ssh,
};

#[tokio::test]
async fn without_nats_the_api_works_and_events_wait() {
    let (url, _auth) = auth_over_http().await;
    let mut nats = NatsServer::start().await;
    let nats_url = nats.url();
    nats.stop();
    let service = Service::start_with(&["--nats-url", &nats_url, "--auth-url", &url]).await;
    let running = service.create_running(&json!({ "name": "a" })).await;
    let id = id_of(&running);
    let waiting = [
        format!("compute.container.{id}.created"),
        format!("compute.ingress.{id}.requested"),
        format!("compute.container.{id}.started"),
    ];
    assert_eq!(service.outbox().await, waiting);
    let ready = service.admin.get("/readyz", None).await;
    assert_eq!(
        (ready.status, &ready.body["status"]),
        (200, &"degraded".into()),
        "{ready:?}"
    );
    assert_eq!(
        (&ready.body["nats"], &ready.body["outbox_pending"]),
        (&"disconnected".into(), &3.into())
    );

    nats.resume().await;
    let mut events = Events::of_compute(&nats).await;
    events
        .expect::<compute::ContainerCreated>(&waiting[0])
        .await;
    events
        .expect::<compute::IngressRuleRequested>(&waiting[1])
        .await;
    events
        .expect::<compute::ContainerStarted>(&waiting[2])
        .await;
    eventually("an empty outbox", async || {
        service.outbox().await.is_empty().then_some(())
    })
    .await;
    eventually("ready", async || {
        let ready = service.admin.get("/readyz", None).await;
        (ready.body["status"] == "ready").then_some(())
    })
    .await;

    // And down again, with consumers at work.
    nats.stop();
    let path = format!("/compute/containers/{id}/stop");
    assert_eq!(service.api.post(&path, ALICE, &json!({})).await.status, 200);
    nats.resume().await;
    events = Events::of_compute(&nats).await;
    let stopped = format!("compute.container.{id}.stopped");
    while events.next().await.subject.as_str() != stopped {}
    let rule = edd_proto::gateway::IngressRuleCreated {
        container_id: id.to_owned(),
        port: 443,
        target_port: 8080,
        ..Default::default()
    };
    publish(&nats, id, 2, rule, 1).await;
    eventually("an active rule", async || {
        let seen = service
            .api
            .get(&format!("/compute/containers/{id}"), ALICE)
            .await
            .body;
        (seen["ingress"][0]["status"] == "active").then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn with_events_off_nothing_is_written_for_others() {
    let (url, _auth) = auth_over_http().await;
    let nats = NatsServer::start().await;
    let nats_url = nats.url();
    let flags = [
        "--nats-url",
        &nats_url,
        "--auth-url",
        &url,
        "--events",
        "off",
    ];
    let service = Service::start_with(&flags).await;
    let running = service
        .create_running(&json!({ "name": "a", "ssh_enabled": true }))
        .await;
    let own = format!("/compute/containers/{}", id_of(&running));
    assert_eq!(service.api.delete(&own, ALICE).await.status, 204);
    assert!(service.outbox().await.is_empty());
    let ready = service.admin.get("/readyz", None).await;
    assert_eq!(ready.body["events"], "off", "{ready:?}");
    service.stop().await;
}

#[tokio::test]
async fn the_gateway_is_asked_for_its_key() {
    let nats = NatsServer::start().await;
    let (url, _auth) = auth_over_http().await;
    let folder = tempfile::tempdir().unwrap();
    let line = make_key(&gateway_key(folder.path()));
    let nats_url = nats.url();
    let service = Service::start_in(
        folder,
        &["--nats-url", &nats_url, "--auth-url", &url],
        |config| {
            config.gateway_ssh_key = None;
        },
    )
    .await;
    let running = service.create_running(&json!({ "name": "a" })).await;
    let log_in = async || {
        let mut ssh = ssh(&service.gateway_key(), ip_of(&running), None, "exit 7");
        ssh.output().await.unwrap().status.code()
    };
    assert_eq!(
        log_in().await,
        Some(255),
        "nobody said which key is the gateway's"
    );

    // The gateway comes later, behind a stream that also answers its requests.
    let js = nats.jetstream().await;
    js.create_stream(async_nats::jetstream::stream::Config {
        name: "WIDE".to_owned(),
        subjects: vec!["gateway.ssh.>".to_owned()],
        ..Default::default()
    })
    .await
    .unwrap();
    let client = nats.client().await;
    let mut requests = client
        .subscribe("gateway.ssh.public_key.request")
        .await
        .unwrap();
    let gateway = tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let answer = format!("{line} edd-gateway\n").into_bytes();
            client
                .publish(request.reply.unwrap(), answer.into())
                .await
                .unwrap();
        }
    });
    eventually("a pass", async || (log_in().await == Some(7)).then_some(())).await;
    gateway.abort();
    service.stop().await;
}

#[tokio::test]
async fn health_and_metrics_are_on_the_admin_endpoint() {
    let (url, _auth) = auth_over_http().await;
    let service = Service::start_with(&["--auth-url", &url]).await;
    service.create(&json!({ "name": "a" })).await;
    assert_eq!(service.admin.get("/healthz", None).await.status, 200);
    let ready = service.admin.get("/readyz", None).await;
    assert_eq!(
        (ready.status, &ready.body["nats"]),
        (200, &"off".into()),
        "{ready:?}"
    );
    let metrics = service.admin.get("/metrics", None).await.text;
    let line = r#"edd_compute_http_requests_total{route="/compute/containers",method="POST",status="201"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    assert!(metrics.contains("edd_compute_outbox_pending"), "{metrics}");
    service.stop().await;
}

/// Why events need no encryption of their own: there is nothing secret in them.
#[tokio::test]
async fn no_secret_is_published() {
    let nats = NatsServer::start().await;
    let _auth = auth_on(&nats).await;
    let service = Service::start(&nats).await;
    let key = service.folder.path().join("ann");
    let line = format!("{} ann@example.org", make_key(&key));
    let body = json!({ "name": "laptop", "public_key": line });
    let answer = service.api.post("/compute/ssh-keys", ALICE, &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let body = json!({ "name": "a", "ssh_enabled": true, "ssh_key_ids": [answer.body["id"]] });
    let running = service.create_running(&body).await;
    let id = id_of(&running).to_owned();
    let path = format!("/compute/containers/{id}/stop");
    assert_eq!(service.api.post(&path, ALICE, &json!({})).await.status, 200);
    eventually("all said", async || {
        service.outbox().await.is_empty().then_some(())
    })
    .await;
    let mut secrets: Vec<Vec<u8>> = [ALICE.unwrap(), "ann@example.org", "PRIVATE KEY"]
        .map(|secret| secret.as_bytes().to_vec())
        .to_vec();
    secrets.extend(private_keys_in(service.folder.path()));
    assert!(
        secrets.len() >= 7,
        "of a user, of the gateway, of the container"
    );
    service.stop().await;
    let js = nats.jetstream().await;
    let mut stream = js.get_stream("COMPUTE").await.unwrap();
    let last = stream.info().await.unwrap().state.last_sequence;
    assert!(last >= 4, "{last} events");
    for sequence in 1..=last {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let headers = format!("{:?}", message.headers);
        for secret in &secrets {
            let holds = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
            let found = holds(&message.payload) || holds(headers.as_bytes());
            assert!(!found, "{}: {:?}", message.subject, message.payload);
        }
    }
}

#[tokio::test]
async fn the_whole_state_is_told_to_who_asks() {
    let nats = NatsServer::start().await;
    let _auth = auth_on(&nats).await;
    let service = Service::start(&nats).await;
    let line = make_key(&service.folder.path().join("ann"));
    let body = json!({ "name": "laptop", "public_key": line });
    let key = service
        .api
        .post("/compute/ssh-keys", ALICE, &body)
        .await
        .body;
    let body = json!({ "name": "a", "ssh_enabled": true });
    let running = service.create_running(&body).await;
    let gone = service.create_running(&json!({ "name": "b" })).await;
    let path = format!("/compute/containers/{}", id_of(&gone));
    assert_eq!(service.api.delete(&path, ALICE).await.status, 204);
    let user = edd_proto::auth::UserCreated {
        user_id: 9,
        username: "ann".to_owned(),
        display_name: "Ann".to_owned(),
        ..Default::default()
    };
    publish(&nats, "9", 3, user, 1).await;
    let js = nats.jetstream().await;
    let mut stream = js.get_stream("COMPUTE").await.unwrap();
    let bus = AnyBus::from(nats.client().await);
    eventually("a snapshot with all of it", async || {
        let last = stream.info().await.unwrap().state.last_sequence;
        let snapshot = fetch(&bus, None).await.ok()?;
        assert!(snapshot.sequence >= last);
        let id = id_of(&running);
        let mut expected = vec![
            "auth.user.9.updated".to_owned(),
            format!("compute.container.{id}.created"),
            format!("compute.container.{id}.started"),
            format!("compute.container.{id}.ssh_toggled"),
            format!("compute.container.{id}.https_toggled"),
            format!("compute.ingress.{id}.requested"),
            format!("compute.sshkey.{}.created", key["id"]),
        ];
        let mut told: Vec<String> = snapshot
            .facts
            .iter()
            .map(|fact| subject(fact.event.kind, &fact.event.entity))
            .collect();
        let versions = snapshot.facts.iter().map(|fact| fact.event.version);
        assert!(versions.min() > Some(0), "each fact has its version");
        told.sort();
        expected.sort();
        if told != expected {
            return None;
        }
        // And what it comes to is the same, once nothing waits to be published.
        let (sequence, digest) = digest::fetch(&bus, None).await.ok()?;
        let mut same = Digest::default();
        for fact in &snapshot.facts {
            Fact::of(&fact.event.payload)
                .iter()
                .for_each(|fact| same.add(fact));
        }
        let decisive = ["container", "running", "ssh", "rule", "key"].len() as u64;
        assert_eq!(digest.facts(), decisive);
        assert_eq!(digest, same);
        (sequence == snapshot.sequence).then_some(())
    })
    .await;
    service.stop().await;
}
