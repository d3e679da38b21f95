//! Where an entry of the table comes from, for the operator who asks.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The file line or the event that made an entry.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Origin {
    /// An event of a stream.
    Event {
        /// Its subject.
        subject: String,
        /// Its sequence in the stream.
        sequence: u64,
        /// Its event id.
        event_id: String,
        /// When it was published, Unix milliseconds.
        at_ms: u64,
    },
    /// A line of routes.yaml.
    File {
        /// The file as named on the command line.
        file: String,
        /// Line, from 1.
        line: u32,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event {
                subject,
                sequence,
                event_id,
                ..
            } => {
                write!(
                    f,
                    "{subject} (stream sequence {sequence}, event {event_id})"
                )
            }
            Self::File { file, line } => write!(f, "{file}:{line}"),
        }
    }
}
