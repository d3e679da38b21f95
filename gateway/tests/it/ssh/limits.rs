//! What one tenant may take of what all share: memory, connections to containers, tries.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::agent::AgentIdentity;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_key::Signature;
use russh::keys::{HashAlg, PrivateKey, PublicKeyOrCertificate};
use russh::{ChannelMsg, ChannelOpenFailure, client};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;
use tokio::task::JoinSet;

use edd_gateway::ssh::Limits;
use edd_route::UserId;

use super::fake::{Fake, Vice};
use super::login::in_front;
use super::rig::{Rig, Sshd, exit_code, free_address, noise, stdout, until_text, within};
use super::session::{next, strict_client};
use crate::support::{DEADLINE, eventually, free_port};

const OTHER: UserId = UserId(8);

/// A container of somebody else, who has the key `other`.
async fn somebody_else(rig: &Rig) -> Sshd {
    let fingerprint = rig.new_key("other");
    rig.put_keys(OTHER, &[(2, &fingerprint)]);
    let sshd = rig.sshd("c2", &[]).await;
    rig.put("c2", sshd.address, Some(&sshd.host_key), |spec| {
        spec.owner = OTHER;
    });
    sshd
}

/// Runs something that reads nothing until the test's folder is gone.
fn stalled(rig: &Rig, mut ssh: tokio::process::Command) -> Child {
    let run = format!("while [ -e {} ]; do sleep 0.2; done", rig.at("known_hosts"));
    let mut child = ssh
        .arg(run)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    tokio::spawn(async move {
        let chunk = noise(256 << 10);
        while input.write_all(&chunk).await.is_ok() {}
    });
    child
}

/// Writes until nobody takes more; how much it was.
async fn push(port: u16) -> usize {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let chunk = noise(64 << 10);
    let mut pushed = 0;
    while socket.write_all(&chunk).await.is_ok() {
        pushed += chunk.len();
    }
    pushed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_fills_the_memory_loses_his_own_channels_and_no_one_elses() {
    let limit = 16;
    let flags = ["--ssh-buffer-limit", &limit.to_string()];
    let rig = Rig::start_with(Limits::default(), &flags).await;
    let _c1 = rig.container("c1").await;
    let _c2 = somebody_else(&rig).await;
    let modest = rig.ssh_as(&rig.login("c2"), "other", &[]);
    let mut modest = stalled(&rig, modest);
    // They take connections and read nothing.
    let stands = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = free_port();
    let forward = format!("127.0.0.1:{there}:{}", stands.local_addr().unwrap());
    let mut greedy = rig
        .ssh_as(&rig.login("c1"), "owner", &["-R", &forward])
        .arg("echo ready; exec cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = greedy.stdout.take().unwrap();
    until_text(&mut output, "ready").await;
    let mut pushes = JoinSet::new();
    for _ in 0..3 {
        pushes.spawn(push(there));
    }
    let mut standing = Vec::new();
    for _ in 0..3 {
        let accepted = within(DEADLINE, "a connection", stands.accept()).await;
        standing.push(accepted.unwrap());
    }
    let pushed = within(DEADLINE, "one is closed", pushes.join_next()).await;
    let pushed = pushed.unwrap().unwrap();
    // Some of it is in sockets and in ssh's and sshd's windows.
    assert!(pushed < (limit + 16) << 20, "{pushed} bytes");
    assert!(!rig.metrics().contains("ssh_buffer_limit_closed_total 0"));
    assert!(modest.try_wait().unwrap().is_none(), "the other's lives");
    let mut command = rig.ssh_as(&rig.login("c2"), "other", &[]);
    assert_eq!(stdout(command.arg("echo in")).await, "in\n");
    // Nor does it hurt what else is on the connection of him who did it.
    let input = greedy.stdin.as_mut().unwrap();
    input.write_all(b"still here\n").await.unwrap();
    until_text(&mut output, "still here").await;
    modest.kill().await.unwrap();
    greedy.kill().await.unwrap();
}

/// Output that nobody reads, on more channels than there is memory for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_slow_readers_of_one_owner_are_slowed_down_before_any_is_closed() {
    let limit = 16;
    let flags = ["--ssh-buffer-limit", &limit.to_string()];
    let rig = Rig::start_with(Limits::default(), &flags).await;
    let _c1 = rig.container("c1").await;
    let _master = rig.master("c1").await;
    let len = 8 << 20;
    let mut readers = Vec::new();
    for _ in 0..2 * limit {
        let mut command = rig.ssh_over("c1");
        command
            .arg(format!("head -c {len} /dev/zero"))
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stdout.take().unwrap();
        within(DEADLINE, "a byte", pipe.read_u8()).await.unwrap();
        readers.push((child, pipe));
    }
    for (mut child, mut pipe) in readers {
        let mut all = Vec::new();
        let read = pipe.read_to_end(&mut all);
        within(DEADLINE, "the rest", read).await.unwrap();
        assert_eq!(all.len() + 1, len);
        assert_eq!(exit_code(&mut child).await, Some(0));
    }
    assert!(rig.metrics().contains("ssh_buffer_limit_closed_total 0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_of_many_channels_leaves_connections_for_the_log_in_of_another() {
    let cap = 10;
    let tune = |config: &mut edd_gateway::config::Config| config.max_upstream_connections = cap;
    let rig = Rig::start_tuned(Limits::default(), &[], tune).await;
    let _c1 = rig.container("c1").await;
    let _c2 = somebody_else(&rig).await;
    let _master = rig.master("c1").await;
    let mut greedy: Vec<Child> = (0..cap)
        .map(|_| stalled(&rig, rig.ssh_over("c1")))
        .collect();
    // Some find no connection left for them.
    let refused = async {
        loop {
            for child in &mut greedy {
                if let Some(status) = child.try_wait().unwrap() {
                    return status.code();
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let code = within(DEADLINE, "one that is refused", refused).await;
    assert_eq!(code, Some(255));
    assert!(
        rig.metrics()
            .contains("ssh_open_failures_total{reason=\"resource_shortage\"}")
    );
    eventually("four fifths", || async {
        rig.shared.gate.upstreams() == cap * 4 / 5
    })
    .await;
    for _ in 0..3 {
        let mut command = rig.ssh_as(&rig.login("c2"), "other", &[]);
        assert_eq!(stdout(command.arg("echo in")).await, "in\n");
    }
    // He who has less than his share gets another at once.
    let mut living = greedy.into_iter().filter_map(|mut child| {
        let lives = child.try_wait().unwrap().is_none();
        lives.then_some(child)
    });
    for mut child in living.by_ref().take(3) {
        child.kill().await.unwrap();
        let _ = exit_code(&mut child).await;
    }
    eventually("less", || async {
        rig.shared.gate.upstreams() < cap * 4 / 5
    })
    .await;
    assert_eq!(stdout(rig.ssh_over("c1").arg("echo in")).await, "in\n");
}

/// Five hundred wait for a container that is slow; what is open goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_channel_beyond_the_cap_is_refused_and_the_connection_lives() {
    const CHANNELS: usize = 500;
    let rig = Rig::start().await;
    let address = free_address();
    let fake = Fake::start(rig.target(free_address()), Vice::None).await;
    let behind = rig.target(fake.address);
    // The first is served, the others wait for ever.
    let first = |n| async move { n == 0 || std::future::pending().await };
    let _ = in_front(rig.target(address), behind, first).await;
    rig.put("c1", address, Some(&fake.host_key), |_| {});
    let client = Arc::new(strict_client(&rig, "c1").await);
    let mut channel = client.channel_open_session().await.unwrap();
    let mut opening = JoinSet::new();
    for _ in 0..CHANNELS {
        let client = Arc::clone(&client);
        opening.spawn(async move { client.channel_open_session().await.map(|_| ()) });
    }
    let refused = within(DEADLINE, "a refusal", opening.join_next()).await;
    match refused.unwrap().unwrap() {
        Err(russh::Error::ChannelOpenFailure(reason)) => {
            assert_eq!(reason, ChannelOpenFailure::ResourceShortage);
        }
        other => panic!("{other:?}"),
    }
    // The requests come in order, so none of the others was refused before it.
    assert_eq!(opening.len(), CHANNELS - 1);
    assert!(opening.try_join_next().is_none());
    channel.exec(true, "work").await.unwrap();
    assert!(matches!(next(&mut channel).await, ChannelMsg::Success));
    let counted = "ssh_open_failures_total{reason=\"resource_shortage\"} 1";
    assert!(rig.metrics().contains(counted), "{}", rig.metrics());
}

/// Signs something else than it was asked to.
struct Forger(PrivateKey);

impl russh::Signer for Forger {
    type Error = russh::AgentAuthError;

    async fn auth_sign(
        &mut self,
        _key: &AgentIdentity,
        _hash_alg: Option<HashAlg>,
        to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, russh::AgentAuthError> {
        let signature: Signature = self.0.try_sign(b"something else").unwrap();
        let string = |bytes: &[u8]| {
            let mut out = u32::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
            out.extend_from_slice(bytes);
            out
        };
        let mut blob = string(signature.algorithm().as_str().as_bytes());
        blob.extend(string(signature.as_bytes()));
        let mut request = to_sign;
        request.extend(string(&blob));
        Ok(request)
    }
}

pub(super) struct Anyone;

impl client::Handler for Anyone {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        _shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

pub(super) async fn connect(rig: &Rig) -> client::Handle<Anyone> {
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let config = Arc::new(client::Config::default());
    client::connect_stream(config, stream, Anyone)
        .await
        .unwrap()
}

/// Who knows somebody's public key and signs wrongly is slowed down as whoever shows wrong keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_signatures_count_as_refused_keys() {
    let rig = Rig::start().await;
    let _c1 = rig.container("c1").await;
    let known = rig.key().public_key().clone();
    let forge = async |handle: &mut client::Handle<Anyone>| {
        let mut forger = Forger(rig.key());
        let user = rig.login("c1");
        let result = handle
            .authenticate_publickey_with(user, known.clone(), None, &mut forger)
            .await;
        assert!(!result.is_ok_and(|result| result.success()));
    };
    let mut first = connect(&rig).await;
    for _ in 0..3 {
        forge(&mut first).await;
    }
    // The last one is known once nothing can follow.
    let unsigned = |count: usize| format!("ssh_auth_total{{result=\"unsigned\"}} {count}");
    eventually("two of three", || async {
        rig.metrics().contains(&unsigned(2))
    })
    .await;
    drop(first);
    eventually("three", || async { rig.metrics().contains(&unsigned(3)) }).await;
    let (mut count, mut others) = (3, 0);
    while rig.metrics().contains("ssh_auth_delayed_total 0") {
        assert!(others < 4, "not slowed down: {}", rig.metrics());
        let mut next = connect(&rig).await;
        for _ in 0..4 {
            forge(&mut next).await;
        }
        drop(next);
        count += 4;
        others += 1;
        eventually("all", || async { rig.metrics().contains(&unsigned(count)) }).await;
    }
    // The right signature is let in at once, and counts as none.
    let key = russh::keys::PrivateKeyWithHashAlg::new(Arc::new(rig.key()), None);
    let mut honest = connect(&rig).await;
    let login = honest.authenticate_publickey(rig.login("c1"), key);
    let login = within(DEADLINE, "a login", login).await.unwrap();
    assert!(login.success());
    drop(honest);
    assert!(
        rig.metrics().contains(&unsigned(count)),
        "nothing was missing"
    );
}
