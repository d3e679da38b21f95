//! What a bus does, the same tests against a real nats-server and the memory.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{AckKind, context::PublishErrorKind},
};
use edd_events::{
    bus::{
        AnyBus, Binding, Bus, Durable, MemoryBus, Message, NatsBus, Requests as _, Stored,
        Subscription as _,
    },
    consumer::ConsumerSpec,
    request::RequestError,
    stream::StreamSpec,
    testing::NatsServer,
};
use tokio::time::{Instant, timeout};

/// Nothing here takes longer.
const DEADLINE: Duration = Duration::from_secs(20);
/// Long enough for what is on its way to arrive.
const QUIET: Duration = Duration::from_millis(150);
const ACK_WAIT: Duration = Duration::from_millis(900);
const DELIVERIES_MAX: u64 = 3;

const STREAM: StreamSpec = StreamSpec {
    name: "THINGS",
    subjects: &["things.thing.>"],
};
const SPEC: ConsumerSpec = ConsumerSpec {
    stream: STREAM,
    durable: "reader",
    filter: "things.>",
    batch_max: 16,
};
const ADVISORIES: StreamSpec = StreamSpec {
    name: "GIVEN_UP",
    subjects: &["$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>"],
};

/// A bus with what tests do to it from outside.
trait World: Sized {
    type Bus: Bus;

    async fn start() -> Self;

    /// The first connection, always the same.
    fn bus(&self) -> &Self::Bus;

    /// Another connection.
    async fn connection(&self) -> Self::Bus;

    async fn cut(&mut self);

    async fn mend(&mut self);

    /// The stream is gone with its consumers.
    async fn wipe(&self);
}

struct OnNats {
    server: NatsServer,
    bus: NatsBus,
}

impl World for OnNats {
    type Bus = NatsBus;

    async fn start() -> Self {
        let server = NatsServer::start().await;
        let bus = NatsBus::new(server.jetstream().await);
        Self { server, bus }
    }

    fn bus(&self) -> &NatsBus {
        &self.bus
    }

    async fn connection(&self) -> NatsBus {
        NatsBus::new(self.server.jetstream().await)
    }

    async fn cut(&mut self) {
        self.server.stop();
    }

    async fn mend(&mut self) {
        self.server.resume().await;
        let bus = &self.bus;
        soon(|| async { bus.is_connected() }).await;
    }

    async fn wipe(&self) {
        let js = self.bus.jetstream();
        js.delete_stream(STREAM.name).await.unwrap();
    }
}

struct InMemory(MemoryBus);

impl World for InMemory {
    type Bus = MemoryBus;

    async fn start() -> Self {
        Self(MemoryBus::new())
    }

    fn bus(&self) -> &MemoryBus {
        &self.0
    }

    async fn connection(&self) -> MemoryBus {
        self.0.connection()
    }

    async fn cut(&mut self) {
        self.0.disconnect();
    }

    async fn mend(&mut self) {
        self.0.reconnect();
    }

    async fn wipe(&self) {
        self.0.wipe();
    }
}

async fn soon<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn put(bus: &impl Bus, subject: &str) -> Stored {
    let sent = bus.publish(subject, HeaderMap::new(), subject.to_owned().into());
    timeout(DEADLINE, sent.await.unwrap())
        .await
        .expect("the stream's word")
        .unwrap()
}

async fn put_many(bus: &impl Bus, count: usize) {
    for n in 0..count {
        put(bus, &format!("things.thing.{n}.made")).await;
    }
}

/// A message id, for the header.
fn with_id(id: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
    headers
}

async fn take<B: Bus>(from: &mut B::Subscription) -> Message {
    timeout(DEADLINE, from.next())
        .await
        .expect("a message in time")
        .expect("a subscription that stands")
}

async fn nothing_for<B: Bus>(from: &mut B::Subscription, quiet: Duration) {
    if let Ok(got) = timeout(quiet, from.next()).await {
        panic!("{:?}", got.map(|message| message.subject.clone()));
    }
}

fn sequence(message: &Message) -> u64 {
    message.info().unwrap().stream_sequence
}

fn deliveries(message: &Message) -> u64 {
    message.info().unwrap().delivered
}

async fn bound<B: Bus>(bus: &B, spec: &ConsumerSpec) -> B::Subscription {
    binding(bus, spec).await.subscription
}

async fn binding<B: Bus>(bus: &B, spec: &ConsumerSpec) -> Binding<B::Subscription> {
    bus.bind(&Durable::from(spec), 1).await.unwrap()
}

/// The consumer of [`SPEC`] with limits that tests can wait for.
async fn create(bus: &impl Bus, ack_pending_max: i64) {
    let durable = Durable {
        ack_wait: ACK_WAIT,
        deliveries_max: Some(DELIVERIES_MAX),
        ack_pending_max,
        ..Durable::from(&SPEC)
    };
    bus.bind(&durable, 1).await.unwrap();
}

async fn restart(bus: &impl Bus, from: u64) {
    bus.restart_consumer(&Durable::from(&SPEC), from)
        .await
        .unwrap();
}

async fn messages_say_where_they_stand<W: World>(world: W) {
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

async fn an_id_is_stored_once<W: World>(world: W) {
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

async fn without_a_stream_nothing_is_stored<W: World>(world: W) {
    let bus = world.bus();
    bus.ensure(&STREAM, 1).await.unwrap();
    let sent = bus.publish("others.thing.a.made", HeaderMap::new(), "x".into());
    let error = timeout(DEADLINE, sent.await.unwrap()).await.unwrap();
    assert_eq!(error.unwrap_err().kind(), PublishErrorKind::StreamNotFound);
}

async fn what_is_too_large_is_refused<W: World>(world: W) {
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

async fn filters_choose_by_wildcards<W: World>(world: W) {
    let bus = world.bus();
    bus.ensure(&STREAM, 1).await.unwrap();
    for subject in ["a.made", "a.broken", "b.made", "b.made.dlq"] {
        put(bus, &format!("things.thing.{subject}")).await;
    }
    for (durable, filter, expected) in [
        ("all", "things.>", vec![1, 2, 3, 4]),
        ("made", "things.thing.*.made", vec![1, 3]),
        ("one", "things.thing.a.broken", vec![2]),
        ("below", "things.thing.b.>", vec![3, 4]),
    ] {
        let spec = ConsumerSpec {
            durable,
            filter,
            ..SPEC
        };
        let mut from = bound(bus, &spec).await;
        for sequence_wanted in expected {
            let message = take::<W::Bus>(&mut from).await;
            assert_eq!(sequence(&message), sequence_wanted, "{filter}");
        }
        nothing_for::<W::Bus>(&mut from, QUIET).await;
    }
}

async fn those_of_one_name_share_the_messages<W: World>(world: W) {
    let (bus, other) = (world.bus().clone(), world.connection().await);
    let spec = ConsumerSpec {
        batch_max: 2,
        ..SPEC
    };
    let mut one = bound(&bus, &spec).await;
    let mut two = bound(&other, &spec).await;
    put_many(&bus, 20).await;
    let mut seen = Vec::new();
    while seen.len() < 20 {
        let message = tokio::select! {
            message = one.next() => message.unwrap(),
            message = two.next() => message.unwrap(),
            () = tokio::time::sleep(DEADLINE) => panic!("{seen:?}"),
        };
        message.ack_with(AckKind::Ack).await.unwrap();
        seen.push(sequence(&message));
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=20).collect::<Vec<_>>());
    nothing_for::<W::Bus>(&mut one, QUIET).await;
    nothing_for::<W::Bus>(&mut two, QUIET).await;
}

async fn those_of_different_names_get_all<W: World>(world: W) {
    let bus = world.bus();
    bus.ensure(&STREAM, 1).await.unwrap();
    put_many(bus, 3).await;
    for durable in ["one", "two"] {
        let mut from = bound(bus, &ConsumerSpec { durable, ..SPEC }).await;
        for n in 1..=3 {
            assert_eq!(sequence(&take::<W::Bus>(&mut from).await), n);
        }
    }
}

async fn acknowledgements_move_the_floor<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), 100).await;
    put_many(bus, 4).await;
    let mut from = bound(bus, &SPEC).await;
    let mut messages = Vec::new();
    for _ in 0..4 {
        messages.push(take::<W::Bus>(&mut from).await);
    }
    let floor = async || {
        let state = bus.consumer_state(STREAM.name, SPEC.durable).await.unwrap();
        let state = state.unwrap();
        (state.ack_floor, state.ack_pending, state.delivered)
    };
    soon(|| async { floor().await == (0, 4, 4) }).await;
    messages[0].ack_with(AckKind::Ack).await.unwrap();
    messages[2].ack_with(AckKind::Ack).await.unwrap();
    soon(|| async { floor().await == (1, 2, 4) }).await;
    messages[1].ack_with(AckKind::Ack).await.unwrap();
    soon(|| async { floor().await == (3, 1, 4) }).await;
    let none = bus.consumer_state(STREAM.name, "nobody").await.unwrap();
    assert_eq!(none, None);
    let none = bus.consumer_state("NO_SUCH", SPEC.durable).await.unwrap();
    assert_eq!(none, None);
    assert_eq!(from.state().await.unwrap().ack_floor, 3);
}

async fn what_is_not_acknowledged_comes_again<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), 100).await;
    put_many(bus, 2).await;
    let mut from = bound(bus, &SPEC).await;
    let started = Instant::now();
    let first = take::<W::Bus>(&mut from).await;
    take::<W::Bus>(&mut from)
        .await
        .ack_with(AckKind::Ack)
        .await
        .unwrap();
    let again = take::<W::Bus>(&mut from).await;
    assert_eq!((sequence(&again), deliveries(&again)), (1, 2));
    let took = started.elapsed();
    assert!(took > ACK_WAIT * 3 / 4, "{took:?}");
    // Late, for the delivery before: it counts.
    first.ack_with(AckKind::Ack).await.unwrap();
    nothing_for::<W::Bus>(&mut from, ACK_WAIT * 2).await;
}

async fn progress_keeps_a_message<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), 100).await;
    put_many(bus, 1).await;
    let mut from = bound(bus, &SPEC).await;
    let message = take::<W::Bus>(&mut from).await;
    for _ in 0..9 {
        nothing_for::<W::Bus>(&mut from, ACK_WAIT / 3).await;
        message.ack_with(AckKind::Progress).await.unwrap();
    }
    let again = take::<W::Bus>(&mut from).await;
    assert_eq!(deliveries(&again), 2);
}

async fn a_nak_brings_it_back_when_told<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), 100).await;
    put_many(bus, 1).await;
    let mut from = bound(bus, &SPEC).await;
    let message = take::<W::Bus>(&mut from).await;
    message.ack_with(AckKind::Nak(None)).await.unwrap();
    let started = Instant::now();
    let message = take::<W::Bus>(&mut from).await;
    assert_eq!(deliveries(&message), 2);
    assert!(started.elapsed() < ACK_WAIT * 2 / 3);
    let delay = ACK_WAIT * 2;
    let started = Instant::now();
    message.ack_with(AckKind::Nak(Some(delay))).await.unwrap();
    let message = take::<W::Bus>(&mut from).await;
    assert_eq!(deliveries(&message), 3);
    let took = started.elapsed();
    assert!(took > delay * 3 / 4, "{took:?}");
}

async fn a_terminated_message_never_comes_again<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), 100).await;
    put_many(bus, 1).await;
    let mut from = bound(bus, &SPEC).await;
    let message = take::<W::Bus>(&mut from).await;
    message.ack_with(AckKind::Term).await.unwrap();
    nothing_for::<W::Bus>(&mut from, ACK_WAIT * 2).await;
    assert_eq!(from.state().await.unwrap().ack_pending, 0);
}

async fn after_the_last_delivery_an_advisory_says_so<W: World>(world: W) {
    let bus = world.bus();
    bus.ensure(&ADVISORIES, 1).await.unwrap();
    create(world.bus(), 100).await;
    put_many(bus, 1).await;
    let mut from = bound(bus, &SPEC).await;
    for n in 1..=DELIVERIES_MAX {
        assert_eq!(deliveries(&take::<W::Bus>(&mut from).await), n);
    }
    nothing_for::<W::Bus>(&mut from, ACK_WAIT * 2).await;
    let spec = ConsumerSpec {
        stream: ADVISORIES,
        durable: "advisories",
        filter: "$JS.>",
        batch_max: 16,
    };
    let mut advisories = bound(bus, &spec).await;
    let advisory = take::<W::Bus>(&mut advisories).await;
    assert_eq!(
        advisory.subject.as_str(),
        "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.THINGS.reader"
    );
    let said: serde_json::Value = serde_json::from_slice(&advisory.payload).unwrap();
    assert_eq!(
        (&said["stream_seq"], &said["stream"]),
        (&1.into(), &"THINGS".into())
    );
    assert_eq!(said["deliveries"], DELIVERIES_MAX);
}

async fn no_more_than_so_many_wait_for_their_acknowledgement<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), 2).await;
    put_many(bus, 4).await;
    let mut from = bound(bus, &SPEC).await;
    let first = take::<W::Bus>(&mut from).await;
    take::<W::Bus>(&mut from).await;
    nothing_for::<W::Bus>(&mut from, QUIET).await;
    first.ack_with(AckKind::Ack).await.unwrap();
    assert_eq!(sequence(&take::<W::Bus>(&mut from).await), 3);
    nothing_for::<W::Bus>(&mut from, QUIET).await;
}

async fn what_comes_again_goes_before_new_ones<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), 100).await;
    put_many(bus, 1).await;
    let spec = ConsumerSpec {
        batch_max: 1,
        ..SPEC
    };
    let mut from = bound(bus, &spec).await;
    let message = take::<W::Bus>(&mut from).await;
    drop(from);
    message.ack_with(AckKind::Nak(None)).await.unwrap();
    put_many(bus, 2).await;
    let mut from = bound(bus, &spec).await;
    let mut order = Vec::new();
    for _ in 0..3 {
        let message = take::<W::Bus>(&mut from).await;
        message.ack_with(AckKind::Ack).await.unwrap();
        order.push((sequence(&message), deliveries(&message)));
    }
    assert_eq!(order, [(1, 2), (2, 1), (3, 1)]);
}

async fn a_position_outlives_its_subscription<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), 100).await;
    put_many(bus, 3).await;
    let mut from = bound(bus, &SPEC).await;
    let message = take::<W::Bus>(&mut from).await;
    message.ack_with(AckKind::Ack).await.unwrap();
    // Those that were sent and not looked at go with it.
    drop(from);
    soon(|| async {
        let state = bus.consumer_state(STREAM.name, SPEC.durable).await.unwrap();
        state.unwrap().ack_floor == 1
    })
    .await;
    let binding = binding(bus, &SPEC).await;
    assert_eq!(binding.consumer.pending, 0);
    assert_eq!(binding.consumer.ack_pending, 2);
    assert_eq!(binding.ack_wait, ACK_WAIT);
    let mut from = binding.subscription;
    for n in [2, 3] {
        let message = take::<W::Bus>(&mut from).await;
        assert_eq!((sequence(&message), deliveries(&message)), (n, 2));
    }
}

async fn a_consumer_made_anew_begins_where_told<W: World>(world: W) {
    let bus = world.bus();
    bus.ensure(&STREAM, 1).await.unwrap();
    put_many(bus, 4).await;
    let mut from = bound(bus, &SPEC).await;
    for _ in 0..4 {
        let message = take::<W::Bus>(&mut from).await;
        message.ack_with(AckKind::Ack).await.unwrap();
    }
    restart(bus, 3).await;
    let lost = timeout(DEADLINE, from.next()).await.expect("word of it");
    assert!(lost.is_err());
    let mut from = bound(bus, &SPEC).await;
    for n in [3, 4] {
        let message = take::<W::Bus>(&mut from).await;
        assert_eq!((sequence(&message), deliveries(&message)), (n, 1));
    }
    nothing_for::<W::Bus>(&mut from, QUIET).await;
    restart(bus, 1).await;
    let mut from = bound(bus, &SPEC).await;
    assert_eq!(sequence(&take::<W::Bus>(&mut from).await), 1);
}

/// A pull request waits at the server: what is given back must not answer it.
async fn what_the_leaving_give_back_goes_to_others<W: World>(world: W) {
    let bus = world.bus();
    create(bus, 100).await;
    put_many(bus, 8).await;
    let mut leaving = bound(bus, &SPEC).await;
    let mut staying = bound(bus, &SPEC).await;
    let mut back = vec![take::<W::Bus>(&mut leaving).await];
    back.extend(leaving.end().await);
    for message in &back {
        message.ack_with(AckKind::Nak(None)).await.unwrap();
    }
    let begun = Instant::now();
    let mut sequences = Vec::new();
    for _ in 0..8 {
        sequences.push(sequence(&take::<W::Bus>(&mut staying).await));
    }
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=8).collect::<Vec<_>>());
    assert!(begun.elapsed() < ACK_WAIT * 2 / 3, "{:?}", begun.elapsed());
    assert!(!matches!(leaving.try_next(), Ok(Some(_))));
}

async fn try_next_takes_what_is_here<W: World>(world: W) {
    let bus = world.bus();
    bus.ensure(&STREAM, 1).await.unwrap();
    let mut from = bound(bus, &SPEC).await;
    assert!(from.try_next().unwrap().is_none(), "nothing was asked for");
    put_many(bus, 3).await;
    assert_eq!(sequence(&take::<W::Bus>(&mut from).await), 1);
    let mut rest = Vec::new();
    let deadline = Instant::now() + DEADLINE;
    while rest.len() < 2 {
        match from.try_next().unwrap() {
            Some(message) => rest.push(sequence(&message)),
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        assert!(Instant::now() < deadline);
    }
    assert_eq!(rest, [2, 3]);
    assert!(from.try_next().unwrap().is_none());
}

async fn streams_do_not_overlap_and_grow_by_subjects<W: World>(world: W) {
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

async fn single_messages_are_found_counted_and_removed<W: World>(world: W) {
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

async fn requests_are_answered_once<W: World>(world: W) {
    let bus = world.bus();
    let asked = bus
        .request("things.ask.request", "x".into(), DEADLINE)
        .await;
    assert!(
        matches!(asked, Err(RequestError::NoResponders)),
        "{asked:?}"
    );
    // Two of one group.
    let mut answering = Vec::new();
    for _ in 0..2 {
        let other = world.connection().await;
        let mut requests = other.answer("things.ask.request", "group").await.unwrap();
        other.flush().await;
        answering.push(tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                let mut answer = request.payload.to_vec();
                answer.push(b'!');
                request.respond(answer.into()).await.unwrap();
            }
        }));
    }
    // On another connection the server may hear of it later.
    soon(|| async {
        bus.request("things.ask.request", "".into(), DEADLINE)
            .await
            .is_ok()
    })
    .await;
    for n in 0..20 {
        let payload = format!("{n}");
        let answer = bus.request("things.ask.request", payload.into(), DEADLINE);
        assert_eq!(answer.await.unwrap(), format!("{n}!"));
    }
    for task in answering {
        task.abort();
    }
}

async fn a_streams_word_is_no_answer<W: World>(world: W) {
    let bus = world.bus();
    let wide = StreamSpec {
        name: "WIDE",
        subjects: &["wide.>"],
    };
    bus.ensure(&wide, 1).await.unwrap();
    let within = Duration::from_millis(300);
    let asked = bus.request("wide.ask.request", "x".into(), within).await;
    assert!(matches!(asked, Err(RequestError::TimedOut)), "{asked:?}");
    let mut requests = bus.answer("wide.ask.request", "group").await.unwrap();
    let answering = tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            request.respond("yes".into()).await.unwrap();
        }
    });
    let answer = bus.request("wide.ask.request", "x".into(), DEADLINE).await;
    assert_eq!(answer.unwrap(), "yes");
    // Stored, as with any wide stream.
    let state = bus.stream_state(wide.name).await.unwrap().unwrap();
    assert_eq!(state.last_sequence, 2);
    answering.abort();
}

async fn an_answer_too_late_is_none<W: World>(world: W) {
    let bus = world.bus();
    let _requests = bus.answer("things.ask.request", "group").await.unwrap();
    let within = Duration::from_millis(300);
    let started = Instant::now();
    let asked = bus.request("things.ask.request", "x".into(), within).await;
    assert!(matches!(asked, Err(RequestError::TimedOut)), "{asked:?}");
    assert!(started.elapsed() >= within);
}

async fn a_cut_connection_is_noticed_and_nothing_is_lost<W: World>(mut world: W) {
    let bus = world.bus().clone();
    create(world.bus(), 100).await;
    let mut from = bound(&bus, &SPEC).await;
    put(&bus, "things.thing.a.made").await;
    let message = take::<W::Bus>(&mut from).await;
    message.ack_with(AckKind::Ack).await.unwrap();
    put(&bus, "things.thing.b.made").await;
    soon(|| async {
        let state = bus.consumer_state(STREAM.name, SPEC.durable).await.unwrap();
        state.unwrap().ack_floor == 1
    })
    .await;
    let connects = bus.connects();
    assert!(bus.is_connected());
    assert!(timeout(QUIET, bus.lost(connects)).await.is_err());
    world.cut().await;
    timeout(DEADLINE, bus.lost(connects)).await.expect("lost");
    assert!(!bus.is_connected());
    let asked = bus.request("things.ask.request", "x".into(), QUIET).await;
    assert!(asked.is_err());
    world.mend().await;
    assert!(bus.connects() > connects);
    let lost = async {
        // What had arrived before the cut may still come.
        while from.next().await.is_ok() {}
    };
    timeout(DEADLINE, lost).await.expect("told to bind again");
    let mut from = bound(&bus, &SPEC).await;
    put(&bus, "things.thing.c.made").await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let message = take::<W::Bus>(&mut from).await;
        message.ack_with(AckKind::Ack).await.unwrap();
        if !seen.contains(&sequence(&message)) {
            seen.push(sequence(&message));
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [2, 3]);
}

async fn a_store_that_is_gone_begins_again<W: World>(world: W) {
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

async fn either_bus_behind_one_type<W: World>(world: W)
where
    AnyBus: From<W::Bus>,
{
    let bus = AnyBus::from(world.bus().clone());
    bus.ensure(&STREAM, 1).await.unwrap();
    put(&bus, "things.thing.a.made").await;
    let mut from = bound(&bus, &SPEC).await;
    let message = take::<AnyBus>(&mut from).await;
    message.ack_with(AckKind::Ack).await.unwrap();
    soon(|| async {
        let state = bus.consumer_state(STREAM.name, SPEC.durable).await.unwrap();
        state.unwrap().ack_floor == 1
    })
    .await;
}

macro_rules! both {
    ($($test:ident,)*) => {
        mod nats {
            use super::{OnNats, World as _};

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(OnNats::start().await).await;
            })*
        }

        /// On a clock that stands still while anybody works.
        mod memory {
            use super::{InMemory, World as _};

            $(#[tokio::test(start_paused = true)]
            async fn $test() {
                super::$test(InMemory::start().await).await;
            })*
        }
    };
}

both! {
    a_consumer_made_anew_begins_where_told,
    a_cut_connection_is_noticed_and_nothing_is_lost,
    a_nak_brings_it_back_when_told,
    a_position_outlives_its_subscription,
    a_store_that_is_gone_begins_again,
    a_streams_word_is_no_answer,
    a_terminated_message_never_comes_again,
    acknowledgements_move_the_floor,
    after_the_last_delivery_an_advisory_says_so,
    an_answer_too_late_is_none,
    an_id_is_stored_once,
    either_bus_behind_one_type,
    filters_choose_by_wildcards,
    messages_say_where_they_stand,
    no_more_than_so_many_wait_for_their_acknowledgement,
    progress_keeps_a_message,
    requests_are_answered_once,
    single_messages_are_found_counted_and_removed,
    streams_do_not_overlap_and_grow_by_subjects,
    those_of_different_names_get_all,
    those_of_one_name_share_the_messages,
    try_next_takes_what_is_here,
    what_comes_again_goes_before_new_ones,
    what_is_not_acknowledged_comes_again,
    what_is_too_large_is_refused,
    what_the_leaving_give_back_goes_to_others,
    without_a_stream_nothing_is_stored,
}
