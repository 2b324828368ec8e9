//! Load balancers, their listeners and the members of those.
//!
//! Owns the checks of a request that look at other objects; what must hold within a load balancer is the model's to say. A member is an address: a
//! port that has it may come and go. Invariant: the address of a load balancer is nobody else's, and a member could be reached when it was added.

use std::net::IpAddr;
use std::sync::Arc;

use model::balancer::{BALANCERS_MAX, Balancer, Listener, MEMBERS_OF_NETWORK_MAX, Member, Persistence, Transport};
use model::{BalancerId, NetworkId};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Context, Intent, check_name, clip, find};
use crate::refusal::Refusal;

/// A load balancer to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewLoadBalancer {
    /// Its name.
    name: String,
    /// The subnet that its address is of, by name or id: not of a network of the data centre.
    subnet: String,
    /// Its address there; a free one unless said.
    #[schema(value_type = Option<String>)]
    address: Option<IpAddr>,
}

/// A listener to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewListener {
    /// Its protocol: tcp or udp.
    #[schema(example = "tcp")]
    protocol: String,
    /// The port that clients connect to.
    port: u16,
    /// Which connections keep to one member.
    #[serde(default)]
    session_persistence: SessionPersistence,
    /// How many of its connections may be open at once from each host that has clients, 1 to 1000; any number unless said.
    connection_limit: Option<u32>,
}

/// A change of a listener.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListenerChange {
    /// How many of its connections may be open at once from each host that has clients, 1 to 1000; null: any number.
    #[serde(deserialize_with = "Option::deserialize")]
    connection_limit: Option<u32>,
}

/// Which connections keep to one member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, serde::Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SessionPersistence {
    /// Each one for itself.
    #[default]
    None,
    /// All of one client address, as long as members are the same.
    SourceIp,
}

/// A member to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewMember {
    /// Its address: on the network of the load balancer, or in a subnet where a router of that stands.
    #[schema(value_type = String, example = "10.1.0.11")]
    address: IpAddr,
    /// The port that it listens on; the listener's unless said.
    port: Option<u16>,
    /// Its share beside those of the others, 0 to 256; 1 unless said. 0: nothing new.
    weight: Option<u16>,
}

/// A change of a member.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemberChange {
    /// Its share from now on, 0 to 256; 0: it keeps its connections and gets nothing new.
    weight: u16,
}

impl From<SessionPersistence> for Persistence {
    fn from(persistence: SessionPersistence) -> Self {
        match persistence {
            SessionPersistence::None => Self::None,
            SessionPersistence::SourceIp => Self::SourceIp,
        }
    }
}

impl From<Persistence> for SessionPersistence {
    fn from(persistence: Persistence) -> Self {
        match persistence {
            Persistence::None => Self::None,
            Persistence::SourceIp => Self::SourceIp,
        }
    }
}

impl Intent {
    /// Makes a load balancer without listeners.
    pub(crate) fn create_balancer(
        &mut self,
        context: &mut Context<'_>,
        new: &NewLoadBalancer,
    ) -> Result<BalancerId, Refusal> {
        check_name(&self.balancers, &new.name)?;
        let (subnet_id, subnet) = find(&self.subnets, &new.subnet, Some("subnet"))?;
        let network = subnet.subnet.network;
        if let Some(network) = self.networks.get(&network).filter(|network| network.provider.is_some()) {
            let problem =
                format!("network {} is one of the data centre: no load balancer is known there", network.name);
            return Err(Refusal::invalid("subnet", problem));
        }
        if self.balancers.values().filter(|other| self.network_of(other) == Some(network)).count() >= BALANCERS_MAX {
            let problem = format!("its network has {BALANCERS_MAX} load balancers, more are not to be had");
            return Err(Refusal::invalid("subnet", problem));
        }
        let mac = self.draw_mac(network)?;
        let address = match new.address {
            Some(address) => {
                self.check_address(&subnet, address, "address")?;
                if subnet.subnet.gateway == Some(address) {
                    return Err(Refusal::invalid("address", format!("{address} is the gateway of the subnet")));
                }
                address
            }
            None => self.free_address(&subnet, mac, "subnet")?,
        };
        let id = BalancerId::from_uuid((context.draw)());
        let key = self.counters.next_balancer_key()?;
        let (name, listeners) = (new.name.clone(), Vec::new());
        let balancer = Balancer { id, name, key, subnet: subnet_id, address, mac, listeners };
        balancer.check().map_err(|error| Refusal::invalid("address", error.to_string()))?;
        self.balancers.insert(id, Arc::new(balancer));
        Ok(id)
    }

    /// Forgets a load balancer with all that it has.
    pub(crate) fn delete_balancer(&mut self, name: &str) -> Result<(), Refusal> {
        let (id, _) = find(&self.balancers, name, None)?;
        self.balancers.remove(&id);
        Ok(())
    }

    /// Has a load balancer listen.
    pub(crate) fn add_listener(&mut self, name: &str, new: &NewListener) -> Result<BalancerId, Refusal> {
        let protocol: Transport = new.protocol.parse().map_err(|error: String| Refusal::invalid("protocol", error))?;
        let (id, balancer) = find(&self.balancers, name, None)?;
        if balancer.listener(protocol, new.port).is_some() {
            let (what, owner) = (format!("{protocol} port {}", new.port), format!("load balancer {}", balancer.name));
            return Err(Refusal::Taken { field: "port".to_owned(), what, owner });
        }
        let mut balancer = (*balancer).clone();
        let persistence = new.session_persistence.into();
        let connection_limit = new.connection_limit;
        let field = if connection_limit.is_some() && new.port != 0 { "connection_limit" } else { "port" };
        let (port, members) = (new.port, Vec::new());
        balancer.listeners.push(Listener { protocol, port, persistence, monitor: None, connection_limit, members });
        self.put_balancer(balancer, field)?;
        Ok(id)
    }

    /// Gives a listener another limit of connections, or none; those that are open stay.
    pub(crate) fn change_listener(
        &mut self,
        name: &str,
        listener: (&str, &str),
        change: &ListenerChange,
    ) -> Result<BalancerId, Refusal> {
        let (id, balancer) = find(&self.balancers, name, None)?;
        let at = place(&balancer, listener)?;
        let mut balancer = (*balancer).clone();
        balancer.listeners[at].connection_limit = change.connection_limit;
        self.put_balancer(balancer, "connection_limit")?;
        Ok(id)
    }

    /// Has it listen no more; its connections are cut.
    pub(crate) fn remove_listener(&mut self, name: &str, listener: (&str, &str)) -> Result<BalancerId, Refusal> {
        let (id, balancer) = find(&self.balancers, name, None)?;
        let at = place(&balancer, listener)?;
        let mut balancer = (*balancer).clone();
        balancer.listeners.remove(at);
        self.balancers.insert(id, Arc::new(balancer));
        Ok(id)
    }

    /// Gives a listener a member.
    pub(crate) fn add_member(
        &mut self,
        name: &str,
        listener: (&str, &str),
        new: &NewMember,
    ) -> Result<BalancerId, Refusal> {
        let (id, balancer) = find(&self.balancers, name, None)?;
        let at = place(&balancer, listener)?;
        let listener = &balancer.listeners[at];
        let (address, weight) = (new.address, new.weight.unwrap_or(1));
        let member = Member { address, port: new.port.unwrap_or(listener.port), weight, in_error: false };
        if listener.members.iter().any(|other| (other.address, other.port) == (member.address, member.port)) {
            let what = format!("member {address} port {}", member.port);
            let owner = format!("load balancer {}", balancer.name);
            return Err(Refusal::Taken { field: "address".to_owned(), what, owner });
        }
        let mut balancer = (*balancer).clone();
        balancer.listeners[at].members.push(member);
        if address.is_ipv4() == balancer.address.is_ipv4() && !self.is_reached(&balancer, address) {
            let problem = format!(
                "{address} is neither on the network of load balancer {} nor in a subnet where a router of that stands",
                balancer.name
            );
            return Err(Refusal::invalid("address", problem));
        }
        let network = self.network_of(&balancer);
        let near = self.balancers.values().filter(|other| other.id != id && self.network_of(other) == network);
        if near.map(|other| other.members()).sum::<usize>() + balancer.members() > MEMBERS_OF_NETWORK_MAX {
            let problem = format!(
                "load balancer {}: those of its network have {MEMBERS_OF_NETWORK_MAX} members together, more are not to be had: take some away, \
                 or have a load balancer on another network behind its router",
                balancer.name
            );
            return Err(Refusal::invalid("address", problem));
        }
        let field = if weight > model::balancer::WEIGHT_MAX { "weight" } else { "address" };
        self.put_balancer(balancer, field)?;
        Ok(id)
    }

    /// Gives a member another share.
    pub(crate) fn change_member(
        &mut self,
        name: &str,
        listener: (&str, &str),
        member: (&str, &str),
        change: &MemberChange,
    ) -> Result<BalancerId, Refusal> {
        let (id, balancer) = find(&self.balancers, name, None)?;
        let at = place(&balancer, listener)?;
        let seat = seat(&balancer.listeners[at], member)?;
        let mut balancer = (*balancer).clone();
        balancer.listeners[at].members[seat].weight = change.weight;
        self.put_balancer(balancer, "weight")?;
        Ok(id)
    }

    /// Takes a member from a listener; its connections are cut.
    pub(crate) fn remove_member(
        &mut self,
        name: &str,
        listener: (&str, &str),
        member: (&str, &str),
    ) -> Result<BalancerId, Refusal> {
        let (id, balancer) = find(&self.balancers, name, None)?;
        let at = place(&balancer, listener)?;
        let seat = seat(&balancer.listeners[at], member)?;
        let mut balancer = (*balancer).clone();
        balancer.listeners[at].members.remove(seat);
        self.balancers.insert(id, Arc::new(balancer));
        Ok(id)
    }

    pub(super) fn put_balancer(&mut self, balancer: Balancer, field: &str) -> Result<(), Refusal> {
        let refuse = |error: model::balancer::BalancerError| {
            Refusal::invalid(field, format!("load balancer {}: {error}", balancer.name))
        };
        balancer.check().map_err(refuse)?;
        self.balancers.insert(balancer.id, Arc::new(balancer));
        Ok(())
    }

    /// The network that a load balancer's address is on.
    pub(crate) fn network_of(&self, balancer: &Balancer) -> Option<NetworkId> {
        self.subnets.get(&balancer.subnet).map(|subnet| subnet.subnet.network)
    }

    /// Whether an address is on the network of a load balancer, or behind a router that stands in its subnet.
    fn is_reached(&self, balancer: &Balancer, address: IpAddr) -> bool {
        let network = self.network_of(balancer);
        let holds = |id| self.subnets.get(id).is_some_and(|subnet| subnet.subnet.cidr.contains(&address));
        let mut own = self.subnets.iter().filter(|(_, subnet)| Some(subnet.subnet.network) == network);
        let stands =
            |router: &&Arc<model::network::Router>| router.interfaces.iter().any(|foot| foot.subnet == balancer.subnet);
        let mut feet = self.routers.values().filter(stands).flat_map(|router| &router.interfaces);
        own.any(|(id, _)| holds(id)) || feet.any(|foot| holds(&foot.subnet))
    }
}

/// Which of the listeners a path names.
pub(super) fn place(balancer: &Balancer, (protocol, port): (&str, &str)) -> Result<usize, Refusal> {
    let meant = protocol.parse::<Transport>().ok().zip(port.parse::<u16>().ok());
    let at = balancer.listeners.iter().position(|listener| Some((listener.protocol, listener.port)) == meant);
    at.ok_or_else(|| Refusal::Missing {
        kind: "listener of the load balancer",
        name: format!("{} port {}", clip(protocol), clip(port)),
        field: None,
    })
}

/// Which of the members a path names.
fn seat(listener: &Listener, (address, port): (&str, &str)) -> Result<usize, Refusal> {
    let meant = address.parse::<IpAddr>().ok().zip(port.parse::<u16>().ok());
    let at = listener.members.iter().position(|member| Some((member.address, member.port)) == meant);
    at.ok_or_else(|| Refusal::Missing {
        kind: "member of the listener",
        name: format!("{} port {}", clip(address), clip(port)),
        field: None,
    })
}
