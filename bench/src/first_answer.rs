//! `edd-bench first-answer`: how long after its event a container answers.
//!
//! Polls a host over a kept connection until it answers 200, then asks JetStream when the latest
//! of the named events was stored, and prints the difference. Both clocks are the machine's own.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream;

use crate::client::Client;
use crate::stats;

/// The arguments of `edd-bench first-answer`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The gateway's HTTPS listener, `HOST:PORT`
    #[arg(long)]
    https: String,
    /// The host to ask for
    #[arg(long)]
    host: String,
    /// The CA that signed the gateway's certificate
    #[arg(long)]
    ca: PathBuf,
    /// Where the events are
    #[arg(long)]
    nats_url: String,
    /// The stream that holds them
    #[arg(long, default_value = "COMPUTE")]
    stream: String,
    /// Subjects of the events that the answer depends on; the clock starts at the latest of them
    #[arg(long, value_delimiter = ',', required = true)]
    subjects: Vec<String>,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 30)]
    limit_secs: u64,
}

/// Polls, then prints one line: the milliseconds and the event they are counted from.
pub(crate) async fn run(args: Args) -> Result<()> {
    let nats = async_nats::connect(&args.nats_url)
        .await
        .context("cannot reach nats-server")?;
    let stream = jetstream::new(nats)
        .get_stream_no_info(&args.stream)
        .await
        .context("no such stream")?;
    let mut client = Client::new(&args.https, &args.host, &args.ca)?;
    let started = SystemTime::now();
    let mut asked = 0_u64;
    let answered = loop {
        let answer = client.get(&args.host, "/").await;
        asked += 1;
        if asked == 1 {
            // Whoever starts us may now make the change: nothing of ours is left to set up.
            println!("polling {}", args.host);
        }
        let seen = match answer {
            Ok(answer) if answer.status == 200 => break SystemTime::now(),
            Ok(answer) => format!("{} {}", answer.status, answer.body.trim()),
            Err(error) => format!("{error:#}"),
        };
        if since(started)? > Duration::from_secs(args.limit_secs) {
            bail!(
                "{} did not answer 200 in {} s, the last answer: {seen}",
                args.host,
                args.limit_secs
            );
        }
    };
    let mut latest: Option<(i128, &str)> = None;
    for subject in &args.subjects {
        let message = stream
            .get_last_raw_message_by_subject(subject)
            .await
            .with_context(|| format!("{} holds no {subject}", args.stream))?;
        latest = latest.max(Some((message.time.unix_timestamp_nanos(), subject)));
    }
    let (published, subject) = latest.context("no subject")?;
    let answered = answered
        .duration_since(SystemTime::UNIX_EPOCH)
        .context("a clock before 1970")?;
    let after = i128::try_from(answered.as_nanos()).unwrap_or(i128::MAX) - published;
    let after = Duration::from_nanos(u64::try_from(after).unwrap_or(0));
    println!(
        "{} after {subject} ({asked} requests)",
        stats::millis(after).trim()
    );
    Ok(())
}

fn since(started: SystemTime) -> Result<Duration> {
    started.elapsed().context("the clock went back")
}
