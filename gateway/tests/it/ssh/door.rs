//! The door under strangers: what it offers, and who gets in past a crowd.

use std::sync::Arc;
use std::time::{Duration, Instant};

use edd_gateway::ssh::{Limits, Startups};
use futures_util::future::join_all;
use russh::client;
use russh::keys::{Algorithm, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::rig::{Rig, output, stdout, within};
use crate::support::{DEADLINE, eventually, python};

/// What ssh-audit prints about a gateway with these flags, and its complaints alone.
async fn audited(flags: &[&str]) -> (String, Vec<String>) {
    let rig = Rig::start_with(Limits::default(), flags).await;
    let said = python::run("ssh/audit.py", &[&rig.address.port().to_string()]).await;
    let complaints = said
        .lines()
        .filter(|line| line.contains("[fail]") || line.contains("[warn]"))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    (said, complaints)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ssh_audit_has_nothing_to_say_about_post_quantum_only() {
    // It claims to have everything, so it gets the whole offer only with the client's order.
    let flags = ["--ssh-post-quantum-only", "--ssh-cipher-order=client"];
    let (said, complaints) = audited(&flags).await;
    assert!(complaints.is_empty(), "{said}");
    for offered in [
        "(kex) mlkem768x25519-sha256",
        "(kex) kex-strict-s-v00@openssh.com",
        "(key) ssh-ed25519",
        "(enc) aes256-gcm@openssh.com",
        "(enc) chacha20-poly1305@openssh.com",
    ] {
        assert!(said.contains(offered), "{said}");
    }
}

/// Clients of today need X25519 by itself, and of that ssh-audit says what it says of all that a
/// quantum computer would break: nothing else may be wrong, with an RSA host key neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ssh_audit_only_says_of_x25519_that_quantum_computers_break_it() {
    let (said, complaints) = audited(&["--ssh-host-rsa"]).await;
    assert!(said.contains("(key) rsa-sha2-512 (3072-bit)"), "{said}");
    let why = "does not provide protection against post-quantum attacks";
    let expected = ["curve25519-sha256", "curve25519-sha256@libssh.org"]
        .map(|name| format!("(kex) {name} -- [warn] {why}"));
    assert_eq!(complaints, expected, "{said}");
}

/// The ciphers of an `ssh` with these options, to the container and back.
async fn ciphers(rig: &Rig, options: &[&str]) -> Vec<String> {
    let options = [&["-o", "LogLevel=DEBUG1"], options].concat();
    let mut ssh = rig.ssh_as(&rig.login("c1"), "owner", &options);
    let out = output(ssh.arg("echo hello")).await;
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.stdout, b"hello\n", "{said}");
    let lines = said.lines().filter(|line| line.contains("cipher: "));
    let ciphers = lines.filter_map(|line| line.split("cipher: ").nth(1)?.split(' ').next());
    ciphers.map(str::to_owned).collect()
}

/// OpenSSH begins its list with ChaCha20, which costs both ends more than AES in hardware.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_have_aes_gcm_get_it_and_all_others_what_they_have() {
    let rig = Rig::start().await;
    let _c1 = rig.container("c1").await;
    // A machine that is busy may be slower than the moment that its offer is waited for.
    eventually("AES-GCM", async || {
        ciphers(&rig, &[]).await == ["aes128-gcm@openssh.com"; 2]
    })
    .await;
    for only in [
        "chacha20-poly1305@openssh.com",
        "aes256-ctr",
        "aes256-gcm@openssh.com",
    ] {
        assert_eq!(ciphers(&rig, &["-c", only]).await, [only; 2]);
    }
    let rig = Rig::start_with(Limits::default(), &["--ssh-cipher-order=client"]).await;
    let _c1 = rig.container("c1").await;
    let usual = ciphers(&rig, &[]).await;
    assert_eq!(usual, ["chacha20-poly1305@openssh.com"; 2]);
}

/// A client that guesses: it knows the door and has a key of its own.
struct Guesser;

impl client::Handler for Guesser {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        _shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// Connects from an address of this machine.
async fn connect_from(from: &str, rig: &Rig) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    within(DEADLINE, "a connection", socket.connect(rig.address))
        .await
        .unwrap()
}

/// Logs in and out; how long it took until the door let it in. None: it did not.
async fn log_in(from: &str, rig: &Rig, user: &str, key: PrivateKey) -> Option<Duration> {
    let begin = Instant::now();
    let stream = connect_from(from, rig).await;
    let config = Arc::new(client::Config::default());
    let mut handle = client::connect_stream(config, stream, Guesser).await.ok()?;
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    let result = handle.authenticate_publickey(user, key).await.ok()?;
    result.success().then(|| begin.elapsed())
}

/// 200 half-open connections and 50 guesses a second from `crowd`, and log-ins with the right key
/// from 127.0.0.1: how long each of these took, if it got in.
async fn log_ins_beside_a_crowd(crowd: &'static str) -> Vec<Option<Duration>> {
    let rig = Arc::new(Rig::start().await);
    let _c = rig.container("c1").await;
    let stranger = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    // Half-open: half of them say nothing at all, half of them who they are and then nothing.
    let mut half_open = Vec::new();
    for n in 0..200 {
        let mut socket = connect_from(crowd, &rig).await;
        if n % 2 == 0 {
            let _ = socket.write_all(b"SSH-2.0-half\r\n").await;
        }
        half_open.push(socket);
    }
    let mut guesses = JoinSet::new();
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    let mut took = Vec::new();
    let mut next = Instant::now() + Duration::from_millis(500);
    let user = rig.login("c1");
    let mut ours = JoinSet::new();
    while took.len() < 8 {
        pace.tick().await;
        let (on, key, user) = (Arc::clone(&rig), stranger.clone(), user.clone());
        guesses.spawn(async move { log_in(crowd, &on, &user, key).await });
        while guesses.try_join_next().is_some() {}
        if Instant::now() > next {
            next = Instant::now() + Duration::from_millis(400);
            let (on, key, user) = (Arc::clone(&rig), rig.key(), rig.login("c1"));
            ours.spawn(async move { log_in("127.0.0.1", &on, &user, key).await });
        }
        while let Some(done) = ours.try_join_next() {
            took.push(done.unwrap());
        }
    }
    let metrics = rig.metrics();
    let dropped = metrics
        .lines()
        .any(|line| line.contains("connections_refused_total{reason=\"ssh_login_address_limit\"}"));
    assert!(dropped, "the crowd is too small for the door");
    guesses.shutdown().await;
    took
}

/// S13: an earlier gateway had no deadline before a login and no cap on connections at all.
///
/// One of three rounds counts: beside other tests the machine may be too slow for the handshakes
/// themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_at_the_door_leaves_a_login_within_a_second() {
    let within_a_second = |took: &Option<Duration>| took.is_some_and(|time| time.as_secs() < 1);
    for crowd in ["127.0.0.9", "127.0.0.1"] {
        let mut rounds = Vec::new();
        while !rounds
            .last()
            .is_some_and(|took: &Vec<_>| took.iter().all(within_a_second))
        {
            assert!(rounds.len() < 3, "{crowd}: {rounds:?}");
            rounds.push(log_ins_beside_a_crowd(crowd).await);
        }
        eprintln!("log-ins beside a crowd at {crowd}: {rounds:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_one_address_take_longer_and_longer() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let stranger = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    let guess = || async {
        let begin = Instant::now();
        let refused = log_in("127.0.0.1", &rig, "none", stranger.clone()).await;
        assert_eq!(refused, None);
        begin.elapsed()
    };
    for _ in 0..15 {
        guess().await;
    }
    assert!(guess().await >= Duration::from_millis(900));
    let right = async || {
        let took = log_in("127.0.0.1", &rig, &rig.login("c1"), rig.key()).await;
        assert!(took.expect("in") < Duration::from_millis(900), "{took:?}");
    };
    right().await;
    assert!(guess().await < Duration::from_millis(900), "more are free");
    assert!(rig.metrics().contains("ssh_auth_delayed_total 6"));
    // Whoever has a key of his own guesses on no longer than others.
    join_all((0..30).map(|_| guess())).await;
    right().await;
    assert!(guess().await >= Duration::from_millis(900));
    right().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_longest_without_a_word_goes_when_too_many_wait() {
    let limits = Limits {
        waiting_per_address_max: 3,
        ..Limits::default()
    };
    let rig = Rig::start_with(limits, &[]).await;
    let _c = rig.container("c1").await;
    let _master = rig.master("c1").await;
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let mut socket = TcpStream::connect(rig.address).await.unwrap();
        socket.read_u8().await.unwrap();
        waiting.push(socket);
    }
    let mut rest = Vec::new();
    within(
        DEADLINE,
        "the first is closed",
        waiting[0].read_to_end(&mut rest),
    )
    .await
    .unwrap();
    assert_eq!(stdout(rig.ssh_over("c1").arg("echo in")).await, "in\n");
    assert_eq!(stdout(rig.ssh("c1").arg("echo in")).await, "in\n");
    let mut others = waiting.split_off(2);
    for socket in &mut others {
        let mut buffer = [0; 64];
        // Banner, perhaps, and never an end.
        while let Ok(read) =
            tokio::time::timeout(Duration::from_millis(50), socket.read(&mut buffer)).await
        {
            assert!(read.unwrap() > 0, "the newer ones still wait");
        }
    }
    let refused = "connections_refused_total{reason=\"ssh_login_address_limit\"} 2";
    assert!(rig.metrics().contains(refused), "{}", rig.metrics());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_in_all_cost_the_address_that_has_the_most() {
    let limits = Limits {
        startups: Startups {
            start: 4,
            rate: 100,
            full: 4,
        },
        ..Limits::default()
    };
    let rig = Rig::start_with(limits, &[]).await;
    let _c = rig.container("c1").await;
    let mut crowd = Vec::new();
    for from in ["127.0.0.8", "127.0.0.9", "127.0.0.9", "127.0.0.9"] {
        let mut socket = connect_from(from, &rig).await;
        socket.read_u8().await.unwrap();
        crowd.push(socket);
    }
    assert!(output(rig.ssh("c1").arg("true")).await.status.success());
    let mut rest = Vec::new();
    within(
        DEADLINE,
        "one of three goes",
        crowd[1].read_to_end(&mut rest),
    )
    .await
    .unwrap();
    eventually("one is counted", || async {
        rig.metrics()
            .contains("connections_refused_total{reason=\"ssh_login_limit\"} 1")
    })
    .await;
}
