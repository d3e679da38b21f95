//! The rows of the comparison: which load, over what, how it is judged.

/// One row.
#[derive(Debug)]
pub(super) struct Row {
    /// As `--row` names it.
    pub(super) name: &'static str,
    /// As the result names it.
    pub(super) title: &'static str,
    /// Over TLS or plain.
    pub(super) tls: bool,
    /// Large bodies.
    pub(super) bulk: bool,
    /// The subcommand of `edd-bench measure` with its flags.
    pub(super) load: &'static [&'static str],
    /// What is compared.
    pub(super) judged: Judged,
    /// The judged figure that the gateway should not exceed, in those of the best peer.
    pub(super) target: f64,
}

/// The figure that a row compares; less is better for all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Judged {
    /// CPU time of the proxy for each thing done, in µs.
    Cpu,
    /// Memory of the proxy for each connection, in KiB.
    Memory,
    /// The median latency in µs.
    Latency,
}

/// All rows.
pub(super) const ROWS: [Row; 11] = [
    Row {
        name: "h1-plain",
        title: "HTTP/1.1, plain, 1 KiB, 32 connections",
        tls: false,
        bulk: false,
        load: &["requests", "--connections=32", "--path=/1k", "--body=1024"],
        judged: Judged::Cpu,
        target: 0.88,
    },
    Row {
        name: "h1-tls",
        title: "HTTP/1.1, TLS, 1 KiB, 32 connections",
        tls: true,
        bulk: false,
        load: &["requests", "--connections=32", "--path=/1k", "--body=1024"],
        judged: Judged::Cpu,
        target: 0.80,
    },
    Row {
        name: "h2-10x10",
        title: "HTTP/2, TLS, 1 KiB, 10 connections x 10 streams",
        tls: true,
        bulk: false,
        load: &[
            "h2",
            "--connections=10",
            "--streams=10",
            "--path=/1k",
            "--body=1024",
        ],
        judged: Judged::Cpu,
        target: 0.90,
    },
    Row {
        name: "h2-10x100",
        title: "HTTP/2, TLS, 1 KiB, 10 connections x 100 streams",
        tls: true,
        bulk: false,
        load: &[
            "h2",
            "--connections=10",
            "--streams=100",
            "--path=/1k",
            "--body=1024",
        ],
        judged: Judged::Cpu,
        target: 0.85,
    },
    Row {
        name: "handshake-full",
        title: "full handshake, 16 at once",
        tls: true,
        bulk: false,
        load: &["handshakes", "--connections=16"],
        judged: Judged::Cpu,
        target: 0.85,
    },
    Row {
        name: "handshake-resumed",
        title: "resumed handshake, 16 at once",
        tls: true,
        bulk: false,
        load: &["handshakes", "--connections=16", "--resume"],
        judged: Judged::Cpu,
        target: 0.95,
    },
    Row {
        name: "1m-plain",
        title: "1 MiB, HTTP/1.1, plain, 8 connections",
        tls: false,
        bulk: true,
        load: &[
            "requests",
            "--connections=8",
            "--path=/1m",
            "--body=1048576",
        ],
        judged: Judged::Cpu,
        target: 0.50,
    },
    Row {
        name: "1m-tls",
        title: "1 MiB, HTTP/1.1, TLS, 8 connections",
        tls: true,
        bulk: true,
        load: &[
            "requests",
            "--connections=8",
            "--path=/1m",
            "--body=1048576",
        ],
        judged: Judged::Cpu,
        target: 0.80,
    },
    Row {
        name: "1m-h2",
        title: "1 MiB, HTTP/2, TLS, 4 connections x 2 streams",
        tls: true,
        bulk: true,
        load: &[
            "h2",
            "--connections=4",
            "--streams=2",
            "--path=/1m",
            "--body=1048576",
        ],
        judged: Judged::Cpu,
        target: 0.80,
    },
    Row {
        name: "idle-memory",
        title: "memory of an idle TLS connection, 2,000 of them",
        tls: true,
        bulk: false,
        load: &["idle", "--connections=2000"],
        judged: Judged::Memory,
        target: 1.0,
    },
    Row {
        name: "latency",
        title: "latency at 4,000 requests per second, HTTP/1.1, TLS, 32 connections",
        tls: true,
        bulk: false,
        load: &[
            "paced",
            "--connections=32",
            "--path=/1k",
            "--body=1024",
            "--rate=4000",
        ],
        judged: Judged::Latency,
        target: 1.05,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for (n, row) in ROWS.iter().enumerate() {
            assert!(ROWS.iter().skip(n + 1).all(|other| other.name != row.name));
        }
    }
}
