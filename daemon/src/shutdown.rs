//! Signals to one token: the first asks for a drain, the second ends at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code when a second signal cuts the drain short.
const EXIT_CUT_SHORT: i32 = 1;

/// A token that is cancelled by SIGTERM or SIGINT.
///
/// A second signal ends the process at once with exit code 1. Must be called
/// within a tokio runtime; the signals are watched as long as it runs. Should
/// the watch fail, that is logged and the signals keep their default effect.
pub fn on_signals() -> CancellationToken {
    let token = CancellationToken::new();
    let watched = signal(SignalKind::terminate())
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
    match watched {
        Ok((terminate, interrupt)) => {
            tokio::spawn(watch(terminate, interrupt, token.clone()));
        }
        Err(error) => tracing::error!(%error, "cannot watch for signals, no drain"),
    }
    token
}

async fn watch(mut terminate: Signal, mut interrupt: Signal, token: CancellationToken) {
    let name = next(&mut terminate, &mut interrupt).await;
    tracing::info!(signal = name, "draining; a second signal ends at once");
    token.cancel();
    let name = next(&mut terminate, &mut interrupt).await;
    eprintln!("{name} again: ending without a drain");
    std::process::exit(EXIT_CUT_SHORT);
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
