//! Forwardings of OpenSSH's client: ports and sockets both ways, SOCKS, jumps, agent.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::process::Child;
use tokio::task::JoinSet;

use super::rig::{
    Rig, command, exit_code, free_address, noise, output, stdout, unix_user, until_text, within,
};
use crate::support::{DEADLINE, eventually, free_port};

/// Speaks first, echoes until the end of data, then says goodbye.
async fn echo(mut socket: impl AsyncRead + AsyncWrite + Unpin) {
    let (mut read, mut write) = tokio::io::split(&mut socket);
    let talk = async {
        write.write_all(b"hello ").await?;
        tokio::io::copy(&mut read, &mut write).await?;
        write.write_all(b" bye").await?;
        write.shutdown().await
    };
    let _ = talk.await;
}

/// An [`echo`] on a free port.
async fn echo_on_a_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(echo(socket));
        }
    });
    address
}

/// An [`echo`] on a Unix socket.
fn echo_on_a_socket(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(echo(socket));
        }
    });
}

/// Sends noise to an [`echo`] that is reached by some way, and has all of it back.
async fn talk(socket: impl AsyncRead + AsyncWrite, len: usize) {
    let data = noise(len);
    let mut back = Vec::new();
    let (mut read, mut write) = tokio::io::split(socket);
    let send = async {
        write.write_all(&data).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let both = async { tokio::join!(send, read.read_to_end(&mut back)) };
    within(DEADLINE, "an echo", both).await.1.unwrap();
    let wanted = [b"hello ", &data[..], b" bye"].concat();
    assert!(back == wanted, "{} of {}", back.len(), wanted.len());
}

/// `ssh -N` with forwardings, which must all stand; its words about them come on standard error.
fn forwarding(rig: &Rig, options: &[&str]) -> Child {
    let usual = [
        "-N",
        "-o",
        "ExitOnForwardFailure=yes",
        "-o",
        "LogLevel=INFO",
    ];
    let all = [&usual, options].concat();
    rig.ssh_as(&rig.login("c1"), "owner", &all)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

async fn reachable(address: SocketAddr) {
    eventually("the forward listens", || async {
        TcpStream::connect(address).await.is_ok()
    })
    .await;
}

/// The port in "Allocated port N for remote forward".
async fn allocated(ssh: &mut Child) -> u16 {
    let mut stderr = ssh.stderr.take().unwrap();
    let mut seen = String::new();
    let read = async {
        while !seen.contains("for remote forward") {
            seen.push(char::from(stderr.read_u8().await.unwrap()));
        }
    };
    within(DEADLINE, "a port", read).await;
    let port = seen.split("Allocated port ").nth(1).unwrap();
    let port = port.split(' ').next().unwrap().parse().unwrap();
    ssh.stderr = Some(stderr);
    port
}

/// C7: global requests were dropped: no `-R`, and keepalives unanswered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_forward_carries_connections_and_their_half_close() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let target = echo_on_a_port().await;
    let port = free_port();
    let forward = format!("127.0.0.1:{port}:{target}");
    let any = format!("0:{target}");
    let mut ssh = forwarding(&rig, &["-R", &forward, "-R", &any]);
    let chosen = allocated(&mut ssh).await;
    assert_ne!(chosen, 0);
    let mut connections = JoinSet::new();
    for n in 0..10_u16 {
        let port = if n % 2 == 0 { port } else { chosen };
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        reachable(at).await;
        connections.spawn(async move {
            let socket = TcpStream::connect(at).await.unwrap();
            talk(socket, 300_000 + usize::from(n)).await;
        });
    }
    connections.join_all().await;
    ssh.kill().await.unwrap();
    eventually("the container listens no more", || async {
        TcpStream::connect(("127.0.0.1", port)).await.is_err()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_sockets_are_forwarded_both_ways() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let (there, here) = (rig.path("there.echo"), rig.path("here.echo"));
    echo_on_a_socket(&there);
    echo_on_a_socket(&here);
    let local = format!("{}:{}", rig.at("local.sock"), there.display());
    let remote = format!("{}:{}", rig.at("remote.sock"), here.display());
    let dead = format!("{}:{}", rig.at("dead.sock"), rig.at("nobody"));
    let mut ssh = forwarding(&rig, &["-L", &local, "-R", &remote, "-L", &dead]);
    for name in ["local.sock", "remote.sock"] {
        let path = rig.path(name);
        // The file is there a moment before anybody listens.
        eventually("the forward listens", || async {
            UnixStream::connect(&path).await.is_ok()
        })
        .await;
        for len in [1, 500_000] {
            talk(UnixStream::connect(&path).await.unwrap(), len).await;
        }
    }
    let mut refused = UnixStream::connect(rig.path("dead.sock")).await.unwrap();
    let mut nothing = Vec::new();
    let end = refused.read_to_end(&mut nothing);
    within(DEADLINE, "a refusal", end).await.unwrap();
    assert!(nothing.is_empty());
    ssh.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_forward_can_be_taken_back_and_asked_for_again() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let _master = rig.master("c1").await;
    let target = echo_on_a_port().await;
    let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let forward = format!("{at}:{target}");
    let socket = format!("ControlPath={}", rig.at("master"));
    let user = rig.login("c1");
    for _ in 0..2 {
        let ask = ["-o", &socket, "-O", "forward", "-R", &forward];
        stdout(&mut rig.ssh_as(&user, "owner", &ask)).await;
        talk(TcpStream::connect(at).await.unwrap(), 10).await;
        // A port that is taken is refused, and the first stands.
        let taken = format!("{target}:{target}");
        let ask = ["-o", &socket, "-O", "forward", "-R", &taken];
        let refused = output(&mut rig.ssh_as(&user, "owner", &ask)).await;
        assert!(!refused.status.success());
        talk(TcpStream::connect(at).await.unwrap(), 10).await;
        let cancel = ["-o", &socket, "-O", "cancel", "-R", &forward];
        stdout(&mut rig.ssh_as(&user, "owner", &cancel)).await;
        eventually("the container listens no more", || async {
            TcpStream::connect(at).await.is_err()
        })
        .await;
    }
    assert_eq!(stdout(rig.ssh_over("c1").arg("echo in")).await, "in\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_forward_that_the_container_refuses_is_refused() {
    let rig = Rig::start().await;
    let c1 = rig.sshd("c1", &["AllowTcpForwarding=local"]).await;
    rig.put("c1", c1.address, Some(&c1.host_key), |_| {});
    let mut ssh = forwarding(&rig, &["-R", "0:127.0.0.1:1"]);
    assert_eq!(exit_code(&mut ssh).await, Some(255));
    let options = ["-R", "0:127.0.0.1:1"];
    let mut ssh = rig.ssh_as(&rig.login("c1"), "owner", &options);
    assert_eq!(stdout(ssh.arg("echo in")).await, "in\n");
}

/// With them the listeners are gone, and the protocol cannot say so otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_told_when_its_remote_forwards_are_lost() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let mut ssh = forwarding(&rig, &["-R", "0:127.0.0.1:1"]);
    let port = allocated(&mut ssh).await;
    let sessions = session_of(port).await;
    rustix::process::kill_process(sessions, rustix::process::Signal::KILL).unwrap();
    let mut stderr = ssh.stderr.take().unwrap();
    until_text(&mut stderr, "its forwarded ports with it").await;
    assert_eq!(exit_code(&mut ssh).await, Some(255));
}

/// The process that listens on a port: sshd's, for the connection that asked.
async fn session_of(port: u16) -> rustix::process::Pid {
    let wanted = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let line = table
        .lines()
        .find(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|local| local.ends_with(&wanted))
                && fields.nth(1) == Some("0A")
        })
        .expect("somebody listens");
    let inode = format!("socket:[{}]", line.split_whitespace().nth(9).unwrap());
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let files = std::fs::read_dir(entry.path().join("fd"));
        let mut files = files.into_iter().flatten().flatten();
        let is_it = files.any(|file| {
            std::fs::read_link(file.path()).is_ok_and(|to| to.to_string_lossy() == inode)
        });
        if is_it {
            return rustix::process::Pid::from_raw(pid).unwrap();
        }
    }
    panic!("nobody listens on {port}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_is_reachable_where_it_was_asked_for() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let socket = rig.at("agent.sock");
    let mut agent = command("ssh-agent")
        .args(["-D", "-a", &socket])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("an agent", || async { Path::new(&socket).exists() }).await;
    let mut add = command("ssh-add");
    add.env("SSH_AUTH_SOCK", &socket).arg(rig.path("owner"));
    assert!(output(&mut add).await.status.success());
    let fingerprint = rig
        .key()
        .public_key()
        .fingerprint(russh::keys::HashAlg::Sha256);

    let port = rig.address.port().to_string();
    let mut ssh = command("ssh");
    // The first of several is the one that counts.
    ssh.args(["-A", "-o", &format!("IdentityAgent={socket}")])
        .args(rig.options("owner"))
        .args(["-p", &port, "-l", &rig.login("c1"), "127.0.0.1"]);
    // Several at once: each is a channel of its own.
    let run = "for n in 1 2 3; do ssh-add -l & done; wait";
    let text = stdout(ssh.arg(run)).await;
    assert_eq!(text.matches(&fingerprint.to_string()).count(), 3, "{text}");
    let mut ssh = rig.ssh("c1");
    let text = stdout(
        ssh.env("SSH_AUTH_SOCK", &socket)
            .arg("echo [$SSH_AUTH_SOCK]"),
    )
    .await;
    assert_eq!(text, "[]\n");
    agent.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socks_proxy_reaches_what_the_container_reaches() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let site = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = site.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = site.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 16];
                let _ = socket.read(&mut head).await;
                let answer = "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi";
                let _ = socket.write_all(answer.as_bytes()).await;
            });
        }
    });
    let port = free_port();
    let proxy = format!("127.0.0.1:{port}");
    let mut ssh = forwarding(&rig, &["-D", &proxy]);
    reachable(SocketAddr::from(([127, 0, 0, 1], port))).await;
    let mut runs = JoinSet::new();
    for _ in 0..5 {
        let mut curl = command("curl");
        curl.args(["-sS", "--max-time", "15", "--socks5-hostname", &proxy])
            .arg(format!("http://localhost:{}/", target.port()))
            .env_remove("http_proxy")
            .env("no_proxy", "");
        runs.spawn(async move { stdout(&mut curl).await });
    }
    for text in runs.join_all().await {
        assert_eq!(text, "hi");
    }
    ssh.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_is_a_jump_host_to_what_the_container_reaches() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    // Behind the container, with a key of its own.
    let behind = rig.sshd("behind", &[]).await;
    rig.new_key("inner");
    let inner = russh::keys::PrivateKey::read_openssh_file(rig.path("inner")).unwrap();
    let line = inner.public_key().to_openssh().unwrap();
    std::fs::write(rig.path("behind/authorized"), line).unwrap();
    let at = rig.target(behind.address);
    let known = std::fs::read_to_string(rig.path("known_hosts")).unwrap();
    let known = format!("{known}[{}]:{} {}\n", at.ip(), at.port(), behind.host_key);
    std::fs::write(rig.path("known_hosts"), known).unwrap();
    // Options for the jump host can only come from a file.
    let config = format!(
        "Host *\n BatchMode yes\n IdentitiesOnly yes\n IdentityAgent none\n \
         StrictHostKeyChecking yes\n GlobalKnownHostsFile /dev/null\n LogLevel ERROR\n \
         UserKnownHostsFile {}\nHost 127.0.0.1\n IdentityFile {}\nHost {}\n IdentityFile {}\n",
        rig.at("known_hosts"),
        rig.at("owner"),
        at.ip(),
        rig.at("inner"),
    );
    std::fs::write(rig.path("config"), config).unwrap();
    let jump = format!("{}@127.0.0.1:{}", rig.login("c1"), rig.address.port());
    let mut ssh = command("ssh");
    ssh.args(["-F", &rig.at("config"), "-J", &jump])
        .args(["-p", &at.port().to_string(), "-l", &unix_user()])
        .args([&at.ip().to_string(), "echo $SSH_CONNECTION"]);
    let text = stdout(&mut ssh).await;
    assert!(text.contains(&at.ip().to_string()), "{text}");
}

/// An address that takes no connection and refuses none: its queue of waiting ones is full.
pub(crate) async fn black_hole() -> (SocketAddr, Vec<TcpStream>, TcpListener) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(free_address(), 0)).unwrap();
    let listener = socket.listen(1).unwrap();
    let at = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    let short = Duration::from_millis(300);
    while let Ok(Ok(stream)) = tokio::time::timeout(short, TcpStream::connect(at)).await {
        waiting.push(stream);
        assert!(waiting.len() < 100, "it takes everything");
    }
    (at, waiting, listener)
}

/// C3: a channel ended with an exit status only, so the first forward blocked its connection for
/// ever. The dial that never ends is only a channel's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forward_to_a_black_hole_freezes_nothing_else() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let _master = rig.master("c1").await;
    let (hole, _waiting, _listener) = black_hole().await;
    let socket = format!("ControlPath={}", rig.at("master"));
    let user = rig.login("c1");
    let mut lost = Vec::new();
    for _ in 0..3 {
        let options = ["-o", &socket, "-W", &hole.to_string()];
        let mut ssh = rig.ssh_as(&user, "owner", &options);
        lost.push(ssh.stdin(Stdio::piped()).spawn().unwrap());
    }
    let upstreams = || rig.metrics().contains("state=\"active\"} 4");
    eventually("three dials", || async {
        upstreams() || rig.shared.gate.upstreams() >= 3
    })
    .await;
    let target = echo_on_a_port().await;
    for n in 0..3 {
        let mut command = rig.ssh_over("c1");
        let run = format!("echo {n}");
        let echo = stdout(command.arg(&run));
        let text = within(DEADLINE, "a command", echo).await;
        assert_eq!(text, format!("{n}\n"));
        let options = ["-o", &socket, "-W", &target.to_string()];
        let mut ssh = rig.ssh_as(&user, "owner", &options);
        let text = within(DEADLINE, "a forward", stdout(&mut ssh)).await;
        assert_eq!(text, "hello  bye");
    }
    for mut ssh in lost {
        assert!(ssh.try_wait().unwrap().is_none(), "it waits");
        ssh.kill().await.unwrap();
    }
}

/// Forwards that were used leave nothing behind, whichever side ends them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwards_that_have_ended_free_their_connection_to_the_container() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let _master = rig.master("c1").await;
    let target = echo_on_a_port().await;
    let socket = format!("ControlPath={}", rig.at("master"));
    for _ in 0..3 {
        let options = ["-o", &socket, "-W", &target.to_string()];
        stdout(&mut rig.ssh_as(&rig.login("c1"), "owner", &options)).await;
    }
    let begin = std::time::Instant::now();
    // One is kept for the next channel.
    eventually("one connection is left", || async {
        rig.shared.gate.upstreams() <= 1
    })
    .await;
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}
