//! What a seed says: the messages, the kills between them, the edits of the file.

use edd_events::envelope::EventMessage;
use edd_events::subject::{EntityId, subject};
use edd_proto::{auth, common, compute};

use crate::random::Random;

/// Messages of a log at least.
const MESSAGES: usize = 2000;

/// Header that tells the oracle what a message is.
pub(crate) const KIND: &str = "Test-Kind";

/// Dynamic ports of a gateway.
pub(crate) const PORTS: usize = 3;

const USERS: i64 = 9;
const CONTAINERS: usize = 48;
const KEYS: i64 = 24;

/// What a message is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// A good event.
    Fact,
    /// Nothing that the gateway knows: ignored.
    Noise,
    /// A bad event: a dead letter.
    Poison,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Fact, Self::Noise, Self::Poison];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fact => "fact",
            Self::Noise => "noise",
            Self::Poison => "poison",
        }
    }
}

/// One message to publish.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    pub(crate) subject: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) message_id: Option<String>,
    /// Whether the event id is in the payload too.
    in_metadata: bool,
    version: i64,
}

/// Who is killed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Victim {
    Gateway,
    Nats,
    Postgres,
}

/// A kill during a step, in milliseconds after its begin, and back after so many more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kill {
    pub(crate) victim: Victim,
    pub(crate) after_ms: u64,
    pub(crate) away_ms: u64,
}

/// Messages that are published at once, and what happens meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) messages: Vec<Message>,
    pub(crate) kill: Option<Kill>,
    /// A new content of routes.yaml.
    pub(crate) routes: Option<Vec<Route>>,
}

/// Host, path and target of a static route.
pub(crate) type Route = (String, String, String);

#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) steps: Vec<Step>,
    /// No kill lets events come out of their stream's order: then the announcements
    /// are known one by one.
    pub(crate) in_order: bool,
}

impl Script {
    /// `ports` are the dynamic ones.
    pub(crate) fn new(seed: u64, ports: &[u16], victims: &[Victim]) -> Self {
        let mut random = Random::new(seed);
        let in_order = seed % 5 == 4;
        let messages = Log::new(&mut random, ports, in_order).messages();
        let mut steps = Vec::new();
        let mut rest = messages.into_iter().peekable();
        while rest.peek().is_some() {
            let most = if random.percent(20) { 500 } else { 120 };
            let size = 1 + random.below(most);
            let routes = random.percent(12).then(|| routes(&mut random));
            steps.push(Step {
                messages: rest.by_ref().take(size).collect(),
                kill: None,
                routes,
            });
        }
        let kills = if in_order { 2 } else { 3 + random.below(4) };
        let mut gateways = 0;
        for _ in 0..kills {
            let victim = *random.pick(victims);
            // A kill may cost a delivery, and of five the last must be handled.
            let victim = match victim {
                Victim::Gateway if gateways == 3 => Victim::Nats,
                victim => victim,
            };
            if in_order && victim != Victim::Postgres {
                continue;
            }
            gateways += usize::from(victim == Victim::Gateway);
            let step = random.below(steps.len());
            steps[step].kill = Some(Kill {
                victim,
                // Most of them while the step is in work.
                after_ms: random.next() % if random.percent(70) { 40 } else { 200 },
                away_ms: random.next() % 200,
            });
        }
        Self { steps, in_order }
    }

    pub(crate) fn messages(&self) -> usize {
        self.steps.iter().map(|step| step.messages.len()).sum()
    }
}

fn routes(random: &mut Random) -> Vec<Route> {
    let mut routes = Vec::new();
    for host in ["a.test", "b.test", "*.c.test"] {
        for path in ["/", "/x", "/x/y"] {
            if random.percent(40) {
                let target = format!("127.0.0.1:{}", 9000 + random.below(5));
                routes.push((host.to_owned(), path.to_owned(), target));
            }
        }
    }
    routes
}

/// What compute and auth say, in the order in which they mean it.
struct Log<'r> {
    random: &'r mut Random,
    /// 80, 443 and the dynamic ones.
    ports: Vec<u16>,
    in_order: bool,
    messages: Vec<Message>,
    /// The next version of every fact.
    version: i64,
    ids: u64,
}

impl<'r> Log<'r> {
    fn new(random: &'r mut Random, ports: &[u16], in_order: bool) -> Self {
        Self {
            random,
            ports: [80, 443].into_iter().chain(ports.iter().copied()).collect(),
            in_order,
            messages: Vec::new(),
            version: 0,
            ids: 0,
        }
    }

    fn messages(mut self) -> Vec<Message> {
        let mut created = Vec::new();
        let mut unborn: Vec<usize> = (0..CONTAINERS).collect();
        while self.messages.len() < MESSAGES {
            let container = self.random.below(CONTAINERS);
            match self.random.below(100) {
                0..8 if !unborn.is_empty() => {
                    let at = self.random.below(unborn.len());
                    let container = unborn.swap_remove(at);
                    created.push(container);
                    self.created(container);
                }
                0..28 => self.run(container),
                28..38 => self.flag(container),
                38..70 => self.rule(container),
                70..78 => self.key(),
                78..82 => self.user(),
                82..84 => self.ends(),
                84..90 => self.poison(),
                90..94 => self.noise(),
                _ => self.again(),
            }
        }
        // Near each other only: as far as publishers and retries get it wrong.
        for at in 0..self.messages.len() {
            if self.random.percent(25) {
                let other = (at + self.random.below(40)).min(self.messages.len() - 1);
                self.messages.swap(at, other);
            }
        }
        self.messages
    }

    fn created(&mut self, container: usize) {
        let id = name(container);
        let message = compute::ContainerCreated {
            container_id: id.clone(),
            user_id: owner(container),
            name: format!("container {container}"),
            ..Default::default()
        };
        self.say(&id, 0, message);
    }

    fn run(&mut self, container: usize) {
        let (id, version) = (name(container), self.version_of(container));
        if self.random.percent(60) {
            let message = compute::ContainerStarted {
                container_id: id.clone(),
                external_ip: format!("127.64.{container}.{}", 1 + self.random.below(250)),
                ..Default::default()
            };
            self.say(&id, version, message);
        } else {
            let message = compute::ContainerStopped {
                container_id: id.clone(),
                ..Default::default()
            };
            self.say(&id, version, message);
        }
    }

    fn flag(&mut self, container: usize) {
        let (id, version) = (name(container), self.version_of(container));
        let on = self.random.percent(50);
        if self.random.percent(50) {
            let message = compute::ContainerSshToggled {
                container_id: id.clone(),
                ssh_enabled: on,
                ..Default::default()
            };
            self.say(&id, version, message);
        } else {
            let message = compute::ContainerHttpsToggled {
                container_id: id.clone(),
                https_enabled: on,
                ..Default::default()
            };
            self.say(&id, version, message);
        }
    }

    fn rule(&mut self, container: usize) {
        let (id, version) = (name(container), self.version_of(container));
        let port = i32::from(*self.random.pick(&self.ports));
        if self.random.percent(65) {
            let message = compute::IngressRuleRequested {
                container_id: id.clone(),
                port,
                target_port: *self.random.pick(&[80, 443, 3000, 8080]),
                ..Default::default()
            };
            self.say(&id, version, message);
        } else {
            let message = compute::IngressRuleDeleteRequested {
                container_id: id.clone(),
                port,
                ..Default::default()
            };
            self.say(&id, version, message);
        }
    }

    fn key(&mut self) {
        let key_id = 1 + self.random.next().cast_signed().rem_euclid(KEYS);
        let user_id = 1 + key_id % USERS;
        let id = key_id.to_string();
        if self.random.percent(92) {
            let letter = *self.random.pick(&['A', 'B', 'C', 'D']);
            let body = String::from(letter).repeat(42);
            let version = self.version_of(usize::try_from(key_id).expect("small"));
            let message = compute::SshKeyCreated {
                key_id,
                user_id,
                fingerprint: format!("SHA256:{body}A"),
                ..Default::default()
            };
            self.say(&id, version, message);
        } else {
            let message = compute::SshKeyDeleted {
                key_id,
                user_id,
                ..Default::default()
            };
            self.say(&id, 0, message);
        }
    }

    fn user(&mut self) {
        let user_id = 1 + self.random.next().cast_signed().rem_euclid(USERS);
        let id = user_id.to_string();
        let version = self.version_of(usize::try_from(user_id).expect("small"));
        let username = format!("user{}", self.random.below(1000));
        if self.random.percent(50) {
            let message = auth::UserCreated {
                user_id,
                username,
                ..Default::default()
            };
            self.say(&id, version, message);
        } else {
            let message = auth::UserUpdated {
                user_id,
                username,
                ..Default::default()
            };
            self.say(&id, version, message);
        }
    }

    /// A container or a user goes for good; rarely, or soon there would be nothing left.
    fn ends(&mut self) {
        // The first one stays: something is to be seen at the end.
        let container = 1 + self.random.below(CONTAINERS - 1);
        // Between the streams there is no order: what it ends is not known one by one.
        if !self.in_order && self.random.percent(6) {
            let user_id = owner(container);
            if user_id > 3 {
                let message = auth::UserDeleted {
                    user_id,
                    ..Default::default()
                };
                self.say(&user_id.to_string(), 0, message);
            }
        } else {
            let id = name(container);
            let message = compute::ContainerDeleted {
                container_id: id.clone(),
                user_id: owner(container),
                ..Default::default()
            };
            self.say(&id, 0, message);
        }
    }

    /// The same event as a message of its own.
    fn again(&mut self) {
        if self.messages.is_empty() {
            return;
        }
        let at = self.random.below(self.messages.len());
        let mut message = self.messages[at].clone();
        if message.kind != Kind::Fact || message.message_id.is_none() {
            return;
        }
        // A fact without a version, said twice, is as new as its second message when that
        // one is handled first: what kills reorder must not depend on it.
        let ordered = self.in_order || message.version > 0 || !message.in_metadata;
        // With its message id the stream drops it.
        if ordered && self.random.percent(60) {
            message.message_id = None;
        }
        self.messages.push(message);
    }

    fn poison(&mut self) {
        let container = name(self.random.below(CONTAINERS));
        let subject = |entity: &str, action: &str| format!("compute.{entity}.{container}.{action}");
        let started = |id: &str, address: &str, key: &str, version: i64, event_id: String| {
            encode(compute::ContainerStarted {
                metadata: Some(common::EventMetadata {
                    version,
                    event_id,
                    ..Default::default()
                }),
                container_id: id.into(),
                external_ip: address.into(),
                ssh_host_key: key.into(),
            })
        };
        let rule = |port: i32, target_port: i32| {
            encode(compute::IngressRuleRequested {
                container_id: container.clone(),
                port,
                target_port,
                ..Default::default()
            })
        };
        let key = |key_id: i64, user_id: i64, fingerprint: &str| {
            encode(compute::SshKeyCreated {
                key_id,
                user_id,
                fingerprint: fingerprint.into(),
                ..Default::default()
            })
        };
        let good = "127.64.0.9";
        let on = subject("container", "started");
        let (subject, payload) = match self.random.below(20) {
            0 => (on, vec![0xff; 40]),
            1 => (on, started("another", good, "", 0, String::new())),
            2 => (on, started(&container, "8.8.8.8", "", 0, String::new())),
            3 => (on, started(&container, "127.0.0.1", "", 0, String::new())),
            4 => (on, started(&container, "0.0.0.0", "", 0, String::new())),
            5 => (on, started(&container, "nowhere", "", 0, String::new())),
            6 => (on, started(&container, good, "no key", 0, String::new())),
            7 => (on, started(&container, good, "", -1, String::new())),
            8 => (on, started(&container, good, "", 0, "i".repeat(129))),
            9 => {
                let payload = started("Upper", good, "", 0, String::new());
                ("compute.container.Upper.started".into(), payload)
            }
            10 => {
                let long = "l".repeat(65);
                let payload = started(&long, good, "", 0, String::new());
                (format!("compute.container.{long}.started"), payload)
            }
            11 => (subject("ingress", "requested"), rule(22, 22)),
            12 => (subject("ingress", "requested"), rule(80, 0)),
            13 => (subject("ingress", "requested"), rule(80, 65_536)),
            14 => (subject("ingress", "requested"), rule(-80, 80)),
            15 => ("compute.sshkey.7.created".into(), key(7, 1, "MD5:aa")),
            16 => {
                let fingerprint = format!("SHA256:{}", "A".repeat(43));
                ("compute.sshkey.0.created".into(), key(0, 1, &fingerprint))
            }
            17 => {
                let fingerprint = format!("SHA256:{}", "A".repeat(43));
                ("compute.sshkey.7.created".into(), key(7, 0, &fingerprint))
            }
            18 => {
                let payload = encode(auth::UserDeleted {
                    user_id: -1,
                    ..Default::default()
                });
                ("auth.user.-1.deleted".into(), payload)
            }
            _ => ("auth.user.2.deleted".into(), vec![0x0a, 0xff]),
        };
        self.push(Kind::Poison, subject, payload);
    }

    fn noise(&mut self) {
        let subject = *self.random.pick(&[
            "compute.container.c0.exploded",
            "compute.container.a.b.created",
            "compute.ingress.c0.created",
            "compute.sshkey.5.renamed",
            "compute.container.started.dlq",
            "compute.ingress.requested.dlq",
            "auth.user.deleted.dlq",
            "auth.user.3.promoted",
            "auth.session.s1.created",
        ]);
        self.push(Kind::Noise, subject.into(), vec![1, 2, 3]);
    }

    /// Facts of one entity are all versioned or all not: mixed, the order of both
    /// kinds decides, and that no publisher of ours does.
    fn version_of(&mut self, entity: usize) -> i64 {
        self.version += 1 + self.random.next().cast_signed().rem_euclid(3);
        if entity.is_multiple_of(2) {
            0
        } else {
            self.version
        }
    }

    fn say<M: EventMessage>(&mut self, id: &str, version: i64, mut message: M) {
        let entity = EntityId::try_from(id).expect("a good id");
        let event_id = self.new_id();
        let in_metadata = version > 0 || self.random.percent(80);
        if in_metadata {
            message.set_metadata(common::EventMetadata {
                event_id: event_id.clone(),
                entity_id: id.into(),
                version,
                ..Default::default()
            });
        }
        self.messages.push(Message {
            kind: Kind::Fact,
            subject: subject(M::KIND, &entity),
            payload: message.encode_to_vec(),
            message_id: (in_metadata || self.random.percent(80)).then_some(event_id),
            in_metadata,
            version,
        });
    }

    fn push(&mut self, kind: Kind, subject: String, payload: Vec<u8>) {
        let message_id = Some(self.new_id());
        self.messages.push(Message {
            kind,
            subject,
            payload,
            message_id,
            in_metadata: false,
            version: 0,
        });
    }

    fn new_id(&mut self) -> String {
        self.ids += 1;
        format!("event-{}", self.ids)
    }
}

fn encode<M: EventMessage>(message: M) -> Vec<u8> {
    message.encode_to_vec()
}

pub(crate) fn name(container: usize) -> String {
    format!("c{container}")
}

fn owner(container: usize) -> i64 {
    1 + i64::try_from(container).expect("small") % USERS
}
