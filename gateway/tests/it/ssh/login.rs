//! Who gets in, what the others see, and what bad clients and bad containers do.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use edd_gateway::ssh::Limits;
use edd_route::{ContainerId, UserId};
use russh::client;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::fake::{Fake, Vice};
use super::limits::connect;
use super::rig::{Rig, Sshd, command, free_address, output, stdout, within};
use super::session::Trusting;
use crate::logs;
use crate::support::{DEADLINE, eventually};

/// What OpenSSH says about a refused login from this address, and how long that took.
async fn refused(rig: &Rig, user: &str, key: &str, from: &str) -> (Vec<String>, Duration) {
    let begin = Instant::now();
    let ssh = &mut rig.ssh_as(user, key, &["-v", "-b", from]);
    let output = output(ssh.arg("true")).await;
    let took = begin.elapsed();
    assert_eq!(output.status.code(), Some(255), "{user}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("Permission denied (publickey)"), "{text}");
    // What differs is only what the client itself says: its user.
    let said = text
        .lines()
        .filter(|line| {
            [
                "Permission denied",
                "Server accepts",
                "Authentications that can",
                "Next auth",
            ]
            .iter()
            .any(|words| line.contains(words))
        })
        .map(|line| line.replace(user, "USER"))
        .collect();
    (said, took)
}

/// S12: a key of the container's owner was confirmed to anybody who asked, before the container's
/// state was looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_refusals_look_and_cost_the_same() {
    let rig = Rig::start().await;
    let address = free_address();
    rig.put("good", address, None, |_| {});
    rig.put("stopped", address, None, |spec| spec.running = None);
    rig.put("off", address, None, |spec| spec.ssh_enabled = false);
    rig.put("both", address, None, |spec| {
        spec.running = None;
        spec.ssh_enabled = false;
    });
    rig.put("theirs", address, None, |spec| spec.owner = UserId(8));
    rig.put("gone", address, None, |_| {});
    rig.change(|writer| writer.remove_container(&ContainerId::new("gone").unwrap()));
    rig.new_key("stranger");
    let cases = [
        (rig.login("good"), "stranger"),
        (rig.login("stopped"), "owner"),
        (rig.login("off"), "owner"),
        (rig.login("both"), "owner"),
        (rig.login("theirs"), "owner"),
        (rig.login("gone"), "owner"),
        (rig.login("none"), "owner"),
        ("a b.good".to_owned(), "owner"),
        ("..".to_owned(), "owner"),
        ("root".to_owned(), "owner"),
    ];
    let mut seen = HashSet::new();
    let mut times = vec![Duration::MAX; cases.len()];
    // A lookup takes microseconds, and the pad is the same for all: what differs is noise. The
    // quickest of some counts, for the machine has other things to do.
    let is_even = |times: &[Duration]| {
        let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
        *most < *least + Duration::from_millis(150)
    };
    let mut rounds = 0;
    while rounds < 3 || rounds < 12 && !is_even(&times) {
        rounds += 1;
        for (n, (user, key)) in cases.iter().enumerate() {
            // Each from an address of its own, or the later ones would take longer.
            let from = format!("127.0.{rounds}.{}", n + 1);
            let (said, took) = refused(&rig, user, key, &from).await;
            assert!(
                said.iter().all(|line| !line.contains("accepts")),
                "{said:?}"
            );
            seen.insert(said);
            times[n] = times[n].min(took);
        }
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(
        times.iter().all(|time| *time >= Duration::from_millis(250)),
        "{times:?}"
    );
    assert!(is_even(&times), "{times:?}");
    let refused = format!(
        "ssh_auth_total{{result=\"refused\"}} {}",
        rounds * cases.len()
    );
    assert!(rig.metrics().contains(&refused));
    assert!(!rig.metrics().contains("accepted"));
}

/// S11: MD5 of a key was enough, and anything passed for a key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_md5_fingerprints_nor_dss_keys_get_in() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let key = |name: &str| rig.at(name);
    let fingerprint = async |name: &str, hash: &str| {
        let list = stdout(command("ssh-keygen").args(["-l", "-E", hash, "-f", &key(name)])).await;
        list.split(' ').nth(1).unwrap().to_owned()
    };
    let md5 = fingerprint("owner", "md5").await;
    assert!(md5.starts_with("MD5:"));
    let bare = md5.trim_start_matches("MD5:");
    rig.put_keys(super::rig::OWNER, &[(1, &md5), (2, bare)]);
    refused(&rig, &rig.login("c1"), "owner", "127.0.0.1").await;

    stdout(command("ssh-keygen").args(["-q", "-N", "", "-t", "dsa", "-f", &key("dss")])).await;
    let (dss, owner) = (
        fingerprint("dss", "sha256").await,
        fingerprint("owner", "sha256").await,
    );
    rig.put_keys(super::rig::OWNER, &[(3, &dss), (1, &owner)]);
    let weak = ["-o", "PubkeyAcceptedAlgorithms=+ssh-dss"];
    let output = output(rig.ssh_as(&rig.login("c1"), "dss", &weak).arg("true")).await;
    assert_eq!(output.status.code(), Some(255));
    assert_eq!(stdout(rig.ssh("c1").arg("echo in")).await, "in\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_keys_are_offered_and_the_identification_has_no_version() {
    let rig = Rig::start().await;
    let options = [
        "-o",
        "PreferredAuthentications=password",
        "-o",
        "BatchMode=no",
    ];
    let ssh = &mut rig.ssh_as("c1", "owner", &options);
    let output = output(ssh.env("SSH_ASKPASS_REQUIRE", "never").arg("true")).await;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("Permission denied (publickey)."), "{text}");

    let mut socket = TcpStream::connect(rig.address).await.unwrap();
    let mut banner = [0; 20];
    within(DEADLINE, "a banner", socket.read_exact(&mut banner))
        .await
        .unwrap();
    assert_eq!(&banner, b"SSH-2.0-EddGateway\r\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rsa_and_ecdsa_keys_log_in() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let mut keys = Vec::new();
    for (id, kind, bits) in [(2, "rsa", "2048"), (3, "ecdsa", "384")] {
        let file = rig.at(kind);
        let mut make = command("ssh-keygen");
        make.args(["-q", "-N", "", "-t", kind, "-b", bits, "-f", &file]);
        stdout(&mut make).await;
        let list = stdout(command("ssh-keygen").args(["-l", "-f", &file])).await;
        keys.push((id, list.split(' ').nth(1).unwrap().to_owned()));
    }
    let specs: Vec<_> = keys.iter().map(|(id, text)| (*id, text.as_str())).collect();
    rig.put_keys(super::rig::OWNER, &specs);
    for kind in ["rsa", "ecdsa"] {
        let mut ssh = rig.ssh_as(&rig.login("c1"), kind, &[]);
        assert_eq!(stdout(ssh.arg("echo in")).await, "in\n", "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sixth_key_of_an_agent_still_gets_in() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let mut options = Vec::new();
    for n in 1..5 {
        let name = format!("wrong{n}");
        rig.new_key(&name);
        options.extend(["-o".to_owned(), format!("IdentityFile={}", rig.at(&name))]);
    }
    options.extend(["-o".to_owned(), format!("IdentityFile={}", rig.at("owner"))]);
    rig.new_key("wrong0");
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    // The named key comes first, then those of the options, in their order.
    let mut ssh = rig.ssh_as(&rig.login("c1"), "wrong0", &options);
    assert_eq!(stdout(ssh.arg("echo in")).await, "in\n");
    assert!(
        rig.metrics()
            .contains("ssh_auth_total{result=\"refused\"} 5")
    );
}

/// With the "none" that most clients begin with, and without: russh counts both alike, and ends a
/// connection only when it is asked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sixth_refused_key_ends_the_connection() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let user = rig.login("c1");
    for begins_with_none in [true, false] {
        let socket = TcpStream::connect(rig.address).await.unwrap();
        let said = Arc::default();
        let trusting = Trusting(Arc::clone(&said));
        let mut client = client::connect_stream(Arc::default(), socket, trusting)
            .await
            .unwrap();
        if begins_with_none {
            let none = client.authenticate_none(&user).await.unwrap();
            assert!(!none.success());
        }
        for n in 1..=6 {
            assert!(!client.is_closed(), "before the key {n}");
            let stranger = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
            let stranger = PrivateKeyWithHashAlg::new(Arc::new(stranger), None);
            let result = client.authenticate_publickey(&user, stranger).await;
            assert!(!result.unwrap().success(), "{n}");
        }
        let closed = eventually("the end", || async { client.is_closed() });
        within(Duration::from_secs(5), "the end", closed).await;
        let said = said.lock().unwrap().clone();
        assert_eq!(said.as_deref(), Some("Too many authentication failures"));
        let right = PrivateKeyWithHashAlg::new(Arc::new(rig.key()), None);
        assert!(client.authenticate_publickey(&user, right).await.is_err());
    }
    // The seventh of an agent is too late, and OpenSSH says why.
    let mut options = vec!["-o".to_owned(), "LogLevel=INFO".to_owned()];
    for n in 1..7 {
        let name = format!("wrong{n}");
        rig.new_key(&name);
        let file = if n == 6 {
            rig.at("owner")
        } else {
            rig.at(&name)
        };
        options.extend(["-o".to_owned(), format!("IdentityFile={file}")]);
    }
    rig.new_key("wrong0");
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let output = output(rig.ssh_as(&user, "wrong0", &options).arg("true")).await;
    assert_eq!(output.status.code(), Some(255));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("Too many authentication failures"), "{told}");
    let accepted = "ssh_auth_total{result=\"accepted\"}";
    assert!(!rig.metrics().contains(accepted), "{}", rig.metrics());
}

/// A signature with SHA-1 proves nothing any more. OpenSSH makes none, unless it is told to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_rsa_key_that_signs_with_sha_1_is_refused() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let file = rig.at("rsa");
    let mut make = command("ssh-keygen");
    make.args(["-q", "-N", "", "-t", "rsa", "-b", "2048", "-f", &file]);
    stdout(&mut make).await;
    let key = Arc::new(PrivateKey::read_openssh_file(rig.path("rsa")).unwrap());
    let fingerprint = key.public_key().fingerprint(HashAlg::Sha256).to_string();
    rig.put_keys(super::rig::OWNER, &[(2, &fingerprint)]);
    for (hash, gets_in) in [
        (None, false),
        (Some(HashAlg::Sha256), true),
        (Some(HashAlg::Sha512), true),
    ] {
        let mut client = connect(&rig).await;
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&key), hash);
        let result = client.authenticate_publickey(rig.login("c1"), key).await;
        assert_eq!(result.unwrap().success(), gets_in, "{hash:?}");
    }
    let refused = "ssh_auth_total{result=\"refused\"} 1";
    assert!(rig.metrics().contains(refused), "{}", rig.metrics());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_key_gets_nobody_in() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    assert!(output(rig.ssh("c1").arg("true")).await.status.success());
    rig.put_keys(super::rig::OWNER, &[]);
    let output = output(rig.ssh("c1").arg("true")).await;
    assert_eq!(output.status.code(), Some(255));
}

/// Reads until the server closes; fails if it does not.
async fn until_closed(socket: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    within(DEADLINE, "the server closes", async {
        // A reset is an end, too.
        while let Ok(len @ 1..) = socket.read(&mut buffer).await {
            all.extend_from_slice(&buffer[..len]);
        }
    })
    .await;
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_truncated_and_oversized_beginnings_are_closed() {
    let rig = Rig::start_with(Limits::default(), &["--header-timeout", "1s"]).await;
    let _c = rig.container("c1").await;
    let long = [b"SSH-2.0-".as_slice(), &[b'x'; 100_000]].concat();
    let kex = [b"SSH-2.0-x\r\n".as_slice(), &[0xff; 64]].concat();
    let huge_packet = [b"SSH-2.0-x\r\n".as_slice(), &[0x7f, 0xff, 0xff, 0xff, 0]].concat();
    let beginnings: [&[u8]; 7] = [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"SSH-1.5-old\r\n",
        b"\0\0\0\0\0\0\0\0\n\n\n\n",
        &long,
        &kex,
        &huge_packet,
        b"SSH-2.0",
    ];
    for bytes in beginnings {
        let mut socket = TcpStream::connect(rig.address).await.unwrap();
        let _ = socket.write_all(bytes).await;
        until_closed(&mut socket).await;
    }
    for cut in [0, 1, 9] {
        let mut socket = TcpStream::connect(rig.address).await.unwrap();
        socket.write_all(&b"SSH-2.0-x\r\n"[..cut]).await.unwrap();
        socket.shutdown().await.unwrap();
        until_closed(&mut socket).await;
    }
    assert_eq!(stdout(rig.ssh("c1").arg("echo in")).await, "in\n");
    eventually("nothing stays", || async { rig.connections() == 0 }).await;
    assert!(rig.metrics().contains("panics_total 0"));
}

/// S13: nothing bounded how long a client could stay without a login.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_log_in_in_time_is_cut() {
    let limits = Limits {
        login: Duration::from_millis(700),
        ..Limits::default()
    };
    let rig = Rig::start_with(limits, &[]).await;
    for said in [b"".as_slice(), b"SSH-2.0-slow\r\n"] {
        let begin = Instant::now();
        let mut socket = TcpStream::connect(rig.address).await.unwrap();
        socket.write_all(said).await.unwrap();
        until_closed(&mut socket).await;
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
    assert!(
        rig.metrics()
            .contains("ssh_auth_total{result=\"timeout\"} 1")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_found_elsewhere_is_taken_over_with_its_first_bytes() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let door = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = door.local_addr().unwrap().port();
    let server = rig.server.clone();
    let guard = Arc::new(());
    let held = Arc::clone(&guard);
    // Not a thread of the runtime, as a data thread is none of the SSH runtime.
    std::thread::spawn(move || {
        let (mut socket, peer) = door.accept().unwrap();
        let mut first = [0; 4];
        std::io::Read::read_exact(&mut socket, &mut first).unwrap();
        server.hand_over(socket, Bytes::copy_from_slice(&first), peer, held);
    });
    let alias = format!("HostKeyAlias=[127.0.0.1]:{}", rig.address.port());
    let mut ssh = command("ssh");
    ssh.args(rig.options("owner")).args([
        "-o",
        &alias,
        "-p",
        &port.to_string(),
        "-l",
        &rig.login("c1"),
        "127.0.0.1",
        "echo in",
    ]);
    assert_eq!(stdout(&mut ssh).await, "in\n");
    eventually("the guard goes with the connection", || async {
        Arc::strong_count(&guard) == 1
    })
    .await;
}

/// What the user reads whose channel to this container is not opened.
async fn not_reached(rig: &Rig, id: &str) -> String {
    let ssh = &mut rig.ssh_as(&rig.login(id), "owner", &["-o", "LogLevel=INFO"]);
    let output = output(ssh.arg("true")).await;
    assert_eq!(output.status.code(), Some(255));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("open failed: connect failed: "), "{text}");
    text
}

/// As where the container has no such user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_does_not_let_the_gateway_in_is_told_from_one_that_is_not_there() {
    let rig = Rig::start().await;
    let stranger = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    let stranger = stranger.public_key().to_openssh().unwrap();
    let at = rig.target(free_address());
    let c1 = Sshd::start(&rig.path("c1"), at, &stranger, &[]).await;
    rig.put("c1", c1.address, Some(&c1.host_key), |_| {});
    let text = not_reached(&rig, "c1").await;
    assert!(
        text.contains("does not let the gateway in as this user"),
        "{text}"
    );
    rig.put("c1", free_address(), None, |_| {});
    let text = not_reached(&rig, "c1").await;
    assert!(text.contains("the container cannot be reached"), "{text}");
}

/// S10: whatever answered at the container's name was spoken to, whoever it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_with_another_host_key_is_not_spoken_to() {
    logs::watch();
    let rig = Rig::start().await;
    let id = "logged-impostor";
    let c1 = rig.sshd("c1", &[]).await;
    let other = Fake::start(rig.target(free_address()), Vice::None).await;
    rig.put(id, c1.address, Some(&other.host_key), |_| {});
    let text = not_reached(&rig, id).await;
    assert!(
        text.contains("the container shows a wrong host key"),
        "{text}"
    );
    let log = std::fs::read_to_string(rig.path("c1/log")).unwrap();
    assert!(!log.contains("Accepted"), "{log}");
    // For the operator, before the channel is refused.
    let lines = logs::lines(id);
    let warned = lines.iter().find(|line| line.starts_with("WARN "));
    let warned = warned.unwrap_or_else(|| panic!("{lines:#?}"));
    for part in [
        "container not reached by ssh",
        &format!("address={}", c1.address),
        "host key",
    ] {
        assert!(warned.contains(part), "{part}: {warned}");
    }

    rig.put(
        id,
        c1.address,
        Some(&format!("{} root@c1", c1.host_key)),
        |_| {},
    );
    assert_eq!(stdout(rig.ssh(id).arg("echo in")).await, "in\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_host_key_of_a_start_is_kept_until_the_next_start() {
    let rig = Rig::start().await;
    let mut first = rig.sshd("c1", &[]).await;
    rig.put("c1", first.address, None, |_| {});
    assert_eq!(stdout(rig.ssh("c1").arg("echo in")).await, "in\n");

    first.child.kill().await.unwrap();
    let at = rig.target(first.address);
    let _second = Fake::start(at, Vice::None).await;
    let output = output(rig.ssh("c1").arg("true")).await;
    assert_eq!(
        output.status.code(),
        Some(255),
        "another key on the same address"
    );

    rig.put("c1", first.address, None, |spec| {
        if let Some(run) = &mut spec.running {
            run.start = 2;
        }
    });
    let mut ssh = rig.ssh("c1").arg("x").spawn().unwrap();
    let spoken = || {
        rig.metrics()
            .contains("upstream_connections{state=\"active\"} 1")
    };
    eventually("a new start, a new key", || async { spoken() }).await;
    ssh.kill().await.unwrap();
}

/// Stands before a container: each connection goes through `meet` first.
pub(super) async fn in_front<F: Future<Output = bool> + Send>(
    at: SocketAddr,
    behind: SocketAddr,
    meet: impl Fn(usize) -> F + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    let listener = TcpListener::bind(at).await.unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let meet = Arc::new(meet);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let n = counter.fetch_add(1, Ordering::SeqCst);
            if !meet(n).await {
                continue;
            }
            tokio::spawn(async move {
                let mut behind = TcpStream::connect(behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut socket, &mut behind).await;
            });
        }
    });
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_drops_log_ins_is_tried_again() {
    let rig = Rig::start().await;
    let c1 = rig.sshd("c1", &[]).await;
    let address = free_address();
    let behind = rig.target(c1.address);
    let tries = in_front(rig.target(address), behind, |n| async move { n >= 2 }).await;
    rig.put("c1", address, Some(&c1.host_key), |_| {});
    assert_eq!(stdout(rig.ssh("c1").arg("echo in")).await, "in\n");
    assert_eq!(tries.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_always_drops_is_given_up() {
    let rig = Rig::start().await;
    let address = free_address();
    let at = rig.target(address);
    let tries = in_front(at, at, |_| async { false }).await;
    rig.put("c1", address, None, |_| {});
    let ssh = &mut rig.ssh_as(&rig.login("c1"), "owner", &["-o", "LogLevel=INFO"]);
    let output = output(ssh.arg("true")).await;
    assert_eq!(output.status.code(), Some(255));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("open failed: connect failed"), "{text}");
    assert_eq!(tries.load(Ordering::SeqCst), 4);
}

/// S13, of containers: one that takes the connection and says nothing kept its client for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_says_nothing_or_no_more_is_given_up() {
    let limits = Limits {
        container_login: Duration::from_secs(1),
        ..Limits::default()
    };
    let rig = Rig::start_with(limits, &[]).await;
    for said in ["", "SSH-2.0-half\r\n"] {
        let address = rig.target(free_address());
        let silent = TcpListener::bind(address).await.unwrap();
        rig.put("c1", address.ip(), None, |_| {});
        let taking = tokio::spawn(async move {
            let mut taken = Vec::new();
            while let Ok((mut socket, _)) = silent.accept().await {
                socket.write_all(said.as_bytes()).await.unwrap();
                taken.push(socket);
            }
        });
        let begin = Instant::now();
        let ssh = &mut rig.ssh_as(&rig.login("c1"), "owner", &["-o", "LogLevel=INFO"]);
        let output = output(ssh.arg("true")).await;
        assert_eq!(output.status.code(), Some(255), "{said:?}");
        assert!(begin.elapsed() >= limits.container_login, "{said:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("open failed: connect failed"), "{text}");
        eventually("nothing stays", || async {
            rig.shared.gate.upstreams() == 0
        })
        .await;
        taking.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_banner_is_waited_for() {
    let rig = Rig::start().await;
    let c1 = rig.sshd("c1", &[]).await;
    let address = free_address();
    let slow = |_| async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        true
    };
    let _ = in_front(rig.target(address), rig.target(c1.address), slow).await;
    rig.put("c1", address, Some(&c1.host_key), |_| {});
    assert_eq!(stdout(rig.ssh("c1").arg("echo in")).await, "in\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_is_not_there_fails_the_channel_only() {
    let rig = Rig::start().await;
    rig.put("c1", free_address(), None, |_| {});
    let begin = Instant::now();
    let ssh = &mut rig.ssh_as(&rig.login("c1"), "owner", &["-o", "LogLevel=INFO"]);
    let output = output(ssh.arg("true")).await;
    assert_eq!(output.status.code(), Some(255));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("open failed: connect failed"), "{text}");
    assert!(begin.elapsed() < Duration::from_secs(5));
}
