//! The subjects of all events, `{service}.{entity}.{id}.{action}`, built and
//! parsed here and nowhere else.
//!
//! Owns: the list of event kinds, their metric labels, their dead-letter
//! subjects and the grammar of ids. Ids end up inside subjects, so nothing with
//! a dot, a wildcard or a blank ever becomes an [`EntityId`].

use std::fmt;

/// Longest id, in bytes.
const ID_LEN_MAX: usize = 64;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $service:literal $entity:literal $id:literal $action:literal;)*) => {
        /// Every kind of event of the cloud.
        #[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All kinds, in the order of the services.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The subject with `*` for the id: `compute.container.*.started`.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$kind => concat!($service, ".", $entity, ".", $id, $action),)*
                }
            }

            /// Where events of this kind go when nobody can use them:
            /// `compute.container.started.dlq`, inside the same stream.
            #[must_use]
            pub fn dlq(self) -> &'static str {
                match self {
                    $(Self::$kind => concat!($service, ".", $entity, ".", $action, ".dlq"),)*
                }
            }

            /// The message's name, for logs: `ContainerStarted`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => stringify!($kind),)*
                }
            }

            /// What it is about, and who says so: `compute.container`, the
            /// subject's first words.
            #[must_use]
            pub fn aggregate(self) -> &'static str {
                match self {
                    $(Self::$kind => concat!($service, ".", $entity),)*
                }
            }

            fn parts(self) -> (&'static str, &'static str, &'static str) {
                match self {
                    $(Self::$kind => ($service, $entity, $action),)*
                }
            }

            fn find(service: &str, entity: &str, action: &str) -> Option<Self> {
                match (service, entity, action) {
                    $(($service, $entity, $action) => Some(Self::$kind),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// A user registered.
    UserCreated = "auth" "user" "*." "created";
    /// A user is gone, with everything of his.
    UserDeleted = "auth" "user" "*." "deleted";
    /// A user's profile changed.
    UserUpdated = "auth" "user" "*." "updated";
    /// A log-in.
    SessionCreated = "auth" "session" "*." "created";
    /// A log-out.
    SessionInvalidated = "auth" "session" "*." "invalidated";
    /// A container exists: its owner and name.
    ContainerCreated = "compute" "container" "*." "created";
    /// A container runs and has an address.
    ContainerStarted = "compute" "container" "*." "started";
    /// A container stopped.
    ContainerStopped = "compute" "container" "*." "stopped";
    /// A container is gone for good.
    ContainerDeleted = "compute" "container" "*." "deleted";
    /// SSH was switched on or off.
    ContainerSshToggled = "compute" "container" "*." "ssh_toggled";
    /// The public HTTPS port was switched on or off.
    ContainerHttpsToggled = "compute" "container" "*." "https_toggled";
    /// A user has one more SSH key.
    SshKeyCreated = "compute" "sshkey" "*." "created";
    /// A user's SSH key is gone.
    SshKeyDeleted = "compute" "sshkey" "*." "deleted";
    /// Compute wants a port of a container to be reachable.
    IngressRuleRequested = "compute" "ingress" "*." "requested";
    /// Compute wants it closed again.
    IngressRuleDeleteRequested = "compute" "ingress" "*." "delete_requested";
    /// Compute knows a user's name.
    UserCached = "compute" "user" "*." "cached";
    /// Compute has nothing of a deleted user any more.
    UserPurged = "compute" "user" "*." "purged";
    /// The gateway opened a port.
    IngressRuleCreated = "gateway" "ingress" "*." "created";
    /// The gateway closed a port.
    IngressRuleDeleted = "gateway" "ingress" "*." "deleted";
    /// A static route appeared.
    RouteRegistered = "gateway" "route" "*." "registered";
    /// A static route vanished.
    RouteUnregistered = "gateway" "route" "*." "unregistered";
    /// The gateway uses a new table; the one subject without an id.
    RouterRefreshed = "gateway" "router" "" "refreshed";
    /// A namespace exists.
    NamespaceCreated = "sfs" "namespace" "*." "created";
    /// A namespace is gone.
    NamespaceDeleted = "sfs" "namespace" "*." "deleted";
    /// Who may see a namespace changed.
    NamespaceVisibilityChanged = "sfs" "namespace" "*." "visibility_changed";
    /// A file was stored.
    FileUploaded = "sfs" "file" "*." "uploaded";
    /// A file was removed.
    FileDeleted = "sfs" "file" "*." "deleted";
}

impl Kind {
    /// The stream that holds this kind.
    #[must_use]
    pub fn stream(self) -> &'static str {
        match self.parts().0 {
            "auth" => "AUTH",
            "compute" => "COMPUTE",
            "gateway" => "GATEWAY",
            _ => "SFS",
        }
    }

    /// Whether the subject names an entity (all but `gateway.router.refreshed`).
    #[must_use]
    pub fn has_id(self) -> bool {
        self != Self::RouterRefreshed
    }
}

/// The id of a user, container, key, rule, route or namespace as it stands in a
/// subject: `[A-Za-z0-9_-]{1,64}`.
#[derive(Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct EntityId(String);

/// An id that cannot be part of a subject.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum IdError {
    /// A byte outside `[A-Za-z0-9_-]`.
    #[error("id {0:?} has characters outside [A-Za-z0-9_-]")]
    Characters(String),
    /// Nothing at all.
    #[error("id is empty")]
    Empty,
    /// More than 64 bytes.
    #[error("id of {0} bytes is longer than 64")]
    Long(usize),
}

impl EntityId {
    /// The id of `gateway.router.refreshed`, which names no entity.
    #[must_use]
    pub fn router() -> Self {
        Self("router".into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for EntityId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<i64> for EntityId {
    fn from(id: i64) -> Self {
        Self(id.to_string())
    }
}

impl TryFrom<&str> for EntityId {
    type Error = IdError;

    fn try_from(id: &str) -> Result<Self, IdError> {
        if id.is_empty() {
            Err(IdError::Empty)
        } else if id.len() > ID_LEN_MAX {
            Err(IdError::Long(id.len()))
        } else if !id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        {
            Err(IdError::Characters(id.to_owned()))
        } else {
            Ok(Self(id.to_owned()))
        }
    }
}

impl TryFrom<String> for EntityId {
    type Error = IdError;

    fn try_from(id: String) -> Result<Self, IdError> {
        Self::try_from(id.as_str())
    }
}

/// The subject on which an event is published.
#[must_use]
pub fn subject(kind: Kind, id: &EntityId) -> String {
    let (service, entity, action) = kind.parts();
    if kind.has_id() {
        format!("{service}.{entity}.{id}.{action}")
    } else {
        format!("{service}.{entity}.{action}")
    }
}

/// What a subject says.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Parsed<'a> {
    /// A dead letter: acknowledged and ignored by every consumer.
    DeadLetter,
    /// An event and its id as it stands there, not yet checked; empty for
    /// `gateway.router.refreshed`.
    Event(Kind, &'a str),
    /// Nothing this version knows: acknowledged, counted, ignored.
    Unknown,
}

/// Reads a subject. Borrows; allocates nothing.
#[must_use]
pub fn parse(subject: &str) -> Parsed<'_> {
    let mut tokens = subject.split('.');
    let mut next = || tokens.next();
    let found = match (next(), next(), next(), next(), next()) {
        (Some(_), Some(_), Some(_), Some("dlq"), None) => return Parsed::DeadLetter,
        (Some(service), Some(entity), Some(id), Some(action), None) => {
            Kind::find(service, entity, action)
                .filter(|kind| kind.has_id())
                .map(|kind| (kind, id))
        }
        (Some(service), Some(entity), Some(action), None, None) => {
            Kind::find(service, entity, action)
                .filter(|kind| !kind.has_id())
                .map(|kind| (kind, ""))
        }
        _ => None,
    };
    found.map_or(Parsed::Unknown, |(kind, id)| Parsed::Event(kind, id))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_kind_is_found_again_by_its_subject() {
        let id = EntityId::try_from("abc-12_3").unwrap();
        for kind in Kind::ALL.iter().copied() {
            let subject = subject(kind, &id);
            let expected = if kind.has_id() { "abc-12_3" } else { "" };
            assert_eq!(parse(&subject), Parsed::Event(kind, expected), "{subject}");
            assert_eq!(subject.replace("abc-12_3", "*"), kind.label());
            assert_eq!(parse(kind.dlq()), Parsed::DeadLetter);
        }
        let labels: HashSet<_> = Kind::ALL.iter().map(|kind| kind.label()).collect();
        assert_eq!(labels.len(), 27);
    }

    #[test]
    fn names_are_those_of_the_contract() {
        assert_eq!(
            Kind::ContainerStarted.label(),
            "compute.container.*.started"
        );
        assert_eq!(
            Kind::ContainerStarted.dlq(),
            "compute.container.started.dlq"
        );
        assert_eq!(Kind::SshKeyCreated.label(), "compute.sshkey.*.created");
        assert_eq!(Kind::RouterRefreshed.label(), "gateway.router.refreshed");
        assert_eq!(Kind::RouterRefreshed.dlq(), "gateway.router.refreshed.dlq");
        assert_eq!(Kind::UserDeleted.stream(), "AUTH");
        assert_eq!(Kind::IngressRuleDeleteRequested.stream(), "COMPUTE");
        assert_eq!(Kind::IngressRuleDeleted.stream(), "GATEWAY");
        assert_eq!(
            subject(Kind::UserCreated, &EntityId::from(7)),
            "auth.user.7.created"
        );
    }

    #[test]
    fn strange_subjects_are_unknown() {
        for subject in [
            "",
            ".",
            "compute",
            "compute.container.a.exploded",
            "compute.container.a.b.created",
            "gateway.router.a.refreshed",
            "auth.user.created",
            "auth.validate.request",
            "Compute.container.a.created",
        ] {
            assert_eq!(parse(subject), Parsed::Unknown, "{subject}");
        }
    }

    #[test]
    fn ids_that_would_change_a_subject_are_refused() {
        for id in ["a", "Z", "0", "-", "_", &"x".repeat(64)] {
            assert!(EntityId::try_from(id).is_ok(), "{id}");
        }
        for id in [
            "",
            "a.b",
            "*",
            ">",
            "a b",
            "a\n",
            "ä",
            "a/b",
            &"x".repeat(65),
        ] {
            assert!(EntityId::try_from(id).is_err(), "{id}");
        }
    }
}
