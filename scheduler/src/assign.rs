//! What one host needs to know of the whole intent, and no more.
//!
//! A host gets its machines with their volumes and images; the networks of its ports and, through the routers that stand in them, the networks
//! one hop further, outside as well, because routing is done where a packet is sent, and the same of routers whose gateway it is; every port of those
//! networks with where it is plugged in and where it is awaited, which counts as a port there; the ports that get copies of those on the host; load balancers; the firewall policies of those routers; and the
//! security groups of those ports with the groups and address groups that their rules name. Pure: the same intent gives the same parts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use model::arrival::Arrival;
use model::mirror::{MirrorPlace, MirrorTarget};
use model::network::Binding;
use model::security::Remote;
use model::spec::{Generation, SpecParts};
use model::volume::VolumeSource;
use model::{AddressGroupId, FirewallPolicyId, HostId, ImageId, NetworkId, PortId, RouterId, SecurityGroupId};

use crate::intent::Intent;

/// Where each port is plugged in: computed once, used for every host.
pub(crate) fn bindings(intent: &Intent) -> BTreeMap<PortId, Binding> {
    let mut bindings = BTreeMap::new();
    for vm in intent.machines.values().filter(|vm| !vm.deleting) {
        let Some(host) = vm.host.and_then(|host| intent.hosts.get(&host)) else { continue };
        for port in &vm.machine.ports {
            let away = intent.away(*port).and_then(|host| intent.hosts.get(&host));
            let host = away.unwrap_or(host);
            let binding = Binding {
                machine: vm.machine.id,
                hostname: vm.machine.name.clone(),
                host: host.id,
                tunnel: host.tunnel,
            };
            bindings.insert(*port, binding);
        }
    }
    // Sub-ports are where their parents are.
    let trunks = intent.ports.values().filter_map(|it| Some((it.port.id, it.port.trunk?.parent)));
    let follow = |(id, parent)| Some((id, bindings.get(&parent).cloned()?));
    let followers: Vec<(PortId, Binding)> = trunks.filter_map(follow).collect();
    bindings.extend(followers);
    bindings
}

/// What `host` is to be, still without a generation.
pub(crate) fn assign(intent: &Intent, (bindings, arrivals): Seating<'_>, host: HostId) -> SpecParts {
    let tunnel = intent.hosts.get(&host).map_or(Ipv4Addr::UNSPECIFIED, |host| host.tunnel);
    let machines: Vec<_> = intent
        .machines
        .values()
        .filter(|vm| vm.host == Some(host) && !vm.deleting)
        .map(|vm| vm.machine.clone())
        .collect();
    let kept = intent.volumes.values().filter(|volume| volume.keeper == Some(host));
    let (retired, wanted): (Vec<_>, Vec<_>) = kept.partition(|volume| volume.retired);
    let volumes: Vec<_> = wanted.into_iter().map(|volume| volume.volume.clone()).collect();
    let sources = volumes.iter().filter_map(|volume| match volume.source {
        VolumeSource::Image(image) => Some(image),
        VolumeSource::Empty => None,
    });
    let boots = machines.iter().flat_map(|machine| [Some(machine.boot.kernel), machine.boot.initrd]).flatten();
    let images: BTreeSet<ImageId> = sources.chain(boots).collect();
    let reach = Reach::of(intent, (bindings, arrivals), host);
    SpecParts {
        generation: Generation(0),
        host,
        tunnel,
        networks: reach.networks.iter().filter_map(|id| intent.networks.get(id)).map(|it| (**it).clone()).collect(),
        subnets: intent
            .subnets
            .values()
            .filter(|subnet| reach.networks.contains(&subnet.subnet.network))
            .map(|subnet| subnet.subnet.clone())
            .collect(),
        routers: reach.routers.iter().filter_map(|id| intent.routers.get(id)).map(|it| (**it).clone()).collect(),
        firewall_policies: reach
            .firewall_policies
            .iter()
            .filter_map(|id| intent.firewall_policies.get(id))
            .map(|it| (**it).clone())
            .collect(),
        address_groups: reach
            .address_groups
            .iter()
            .filter_map(|id| intent.address_groups.get(id))
            .map(|it| (**it).clone())
            .collect(),
        groups: reach.groups.iter().filter_map(|id| intent.groups.get(id)).map(|it| (**it).clone()).collect(),
        balancers: intent
            .balancers
            .values()
            .filter(|it| intent.network_of(it).is_some_and(|network| reach.networks.contains(&network)))
            .map(|it| (**it).clone())
            .collect(),
        mirrors: mirrors(intent, (bindings, arrivals), host),
        ports: reach.ports,
        images: images.iter().filter_map(|id| intent.images.get(id)).filter_map(|image| image.image()).collect(),
        volumes,
        retired_volumes: retired.into_iter().map(|volume| volume.volume.clone()).collect(),
        machines,
    }
}

/// The ports that get copies: those that a port on `host` is mirrored to, and those there.
fn mirrors(intent: &Intent, (bindings, arrivals): Seating<'_>, host: HostId) -> Vec<MirrorTarget> {
    let here = |id: &PortId| is_wired((bindings, arrivals), id, host);
    let mirrored = intent.ports.values().filter_map(|it| Some((it.port.id, it.port.mirror?.to)));
    let wanted: BTreeSet<PortId> =
        mirrored.filter(|(source, target)| here(source) || here(target)).map(|(_, target)| target).collect();
    let place = |id: &PortId| {
        let binding = bindings.get(id)?;
        Some(MirrorPlace { host: binding.host, tunnel: binding.tunnel })
    };
    let target = |id: PortId| {
        let it = intent.ports.get(&id)?;
        // Only the host of who gets copies has to know from where they come.
        let sources = here(&id).then(|| intent.mirrored_to(id)).into_iter().flatten();
        let sources = sources.filter_map(|source| place(&source.port.id));
        let senders: BTreeSet<MirrorPlace> = sources.filter(|place| place.host != host).collect();
        let senders = senders.into_iter().collect();
        Some(MirrorTarget { port: id, name: it.port.name.clone(), vni: it.mirror_vni?, place: place(&id), senders })
    };
    wanted.into_iter().filter_map(target).collect()
}

/// Where ports are plugged in, and where they are awaited.
pub(crate) type Seating<'a> = (&'a BTreeMap<PortId, Binding>, &'a BTreeMap<PortId, Arrival>);

/// Whether a port is plugged in on a host, or awaited there.
fn is_wired((bindings, arrivals): Seating<'_>, id: &PortId, host: HostId) -> bool {
    bindings.get(id).is_some_and(|binding| binding.host == host)
        || arrivals.get(id).is_some_and(|arrival| arrival.host == host)
}

/// What a host's ports can reach.
struct Reach {
    networks: BTreeSet<NetworkId>,
    routers: BTreeSet<RouterId>,
    firewall_policies: BTreeSet<FirewallPolicyId>,
    groups: BTreeSet<SecurityGroupId>,
    address_groups: BTreeSet<AddressGroupId>,
    ports: Vec<model::network::Port>,
}

impl Reach {
    fn of(intent: &Intent, (bindings, arrivals): Seating<'_>, host: HostId) -> Self {
        let here = |id: &PortId| is_wired((bindings, arrivals), id, host);
        // Those that have gone ahead of their machine are named by it.
        let own = intent.machines.values().filter(|vm| vm.host == Some(host) && !vm.deleting);
        let own: BTreeSet<PortId> = own.flat_map(|vm| vm.machine.ports.iter().copied()).collect();
        let near = intent.ports.values().filter(|port| here(&port.port.id) || own.contains(&port.port.id));
        let near: BTreeSet<NetworkId> = near.map(|port| port.port.network).collect();
        let network_of = |foot: &model::network::RouterInterface| {
            intent.subnets.get(&foot.subnet).map(|subnet| subnet.subnet.network)
        };
        let mut networks = near.clone();
        let mut routers = BTreeSet::new();
        for router in intent.routers.values() {
            let feet: Vec<NetworkId> = router.interfaces.iter().filter_map(network_of).collect();
            let leads = router.snat_among(host).is_some() || router.ipv6_gateway_among(host).is_some();
            if leads || feet.iter().any(|network| near.contains(network)) {
                routers.insert(router.id);
                networks.extend(feet);
                let outside = router.external.as_ref().and_then(|external| intent.subnets.get(&external.subnet));
                networks.extend(outside.map(|subnet| subnet.subnet.network));
                networks.extend(intent.outside6(router).map(|network| network.id));
            }
        }
        let ports: Vec<_> = intent
            .ports
            .values()
            .filter(|port| networks.contains(&port.port.network))
            .map(|it| model::network::Port {
                binding: bindings.get(&it.port.id).cloned(),
                mirror: it.port.mirror.filter(|_| here(&it.port.id)),
                arriving: arrivals.get(&it.port.id).copied().filter(|_| bindings.contains_key(&it.port.id)),
                ..it.port.clone()
            })
            .collect();
        let groups = with_remotes(intent, ports.iter().flat_map(|port| port.groups.iter().copied()).collect());
        let rules = groups.iter().filter_map(|id| intent.groups.get(id)).flat_map(|group| &group.rules);
        let address_groups = rules.filter_map(|rule| match rule.remote {
            Remote::Addresses(id) => Some(id),
            Remote::Any | Remote::Prefix(_) | Remote::Group(_) => None,
        });
        let address_groups = address_groups.collect();
        let firewalls = routers.iter().filter_map(|id| intent.routers.get(id)?.firewall);
        let firewall_policies = firewalls.flat_map(|firewall| firewall.policies().collect::<Vec<_>>()).collect();
        Self { networks, routers, firewall_policies, groups, address_groups, ports }
    }
}

/// The groups given and every group that their rules name, and so on.
fn with_remotes(intent: &Intent, mut open: Vec<SecurityGroupId>) -> BTreeSet<SecurityGroupId> {
    let mut groups = BTreeSet::new();
    while let Some(id) = open.pop() {
        if groups.insert(id) {
            let rules = intent.groups.get(&id).into_iter().flat_map(|group| &group.rules);
            open.extend(rules.filter_map(|rule| match rule.remote {
                Remote::Group(remote) => Some(remote),
                Remote::Any | Remote::Prefix(_) | Remote::Addresses(_) => None,
            }));
        }
    }
    groups
}
