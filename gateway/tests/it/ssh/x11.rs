//! Windows of programs in the container on the client's display, trusted (`-Y`) and not (`-X`).

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;

use super::rig::{Rig, Sshd, exit_code, until_text, within};
use crate::support::DEADLINE;

/// Where the cookie is in a program's greeting.
const COOKIE: std::ops::Range<usize> = 32..48;

/// Writes a script in the place of `xauth`; its path.
fn xauth(rig: &Rig, name: &str, script: &str) -> String {
    std::fs::write(rig.path(name), format!("#!/bin/sh\n{script}\n")).unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(rig.path(name), mode).unwrap();
    format!("XAuthLocation={}", rig.at(name))
}

/// Sixteen bytes in hexadecimal digits.
fn bytes(digits: &str) -> Vec<u8> {
    assert_eq!(digits.len(), 32, "{digits}");
    let pairs = (0..16).map(|at| &digits[2 * at..2 * at + 2]);
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

/// A container whose sshd notes what it tells xauth, for the program that connects.
async fn container(rig: &Rig) -> Sshd {
    let note = format!("cat >>{}", rig.at("cookie"));
    let location = xauth(rig, "xauth", &note);
    let c1 = rig.sshd("c1", &["X11Forwarding=yes", &location]).await;
    rig.put("c1", c1.address, Some(&c1.host_key), |_| {});
    c1
}

/// Runs `ssh` with these options, and in its session a program that shows a window; the greeting
/// that the display took, with the cookie it was given.
async fn window(rig: &Rig, options: &[&str]) -> [u8; 48] {
    // The display: it takes a program's greeting and answers.
    let display = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("127.0.0.1:{}", display.local_addr().unwrap().port() - 6000);
    let greeting = tokio::spawn(async move {
        let (mut socket, _) = display.accept().await.unwrap();
        let mut greeting = [0; 48];
        socket.read_exact(&mut greeting).await.unwrap();
        socket.write_all(b"welcome").await.unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        greeting
    });
    let mut ssh: Child = rig
        .ssh_as(&rig.login("c1"), "owner", options)
        .env("DISPLAY", &name)
        .arg("echo $DISPLAY; exec cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = ssh.stdout.take().unwrap();
    let mut shown = String::new();
    let read = async {
        while !shown.ends_with('\n') {
            shown.push(char::from(pipe.read_u8().await.unwrap()));
        }
    };
    within(DEADLINE, "a display", read).await;
    let number = shown.trim().split(':').nth(1).unwrap().split('.').next();
    let number: u16 = number.unwrap().parse().unwrap();
    let told = std::fs::read_to_string(rig.path("cookie")).unwrap();
    let secret = bytes(told.split_whitespace().last().unwrap());

    let mut program = TcpStream::connect(("127.0.0.1", 6000 + number))
        .await
        .unwrap();
    let mut hello = b"l\0\x0b\0\0\0\x12\0\x10\0\0\0MIT-MAGIC-COOKIE-1\0\0".to_vec();
    hello.extend(&secret);
    program.write_all(&hello).await.unwrap();
    let mut answer = [0; 7];
    let read = program.read_exact(&mut answer);
    within(DEADLINE, "an answer", read).await.unwrap();
    assert_eq!(&answer, b"welcome");
    // The session ends first; the window stays until it is closed.
    drop(ssh.stdin.take());
    until_text(&mut pipe, "").await;
    program.write_all(b"more").await.unwrap();
    drop(program);
    let greeting = within(DEADLINE, "the display's end", greeting)
        .await
        .unwrap();
    assert_eq!(greeting[..COOKIE.start], hello[..COOKIE.start]);
    assert_eq!(exit_code(&mut ssh).await, Some(0));
    greeting
}

/// With the cookie that the client gave to the container.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_show_on_the_display_of_the_client() {
    let rig = Rig::start().await;
    let _c1 = container(&rig).await;
    window(&rig, &["-Y"]).await;
}

/// The client's xauth makes a cookie of less power, which only the display sees. (A real one asks
/// the X server for it; it is a script here, so that no X server is needed.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn untrusted_windows_show_with_a_cookie_of_their_own() {
    let rig = Rig::start().await;
    let _c1 = container(&rig).await;
    let secret = "00112233445566778899aabbccddeeff";
    let asked = rig.at("asked");
    let script = format!(
        "echo \"$*\" >>{asked}\ncase \"$*\" in *list*) \
         echo \"host:0  MIT-MAGIC-COOKIE-1  {secret}\";; esac"
    );
    let location = xauth(&rig, "xauth-of-client", &script);
    // Debian's ssh trusts every program unless it is told not to.
    let trusted = "ForwardX11Trusted=no";
    let greeting = window(&rig, &["-X", "-o", trusted, "-o", &location]).await;
    assert_eq!(greeting[COOKIE], bytes(secret));
    let asked = std::fs::read_to_string(asked).unwrap();
    assert!(asked.contains(" untrusted "), "{asked}");
}
