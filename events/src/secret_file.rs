//! Small files with secrets: read bounded, wiped afterwards, and a warning when
//! others can read them too. What they hold is never shown.

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use tracing::warn;
use zeroize::Zeroizing;

/// A wrong path may lead to anything.
const LEN_MAX: u64 = 64 * 1024;

/// What such a file holds. Its debug form does not show it.
#[derive(Clone)]
pub(crate) struct Secret {
    text: Zeroizing<String>,
    path: PathBuf,
    exposed: bool,
}

/// Reads a file of at most 64 KiB of text.
pub(crate) fn read(path: &Path) -> io::Result<Secret> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let file = fs::File::open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(bad("is not a file"));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(LEN_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LEN_MAX {
        return Err(bad("is larger than 64 KiB"));
    }
    Ok(Secret {
        text,
        path: path.to_owned(),
        exposed: is_exposed(&found),
    })
}

impl Secret {
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// What counts of the text, from the same file.
    pub(crate) fn map(self, part: impl FnOnce(&str) -> String) -> Self {
        Self {
            text: Zeroizing::new(part(&self.text)),
            ..self
        }
    }

    /// To be called once the logs are up.
    pub(crate) fn warn_if_exposed(&self, what: &str) {
        if self.exposed {
            warn!(
                file = %self.path.display(),
                "{what} can be read by others than its owner: chmod 600"
            );
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.path.display())
    }
}

#[cfg(unix)]
fn is_exposed(found: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    found.permissions().mode() & 0o077 != 0
}

#[cfg(not(unix))]
fn is_exposed(_found: &fs::Metadata) -> bool {
    false
}
