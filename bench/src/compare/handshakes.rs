//! TLS connections that are made and closed again, as fast as the proxy makes them.
//!
//! Nothing is asked on them. The client says that it closes and waits until the proxy has closed,
//! so that one counts only once the proxy has seen the last of the handshake and let go.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::client::{DEADLINE, Stream, Target};
use super::measure::{Common, Tally, Window, spawn};

/// Makes and closes connections.
pub(super) async fn run(common: &Common, connections: usize, resume: bool) -> Result<String> {
    let tally = Rc::new(Tally::default());
    let mut tasks = {
        let targets: Vec<Target> = (0..connections)
            // Each with tickets of its own, as clients have.
            .map(|_| common.target(resume))
            .collect::<Result<_>>()?;
        let mut targets = targets.into_iter();
        spawn(connections, |_| {
            let (target, tally) = (targets.next(), Rc::clone(&tally));
            async move {
                let target = target.context("a target each")?;
                let mut expected = HandshakeKind::Full;
                loop {
                    let started = Instant::now();
                    one(&target, expected).await?;
                    tally.done(started);
                    if resume {
                        expected = HandshakeKind::Resumed;
                    }
                }
            }
        })
    };
    let seen = Window::new(common, &tally)?.watch(&mut tasks).await?;
    Ok(seen.json(&tally, ""))
}

async fn one(target: &Target, expected: HandshakeKind) -> Result<()> {
    let Stream::Tls(mut stream) = Stream::connect(target).await? else {
        bail!("handshakes need TLS");
    };
    let (tcp, session) = stream.get_ref();
    if session.handshake_kind() != Some(expected) {
        bail!(
            "a handshake that is {:?}, not {expected:?}",
            session.handshake_kind()
        );
    }
    // No port is left waiting for a minute after each of a hundred thousand connections.
    socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO))?;
    let closing = async {
        // By TLS and by TCP: some proxies wait for the second.
        stream
            .shutdown()
            .await
            .context("cannot say that it closes")?;
        let mut rest = [0; 4096];
        // Tickets come before the end; how it ends, by a word or without, is all the same.
        while matches!(stream.read(&mut rest).await, Ok(more) if more > 0) {}
        Ok(())
    };
    timeout(DEADLINE, closing)
        .await
        .context("a connection that does not close")?
}
