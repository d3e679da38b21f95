//! Binding listeners: all of them, or one error that names every failure.

use std::net::SocketAddr;

use tokio::net::TcpListener;

/// Addresses that could not be bound, one line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", failures.join("; "))]
pub struct BindError {
    /// Flag, address and reason of each.
    pub failures: Vec<String>,
}

/// Binds each `(flag, address)` in order; port 0 takes any free port.
///
/// Logs `listening` with the address really bound. Nothing stays bound when one
/// of them fails. The listeners come back in the order asked for.
pub async fn bind_all<const N: usize>(
    wanted: [(&'static str, SocketAddr); N],
) -> Result<[TcpListener; N], BindError> {
    let mut listeners = Vec::with_capacity(N);
    let mut failures = Vec::new();
    for (flag, addr) in wanted {
        match TcpListener::bind(addr).await {
            Ok(listener) => listeners.push(listener),
            Err(error) => failures.push(format!("cannot listen on {flag} {addr}: {error}")),
        }
    }
    let listeners = match <[TcpListener; N]>::try_from(listeners) {
        Ok(listeners) if failures.is_empty() => listeners,
        _ => return Err(BindError { failures }),
    };
    for ((flag, _), listener) in wanted.iter().zip(&listeners) {
        if let Ok(addr) = listener.local_addr() {
            tracing::info!(listener = flag.trim_start_matches('-'), %addr, "listening");
        }
    }
    Ok(listeners)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_every_taken_port() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let [first, second] = bind_all([("--addr", any), ("--admin-addr", any)])
            .await
            .unwrap();
        let taken = [first.local_addr().unwrap(), second.local_addr().unwrap()];
        let error = bind_all([("--addr", taken[0]), ("--admin-addr", taken[1])])
            .await
            .unwrap_err();
        assert_eq!(error.failures.len(), 2, "{error}");
        let line = error.to_string();
        for expected in ["--addr ", "--admin-addr ", &taken[0].to_string(), "in use"] {
            assert!(line.contains(expected), "{line}");
        }
    }
}
