//! Many sessions at once: all of them answer, and what one that is idle costs.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

use super::ground::{Ground, LIMIT, Way};
use crate::stats::{Samples, millis};

/// Log-ins under way at once; below what servers drop at random.
const BATCH: u32 = 8;

struct Session {
    input: ChildStdin,
    output: ChildStdout,
    _child: Child,
}

/// Opens them, asks each once, and lets them go.
pub(super) async fn measure(ground: &Ground, count: u32) -> Result<()> {
    // What the first ones cost is not theirs: caches, threads' stacks.
    let first = open(ground, BATCH).await?;
    let before = ground.gateway_memory()?;
    let began = Instant::now();
    let mut sessions = Vec::new();
    while sessions.len() < count as usize {
        sessions.extend(open(ground, BATCH.min(count - sessions.len() as u32)).await?);
    }
    let opened = began.elapsed();
    let each = ground.gateway_memory()?.saturating_sub(before) / u64::from(count.max(1));
    let began = Instant::now();
    let asked = sessions.iter_mut().map(|session| async {
        let began = Instant::now();
        answer(session).await?;
        anyhow::Ok(began.elapsed())
    });
    let mut samples = Samples::default();
    for took in try_join_all(asked).await? {
        samples.push(took);
    }
    println!(
        "{count} sessions at once, opened in {}, {each} KiB of the gateway's memory each\n\
         all of them answer a line in {}   {samples}",
        millis(opened),
        millis(began.elapsed()),
    );
    drop((first, sessions));
    Ok(())
}

async fn open(ground: &Ground, count: u32) -> Result<Vec<Session>> {
    try_join_all((0..count).map(|_| async {
        let mut ssh = ground.ssh(Way::Gateway, &[]);
        let mut child = ssh
            .arg("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start ssh")?;
        let mut session = Session {
            input: child.stdin.take().context("no input")?,
            output: child.stdout.take().context("no output")?,
            _child: child,
        };
        answer(&mut session).await?;
        Ok(session)
    }))
    .await
}

async fn answer(session: &mut Session) -> Result<()> {
    let mut line = [0; 6];
    session.input.write_all(b"hello\n").await?;
    timeout(LIMIT, session.output.read_exact(&mut line))
        .await
        .context("no answer in time")?
        .context("a session has ended")?;
    ensure!(&line == b"hello\n", "another answer: {line:?}");
    Ok(())
}
