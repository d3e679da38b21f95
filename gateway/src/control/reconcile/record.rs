//! What somebody else's reduction led to, taken over as it is.
//!
//! Replicas share a database: one reduces an event, the others take the outcome
//! from the journal, record by record and in order.

use edd_route::{ContainerId, StaticRouteSpec, UserId};

use super::entity::{ContainerEntity, KeyEntity, RuleEntity, UserEntity};
use super::state::{Effects, State};

/// An entity as it is after a change; none: it is gone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Record {
    /// A container, without its rules.
    Container(ContainerId, Option<ContainerEntity>),
    /// An SSH key.
    Key(i64, Option<KeyEntity>),
    /// A static route, by host and path.
    Route(String, String, Option<Box<StaticRouteSpec>>),
    /// An ingress rule.
    Rule(ContainerId, u16, Option<RuleEntity>),
    /// A user.
    User(UserId, Option<UserEntity>),
}

impl State {
    /// Takes a record of the time `at_ms` (Unix milliseconds) over. It announces nothing: who
    /// reduced the event has done so.
    pub fn take_over(&mut self, record: &Record, at_ms: u64, touched: &mut Effects) {
        match record {
            Record::Container(id, entity) => {
                let rules = self.forget_container(id);
                match entity {
                    Some(entity) => {
                        let rules = rules.unwrap_or_default();
                        let entity = ContainerEntity {
                            rules,
                            ..entity.clone()
                        };
                        self.restore_container(id.clone(), entity);
                    }
                    None => self.restore_dead_container(id.clone(), at_ms),
                }
                touched.containers.insert(id.clone());
            }
            Record::Key(id, key) => {
                touched.key_owners.extend(self.forget_key(*id));
                match key {
                    Some(key) => {
                        touched.key_owners.insert(key.user);
                        self.restore_key(*id, key.clone());
                    }
                    None => self.restore_dead_key(*id, at_ms),
                }
                touched.keys.insert(*id);
            }
            // Every replica has its own file.
            Record::Route(..) => {}
            Record::Rule(id, port, rule) => {
                self.restore_rule(id, *port, rule.clone());
                touched.containers.insert(id.clone());
                touched.rules.insert((id.clone(), *port));
            }
            Record::User(id, user) => {
                match user {
                    Some(user) => self.restore_user(*id, user.clone()),
                    None => self.restore_dead_user(*id, at_ms),
                }
                touched.users.insert(*id);
            }
        }
    }
}
