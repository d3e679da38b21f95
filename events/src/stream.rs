//! The streams that keep events, and making sure that they exist.
//!
//! Created here they take event subjects only, never `auth.>` as a whole: a
//! request such as `auth.validate.request` would be answered by JetStream and
//! its token stored for a week. A stream that someone else made is used as it
//! is and never changed.

use std::time::Duration;

use async_nats::jetstream::{
    self, Context,
    stream::{Config, DiscardPolicy, RetentionPolicy, StorageType},
};
use tracing::{info, warn};

use crate::connect::warn_if_old;

/// How long events are kept.
pub const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a message id is remembered.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// A stream that is created takes no larger messages, headers included, in
/// bytes: a payload of [`crate::event::PAYLOAD_LEN_MAX`] and what a dead letter
/// says about it.
pub const MESSAGE_LEN_MAX: i32 = 1024 * 1024 + 64 * 1024;

/// Tells streams that this project created from others: nats-server 2.9 has no
/// metadata.
const DESCRIPTION: &str = "events of the cloud (edd-events)";

/// A stream and the subjects it takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StreamSpec {
    /// Its name.
    pub name: &'static str,
    /// Its subjects, event families only; dead letters lie inside them.
    pub subjects: &'static [&'static str],
}

/// Users and sessions.
pub const AUTH: StreamSpec = StreamSpec {
    name: "AUTH",
    subjects: &["auth.user.>", "auth.session.>"],
};
/// Containers, ingress requests, SSH keys, and what compute knows of users.
pub const COMPUTE: StreamSpec = StreamSpec {
    name: "COMPUTE",
    subjects: &[
        "compute.container.>",
        "compute.ingress.>",
        "compute.sshkey.>",
        "compute.user.>",
    ],
};
/// What the gateway announces.
pub const GATEWAY: StreamSpec = StreamSpec {
    name: "GATEWAY",
    subjects: &["gateway.ingress.>", "gateway.route.>", "gateway.router.>"],
};
/// Namespaces and files: what the cloud's file service says.
pub const SFS: StreamSpec = StreamSpec {
    name: "SFS",
    subjects: &["sfs.namespace.>", "sfs.file.>"],
};

/// The server's word that it gives up delivering a message: all that is left of
/// an event whose handlers died with it.
pub const ADVISORIES: StreamSpec = StreamSpec {
    name: "ADVISORIES",
    subjects: &["$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.*.*"],
};

/// A stream that could not be made sure of.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    /// JetStream refused or did not answer.
    #[error("stream {stream}: {source}")]
    Create {
        /// Its name.
        stream: &'static str,
        /// Why.
        source: jetstream::context::CreateStreamError,
    },
    /// It is there but its information cannot be read.
    #[error("stream {stream}: {source}")]
    Info {
        /// Its name.
        stream: &'static str,
        /// Why.
        source: jetstream::context::GetStreamError,
    },
}

/// The stream among [`AUTH`], [`COMPUTE`], [`GATEWAY`] and [`SFS`] that takes a subject.
#[must_use]
pub fn spec_of(subject: &str) -> Option<&'static StreamSpec> {
    [&AUTH, &COMPUTE, &GATEWAY, &SFS]
        .into_iter()
        .find(|spec| spec.subjects.iter().any(|pattern| takes(pattern, subject)))
}

/// Creates the stream if it is missing and returns it.
///
/// An existing stream stays as it is, with one exception: one that this project
/// created gets subjects that a newer version added, and the log says so. A
/// stream of someone else's that is wider, narrower or kept otherwise is a
/// warning.
///
/// # Errors
/// When JetStream refuses (for example because another stream has the
/// subjects) or does not answer in time.
pub async fn ensure(
    js: &Context,
    spec: &StreamSpec,
    replicas: usize,
) -> Result<jetstream::stream::Stream, EnsureError> {
    warn_if_old(&js.client());
    let create = |source| EnsureError::Create {
        stream: spec.name,
        source,
    };
    let stream = match js.get_stream(spec.name).await {
        Ok(stream) => stream,
        Err(error) if is_missing(&error) => {
            let stream = js
                .create_stream(config(spec, replicas))
                .await
                .map_err(create)?;
            info!(stream = spec.name, subjects = ?spec.subjects, replicas, "stream created");
            return Ok(stream);
        }
        Err(source) => {
            return Err(EnsureError::Info {
                stream: spec.name,
                source,
            });
        }
    };
    let found = &stream.cached_info().config;
    let missing: Vec<&str> = spec
        .subjects
        .iter()
        .copied()
        .filter(|subject| !found.subjects.iter().any(|pattern| takes(pattern, subject)))
        .collect();
    if found.description.as_deref() == Some(DESCRIPTION) {
        if !missing.is_empty() {
            let mut wanted = found.clone();
            wanted
                .subjects
                .extend(missing.iter().map(|subject| (*subject).to_owned()));
            match js.update_stream(&wanted).await {
                Ok(_) => info!(stream = spec.name, added = ?missing, "stream takes more subjects"),
                // Permissions leave that to the service whose stream it is.
                Err(error) => warn!(
                    stream = spec.name, ?missing, %error,
                    "stream lacks subjects until its own service adds them"
                ),
            }
        }
    } else {
        warn_of_differences(spec, found, &missing);
    }
    Ok(stream)
}

fn config(spec: &StreamSpec, replicas: usize) -> Config {
    Config {
        name: spec.name.to_owned(),
        subjects: spec
            .subjects
            .iter()
            .map(|subject| (*subject).to_owned())
            .collect(),
        description: Some(DESCRIPTION.to_owned()),
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_age: MAX_AGE,
        duplicate_window: DUPLICATE_WINDOW,
        max_message_size: MESSAGE_LEN_MAX,
        num_replicas: replicas.max(1),
        ..Config::default()
    }
}

pub(crate) fn is_missing(error: &jetstream::context::GetStreamError) -> bool {
    use jetstream::{ErrorCode, context::GetStreamErrorKind};
    matches!(
        error.kind(),
        GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND
    )
}

fn warn_of_differences(spec: &StreamSpec, found: &Config, missing: &[&str]) {
    if !missing.is_empty() {
        warn!(
            stream = spec.name, subjects = ?found.subjects, ?missing,
            "stream made by someone else lacks subjects: their events cannot be published"
        );
    }
    let service = spec
        .subjects
        .first()
        .and_then(|subject| subject.split('.').next());
    let request = format!("{}.validate.request", service.unwrap_or_default());
    if found
        .subjects
        .iter()
        .any(|pattern| takes(pattern, &request))
    {
        warn!(
            stream = spec.name, subjects = ?found.subjects, wanted = ?spec.subjects,
            "stream made by someone else is wider than the events: requests are stored with their tokens"
        );
    }
    if found.retention != RetentionPolicy::Limits {
        warn!(
            stream = spec.name, retention = ?found.retention,
            "stream made by someone else does not keep events for all consumers"
        );
    }
}

/// Whether `pattern` takes all that `subject` (itself perhaps a pattern) stands
/// for.
pub(crate) fn takes(pattern: &str, subject: &str) -> bool {
    let mut subject = subject.split('.');
    for token in pattern.split('.') {
        match (token, subject.next()) {
            (">", Some(_)) => return true,
            ("*", Some(found)) if found != ">" => {}
            (token, Some(found)) if token == found => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::{EntityId, Kind, subject};

    #[test]
    fn patterns_take_what_lies_inside_them() {
        for (pattern, subject, expected) in [
            ("auth.>", "auth.user.>", true),
            ("auth.>", "auth.user.1.created", true),
            ("auth.user.>", "auth.>", false),
            ("auth.user.>", "auth.user.>", true),
            ("auth.user.>", "auth.user", false),
            ("auth.*.*.created", "auth.user.1.created", true),
            ("auth.*", "auth.>", false),
            ("auth.user", "auth.user.1", false),
            (">", "compute.x", true),
        ] {
            assert_eq!(takes(pattern, subject), expected, "{pattern} {subject}");
        }
    }

    #[test]
    fn events_and_dead_letters_lie_inside_their_stream_and_requests_outside() {
        let id = EntityId::from(1);
        for kind in Kind::ALL.iter().copied() {
            for subject in [subject(kind, &id), kind.dlq().to_owned()] {
                let spec = spec_of(&subject).map(|spec| spec.name);
                assert_eq!(spec, Some(kind.stream()), "{subject}");
            }
        }
        for request in [
            "auth.validate.request",
            "compute.snapshot.request",
            "gateway.ssh.public_key.request",
        ] {
            assert_eq!(spec_of(request), None, "{request}");
        }
    }
}
