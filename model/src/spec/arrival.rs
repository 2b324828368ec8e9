//! What must hold of ports that are awaited on another host, and what is theirs once they came.
//!
//! Never decides that one came: the host that saw it says so.

use std::collections::BTreeMap;

use super::{HostNetwork, SpecError};
use crate::arrival::Arrived;
use crate::id::{HostId, PortId};
use crate::network::{Binding, Port};

/// Holds all ports that are awaited against where they are.
pub(super) fn check(host: &HostNetwork) -> Result<(), SpecError> {
    for port in host.ports.values() {
        let Some(arrival) = port.arriving else { continue };
        let unfit = |problem: String| Err(SpecError::Unfit { object: format!("{:?}", port.id), problem });
        match &port.binding {
            None => return unfit(format!("it is awaited on {:?} and plugged in nowhere", arrival.host)),
            Some(binding) if binding.host == arrival.host => {
                return unfit(format!("it is awaited on {:?}, where it is plugged in", arrival.host));
            }
            Some(_) if arrival.serial == 0 => return unfit("it is awaited for the time 0, which is none".to_owned()),
            Some(_) => {}
        }
    }
    Ok(())
}

impl HostNetwork {
    /// The ports that are awaited on this host, sub-ports too, in order of identity.
    pub fn awaited_ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.values().filter(|port| port.is_awaited_on(self.host))
    }

    /// The same networks, once these ports have come: each is plugged in here as far as it is awaited here in that attempt.
    #[must_use]
    pub fn with_arrived(mut self, arrived: &BTreeMap<PortId, u64>) -> Self {
        if arrived.is_empty() {
            return self;
        }
        let here = self.host;
        let moving: Vec<PortId> = self.awaited_ports().map(|port| port.id).collect();
        for id in moving {
            if let Some(port) = self.ports.remove(&id) {
                self.ports.insert(id, port.once_arrived(here, arrived));
            }
        }
        self
    }

    /// Which of these arrivals are awaited here still.
    #[must_use]
    pub fn awaits(&self, arrived: Arrived) -> bool {
        let port = self.ports.get(&arrived.port).filter(|port| port.is_awaited_on(self.host));
        port.and_then(|port| port.arriving).is_some_and(|arrival| arrival.serial == arrived.serial)
    }
}

impl Port {
    /// The same port, once these have come to `here`.
    #[must_use]
    pub fn once_arrived(mut self, here: HostId, arrived: &BTreeMap<PortId, u64>) -> Self {
        let Some(arrival) = self.arriving.filter(|arrival| arrival.host == here) else { return self };
        if arrived.get(&self.tap_port()) != Some(&arrival.serial) {
            return self;
        }
        if let Some(binding) = self.binding.take() {
            self.binding = Some(Binding { host: arrival.host, tunnel: arrival.tunnel, ..binding });
            self.arriving = None;
        }
        self
    }
}
