//! Signals, socket activation and readiness, with a fake of systemd around a real process.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::UnixDatagram;
use tokio::time::timeout;

use crate::support::client::{Greeting, dial, leaf, request};
use crate::support::daemon::Daemon;
use crate::support::{DEADLINE, Origin, eventually, free_port};

/// The folder of a gateway, and the socket on which it is heard.
struct Unit {
    folder: TempDir,
    heard: UnixDatagram,
}

impl Unit {
    fn new(host: &str, origin: &Origin) -> Self {
        let folder = TempDir::new().unwrap();
        let heard = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        let unit = Self { folder, heard };
        unit.write_routes(host, origin);
        unit
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write_routes(&self, host: &str, origin: &Origin) {
        let text = format!("routes:\n- host: {host}\n  target: {}\n", origin.address);
        std::fs::write(self.path().join("routes.yaml"), text).unwrap();
    }

    fn flags(given: &[&str]) -> Vec<String> {
        let listeners = ["http", "https", "ssh", "admin"].map(|name| format!("--{name}-addr="));
        let rest = listeners
            .iter()
            .filter(|flag| !given.iter().any(|given| given.starts_with(flag.as_str())));
        let port = format!("--ports={}", free_port());
        rest.map(|flag| format!("{flag}127.0.0.1:0"))
            .chain(given.iter().map(|&flag| flag.to_owned()))
            .chain([port])
            .collect()
    }

    /// The next thing that systemd is told.
    async fn told(&self) -> String {
        let mut buffer = [0; 1024];
        let told = timeout(DEADLINE, self.heard.recv(&mut buffer)).await;
        let len = told.expect("something is told").unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    /// Waits until it is told; other things may be told before.
    async fn until_told(&self, what: &str) -> String {
        loop {
            let told = self.told().await;
            if told.contains(what) {
                return told;
            }
        }
    }
}

async fn answers(address: std::net::SocketAddr, host: &str) -> bool {
    let mut stream = Greeting::anyone(host).dial(address).await.unwrap();
    request(&mut stream, host)
        .await
        .starts_with("HTTP/1.1 200 ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn given_sockets_are_listened_on_and_systemd_hears_of_each_step() {
    let origin = Origin::friendly("127.0.0.1").await;
    let unit = Unit::new("a.localhost", &origin);
    let given = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let [https, http] = given.each_ref().map(|given| given.local_addr().unwrap());
    // Connections that came before there was a gateway.
    let early = dial(https).await;
    // The descriptors arrive as 3 and 4, as systemd hands them over.
    let script = "exec 3<&0 4<&2 0</dev/null 2>&1; LISTEN_PID=$$ exec \"$@\"";
    let flags = Unit::flags(&[
        &format!("--https-addr={https}"),
        &format!("--http-addr={http}"),
        "--workers=3",
    ]);
    let [https_socket, http_socket] = given.map(OwnedFd::from);
    let mut command = Daemon::command(unit.path(), script, &flags);
    command
        .env("LISTEN_FDS", "2")
        .env("LISTEN_FDNAMES", "https:unknown")
        .env("NOTIFY_SOCKET", unit.path().join("notify"))
        .stdin(Stdio::from(https_socket))
        .stderr(Stdio::from(http_socket));
    let mut daemon = Daemon::start(command);
    // Nobody else holds the sockets now but the gateway.
    let ready = unit.told().await;
    assert_eq!(ready, format!("READY=1\nMAINPID={}", daemon.pid()));
    let mut early = Greeting::anyone("a.localhost").shake(early).await.unwrap();
    let answer = request(&mut early, "a.localhost").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let redirected = request(&mut dial(http).await, "a.localhost").await;
    assert!(redirected.starts_with("HTTP/1.1 308 "), "{redirected}");

    // SIGHUP: routes and certificates are read again. R6: a renewed certificate is served.
    let before = leaf(&Greeting::anyone("b.localhost").dial(https).await.unwrap());
    unit.write_routes("b.localhost", &origin);
    let pair = rcgen::generate_simple_self_signed(["b.localhost".to_owned()]).unwrap();
    let certs = unit.path().join("certs");
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::write(certs.join("tls.key"), pair.signing_key.serialize_pem()).unwrap();
    std::fs::write(certs.join("tls.crt"), pair.cert.pem()).unwrap();
    daemon.signal(Signal::HUP);
    let reloading = unit.told().await;
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert!(unit.told().await.starts_with("READY=1"));
    // At once: what was told is so.
    let stream = Greeting::anyone("b.localhost").dial(https).await.unwrap();
    assert_eq!(&leaf(&stream)[..], &pair.cert.der()[..]);
    assert_ne!(&leaf(&stream)[..], &before[..]);
    assert!(answers(https, "b.localhost").await);

    daemon.signal(Signal::TERM);
    assert_eq!(unit.told().await, "STOPPING=1");
    assert_eq!(daemon.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_or_a_socket_that_means_nothing_is_refused() {
    let origin = Origin::friendly("127.0.0.1").await;
    let unit = Unit::new("a.localhost", &origin);
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let script = "exec 3<&0 0</dev/null; LISTEN_PID=$$ exec \"$@\"";
    let mut command = Daemon::command(unit.path(), script, &Unit::flags(&[]));
    command
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "ftp")
        .stdin(Stdio::from(OwnedFd::from(socket)));
    let mut daemon = Daemon::start(command);
    assert_eq!(daemon.ended().await.code(), Some(64));
    let file = std::fs::File::open("/dev/zero").unwrap();
    let mut command = Daemon::command(unit.path(), script, &Unit::flags(&[]));
    command.env("LISTEN_FDS", "1").stdin(Stdio::from(file));
    let mut daemon = Daemon::start(command);
    assert_eq!(daemon.ended().await.code(), Some(64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigusr2_starts_a_successor_and_systemd_follows_it() {
    let origin = Origin::friendly("127.0.0.1").await;
    let unit = Unit::new("a.localhost", &origin);
    let flags = Unit::flags(&[]);
    let mut command = Daemon::command(unit.path(), "exec \"$@\"", &flags);
    command.env("NOTIFY_SOCKET", unit.path().join("notify"));
    let mut old = Daemon::start(command);
    let https = old.address("https").await;
    assert!(
        unit.told()
            .await
            .contains(&format!("MAINPID={}", old.pid()))
    );
    let first = old.pid();

    old.signal(Signal::USR2);
    let ready = unit.until_told("READY=1").await;
    let (_, pid) = ready.split_once("MAINPID=").unwrap();
    let pid: i32 = pid.parse().unwrap();
    assert_ne!(pid.cast_unsigned(), first);
    assert_eq!(old.ended().await.code(), Some(0), "the old one is done");
    assert!(answers(https, "a.localhost").await);
    // A killed successor costs nothing as long as it does not serve; this one does, and ends.
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(unit.until_told("STOPPING").await, "STOPPING=1");
    eventually("nobody listens", || async {
        tokio::net::TcpStream::connect(https).await.is_err()
    })
    .await;
}

/// A new process that hangs with the control path in its hands is ended: the old one goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_hangs_is_killed_before_the_old_process_goes_on() {
    let origin = Origin::friendly("127.0.0.1").await;
    let unit = Unit::new("a.localhost", &origin);
    let flags = Unit::flags(&[]);
    let mut old = Daemon::start(Daemon::command(unit.path(), "exec \"$@\"", &flags));
    let https = old.address("https").await;
    // It asks for everything, says what it should not and then nothing, and does not go.
    let script = "import os, socket, sys, time\n\
        s = socket.socket(socket.AF_UNIX)\n\
        s.connect('data/take-over.sock')\n\
        s.sendall(b'take over 1\\n')\n\
        socket.recv_fds(s, 1 << 16, 64)\n\
        s.sendall(b'release\\nnonsense\\n')\n\
        time.sleep(3600)\n";
    let mut hanging = tokio::process::Command::new("python3")
        .args(["-c", script])
        .current_dir(unit.path())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    old.line("did not take over, going on").await;
    unit.write_routes("b.localhost", &origin);
    assert!(answers(https, "a.localhost").await, "it serves meanwhile");
    let ended = timeout(DEADLINE, hanging.wait())
        .await
        .expect("killed")
        .unwrap();
    assert!(!ended.success());
    old.line("static routes in force").await;
    assert!(answers(https, "b.localhost").await);
}

/// An upgrade leads a link to another file: that is what is started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigusr2_starts_what_the_link_leads_to_by_then() {
    let origin = Origin::friendly("127.0.0.1").await;
    let unit = Unit::new("a.localhost", &origin);
    let (link, marker) = (unit.path().join("edd-gateway"), unit.path().join("started"));
    let first = env!("CARGO_BIN_EXE_edd-gateway");
    std::os::unix::fs::symlink(first, &link).unwrap();
    let flags = Unit::flags(&[]);
    // By its path, and by a name that is found in PATH.
    for script in [
        "shift; exec ./edd-gateway \"$@\"",
        "shift; PATH=$PWD:$PATH; exec edd-gateway \"$@\"",
    ] {
        let mut command = Daemon::command(unit.path(), script, &flags);
        command.env("NOTIFY_SOCKET", unit.path().join("notify"));
        let mut old = Daemon::start(command);
        let https = old.address("https").await;
        unit.until_told("READY=1").await;
        // The new version says that it was started, and is the same otherwise.
        let second = format!("#!/bin/sh\n: >{}\nexec {first} \"$@\"\n", marker.display());
        let version = unit.path().join("second");
        std::fs::write(&version, second).unwrap();
        std::fs::set_permissions(&version, std::fs::Permissions::from_mode(0o755)).unwrap();
        let new_link = unit.path().join("new");
        std::os::unix::fs::symlink(&version, &new_link).unwrap();
        std::fs::rename(&new_link, &link).unwrap();
        old.signal(Signal::USR2);
        let ready = unit.until_told("READY=1").await;
        let is_new = marker.exists();
        assert_eq!(old.ended().await.code(), Some(0), "the old one is done");
        assert!(answers(https, "a.localhost").await);
        let (_, pid) = ready.split_once("MAINPID=").unwrap();
        let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        unit.until_told("STOPPING").await;
        eventually("nobody listens", || async {
            tokio::net::TcpStream::connect(https).await.is_err()
        })
        .await;
        assert!(is_new, "the old version was started again");
        std::fs::remove_file(&marker).unwrap();
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(first, &link).unwrap();
    }
}

/// Files that cannot be read, for their disk is away, keep nobody from stopping it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_hangs_does_not_hold_up_the_stop() {
    let origin = Origin::friendly("127.0.0.1").await;
    for name in ["routes.yaml", "certs/tls.crt"] {
        let unit = Unit::new("a.localhost", &origin);
        let mut command = Daemon::command(unit.path(), "exec \"$@\"", &Unit::flags(&[]));
        command.env("NOTIFY_SOCKET", unit.path().join("notify"));
        let mut daemon = Daemon::start(command);
        unit.until_told("READY=1").await;
        // Whoever opens it waits for somebody to write to it.
        let file = unit.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&file);
        let made = std::process::Command::new("mkfifo").arg(&file).status();
        assert!(made.unwrap().success());
        daemon.signal(Signal::HUP);
        unit.until_told("RELOADING=1").await;
        let begun = Instant::now();
        daemon.signal(Signal::TERM);
        unit.until_told("STOPPING=1").await;
        assert_eq!(daemon.ended().await.code(), Some(0), "{name}");
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(20), "{name}: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_is_killed_leaves_the_old_process_as_it_was() {
    let origin = Origin::friendly("127.0.0.1").await;
    let unit = Unit::new("a.localhost", &origin);
    let flags = Unit::flags(&[]);
    let mut old = Daemon::start(Daemon::command(unit.path(), "exec \"$@\"", &flags));
    let https = old.address("https").await;
    // NATS takes the connection and says nothing: it is not ready for two seconds.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nats = silent.local_addr().unwrap();
    let mut stuck = flags.clone();
    stuck.extend(["--take-over".into(), format!("--nats-url=nats://{nats}")]);
    for _ in 0..2 {
        let mut new = Daemon::start(Daemon::command(unit.path(), "exec \"$@\"", &stuck));
        old.line("a new process wants to take over").await;
        // By then it has everything but readiness.
        let (_nats, _) = timeout(DEADLINE, silent.accept()).await.unwrap().unwrap();
        new.signal(Signal::KILL);
        assert!(!new.ended().await.success());
        old.line("did not take over, going on").await;
        assert!(answers(https, "a.localhost").await);
    }
    unit.write_routes("b.localhost", &origin);
    old.line("static routes in force").await;
    assert!(answers(https, "b.localhost").await);
    old.signal(Signal::TERM);
    assert_eq!(old.ended().await.code(), Some(0));
}
