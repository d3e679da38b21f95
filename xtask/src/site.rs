//! The upstream behind the static routes of `up` and of the tour: a page that says what the
//! gateway sent it. std only, one thread per connection, bounded in number and in time.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// More connections than any demonstration needs.
const CONNECTIONS_MAX: usize = 256;

/// The longest request head it reads.
const HEAD_MAX: u64 = 64 * 1024;

/// A quiet connection is closed after this time.
const IDLE: Duration = Duration::from_secs(60);

/// How long `/slow` waits in the middle of its answer: an answer under way, for whoever drains.
const SLOW: Duration = Duration::from_secs(1);

/// Serves `address` until the process ends.
pub(crate) fn start(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {address} for the demo page"))?;
    std::thread::spawn(move || {
        let open = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming().flatten() {
            if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let open = Arc::clone(&open);
            std::thread::spawn(move || {
                // A client that goes away is no news.
                let _ = serve(&stream);
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    Ok(())
}

fn serve(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        let mut limited = (&mut reader).take(HEAD_MAX);
        while !head.ends_with("\r\n\r\n") {
            if limited.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, value)| value.trim().parse().ok())
            .unwrap_or(0);
        std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink())?;
        let page = format!("the demo page of edd-gateway\n\nit was asked:\n{head}");
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\n\r\n",
            page.len()
        );
        if head.starts_with("HEAD ") {
            (&*stream).write_all(answer.as_bytes())?;
            continue;
        }
        answer.push_str(&page);
        let (now, later) = match head.starts_with("GET /slow") {
            true => answer.split_at(answer.len() - head.len()),
            false => (answer.as_str(), ""),
        };
        (&*stream).write_all(now.as_bytes())?;
        if !later.is_empty() {
            std::thread::sleep(SLOW);
            (&*stream).write_all(later.as_bytes())?;
        }
    }
}
