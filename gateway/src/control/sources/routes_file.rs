//! routes.yaml and the files it names, read and checked; their content decides
//! whether there is anything new.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use edd_route::StaticRouteSpec;
use edd_routes::Context;

use crate::upstream::tls;

/// A certificate file is not larger; a wrong path may lead to anything.
const CA_MAX: u64 = 4 * 1024 * 1024;

/// What was read, good or bad.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Seen {
    /// The bytes of the file itself; none: it could not be read.
    routes: Option<Vec<u8>>,
    /// The files that it names, likewise.
    named: BTreeMap<PathBuf, Option<Vec<u8>>>,
}

/// The routes, or every mistake as `FILE:LINE:COL: message`.
pub type Checked = Result<Vec<StaticRouteSpec>, Vec<String>>;

/// Reads the file and checks it, blocking.
pub fn read(file: &Path, platform_domain: &str) -> (Seen, Checked) {
    let name = file.display();
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => return (Seen::default(), Err(vec![format!("{name}: {error}")])),
    };
    let named = RefCell::new(BTreeMap::new());
    let checked = match std::str::from_utf8(&bytes) {
        Err(error) => Err(vec![format!("{name}: is not UTF-8 text: {error}")]),
        Ok(text) => {
            let read_ca = |ca: &str| {
                let path = beside(file, ca);
                let read = read_bounded(&path);
                named.borrow_mut().insert(path, read.as_ref().ok().cloned());
                let text = String::from_utf8(read.map_err(|error| error.to_string())?)
                    .map_err(|_| "is not PEM text".to_owned())?;
                tls::roots_of(&text).map_err(|error| error.to_string())?;
                Ok(text)
            };
            let context = Context {
                file: &name.to_string(),
                platform_domain,
                read_ca: &read_ca,
            };
            edd_routes::parse(text, &context).map_err(|mistakes| {
                let lines = mistakes.iter();
                lines.map(|mistake| format!("{name}:{mistake}")).collect()
            })
        }
    };
    let seen = Seen {
        routes: Some(bytes),
        named: named.into_inner(),
    };
    (seen, checked)
}

impl Seen {
    /// Whether the files have this content still, blocking.
    pub fn is_current(&self, file: &Path) -> bool {
        let same = |path: &Path, read: io::Result<Vec<u8>>, seen: &Option<Vec<u8>>| {
            let read = read.ok();
            let same = read == *seen;
            if !same {
                tracing::debug!(file = %path.display(), "changed");
            }
            same
        };
        same(file, std::fs::read(file), &self.routes)
            && self
                .named
                .iter()
                .all(|(path, seen)| same(path, read_bounded(path), seen))
    }
}

/// Names are relative to the file that says them.
fn beside(file: &Path, named: &str) -> PathBuf {
    match file.parent() {
        Some(folder) => folder.join(named),
        None => PathBuf::from(named),
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let found = std::fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("is not a file"));
    }
    if found.len() > CA_MAX {
        return Err(io::Error::other("is too large"));
    }
    std::fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_of_named_files_counts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("routes.yaml");
        let ca = folder.path().join("ca.pem");
        let pem = || {
            let key = rcgen::generate_simple_self_signed(vec!["x.test".into()]).unwrap();
            key.cert.pem()
        };
        std::fs::write(
            &file,
            "routes:\n- {host: a, target: 'https://b', ca: ca.pem}\n",
        )
        .unwrap();

        let (seen, checked) = read(&file, "example.com");
        let mistakes = checked.unwrap_err();
        assert!(
            mistakes[0].contains(":2:38: ca: `ca.pem`: "),
            "{mistakes:?}"
        );
        assert!(seen.is_current(&file));
        for bad in [
            "",
            "garbage",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(&ca, bad).unwrap();
            assert!(read(&file, "example.com").1.is_err(), "{bad:?}");
        }

        std::fs::write(&ca, pem()).unwrap();
        assert!(!seen.is_current(&file), "a file that appears is a change");
        let (seen, checked) = read(&file, "example.com");
        let first = checked.unwrap();
        assert!(seen.is_current(&file));
        std::fs::write(&ca, pem()).unwrap();
        assert!(!seen.is_current(&file));
        let second = read(&file, "example.com").1.unwrap();
        assert_ne!(first, second, "another certificate is another route");
    }

    #[test]
    fn a_missing_file_and_a_folder_are_mistakes() {
        let folder = tempfile::tempdir().unwrap();
        let (seen, checked) = read(&folder.path().join("none"), "example.com");
        assert!(checked.is_err());
        assert!(seen.is_current(&folder.path().join("none")));
        let file = folder.path().join("routes.yaml");
        std::fs::write(&file, "routes:\n- {host: a, target: 'https://b', ca: .}\n").unwrap();
        let mistakes = read(&file, "example.com").1.unwrap_err();
        assert!(mistakes[0].ends_with("is not a file"), "{mistakes:?}");
    }
}
