//! Names that several leaves have: one pair serves them, and its demand is the one that counts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tracing::{error, warn};

use super::pair::Pair;

/// Names that two pairs have in common.
#[derive(Debug)]
pub(super) struct Doubled<'p> {
    /// Who serves them.
    first: &'p Pair,
    /// Who has them in vain.
    other: &'p Pair,
    names: Vec<String>,
}

/// The names of `pairs` that an earlier pair serves, in the order in which a
/// [`super::table::CertTable`] takes them.
pub(super) fn doubled<'p>(pairs: impl IntoIterator<Item = &'p Arc<Pair>>) -> Vec<Doubled<'p>> {
    let mut served: HashMap<String, (usize, &Pair)> = HashMap::new();
    let mut found: BTreeMap<(usize, usize), Doubled<'p>> = BTreeMap::new();
    for (place, pair) in pairs.into_iter().enumerate() {
        let exact = pair.names.exact().map(str::to_owned);
        let wildcard = pair.names.wildcard().map(|parent| format!("*.{parent}"));
        for name in exact.chain(wildcard) {
            let Some(&(first_place, first)) = served.get(&name) else {
                served.insert(name, (place, pair));
                continue;
            };
            let common = found.entry((first_place, place));
            let common = common.or_insert_with(|| Doubled {
                first,
                other: pair,
                names: Vec::new(),
            });
            common.names.push(name);
        }
    }
    found.into_values().collect()
}

impl Doubled<'_> {
    /// Says so in the log: loudly where the pairs demand different things of clients.
    pub(super) fn tell(&self) {
        let names = self.listed();
        let (first, other) = (self.first.path.display(), self.other.path.display());
        let demand = |pair: &Pair| pair.policy.as_ref().map(|policy| policy.id);
        match (demand(self.first), demand(self.other)) {
            (first_demand, other_demand) if first_demand == other_demand => {
                warn!(%names, served = %first, not_served = %other,
                    "names are in several certificates, the first serves them");
            }
            (first_demand, Some(_)) => {
                let instead = match first_demand {
                    None => "without any",
                    Some(_) => "under its own",
                };
                error!(%names, served = %first, not_served = %other,
                    "the demand for client certificates of {other} does not apply to {names}: \
                     {first} serves them, {instead}");
            }
            (_, None) => {
                error!(%names, served = %first, not_served = %other,
                    "{other} demands no client certificates, but {names} do: {first} serves them");
            }
        }
    }

    /// Enough of them to know what is meant.
    fn listed(&self) -> String {
        let mut text = self.names.iter().take(LISTED_MAX).cloned();
        let text = text.by_ref().collect::<Vec<_>>().join(", ");
        match self.names.len().checked_sub(LISTED_MAX) {
            None | Some(0) => text,
            Some(more) => format!("{text} and {more} more"),
        }
    }
}

/// Names in one line.
const LISTED_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustls::crypto::aws_lc_rs::default_provider;

    use super::*;

    fn pair(file: &str, names: &[&str]) -> Arc<Pair> {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let params = rcgen::CertificateParams::new(names).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        let (certificate, key) = (certificate.as_bytes(), key.serialize_pem());
        let read = Pair::from_pem(
            Path::new(file),
            certificate,
            key.as_bytes(),
            &default_provider(),
        );
        Arc::new(read.unwrap())
    }

    #[test]
    fn names_of_several_leaves_are_found_with_whom_they_belong_to() {
        let pairs = [
            pair("tls.crt", &["a.example", "*.b.example"]),
            pair("one/tls.crt", &["A.example", "c.example", "x.b.example"]),
            pair("two/tls.crt", &["*.b.example", "c.example", "a.example"]),
        ];
        let found: Vec<_> = doubled(&pairs)
            .iter()
            .map(|both| {
                let name = |pair: &Pair| pair.path.display().to_string();
                (name(both.first), name(both.other), both.listed())
            })
            .collect();
        let expected = [
            ("tls.crt", "one/tls.crt", "a.example"),
            ("tls.crt", "two/tls.crt", "a.example, *.b.example"),
            ("one/tls.crt", "two/tls.crt", "c.example"),
        ];
        let expected = expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()));
        assert_eq!(found, expected);
        assert!(doubled(&pairs[..1]).is_empty());
    }
}
