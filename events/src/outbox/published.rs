//! What the stream has and the outbox still holds.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Ids of events whose rows could not be deleted after the stream's
/// acknowledgement; clones are the same.
///
/// The stream forgets message ids after two minutes, and a database can be away
/// for longer: what is remembered here is not published once more. To be given to
/// each relay that this process has for the same database. Bounded by what one
/// pass publishes.
#[derive(Clone, Debug, Default)]
pub struct Published(Arc<Mutex<BTreeSet<String>>>);

impl Published {
    /// Which of these, the oldest rows of the outbox, the stream has. What is not
    /// among them others have deleted.
    pub(super) fn among<'r>(&self, event_ids: impl Iterator<Item = &'r str>) -> BTreeSet<String> {
        let mut known = self.ids();
        if !known.is_empty() {
            *known = event_ids
                .filter(|id| known.contains(*id))
                .map(str::to_owned)
                .collect();
        }
        known.clone()
    }

    /// The stream has this one.
    pub(super) fn add(&self, event_id: String) {
        self.ids().insert(event_id);
    }

    /// The outbox holds none of them any more.
    pub(super) fn forget(&self) {
        self.ids().clear();
    }

    fn ids(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // Never held across an await.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_deleted_is_forgotten() {
        let published = Published::default();
        published.add("a".into());
        published.add("b".into());
        let among = |ids: &[&str]| Vec::from_iter(published.among(ids.iter().copied()));
        assert_eq!(among(&["a", "b", "c"]), ["a", "b"]);
        assert_eq!(among(&["b", "c"]), ["b"]);
        assert_eq!(among(&["a", "b"]), ["b"], "it is another row");
        published.forget();
        assert!(among(&["a", "b"]).is_empty());
    }
}
