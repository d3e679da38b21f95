//! The exchange pump, on a [`stage`].

#[path = "run_stage.rs"]
mod stage;

use edd_route::Fact;
use stage::{Coming, KEPT_MAX, Stage, is_about, secs};

use super::*;

fn is_complete(end: &End) -> bool {
    matches!(end, End::Complete { reusable: true, .. })
}

#[tokio::test(start_paused = true)]
async fn an_exchange_is_complete_when_both_directions_are() {
    let stage = Stage::new(RequestBody::Open, vec![]);
    stage
        .play(async |play| {
            play.client.comes(Coming::Data(5));
            play.answers(200, AnswerBody::Open);
            play.server.comes(Coming::Data(3));
            play.server.comes(Coming::End);
            play.lasts(secs(1)).await;
            play.client.comes(Coming::End);
            assert!(is_complete(&play.go().await.unwrap()));
            assert_eq!((play.server.taken, play.client.taken), (5, 3));
            assert!(play.server.ended && play.client.ended);
            assert_eq!(play.client.told, [200]);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_the_clients_fault_and_silence_after_it_the_upstreams() {
    let stage = Stage::new(RequestBody::Open, vec![]);
    stage
        .play(async |play| {
            for _ in 0..3 {
                play.client.comes(Coming::Data(1));
                play.lasts(secs(50)).await;
            }
            let (_, end) = play.until(secs(20)).await;
            assert!(
                matches!(end, End::Failed(Failure::ClientStalled)),
                "{end:?}"
            );
        })
        .await;
    stage
        .play(async |play| {
            play.client.comes(Coming::Data(1));
            play.client.comes(Coming::End);
            let (time, end) = play.until(secs(40)).await;
            assert!(matches!(end, End::Failed(Failure::TimedOut)), "{end:?}");
            assert!(is_about(time, secs(30)), "{time:?}");
        })
        .await;
    // An upload that the upstream does not take is the upstream's fault too.
    stage
        .play(async |play| {
            play.server.deaf = true;
            play.client.comes(Coming::Data(KEPT_MAX));
            let (time, end) = play.until(secs(40)).await;
            assert!(matches!(end, End::Failed(Failure::TimedOut)), "{end:?}");
            assert!(is_about(time, secs(30)), "{time:?}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_for_a_100_gets_one_of_ours_after_a_second() {
    let mut stage = Stage::new(RequestBody::Length(5), vec![]);
    stage.forward.expects_continue = true;
    stage
        .play(async |play| {
            play.lasts(Duration::from_millis(900)).await;
            assert!(play.client.told.is_empty());
            play.lasts(Duration::from_millis(300)).await;
            assert_eq!(play.client.told, [100]);
            play.lasts(secs(3)).await;
            assert_eq!(play.client.told, [100], "once");
        })
        .await;
    // Not where the upstream has said its own.
    stage
        .play(async |play| {
            play.server.comes(Coming::Interim(100));
            play.lasts(secs(3)).await;
            assert_eq!(play.client.told, [100]);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn silence_on_a_stream_is_cut_only_after_its_own_time() {
    let stage = Stage::new(RequestBody::None, vec![]);
    stage
        .play(async |play| {
            play.answers(200, AnswerBody::Open);
            play.server.comes(Coming::Data(1));
            let (time, end) = play.until(secs(3700)).await;
            assert!(matches!(end, End::Cut), "{end:?}");
            assert!(is_about(time, secs(3600)), "{time:?}");
            assert_eq!(play.client.aborted, Some(false));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_an_answered_upload_has_two_seconds_between_its_pieces() {
    let stage = Stage::new(RequestBody::Open, vec![]);
    stage
        .play(async |play| {
            play.answers(413, AnswerBody::Length(3));
            play.server.comes(Coming::Data(3));
            play.server.comes(Coming::End);
            for _ in 0..5 {
                play.client.comes(Coming::Data(1));
                play.lasts(Duration::from_millis(1500)).await;
            }
            let (_, end) = play.until(secs(1)).await;
            let cut = matches!(
                end,
                End::Complete {
                    reusable: false,
                    ..
                }
            );
            assert!(cut, "{end:?}");
            assert_eq!(play.client.aborted, None);
        })
        .await;
}

/// The upload may rest for as long as the client is busy with the answer.
#[tokio::test(start_paused = true)]
async fn an_early_answer_is_not_cut_while_the_client_reads_it_slowly() {
    let stage = Stage::new(RequestBody::Open, vec![]);
    stage
        .play(async |play| {
            play.client.deaf = true;
            play.answers(413, AnswerBody::Length(3));
            play.server.comes(Coming::Data(3));
            play.server.comes(Coming::End);
            play.lasts(secs(30)).await;
            assert!(play.client.ended);
            play.client.takes();
            let (time, end) = play.until(secs(5)).await;
            let cut = matches!(
                end,
                End::Complete {
                    reusable: false,
                    ..
                }
            );
            assert!(cut, "{end:?}");
            assert!(is_about(time, UPLOAD_REST), "{time:?}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_ended_its_side_waits_five_seconds_and_a_tunnel_for_ever() {
    let stage = Stage::new(RequestBody::None, vec![]);
    stage
        .play(async |play| {
            play.client.half_closed = true;
            let (time, end) = play.until(secs(10)).await;
            assert!(matches!(end, End::Failed(Failure::ClientLeft)), "{end:?}");
            assert!(is_about(time, HALF_CLOSED_WAIT), "{time:?}");
        })
        .await;
    // Closed before the switch: what was meant for HTTP is forgotten.
    stage
        .play(async |play| {
            play.client.half_closed = true;
            play.lasts(secs(1)).await;
            play.answers(101, AnswerBody::None(None));
            play.lasts(secs(600)).await;
            assert!(play.client.switched && play.server.switched);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn each_direction_of_a_tunnel_ends_for_itself() {
    let stage = Stage::new(RequestBody::None, vec![]);
    stage
        .play(async |play| {
            play.answers(101, AnswerBody::None(None));
            play.go().await;
            play.client.comes(Coming::Data(2));
            play.client.comes(Coming::End);
            play.lasts(secs(60)).await;
            assert!(play.server.ended && !play.client.ended);
            play.server.comes(Coming::Data(4));
            play.server.comes(Coming::End);
            assert!(is_complete(&play.go().await.unwrap()));
            assert_eq!((play.server.taken, play.client.taken), (2, 4));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_is_a_failure_before_the_answer_and_a_cut_after_it() {
    let stage = Stage::new(RequestBody::Open, vec![]);
    for answered in [false, true] {
        stage
            .play(async |play| {
                if answered {
                    play.answers(200, AnswerBody::Open);
                }
                play.server.comes(Coming::Lost);
                let end = play.go().await.unwrap();
                match answered {
                    true => assert!(matches!(end, End::Cut), "{end:?}"),
                    false => assert!(matches!(end, End::Failed(Failure::Broke(_))), "{end:?}"),
                }
                // What was written may arrive.
                assert_eq!(play.client.aborted, answered.then_some(true));
            })
            .await;
        stage
            .play(async |play| {
                if answered {
                    play.answers(200, AnswerBody::Open);
                    play.go().await;
                }
                play.client.comes(Coming::Lost);
                let end = play.go().await.unwrap();
                let failed = matches!(end, End::Failed(Failure::ClientBroke(_)));
                assert!(failed || answered && matches!(end, End::Cut), "{end:?}");
                assert!(!play.server.ended, "it must not look whole");
            })
            .await;
        stage
            .play(async |play| {
                play.client.comes(Coming::End);
                if answered {
                    play.answers(200, AnswerBody::Open);
                }
                play.go().await;
                play.client.gone = true;
                let end = play.go().await.unwrap();
                let left = matches!(end, End::Failed(Failure::ClientLeft));
                assert!(left || answered && matches!(end, End::Cut), "{end:?}");
            })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_takes_no_more_is_still_heard() {
    let stage = Stage::new(RequestBody::Open, vec![]);
    stage
        .play(async |play| {
            play.server.gone = true;
            play.client.comes(Coming::Data(5));
            play.go().await;
            play.answers(413, AnswerBody::Length(3));
            play.server.comes(Coming::Data(3));
            play.server.comes(Coming::End);
            let end = play.go().await.unwrap();
            let complete = matches!(
                end,
                End::Complete {
                    reusable: false,
                    ..
                }
            );
            assert!(complete, "{end:?}");
            assert_eq!(
                (play.client.told.as_slice(), play.client.taken),
                (&[413][..], 3)
            );
        })
        .await;
}

/// One piece at most waits for a side that does not take it, whatever the other one has to say.
#[tokio::test(start_paused = true)]
async fn nothing_piles_up_before_a_side_that_takes_nothing() {
    let stage = Stage::new(RequestBody::Open, vec![]);
    stage
        .play(async |play| {
            (play.client.deaf, play.server.deaf) = (true, true);
            play.answers(200, AnswerBody::Open);
            for _ in 0..100 {
                play.client.comes(Coming::Data(10));
                play.server.comes(Coming::Data(10));
            }
            play.lasts(secs(5)).await;
            assert_eq!((play.client.most_kept, play.server.most_kept), (10, 10));
            assert_eq!(
                (play.client.coming.len(), play.server.coming.len()),
                (99, 99)
            );
            play.client.takes();
            play.server.takes();
            play.lasts(secs(1)).await;
            assert_eq!((play.client.taken, play.server.taken), (1000, 1000));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_exchange_ends_with_what_admitted_it_and_with_the_drain() {
    let fact = Fact::new();
    let stage = Stage::new(RequestBody::None, vec![fact.clone()]);
    stage
        .play(async |play| {
            play.answers(200, AnswerBody::Open);
            play.lasts(secs(10)).await;
            fact.revoke();
            assert!(matches!(play.go().await, Some(End::Cut)));
            assert_eq!(play.client.aborted, Some(false));
        })
        .await;
    stage
        .play(async |play| {
            let end = play.go().await.unwrap();
            assert!(matches!(end, End::Failed(Failure::Revoked)), "{end:?}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn the_status_of_a_grpc_call_is_recorded_from_its_trailers() {
    let stage = Stage::new(RequestBody::None, vec![]);
    for (is_grpc, said, status) in [
        (true, &b"14"[..], Some(14)),
        (true, b"99999", None),
        (true, b"+1", None),
        (false, b"14", None),
    ] {
        stage
            .play(async |play| {
                play.run.exchange.is_grpc = is_grpc;
                play.answers(200, AnswerBody::Open);
                play.server.comes(Coming::Status(said));
                assert!(is_complete(&play.go().await.unwrap()));
                assert_eq!(play.run.exchange.grpc_status, status, "{said:?}");
            })
            .await;
    }
}
