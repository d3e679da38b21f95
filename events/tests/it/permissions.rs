//! The committed configuration of nats-server: what each service needs works,
//! what it must not do is refused, and strangers get no connection.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream;
use edd_events::{
    Metrics,
    bus::AnyBus,
    connect::{ConnectError, NatsOptions, connect, is_connected},
    consumer::{Consumer, ConsumerSpec, Verdict},
    dead_letter::{Filter, LetterError, Letters},
    request::{VALIDATE_TOKEN, validate_token},
    snapshot::SNAPSHOT_REQUEST,
    stream::{self, StreamSpec},
    testing::Cloud,
};
use edd_proto::auth::ValidateTokenResponse;
use futures_util::StreamExt as _;
use prost::Message as _;

use crate::signatures::{make_key, verifier};
use crate::support::{
    DEADLINE, Recorder, Running, SPEC, Service, created, eventually, publish, stored,
};

async fn js(cloud: &Cloud, service: &str) -> jetstream::Context {
    jetstream::new(cloud.client(service).await)
}

/// A flush empties our buffer only. An answer on the same connection says that the server knows
/// the subscriptions made before.
async fn answered(client: &async_nats::Client, spec: StreamSpec) {
    let stream = jetstream::new(client.clone()).get_stream(spec.name).await;
    stream.expect("an answer");
}

const AUTH_OF_GATEWAY: ConsumerSpec = ConsumerSpec {
    stream: stream::AUTH,
    durable: "gateway-service",
    filter: "auth.user.>",
    batch_max: 16,
};

const GATEWAY_OF_COMPUTE: ConsumerSpec = ConsumerSpec {
    stream: stream::GATEWAY,
    durable: "compute-service",
    filter: "gateway.ingress.>",
    batch_max: 16,
};

const COMPUTE_OF_AUTH: ConsumerSpec = ConsumerSpec {
    stream: stream::COMPUTE,
    durable: "auth-service",
    filter: "compute.user.>",
    batch_max: 16,
};

const SFS_OF_AUTH: ConsumerSpec = ConsumerSpec {
    stream: stream::AUTH,
    durable: "sfs-service",
    filter: "auth.user.>",
    batch_max: 16,
};

#[tokio::test(flavor = "multi_thread")]
async fn services_can_do_all_that_they_need() {
    let cloud = Cloud::start().await;
    let of_gateway = js(&cloud, "gateway").await;
    let of_compute = js(&cloud, "compute").await;
    // Streams of others are made when they are missing, and then found.
    for js in [&of_gateway, &of_compute] {
        for spec in [stream::AUTH, stream::COMPUTE, stream::GATEWAY] {
            stream::ensure(js, &spec, 1).await.unwrap();
        }
    }
    let of_sfs = js(&cloud, "sfs").await;
    for (js, spec) in [
        (&js(&cloud, "auth").await, stream::AUTH),
        (&of_sfs, stream::AUTH),
        (&of_sfs, stream::SFS),
    ] {
        stream::ensure(js, &spec, 1).await.unwrap();
    }

    // Published by the relay, consumed; one of them ends as a dead letter.
    let compute = Service::start(of_compute.clone(), Metrics::default()).await;
    compute.write(&[created(1), created(2)]).await;
    let picky = Recorder::answering(|delivery| {
        Ok(if delivery.event.entity.as_str() == "c2" {
            Verdict::Reject("not this one".into())
        } else {
            Verdict::Applied
        })
    });
    let mut consuming = Running::start(of_gateway.clone(), picky);
    consuming.recorder.saw(2).await;
    consuming.caught_up().await;
    let operator = js(&cloud, "operator").await;
    eventually("the dead letter", || async {
        let letters = stored(&operator, &stream::COMPUTE, "compute.container.created.dlq");
        letters.await.len() == 1
    })
    .await;
    consuming.stop().await;
    compute.stop().await;

    // The other way, and users.
    publish(&of_gateway, "gateway.ingress.c1.created", vec![0xff]).await;
    let of_auth = js(&cloud, "auth").await;
    publish(&of_auth, "auth.user.1.deleted", vec![0xff]).await;
    publish(&of_compute, "compute.user.1.purged", vec![0xff]).await;
    publish(&of_sfs, "sfs.file.1.uploaded", vec![0xff]).await;
    for (js, spec, dlq, letters) in [
        (
            &of_compute,
            GATEWAY_OF_COMPUTE,
            "gateway.ingress.created.dlq",
            1,
        ),
        (&of_gateway, AUTH_OF_GATEWAY, "auth.user.deleted.dlq", 1),
        (&of_auth, COMPUTE_OF_AUTH, "compute.user.purged.dlq", 1),
        // Each consumer has a letter of its own.
        (&of_sfs, SFS_OF_AUTH, "auth.user.deleted.dlq", 2),
    ] {
        let consuming = Running::with_spec(js.clone(), spec, Recorder::new());
        eventually(dlq, || async {
            stored(&operator, &spec.stream, dlq).await.len() == letters
        })
        .await;
        consuming.stop().await;
    }
    // As replicas of the gateway follow each other.
    let stream = of_gateway.get_stream("GATEWAY").await.unwrap();
    let config = jetstream::consumer::pull::OrderedConfig::default();
    let ordered = stream.create_consumer(config).await.unwrap();
    let mut heard = ordered.messages().await.unwrap();
    let first = tokio::time::timeout(DEADLINE, heard.next()).await;
    assert!(first.unwrap().unwrap().is_ok());
    drop(heard);
    // Compute's whole state.
    let compute = cloud.client("compute").await;
    let mut asked = compute.subscribe(SNAPSHOT_REQUEST).await.unwrap();
    answered(&compute, stream::COMPUTE).await;
    let gateway = cloud.client("gateway").await;
    let (answer, ()) = tokio::join!(gateway.request(SNAPSHOT_REQUEST, "".into()), async {
        let request = asked.next().await.unwrap();
        let reply = request.reply.unwrap();
        compute.publish(reply, "page".into()).await.unwrap();
    });
    assert_eq!(answer.unwrap().payload, "page");
    // As a gateway does whose database is lost.
    let stream = of_gateway.get_stream("COMPUTE").await.unwrap();
    stream.consumer_info("gateway-service").await.unwrap();
    stream.delete_consumer("gateway-service").await.unwrap();

    // Requests, each way.
    let auth = cloud.client("auth").await;
    let mut asked = auth
        .queue_subscribe(VALIDATE_TOKEN, "auth".into())
        .await
        .unwrap();
    answered(&auth, stream::AUTH).await;
    let answering = tokio::spawn(async move {
        while let Some(request) = asked.next().await {
            let answer = ValidateTokenResponse {
                valid: true,
                user_id: 7,
                username: "ann".into(),
            };
            let reply = request.reply.unwrap();
            auth.publish(reply, answer.encode_to_vec().into())
                .await
                .unwrap();
        }
    });
    for service in ["compute", "sfs"] {
        let bus = AnyBus::from(cloud.client(service).await);
        let answer = validate_token(&bus, "token").await;
        assert_eq!(answer.unwrap(), Some((7, "ann".to_owned())), "{service}");
    }
    answering.abort();
    let gateway = cloud.client("gateway").await;
    let mut asked = gateway
        .subscribe("gateway.ssh.public_key.request")
        .await
        .unwrap();
    answered(&gateway, stream::GATEWAY).await;
    let compute = cloud.client("compute").await;
    let (answer, ()) = tokio::join!(
        compute.request("gateway.ssh.public_key.request", "".into()),
        async {
            let request = asked.next().await.unwrap();
            gateway
                .publish(request.reply.unwrap(), "line".into())
                .await
                .unwrap();
        }
    );
    assert_eq!(answer.unwrap().payload, "line");
    let log = cloud.server.log();
    assert!(!log.contains("Violation"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_for_others() {
    let cloud = Cloud::start().await;
    let operator = js(&cloud, "operator").await;
    for spec in [stream::AUTH, stream::COMPUTE, stream::GATEWAY] {
        stream::ensure(&operator, &spec, 1).await.unwrap();
    }
    for (service, subject) in [
        ("auth", "compute.container.x.deleted"),
        ("auth", "compute.user.1.purged"),
        ("auth", "gateway.ingress.x.created"),
        ("auth", "$JS.API.STREAM.DELETE.AUTH"),
        ("compute", "auth.user.1.deleted"),
        ("compute", "gateway.router.refreshed"),
        ("compute", "$JS.API.CONSUMER.DELETE.COMPUTE.gateway-service"),
        ("compute", "$JS.ACK.COMPUTE.gateway-service.1.1.1.1.1"),
        ("sfs", "auth.user.2.created"),
        ("sfs", "compute.container.y.started"),
        ("gateway", "compute.container.z.deleted"),
        ("gateway", "compute.sshkey.1.created"),
        ("gateway", "auth.user.3.deleted"),
        ("gateway", "$JS.API.STREAM.PURGE.COMPUTE"),
        ("gateway", "$JS.API.STREAM.UPDATE.COMPUTE"),
    ] {
        cloud.refuses(service, subject).await;
    }
    for spec in [stream::AUTH, stream::COMPUTE, stream::GATEWAY] {
        let mut stream = operator.get_stream(spec.name).await.unwrap();
        assert_eq!(
            stream.info().await.unwrap().state.messages,
            0,
            "{}",
            spec.name
        );
    }
    // Nor does anybody hear what is meant for others.
    let client = cloud.client("sfs").await;
    for subject in ["_INBOX.edd-gateway.>", "compute.>", "auth.validate.request"] {
        let _refused = client.subscribe(subject).await.unwrap();
        client.flush().await.unwrap();
        eventually(subject, || async {
            let log = cloud.server.log();
            log.lines().any(|l| {
                l.contains("Subscription Violation") && l.contains(&format!("\"{subject}\""))
            })
        })
        .await;
    }
}

/// The gateway shows its dead letters and cannot replay them: the operator does, and needs none of
/// the keys that sign.
#[tokio::test(flavor = "multi_thread")]
async fn letters_are_replayed_with_the_operators_key_and_their_own_signature() {
    let cloud = Cloud::start().await;
    let (of_gateway, of_compute) = (js(&cloud, "gateway").await, js(&cloud, "compute").await);
    let operator = js(&cloud, "operator").await;
    let folder = tempfile::tempdir().unwrap();
    let (signer, public) = make_key(folder.path(), "compute");
    let cured = Arc::new(AtomicBool::new(false));
    let recorder = Recorder::answering({
        let cured = Arc::clone(&cured);
        move |_| match cured.load(Ordering::Relaxed) {
            true => Ok(Verdict::Applied),
            false => Ok(Verdict::Reject("not yet".into())),
        }
    });
    let consumer = Consumer::new(of_gateway.clone(), SPEC, 1, Metrics::default())
        .with_verifier(verifier(&folder, &public));
    let running = Running::run_consumer(consumer, recorder);
    let service = Service::start_signed(of_compute, Some(signer)).await;
    service.write(&[created(1)]).await;
    let letters = async || {
        let letters = Letters::new(of_gateway.clone(), Metrics::default());
        let page = letters.list(&Filter::default(), None, 10).await;
        page.unwrap().letters
    };
    eventually("a dead letter", || async { letters().await.len() == 1 }).await;
    cured.store(true, Ordering::Relaxed);
    let at = letters().await[0].letter.clone();
    let with = |js: &jetstream::Context| Letters::new(js.clone(), Metrics::default());
    let replayed = with(&of_gateway).replay(&at).await.unwrap_err();
    assert!(
        matches!(replayed, LetterError::Unheard(_)) && replayed.to_string().contains("--nats-nkey"),
        "{replayed}"
    );
    let dropped = with(&of_gateway).discard(&at).await.unwrap_err();
    assert!(matches!(dropped, LetterError::Undeleted(_)), "{dropped}");
    assert_eq!(letters().await.len(), 1, "it stays");
    with(&operator).replay(&at).await.unwrap();
    running.recorder.saw(2).await;
    assert_eq!(running.recorder.entities(), ["c1", "c1"]);
    assert!(letters().await.is_empty());
    running.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_no_connection_and_do_not_give_up() {
    let cloud = Cloud::start().await;
    let unknown = nkeys::KeyPair::new_user().seed().unwrap();
    std::fs::write(cloud.file("unknown"), unknown).unwrap();
    let none = NatsOptions {
        nkey: None,
        ..cloud.options("gateway")
    };
    let untrusting = NatsOptions {
        ca: None,
        ..cloud.options("gateway")
    };
    let mut clients = Vec::new();
    for options in [cloud.options("unknown"), none, untrusting] {
        clients.push(connect(&options).await.expect("tries in the background"));
    }
    // One that is known shows that the server had the time.
    cloud.client("gateway").await;
    eventually("two refusals", || async {
        cloud.server.log().matches("authentication error").count() >= 2
    })
    .await;
    tokio::time::timeout(Duration::from_millis(200), async {
        for client in &clients {
            assert!(!is_connected(client));
            assert!(client.flush().await.is_err());
        }
    })
    .await
    .expect_err("a flush waits for a connection");
    let missing = NatsOptions {
        nkey: Some(cloud.file("missing")),
        ..cloud.options("gateway")
    };
    let error = connect(&missing).await.unwrap_err();
    assert!(matches!(error, ConnectError::Nkey { .. }), "{error:?}");
}

/// The store's files hold nothing of what was said.
#[tokio::test(flavor = "multi_thread")]
async fn what_lies_on_disk_is_encrypted() {
    let cloud = Cloud::start().await;
    let js = js(&cloud, "compute").await;
    let spec: StreamSpec = stream::COMPUTE;
    stream::ensure(&js, &spec, 1).await.unwrap();
    let marker = b"plain-text-marker";
    publish(&js, "compute.container.c1.created", marker.to_vec()).await;
    let store = cloud.server.folder().join("store");
    let mut files = 0;
    let mut folders = vec![store];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if let Ok(bytes) = std::fs::read(entry.path()) {
                files += 1;
                let shown = bytes.windows(marker.len()).any(|window| window == marker);
                assert!(!shown, "{}", entry.path().display());
            }
        }
    }
    assert!(files > 0, "there is a store");
}
