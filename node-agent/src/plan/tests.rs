//! Plans against a simulated host: they converge, whatever fails and wherever the agent is cut off, and never do what must not be done.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use model::arrival::{Arrival, Arrived};
use model::balancer::monitor::{Check, Monitor};
use model::balancer::{MemberHealth, MemberRef, Transport};
use model::image::{Image, ImageKind, Sha256};
use model::machine::{Boot, Disk, Machine, Power};
use model::network::{Binding, Network, Port, SubPort};
use model::observed::{Report, Resources};
use model::spec::{Generation, NodeSpec, SpecParts};
use model::volume::{Volume, VolumeBackend, VolumeSource};
use model::{BalancerId, HostId, ImageId, MachineId, Mib, NetworkId, PortId, Vcpus, Vni, VolumeId};
use proptest::prelude::{Strategy, any, prop, proptest};
use proptest::test_runner::Config as ProptestConfig;
use tokio::sync::watch::{Receiver, channel};
use uuid::Uuid;

use super::machine::{LOSSES_MAX, LOSSES_WINDOW_MS};
use super::{Context, Lane, Plan, Step, plan};
use crate::apply;
use crate::ledger::Ledger;
use crate::reconcile::{Outlets, Reconciler, Snapshot, boot_id, look};
use crate::seen::{Look, Process, Tap};
use crate::sim::Sim;

/// More rounds than any chain of steps is long.
const ROUNDS_MAX: usize = 60;

fn id(kind: u8, number: u8) -> Uuid {
    Uuid::from_bytes([kind, number, 0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, 1])
}

fn machine_id(number: u8) -> MachineId {
    MachineId::from_uuid(id(1, number))
}

fn volume_id(number: u8) -> VolumeId {
    VolumeId::from_uuid(id(3, number))
}

/// A wish for one machine, small enough to be drawn at random.
#[derive(Debug, Clone)]
struct Wish {
    number: u8,
    running: bool,
    starts: u32,
    remote: bool,
    cloned: bool,
    port: bool,
    keep_volume: bool,
}

fn image(number: u8, kind: ImageKind) -> Image {
    let id = ImageId::from_uuid(id(4, number));
    Image { id, name: "i".to_owned(), kind, sha256: Sha256::new([number; 32]), size_bytes: 1 }
}

fn volume(wish: &Wish) -> Volume {
    let disk = image(2, ImageKind::Raw).id;
    Volume {
        id: volume_id(wish.number),
        name: "v".to_owned(),
        size: Mib::try_from(u64::from(wish.starts)).unwrap(),
        backend: if wish.remote { VolumeBackend::Rbd { pool: "p".to_owned() } } else { VolumeBackend::Local },
        source: if wish.cloned { VolumeSource::Image(disk) } else { VolumeSource::Empty },
    }
}

/// A spec of these wishes; the volumes of `before` that are not wished for any more are retired.
fn spec(generation: u64, wishes: &[Wish], before: &[Wish]) -> NodeSpec {
    NodeSpec::check(parts(generation, wishes, before)).unwrap()
}

fn parts(generation: u64, wishes: &[Wish], before: &[Wish]) -> SpecParts {
    let host = HostId::from_uuid(id(9, 1));
    let tunnel = Ipv4Addr::new(10, 0, 0, 1);
    let network = NetworkId::from_uuid(id(5, 1));
    let mut parts = SpecParts {
        generation: Generation(generation),
        host,
        tunnel,
        networks: vec![Network {
            id: network,
            name: "n".to_owned(),
            vni: Vni::try_from(7).unwrap(),
            mtu: 1450,
            provider: None,
            routed_prefixes: Vec::new(),
        }],
        subnets: vec![],
        routers: vec![],
        address_groups: vec![],
        balancers: vec![],
        firewall_policies: vec![],
        mirrors: vec![],
        groups: vec![],
        ports: vec![],
        images: vec![image(1, ImageKind::Kernel), image(2, ImageKind::Raw)],
        volumes: vec![],
        retired_volumes: vec![],
        machines: vec![],
    };
    for wish in wishes {
        let (machine, port) = (machine_id(wish.number), PortId::from_uuid(id(2, wish.number)));
        parts.volumes.push(volume(wish));
        if wish.port {
            let binding = Binding { machine, hostname: "m".to_owned(), host, tunnel };
            let own = Port {
                id: port,
                name: "p".to_owned(),
                network,
                key: u32::from(wish.number) + 1,
                mac: format!("fa:16:3e:00:00:{:02x}", wish.number).parse().unwrap(),
                addresses: vec![],
                groups: vec![],
                allowed_pairs: Vec::new(),
                qos: model::qos::Qos::default(),
                port_security: true,
                trunk: None,
                mirror: None,
                arriving: None,
                binding: Some(binding),
            };
            // A sub-port is on its parent's tap: it must never get one.
            let sub = Port {
                id: PortId::from_uuid(id(3, wish.number)),
                key: u32::from(wish.number) + 1001,
                mac: format!("fa:16:3e:00:01:{:02x}", wish.number).parse().unwrap(),
                trunk: Some(SubPort { parent: port, vlan: 7.try_into().unwrap() }),
                ..own.clone()
            };
            parts.ports.extend([own, sub]);
        }
        parts.machines.push(Machine {
            id: machine,
            name: format!("m{}", wish.number),
            vcpus: Vcpus::try_from(1).unwrap(),
            memory: Mib::try_from(64).unwrap(),
            boot: Boot { kernel: image(1, ImageKind::Kernel).id, initrd: None, cmdline: String::new() },
            disks: vec![Disk { volume: volume_id(wish.number), read_only: false }],
            ports: if wish.port { vec![port] } else { vec![] },
            power: if wish.running { Power::Running } else { Power::Stopped },
            starts: wish.starts,
            metadata: model::metadata::Metadata::default(),
        });
    }
    let gone = before.iter().filter(|old| !wishes.iter().any(|new| new.number == old.number));
    for wish in gone {
        let list = if wish.keep_volume { &mut parts.volumes } else { &mut parts.retired_volumes };
        list.push(volume(wish));
    }
    parts
}

/// An agent on a simulated host. Dropping it and making another over the same host and ledger is a restart.
struct Agent {
    sim: Sim,
    ledger: Ledger,
    boot_id: String,
    now_ms: u64,
}

impl Agent {
    fn new() -> (tempfile::TempDir, Self) {
        // Memory, where there is some: the ledger syncs each record.
        let shm = std::path::Path::new("/dev/shm");
        let directory = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        (directory, Self { sim: Sim::default(), ledger, boot_id: "boot 1".to_owned(), now_ms: 0 })
    }

    fn context(&self) -> Context {
        Context { now_ms: self.now_ms, boot_id: self.boot_id.clone(), shutdown_grace_ms: 5_000, uids: 1000..1064 }
    }

    async fn plan(&self, spec: &NodeSpec) -> Plan {
        plan(spec, &look(&self.sim, &self.ledger, spec).await, &self.context())
    }

    /// One round: every step of the plan, each cut off after `lives` polls when it has so many.
    async fn round(&mut self, spec: &NodeSpec, lives: &mut dyn FnMut() -> Option<usize>) -> Plan {
        self.sim.world().retired = spec.retired_volumes().keys().copied().collect();
        let plan = self.plan(spec).await;
        for step in plan.steps.values() {
            let taken = apply::take(Arc::new(self.sim.clone()), self.ledger.clone(), step.clone(), self.now_ms);
            match lives() {
                None => drop(taken.await),
                Some(polls) => cut_off(taken, polls).await,
            }
        }
        self.now_ms += 1_000;
        plan
    }

    async fn settle(&mut self, spec: &NodeSpec) -> Plan {
        let mut plan = Plan::default();
        for _ in 0..ROUNDS_MAX {
            plan = self.round(spec, &mut || None).await;
            if plan.is_settled() || waits_for_running_machines(&plan) {
                return plan;
            }
        }
        panic!("not settled after {ROUNDS_MAX} rounds: {plan:?}");
    }

    fn running(&self) -> BTreeMap<MachineId, bool> {
        let world = self.sim.world();
        world.processes.iter().map(|(id, process)| (*id, process.state == vmm::state::State::Running)).collect()
    }
}

/// Whether nothing is left but volumes that grow and taps that go once machines that run end: as right as it gets while these run.
fn waits_for_running_machines(plan: &Plan) -> bool {
    let waits = |reason: &String| reason.ends_with("once no machine has it open");
    plan.steps.is_empty() && plan.blocked.is_empty() && plan.waiting.values().all(waits)
}

/// Polls a future at most so often, then drops it: what SIGKILL does to the agent.
async fn cut_off<F: Future>(future: F, polls: usize) {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return std::task::Poll::Ready(());
        }
        left -= 1;
        future.as_mut().poll(context).map(drop)
    })
    .await;
}

fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let wish = (any::<[bool; 5]>(), 1..4_u32);
    prop::collection::btree_map(0..5_u8, wish, 0..4).prop_map(|wishes| {
        let wish = |(number, (flags, starts)): (u8, ([bool; 5], u32))| {
            let [running, remote, cloned, port, keep_volume] = flags;
            Wish { number, running, starts, remote, cloned, port, keep_volume }
        };
        wishes.into_iter().map(wish).collect()
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A volume keeps its backend and its source for life: later wishes for the same number take over those of earlier ones.
fn lasting(specs: &mut [Vec<Wish>]) {
    let mut first: BTreeMap<u8, (bool, bool)> = BTreeMap::new();
    for wish in specs.iter_mut().flatten() {
        let (remote, cloned) = *first.entry(wish.number).or_insert((wish.remote, wish.cloned));
        (wish.remote, wish.cloned) = (remote, cloned);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// A spec after another, with steps that fail and an agent that is killed at random points in between, always ends in the host that the
    /// last spec wants; what the world forbids never happens.
    #[test]
    fn plans_converge_through_faults_and_kills(
        mut specs in prop::collection::vec(wishes(), 1..4),
        faults in prop::collection::vec(prop::bool::weighted(0.3), 0..30),
        kills in prop::collection::vec(prop::option::weighted(0.4, 0..6_usize), 0..30),
    ) {
        lasting(&mut specs);
        block_on(async {
            let (_directory, mut agent) = Agent::new();
            agent.sim.world().faults = faults.into();
            let mut kills = kills.into_iter();
            let mut before: Vec<Wish> = Vec::new();
            for (generation, wishes) in (1..).zip(&specs) {
                let spec = spec(generation, wishes, &before);
                for _ in 0..4 {
                    agent.round(&spec, &mut || kills.next().flatten()).await;
                }
                before.extend(wishes.iter().cloned());
                before.sort_by_key(|wish| wish.number);
                before.dedup_by_key(|wish| wish.number);
            }
            let last = specs.last().cloned().unwrap_or_default();
            let spec = spec(9, &last, &before);
            agent.sim.world().faults.clear();
            let plan = agent.settle(&spec).await;
            assert_eq!(plan, agent.plan(&spec).await, "a settled plan stays settled");
            let running = agent.running();
            for wish in &last {
                let runs = running.get(&machine_id(wish.number)).copied();
                if wish.running {
                    // A machine cut off by an earlier stop may have ended for good in this very number of starts.
                    assert!(runs != Some(false), "{wish:?}");
                } else {
                    assert_eq!(runs, None, "{wish:?}");
                }
            }
            assert!(running.keys().all(|id| last.iter().any(|wish| machine_id(wish.number) == *id)));
            let world = agent.sim.world();
            let used = |tap: &String| world.processes.values().any(|process| process.taps.contains(tap));
            let wanted: Vec<String> =
                last.iter().filter(|wish| wish.port).map(|wish| format!("tap{}", wish.number + 1)).collect();
            assert!(wanted.iter().all(|tap| world.taps.contains_key(tap)), "{wanted:?}");
            assert!(world.taps.keys().all(|tap| wanted.contains(tap) || used(tap)), "{wanted:?}");
            assert_eq!(world.ports.len(), world.taps.len());
        });
    }

    /// From nothing, every machine that should run does, and is started once.
    #[test]
    fn from_nothing_each_machine_is_started_once(wishes in wishes()) {
        block_on(async {
            let (_directory, mut agent) = Agent::new();
            let spec = spec(1, &wishes, &[]);
            agent.settle(&spec).await;
            for _ in 0..3 {
                assert!(agent.round(&spec, &mut || None).await.steps.is_empty());
            }
            for wish in wishes {
                let id = machine_id(wish.number);
                assert_eq!(agent.running().get(&id).copied(), wish.running.then_some(true));
                assert_eq!(agent.sim.world().starts.get(&id).copied(), wish.running.then_some(1));
            }
        });
    }
}

fn wish(number: u8) -> Wish {
    Wish { number, running: true, starts: 1, remote: false, cloned: true, port: true, keep_volume: false }
}

#[test]
fn what_cannot_be_seen_is_left_alone_and_the_rest_goes_on() {
    block_on(async {
        let (_directory, mut agent) = Agent::new();
        let wishes = [wish(1), Wish { remote: true, ..wish(2) }];
        agent.settle(&spec(1, &wishes, &[])).await;
        agent.sim.world().switch_down = true;
        agent.sim.world().ceph_down = true;
        agent.sim.world().log.clear();
        // Everything is taken away, and a machine without a port is wanted: only what needs neither switch nor cluster is done.
        let next = spec(2, &[Wish { port: false, ..wish(3) }], &wishes);
        for _ in 0..30 {
            agent.round(&next, &mut || None).await;
        }
        let plan = agent.plan(&next).await;
        assert!(plan.blocked.contains_key(&Lane::Flows) && plan.blocked.contains_key(&Lane::Volume(volume_id(2))));
        assert_eq!(agent.running(), [(machine_id(3), true)].into());
        let world = agent.sim.world();
        assert!(world.volumes.contains_key(&volume_id(2)) && !world.volumes.contains_key(&volume_id(1)));
        assert_eq!(world.ports.len(), 2, "a bridge that cannot be seen is not changed");
    });
}

/// The parts of a specification, with this member of a load balancer, which is checked.
fn with_member(mut parts: SpecParts, about: MemberRef) -> NodeSpec {
    let subnet = serde_json::json!({"id": id(6, 1), "name": "s", "network": id(5, 1), "cidr": "10.0.0.0/24", "gateway": null, "dhcp": false});
    let member = serde_json::json!({"address": about.address, "port": about.port, "weight": 1});
    let balancer = serde_json::json!({"id": about.balancer, "name": "front", "key": 1, "subnet": id(6, 1),
        "address": "10.0.0.100", "mac": "02:04:00:00:00:01", "listeners": [{"protocol": about.protocol,
            "port": about.listener, "persistence": "none", "monitor": Monitor::new(Check::Tcp), "members": [member]}]});
    parts.subnets.push(serde_json::from_value(subnet).unwrap());
    parts.balancers.push(serde_json::from_value(balancer).unwrap());
    NodeSpec::check(parts).unwrap()
}

/// The scheduler is told what health checks found, also while other parts of the host can not be seen.
#[test]
fn what_health_checks_found_is_reported() {
    block_on(async {
        let (_directory, mut agent) = Agent::new();
        let spec = spec(1, &[wish(1)], &[]);
        agent.settle(&spec).await;
        let report = |spec: &NodeSpec, seen| {
            let snapshot =
                Snapshot { spec: Some(Arc::new(spec.clone())), seen: Some(Arc::new(seen)), ..Snapshot::default() };
            crate::report::report(spec.host(), &snapshot, Resources::default())
        };
        let seen = look(&agent.sim, &agent.ledger, &spec).await;
        assert_eq!(report(&spec, seen).members, []);
        let member = MemberRef {
            balancer: BalancerId::from_uuid(id(9, 1)),
            protocol: Transport::Tcp,
            listener: 80,
            address: Ipv4Addr::new(10, 0, 0, 5).into(),
            port: 8080,
        };
        let found = MemberHealth { member, online: false, reason: "connection refused".to_owned() };
        agent.sim.world().health.push(found.clone());
        agent.sim.world().switch_down = true;
        let seen = look(&agent.sim, &agent.ledger, &spec).await;
        assert_eq!(report(&spec, seen.clone()).members, [], "its specification has nobody checked");
        let checked = with_member(parts(1, &[wish(1)], &[]), member);
        let report = report(&checked, seen);
        assert_eq!(report.members, [found]);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    });
}

#[test]
fn a_damaged_record_stops_its_machine_only() {
    block_on(async {
        let (directory, mut agent) = Agent::new();
        agent.settle(&spec(1, &[wish(1), wish(2)], &[])).await;
        let path = directory.path().join("ledger/machines").join(format!("{}.json", machine_id(1)));
        std::fs::write(&path, b"{").unwrap();
        agent.sim.world().log.clear();
        let next = spec(2, &[Wish { running: false, ..wish(1) }, Wish { running: false, ..wish(2) }], &[]);
        for _ in 0..10 {
            agent.round(&next, &mut || None).await;
        }
        let plan = agent.plan(&next).await;
        assert!(plan.blocked[&Lane::Machine(machine_id(1))].message.contains("damaged"));
        assert_eq!(agent.running(), [(machine_id(1), true)].into());
        assert!(path.exists());
    });
}

#[test]
fn a_guest_that_ignores_the_button_is_stopped_by_force_after_the_grace() {
    block_on(async {
        let (_directory, mut agent) = Agent::new();
        agent.sim.world().stubborn.insert(machine_id(1));
        agent.settle(&spec(1, &[wish(1)], &[])).await;
        let next = spec(2, &[Wish { running: false, ..wish(1) }], &[]);
        let begun = agent.now_ms;
        agent.settle(&next).await;
        assert!(agent.now_ms - begun >= 5_000, "not before the grace is over");
        let log = agent.sim.world().log.clone();
        let position = |name| log.iter().position(|done| *done == name).unwrap();
        assert!(position("press") < position("force") && position("force") < position("reap"));
    });
}

#[test]
fn a_machine_that_ended_by_itself_stays_down_until_told_to_start_and_a_reboot_brings_back_what_ran() {
    block_on(async {
        let (_directory, mut agent) = Agent::new();
        let one = spec(1, &[wish(1), wish(2)], &[]);
        agent.settle(&one).await;
        agent.sim.world().processes.get_mut(&machine_id(1)).unwrap().state = vmm::state::State::Crashed;
        agent.settle(&one).await;
        assert_eq!(agent.running(), [(machine_id(2), true)].into());
        // The host goes down and comes back: nothing runs, nothing is in a temporary directory.
        agent.sim.world().processes.clear();
        agent.boot_id = "boot 2".to_owned();
        agent.settle(&one).await;
        assert_eq!(agent.running(), [(machine_id(2), true)].into(), "the crashed one stays down");
        agent.settle(&spec(2, &[Wish { starts: 2, ..wish(1) }, wish(2)], &[])).await;
        assert_eq!(agent.running(), [(machine_id(1), true), (machine_id(2), true)].into());
    });
}

#[test]
fn a_machine_that_lost_its_process_comes_back_a_few_times_and_its_locks_are_in_nobodys_way() {
    block_on(async {
        let (_directory, mut agent) = Agent::new();
        let one = spec(1, &[Wish { remote: true, ..wish(1) }, Wish { remote: true, ..wish(2) }], &[]);
        agent.settle(&one).await;
        let both: BTreeMap<_, _> = [(machine_id(1), true), (machine_id(2), true)].into();
        let untouched = agent.sim.world().processes[&machine_id(2)].clone();
        for loss in 1..=LOSSES_MAX {
            agent.sim.world().processes.remove(&machine_id(1));
            assert_eq!(agent.sim.world().locks.len(), 2, "the lock outlives the process");
            agent.settle(&one).await;
            assert_eq!(agent.running(), both, "after loss {loss}");
            assert_eq!(agent.sim.world().processes[&machine_id(2)], untouched);
        }
        agent.sim.world().processes.remove(&machine_id(1));
        agent.settle(&one).await;
        assert_eq!(agent.running(), [(machine_id(2), true)].into(), "too many: it stays down");
        assert_eq!(agent.sim.world().locks.len(), 1, "and keeps nobody from its volume");
        let again = spec(2, &[Wish { remote: true, starts: 2, ..wish(1) }, Wish { remote: true, ..wish(2) }], &[]);
        agent.settle(&again).await;
        assert_eq!(agent.running(), both, "told to start");
        // Losses long ago do not count, nor does what was counted before it was told to start.
        for _ in 0..=LOSSES_MAX {
            agent.now_ms += LOSSES_WINDOW_MS;
            agent.sim.world().processes.remove(&machine_id(1));
            agent.settle(&again).await;
            assert_eq!(agent.running(), both);
        }
    });
}

#[test]
fn a_silent_vmm_is_neither_doubled_nor_killed() {
    block_on(async {
        let (_directory, mut agent) = Agent::new();
        let spec = spec(1, &[wish(1)], &[]);
        agent.settle(&spec).await;
        let mut seen = look(&agent.sim, &agent.ledger, &spec).await;
        if let Look::Known(machines) = &mut seen.machines
            && let Some(Look::Known(machine)) = machines.get_mut(&machine_id(1))
        {
            machine.process = Process::Silent { why: "test".to_owned() };
        }
        let plan = plan(&spec, &seen, &agent.context());
        assert!(plan.steps.is_empty(), "{:?}", plan.steps);
        assert!(plan.waiting[&Lane::Machine(machine_id(1))].contains("does not answer"));
    });
}

#[test]
fn user_ids_run_out_with_a_clear_problem() {
    block_on(async {
        let (_directory, agent) = Agent::new();
        let spec = spec(1, &[wish(1), wish(2)], &[]);
        let seen = look(&agent.sim, &agent.ledger, &spec).await;
        let plan = plan(&spec, &seen, &Context { uids: 1000..1001, ..agent.context() });
        assert!(matches!(plan.steps[&Lane::Machine(machine_id(1))], Step::RegisterMachine { uid: 1000, .. }));
        assert!(plan.blocked[&Lane::Machine(machine_id(2))].remedy.contains("uid_count"));
    });
}

/// A host that awaits the port of another host's machine: as its specification has it, and, `here`, as it does once the port has come.
fn awaiting(generation: u64, here: bool) -> NodeSpec {
    let mut parts = parts(generation, &[wish(1)], &[]);
    let (other, tunnel) = (HostId::from_uuid(id(0, 2)), Ipv4Addr::new(192, 0, 2, 2));
    (parts.machines, parts.volumes, parts.images) = (Vec::new(), Vec::new(), Vec::new());
    for port in &mut parts.ports {
        if !here {
            port.arriving = Some(Arrival { host: parts.host, tunnel: parts.tunnel, serial: 4 });
            let binding = port.binding.as_mut().unwrap();
            (binding.host, binding.tunnel) = (other, tunnel);
        }
    }
    NodeSpec::check(parts).unwrap()
}

/// The tap is there before the machine is, and nobody may attach to it; called off, nothing of it is left.
#[test]
fn an_awaited_port_has_a_tap_that_nobody_owns() {
    block_on(async {
        let (_directory, mut agent) = Agent::new();
        let plan = agent.settle(&awaiting(1, false)).await;
        assert!(plan.is_settled(), "{plan:?}");
        let tap = |agent: &Agent| agent.sim.world().taps.clone();
        let wired = Tap { owner: Some(0), mtu: 1450, up: true };
        assert_eq!(tap(&agent), [("tap2".to_owned(), wired)].into(), "its sub-port has none");
        assert!(agent.sim.world().ports.contains("tap2"));
        assert!(agent.settle(&awaiting(2, true)).await.is_settled(), "its machine is elsewhere still");
        assert_eq!(tap(&agent), [("tap2".to_owned(), wired)].into());
        let nothing = NodeSpec::empty(Generation(3), awaiting(3, true).host(), Ipv4Addr::LOCALHOST);
        assert!(agent.settle(&nothing).await.is_settled());
        assert_eq!((tap(&agent), agent.sim.world().ports.clone()), Default::default());
    });
}

/// A machine whose port has gone ahead of it runs on, and is not begun anew before the port is back.
#[test]
fn a_machine_waits_for_a_port_that_has_left() {
    block_on(async {
        let (_directory, mut agent) = Agent::new();
        let mut parts = parts(1, &[wish(1)], &[]);
        for port in &mut parts.ports {
            port.binding.as_mut().unwrap().host = HostId::from_uuid(id(0, 2));
        }
        let away = NodeSpec::check(parts).unwrap();
        for _ in 0..10 {
            agent.round(&away, &mut || None).await;
        }
        let waits = agent.plan(&away).await.waiting[&Lane::Machine(machine_id(1))].clone();
        assert!(
            waits.contains("its port p is plugged in on another host: flowctl port bind p brings it back"),
            "{waits}"
        );
        assert_eq!(agent.running(), [].into());

        // Bound back, it is awaited: the machine begins, and its first frame brings the port.
        let mut back = super::tests::parts(2, &[wish(1)], &[]);
        for port in &mut back.ports {
            port.arriving = Some(Arrival { host: back.host, tunnel: back.tunnel, serial: 2 });
            port.binding.as_mut().unwrap().host = HostId::from_uuid(id(0, 2));
        }
        agent.settle(&NodeSpec::check(back).unwrap()).await;
        assert_eq!(agent.running(), [(machine_id(1), true)].into());
    });
}

/// The agent's loop on a simulated host, from what its ledger has, and what it reports.
fn begin(agent: &Agent, spec: Option<&NodeSpec>) -> (Reconciler<Sim>, Receiver<Option<Arc<Report>>>) {
    let config = crate::config::Config::parse("", std::path::Path::new("test")).unwrap();
    let (report, reports) = channel(None);
    let outlets = Outlets { snapshot: channel(Arc::default()).0, report, accepted: channel(Generation(0)).0 };
    if let Some(spec) = spec {
        agent.ledger.keep_spec(spec).unwrap();
    }
    let (sim, ledger) = (Arc::new(agent.sim.clone()), agent.ledger.clone());
    (Reconciler::new(Arc::new(config), sim, ledger, None, outlets).unwrap(), reports)
}

/// What an agent that begins anew reports that came.
async fn comes(agent: &Agent, spec: Option<&NodeSpec>) -> Vec<Arrived> {
    let (mut reconciler, reports) = begin(agent, spec);
    reconciler.turn().await;
    let report = reports.borrow().clone();
    report.unwrap().arrived.clone()
}

/// A port that came is reported, by the next agent on the same host as well; not after the host was restarted, nor once the specification has it here.
#[tokio::test]
async fn a_port_that_came_is_told_until_it_is_known() {
    let (directory, agent) = Agent::new();
    let came = vec![Arrived { port: PortId::from_uuid(id(2, 1)), serial: 4 }];
    let (mut reconciler, reports) = begin(&agent, Some(&awaiting(1, false)));
    reconciler.turn().await;
    assert_eq!(reports.borrow().as_ref().unwrap().arrived, []);
    agent.sim.world().arrived.clone_from(&came);
    reconciler.turn().await;
    let report = reports.borrow().clone().unwrap();
    let text = serde_json::to_string(&*report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap().arrived, came);
    drop(reconciler);

    // Another agent, on a switch driver that knows nothing yet.
    agent.sim.world().arrived.clear();
    assert_eq!(comes(&agent, None).await, came, "after a restart of the agent");
    assert_eq!(agent.sim.world().arrived, came, "and its flows are made from that");
    assert_eq!(comes(&agent, Some(&awaiting(2, true))).await, [], "it is known by now");

    let path = directory.path().join("ledger/arrivals.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace(&boot_id(), "another boot")).unwrap();
    assert_eq!(comes(&agent, Some(&awaiting(3, false))).await, [], "after a restart of the host");
    assert_eq!(agent.sim.world().arrived, []);
}
