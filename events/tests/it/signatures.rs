//! Signed events through a real broker: what is not signed by its source is a
//! dead letter at once and reaches no handler.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_nats::{HeaderMap, jetstream::message::PublishMessage};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use edd_events::{
    Metrics,
    bus::{Bus as _, MemoryBus, Requests as _},
    consumer::{Consumer, Verdict},
    dead_letter::{Filter, Letters},
    outbox::OutboxEntry,
    signature::{Signer, Verifier},
    snapshot::{Pages, SNAPSHOT_REQUEST, SnapshotError, fetch},
    stream,
};
use edd_proto::compute::SnapshotRequest;
use prost::Message as _;
use tempfile::TempDir;

use crate::support::{Recorder, Running, SPEC, Service, created, eventually, server, stored};

/// A key in PEM files as openssl writes them: NAME.key and its public half.
pub(crate) fn make_key(folder: &Path, name: &str) -> (Arc<Signer>, String) {
    let pem = |label: &str, der: &[u8]| {
        format!(
            "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
            STANDARD.encode(der)
        )
    };
    let pair = Ed25519KeyPair::generate().unwrap();
    let file = folder.join(format!("{name}.key"));
    fs::write(
        &file,
        pem("PRIVATE KEY", pair.to_pkcs8v1().unwrap().as_ref()),
    )
    .unwrap();
    let mut public = vec![
        0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
    ];
    public.extend_from_slice(pair.public_key().as_ref());
    (
        Arc::new(Signer::load(&file).unwrap()),
        pem("PUBLIC KEY", &public),
    )
}

pub(crate) fn verifier(folder: &TempDir, keys: &str) -> Option<Arc<Verifier>> {
    let file = folder.path().join("keys");
    fs::write(&file, format!("compute:\n{keys}")).unwrap();
    Some(Arc::new(Verifier::load(&file).unwrap()))
}

/// As the relay would, but with these headers.
fn message(entry: &OutboxEntry, headers: HeaderMap) -> PublishMessage {
    PublishMessage::build()
        .payload(entry.payload.clone().into())
        .headers(headers)
}

fn headers(signer: &Signer, entry: &OutboxEntry) -> HeaderMap {
    let mut headers = HeaderMap::new();
    signer.write(
        &mut headers,
        &entry.subject,
        &entry.event_id,
        &entry.payload,
    );
    headers
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_source_has_not_signed_is_a_dead_letter_at_once() {
    let (_server, js) = server().await;
    stream::ensure(&js, &stream::COMPUTE, 1).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (signer, public) = make_key(folder.path(), "compute");
    let (stranger, _) = make_key(folder.path(), "stranger");
    let consumer = Consumer::new(js.clone(), SPEC, 1, Metrics::default())
        .with_verifier(verifier(&folder, &public));
    let running = Running::run_consumer(consumer, Recorder::new());

    let (unsigned, foreign, altered, moved) = (created(1), created(2), created(3), created(4));
    let other = created(5);
    for (subject, message) in [
        (&unsigned.subject, message(&unsigned, HeaderMap::new())),
        (
            &foreign.subject,
            message(&foreign, headers(&stranger, &foreign)),
        ),
        (
            &altered.subject,
            message(&created(3), headers(&signer, &altered)),
        ),
        // A signed message, but under another subject of its kind.
        (&other.subject, message(&moved, headers(&signer, &moved))),
    ] {
        let ack = js.send_publish(subject.clone(), message).await.unwrap();
        ack.await.unwrap();
    }
    // And signed by the relay, behind them.
    let service = Service::start_signed(js.clone(), Some(Arc::clone(&signer))).await;
    service.write(&[created(6)]).await;
    running.recorder.saw(1).await;
    let dlq = "compute.container.created.dlq";
    eventually("four dead letters", || async {
        stored(&js, &stream::COMPUTE, dlq).await.len() == 4
    })
    .await;
    assert_eq!(running.recorder.entities(), ["c6"]);
    for letter in stored(&js, &stream::COMPUTE, dlq).await {
        let reason = letter.headers.get("Edd-Dlq-Reason").unwrap().as_str();
        let expected = reason.contains("signature") || reason.contains("subject says id");
        assert!(expected, "{reason}");
        let deliveries = letter.headers.get("Edd-Dlq-Deliveries").unwrap();
        assert_eq!(deliveries.as_str(), "1", "at once");
    }
    running.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_change_without_a_gap() {
    let (_server, js) = server().await;
    let folder = tempfile::tempdir().unwrap();
    let (old, old_public) = make_key(folder.path(), "old");
    let (new, new_public) = make_key(folder.path(), "new");
    let both = format!("{old_public}{new_public}");
    // Consumers first, then the publisher, then the old key goes.
    let mut n = 0;
    for (keys, signer, is_good) in [
        (&old_public, &old, true),
        (&both, &old, true),
        (&both, &new, true),
        (&new_public, &new, true),
        (&new_public, &old, false),
    ] {
        let service = Service::start_signed(js.clone(), Some(Arc::clone(signer))).await;
        n += 1;
        service.write(&[created(n)]).await;
        let consumer = Consumer::new(js.clone(), SPEC, 1, Metrics::default())
            .with_verifier(verifier(&folder, keys));
        let mut running = Running::run_consumer(consumer, Recorder::new());
        if is_good {
            running.recorder.saw(1).await;
        } else {
            let dlq = "compute.container.created.dlq";
            eventually("the dead letter", || async {
                stored(&js, &stream::COMPUTE, dlq).await.len() == 1
            })
            .await;
            assert!(running.recorder.entities().is_empty());
        }
        running.caught_up().await;
        running.stop().await;
        service.stop().await;
    }
}

/// A letter keeps its event's signature, so a replay needs no trust in whoever
/// replays it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_dead_letter_is_verified_by_the_signature_it_kept() {
    let (_server, js) = server().await;
    let folder = tempfile::tempdir().unwrap();
    let (signer, public) = make_key(folder.path(), "compute");
    let service = Service::start_signed(js.clone(), Some(signer)).await;
    let cured = Arc::new(AtomicBool::new(false));
    let recorder = Recorder::answering({
        let cured = Arc::clone(&cured);
        move |_| match cured.load(Ordering::Relaxed) {
            true => Ok(Verdict::Applied),
            false => Ok(Verdict::Reject("not yet".into())),
        }
    });
    let consumer = Consumer::new(js.clone(), SPEC, 1, Metrics::default())
        .with_verifier(verifier(&folder, &public));
    let running = Running::run_consumer(consumer, recorder);
    service.write(&[created(1)]).await;
    let dlq = "compute.container.created.dlq";
    eventually("a dead letter", || async {
        stored(&js, &stream::COMPUTE, dlq).await.len() == 1
    })
    .await;
    cured.store(true, Ordering::Relaxed);
    let letters = Letters::new(js.clone(), Metrics::default());
    let page = letters.list(&Filter::default(), None, 10).await.unwrap();
    letters.replay(&page.letters[0].letter).await.unwrap();
    running.recorder.saw(2).await;
    assert_eq!(running.recorder.entities(), ["c1", "c1"]);
    assert!(stored(&js, &stream::COMPUTE, dlq).await.is_empty());
    running.stop().await;
    service.stop().await;
}

/// Answers requests for snapshots with one of one container, signed or not.
async fn snapshots(bus: &MemoryBus, signer: Option<Arc<Signer>>) -> tokio::task::JoinHandle<()> {
    let mut requests = bus.answer(SNAPSHOT_REQUEST, "compute").await.unwrap();
    let pages = Pages::new(7, vec![created(1)]);
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let asked = SnapshotRequest::decode(request.payload.clone()).unwrap();
            let answer = pages.answer(&asked, signer.as_deref());
            request.respond(answer.into()).await.unwrap();
        }
    })
}

#[tokio::test]
async fn snapshots_are_signed_as_events_are() {
    let folder = tempfile::tempdir().unwrap();
    let (signer, public) = make_key(folder.path(), "compute");
    let (stranger, _) = make_key(folder.path(), "stranger");
    let verifier = verifier(&folder, &public);
    for (signer, is_good) in [(Some(signer), true), (Some(stranger), false), (None, false)] {
        let bus = MemoryBus::new();
        let answering = snapshots(&bus, signer).await;
        let checked = fetch(&bus, verifier.as_deref()).await;
        assert_eq!(checked.is_ok(), is_good, "{checked:?}");
        if let Err(error) = checked {
            assert!(matches!(error, SnapshotError::Signature(_)), "{error}");
        }
        let unchecked = fetch(&bus, None).await.unwrap();
        assert_eq!((unchecked.sequence, unchecked.facts.len()), (7, 1));
        answering.abort();
    }
}
