//! What compute and auth might say, in a world of few things: they meet often.

use edd_route::{ContainerId, UserId};

use super::random::Random;
use super::streams::Message;
use super::world::World;
use crate::control::reconcile::What;

const CONTAINERS: usize = 6;
const KEYS: usize = 5;
const USERS: usize = 4;
const PORTS: [u16; 3] = [80, 443, 8000];

/// A stream and a message for it.
pub(super) fn message(random: &mut Random, world: &World) -> (usize, Message) {
    let number = random.next();
    let event_id = format!("e{number:x}");
    if random.percent(5) {
        let poison = Message {
            event_id,
            version: 0,
            what: None,
        };
        return (1, poison);
    }
    // Now and then a name of its own: not everything may end up dead.
    let era = world.lock().all.len() / 60;
    let container = random.below(CONTAINERS);
    let id = ContainerId::new(&format!("c{container}-{era}")).expect("an id");
    let key = random.below(KEYS);
    let key_id = i64::try_from(1 + key + 100 * era).expect("small");
    let user_of = |n: usize| UserId(i64::try_from(1 + n % USERS + 10 * era).expect("small"));
    let (stream, entity, what) = match random.below(100) {
        0..12 => {
            let what = What::ContainerCreated {
                owner: user_of(container),
                name: id.to_string(),
                id,
            };
            (1, 0, what)
        }
        12..27 => {
            let what = What::ContainerStarted {
                id,
                address: [10, 0, 0, 1 + u8::try_from(random.below(3)).expect("small")].into(),
                ssh_host_key: None,
            };
            (1, container, what)
        }
        27..37 => (1, container, What::ContainerStopped { id }),
        37..44 => {
            let on = random.percent(50);
            (1, container, What::SshToggled { id, on })
        }
        44..50 => {
            let on = random.percent(50);
            (1, container, What::HttpsToggled { id, on })
        }
        50..68 => {
            let (port, target) = (*random.pick(&PORTS), *random.pick(&[80, 8080]));
            (1, container, What::RuleRequested { id, port, target })
        }
        68..80 => {
            let port = *random.pick(&PORTS);
            (1, container, What::RuleDeleted { id, port })
        }
        80..83 => (1, 0, What::ContainerDeleted { id }),
        83..90 => {
            let what = What::KeyCreated {
                id: key_id,
                user: user_of(key),
                fingerprint: format!("SHA256:{}", random.below(3)),
            };
            (1, key, what)
        }
        90..92 => (1, 0, What::KeyDeleted { id: key_id }),
        92..98 => {
            let id = user_of(container);
            let what = What::UserNamed {
                id,
                username: format!("u{}", random.below(9)),
                display_name: String::new(),
            };
            (0, usize::try_from(id.0).expect("small"), what)
        }
        _ => {
            let id = user_of(container);
            (0, 0, What::UserDeleted { id })
        }
    };
    // The facts of a thing are all versioned or none; some versions come late.
    let version = 10 * i64::try_from(world.lock().all.len() + 1).expect("small");
    let late = if version > 40 && random.percent(20) {
        35
    } else {
        0
    };
    let version = match entity % 2 {
        0 => 0,
        _ => version - late,
    };
    let message = Message {
        event_id,
        version,
        what: Some(what),
    };
    (stream, message)
}
