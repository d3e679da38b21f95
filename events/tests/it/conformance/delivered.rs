//! Who is delivered what, and when again.

use std::collections::BTreeSet;

use super::*;

pub(super) async fn filters_choose_by_wildcards<W: World>(world: W) {
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

pub(super) async fn those_of_one_name_share_the_messages<W: World>(world: W) {
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

pub(super) async fn those_of_different_names_get_all<W: World>(world: W) {
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

pub(super) async fn acknowledgements_move_the_floor<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), LONG, 100).await;
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

pub(super) async fn what_is_not_acknowledged_comes_again<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), ACK_WAIT, 100).await;
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

pub(super) async fn progress_keeps_a_message<W: World>(world: W) {
    // A machine that stands still for so long is no reason to send it again.
    const WAIT: Duration = Duration::from_secs(2);
    let bus = world.bus();
    create(world.bus(), WAIT, 100).await;
    put_many(bus, 1).await;
    let mut from = bound(bus, &SPEC).await;
    let message = take::<W::Bus>(&mut from).await;
    for _ in 0..20 {
        nothing_for::<W::Bus>(&mut from, QUIET).await;
        message.ack_with(AckKind::Progress).await.unwrap();
    }
    let again = take::<W::Bus>(&mut from).await;
    assert_eq!(deliveries(&again), 2);
}

pub(super) async fn a_nak_brings_it_back_at_once<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), LONG, 100).await;
    put_many(bus, 1).await;
    let mut from = bound(bus, &SPEC).await;
    let message = take::<W::Bus>(&mut from).await;
    message.ack_with(AckKind::Nak(None)).await.unwrap();
    let message = take::<W::Bus>(&mut from).await;
    assert_eq!(deliveries(&message), 2);
}

pub(super) async fn a_nak_brings_it_back_when_told<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), ACK_WAIT, 100).await;
    put_many(bus, 1).await;
    let mut from = bound(bus, &SPEC).await;
    let message = take::<W::Bus>(&mut from).await;
    let delay = ACK_WAIT * 2;
    let started = Instant::now();
    message.ack_with(AckKind::Nak(Some(delay))).await.unwrap();
    let message = take::<W::Bus>(&mut from).await;
    assert_eq!(deliveries(&message), 2);
    let took = started.elapsed();
    assert!(took > delay * 3 / 4, "{took:?}");
}

pub(super) async fn a_terminated_message_never_comes_again<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), ACK_WAIT, 100).await;
    put_many(bus, 1).await;
    let mut from = bound(bus, &SPEC).await;
    let message = take::<W::Bus>(&mut from).await;
    message.ack_with(AckKind::Term).await.unwrap();
    nothing_for::<W::Bus>(&mut from, ACK_WAIT * 2).await;
    assert_eq!(from.state().await.unwrap().ack_pending, 0);
}

pub(super) async fn after_the_last_delivery_an_advisory_says_so<W: World>(world: W) {
    let bus = world.bus();
    bus.ensure(&ADVISORIES, 1).await.unwrap();
    create(world.bus(), ACK_WAIT, 100).await;
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

pub(super) async fn no_more_than_so_many_wait_for_their_acknowledgement<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), LONG, 2).await;
    put_many(bus, 4).await;
    let mut from = bound(bus, &SPEC).await;
    let first = take::<W::Bus>(&mut from).await;
    take::<W::Bus>(&mut from).await;
    nothing_for::<W::Bus>(&mut from, QUIET).await;
    first.ack_with(AckKind::Ack).await.unwrap();
    assert_eq!(sequence(&take::<W::Bus>(&mut from).await), 3);
    nothing_for::<W::Bus>(&mut from, QUIET).await;
}

pub(super) async fn what_comes_again_goes_before_new_ones<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), LONG, 100).await;
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

pub(super) async fn a_position_outlives_its_subscription<W: World>(world: W) {
    let bus = world.bus();
    create(world.bus(), ACK_WAIT, 100).await;
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

pub(super) async fn a_consumer_made_anew_begins_where_told<W: World>(world: W) {
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

/// A pull request waits at the server: what is given back must not answer it, nor be lost on it
/// while whoever stays has not asked yet.
pub(super) async fn what_the_leaving_give_back_goes_to_others<W: World>(world: W) {
    let bus = world.bus();
    create(bus, LONG, 100).await;
    put_many(bus, 8).await;
    let mut leaving = bound(bus, &SPEC).await;
    let mut staying = bound(bus, &SPEC).await;
    let mut back = vec![take::<W::Bus>(&mut leaving).await];
    back.extend(leaving.end().await);
    for message in &back {
        message.ack_with(AckKind::Nak(None)).await.unwrap();
    }
    let mut given = Vec::new();
    while given.len() < 8 {
        given.push(sequence(&take::<W::Bus>(&mut staying).await));
    }
    given.sort_unstable();
    assert_eq!(given, (1..=8).collect::<Vec<_>>());
    assert!(!matches!(leaving.try_next(), Ok(Some(_))));
}

pub(super) async fn try_next_takes_what_is_here<W: World>(world: W) {
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

pub(super) async fn a_cut_connection_is_noticed_and_nothing_is_lost<W: World>(mut world: W) {
    let bus = world.bus().clone();
    create(world.bus(), ACK_WAIT, 100).await;
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
    // A server that is killed may have forgotten the last acknowledgements.
    let mut missing = BTreeSet::from([2, 3]);
    while !missing.is_empty() {
        let message = take::<W::Bus>(&mut from).await;
        message.ack_with(AckKind::Ack).await.unwrap();
        missing.remove(&sequence(&message));
    }
}

pub(super) async fn either_bus_behind_one_type<W: World>(world: W)
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
