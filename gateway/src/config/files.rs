//! How the process's file descriptors are shared out.

/// Connections at once, so that with everything else they fit the file limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Caps {
    /// Of clients.
    pub(super) clients: usize,
    /// To upstreams.
    pub(super) upstreams: usize,
}

/// For logs, databases, name look-ups, admin clients and connections that are being refused.
const RESERVE: usize = 512;

/// Fewer connections than these are no gateway, whatever the limit.
const CAP_MIN: usize = 64;

impl Caps {
    /// Connections of clients that `files` can carry after `listeners`, the reserve and the least for upstreams.
    pub(super) fn clients_max(files: usize, listeners: usize) -> usize {
        let taken = RESERVE.saturating_add(listeners).saturating_add(CAP_MIN);
        files.saturating_sub(taken).max(CAP_MIN)
    }

    /// Shares out `files` after `listeners` and the reserve: half to each side, or `clients` to the
    /// clients and what is left to the upstreams.
    ///
    /// The sides are counted apart, since one client may need many upstream connections.
    pub(super) fn within(files: usize, listeners: usize, clients: Option<usize>) -> Self {
        let room = files.saturating_sub(RESERVE).saturating_sub(listeners);
        let clients = clients.unwrap_or_else(|| (room / 2).max(CAP_MIN));
        Self {
            clients,
            upstreams: room.saturating_sub(clients).max(CAP_MIN),
        }
    }
}

/// Descriptors that this process may have.
pub(super) fn limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    usize::try_from(limit.current.unwrap_or(1 << 20)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_upstreams_listeners_and_reserve_stay_within_the_limit() {
        for (files, listeners, clients) in [
            (20_000, 210, None),
            (20_000, 210, Some(1_000)),
            (1 << 20, 103 * 64, Some(900_000)),
            (1_024, 210, None),
        ] {
            let caps = Caps::within(files, listeners, clients);
            assert!(
                caps.clients + caps.upstreams + listeners + RESERVE <= files,
                "{files}: {caps:?}"
            );
            assert_eq!(caps.clients, clients.unwrap_or(caps.clients));
            let most = Caps::clients_max(files, listeners);
            assert!(caps.clients <= most);
            let caps = Caps::within(files, listeners, Some(most));
            assert!(caps.clients + caps.upstreams + listeners + RESERVE <= files);
        }
    }

    #[test]
    fn a_limit_that_is_too_low_leaves_the_least_to_each_side() {
        let least = Caps {
            clients: CAP_MIN,
            upstreams: CAP_MIN,
        };
        assert_eq!(Caps::within(256, 210, None), least);
        let caps = Caps::within(1_024, 10, Some(5_000));
        assert_eq!((caps.clients, caps.upstreams), (5_000, CAP_MIN));
    }
}
