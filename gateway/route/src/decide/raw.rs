//! Where bytes go that name nobody.

use super::{ContainerMatch, Door};
use crate::table::RouteTable;

/// Why a raw connection goes nowhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RawRefusal {
    /// More than one running container has a rule for the port.
    #[error("several running containers have a rule for the port")]
    Ambiguous,
    /// No running container has a rule for the port.
    #[error("no running container has a rule for the port")]
    NoOwner,
}

impl RouteTable {
    /// The one running container with a rule for this dynamic port.
    pub fn decide_raw(&self, port: u16) -> Result<ContainerMatch, RawRefusal> {
        let owners = self.ports.get(&port).ok_or(RawRefusal::NoOwner)?;
        let mut running = owners.running.iter();
        let (Some(id), None) = (running.next(), running.next()) else {
            return Err(if owners.running.is_empty() {
                RawRefusal::NoOwner
            } else {
                RawRefusal::Ambiguous
            });
        };
        let door = Door::Dynamic(port);
        let (container, run, rule) = self
            .container_at(id.as_str(), door)
            .map_err(|_| RawRefusal::NoOwner)?;
        Ok(ContainerMatch::new(container, run, rule, door))
    }
}
