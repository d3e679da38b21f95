//! The machine's `sshd` for containers of the local runtime: found once, then
//! configured per container.
//!
//! It listens on the container's address, has a host key of the container's own,
//! and lets in whoever has the gateway's key: users prove to the gateway who they
//! are. Started and ended by the guest.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use russh::keys::ssh_key::{Algorithm, LineEnding, PrivateKey};
use tokio::{process::Command, time::timeout};

/// Where containers of the local runtime listen for SSH: an ordinary user cannot
/// have port 22.
pub const PORT: u16 = 2022;

/// Where sshd as root insists on an empty folder.
const PRIVILEGE_SEPARATION_FOLDER: &str = "/run/sshd";
/// How long `sshd -V` may take.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// An SSH server on this machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sshd {
    /// The server; absolute, as it starts itself again for each connection.
    pub binary: PathBuf,
    /// Its helper (OpenSSH 9.8 and later), if it is not where it was built for.
    pub session: Option<PathBuf>,
    version: (u32, u32),
}

/// A container's part of the SSH server.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) config: PathBuf,
    /// The public key line.
    pub(super) host_key: String,
}

/// Looks for an SSH server: `given`, else on PATH, else in /usr/sbin.
pub fn find(given: Option<&Path>) -> Option<PathBuf> {
    if let Some(given) = given {
        return std::path::absolute(given)
            .ok()
            .filter(|file| file.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join("sshd"))
        .find(|file| file.is_absolute() && file.is_file())
}

impl Sshd {
    /// Asks the server for its version and makes the machine ready for it.
    pub async fn new(binary: PathBuf, session: Option<PathBuf>) -> io::Result<Self> {
        let asked = Command::new(&binary)
            // Older ones do not know it, and say their version in the refusal.
            .arg("-V")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = timeout(VERSION_TIMEOUT, asked)
            .await
            .map_err(io::Error::from)??;
        let words = [output.stdout, output.stderr].concat();
        let version = version(&String::from_utf8_lossy(&words));
        if rustix::process::geteuid().is_root() {
            let mut folder = fs::DirBuilder::new();
            folder
                .recursive(true)
                .mode(0o755)
                .create(PRIVILEGE_SEPARATION_FOLDER)?;
        }
        Ok(Self {
            binary,
            session,
            version: version.unwrap_or((0, 0)),
        })
    }

    /// Writes a container's configuration and, at its first start, its host key.
    pub(super) fn prepare(
        &self,
        folder: &Path,
        addr: Ipv4Addr,
        authorized_keys: &Path,
    ) -> io::Result<Prepared> {
        let host_key_file = folder.join("ssh_host_ed25519");
        let host_key = host_key(&host_key_file)?;
        let config = folder.join("sshd_config");
        let home = folder.join("home");
        fs::create_dir_all(&home)?;
        write_private(
            &config,
            &self.config(addr, &host_key_file, authorized_keys, &home),
        )?;
        Ok(Prepared { config, host_key })
    }

    /// Each container has a home of its own: the start-up files of whoever runs
    /// compute are none of the container's.
    fn config(
        &self,
        addr: Ipv4Addr,
        host_key: &Path,
        authorized_keys: &Path,
        home: &Path,
    ) -> String {
        let mut config = format!(
            "ListenAddress {addr}:{PORT}\n\
             HostKey \"{}\"\n\
             AuthorizedKeysFile \"{}\"\n\
             SetEnv \"HOME={}\"\n\
             PermitUserRC no\n",
            host_key.display(),
            authorized_keys.display(),
            home.display(),
        );
        config.push_str(
            "PidFile none\n\
             LogLevel ERROR\n\
             StrictModes no\n\
             UsePAM no\n\
             UseDNS no\n\
             PermitRootLogin yes\n\
             PubkeyAuthentication yes\n\
             PasswordAuthentication no\n\
             KbdInteractiveAuthentication no\n\
             AllowTcpForwarding yes\n\
             AllowStreamLocalForwarding yes\n\
             AllowAgentForwarding yes\n\
             GatewayPorts clientspecified\n\
             PermitTTY yes\n\
             PrintMotd no\n\
             PrintLastLog no\n\
             AcceptEnv *\n\
             Subsystem sftp internal-sftp\n\
             LoginGraceTime 30\n\
             MaxAuthTries 20\n\
             MaxSessions 1000\n\
             MaxStartups 1000\n",
        );
        if self.version >= (9, 8) {
            // All users come from one address, the gateway's: what one of them
            // does wrong must not lock out the others.
            config.push_str("PerSourcePenalties no\n");
            if let Some(session) = &self.session {
                config.push_str(&format!("SshdSessionPath \"{}\"\n", session.display()));
                let auth = session.with_file_name("sshd-auth");
                if self.version >= (10, 0) && auth.is_file() {
                    config.push_str(&format!("SshdAuthPath \"{}\"\n", auth.display()));
                }
            }
        }
        config
    }
}

/// The version in what sshd says, such as `OpenSSH_9.2p1 Debian-2`.
fn version(words: &str) -> Option<(u32, u32)> {
    let (_, rest) = words.split_once("OpenSSH_")?;
    let (major, rest) = rest.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The key of an earlier start, so that clients meet the same host again; one
/// that cannot be read is replaced.
fn host_key(file: &Path) -> io::Result<String> {
    let known = fs::read_to_string(file)
        .ok()
        .and_then(|text| PrivateKey::from_openssh(text).ok());
    let key = match known {
        Some(key) => key,
        None => {
            let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519)
                .map_err(io::Error::other)?;
            let text = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
            write_private(file, &text)?;
            key
        }
    };
    let line = key.public_key().to_openssh().map_err(io::Error::other)?;
    Ok(line.trim_end().to_owned())
}

/// Replaces a file as a whole; only its owner can read it.
fn write_private(file: &Path, text: &str) -> io::Result<()> {
    let draft = file.with_extension("new");
    // A draft left by a crash may have another mode.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    io::Write::write_all(&mut out, text.as_bytes())?;
    fs::rename(&draft, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_sshd_says() {
        for (words, expected) in [
            (
                "OpenSSH_9.2p1 Debian-2+deb12u3, OpenSSL 3.0.14",
                Some((9, 2)),
            ),
            ("unknown option -- V\nOpenSSH_8.4p1, OpenSSL", Some((8, 4))),
            ("OpenSSH_10.0p2", Some((10, 0))),
            ("", None),
            ("OpenSSH_x.1", None),
        ] {
            assert_eq!(version(words), expected, "{words}");
        }
    }

    #[test]
    fn new_options_are_for_new_servers_only() {
        let config = |version| {
            let session = Some(PathBuf::from("/x/sshd-session"));
            let sshd = Sshd {
                binary: "/sshd".into(),
                session,
                version,
            };
            sshd.config(
                [127, 64, 0, 1].into(),
                Path::new("/k"),
                Path::new("/a"),
                Path::new("/h"),
            )
        };
        assert!(!config((9, 2)).contains("PerSourcePenalties"));
        assert!(config((9, 8)).contains("SshdSessionPath \"/x/sshd-session\""));
        assert!(config((10, 0)).contains("PerSourcePenalties no"));
    }

    #[test]
    fn the_host_key_stays_and_a_damaged_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let first = host_key(&file).unwrap();
        assert!(first.starts_with("ssh-ed25519 "), "{first}");
        assert_eq!(host_key(&file).unwrap(), first);
        fs::write(&file, "damaged").unwrap();
        let second = host_key(&file).unwrap();
        assert_ne!(second, first);
        assert_eq!(host_key(&file).unwrap(), second);
    }
}
