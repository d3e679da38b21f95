//! One seed, from the first message to the last comparison.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::sleep;

use crate::check;
use crate::oracle;
use crate::rig::{Engine, Rig, publish};
use crate::script::{Script, Victim};

/// What a run did.
pub(crate) struct Done {
    pub(crate) messages: usize,
    pub(crate) kills: usize,
}

/// # Panics
/// When anything is not as the model says.
pub(crate) async fn run(engine: Engine, seed: u64) -> Done {
    let mut rig = Rig::start(engine).await;
    let script = Script::new(seed, &rig.ports, engine.victims());
    let mut routes = Vec::new();
    let mut kills = 0;
    let mut revision = 0;
    rig.start_gateway();
    for step in &script.steps {
        if let Some(new) = &step.routes {
            routes.clone_from(new);
            rig.write_routes(&routes);
        }
        let js = rig.js.clone();
        let killed = async {
            let Some(kill) = step.kill else { return };
            sleep(Duration::from_millis(kill.after_ms)).await;
            revision = revision.max(rig.revision().await.unwrap_or(0));
            rig.kill(kill.victim).await;
            sleep(Duration::from_millis(kill.away_ms)).await;
            rig.revive(kill.victim).await;
            kills += 1;
        };
        tokio::join!(publish(&js, &step.messages), killed);
    }
    rig.caught_up().await;
    let expected = oracle::read(&rig.read("AUTH").await, &rig.read("COMPUTE").await);
    check::table(&rig, &expected, &routes).await;
    let now = rig.revision().await.expect("an answer");
    assert!(now >= revision, "revision {now} after {revision}");

    // Once more: what is in force is in the database, too.
    rig.kill(Victim::Gateway).await;
    rig.revive(Victim::Gateway).await;
    rig.caught_up().await;
    check::table(&rig, &expected, &routes).await;
    let then = rig.revision().await.expect("an answer");
    assert!(then >= now, "revision {then} after {now}");

    check::outbox(&rig).await;
    rig.end_gateway(Signal::TERM).await;
    check::users(&rig, &expected).await;
    check::dead_letters(&rig, &expected).await;
    check::announcements(&rig, &expected, script.in_order).await;
    Done {
        messages: script.messages(),
        kills: kills + 1,
    }
}
