//! The line of a request, as `tracing-subscriber` would write it, without its cost.

use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use edd_daemon::telemetry::LogFormat;
use time::OffsetDateTime;

use super::access::{HttpRecord, Upstream, millis};

/// Writes lines of one format.
#[derive(Debug)]
pub(super) struct Lines {
    format: LogFormat,
    /// A moment on both clocks.
    anchor: (Instant, SystemTime),
    /// The second that was written last, and how.
    second: Option<i64>,
    written: String,
}

impl Lines {
    pub(super) fn new(format: LogFormat) -> Self {
        Self {
            format,
            anchor: (Instant::now(), SystemTime::now()),
            second: None,
            written: String::new(),
        }
    }

    /// Takes the clocks' present relation: the wall clock may be set.
    pub(super) fn look_at_the_clock(&mut self) {
        self.anchor = (Instant::now(), SystemTime::now());
    }

    /// Appends the line of `record` to `out`.
    ///
    /// # Errors
    /// None from a `Vec`; a time beyond the year 9999.
    pub(super) fn write(&mut self, out: &mut Vec<u8>, record: &HttpRecord) -> io::Result<()> {
        let micros = self.stamp(record.ended)?;
        let date = &self.written;
        match self.format {
            LogFormat::Text => {
                write!(
                    out,
                    "{date}.{micros:06}Z  INFO access: kind=\"http\" request_id={} revision={} \
                     peer={} version={:?} method={:?} host={} path={} route={} upstream=\"{}\" \
                     status={}{} bytes_in={} bytes_out={} ms={:?} note={:?}",
                    record.request_id,
                    record.revision,
                    record.peer,
                    record.version,
                    record.method,
                    record.host,
                    record.path,
                    record.route,
                    Upstream(record.upstream),
                    record.status,
                    GrpcStatus(" grpc_status=", record.grpc_status),
                    record.bytes_in,
                    record.bytes_out,
                    millis(record.duration),
                    record.note.as_deref().unwrap_or("-"),
                )?;
            }
            LogFormat::Json => {
                write!(
                    out,
                    "{{\"timestamp\":\"{date}.{micros:06}Z\",\"level\":\"INFO\",\
                     \"kind\":\"http\",\"request_id\":"
                )?;
                json(out, record.request_id.as_str())?;
                write!(
                    out,
                    ",\"revision\":{},\"peer\":\"{}\",\"version\":\"{}\",\"method\":\"{}\",\
                     \"host\":",
                    record.revision, record.peer, record.version, record.method
                )?;
                json(out, record.host.as_str())?;
                out.extend_from_slice(b",\"path\":");
                json(out, record.path.as_str())?;
                out.extend_from_slice(b",\"route\":");
                json(out, &record.route)?;
                write!(
                    out,
                    ",\"upstream\":\"{}\",\"status\":{}{},\"bytes_in\":{},\"bytes_out\":{},\"ms\":",
                    Upstream(record.upstream),
                    record.status,
                    GrpcStatus(",\"grpc_status\":", record.grpc_status),
                    record.bytes_in,
                    record.bytes_out
                )?;
                serde_json::to_writer(&mut *out, &millis(record.duration))?;
                out.extend_from_slice(b",\"note\":");
                json(out, record.note.as_deref().unwrap_or("-"))?;
                out.extend_from_slice(b",\"target\":\"access\"}");
            }
        }
        out.push(b'\n');
        Ok(())
    }

    /// Brings `written` up to the second of `at`; the microseconds within it.
    fn stamp(&mut self, at: Instant) -> io::Result<u32> {
        let (instant, wall) = self.anchor;
        let wall = match at.checked_duration_since(instant) {
            Some(later) => wall + later,
            None => wall - instant.duration_since(at),
        };
        let since: Duration = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = i64::try_from(since.as_secs()).unwrap_or_default();
        if self.second != Some(second) {
            let at = OffsetDateTime::from_unix_timestamp(second).map_err(io::Error::other)?;
            self.written = format!(
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
                at.year(),
                u8::from(at.month()),
                at.day(),
                at.hour(),
                at.minute(),
                at.second()
            );
            self.second = Some(second);
        }
        Ok(since.subsec_micros())
    }
}

/// What only answers to gRPC have: how the field begins, and its value.
struct GrpcStatus(&'static str, Option<u16>);

impl fmt::Display for GrpcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(status) => write!(f, "{}{status}", self.0),
            None => Ok(()),
        }
    }
}

/// A JSON string.
fn json(out: &mut Vec<u8>, text: &str) -> io::Result<()> {
    Ok(serde_json::to_writer(out, text)?)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn records() -> Vec<HttpRecord> {
        let plain = HttpRecord {
            request_id: "01890a5d-ac96-774b-bcce-b302099a8057".into(),
            revision: 42,
            peer: "192.0.2.1:1234".parse().unwrap(),
            version: "1.1",
            method: "GET",
            host: "a.example".into(),
            path: "/index.html".into(),
            route: "a.example/".into(),
            upstream: Some("127.0.0.1:80".parse().unwrap()),
            status: 200,
            grpc_status: None,
            bytes_in: 0,
            bytes_out: 1_048_576,
            duration: Duration::from_micros(1500),
            ended: Instant::now(),
            note: None,
        };
        let odd = HttpRecord {
            peer: "[2001:db8::1]:1".parse().unwrap(),
            path: "/\"quo\\ted\"%0a?ä€/and-longer-than-what-a-text-keeps-in-place-without-memory"
                .into(),
            host: String::new().as_str().into(),
            route: "none".into(),
            upstream: None,
            duration: Duration::from_nanos(2_000_000_049),
            note: Some("why \"so\"\n".into()),
            ..plain.clone()
        };
        let whole = HttpRecord {
            duration: Duration::from_secs(3),
            grpc_status: Some(14),
            ..plain.clone()
        };
        vec![plain, odd, whole]
    }

    #[test]
    fn lines_are_those_of_the_other_events() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let sink = Sink::default();
            let theirs = {
                let sink = sink.clone();
                edd_daemon::telemetry::subscriber("info", format, false, move || sink.clone())
                    .unwrap()
            };
            let records = records();
            tracing::subscriber::with_default(theirs, || {
                records.iter().for_each(HttpRecord::trace);
            });
            let mut ours = Vec::new();
            let mut lines = Lines::new(format);
            for record in &records {
                lines.write(&mut ours, record).unwrap();
            }
            let theirs = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
            let ours = String::from_utf8(ours).unwrap();
            assert_eq!(theirs.lines().count(), records.len());
            let stamp_at = match format {
                LogFormat::Text => 0,
                LogFormat::Json => "{\"timestamp\":\"".len(),
            };
            for (ours, theirs) in ours.lines().zip(theirs.lines()) {
                let at = stamp_at..stamp_at + "2026-01-01T00:00:00.000000Z".len();
                let (our_time, their_time) = (&ours[at.clone()], &theirs[at.clone()]);
                assert_eq!(ours[at.end..], theirs[at.end..]);
                assert_eq!(ours[..at.start], theirs[..at.start]);
                assert_eq!(our_time[..14], their_time[..14]);
                assert!(our_time.ends_with('Z') && our_time.is_ascii());
            }
        }
    }
}
