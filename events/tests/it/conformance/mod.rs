//! What a bus does, the same tests against a real nats-server and the memory.

mod asked;
mod delivered;
mod kept;

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

use asked::*;
use delivered::*;
use kept::*;

/// Nothing here takes longer.
const DEADLINE: Duration = Duration::from_secs(60);
/// Long enough for what is on its way to arrive.
const QUIET: Duration = Duration::from_millis(150);
/// For tests that are about it: what they do in between takes less, also on a busy machine.
const ACK_WAIT: Duration = Duration::from_millis(900);
/// For all others: within [`DEADLINE`] nothing comes again by itself.
const LONG: Duration = Duration::from_secs(180);
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
async fn create(bus: &impl Bus, ack_wait: Duration, ack_pending_max: i64) {
    let durable = Durable {
        ack_wait,
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
    a_nak_brings_it_back_at_once,
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
