//! The gateway's SSH keys under the state directory.
//!
//! `ssh_host_ed25519` is what clients see, `ssh_client_ed25519{,.pub}` is what
//! containers trust. Both are made once and kept: a key that changes teaches
//! users to ignore warnings. A file that cannot be read is an error, never a
//! reason to make a new one. Whether these or a database's are used is for [`super::keyring`].

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::RsaKeypair;
use russh::keys::{Algorithm, PrivateKey};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::keyring::{StoredKey, note_of};

/// What clients see.
const HOST_KEY: &str = "ssh_host_ed25519";

/// What clients see that know no ed25519, if it is asked for.
const HOST_RSA_KEY: &str = "ssh_host_rsa";

/// What containers trust.
const CLIENT_KEY: &str = "ssh_client_ed25519";

/// All of them.
const NAMES: [&str; 3] = [HOST_KEY, HOST_RSA_KEY, CLIENT_KEY];

/// Bits of an RSA key: what 128-bit security asks for.
const RSA_BITS: usize = 3072;

/// Why the keys are not there.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file is there, but no key that can be used.
    #[error("{}: not a usable OpenSSH private key", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: russh::keys::ssh_key::Error,
    },
    /// Reading, writing or creating failed.
    #[error("{}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The system's random numbers or the encoding failed.
    #[error("cannot make a key")]
    Make(#[source] russh::keys::ssh_key::Error),
}

/// The keys, ready for use.
pub(crate) struct Keys {
    /// Proves the gateway to clients: ed25519, and RSA if that is asked for.
    pub(crate) host: Vec<PrivateKey>,
    /// Logs the gateway in to containers.
    pub(crate) client: PrivateKey,
    /// The public line of `client`, without a line end.
    pub(crate) client_line: String,
}

impl Keys {
    /// Reads the keys, making those that are missing. Blocks on the disk.
    pub(crate) fn load(state_dir: &Path, host_rsa: bool) -> Result<Self, KeyError> {
        fs::create_dir_all(state_dir).map_err(|source| io_error(state_dir, source))?;
        let mut host = vec![load_or_make(
            &state_dir.join(HOST_KEY),
            &Algorithm::Ed25519,
        )?];
        if host_rsa {
            let rsa = Algorithm::Rsa { hash: None };
            host.push(load_or_make(&state_dir.join(HOST_RSA_KEY), &rsa)?);
        }
        let client = load_or_make(&state_dir.join(CLIENT_KEY), &Algorithm::Ed25519)?;
        let mut public = client.public_key().clone();
        public.set_comment("edd-gateway");
        let client_line = public.to_openssh().map_err(KeyError::Make)?;
        publish(
            &state_dir.join(CLIENT_KEY).with_extension("pub"),
            &client_line,
        )?;
        Ok(Self {
            host,
            client,
            client_line,
        })
    }
}

/// Whether the keys in `state_dir` are copies of a database's.
pub(super) fn is_copy(state_dir: &Path) -> bool {
    note_of(state_dir).exists() && are_there(state_dir)
}

/// Whether `state_dir` has the keys that every gateway has.
pub(super) fn are_there(state_dir: &Path) -> bool {
    [HOST_KEY, CLIENT_KEY]
        .iter()
        .all(|name| state_dir.join(name).exists())
}

/// The names of the keys that are used.
pub(super) fn names(host_rsa: bool) -> impl Iterator<Item = &'static str> {
    let used = move |name: &&str| host_rsa || *name != HOST_RSA_KEY;
    NAMES.into_iter().filter(used)
}

/// The private keys as text, for a database.
pub(super) fn stored(state_dir: &Path, host_rsa: bool) -> Result<Vec<StoredKey>, KeyError> {
    names(host_rsa)
        .map(|name| {
            let path = state_dir.join(name);
            let secret = fs::read_to_string(&path).map_err(|source| io_error(&path, source))?;
            Ok(StoredKey {
                name: name.to_owned(),
                secret: Zeroizing::new(secret),
            })
        })
        .collect()
}

/// Puts a database's keys into `state_dir`. A key that was there and is another is kept beside
/// it, as `<name>.replaced`. All are checked before any is written.
pub(super) fn adopt(state_dir: &Path, shared: &[StoredKey]) -> Result<(), KeyError> {
    let known = shared
        .iter()
        .filter(|key| NAMES.contains(&key.name.as_str()));
    let known: Vec<_> = known
        .map(|key| (state_dir.join(&key.name), key.secret.as_bytes()))
        .collect();
    for (path, text) in &known {
        parse(path, text)?;
    }
    for (path, text) in known {
        match fs::read(&path) {
            Ok(there) if there == text => continue,
            Ok(_) => {
                let mut replaced = path.clone().into_os_string();
                replaced.push(".replaced");
                warn!(path = %path.display(), "replaced by the SSH key of the database");
                fs::rename(&path, &replaced).map_err(|source| io_error(&path, source))?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(io_error(&path, source)),
        }
        let temporary = write_temporary(&path, text, 0o600)?;
        fs::rename(&temporary, &path).map_err(|source| io_error(&path, source))?;
        sync_parent(&path);
    }
    let note = note_of(state_dir);
    if !note.exists() {
        let text = b"The ssh_* keys here are copies of those in the database.\n";
        let temporary = write_temporary(&note, text, 0o600)?;
        fs::rename(&temporary, &note).map_err(|source| io_error(&note, source))?;
    }
    Ok(())
}

fn load_or_make(path: &Path, algorithm: &Algorithm) -> Result<PrivateKey, KeyError> {
    match fs::read(path) {
        Ok(text) => {
            tighten(path);
            parse(path, &text)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => make(path, algorithm),
        Err(source) => Err(io_error(path, source)),
    }
}

fn parse(path: &Path, text: &[u8]) -> Result<PrivateKey, KeyError> {
    let bad = |source| KeyError::Bad {
        path: path.to_owned(),
        source,
    };
    let key = PrivateKey::from_openssh(text).map_err(bad)?;
    if key.is_encrypted() {
        return Err(bad(russh::keys::ssh_key::Error::Encrypted));
    }
    Ok(key)
}

/// A key that others can read is reported and closed; it still serves.
fn tighten(path: &Path) {
    let Ok(mode) = fs::metadata(path).map(|meta| meta.permissions().mode()) else {
        return;
    };
    if mode & 0o077 == 0 {
        return;
    }
    warn!(path = %path.display(), "private key was readable by others, permissions set to 0600");
    if let Err(error) = fs::set_permissions(path, Permissions::from_mode(0o600)) {
        warn!(path = %path.display(), %error, "cannot set permissions of the private key");
    }
}

fn make(path: &Path, algorithm: &Algorithm) -> Result<PrivateKey, KeyError> {
    let key = match algorithm {
        // Seconds to make, once.
        Algorithm::Rsa { .. } => RsaKeypair::random(&mut rand::rng(), RSA_BITS)
            .and_then(|pair| PrivateKey::new(pair.into(), "")),
        _ => PrivateKey::random(&mut rand::rng(), algorithm.clone()),
    };
    let key = key.map_err(KeyError::Make)?;
    let text = key.to_openssh(LineEnding::LF).map_err(KeyError::Make)?;
    let temporary = write_temporary(path, text.as_bytes(), 0o600)?;
    // A link, not a rename: of two gateways that start at once the first wins
    // and the other takes its key.
    let linked = fs::hard_link(&temporary, path);
    let _ = fs::remove_file(&temporary);
    match linked {
        Ok(()) => {
            sync_parent(path);
            info!(path = %path.display(), "made a new SSH key");
            Ok(key)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let text = fs::read(path).map_err(|source| io_error(path, source))?;
            parse(path, &text)
        }
        Err(source) => Err(io_error(path, source)),
    }
}

/// Keeps the public line beside its key, for operators and container images.
fn publish(path: &Path, line: &str) -> Result<(), KeyError> {
    let wanted = format!("{line}\n");
    if fs::read_to_string(path).is_ok_and(|text| text == wanted) {
        return Ok(());
    }
    let temporary = write_temporary(path, wanted.as_bytes(), 0o644)?;
    fs::rename(&temporary, path).map_err(|source| io_error(path, source))?;
    sync_parent(path);
    Ok(())
}

fn write_temporary(path: &Path, bytes: &[u8], mode: u32) -> Result<PathBuf, KeyError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{:016x}.tmp", rand::random::<u64>()));
    let temporary = PathBuf::from(name);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        io_error(&temporary, source)
    })?;
    Ok(temporary)
}

fn sync_parent(path: &Path) {
    // Best effort: some file systems cannot sync a directory.
    if let Some(parent) = path.parent()
        && let Ok(directory) = File::open(parent)
    {
        let _ = directory.sync_all();
    }
}

fn io_error(path: &Path, source: io::Error) -> KeyError {
    KeyError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("deep/state");
        let first = Keys::load(&state, false).unwrap();
        let second = Keys::load(&state, false).unwrap();
        assert_eq!(first.host[0].public_key(), second.host[0].public_key());
        assert_eq!(first.client_line, second.client_line);
        assert_ne!(
            first.host[0].public_key().key_data(),
            first.client.public_key().key_data()
        );
        assert!(first.client_line.starts_with("ssh-ed25519 "));
        let line = fs::read_to_string(state.join("ssh_client_ed25519.pub")).unwrap();
        assert_eq!(line.trim_end(), first.client_line);
        for name in [HOST_KEY, CLIENT_KEY] {
            let mode = fs::metadata(state.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let left = fs::read_dir(&state).unwrap().count();
        assert_eq!(left, 3, "no temporary files stay");
    }

    #[test]
    fn a_broken_key_is_an_error_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(HOST_KEY), "not a key").unwrap();
        assert!(matches!(
            Keys::load(dir.path(), false),
            Err(KeyError::Bad { .. })
        ));
        assert_eq!(
            fs::read_to_string(dir.path().join(HOST_KEY)).unwrap(),
            "not a key"
        );
    }

    #[test]
    fn a_key_open_to_others_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        Keys::load(dir.path(), false).unwrap();
        let path = dir.path().join(CLIENT_KEY);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        Keys::load(dir.path(), false).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_databases_keys_are_taken_whole_and_the_own_ones_kept_aside() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let theirs = Keys::load(one.path(), false).unwrap();
        let own = Keys::load(two.path(), false).unwrap();
        let shared = stored(one.path(), false).unwrap();
        assert!(!is_copy(two.path()));
        let mut broken = shared.clone();
        broken[1].secret = Zeroizing::new("nonsense".to_owned());
        assert!(adopt(two.path(), &broken).is_err());
        let still = Keys::load(two.path(), false).unwrap();
        assert_eq!(still.client_line, own.client_line);
        adopt(two.path(), &shared).unwrap();
        assert!(is_copy(two.path()));
        let now = Keys::load(two.path(), false).unwrap();
        assert_eq!(now.client_line, theirs.client_line);
        assert_eq!(now.host[0].public_key(), theirs.host[0].public_key());
        let aside = fs::read(two.path().join("ssh_host_ed25519.replaced")).unwrap();
        let aside = PrivateKey::from_openssh(aside).unwrap();
        assert_eq!(aside.public_key(), own.host[0].public_key());
        let mode = fs::metadata(two.path().join(CLIENT_KEY)).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        assert!(!format!("{shared:?}").contains("PRIVATE"));
    }
}
