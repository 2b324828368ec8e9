//! Which port the address of a load balancer's member means, and where that is.
//!
//! Owns [`Seats`]. Addresses of tenants may be the same: a member is the port with its address on the network of the load balancer, or else behind a router
//! that stands in its subnet, as `dataplane::feature::balancer` finds it. Invariant: only ports that are plugged in are found.

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::PortId;
use model::balancer::Balancer;
use model::network::{Binding, Port};

use crate::intent::Intent;

/// Ports that are plugged in, by address.
pub(crate) struct Seats<'a> {
    intent: &'a Intent,
    ports: BTreeMap<IpAddr, Vec<(&'a Port, &'a Binding)>>,
}

impl<'a> Seats<'a> {
    /// Of all of the intent.
    pub(crate) fn of(intent: &'a Intent, bindings: &'a BTreeMap<PortId, Binding>) -> Self {
        let mut ports = BTreeMap::<_, Vec<_>>::new();
        for (id, it) in &intent.ports {
            let Some(binding) = bindings.get(id) else { continue };
            for fixed in &it.port.addresses {
                ports.entry(fixed.address).or_default().push((&it.port, binding));
            }
        }
        Self { intent, ports }
    }

    /// Where the member of a load balancer at this address is plugged in.
    pub(crate) fn of_member(&self, balancer: &Balancer, address: IpAddr) -> Option<&'a Binding> {
        let network = self.intent.network_of(balancer)?;
        let ports = self.ports.get(&address)?;
        if let Some((_, binding)) = ports.iter().find(|(port, _)| port.network == network) {
            return Some(binding);
        }
        self.intent.routers.values().find_map(|router| {
            let stands = |subnet| router.interfaces.iter().any(|foot| foot.subnet == subnet);
            let is_behind =
                |port: &Port| port.addresses.iter().any(|fixed| fixed.address == address && stands(fixed.subnet));
            let behind = ports.iter().find(|(port, _)| stands(balancer.subnet) && is_behind(port));
            behind.map(|(_, binding)| *binding)
        })
    }
}
