//! What concerns SSH alone: algorithms, keys, who may wait for a login, recordings.

use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;
use edd_daemon::cli::Problems;
use edd_route::ContainerId;
use edd_store::DatabaseUrl;

use super::parse::parse_number;
use crate::ssh::Startups;

/// The flags, as text.
#[derive(Args, Clone, Debug)]
pub struct SshArgs {
    /// Connections without a login: START:RATE:FULL, as sshd's MaxStartups
    #[arg(
        long,
        env = "EDD_GATEWAY_SSH_MAX_STARTUPS",
        default_value = "100:30:1024",
        value_name = "N:PERCENT:N"
    )]
    pub ssh_max_startups: String,
    /// Connections without a login of one address
    #[arg(
        long,
        env = "EDD_GATEWAY_SSH_MAX_STARTUPS_PER_IP",
        default_value = "128",
        value_name = "N"
    )]
    pub ssh_max_startups_per_ip: String,
    /// What may wait in all SSH connections together, in MiB
    #[arg(
        long,
        env = "EDD_GATEWAY_SSH_BUFFER_LIMIT",
        default_value = "1024",
        value_name = "MIB"
    )]
    pub ssh_buffer_limit: String,
    /// Only key exchanges that a quantum computer does not break: shuts out many clients
    #[arg(
        long,
        env = "EDD_GATEWAY_SSH_POST_QUANTUM_ONLY",
        value_parser = BoolishValueParser::new()
    )]
    pub ssh_post_quantum_only: bool,
    /// Whose choice of ciphers counts: gateway (AES-GCM for clients that have it) or client
    #[arg(
        long,
        env = "EDD_GATEWAY_SSH_CIPHER_ORDER",
        default_value = "gateway",
        value_name = "WHOSE"
    )]
    pub ssh_cipher_order: String,
    /// An RSA host key beside the ed25519 one, for clients that know nothing else
    #[arg(
        long,
        env = "EDD_GATEWAY_SSH_HOST_RSA",
        value_parser = BoolishValueParser::new()
    )]
    pub ssh_host_rsa: bool,
    /// Where the SSH keys are: state-dir or database; default: database with PostgreSQL
    #[arg(
        long,
        env = "EDD_GATEWAY_SSH_KEYS",
        default_value = "",
        hide_default_value = true,
        value_name = "PLACE"
    )]
    pub ssh_keys: String,
    /// Folder for recordings of terminal sessions (asciicast v2)
    #[arg(long, env = "EDD_GATEWAY_SSH_RECORDINGS", value_name = "DIR")]
    pub ssh_recordings: Option<PathBuf>,
    /// Containers whose terminal sessions are recorded; * for all
    #[arg(
        long,
        env = "EDD_GATEWAY_SSH_RECORD",
        default_value = "",
        hide_default_value = true,
        value_name = "LIST"
    )]
    pub ssh_record: String,
    /// Largest recording, in MiB
    #[arg(
        long,
        env = "EDD_GATEWAY_SSH_RECORDING_MAX",
        default_value = "64",
        value_name = "MIB"
    )]
    pub ssh_recording_max: String,
}

/// The checked flags.
#[derive(Clone, Debug)]
pub struct SshConfig {
    /// How many connections may wait for a login.
    pub startups: Startups,
    /// How many of one address.
    pub startups_per_address: usize,
    /// What may wait in all connections together, in bytes.
    pub buffer_bytes_max: u64,
    /// Whether only post-quantum key exchanges are offered to clients.
    pub post_quantum_only: bool,
    /// Whose choice of ciphers counts.
    pub ciphers: CipherOrder,
    /// Whether there is an RSA host key, too.
    pub host_rsa: bool,
    /// Whether the keys are those of the database, the same for all who share it.
    pub keys_in_database: bool,
    /// What is recorded, if anything.
    pub recordings: Option<Recordings>,
}

/// Whose choice of ciphers counts in a client's SSH connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CipherOrder {
    /// Clients that have AES-GCM get it. Only where the processor has AES.
    Gateway,
    /// As SSH has it (RFC 4253, section 7.1).
    Client,
}

/// Which terminal sessions are recorded, and where.
#[derive(Clone, Debug)]
pub struct Recordings {
    /// The folder; each container has one of its own in it.
    pub folder: PathBuf,
    /// The containers; none: all.
    pub containers: Option<Vec<ContainerId>>,
    /// Largest file, in bytes.
    pub bytes_max: u64,
}

/// Whether this processor has instructions for AES.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

impl SshArgs {
    /// Checks everything; mistakes go to `problems`.
    pub(super) fn check(
        self,
        problems: &mut Problems,
        database: Option<&DatabaseUrl>,
    ) -> Option<SshConfig> {
        let p = problems;
        let startups = p.check("--ssh-max-startups", parse_startups(&self.ssh_max_startups));
        let per_address = p.check(
            "--ssh-max-startups-per-ip",
            parse_number(&self.ssh_max_startups_per_ip, 1, usize::MAX),
        );
        let buffer = parse_number(&self.ssh_buffer_limit, BUFFER_MIN, MEGABYTES_MAX);
        let buffer = p.check("--ssh-buffer-limit", buffer);
        let keys_in_database = match self.ssh_keys.as_str() {
            "" => Some(database.is_some_and(|url| url.path().is_none())),
            "database" => Some(true),
            "state-dir" => Some(false),
            other => {
                let why = format!("{other:?} is not state-dir or database");
                p.push("--ssh-keys", why);
                None
            }
        };
        let ciphers = match self.ssh_cipher_order.as_str() {
            // Without such instructions ChaCha20, which clients like best, is the faster one.
            "gateway" if !has_aes() => Some(CipherOrder::Client),
            "gateway" => Some(CipherOrder::Gateway),
            "client" => Some(CipherOrder::Client),
            other => {
                p.push(
                    "--ssh-cipher-order",
                    format!("{other:?} is not gateway or client"),
                );
                None
            }
        };
        let megabytes = parse_number(&self.ssh_recording_max, 1, MEGABYTES_MAX);
        let megabytes = p.check("--ssh-recording-max", megabytes);
        let recorded: Vec<&str> = (self.ssh_record.split(','))
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect();
        let containers = match recorded.as_slice() {
            ["*"] => None,
            names => {
                let ids = names.iter().filter_map(|name| {
                    let id = ContainerId::new(name).map_err(|error| format!("{name:?} {error}"));
                    p.check("--ssh-record", id)
                });
                Some(ids.collect::<Vec<_>>())
            }
        };
        let recordings = match (self.ssh_recordings, recorded.is_empty()) {
            (None, true) => None,
            (Some(folder), false) => megabytes.map(|megabytes| Recordings {
                folder,
                containers,
                bytes_max: mebibytes(megabytes),
            }),
            (None, false) => {
                p.push("--ssh-record", "needs --ssh-recordings, a folder");
                None
            }
            (Some(_), true) => {
                p.push("--ssh-recordings", "needs --ssh-record, containers or *");
                None
            }
        };
        Some(SshConfig {
            startups: startups?,
            startups_per_address: per_address?,
            buffer_bytes_max: mebibytes(buffer?),
            post_quantum_only: self.ssh_post_quantum_only,
            ciphers: ciphers?,
            host_rsa: self.ssh_host_rsa,
            keys_in_database: keys_in_database?,
            recordings,
        })
    }
}

/// Two channels' windows fit into it a few times.
const BUFFER_MIN: usize = 16;

fn mebibytes(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX >> 20) << 20
}

/// A terabyte is nobody's wish.
const MEGABYTES_MAX: usize = 1 << 20;

/// `START:RATE:FULL`, or `FULL` alone.
fn parse_startups(text: &str) -> Result<Startups, String> {
    let wrong = || format!("{text:?} is not START:PERCENT:FULL such as 100:30:1024");
    let numbers: Option<Vec<usize>> = text.split(':').map(|part| part.parse().ok()).collect();
    let startups = match numbers.as_deref() {
        Some([full]) => Startups {
            start: *full,
            rate: 100,
            full: *full,
        },
        Some([start, rate, full]) => Startups {
            start: *start,
            rate: u8::try_from(*rate).map_err(|_| wrong())?,
            full: *full,
        },
        _ => return Err(wrong()),
    };
    match startups {
        Startups { start, rate, full } if start >= 1 && start <= full && rate <= 100 => {
            Ok(startups)
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn startups_are_those_of_sshd() {
        let startups = |start, rate, full| Startups { start, rate, full };
        assert_eq!(parse_startups("10:30:100"), Ok(startups(10, 30, 100)));
        assert_eq!(parse_startups("10"), Ok(startups(10, 100, 10)));
        for bad in [
            "",
            "0",
            "10:30",
            "10:101:100",
            "100:30:10",
            "a:b:c",
            "-1",
            "1:2:3:4",
        ] {
            assert!(parse_startups(bad).is_err(), "{bad}");
        }
    }
}
