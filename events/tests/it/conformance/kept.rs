//! What streams keep, and what of it is found again.

use super::*;

pub(super) async fn messages_say_where_they_stand<W: World>(world: W) {
    let bus = world.bus();
    bus.ensure(&STREAM, 1).await.unwrap();
    for sequence in 1..=3 {
        let stored = put(bus, "things.thing.a.made").await;
        let expected = Stored {
            sequence,
            duplicate: false,
        };
        assert_eq!(stored, expected);
    }
    let state = bus.stream_state(STREAM.name).await.unwrap().unwrap();
    assert_eq!((state.first_sequence, state.last_sequence), (1, 3));
    assert_eq!(bus.stream_state("NO_SUCH").await.unwrap(), None);
    let binding = binding(bus, &SPEC).await;
    assert_eq!(binding.stream, state);
    assert_eq!((state.last_sequence, binding.consumer.pending), (3, 3));
    let mut from = binding.subscription;
    for n in 1..=3 {
        let message = take::<W::Bus>(&mut from).await;
        let info = message.info().unwrap();
        assert_eq!((info.stream, info.stream_sequence), ("THINGS", n));
        assert_eq!((info.delivered, info.pending), (1, 3 - n));
        let age = info.published.elapsed().unwrap_or_default();
        assert!(age < DEADLINE, "{age:?}");
        assert_eq!(message.payload.as_ref(), b"things.thing.a.made");
    }
}

pub(super) async fn an_id_is_stored_once<W: World>(world: W) {
    let bus = world.bus();
    bus.ensure(&STREAM, 1).await.unwrap();
    let mut stored = Vec::new();
    for id in ["one", "two", "one"] {
        let sent = bus.publish("things.thing.a.made", with_id(id), "x".into());
        let Stored {
            sequence,
            duplicate,
        } = sent.await.unwrap().await.unwrap();
        stored.push((sequence, duplicate));
    }
    assert_eq!(stored, [(1, false), (2, false), (1, true)]);
}

pub(super) async fn without_a_stream_nothing_is_stored<W: World>(world: W) {
    let bus = world.bus();
    bus.ensure(&STREAM, 1).await.unwrap();
    let sent = bus.publish("others.thing.a.made", HeaderMap::new(), "x".into());
    let error = timeout(DEADLINE, sent.await.unwrap()).await.unwrap();
    assert_eq!(error.unwrap_err().kind(), PublishErrorKind::StreamNotFound);
}

pub(super) async fn what_is_too_large_is_refused<W: World>(world: W) {
    let bus = world.bus();
    bus.ensure(&STREAM, 1).await.unwrap();
    let sent = bus.publish(
        "things.thing.a.made",
        HeaderMap::new(),
        vec![0; 1024 * 1024 + 1].into(),
    );
    let refused = sent.await.unwrap_err();
    assert_eq!(refused.kind(), PublishErrorKind::MaxPayloadExceeded);
    let sent = bus.publish(
        "things.thing.a.made",
        HeaderMap::new(),
        vec![0; 1024 * 1024].into(),
    );
    assert_eq!(sent.await.unwrap().await.unwrap().sequence, 1);
}

pub(super) async fn streams_do_not_overlap_and_grow_by_subjects<W: World>(world: W) {
    let bus = world.bus();
    bus.ensure(&STREAM, 1).await.unwrap();
    let other = StreamSpec {
        name: "OTHER",
        subjects: &["things.>"],
    };
    assert!(bus.ensure(&other, 1).await.is_err());
    let more = StreamSpec {
        name: STREAM.name,
        subjects: &["things.thing.>", "things.more.>"],
    };
    bus.ensure(&more, 1).await.unwrap();
    assert_eq!(put(bus, "things.more.a.made").await.sequence, 1);
}

pub(super) async fn single_messages_are_found_counted_and_removed<W: World>(world: W) {
    let bus = world.bus();
    assert!(bus.find(STREAM.name, ">", 1).await.unwrap().is_none());
    assert!(bus.get(STREAM.name, 1).await.unwrap().is_none());
    assert_eq!(bus.count(STREAM.name, ">").await.unwrap(), None);
    bus.ensure(&STREAM, 1).await.unwrap();
    put(bus, "things.thing.a.made").await;
    let sent = bus.publish("things.thing.made.dlq", with_id("d1"), "x".into());
    sent.await.unwrap().await.unwrap();
    put(bus, "things.thing.b.made").await;
    put(bus, "things.thing.made.dlq").await;
    let dlq = "*.*.*.dlq";
    assert_eq!(bus.count(STREAM.name, dlq).await.unwrap(), Some(2));
    let found = bus.find(STREAM.name, dlq, 1).await.unwrap().unwrap();
    assert_eq!((found.sequence, found.payload.as_ref()), (2, b"x".as_ref()));
    assert_eq!(found.subject.as_str(), "things.thing.made.dlq");
    let id = found.headers.get(async_nats::header::NATS_MESSAGE_ID);
    assert_eq!(id.unwrap().as_str(), "d1");
    assert!(found.published.elapsed().unwrap_or_default() < DEADLINE);
    let next = bus.find(STREAM.name, dlq, 3).await.unwrap().unwrap();
    assert_eq!(next.sequence, 4);
    assert!(bus.find(STREAM.name, dlq, 5).await.unwrap().is_none());
    bus.remove(STREAM.name, 2).await.unwrap();
    bus.remove(STREAM.name, 2).await.unwrap();
    assert!(bus.get(STREAM.name, 2).await.unwrap().is_none());
    let one = bus.get(STREAM.name, 1).await.unwrap().unwrap();
    assert_eq!(one.subject.as_str(), "things.thing.a.made");
    assert_eq!(bus.count(STREAM.name, dlq).await.unwrap(), Some(1));
    let mut from = bound(bus, &SPEC).await;
    for n in [1, 3, 4] {
        assert_eq!(sequence(&take::<W::Bus>(&mut from).await), n);
    }
}

pub(super) async fn a_store_that_is_gone_begins_again<W: World>(world: W) {
    let bus = world.bus();
    bus.ensure(&STREAM, 1).await.unwrap();
    let mut from = bound(bus, &SPEC).await;
    put_many(bus, 2).await;
    for _ in 0..2 {
        take::<W::Bus>(&mut from).await;
    }
    let before = bus.stream_state(STREAM.name).await.unwrap().unwrap();
    world.wipe().await;
    let lost = timeout(DEADLINE, from.next()).await.expect("word of it");
    assert!(lost.is_err());
    assert_eq!(bus.stream_state(STREAM.name).await.unwrap(), None);
    let binding = binding(bus, &SPEC).await;
    assert_eq!(binding.stream.last_sequence, 0);
    assert!(binding.stream.created > before.created, "another stream");
    assert_eq!(put(bus, "things.thing.a.made").await.sequence, 1);
    let mut from = binding.subscription;
    assert_eq!(deliveries(&take::<W::Bus>(&mut from).await), 1);
}
