//! Logs: `tracing` events as text or JSON lines on stdout.
//!
//! Tokens, passwords and e-mail addresses are masked, whoever logs them (`mask`).
//! Written by a thread of its own behind a bounded queue: a slow reader of
//! stdout costs log lines, which are counted, and never a request.

use std::{borrow::Cow, io::IsTerminal as _, str::FromStr, sync::OnceLock};

use tracing::Subscriber;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer as _, fmt::MakeWriter, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::mask::Masking;

/// Lines waiting for stdout; beyond it they are dropped and counted.
const QUEUED_LINES_MAX: usize = 16_384;

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people; coloured on a terminal only.
    #[default]
    Text,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(format!("{text:?} is neither text nor json")),
        }
    }
}

/// Why the logs could not be started.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A subscriber is set in this process already.
    #[error("the logs of this process are set up already")]
    AlreadySet,
    /// The filter cannot be read.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

/// A log filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{filter:?} is not a log filter such as info or edd_gateway=debug,info")]
pub struct FilterError {
    filter: String,
}

/// Keeps the log writer alive; dropping it writes what is queued.
#[must_use = "dropping it ends the logs"]
#[derive(Debug)]
pub struct Guard {
    dropped: ErrorCounter,
    _worker: WorkerGuard,
}

impl Guard {
    /// Lines dropped so far because stdout was slower than the logs.
    pub fn dropped_lines(&self) -> u64 {
        self.dropped.dropped_lines().try_into().unwrap_or(u64::MAX)
    }
}

/// Reads a `tracing` filter, for checking a configuration before it is used.
///
/// What russh logs has words of clients in it and is left out, unless the filter names russh.
pub fn parse_filter(filter: &str) -> Result<EnvFilter, FilterError> {
    let error = || FilterError {
        filter: filter.to_owned(),
    };
    if filter.trim().is_empty() {
        return Err(error());
    }
    let names_russh = |directive: &str| directive.trim_start().starts_with("russh");
    let quiet = match filter.split(',').any(names_russh) {
        true => Cow::Borrowed(filter),
        false => Cow::Owned(format!("{filter},russh=off")),
    };
    EnvFilter::builder().parse(quiet).map_err(|_| error())
}

/// How the lines of this process look, for whoever writes some to stdout by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Output {
    /// The form of a line.
    pub format: LogFormat,
    /// Whether lines are coloured.
    pub coloured: bool,
}

static OUTPUT: OnceLock<Output> = OnceLock::new();

/// What [`init`] set up; none before it, or when something else takes the events.
pub fn output() -> Option<Output> {
    OUTPUT.get().copied()
}

/// Starts the logs of this process; the first call wins, others are an error.
pub fn init(filter: &str, format: LogFormat) -> Result<Guard, InitError> {
    let (writer, worker) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUED_LINES_MAX)
        .lossy(true)
        .finish(std::io::stdout());
    let dropped = writer.error_counter();
    let coloured = format == LogFormat::Text && wants_colour();
    subscriber(filter, format, coloured, writer)?
        .try_init()
        .map_err(|_| InitError::AlreadySet)?;
    let _ = OUTPUT.set(Output { format, coloured });
    Ok(Guard {
        dropped,
        _worker: worker,
    })
}

/// Events that pass `filter`, as lines to `writer`.
///
/// # Errors
/// The filter cannot be read.
pub fn subscriber<W>(
    filter: &str,
    format: LogFormat,
    coloured: bool,
    writer: W,
) -> Result<impl Subscriber + Send + Sync + 'static, FilterError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = parse_filter(filter)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(Masking(writer));
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(coloured).boxed(),
    };
    Ok(tracing_subscriber::registry().with(lines.with_filter(filter)))
}

fn wants_colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn filters_are_checked_before_use() {
        for good in ["info", "debug,hyper=off", "edd_gateway=trace,info"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        for bad in ["", "  ", "edd_gateway=loud", "a=b=c"] {
            assert!(parse_filter(bad).is_err(), "{bad}");
        }
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let to = sink.clone();
        let lines = subscriber(filter, LogFormat::Text, false, move || to.clone()).unwrap();
        tracing::subscriber::with_default(lines, log);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn russh_is_silent_unless_it_is_named() {
        let log = || {
            tracing::warn!(target: "russh::server::encrypted", "of a client");
            tracing::warn!(target: "edd_gateway", "of ours");
        };
        for filter in ["info", "trace", "debug,hyper=off", "info,"] {
            let text = logged(filter, log);
            assert!(
                text.contains("of ours") && !text.contains("of a client"),
                "{filter}"
            );
        }
        for filter in ["info,russh=warn", "russh::server=debug"] {
            assert!(logged(filter, log).contains("of a client"), "{filter}");
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let text = logged("info", || tracing::info!("a\nb\r\x07c\td {}", "e\n"));
        assert!(text.ends_with("a\\nb\\r\\x07c\td e\\n\n"), "{text:?}");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn formats_have_two_names() {
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert_eq!("text".parse(), Ok(LogFormat::Text));
        assert!("JSON".parse::<LogFormat>().is_err());
    }
}
