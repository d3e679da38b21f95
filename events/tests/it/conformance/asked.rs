//! Requests and their answers.

use super::*;

pub(super) async fn requests_are_answered_once<W: World>(world: W) {
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

pub(super) async fn a_streams_word_is_no_answer<W: World>(world: W) {
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

pub(super) async fn an_answer_too_late_is_none<W: World>(world: W) {
    let bus = world.bus();
    let _requests = bus.answer("things.ask.request", "group").await.unwrap();
    let within = Duration::from_millis(300);
    let started = Instant::now();
    let asked = bus.request("things.ask.request", "x".into(), within).await;
    assert!(matches!(asked, Err(RequestError::TimedOut)), "{asked:?}");
    assert!(started.elapsed() >= within);
}
