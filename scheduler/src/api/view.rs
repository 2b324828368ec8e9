//! What objects look like to an operator: what is wanted of them, joined with what is seen of them.
//!
//! Views are the API's own types: the model can change behind them.

use model::address_group::AddressGroup;
use model::balancer::Balancer;
use model::firewall::FirewallPolicy;
use model::image::ImageKind as Content;
use model::network::{Network, Router};
use model::observed::{Problem, VolumeState};
use model::provider::{Provider, VlanId};
use model::security::{Protocol, Remote, Rule, SecurityGroup};
use model::volume::{VolumeBackend, VolumeSource};
use model::{
    AddressGroupId, BalancerId, FirewallPolicyId, FlavorId, HostId, ImageId, MachineId, NetworkId, PortId, RouterId,
    SecurityGroupId, SubnetId, VolumeId,
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::centre::World;
use crate::cluster::Life;
use crate::intent::address::Pool;
use crate::intent::flavor::Flavor;
use crate::intent::host::Host;
use crate::intent::image::ImageIntent;
use crate::intent::machine::MachineIntent;
use crate::intent::network::SubnetIntent;
use crate::intent::port::PortIntent;
use crate::intent::volume::VolumeIntent;
use crate::intent::{Intent, Named, Table};

mod address_group;
mod balancer;
mod bandwidth;
mod firewall;
mod machine;
mod port;
mod router;

pub(crate) use address_group::AddressGroupView;
pub(crate) use balancer::{HealthMonitorView, ListenerView, LoadBalancerView, MemberView};
pub(crate) use bandwidth::BandwidthView;
pub(crate) use firewall::{FirewallPolicyView, FirewallRuleView, FirewallView};
pub(crate) use machine::{FlavorView, MachinePortView, MachineView, PlacementView};
pub(crate) use port::{AddressView, PortView};
pub(crate) use router::{
    FloatingIpView, GatewayView, InterfaceView, Ipv6GatewayView, PortForwardingView, RouteView, RouterView,
};

/// A kind of object: where it is kept and how it is shown.
pub(crate) trait Kind: Send + Sync + 'static {
    type Id: std::str::FromStr + Ord + Copy + Send;
    type Object: Named;
    type View: Serialize;

    fn table(intent: &Intent) -> &Table<Self::Id, Self::Object>;
    fn view(world: &World, object: &Self::Object) -> Self::View;
}

macro_rules! kinds {
    ($($kind:ident: $id:ty, $object:ty, $view:ident, $field:ident;)*) => {$(
        pub(crate) struct $kind;

        impl Kind for $kind {
            type Id = $id;
            type Object = $object;
            type View = $view;

            fn table(intent: &Intent) -> &Table<$id, $object> {
                &intent.$field
            }

            fn view(world: &World, object: &$object) -> $view {
                $view::of(world, object)
            }
        }
    )*};
}

kinds! {
    HostKind: HostId, Host, HostView, hosts;
    NetworkKind: NetworkId, Network, NetworkView, networks;
    SubnetKind: SubnetId, SubnetIntent, SubnetView, subnets;
    PortKind: PortId, PortIntent, PortView, ports;
    GroupKind: SecurityGroupId, SecurityGroup, GroupView, groups;
    AddressGroupKind: AddressGroupId, AddressGroup, AddressGroupView, address_groups;
    LoadBalancerKind: BalancerId, Balancer, LoadBalancerView, balancers;
    FirewallPolicyKind: FirewallPolicyId, FirewallPolicy, FirewallPolicyView, firewall_policies;
    RouterKind: RouterId, Router, RouterView, routers;
    ImageKind: ImageId, ImageIntent, ImageView, images;
    VolumeKind: VolumeId, VolumeIntent, VolumeView, volumes;
    FlavorKind: FlavorId, Flavor, FlavorView, flavors;
    MachineKind: MachineId, MachineIntent, MachineView, machines;
}

/// Another object, by id and name.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NamedRef {
    id: String,
    name: String,
}

fn named<I: Ord + ToString, T: Named>(table: &Table<I, T>, id: &I) -> NamedRef {
    let name = table.get(id).map_or_else(|| id.to_string(), |object| object.name().to_owned());
    NamedRef { id: id.to_string(), name }
}

/// Objects by their ids, in the order of their names: ids are drawn at random.
fn listed<'a, I: Ord + ToString + 'a, T: Named>(
    table: &Table<I, T>,
    ids: impl IntoIterator<Item = &'a I>,
) -> Vec<NamedRef> {
    let mut refs: Vec<NamedRef> = ids.into_iter().map(|id| named(table, id)).collect();
    refs.sort_by(|one, other| one.name.cmp(&other.name));
    refs
}

/// What is not as it should be, and what to do about it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ProblemView {
    message: String,
    remedy: String,
}

impl From<&Problem> for ProblemView {
    fn from(problem: &Problem) -> Self {
        Self { message: problem.message.clone(), remedy: problem.remedy.clone() }
    }
}

fn problem(message: impl Into<String>, remedy: impl Into<String>) -> ProblemView {
    ProblemView { message: message.into(), remedy: remedy.into() }
}

/// The body of a refusal.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ErrorBody)]
pub(crate) struct ErrorSchema {
    error: ErrorDetailSchema,
}

/// What was refused and why.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ErrorDetail)]
pub(crate) struct ErrorDetailSchema {
    /// A word for programs.
    code: String,
    /// A sentence for people.
    message: String,
    /// The field of the request that is at fault.
    field: Option<String>,
}

/// A host.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HostView {
    id: String,
    name: String,
    /// `up`, `down`, or `unheard` shortly after the scheduler started.
    state: &'static str,
    enabled: bool,
    /// Its tunnel endpoint on the underlay.
    tunnel: String,
    /// Seconds since its last report.
    silent_seconds: Option<u64>,
    joined: String,
    /// Generation of the specification that it was given last.
    generation: u64,
    /// Generation that its agent accepted last.
    accepted: Option<u64>,
    /// Generation that nothing is left to do for.
    settled: Option<u64>,
    resources: Option<ResourcesView>,
    vms: Vec<NamedRef>,
    problems: Vec<ProblemView>,
}

/// What a host can give.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ResourcesView {
    cpus: u32,
    memory_mib: u64,
    storage_mib: u64,
    kvm: bool,
    rbd: bool,
    switch: bool,
    /// Links on which minimum bandwidth of ports is kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bandwidth: Vec<BandwidthView>,
    version: String,
}

impl HostView {
    fn of(world: &World, host: &Host) -> Self {
        let sight = world.cluster.sight(host.id);
        let report = sight.report.as_deref();
        let vms = world.intent.machines.values().filter(|vm| vm.host == Some(host.id));
        Self {
            id: host.id.to_string(),
            name: host.name.clone(),
            state: match sight.life {
                Life::Up => "up",
                Life::Down => "down",
                Life::Unheard => "unheard",
            },
            enabled: host.enabled,
            tunnel: host.tunnel.to_string(),
            silent_seconds: sight.silent.map(|silent| silent.as_secs()),
            joined: host.joined.to_string(),
            generation: world.intent.generation(host.id).0,
            accepted: report.map(|report| report.accepted.0),
            settled: report.map(|report| report.settled.0),
            resources: report.map(|report| ResourcesView {
                cpus: report.resources.cpus,
                memory_mib: report.resources.memory_mib,
                storage_mib: report.resources.storage_mib,
                kvm: report.resources.kvm,
                rbd: report.resources.rbd,
                switch: report.resources.switch,
                bandwidth: bandwidth::of(&world.intent, host.id, &report.resources),
                version: report.resources.version.clone(),
            }),
            vms: listed(&world.intent.machines, vms.map(|vm| &vm.machine.id)),
            problems: report.into_iter().flat_map(|report| &report.problems).map(ProblemView::from).collect(),
        }
    }
}

/// A network.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NetworkView {
    id: String,
    name: String,
    /// VXLAN network identifier.
    vni: u32,
    mtu: u16,
    /// Where it is, for a network of the data centre.
    provider: Option<ProviderView>,
    /// Prefixes of IPv6 that the data centre routes to it.
    routed_prefixes: Vec<String>,
    subnets: Vec<NamedRef>,
}

/// Where a provider network is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProviderView {
    /// `flat` or `vlan`.
    network_type: &'static str,
    physical_network: String,
    /// The VLAN.
    segmentation_id: Option<u16>,
}

impl From<&Provider> for ProviderView {
    fn from(provider: &Provider) -> Self {
        let vlan = provider.segmentation.vlan();
        Self {
            network_type: if vlan.is_some() { "vlan" } else { "flat" },
            physical_network: provider.physical_network.to_string(),
            segmentation_id: vlan.map(VlanId::get),
        }
    }
}

impl NetworkView {
    fn of(world: &World, network: &Network) -> Self {
        let subnets = world.intent.subnets.values().filter(|subnet| subnet.subnet.network == network.id);
        Self {
            id: network.id.to_string(),
            name: network.name.clone(),
            vni: network.vni.get(),
            mtu: network.mtu,
            provider: network.provider.as_ref().map(ProviderView::from),
            routed_prefixes: network.routed_prefixes.iter().map(ToString::to_string).collect(),
            subnets: listed(&world.intent.subnets, subnets.map(|subnet| &subnet.subnet.id)),
        }
    }
}

/// A subnet.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SubnetView {
    id: String,
    name: String,
    network: NamedRef,
    cidr: String,
    gateway: Option<String>,
    dhcp: bool,
    dns: Vec<String>,
    domain: Option<String>,
    pools: Vec<Pool>,
}

impl SubnetView {
    fn of(world: &World, it: &SubnetIntent) -> Self {
        Self {
            id: it.subnet.id.to_string(),
            name: it.subnet.name.clone(),
            network: named(&world.intent.networks, &it.subnet.network),
            cidr: it.subnet.cidr.to_string(),
            gateway: it.subnet.gateway.map(|gateway| gateway.to_string()),
            dhcp: it.subnet.dhcp,
            dns: it.subnet.dns.iter().map(ToString::to_string).collect(),
            domain: it.subnet.announced.domain.as_ref().map(ToString::to_string),
            pools: it.pools.clone(),
        }
    }
}

/// A security group.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GroupView {
    id: String,
    name: String,
    /// Number of the group in flows.
    key: u32,
    /// Whether replies of an allowed connection are allowed.
    stateful: bool,
    rules: Vec<RuleView>,
}

/// A rule of a security group.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RuleView {
    id: String,
    direction: String,
    ethertype: String,
    /// `any`, `tcp`, `udp`, `icmp` or a number.
    protocol: String,
    port_min: Option<u16>,
    port_max: Option<u16>,
    icmp_type: Option<u8>,
    icmp_code: Option<u8>,
    remote_prefix: Option<String>,
    remote_group: Option<NamedRef>,
    remote_address_group: Option<NamedRef>,
}

impl GroupView {
    fn of(world: &World, group: &SecurityGroup) -> Self {
        let rules = group.rules.iter().map(|rule| RuleView::of(world, rule));
        Self {
            id: group.id.to_string(),
            name: group.name.clone(),
            key: group.key,
            stateful: group.stateful,
            rules: rules.collect(),
        }
    }
}

impl RuleView {
    fn of(world: &World, rule: &Rule) -> Self {
        let (protocol, range, icmp) = match rule.protocol {
            Protocol::Any => ("any".to_owned(), None, (None, None)),
            Protocol::Tcp(range) => ("tcp".to_owned(), Some(range), (None, None)),
            Protocol::Udp(range) => ("udp".to_owned(), Some(range), (None, None)),
            Protocol::Icmp { kind, code } => ("icmp".to_owned(), None, (kind, code)),
            Protocol::Number(number) => (number.to_string(), None, (None, None)),
        };
        let (prefix, group, addresses) = match rule.remote {
            Remote::Any => (None, None, None),
            Remote::Prefix(prefix) => (Some(prefix.to_string()), None, None),
            Remote::Group(group) => (None, Some(named(&world.intent.groups, &group)), None),
            Remote::Addresses(group) => (None, None, Some(named(&world.intent.address_groups, &group))),
        };
        Self {
            id: rule.id.to_string(),
            direction: format!("{:?}", rule.direction).to_lowercase(),
            ethertype: format!("{:?}", rule.ethertype),
            protocol,
            port_min: range.map(model::security::PortRange::first),
            port_max: range.map(model::security::PortRange::last),
            icmp_type: icmp.0,
            icmp_code: icmp.1,
            remote_prefix: prefix,
            remote_group: group,
            remote_address_group: addresses,
        }
    }
}

/// An image.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ImageView {
    id: String,
    name: String,
    /// `raw`, `qcow2`, `kernel` or `initrd`.
    kind: &'static str,
    /// `empty` until its bytes are uploaded, then `ready`.
    state: &'static str,
    sha256: Option<String>,
    size_bytes: Option<u64>,
    /// The size of the disk inside.
    virtual_size_bytes: Option<u64>,
    /// What machines on this disk boot.
    boot: BootView,
}

/// What is booted.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BootView {
    kernel: Option<NamedRef>,
    initrd: Option<NamedRef>,
    cmdline: Option<String>,
}

impl ImageView {
    fn of(world: &World, image: &ImageIntent) -> Self {
        let content = image.content.as_ref();
        let images = &world.intent.images;
        Self {
            id: image.id.to_string(),
            name: image.name.clone(),
            kind: match image.kind {
                Content::Raw => "raw",
                Content::Qcow2 => "qcow2",
                Content::Kernel => "kernel",
                Content::Initrd => "initrd",
            },
            state: if content.is_some() { "ready" } else { "empty" },
            sha256: content.map(|content| content.sha256.to_string()),
            size_bytes: content.map(|content| content.size_bytes),
            virtual_size_bytes: content.map(|content| content.virtual_size_bytes),
            boot: BootView {
                kernel: image.boot.kernel.map(|id| named(images, &id)),
                initrd: image.boot.initrd.map(|id| named(images, &id)),
                cmdline: image.boot.cmdline.clone(),
            },
        }
    }
}

/// A volume.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VolumeView {
    id: String,
    name: String,
    size_mib: u64,
    /// `local` or `rbd`.
    backend: &'static str,
    pool: Option<String>,
    image: Option<NamedRef>,
    /// `pending`, `creating`, `available`, `in_use`, `deleting`, or `unknown` when its host does not say.
    state: &'static str,
    vm: Option<NamedRef>,
    /// The host that looks after it.
    host: Option<NamedRef>,
    problem: Option<ProblemView>,
}

impl VolumeView {
    fn of(world: &World, it: &VolumeIntent) -> Self {
        let (intent, volume) = (&world.intent, &it.volume);
        let report = it.keeper.and_then(|host| world.cluster.fresh(host));
        let seen = report.as_ref().and_then(|report| report.volumes.iter().find(|seen| seen.id == volume.id));
        let vm = intent.volume_user(volume.id);
        let state = match (it, seen.map(|seen| seen.state)) {
            (VolumeIntent { retired: true, .. }, _) => "deleting",
            (VolumeIntent { keeper: None, .. }, _) => "pending",
            (_, Some(VolumeState::InUse)) => "in_use",
            (_, Some(VolumeState::Available)) if vm.is_some() => "in_use",
            (_, Some(VolumeState::Available)) => "available",
            (VolumeIntent { created: false, .. }, _) => "creating",
            (_, Some(VolumeState::Creating)) => "creating",
            (_, Some(VolumeState::Unknown | VolumeState::Absent) | None) => "unknown",
        };
        Self {
            id: volume.id.to_string(),
            name: volume.name.clone(),
            size_mib: volume.size.get(),
            backend: match volume.backend {
                VolumeBackend::Local => "local",
                VolumeBackend::Rbd { .. } => "rbd",
            },
            pool: match &volume.backend {
                VolumeBackend::Local => None,
                VolumeBackend::Rbd { pool } => Some(pool.clone()),
            },
            image: match volume.source {
                VolumeSource::Empty => None,
                VolumeSource::Image(image) => Some(named(&intent.images, &image)),
            },
            state,
            vm: vm.map(|(id, name)| NamedRef { id: id.to_string(), name }),
            host: it.keeper.map(|host| named(&intent.hosts, &host)),
            problem: seen.and_then(|seen| seen.problem.as_ref()).map(ProblemView::from),
        }
    }
}
