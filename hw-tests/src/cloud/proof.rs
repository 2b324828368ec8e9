//! The proofs: each function shows one thing that an operator would want to believe, and returns what was seen.
//!
//! They ask guests, the underlay and the hosts, not the agent's own account of itself. A proof leaves the cloud as it
//! found it, or says so in its name. [`examine`] runs all of them.

mod balancer;
mod failover;
mod firewall;
mod floating;
mod groups;
mod ipv6;
mod memory;
mod metadata;
mod mirror;
mod mtu;
mod network;
mod north;
mod pair;
mod provider;
mod qos;
mod restart;
mod route;
mod trace;
mod trunk;
mod volume;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use basalt_tests::snmp;

use super::Cloud;
use super::evidence::Examiner;
use super::tenant::Vm;
use crate::guest::Shell;
use crate::lab::exec::client::InputStream;

/// A nested guest boots in 6 to 20 s when it is alone; three share two hosts of one processor here.
const SHELL_LIMIT: Duration = Duration::from_secs(150);
/// One command in a guest.
const COMMAND_LIMIT: Duration = Duration::from_secs(40);

/// A machine with its shell.
#[derive(Debug)]
pub struct Occupied {
    /// What the scheduler says of it.
    pub vm: Vm,
    shell: Mutex<Shell<InputStream>>,
}

impl Occupied {
    /// Takes the console of `vm` and waits for its shell.
    ///
    /// # Errors
    /// No shell answers in time.
    pub fn enter(cloud: &Cloud, vm: &Vm) -> Result<Self> {
        let shell = cloud.node(&vm.host)?.shell(&vm.id, SHELL_LIMIT)?;
        Ok(Self { vm: vm.clone(), shell: Mutex::new(shell) })
    }

    /// Runs a command that must succeed and returns its output.
    ///
    /// # Errors
    /// It fails or takes too long.
    pub fn ok(&self, command: &str) -> Result<String> {
        self.shell().ok(command, COMMAND_LIMIT).with_context(|| format!("in {}", self.vm.name))
    }

    /// Whether a command succeeds.
    ///
    /// # Errors
    /// It takes too long.
    pub fn succeeds(&self, command: &str) -> Result<bool> {
        let answer = self.shell().run(command, COMMAND_LIMIT).with_context(|| format!("in {}", self.vm.name))?;
        Ok(answer.status == 0)
    }

    /// How many ICMP messages of a kind the machine's kernel has taken in so far (`/proc/net/snmp`).
    ///
    /// # Errors
    /// The kernel counts no such kind.
    pub fn icmp(&self, kind: &str) -> Result<u32> {
        snmp::icmp(&self.ok("grep ^Icmp: /proc/net/snmp")?, kind)
    }

    fn shell(&self) -> MutexGuard<'_, Shell<InputStream>> {
        self.shell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The machines of the tenant by name, each with its shell.
#[derive(Debug)]
pub struct Machines {
    by_name: BTreeMap<String, Occupied>,
}

impl Machines {
    /// Takes the consoles of `vms`, all at once.
    ///
    /// # Errors
    /// One of them has no shell in time.
    pub fn enter(cloud: &Cloud, vms: &[Vm]) -> Result<Self> {
        let entered: Vec<Result<Occupied>> = std::thread::scope(|scope| {
            let enters: Vec<_> = vms.iter().map(|vm| scope.spawn(|| Occupied::enter(cloud, vm))).collect();
            let join = |enter: std::thread::ScopedJoinHandle<'_, _>| enter.join().unwrap_or_else(|_| bail!("a panic"));
            enters.into_iter().map(join).collect()
        });
        let mut by_name = BTreeMap::new();
        for occupied in entered {
            let occupied = occupied?;
            by_name.insert(occupied.vm.name.clone(), occupied);
        }
        Ok(Self { by_name })
    }

    /// The machine called `name`.
    ///
    /// # Errors
    /// The tenant has none.
    pub fn get(&self, name: &str) -> Result<&Occupied> {
        self.by_name.get(name).ok_or_else(|| anyhow!("the tenant has no machine {name}"))
    }

    /// A machine on the host called `host`.
    ///
    /// # Errors
    /// The tenant has none there.
    pub fn on(&self, host: &str) -> Result<&Occupied> {
        let found = self.by_name.values().find(|machine| machine.vm.host == host);
        found.ok_or_else(|| anyhow!("the tenant has no machine on {host}"))
    }
}

/// Runs every proof on the tenant's machines.
pub fn examine(cloud: &Cloud, vms: &[Vm], examiner: &mut Examiner<'_>) {
    examiner.check("two machines of one anti-affinity word are on different hosts", || placed_apart(vms));
    let mut machines = None;
    let booted = examiner.check("machines boot a stock Debian kernel from their volumes to a shell", || {
        let entered = Machines::enter(cloud, vms)?;
        let kernel = entered.get("web1")?.ok("uname -r; cat /etc/debian_version")?;
        machines = Some(entered);
        Ok(format!("{} shells; web1: {}", vms.len(), kernel.trim().replace('\n', ", Debian ")))
    });
    let Some(machines) = machines.filter(|_| booted) else { return };
    network::examine(cloud, &machines, examiner);
    ipv6::examine(&machines, examiner);
    groups::examine(cloud, &machines, examiner);
    mtu::examine(&machines, examiner);
    metadata::examine(&machines, examiner);
    qos::examine(cloud, &machines, examiner);
    route::examine(cloud, &machines, examiner);
    balancer::examine(cloud, &machines, examiner);
    floating::examine(cloud, &machines, examiner);
    north::examine(cloud, &machines, examiner);
    failover::examine(cloud, &machines, examiner);
    firewall::examine(cloud, &machines, examiner);
    trunk::examine(cloud, &machines, examiner);
    pair::examine(cloud, &machines, examiner);
    mirror::examine(cloud, &machines, examiner);
    trace::examine(cloud, &machines, examiner);
    memory::examine(cloud, examiner);
    restart::examine(cloud, &machines, examiner);
    volume::examine(cloud, examiner);
    tell_faults(cloud, examiner);
}

/// Says which machines met a triple fault: emulated processors do now and then, and the machine starts again.
fn tell_faults(cloud: &Cloud, examiner: &Examiner<'_>) {
    for node in cloud.nodes() {
        let found = node.host().sh("grep 'triple fault' /run/basalt/vm/*/vmm.log || true").unwrap_or_default();
        found.lines().for_each(|line| examiner.note(&format!("{}: {line}", node.host().name())));
    }
}

fn placed_apart(vms: &[Vm]) -> Result<String> {
    let host = |name: &str| {
        vms.iter().find(|vm| vm.name == name).map(|vm| vm.host.as_str()).ok_or_else(|| anyhow!("no machine {name}"))
    };
    let (one, two) = (host("web1")?, host("web2")?);
    if one == two {
        bail!("web1 and web2 are both on {one}");
    }
    Ok(format!("web1 on {one}, web2 on {two}"))
}
