//! What load balancers look like to an operator: their address, what they listen for, and who gets it.

use model::balancer::{Balancer, Listener, Member};
use model::network::Port;
use serde::Serialize;
use utoipa::ToSchema;

use super::{NamedRef, named};
use crate::centre::World;
use crate::intent::balancer::SessionPersistence;

/// A load balancer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LoadBalancerView {
    id: String,
    name: String,
    /// Number of the load balancer in flows.
    key: u16,
    subnet: NamedRef,
    /// The address that clients connect to.
    address: String,
    mac: String,
    listeners: Vec<ListenerView>,
}

/// What a load balancer listens for.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ListenerView {
    protocol: String,
    port: u16,
    session_persistence: SessionPersistence,
    members: Vec<MemberView>,
}

/// Who gets a share of a listener's connections.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MemberView {
    address: String,
    port: u16,
    weight: u16,
    /// The port on a network that has the address.
    network_port: Option<NamedRef>,
}

impl LoadBalancerView {
    pub(super) fn of(world: &World, balancer: &Balancer) -> Self {
        Self {
            id: balancer.id.to_string(),
            name: balancer.name.clone(),
            key: balancer.key,
            subnet: named(&world.intent.subnets, &balancer.subnet),
            address: balancer.address.to_string(),
            mac: balancer.mac.to_string(),
            listeners: balancer.listeners.iter().map(|listener| ListenerView::of(world, balancer, listener)).collect(),
        }
    }
}

impl ListenerView {
    fn of(world: &World, balancer: &Balancer, listener: &Listener) -> Self {
        Self {
            protocol: listener.protocol.to_string(),
            port: listener.port,
            session_persistence: listener.persistence.into(),
            members: listener.members.iter().map(|member| MemberView::of(world, balancer, member)).collect(),
        }
    }
}

impl MemberView {
    fn of(world: &World, balancer: &Balancer, member: &Member) -> Self {
        let intent = &world.intent;
        let own = intent.network_of(balancer);
        let stands = |router: &&std::sync::Arc<model::network::Router>| {
            router.interfaces.iter().any(|foot| foot.subnet == balancer.subnet)
        };
        let feet: Vec<_> = intent.routers.values().filter(stands).flat_map(|router| &router.interfaces).collect();
        let has = |port: &Port| {
            port.addresses.iter().any(|fixed| {
                let is_near = Some(port.network) == own || feet.iter().any(|foot| foot.subnet == fixed.subnet);
                fixed.address == member.address && is_near
            })
        };
        let port = intent.ports.iter().find(|(_, port)| has(&port.port));
        Self {
            address: member.address.to_string(),
            port: member.port,
            weight: member.weight,
            network_port: port.map(|(id, _)| named(&intent.ports, id)),
        }
    }
}
