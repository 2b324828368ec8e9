//! Second bindings: a port of a running machine is wired on another host ahead of the machine, and is there once the machine has spoken there.
//!
//! Owns where a port is when that is not where its machine is placed, and where it is awaited. Never moves a machine. A binding has a serial number, by
//! which the host says that the machine spoke; each request and each report is one change of the intent, so that of an unbinding and an arrival one comes
//! first, and the other finds that it did. Invariant: all of this is of one placement of the machine: placed elsewhere, it is forgotten.
//!
//! ```text
//! with its machine --bind--> awaited --report with the serial--> away from its machine --bind--> awaited --> with its machine
//!                               \--unbind--> as before
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::arrival::{Arrival, Arrived};
use model::provider::PhysicalNetwork;
use model::{HostId, PortId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::machine::MachineIntent;
use super::port::PortIntent;
use super::{Intent, find};
use crate::cluster::{Cluster, Life};
use crate::refusal::Refusal;

/// Where a port is and is to be, apart from where its machine is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journey {
    /// The host that its machine was placed on when this was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    home: Option<HostId>,
    /// The host that it is on; none: its machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<HostId>,
    /// The host that it is awaited on, in the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    awaited: Option<HostId>,
    /// How many attempts there were; one is never given again.
    serial: u64,
}

impl Journey {
    /// Whether nothing was ever said.
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The host that awaits the port, and the attempt.
    pub(crate) const fn awaited(&self) -> Option<(HostId, u64)> {
        match self.awaited {
            Some(host) => Some((host, self.serial)),
            None => None,
        }
    }

    const fn forget(&mut self) {
        (self.home, self.at, self.awaited) = (None, None, None);
    }
}

/// Where a port is to be awaited.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewBinding {
    /// The host, by name or id: another one than the port is on.
    host: String,
}

impl Intent {
    /// Has a port of a running machine awaited on another host.
    pub(crate) fn bind_port(&mut self, cluster: &Cluster, name: &str, new: &NewBinding) -> Result<PortId, Refusal> {
        let (id, it) = find(&self.ports, name, None)?;
        let vm = self.traveller(&it)?;
        let (host, there) = find(&self.hosts, &new.host, Some("host"))?;
        let name = &it.port.name;
        let at_port = |problem: String| Refusal::State { object: format!("port {name}"), problem, field: None };
        let at_host = |problem: String| {
            let (object, field) = (format!("host {}", there.name), Some("host".to_owned()));
            Refusal::State { object, problem, field }
        };
        if let Some((awaited, _)) = it.journey.awaited() {
            let problem = format!(
                "it is awaited on host {} already: take that back first (flowctl port unbind {name})",
                self.host_name(awaited)
            );
            return Err(at_port(problem));
        }
        if self.place_of(&it) == Some(host) {
            return Err(at_host(format!("port {name} is plugged in there: name another host")));
        }
        // Where its machine is it may always go back to.
        if !there.enabled && vm.host != Some(host) {
            let problem = format!("it takes nothing new: flowctl host enable {}, or name another host", there.name);
            return Err(at_host(problem));
        }
        match cluster.life(host) {
            Life::Up => {}
            Life::Down => return Err(at_host("it is down: wait until it reports, or name another host".to_owned())),
            Life::Unheard => {
                let problem = "it has not reported since the scheduler started: try again in a moment";
                return Err(at_host(problem.to_owned()));
            }
        }
        let resources = cluster.resources(host);
        if !resources.switch {
            let problem = "its Open vSwitch does not answer: start it there, or name another host";
            return Err(at_host(problem.to_owned()));
        }
        let missing: Vec<String> = self
            .wires_of(&it)
            .into_iter()
            .filter(|wire| !resources.physical_networks.contains(wire))
            .map(|wire| wire.to_string())
            .collect();
        if !missing.is_empty() {
            let problem = format!(
                "it is not wired to physical network {}, which port {name}, its sub-ports or floating IPs need: wire it, or name another host",
                missing.join(", ")
            );
            return Err(at_host(problem));
        }
        let journey =
            Journey { home: vm.host, awaited: Some(host), serial: it.journey.serial + 1, ..it.journey.clone() };
        self.ports.insert(id, Arc::new(PortIntent { journey, ..(*it).clone() }));
        Ok(id)
    }

    /// Has a port awaited no more.
    pub(crate) fn unbind_port(&mut self, name: &str) -> Result<PortId, Refusal> {
        let (id, it) = find(&self.ports, name, None)?;
        let name = &it.port.name;
        let state = |problem: String| Refusal::State { object: format!("port {name}"), problem, field: None };
        if let Some(trunk) = it.port.trunk {
            return Err(state(self.follows(trunk.parent, "unbind")));
        }
        if it.journey.awaited().is_none() {
            return Err(state(match (it.journey.at, it.journey.home) {
                (Some(at), Some(home)) => format!(
                    "its machine has spoken on host {}, where it is plugged in by now (binding {}): flowctl port bind {name} --host {} brings it back",
                    self.host_name(at),
                    it.journey.serial,
                    self.host_name(home)
                ),
                _ => "it is awaited on no other host: flowctl port show tells where it is".to_owned(),
            }));
        }
        let mut journey = it.journey.clone();
        journey.awaited = None;
        if journey.at.is_none() {
            journey.home = None;
        }
        self.ports.insert(id, Arc::new(PortIntent { journey, ..(*it).clone() }));
        Ok(id)
    }

    /// The machine of a port that can be awaited elsewhere.
    fn traveller(&self, it: &PortIntent) -> Result<Arc<MachineIntent>, Refusal> {
        let name = &it.port.name;
        let state = |problem: String| Refusal::State { object: format!("port {name}"), problem, field: None };
        if let Some(trunk) = it.port.trunk {
            return Err(state(self.follows(trunk.parent, "bind")));
        }
        let vm = self.port_user(it.port.id).and_then(|(vm, _)| self.machines.get(&vm));
        let Some(vm) = vm else {
            return Err(state("no vm has it, so there is nothing to await: give it to one first".to_owned()));
        };
        if vm.deleting {
            return Err(state(format!("its vm {} is being deleted", vm.machine.name)));
        }
        if vm.host.is_none() {
            let vm = &vm.machine.name;
            return Err(state(format!(
                "its vm {vm} is on no host yet: flowctl vm placement {vm} tells what it waits for"
            )));
        }
        Ok(Arc::clone(vm))
    }

    fn follows(&self, parent: PortId, verb: &str) -> String {
        let parent = self.ports.get(&parent).map_or_else(|| parent.to_string(), |it| it.port.name.clone());
        format!("it is a sub-port and goes where port {parent} goes: flowctl port {verb} {parent}")
    }

    fn host_name(&self, id: HostId) -> String {
        self.hosts.get(&id).map_or_else(|| id.to_string(), |host| host.name.clone())
    }

    /// The host that a port is on; a sub-port is where its parent is.
    pub(crate) fn place_of(&self, it: &PortIntent) -> Option<HostId> {
        let tap = self.ports.get(&it.port.tap_port())?;
        let vm = self.port_user(tap.port.id).and_then(|(vm, _)| self.machines.get(&vm));
        tap.journey.at.or_else(|| vm.and_then(|vm| vm.host))
    }

    /// The physical networks that a host needs for a port, its sub-ports and their floating IPs.
    fn wires_of(&self, it: &PortIntent) -> BTreeSet<PhysicalNetwork> {
        let ports: Vec<PortId> =
            std::iter::once(it.port.id).chain(self.sub_ports(it.port.id).map(|sub| sub.id)).collect();
        let networks = ports.iter().filter_map(|id| Some(self.ports.get(id)?.port.network));
        let externals = self.routers.values().filter_map(|router| router.external.as_ref());
        let floating = externals.filter(|external| external.floating_ips.iter().any(|it| ports.contains(&it.port)));
        let outside = floating.filter_map(|external| Some(self.subnets.get(&external.subnet)?.subnet.network));
        let providers = networks.chain(outside).filter_map(|id| self.networks.get(&id)?.provider.clone());
        providers.map(|provider| provider.physical_network).collect()
    }

    /// Where each port is awaited, sub-ports with their parents: computed once, used for every host.
    pub(crate) fn arrivals(&self) -> BTreeMap<PortId, Arrival> {
        let awaited = self.ports.values().filter_map(|it| Some((it, self.ports.get(&it.port.tap_port())?)));
        let awaited = awaited.filter_map(|(it, tap)| Some((it.port.id, tap.journey.awaited()?)));
        let arrival = |(id, (host, serial)): (PortId, (HostId, u64))| {
            let tunnel = self.hosts.get(&host)?.tunnel;
            Some((id, Arrival { host, tunnel, serial }))
        };
        awaited.filter_map(arrival).collect()
    }

    /// The host that a port is on when it is not its machine's.
    pub(crate) fn away(&self, port: PortId) -> Option<HostId> {
        self.ports.get(&port)?.journey.at
    }

    /// Names the ports that are on a host without their machine, or awaited there.
    pub(crate) fn guests_of(&self, host: HostId) -> impl Iterator<Item = String> {
        let ports = self.ports.values();
        let ports = ports.filter(move |it| it.journey.at == Some(host) || it.journey.awaited == Some(host));
        ports.map(|it| format!("port {}, which is bound there", it.port.name))
    }

    /// Ends all journeys that lead to a host: it is dead.
    pub(crate) fn forget_journeys_to(&mut self, host: HostId) {
        for it in self.ports.values_mut() {
            if it.journey.at == Some(host) || it.journey.awaited == Some(host) {
                Arc::make_mut(it).journey.forget();
            }
        }
    }

    /// Brings journeys forward: believes hosts of what they await themselves, in the attempt that is on, and forgets what was of another placement.
    pub(crate) fn note_arrivals(&mut self, cluster: &Cluster) {
        let on_the_way = self.ports.values().filter(|it| it.journey.home.is_some());
        let changed: Vec<PortIntent> = on_the_way
            .filter_map(|it| {
                let mut journey = it.journey.clone();
                let vm = self.port_user(it.port.id).and_then(|(vm, _)| self.machines.get(&vm));
                let host = vm.filter(|vm| !vm.deleting).and_then(|vm| vm.host);
                if host != journey.home {
                    journey.forget();
                } else if let Some((awaited, serial)) = journey.awaited() {
                    let said = Arrived { port: it.port.id, serial };
                    if cluster.fresh(awaited).is_some_and(|report| report.arrived.contains(&said)) {
                        journey.awaited = None;
                        journey.at = Some(awaited).filter(|at| Some(*at) != host);
                        journey.home = journey.home.filter(|_| journey.at.is_some());
                    }
                }
                (journey != it.journey).then(|| PortIntent { journey, ..(**it).clone() })
            })
            .collect();
        self.ports.extend(changed.into_iter().map(|it| (it.port.id, Arc::new(it))));
    }
}
