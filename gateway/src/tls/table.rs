//! Which certificate answers a name.

use std::collections::HashMap;
use std::sync::Arc;

use super::pair::Pair;
use super::policy::ClientPolicy;

/// The certificates by the names in their leaves. Never changed, only replaced.
#[derive(Debug, Default)]
pub(super) struct CertTable {
    default: Option<Arc<Pair>>,
    exact: HashMap<Box<str>, Arc<Pair>>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, Arc<Pair>>,
}

impl CertTable {
    /// A table of `pairs`; the first is the default, and of several with one name the first serves it.
    pub(super) fn new<'p>(pairs: impl IntoIterator<Item = &'p Arc<Pair>>) -> Self {
        let mut table = Self::default();
        for pair in pairs {
            for name in pair.names.exact() {
                let slot = table.exact.entry(name.into());
                slot.or_insert_with(|| Arc::clone(pair));
            }
            for parent in pair.names.wildcard() {
                let slot = table.wildcard.entry(parent.into());
                slot.or_insert_with(|| Arc::clone(pair));
            }
            table.default.get_or_insert_with(|| Arc::clone(pair));
        }
        table
    }

    /// The certificate for a server name: by the whole name, else by a wildcard, else the default.
    pub(super) fn select(&self, sni: Option<&str>) -> Option<&Arc<Pair>> {
        sni.and_then(|name| self.named(name))
            .or(self.default.as_ref())
    }

    /// The certificate that has this name.
    pub(super) fn named(&self, name: &str) -> Option<&Arc<Pair>> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.exact.get(name.as_str()).or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.wildcard.get(parent)
        })
    }

    /// All demands on clients.
    pub(super) fn policies(&self) -> impl Iterator<Item = &Arc<ClientPolicy>> {
        let named = self.exact.values().chain(self.wildcard.values());
        named
            .chain(&self.default)
            .filter_map(|pair| pair.policy.as_ref())
    }
}
