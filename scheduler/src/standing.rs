//! Which members of load balancers can not serve whatever their health monitor said last, because their machine does not run or their host is silent.
//!
//! Owns [`Standing`]. Nobody checks such a member: its machine has no port to be asked at, or its host tells nobody. Pure: the same intent and the same reports
//! give the same answer. Invariant: what is not known says nothing; silence right after a start of the scheduler, a host's report from before a machine came
//! to it.

use std::collections::{BTreeMap, BTreeSet};

use model::MachineId;
use model::machine::Power;
use model::network::Binding;
use model::observed::MachineState;

use crate::cluster::{Cluster, Life};
use crate::intent::Intent;

/// Why a member can not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unable {
    /// Its machine is shut down, or does not run yet or any more.
    MachineDown,
    /// Nobody has heard of its host for too long. It may serve all the same: what has failed may be the way to the scheduler.
    HostSilent,
}

impl Unable {
    /// In words.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::MachineDown => "its machine does not run",
            Self::HostSilent => "its host does not report",
        }
    }
}

/// How machines and hosts are.
#[derive(Debug)]
pub(crate) struct Standing<'a> {
    intent: &'a Intent,
    cluster: &'a Cluster,
    /// Machines that do not run, as the host that has them says, as far as that is up.
    still: BTreeSet<MachineId>,
}

impl<'a> Standing<'a> {
    /// Looks at all machines once.
    pub(crate) fn of(intent: &'a Intent, cluster: &'a Cluster) -> Self {
        let placed = intent.machines.values().filter_map(|vm| Some((vm.machine.id, vm.host?)));
        let placed: BTreeMap<_, _> = placed.collect();
        let reports = intent.hosts.keys().filter_map(|host| Some((*host, cluster.fresh(*host)?)));
        let is_still = |state: &MachineState| !matches!(state, MachineState::Running | MachineState::Unknown);
        let still = reports.flat_map(|(host, report)| {
            let there = report.machines.iter().filter(|seen| placed.get(&seen.id) == Some(&host));
            there.filter(|seen| is_still(&seen.state)).map(|seen| seen.id).collect::<Vec<_>>()
        });
        Self { intent, cluster, still: still.collect() }
    }

    /// What keeps a member that is plugged in there from serving, as far as is known.
    pub(crate) fn unable(&self, at: &Binding) -> Option<Unable> {
        let is_off = || self.intent.machines.get(&at.machine).is_some_and(|vm| vm.machine.power == Power::Stopped);
        if self.still.contains(&at.machine) || is_off() {
            return Some(Unable::MachineDown);
        }
        (self.cluster.life(at.host) == Life::Down).then_some(Unable::HostSilent)
    }
}
