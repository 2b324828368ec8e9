//! Ports: virtual network interfaces with their addresses and groups.

use std::net::IpAddr;
use std::sync::Arc;

use model::network::{AllowedPair, FixedIp, Port, ROUTED_MAC, SubPort};
use model::provider::VlanId;
use model::qos::Qos;
use model::{Mac, MachineId, NetworkId, PortId, SecurityGroupId, Vni};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::binding::Journey;
use super::mirror::NewMirror;
use super::security::DEFAULT_GROUP;
use super::{Context, Intent, Table, check_name, find, refuse_users};
use crate::refusal::Refusal;

/// The most security groups that a port can be in.
const GROUPS_MAX: usize = 32;
/// The most allowed pairs that a port can have.
const PAIRS_MAX: usize = 16;
/// The most addresses that a port can have.
const ADDRESSES_MAX: usize = 16;

/// A port; its binding is worked out when a specification is made, never kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortIntent {
    pub(crate) port: Port,
    /// Whether it was made for a machine and goes with it.
    pub(crate) goes_with_vm: bool,
    /// What copies for it carry in tunnels, once a port was mirrored to it; never given to another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mirror_vni: Option<Vni>,
    /// Where it is and is to be, apart from where its machine is.
    #[serde(default, skip_serializing_if = "Journey::is_none")]
    pub(crate) journey: Journey,
}

/// A port to make.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPort {
    /// Its name; `port-` and its number unless said.
    pub(crate) name: Option<String>,
    /// The network, by name or id.
    pub(crate) network: String,
    /// Its MAC address; drawn unless said.
    #[schema(value_type = Option<String>, example = "fa:16:3e:00:00:01")]
    pub(crate) mac: Option<Mac>,
    /// Its addresses; one of the network's first subnet of each version of IP with an address left unless said: in an IPv6 subnet of 64 bits the one
    /// that its MAC address makes.
    pub(crate) addresses: Option<Vec<NewAddress>>,
    /// Security groups, by name or id; the default group unless said.
    pub(crate) groups: Option<Vec<String>>,
    /// What it may send from beside its own addresses: a VRRP address, the networks behind a router in a machine.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    pub(crate) allowed_pairs: Vec<AllowedPair>,
    /// What it may send and receive in a second, and how its packets are marked: `egress` and `ingress`, each with `kbps`, `pps` or
    /// both, these with `rate` and `burst` (four fifths of the rate unless said); `egress_min_kbps`, its share of the link to the physical network
    /// that its network is a part of; and `dscp_mark`. No limit unless said.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub(crate) qos: Qos,
    /// Whether spoofed sources are dropped and security groups hold; true unless said.
    pub(crate) port_security: Option<bool>,
    /// Makes it a sub-port of another port, on whose interface it is; it has an interface of its own unless said.
    pub(crate) trunk: Option<NewTrunk>,
    /// Has another port get copies of its frames; nobody does unless said.
    pub(crate) mirror: Option<NewMirror>,
}

/// The trunk that a port is to be a part of.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTrunk {
    /// The port whose interface it is on, by name or id: no sub-port itself.
    parent: String,
    /// The VLAN whose tag its frames have there: 1 to 4094, unique on the trunk.
    vlan: u16,
}

/// An address for a port.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewAddress {
    /// The subnet, by name or id; the one that holds `address` unless said.
    subnet: Option<String>,
    /// The address; a free one unless said: of an IPv6 subnet of 64 bits the one that the MAC address makes, otherwise the lowest.
    #[schema(value_type = Option<String>)]
    address: Option<IpAddr>,
}

/// What is changed of a port; what is left out stays.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortChange {
    /// All security groups that the port is to be in, by name or id.
    groups: Option<Vec<String>>,
    /// All that the port may send from beside its own addresses.
    #[schema(value_type = Option<Vec<Object>>)]
    allowed_pairs: Option<Vec<AllowedPair>>,
    /// All limits and marks of the port; what is left out of them is taken away.
    #[schema(value_type = Option<Object>)]
    qos: Option<Qos>,
    /// Whether spoofed sources are dropped and security groups hold.
    port_security: Option<bool>,
    /// Who gets copies of its frames; null: nobody any more.
    #[serde(default, deserialize_with = "said")]
    #[schema(value_type = Option<NewMirror>)]
    mirror: Option<Option<NewMirror>>,
}

/// What is said of a field, null too, told from what is not said.
fn said<'de, T: Deserialize<'de>, D: Deserializer<'de>>(field: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(field).map(Some)
}

impl Intent {
    /// Makes a port.
    pub(crate) fn create_port(&mut self, context: &mut Context<'_>, new: NewPort) -> Result<PortId, Refusal> {
        self.create_port_for(context, new, false)
    }

    pub(super) fn create_port_for(
        &mut self,
        context: &mut Context<'_>,
        new: NewPort,
        goes_with_vm: bool,
    ) -> Result<PortId, Refusal> {
        let (network, _) = find(&self.networks, &new.network, Some("network"))?;
        let trunk = new.trunk.as_ref().map(|trunk| self.check_trunk(network, trunk)).transpose()?;
        let groups = match &new.groups {
            Some(names) => self.find_groups(names)?,
            None => vec![find(&self.groups, DEFAULT_GROUP, Some("groups"))?.0],
        };
        let key = self.counters.next_port_key()?;
        let name = new.name.unwrap_or_else(|| format!("port-{key}"));
        check_name(&self.ports, &name)?;
        let mac = match new.mac {
            None => self.draw_mac(network)?,
            Some(mac) => self.check_mac(network, mac)?,
        };
        let addresses = match &new.addresses {
            None => self.first_free(network, mac)?,
            Some(wanted) => self.choose_addresses(network, mac, wanted)?,
        };
        let id = PortId::from_uuid((context.draw)());
        let mirror = new.mirror.as_ref().map(|mirror| self.choose_mirror((id, &name), mirror)).transpose()?;
        let port_security = new.port_security.unwrap_or(true);
        self.check_qos(network, &new.qos)?;
        let port = Port {
            id,
            name,
            network,
            key,
            mac,
            addresses,
            groups,
            allowed_pairs: check_pairs(new.allowed_pairs)?,
            qos: new.qos,
            port_security,
            binding: None,
            trunk,
            mirror,
            arriving: None,
        };
        self.ports
            .insert(id, Arc::new(PortIntent { port, goes_with_vm, mirror_vni: None, journey: Journey::default() }));
        Ok(id)
    }

    /// Changes a port.
    pub(crate) fn change_port(&mut self, name: &str, change: &PortChange) -> Result<PortId, Refusal> {
        let (id, port) = find(&self.ports, name, None)?;
        let mut port = (*port).clone();
        if let Some(names) = &change.groups {
            port.port.groups = self.find_groups(names)?;
        }
        if let Some(pairs) = &change.allowed_pairs {
            port.port.allowed_pairs = check_pairs(pairs.clone())?;
        }
        if let Some(qos) = change.qos {
            self.check_qos(port.port.network, &qos)?;
            port.port.qos = qos;
        }
        if let Some(on) = change.port_security {
            port.port.port_security = on;
        }
        if let Some(mirror) = &change.mirror {
            let chosen = mirror.as_ref().map(|new| self.choose_mirror((id, &port.port.name), new)).transpose()?;
            port.port.mirror = chosen;
        }
        self.ports.insert(id, Arc::new(port));
        Ok(id)
    }

    /// Whether a port of this network can have it: a minimum is kept where packets leave by the interface of a physical network.
    fn check_qos(&self, network: NetworkId, qos: &Qos) -> Result<(), Refusal> {
        const FIELD: &str = "qos.egress_min_kbps";
        let Some(minimum) = qos.egress_min_kbps else { return Ok(()) };
        let of = self.networks.get(&network);
        if let Some(tenant) = of.filter(|network| network.provider.is_none()) {
            let problem =
                "is no provider network: minimums are kept on links to physical networks, not in tunnels between hosts";
            return Err(Refusal::invalid(FIELD, format!("network {} {problem}", tenant.name)));
        }
        match qos.egress.kbps {
            Some(most) if most.rate() < minimum.get() => {
                let problem = format!("{minimum} are more than the {} that it may send at most", most.rate());
                Err(Refusal::invalid(FIELD, problem))
            }
            _ => Ok(()),
        }
    }

    /// The sub-ports of a port.
    pub(crate) fn sub_ports(&self, parent: PortId) -> impl Iterator<Item = &Port> {
        let ports = self.ports.values().map(|it| &it.port);
        ports.filter(move |port| port.trunk.is_some_and(|trunk| trunk.parent == parent))
    }

    /// Names those who need a port: its sub-ports.
    pub(super) fn sub_ports_of(&self, parent: PortId) -> impl Iterator<Item = String> {
        self.sub_ports(parent).map(|port| format!("sub-port {}", port.name))
    }

    fn check_trunk(&self, network: NetworkId, new: &NewTrunk) -> Result<SubPort, Refusal> {
        let (id, parent) = find(&self.ports, &new.parent, Some("trunk.parent"))?;
        let state = |problem: String| {
            let field = Some("trunk.parent".to_owned());
            Err(Refusal::State { object: format!("port {}", parent.port.name), problem, field })
        };
        let vlan = VlanId::try_from(new.vlan).map_err(|error| Refusal::invalid("trunk.vlan", error.to_string()))?;
        if parent.port.trunk.is_some() {
            return state("it is a sub-port itself".to_owned());
        }
        let user = self.port_user(id).and_then(|(vm, _)| self.machines.get(&vm));
        if let Some(vm) = user.filter(|vm| vm.deleting) {
            return state(format!("its vm {} is being deleted", vm.machine.name));
        }
        if let Some(owner) = self.sub_ports(id).find(|port| port.tag() == Some(vlan)) {
            let (what, owner) = (format!("VLAN {} of port {}", new.vlan, parent.port.name), owner.name.clone());
            return Err(Refusal::Taken { field: "trunk.vlan".to_owned(), what, owner: format!("port {owner}") });
        }
        // The guest's VLAN interface carries no more than the interface that it is on.
        let mtu = |id: &NetworkId| self.networks.get(id).map_or(0, |network| network.mtu);
        let (own, carried) = (mtu(&network), mtu(&parent.port.network));
        if own > carried {
            let problem = format!("its network carries {carried} octets, less than the {own} of the sub-port's");
            return Err(Refusal::invalid("trunk.parent", problem));
        }
        Ok(SubPort { parent: id, vlan })
    }

    /// Forgets a port that no machine has.
    pub(crate) fn delete_port(&mut self, name: &str) -> Result<(), Refusal> {
        let (id, port) = find(&self.ports, name, None)?;
        let user = self.port_user(id).map(|(_, name)| format!("vm {name}"));
        let users = user
            .into_iter()
            .chain(self.floating_ips_of(id))
            .chain(self.port_forwardings_to(id))
            .chain(self.sub_ports_of(id))
            .chain(self.mirrors_to(id));
        refuse_users(format!("port {}", port.port.name), users)?;
        self.ports.remove(&id);
        Ok(())
    }

    /// The machine that has a port, also one that is being deleted, with its name.
    pub(crate) fn port_user(&self, port: PortId) -> Option<(MachineId, String)> {
        let vm = self.machines.values().find(|vm| vm.machine.ports.contains(&port))?;
        Some((vm.machine.id, vm.machine.name.clone()))
    }

    pub(super) fn find_groups(&self, names: &[String]) -> Result<Vec<SecurityGroupId>, Refusal> {
        if names.len() > GROUPS_MAX {
            return Err(Refusal::invalid("groups", format!("a port is in {GROUPS_MAX} groups at most")));
        }
        let mut groups = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            let field = format!("groups[{index}]");
            let (id, _) = find(&self.groups, name, Some(&field))?;
            if groups.contains(&id) {
                return Err(Refusal::invalid(field, format!("security group {name:?} is given twice")));
            }
            groups.push(id);
        }
        Ok(groups)
    }

    fn check_mac(&self, network: NetworkId, mac: Mac) -> Result<Mac, Refusal> {
        let mac = mac.unicast().map_err(|error| Refusal::invalid("mac", error.to_string()))?;
        let is_outside = self.networks.get(&network).is_some_and(|network| network.provider.is_some());
        if is_outside && mac.bytes().starts_with(&ROUTED_MAC) {
            let problem = format!("{mac} is of those that routed IPv6 addresses have on provider networks");
            return Err(Refusal::invalid("mac", problem));
        }
        match self.mac_owner(network, mac) {
            None => Ok(mac),
            Some(owner) => {
                Err(Refusal::Taken { field: "mac".to_owned(), what: format!("the MAC address {mac}"), owner })
            }
        }
    }

    /// The first free address of each version of IP that the network has subnets of.
    fn first_free(&self, network: NetworkId, mac: Mac) -> Result<Vec<FixedIp>, Refusal> {
        let mut refused = Refusal::invalid("network", "it has no subnet to give an address from");
        let mut chosen: Vec<FixedIp> = Vec::new();
        for subnet in subnets_of(&self.subnets, network) {
            let is_plain = subnet.subnet.cidr.addr().is_ipv4();
            if chosen.iter().any(|fixed| fixed.address.is_ipv4() == is_plain) {
                continue;
            }
            match self.free_address(subnet, mac, "addresses") {
                Ok(address) => chosen.push(FixedIp { subnet: subnet.subnet.id, address }),
                Err(error) => refused = error,
            }
        }
        chosen.sort_unstable_by_key(|fixed| fixed.address.is_ipv6());
        if chosen.is_empty() { Err(refused) } else { Ok(chosen) }
    }

    fn choose_addresses(&self, network: NetworkId, mac: Mac, wanted: &[NewAddress]) -> Result<Vec<FixedIp>, Refusal> {
        if wanted.len() > ADDRESSES_MAX {
            return Err(Refusal::invalid("addresses", format!("a port has {ADDRESSES_MAX} addresses at most")));
        }
        let mut chosen: Vec<FixedIp> = Vec::with_capacity(wanted.len());
        for (index, want) in wanted.iter().enumerate() {
            let field = format!("addresses[{index}]");
            let subnet = self.subnet_for(network, want, &field)?;
            let field = format!("{field}.address");
            let address = match want.address {
                Some(address) => {
                    self.check_address(&subnet, address, &field)?;
                    address
                }
                None => self.free_address(&subnet, mac, &field)?,
            };
            let fixed = FixedIp { subnet: subnet.subnet.id, address };
            if chosen.contains(&fixed) {
                return Err(Refusal::invalid(
                    field,
                    format!("{address} is given twice: say which addresses are wanted"),
                ));
            }
            chosen.push(fixed);
        }
        Ok(chosen)
    }

    fn subnet_for(
        &self,
        network: NetworkId,
        want: &NewAddress,
        field: &str,
    ) -> Result<Arc<super::network::SubnetIntent>, Refusal> {
        let subnet = match (&want.subnet, want.address) {
            (Some(name), _) => Some(find(&self.subnets, name, Some(&format!("{field}.subnet")))?.1),
            (None, Some(address)) => {
                subnets_of(&self.subnets, network).find(|subnet| subnet.subnet.cidr.contains(&address)).cloned()
            }
            (None, None) => subnets_of(&self.subnets, network).next().cloned(),
        };
        subnet
            .filter(|subnet| subnet.subnet.network == network)
            .ok_or_else(|| Refusal::invalid(field, "no subnet of the port's network fits"))
    }
}

fn check_pairs(pairs: Vec<AllowedPair>) -> Result<Vec<AllowedPair>, Refusal> {
    if pairs.len() > PAIRS_MAX {
        return Err(Refusal::invalid("allowed_pairs", format!("a port has {PAIRS_MAX} allowed pairs at most")));
    }
    for (index, pair) in pairs.iter().enumerate() {
        if let Some(Err(error)) = pair.mac.map(Mac::unicast) {
            return Err(Refusal::invalid(format!("allowed_pairs[{index}].mac"), error.to_string()));
        }
        if let Some(mac) = pair.mac.filter(|mac| mac.bytes().starts_with(&ROUTED_MAC)) {
            let problem = format!("{mac} is of those that routed IPv6 addresses have on provider networks");
            return Err(Refusal::invalid(format!("allowed_pairs[{index}].mac"), problem));
        }
    }
    Ok(pairs)
}

fn subnets_of(
    subnets: &Table<model::SubnetId, super::network::SubnetIntent>,
    network: NetworkId,
) -> impl Iterator<Item = &Arc<super::network::SubnetIntent>> {
    subnets.values().filter(move |subnet| subnet.subnet.network == network)
}
