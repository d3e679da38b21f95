//! No service reads another's database: each names only the tables of its own migrations.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Who owns a database, and where its migrations are.
const OWNERS: [(&str, &str); 3] = [
    ("gateway", "gateway/migrations"),
    ("services/auth", "services/auth/migrations"),
    ("services/compute", "services/compute/migrations"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
}

/// The names that follow these words of SQL (written in capitals) in all files of the folder.
fn names_after(words: &[&str], folder: &str, ending: &str) -> BTreeSet<String> {
    let mut paths = Vec::new();
    files(&root().join(folder), ending, &mut paths);
    let mut names = BTreeSet::new();
    for path in paths {
        let text = std::fs::read_to_string(path).expect("text");
        let tokens: Vec<_> = text
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .collect();
        let tokens: Vec<_> = tokens
            .into_iter()
            .filter(|token| !token.is_empty())
            .collect();
        for pair in tokens.windows(2) {
            if words.contains(&pair[0]) {
                names.insert(pair[1].to_owned());
            }
        }
    }
    names
}

#[test]
fn no_service_names_a_table_of_another() {
    let tables: Vec<_> = OWNERS
        .iter()
        .map(|(_, migrations)| names_after(&["TABLE"], migrations, "sql"))
        .collect();
    for (own, (crate_folder, _)) in tables.iter().zip(OWNERS) {
        assert!(
            own.len() > 2,
            "{crate_folder}: its tables are found: {own:?}"
        );
        let source = format!("{crate_folder}/src");
        let used = names_after(&["FROM", "INTO", "JOIN", "UPDATE"], &source, "rs");
        assert!(
            used.intersection(own).count() > 2,
            "{crate_folder}: its SQL is found: {used:?}"
        );
        let all: BTreeSet<_> = tables.iter().flatten().collect();
        let foreign: Vec<_> = used
            .iter()
            .filter(|name| all.contains(name) && !own.contains(*name))
            .collect();
        assert!(
            foreign.is_empty(),
            "{crate_folder} names tables of others: {foreign:?}"
        );
    }
}

/// Tests of all together may start the others.
#[test]
fn no_service_is_built_from_another() {
    for (folder, _) in OWNERS {
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let (built_from, _) = manifest.split_once("[dev-dependencies]").unwrap();
        for other in ["edd-auth", "edd-compute", "edd-gateway"] {
            let line = format!("{other}.workspace");
            assert!(!built_from.contains(&line), "{folder} depends on {other}");
        }
    }
}
