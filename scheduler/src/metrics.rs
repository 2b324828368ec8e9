//! Numbers about the scheduler in OpenMetrics text: gauges are read from the state when asked for, counters are kept here.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::centre::World;
use crate::cluster::Life;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Objects {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HostState {
    state: &'static str,
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Reports taken in.
    pub(crate) reports: Counter,
    answers: Family<Status, Counter>,
}

impl Metrics {
    /// Counts an answer.
    pub(crate) fn answered(&self, status: u16) {
        self.answers.get_or_create(&Status { status }).inc();
    }

    /// Everything as text.
    pub(crate) fn text(&self, world: &World) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("basalt_scheduler");
        registry.register("reports", "Reports of hosts taken in", self.reports.clone());
        registry.register("http_answers", "Answers given, by HTTP status", self.answers.clone());
        let objects = Family::<Objects, Gauge>::default();
        let intent = &world.intent;
        let counts = [
            ("network", intent.networks.len()),
            ("subnet", intent.subnets.len()),
            ("port", intent.ports.len()),
            ("security_group", intent.groups.len()),
            ("address_group", intent.address_groups.len()),
            ("load_balancer", intent.balancers.len()),
            ("firewall_policy", intent.firewall_policies.len()),
            ("router", intent.routers.len()),
            ("image", intent.images.len()),
            ("volume", intent.volumes.len()),
            ("flavor", intent.flavors.len()),
            ("vm", intent.machines.len()),
        ];
        for (kind, count) in counts {
            objects.get_or_create(&Objects { kind }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        registry.register("objects", "Objects that exist, by kind", objects);
        let hosts = Family::<HostState, Gauge>::default();
        for state in ["up", "down", "unheard"] {
            hosts.get_or_create(&HostState { state }).set(0);
        }
        for host in intent.hosts.keys() {
            let state = match world.cluster.sight(*host).life {
                Life::Up => "up",
                Life::Down => "down",
                Life::Unheard => "unheard",
            };
            hosts.get_or_create(&HostState { state }).inc();
        }
        registry.register("hosts", "Hosts that joined, by state", hosts);
        let unplaced = Gauge::<i64>::default();
        let count = intent.machines.values().filter(|vm| vm.host.is_none()).count();
        unplaced.set(i64::try_from(count).unwrap_or(i64::MAX));
        registry.register("vms_unplaced", "Machines that no host takes", unplaced);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}
