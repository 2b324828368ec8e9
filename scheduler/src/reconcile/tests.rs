//! Walks random sequences of requests and reports: every specification checks, a second pass changes nothing, generations only grow, nothing is
//! handed out twice, and a volume is never on two hosts at once. Then the life of a machine, step by step.

use std::collections::{BTreeMap, BTreeSet};

use model::arrival::Arrived;
use model::image::Sha256;
use model::mirror::MirrorPlace;
use model::observed::{MachineState, Observed, Report, Resources, VolumeState};
use model::spec::Generation;
use model::volume::VolumeBackend;
use model::{HostId, MachineId, RouterId, Vni};
use proptest::prelude::{Strategy, any, prop, proptest};
use serde_json::json;
use uuid::Uuid;

use super::reconcile;
use crate::cluster::Cluster;
use crate::config::Defaults;
use crate::evacuate::Evacuation;
use crate::intent::host::Joining;
use crate::intent::image::Content;
use crate::intent::{Context, Intent};
use crate::place::Overcommit;
use crate::refusal::Refusal;

mod binding;

const OVERCOMMIT: Overcommit = Overcommit { vcpus_per_cpu: 8 };

/// A cloud in memory whose hosts do what they are told, at once or not at all.
struct Cloud {
    intent: Intent,
    drawn: u128,
    /// What each host has: machines and volumes, and the generation it accepted.
    hosts: BTreeMap<HostId, Truth>,
    given: Given,
}

#[derive(Default)]
struct Truth {
    report: Option<Report>,
}

/// Everything that was ever handed out.
#[derive(Default)]
struct Given {
    port_keys: BTreeMap<u32, model::PortId>,
    vnis: BTreeMap<u32, model::NetworkId>,
    mirrors: BTreeMap<u32, model::PortId>,
}

impl Cloud {
    fn new() -> Self {
        let mut drawn = 0;
        let mut draw = counter(&mut drawn);
        let defaults = Defaults::default();
        let intent = Intent::found(&mut Context { draw: &mut draw, defaults: &defaults }).unwrap();
        drop(draw);
        Self { intent, drawn, hosts: BTreeMap::new(), given: Given::default() }
    }

    fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Intent, &mut Context<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut after = self.intent.clone();
        let defaults = Defaults::default();
        let mut drawn = self.drawn;
        let mut draw = counter(&mut drawn);
        let answer = change(&mut after, &mut Context { draw: &mut draw, defaults: &defaults });
        drop(draw);
        self.drawn = drawn;
        let answer = answer?;
        crate::bandwidth::check(&self.intent, &after, &self.cluster())?;
        self.intent = after;
        self.reconcile();
        Ok(answer)
    }

    fn cluster(&self) -> Cluster {
        Cluster::of(self.hosts.values().filter_map(|truth| truth.report.clone()))
    }

    fn reconcile(&mut self) {
        let before = self.intent.clone();
        let cluster = self.cluster();
        assert_eq!(reconcile(&mut self.intent, &cluster, OVERCOMMIT), [], "every specification checks");
        let once = self.intent.clone();
        assert_eq!(reconcile(&mut self.intent, &cluster, OVERCOMMIT), []);
        assert_eq!(self.intent, once, "a second pass changes nothing");
        self.check(&before);
    }

    fn check(&mut self, before: &Intent) {
        for (host, assigned) in &self.intent.assigned {
            let (old, new) = (before.generation(*host), assigned.spec.generation());
            assert!(new >= old, "a generation never goes back");
            let same = before.assigned.get(host).is_some_and(|old| old.spec == assigned.spec);
            assert_eq!(new == old, same || !before.assigned.contains_key(host) && new == Generation(0));
        }
        let mut addresses = BTreeSet::new();
        let mut macs = BTreeSet::new();
        for port in self.intent.ports.values() {
            let port = &port.port;
            for fixed in &port.addresses {
                assert!(addresses.insert((fixed.subnet, fixed.address)), "{} is given twice", fixed.address);
                let subnet = &self.intent.subnets[&fixed.subnet];
                assert_ne!(subnet.subnet.gateway, Some(fixed.address), "the gateway is nobody's");
            }
            assert!(macs.insert((port.network, port.mac)), "{} is given twice", port.mac);
            if let Some(vni) = self.intent.ports[&port.id].mirror_vni {
                let first = *self.given.mirrors.entry(vni.get()).or_insert(port.id);
                assert_eq!(first, port.id, "a number for copies is given again");
            }
            let to = port.mirror.map(|mirror| &self.intent.ports[&mirror.to].port);
            assert!(to.is_none_or(|to| to.mirror.is_none()), "what gets copies is copied");
            assert_eq!(*self.given.port_keys.entry(port.key).or_insert(port.id), port.id, "a port key is given again");
        }
        for network in self.intent.networks.values() {
            let first = *self.given.vnis.entry(network.vni.get()).or_insert(network.id);
            assert_eq!(first, network.id, "a VNI is given again");
        }
        let mut volumes = BTreeSet::new();
        let mut machines = BTreeSet::new();
        for assigned in self.intent.assigned.values() {
            for volume in assigned.spec.volumes().keys().chain(assigned.spec.retired_volumes().keys()) {
                assert!(volumes.insert(*volume), "a volume is on two hosts");
            }
            for machine in assigned.spec.machines().keys() {
                assert!(machines.insert(*machine), "a machine is on two hosts");
            }
        }
    }

    fn join(&mut self, name: &str, last: u8) -> HostId {
        let joining = Joining { name: name.to_owned(), tunnel: [192, 0, 2, last].into() };
        let digest = Sha256::new([last; 32]);
        self.change(|intent, context| {
            let id = intent.joining_id(context, &joining)?;
            intent.join(id, joining, digest, jiff::Timestamp::UNIX_EPOCH);
            Ok(id)
        })
        .unwrap()
    }

    /// A host does all that its specification says and reports it.
    fn settle(&mut self, host: HostId) {
        self.settle_with(host, Vec::new());
    }

    /// The same, and ports that it awaited have come.
    fn settle_with(&mut self, host: HostId, arrived: Vec<Arrived>) {
        let Some(assigned) = self.intent.assigned.get(&host) else { return };
        let spec = &assigned.spec;
        let used: BTreeSet<_> =
            spec.machines().values().flat_map(|machine| machine.disks.iter().map(|disk| disk.volume)).collect();
        let volume = |id, state| Observed { id, state, problem: None };
        let wanted = spec
            .volumes()
            .keys()
            .map(|id| volume(*id, if used.contains(id) { VolumeState::InUse } else { VolumeState::Available }));
        let retired = spec.retired_volumes().keys().map(|id| volume(*id, VolumeState::Absent));
        let running = |id: &MachineId| Observed { id: *id, state: MachineState::Running, problem: None };
        let report = Report {
            accepted: spec.generation(),
            settled: spec.generation(),
            volumes: wanted.chain(retired).collect(),
            machines: spec.machines().keys().map(running).collect(),
            arrived,
            ..empty_report(host)
        };
        self.hosts.entry(host).or_default().report = Some(report);
        self.reconcile();
    }

    /// A host reports for the first time, with nothing done yet.
    fn appear(&mut self, host: HostId) {
        self.hosts.entry(host).or_default().report = Some(empty_report(host));
        self.reconcile();
    }

    fn images(&mut self) {
        for (name, kind) in [("vmlinuz", "kernel"), ("initrd", "initrd")] {
            self.image(json!({"name": name, "kind": kind}), 1 << 20);
        }
        self.image(json!({"name": "debian", "kind": "raw", "kernel": "vmlinuz", "initrd": "initrd"}), 100 << 20);
    }

    fn image(&mut self, new: serde_json::Value, bytes: u64) {
        let content = Content { sha256: Sha256::new([1; 32]), size_bytes: bytes, virtual_size_bytes: bytes };
        let name = new["name"].as_str().unwrap().to_owned();
        self.change(|intent, context| intent.create_image(context, read(new))).unwrap();
        self.change(|intent, _| intent.set_content(&name, content)).unwrap();
    }

    fn network(&mut self, name: &str, cidr: &str) -> Result<(), Refusal> {
        let subnet = json!({"name": format!("{name}-a"), "network": name, "cidr": cidr});
        self.change(|intent, context| intent.create_network(context, read(json!({"name": name}))))?;
        self.change(|intent, context| intent.create_subnet(context, read(subnet)))?;
        Ok(())
    }

    fn launch(&mut self, request: serde_json::Value) -> Result<MachineId, Refusal> {
        self.change(|intent, context| intent.launch(context, read(request)))
    }

    fn host_of(&self, vm: MachineId) -> Option<HostId> {
        self.intent.machines[&vm].host
    }
}

fn counter(drawn: &mut u128) -> impl FnMut() -> Uuid + '_ {
    move || {
        *drawn += 1;
        Uuid::from_u128(*drawn)
    }
}

fn read<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn empty_report(host: HostId) -> Report {
    Report {
        host,
        accepted: Generation(0),
        settled: Generation(0),
        resources: Resources {
            cpus: 4,
            memory_mib: 8192,
            storage_mib: 100_000,
            kvm: true,
            rbd: true,
            switch: true,
            physical_networks: BTreeSet::new(),
            bandwidth_kbps: BTreeMap::new(),
            no_snat: false,
            version: "test".to_owned(),
        },
        machines: Vec::new(),
        ports: Vec::new(),
        volumes: Vec::new(),
        images: Vec::new(),
        members: Vec::new(),
        arrived: Vec::new(),
        problems: Vec::new(),
    }
}

#[test]
fn a_machine_waits_for_a_host_then_runs_and_its_data_moves_on_only_when_it_is_gone() {
    let mut cloud = Cloud::new();
    cloud.images();
    cloud.network("blue", "10.1.0.0/24").unwrap();
    cloud
        .change(|intent, context| intent.create_volume(context, read(json!({"name": "data", "size_mib": 64}))))
        .unwrap();
    let launch = |name: &str| {
        json!({"name": name, "flavor": "tiny", "image": "debian", "networks": ["blue"], "disks": ["data"],
               "anti_affinity": "pair"})
    };
    let first = cloud.launch(launch("first")).unwrap();
    let problem = cloud.intent.machines[&first].decision.as_ref().unwrap().problem();
    assert!(problem.contains("no host has joined"), "{problem}");

    let (one, two) = (cloud.join("one", 1), cloud.join("two", 2));
    assert_eq!(cloud.host_of(first), None, "hosts that have not reported take nothing");
    cloud.appear(one);
    assert_eq!(cloud.host_of(first), Some(one), "the machine is placed when a host comes up");
    cloud.appear(two);
    cloud.settle(one);

    let refused = cloud.launch(launch("second")).unwrap_err();
    assert!(refused.to_string().contains("it belongs to vm first"), "{refused}");
    cloud.change(|intent, _| intent.delete_machine("first")).unwrap();
    let spec = &cloud.intent.assigned[&one].spec;
    assert!(spec.machines().is_empty(), "its host is told to end it");
    assert_eq!(spec.volumes().len(), 2, "its volumes stay while it may still have them open");
    let refused = cloud.launch(launch("second")).unwrap_err();
    assert!(refused.to_string().contains("it belongs to vm first"), "its data is not free yet: {refused}");

    // The host has accepted the specification, but the machine is still there: nothing is freed.
    let mut report = cloud.hosts[&one].report.clone().unwrap();
    report.accepted = cloud.intent.generation(one);
    report.machines[0].state = MachineState::Stopping;
    cloud.hosts.get_mut(&one).unwrap().report = Some(report.clone());
    cloud.reconcile();
    assert!(cloud.intent.machines.contains_key(&first));
    report.machines[0].state = MachineState::Unknown;
    cloud.hosts.get_mut(&one).unwrap().report = Some(report);
    cloud.reconcile();
    assert!(cloud.intent.machines.contains_key(&first), "unknown is not absent");

    cloud.settle(one);
    assert!(!cloud.intent.machines.contains_key(&first));
    assert!(cloud.intent.ports.is_empty(), "the port that was made for it is gone");
    let own = cloud.intent.volumes.values().find(|volume| volume.goes_with_vm).unwrap();
    assert!(own.retired, "the volume that was made for it is being deleted");

    let second = cloud.launch(json!({"name": "second", "flavor": "tiny", "image": "debian", "networks": ["blue"],
        "disks": ["data"], "host": "two"}));
    let second = second.unwrap();
    assert_eq!(cloud.host_of(second), Some(two));
    let volumes: Vec<_> = cloud.intent.assigned[&two].spec.volumes().values().map(|it| it.name.clone()).collect();
    assert!(volumes.contains(&"data".to_owned()), "{volumes:?}");
    cloud.settle(one);
    cloud.settle(two);
    assert!(!cloud.intent.volumes.values().any(|volume| volume.retired), "what was retired is forgotten");
}

#[test]
fn a_data_volume_that_is_still_being_made_is_waited_for() {
    let mut cloud = Cloud::new();
    cloud.images();
    let one = cloud.join("one", 1);
    cloud.appear(one);
    cloud.change(|intent, context| intent.create_volume(context, read(json!({"name": "d", "size_mib": 8})))).unwrap();
    let vm =
        cloud.launch(json!({"name": "a", "flavor": "tiny", "disks": ["d"], "boot": {"kernel": "vmlinuz"}})).unwrap();
    assert_eq!(cloud.host_of(vm), None);
    let problem = cloud.intent.machines[&vm].decision.as_ref().unwrap().problem();
    assert!(problem.contains("volume d is still being made by host one"), "{problem}");
    cloud.settle(one);
    assert_eq!(cloud.host_of(vm), Some(one));
}

#[test]
fn two_of_one_anti_affinity_group_land_on_different_hosts_and_a_third_nowhere() {
    let mut cloud = Cloud::new();
    cloud.images();
    for (name, last) in [("one", 1), ("two", 2)] {
        let host = cloud.join(name, last);
        cloud.appear(host);
    }
    let mut launch = |name: &str| {
        let request = json!({"name": name, "flavor": "tiny", "anti_affinity": "web", "boot": {"kernel": "vmlinuz"}});
        let vm = cloud.launch(request).unwrap();
        cloud.host_of(vm)
    };
    let (a, b, c) = (launch("a"), launch("b"), launch("c"));
    assert!(a.is_some() && b.is_some() && a != b);
    assert_eq!(c, None);
}

#[test]
fn a_host_gets_only_what_its_machines_can_reach() {
    let mut cloud = Cloud::new();
    cloud.images();
    let one = cloud.join("one", 1);
    let two = cloud.join("two", 2);
    cloud.appear(one);
    cloud.appear(two);
    for (name, cidr) in [("blue", "10.1.0.0/24"), ("green", "10.2.0.0/24"), ("red", "10.3.0.0/24")] {
        cloud.network(name, cidr).unwrap();
    }
    cloud.change(|intent, context| intent.create_router(context, read(json!({"name": "r"})))).unwrap();
    for subnet in ["blue-a", "green-a"] {
        cloud.change(|intent, _| intent.add_interface("r", &read(json!({"subnet": subnet})))).unwrap();
    }
    for (name, network, host) in [("a", "blue", "one"), ("b", "green", "two"), ("c", "red", "two")] {
        cloud
            .launch(json!({"name": name, "flavor": "tiny", "networks": [network], "host": host,
                "boot": {"kernel": "vmlinuz"}}))
            .unwrap();
    }
    let spec = &cloud.intent.assigned[&one].spec;
    let names: BTreeSet<&str> = spec.network().networks.values().map(|network| network.name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["blue", "green"]), "the router's other side too, but not red");
    assert_eq!(spec.network().ports.len(), 2);
    let remote = spec.network().ports.values().find(|port| !port.is_on(one)).unwrap();
    assert_eq!(remote.binding.as_ref().unwrap().tunnel, std::net::Ipv4Addr::new(192, 0, 2, 2));
    let generation = spec.generation();
    cloud
        .launch(
            json!({"name": "d", "flavor": "tiny", "networks": ["red"], "host": "two", "boot": {"kernel": "vmlinuz"}}),
        )
        .unwrap();
    assert_eq!(cloud.intent.generation(one), generation, "what does not concern a host does not disturb it");
}

#[test]
fn a_dead_host_is_evacuated_by_force_alone_and_only_of_what_can_go() {
    let mut cloud = Cloud::new();
    cloud.images();
    let (one, two) = (cloud.join("one", 1), cloud.join("two", 2));
    cloud.appear(one);
    cloud.appear(two);
    cloud.network("blue", "10.1.0.0/24").unwrap();
    for (name, backend) in [("moves", "rbd"), ("stays", "local"), ("goes", "rbd")] {
        let vm = json!({"name": name, "flavor": "tiny", "image": "debian", "volume_backend": backend, "networks": ["blue"],
            "anti_affinity": name, "host": "one"});
        cloud.launch(vm).unwrap();
    }
    // No longer bound to it by request: only by what they are made of.
    for vm in cloud.intent.machines.values_mut() {
        std::sync::Arc::make_mut(vm).wanted_host = None;
    }
    cloud.settle(one);
    cloud.settle(two);
    let host_of =
        |cloud: &Cloud, name: &str| cloud.intent.machines.values().find(|vm| vm.machine.name == name).map(|vm| vm.host);
    assert_eq!(host_of(&cloud, "moves"), Some(Some(one)));
    cloud.change(|intent, _| intent.delete_machine("goes")).unwrap();
    // The host falls silent.
    cloud.hosts.get_mut(&one).unwrap().report = None;
    cloud.reconcile();
    assert_eq!(host_of(&cloud, "moves"), Some(Some(one)), "silence alone moves nothing");
    assert_eq!(host_of(&cloud, "goes"), Some(Some(one)), "and forgets nothing");
    let cluster = cloud.cluster();
    let evacuate = |cloud: &mut Cloud, name: &str, force: bool| {
        cloud.change(|intent, _| intent.evacuate(&cluster, name, &Evacuation { force }))
    };
    let refusal = evacuate(&mut cloud, "one", false).unwrap_err().to_string();
    assert!(refusal.contains("does not prove") && refusal.contains("say force"), "{refusal}");
    assert!(evacuate(&mut cloud, "two", true).unwrap_err().to_string().contains("it is up"));
    let generation = cloud.intent.generation(one);

    let done = evacuate(&mut cloud, "one", true).unwrap();
    assert_eq!(
        (done.moved.as_slice(), done.forgotten.as_slice()),
        (&["moves".to_owned()][..], &["goes".to_owned()][..])
    );
    assert_eq!(done.left.len(), 1);
    assert!(done.left[0].vm == "stays" && done.left[0].reason.contains("own disk"), "{:?}", done.left);
    assert_eq!(host_of(&cloud, "moves"), Some(Some(two)), "placed anew, and not where it came from");
    assert_eq!((host_of(&cloud, "stays"), host_of(&cloud, "goes")), (Some(Some(one)), None));
    let spec = &cloud.intent.assigned[&one].spec;
    assert!(spec.generation() > generation, "a host that comes back is told to end what was moved");
    assert_eq!(spec.machines().values().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), ["stays"]);
    let volume = |cloud: &Cloud, name: &str| {
        let vm = cloud.intent.machines.values().find(|vm| vm.machine.name == name).unwrap();
        cloud.intent.volumes[&vm.machine.disks[0].volume].keeper
    };
    assert_eq!((volume(&cloud, "moves"), volume(&cloud, "stays")), (Some(two), Some(one)));
    cloud.settle(two);
    cloud.change(|intent, _| intent.delete_machine("stays")).unwrap();
    assert_eq!(evacuate(&mut cloud, "one", true).unwrap().forgotten, ["stays"]);
    // A second pass takes what was retired with the machine.
    evacuate(&mut cloud, "one", true).unwrap();
    cloud.change(|intent, _| intent.delete_host("one")).unwrap();
}

/// An address group goes to the hosts that have a rule that names it, and stays while one does.
#[test]
fn address_groups_go_where_their_rules_do() {
    let mut cloud = Cloud::new();
    cloud.images();
    let hosts = [cloud.join("host0", 1), cloud.join("host1", 2)];
    for (number, host) in hosts.into_iter().enumerate() {
        cloud.appear(host);
        cloud.network(&format!("net{number}"), &format!("10.{number}.0.0/24")).unwrap();
        let group = format!("group{number}");
        cloud.change(|intent, context| intent.create_group(context, read(json!({"name": group})))).unwrap();
        let port = json!({"name": format!("p{number}"), "network": format!("net{number}"), "groups": [group]});
        cloud.change(|intent, context| intent.create_port(context, read(port))).unwrap();
        cloud
            .launch(json!({"name": format!("vm{number}"), "flavor": "tiny", "image": "debian", "volume_backend": "rbd",
                "ports": [format!("p{number}")], "host": format!("host{number}")}))
            .unwrap();
    }
    let list = json!({"name": "office", "addresses": ["192.0.2.0/24", "2001:db8::7"]});
    cloud.change(|intent, context| intent.create_address_group(context, &read(list))).unwrap();
    let told = |cloud: &Cloud| hosts.map(|host| cloud.intent.assigned[&host].spec.network().address_groups.len());
    assert_eq!(told(&cloud), [0, 0], "no rule names it");
    let before = hosts.map(|host| cloud.intent.generation(host));
    let rule = json!({"direction": "ingress", "protocol": "tcp", "port_min": 443, "remote_address_group": "office"});
    cloud.change(|intent, context| intent.add_rule(context, "group0", &read(rule))).unwrap();
    assert_eq!(told(&cloud), [1, 0]);
    let refused = cloud.change(|intent, _| intent.delete_address_group("office")).unwrap_err();
    assert_eq!(refused.to_string(), "address group office is in use by a rule of security group group0");
    let change = json!({"add": ["198.51.100.7"], "remove": ["192.0.2.0/24"]});
    cloud.change(|intent, _| intent.change_address_group("office", &read(change))).unwrap();
    let spec = &cloud.intent.assigned[&hosts[0]].spec;
    let addresses: Vec<String> =
        spec.network().address_groups.values().flat_map(|group| &group.addresses).map(ToString::to_string).collect();
    assert_eq!(addresses, ["2001:db8::7/128", "198.51.100.7/32"]);
    assert!(cloud.intent.generation(hosts[0]) > before[0] && cloud.intent.generation(hosts[1]) == before[1]);
    let rule = cloud.intent.groups.values().find(|group| group.name == "group0").unwrap().rules.last().unwrap().id;
    cloud.change(|intent, _| intent.remove_rule("group0", &rule.to_string())).unwrap();
    cloud.change(|intent, _| intent.delete_address_group("office")).unwrap();
    assert_eq!(told(&cloud), [0, 0]);
}

/// A firewall policy goes to the hosts that have its router, a rule goes in where it is told to and moves no other, and what can not be is refused.
#[test]
fn firewall_policies_go_where_their_routers_do() {
    let mut cloud = Cloud::new();
    cloud.images();
    let hosts = [cloud.join("host0", 1), cloud.join("host1", 2)];
    for (number, host) in hosts.into_iter().enumerate() {
        cloud.appear(host);
        cloud.network(&format!("net{number}"), &format!("10.{number}.0.0/24")).unwrap();
        cloud
            .launch(json!({"name": format!("vm{number}"), "flavor": "tiny", "image": "debian", "volume_backend": "rbd",
                "networks": [format!("net{number}")], "host": format!("host{number}")}))
            .unwrap();
    }
    cloud.change(|intent, context| intent.create_router(context, read(json!({"name": "edge"})))).unwrap();
    cloud.change(|intent, _| intent.add_interface("edge", &read(json!({"subnet": "net0-a"})))).unwrap();
    let policy = json!({"name": "in"});
    cloud.change(|intent, context| intent.create_firewall_policy(context, &read(policy))).unwrap();
    let told = |cloud: &Cloud| hosts.map(|host| cloud.intent.assigned[&host].spec.network().firewall_policies.len());
    assert_eq!(told(&cloud), [0, 0], "no router has it");
    let firewall = json!({"ingress_firewall_policy": "in"});
    cloud.change(|intent, _| intent.set_firewall("edge", &read(firewall))).unwrap();
    assert_eq!(told(&cloud), [1, 0]);
    let refused = cloud.change(|intent, _| intent.delete_firewall_policy("in")).unwrap_err();
    assert_eq!(refused.to_string(), "firewall policy in is in use by router edge");

    let add = |cloud: &mut Cloud, rule: serde_json::Value| {
        let added = cloud.change(|intent, context| intent.add_firewall_rule(context, "in", &read(rule)));
        added.map(drop).map_err(|refusal| refusal.to_string())
    };
    let ranks = |cloud: &Cloud| {
        let spec = cloud.intent.assigned[&hosts[0]].spec.clone();
        let policy = spec.network().firewall_policies.values().next().unwrap().clone();
        policy.rules.into_iter().map(|rule| (rule.name, rule.rank)).collect::<Vec<_>>()
    };
    for name in ["one", "two", "three"] {
        add(&mut cloud, json!({"name": name, "action": "allow", "protocol": "tcp", "destination_port": "80"})).unwrap();
    }
    let before = ranks(&cloud);
    add(&mut cloud, json!({"name": "middle", "action": "deny", "insert_after": "one"})).unwrap();
    add(&mut cloud, json!({"name": "first", "action": "deny", "insert_before": "one"})).unwrap();
    let after = ranks(&cloud);
    assert_eq!(
        after.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["first", "one", "middle", "two", "three"]
    );
    assert!(before.iter().all(|rule| after.contains(rule)), "others stay where they were: {before:?} {after:?}");
    let refusals = [
        (json!({"name": "one", "action": "allow"}), "the name \"one\""),
        (json!({"name": "x", "action": "allow", "ip_version": 5}), "5 is neither 4 nor 6"),
        (json!({"name": "x", "action": "allow", "ip_version": 6, "source_ip_address": "10.0.0.0/8"}), "does not fit"),
        (json!({"name": "x", "action": "allow", "source_ip_address": "10.0.0.1/8"}), "has host bits set"),
        (json!({"name": "x", "action": "allow", "destination_port": "80"}), "has no ports"),
        (
            json!({"name": "x", "action": "allow", "protocol": "tcp", "destination_port": "90:80"}),
            "ends before it starts",
        ),
        (json!({"name": "x", "action": "allow", "protocol": "tcp", "source_port": "web"}), "no range of ports"),
        (json!({"name": "x", "action": "allow", "protocol": "ftp"}), "is not any, tcp, udp, icmp or a number"),
        (json!({"name": "x", "action": "allow", "insert_before": "nobody"}), "nobody"),
        (json!({"name": "x", "action": "allow", "insert_before": "one", "insert_after": "one"}), "insert_before too"),
        (json!({"name": "x y", "action": "allow"}), "is not 1 to 63 letters"),
    ];
    for (rule, words) in refusals {
        let refused = add(&mut cloud, rule.clone()).unwrap_err();
        assert!(refused.contains(words), "{rule}: {refused}");
    }
    let wide = |name: usize| json!({"name": format!("wide{name}"), "action": "allow", "protocol": "udp", "source_port": "1:65534", "destination_port": "1:65534"});
    let refused = (0..20).find_map(|number| add(&mut cloud, wide(number)).err()).unwrap();
    assert!(refused.contains("firewall policy in: its rules up to wide9 take 9"), "{refused}");
    cloud.change(|intent, _| intent.clear_firewall("edge")).unwrap();
    assert_eq!(told(&cloud), [0, 0]);
    cloud.change(|intent, _| intent.delete_firewall_policy("in")).unwrap();
}

/// Two networks with a machine each, on a host each, and a load balancer on the first.
fn balanced() -> (Cloud, [HostId; 2]) {
    let mut cloud = Cloud::new();
    cloud.images();
    let hosts = [cloud.join("host0", 1), cloud.join("host1", 2)];
    for (number, host) in hosts.into_iter().enumerate() {
        cloud.appear(host);
        cloud.network(&format!("net{number}"), &format!("10.{number}.0.0/24")).unwrap();
        cloud
            .launch(json!({"name": format!("vm{number}"), "flavor": "tiny", "image": "debian", "volume_backend": "rbd",
                "networks": [format!("net{number}")], "host": format!("host{number}")}))
            .unwrap();
    }
    make_front(&mut cloud, "10.0.0.100").unwrap();
    let listener = json!({"protocol": "tcp", "port": 80, "session_persistence": "source_ip"});
    cloud.change(|intent, _| intent.add_listener("front", &read(listener))).unwrap();
    (cloud, hosts)
}

fn make_front(cloud: &mut Cloud, address: &str) -> Result<(), String> {
    let name = if address == "10.0.0.100" { "front" } else { "other" };
    let new = json!({"name": name, "subnet": "net0-a", "address": address});
    let made = cloud.change(|intent, context| intent.create_balancer(context, &read(new)));
    made.map(|_| ()).map_err(|refused| refused.to_string())
}

fn add_member(cloud: &mut Cloud, member: serde_json::Value) -> Result<(), String> {
    let added = cloud.change(|intent, _| intent.add_member("front", ("tcp", "80"), &read(member)));
    added.map(|_| ()).map_err(|refused| refused.to_string())
}

/// A load balancer is known to hosts whose ports can reach it, with its members; a member is behind its router.
#[test]
fn a_load_balancer_is_known_where_it_can_be_reached() {
    let (mut cloud, hosts) = balanced();
    let told = |cloud: &Cloud| hosts.map(|host| cloud.intent.assigned[&host].spec.network().balancers.len());
    assert_eq!(told(&cloud), [1, 0], "net1 has no way there");
    let member = || json!({"address": "10.1.0.5", "port": 8080});
    let far = add_member(&mut cloud, member()).unwrap_err();
    assert!(
        far.ends_with("is neither on the network of load balancer front nor in a subnet where a router of that stands"),
        "{far}"
    );
    cloud.change(|intent, context| intent.create_router(context, read(json!({"name": "main"})))).unwrap();
    for subnet in ["net0-a", "net1-a"] {
        cloud.change(|intent, _| intent.add_interface("main", &read(json!({"subnet": subnet})))).unwrap();
    }
    assert_eq!(told(&cloud), [1, 1]);
    add_member(&mut cloud, member()).unwrap();
    let (listener, seat) = (("tcp", "80"), ("10.1.0.5", "8080"));
    cloud.change(|intent, _| intent.change_member("front", listener, seat, &read(json!({"weight": 0})))).unwrap();
    let spec = &cloud.intent.assigned[&hosts[1]].spec;
    let balancer = spec.network().balancers.values().next().unwrap();
    assert_eq!(balancer.listeners[0].members[0].weight, 0);
    cloud.change(|intent, _| intent.remove_member("front", listener, seat)).unwrap();
    let gone = cloud.change(|intent, _| intent.remove_member("front", listener, seat)).unwrap_err();
    assert_eq!(gone.to_string(), "no member of the listener has the name or id \"10.1.0.5 port 8080\"");
    cloud.change(|intent, _| intent.delete_balancer("front")).unwrap();
    assert_eq!(told(&cloud), [0, 0]);
}

/// A limit of connections is told to the hosts that have clients, one that can not be is refused in its own words, and without one nothing is written.
#[test]
fn a_limit_of_connections_reaches_hosts() {
    let (mut cloud, hosts) = balanced();
    let told = |cloud: &Cloud| {
        let spec = &cloud.intent.assigned[&hosts[0]].spec;
        let balancers = serde_json::to_value(&spec.network().balancers).unwrap();
        balancers.as_object().unwrap().values().next().unwrap()["listeners"][0].get("connection_limit").cloned()
    };
    assert_eq!(told(&cloud), None, "as agents from before have it");
    let set = |cloud: &mut Cloud, limit: serde_json::Value| {
        let change = json!({"connection_limit": limit});
        let changed = cloud.change(|intent, _| intent.change_listener("front", ("tcp", "80"), &read(change)));
        changed.map(drop).map_err(|refused| refused.to_string())
    };
    set(&mut cloud, json!(100)).unwrap();
    assert_eq!(told(&cloud), Some(json!(100)));
    let refused = set(&mut cloud, json!(0)).unwrap_err();
    let problem = "load balancer front: its listener on tcp port 80 has a limit of 0 connections, want 1 to 1000, or none for any number";
    assert!(refused.ends_with(problem), "{refused}");
    assert_eq!(told(&cloud), Some(json!(100)));
    set(&mut cloud, json!(null)).unwrap();
    assert_eq!(told(&cloud), None);
    let listener = json!({"protocol": "udp", "port": 53, "connection_limit": 1_001});
    let refused = cloud.change(|intent, _| intent.add_listener("front", &read(listener))).unwrap_err().to_string();
    assert!(refused.contains("connection_limit") && refused.contains("limit of 1001"), "{refused}");
    let missing = serde_json::from_value::<crate::intent::balancer::ListenerChange>(json!({}));
    assert!(missing.is_err(), "no change is none to no limit");
}

/// What the host of a member finds out of it reaches the specification of every host with clients, stays when that host is silent or the scheduler starts again,
/// and is believed of no other host; without a monitor nobody is in error.
#[test]
fn a_verdict_reaches_every_host() {
    let (mut cloud, hosts) = balanced();
    cloud.change(|intent, context| intent.create_router(context, read(json!({"name": "main"})))).unwrap();
    for subnet in ["net0-a", "net1-a"] {
        cloud.change(|intent, _| intent.add_interface("main", &read(json!({"subnet": subnet})))).unwrap();
    }
    let own = cloud.intent.ports.values().find(|it| cloud.intent.networks[&it.port.network].name == "net1").unwrap();
    let address = own.port.addresses[0].address;
    add_member(&mut cloud, json!({"address": address, "port": 8080})).unwrap();
    let told = |cloud: &Cloud| {
        hosts.map(|host| {
            let spec = &cloud.intent.assigned[&host].spec;
            spec.network().balancers.values().next().unwrap().listeners[0].members[0].in_error
        })
    };
    let balancer = *cloud.intent.balancers.keys().next().unwrap();
    let verdict = |online: bool| model::balancer::MemberHealth {
        member: model::balancer::MemberRef {
            balancer,
            protocol: model::balancer::Transport::Tcp,
            listener: 80,
            address,
            port: 8080,
        },
        online,
        reason: "connection refused".to_owned(),
    };
    let say = |cloud: &mut Cloud, host: HostId, found: Vec<model::balancer::MemberHealth>| {
        let accepted = cloud.intent.generation(host);
        let report = cloud.hosts.get_mut(&host).unwrap().report.as_mut().unwrap();
        (report.members, report.accepted) = (found, accepted);
        cloud.reconcile();
    };
    say(&mut cloud, hosts[1], vec![verdict(false)]);
    assert_eq!(told(&cloud), [false, false], "nobody is checked");
    say(&mut cloud, hosts[1], Vec::new());
    set(&mut cloud, monitor(json!({}))).unwrap();
    say(&mut cloud, hosts[0], vec![verdict(false)]);
    assert_eq!(told(&cloud), [false, false], "the member is not on that host");
    say(&mut cloud, hosts[0], Vec::new());
    let before = hosts.map(|host| cloud.intent.generation(host));
    say(&mut cloud, hosts[1], vec![verdict(false)]);
    assert_eq!(told(&cloud), [true, true]);
    assert!(hosts.iter().zip(before).all(|(host, before)| cloud.intent.generation(*host) == Generation(before.0 + 1)));
    say(&mut cloud, hosts[1], Vec::new());
    cloud.hosts.get_mut(&hosts[1]).unwrap().report = None;
    cloud.reconcile();
    assert_eq!(told(&cloud), [true, true], "as it was known last");
    cloud.appear(hosts[1]);
    cloud.hosts.get_mut(&hosts[1]).unwrap().report.as_mut().unwrap().members = vec![verdict(true)];
    cloud.reconcile();
    assert_eq!(told(&cloud), [true, true], "the host does not know yet what it was given last");
    cloud.appear(hosts[1]);
    say(&mut cloud, hosts[1], vec![verdict(true)]);
    assert_eq!(told(&cloud), [false, false]);
    say(&mut cloud, hosts[1], vec![verdict(false)]);
    set(&mut cloud, monitor(json!({"admin_state_up": false}))).unwrap();
    assert_eq!(told(&cloud), [false, false], "checked no more");
    cloud.change(|intent, _| intent.remove_monitor("front", ("tcp", "80"))).unwrap();
    assert_eq!(told(&cloud), [false, false]);
}

/// A port of another tenant with the address of a member says nothing for it, and a verdict that was cleared is not taken again from the report on file.
#[test]
fn a_verdict_is_believed_of_the_host_of_the_member_alone() {
    let (mut cloud, hosts) = balanced();
    cloud.network("twin", "10.0.0.0/24").unwrap();
    let own = cloud.intent.ports.values().find(|it| cloud.intent.networks[&it.port.network].name == "net0").unwrap();
    let address = own.port.addresses[0].address;
    let twin = json!({"name": "twin", "network": "twin", "addresses": [{"address": address}]});
    cloud.change(|intent, context| intent.create_port(context, read(twin))).unwrap();
    let vm = json!({"name": "twin", "flavor": "tiny", "image": "debian", "volume_backend": "rbd", "ports": ["twin"], "host": "host1"});
    cloud.launch(vm).unwrap();
    add_member(&mut cloud, json!({"address": address, "port": 8080})).unwrap();
    set(&mut cloud, monitor(json!({}))).unwrap();
    let balancer = *cloud.intent.balancers.keys().next().unwrap();
    let found = || model::balancer::MemberHealth {
        member: model::balancer::MemberRef {
            balancer,
            protocol: model::balancer::Transport::Tcp,
            listener: 80,
            address,
            port: 8080,
        },
        online: false,
        reason: "connection refused".to_owned(),
    };
    let in_error = |cloud: &Cloud| cloud.intent.balancers.values().next().unwrap().listeners[0].members[0].in_error;
    for (host, wanted) in [(hosts[1], false), (hosts[0], true)] {
        let accepted = cloud.intent.generation(host);
        let report = cloud.hosts.get_mut(&host).unwrap().report.as_mut().unwrap();
        (report.members, report.accepted) = (vec![found()], accepted);
        cloud.reconcile();
        assert_eq!(in_error(&cloud), wanted);
    }
    cloud.change(|intent, _| intent.remove_monitor("front", ("tcp", "80"))).unwrap();
    set(&mut cloud, monitor(json!({}))).unwrap();
    cloud.reconcile();
    assert!(!in_error(&cloud), "what was found before it was cleared is over");
}

/// A member whose machine does not run is in error, whatever its host said of it before, and back when its host has found it well; so is one on a host that is
/// silent, while another serves. Where nobody is checked nothing is known of anybody.
#[test]
fn who_can_not_serve_is_in_error() {
    let (mut cloud, hosts) = balanced();
    cloud.change(|intent, context| intent.create_router(context, read(json!({"name": "main"})))).unwrap();
    for subnet in ["net0-a", "net1-a"] {
        cloud.change(|intent, _| intent.add_interface("main", &read(json!({"subnet": subnet})))).unwrap();
    }
    let address = |cloud: &Cloud, network: &str| {
        let mut ports = cloud.intent.ports.values();
        let own = ports.find(|it| cloud.intent.networks[&it.port.network].name == network).unwrap();
        own.port.addresses[0].address
    };
    let addresses = ["net0", "net1"].map(|network| address(&cloud, network));
    for address in addresses {
        add_member(&mut cloud, json!({"address": address, "port": 8080})).unwrap();
    }
    let told = |cloud: &Cloud| {
        let of = |host: HostId| cloud.intent.assigned[&host].spec.network().balancers.values().next().unwrap().clone();
        let members = hosts.map(|host| of(host).listeners[0].members.iter().map(|it| it.in_error).collect::<Vec<_>>());
        assert_eq!(members[0], members[1], "all hosts are told the same");
        [members[0][0], members[0][1]]
    };
    let balancer = *cloud.intent.balancers.keys().next().unwrap();
    let well = |at: usize| {
        let (protocol, address) = (model::balancer::Transport::Tcp, addresses[at]);
        let member = model::balancer::MemberRef { balancer, protocol, listener: 80, address, port: 8080 };
        vec![model::balancer::MemberHealth { member, online: true, reason: "answers".to_owned() }]
    };
    let say = |cloud: &mut Cloud, at: usize, state: MachineState, found: Vec<model::balancer::MemberHealth>| {
        cloud.settle(hosts[at]);
        let report = cloud.hosts.get_mut(&hosts[at]).unwrap().report.as_mut().unwrap();
        (report.members, report.machines[0].state) = (found, state);
        cloud.reconcile();
    };
    let running = |cloud: &mut Cloud| {
        for at in [0, 1] {
            say(cloud, at, MachineState::Running, well(at));
            // And as one that was given the last generation.
            say(cloud, at, MachineState::Running, well(at));
        }
    };
    running(&mut cloud);
    say(&mut cloud, 0, MachineState::Stopped, Vec::new());
    assert_eq!(told(&cloud), [false, false], "nobody is checked");
    running(&mut cloud);
    set(&mut cloud, monitor(json!({}))).unwrap();
    running(&mut cloud);
    for state in [MachineState::Stopped, MachineState::Crashed, MachineState::Starting, MachineState::Absent] {
        say(&mut cloud, 0, state, well(0));
        assert_eq!(told(&cloud), [true, false], "it was well before");
        say(&mut cloud, 0, MachineState::Running, Vec::new());
        assert_eq!(told(&cloud), [true, false], "it runs, and has not been asked");
        running(&mut cloud);
        assert_eq!(told(&cloud), [false, false]);
    }
    say(&mut cloud, 0, MachineState::Unknown, Vec::new());
    assert_eq!(told(&cloud), [false, false], "what can not be seen says nothing");
    cloud.change(|intent, _| intent.stop_machine("vm1")).unwrap();
    assert_eq!(told(&cloud), [false, true], "it is to be shut down");
    cloud.change(|intent, _| intent.start_machine("vm1")).unwrap();
    running(&mut cloud);
    cloud.hosts.get_mut(&hosts[1]).unwrap().report = None;
    cloud.reconcile();
    assert_eq!(told(&cloud), [false, true], "a host is silent, and another member serves");
    running(&mut cloud);
    assert_eq!(told(&cloud), [false, false]);
    for host in hosts {
        cloud.hosts.get_mut(&host).unwrap().report = None;
    }
    cloud.reconcile();
    assert_eq!(told(&cloud), [false, false], "all hosts are silent: that is no proof of anything");
}

/// A monitor for HTTP, but for what is said otherwise.
fn monitor(more: serde_json::Value) -> crate::intent::health::NewHealthMonitor {
    let mut monitor = json!({"type": "HTTP", "expected_codes": "200-299"});
    monitor.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    read(monitor)
}

fn set(cloud: &mut Cloud, new: crate::intent::health::NewHealthMonitor) -> Result<(), String> {
    let set = cloud.change(|intent, _| intent.set_monitor("front", ("tcp", "80"), &new));
    set.map(|_| ()).map_err(|refused| refused.to_string())
}

/// What a health monitor can not be is said in words, with the field; what is not said has a value that fits.
#[test]
fn what_a_health_monitor_can_not_be_is_refused() {
    let (mut cloud, _) = balanced();
    for (wrong, problem) in [
        (json!({"type": "HTTPS"}), "type: \"HTTPS\" is none of the types TCP, HTTP, PING and UDP-CONNECT"),
        (
            json!({"type": "UDP-CONNECT", "expected_codes": null}),
            "type: a member that is given connections of tcp can not be checked by UDP-CONNECT",
        ),
        (json!({"delay": 2, "timeout": 3}), "timeout: its timeout is 3 s, want 1 to the delay of 2 s"),
        (json!({"delay": 100, "timeout": 61}), "timeout: its timeout is 61 s, want 60 at most"),
        (json!({"delay": 0}), "delay: its delay is 0 s, want 1 to 3600"),
        (json!({"max_retries_down": 11}), "max_retries_down: its max_retries_down is 11, want 1 to 10"),
        (json!({"url_path": "index"}), "url_path: \"index\" is no path of a request"),
        (json!({"http_method": "POST"}), "http_method: \"POST\" is none of the methods GET and HEAD"),
        (json!({"type": "PING"}), "expected_codes: a check by PING requests nothing"),
    ] {
        let refused = set(&mut cloud, monitor(wrong)).unwrap_err();
        assert!(refused.starts_with(problem), "{refused}");
    }
    set(&mut cloud, monitor(json!({"delay": 2}))).unwrap();
    let kept = |cloud: &Cloud| cloud.intent.balancers.values().next().unwrap().listeners[0].monitor.clone();
    assert_eq!(kept(&cloud).map(|it| (it.delay_seconds, it.timeout_seconds)), Some((2, 2)));
    cloud.change(|intent, _| intent.remove_monitor("front", ("tcp", "80"))).unwrap();
    assert_eq!(kept(&cloud), None);
}

/// Its address is one of its subnet and nobody else's, a subnet that has one stays, and what a listener or a member can not be is said in words.
#[test]
fn what_a_load_balancer_can_not_be_is_refused() {
    let (mut cloud, _) = balanced();
    let addresses = cloud.intent.ports.values().flat_map(|it| &it.port.addresses).map(|it| it.address.to_string());
    let taken = addresses.into_iter().find(|address| address.starts_with("10.0.")).unwrap();
    for (address, problem) in [
        ("10.9.0.9", "address: 10.9.0.9 is no host address of 10.0.0.0/24".to_owned()),
        (taken.as_str(), format!("the address {taken} is taken by port ")),
        ("10.0.0.1", "address: 10.0.0.1 is the gateway of the subnet".to_owned()),
    ] {
        let refused = make_front(&mut cloud, address).unwrap_err();
        assert!(refused.starts_with(&problem), "{refused}");
    }
    let port = json!({"name": "late", "network": "net0", "addresses": [{"address": "10.0.0.100"}]});
    let refused = cloud.change(|intent, context| intent.create_port(context, read(port))).unwrap_err();
    assert_eq!(refused.to_string(), "the address 10.0.0.100 is taken by load balancer front");
    for (protocol, problem) in
        [("tcp", "tcp port 80 is taken by load balancer front"), ("sctp", "protocol: \"sctp\" is not tcp or udp")]
    {
        let new = json!({"protocol": protocol, "port": 80});
        let refused = cloud.change(|intent, _| intent.add_listener("front", &read(new))).unwrap_err();
        assert_eq!(refused.to_string(), problem);
    }
    add_member(&mut cloud, json!({"address": "10.0.0.7"})).unwrap();
    for (member, problem) in [
        (json!({"address": "fd00::5"}), "its member fd00::5 is of another version of IP than 10.0.0.100"),
        (
            json!({"address": "10.0.0.5", "weight": 257}),
            "weight: load balancer front: its member 10.0.0.5 port 80 has weight 257",
        ),
        (json!({"address": "10.0.0.100"}), "10.0.0.100 is the load balancer itself"),
        (json!({"address": "10.0.0.7"}), "member 10.0.0.7 port 80 is taken by load balancer front"),
    ] {
        let refused = add_member(&mut cloud, member).unwrap_err();
        assert!(refused.contains(problem), "{refused}");
    }
    let full = cloud.change(|intent, _| {
        let front = intent.balancers.values().next().cloned().unwrap();
        for number in 0..4_u8 {
            let mut more = (*front).clone();
            more.id = model::BalancerId::from_uuid(uuid::Uuid::from_u128(900 + u128::from(number)));
            (more.name, more.key) = (format!("full{number}"), 1000 + u16::from(number));
            more.address = std::net::Ipv4Addr::new(10, 0, 0, 200 + number).into();
            more.mac = model::Mac::new([2, 4, 9, 0, 0, number]);
            let seat = more.listeners[0].members[0];
            let count = if number == 0 { 255 } else { 256 };
            more.listeners[0].members = (1..=256).map(|port| model::balancer::Member { port, ..seat }).collect();
            let whole = more.listeners[0].clone();
            more.listeners = (1..=4).map(|port| model::balancer::Listener { port, ..whole.clone() }).collect();
            more.listeners[0].members.truncate(count);
            intent.balancers.insert(more.id, std::sync::Arc::new(more));
        }
        Ok(())
    });
    full.unwrap();
    let refused = add_member(&mut cloud, json!({"address": "10.0.0.8"})).unwrap_err();
    let problem =
        "load balancer front: those of its network have 4096 members together, more are not to be had: take some away";
    assert!(refused.contains(problem), "{refused}");
    let lone = json!({"name": "lone", "network": "net0", "cidr": "10.7.0.0/24"});
    cloud.change(|intent, context| intent.create_subnet(context, read(lone))).unwrap();
    let other = json!({"name": "other", "subnet": "lone"});
    cloud.change(|intent, context| intent.create_balancer(context, &read(other))).unwrap();
    let stays = cloud.change(|intent, _| intent.delete_subnet("lone")).unwrap_err();
    assert_eq!(stays.to_string(), "subnet lone is in use by load balancer other");
}

/// A host is promised no more of its link to a physical network than that carries: a machine goes where its ports' minimums fit, and a port of one that is
/// placed gets none that does not, nor does a sub-port. What is promised stays when a host says less later.
#[test]
fn minimums_are_kept_where_the_link_has_room() {
    let mut cloud = Cloud::new();
    cloud.images();
    let provider = json!({"network_type": "vlan", "physical_network": "dc", "segmentation_id": 100});
    let outside = json!({"name": "outside", "mtu": 1450, "provider": provider});
    cloud.change(|intent, context| intent.create_network(context, read(outside))).unwrap();
    let subnet = json!({"name": "out", "network": "outside", "cidr": "203.0.113.0/24"});
    cloud.change(|intent, context| intent.create_subnet(context, read(subnet))).unwrap();
    cloud.network("blue", "10.1.0.0/24").unwrap();
    let port = |cloud: &mut Cloud, name: &str, network: &str, qos: serde_json::Value| {
        let new = json!({"name": name, "network": network, "qos": qos});
        cloud.change(|intent, context| intent.create_port(context, read(new))).map_err(|refusal| refusal.to_string())
    };
    let min = |kbps: u32| json!({"egress_min_kbps": kbps});
    let set = |cloud: &mut Cloud, name: &str, kbps: u32| {
        let change = json!({"qos": {"egress_min_kbps": kbps}});
        cloud.change(|intent, _| intent.change_port(name, &read(change))).map_err(|refusal| refusal.to_string())
    };
    assert_eq!(port(&mut cloud, "x", "blue", min(5)).unwrap_err(), {
        "qos.egress_min_kbps: network blue is no provider network: minimums are kept on links to physical networks, not in tunnels between hosts"
    });
    let more = json!({"egress_min_kbps": 2000, "egress": {"kbps": {"rate": 1000}}});
    assert_eq!(port(&mut cloud, "x", "outside", more).unwrap_err(), {
        "qos.egress_min_kbps: 2000 are more than the 1000 that it may send at most"
    });
    for (name, kbps) in [("a", 1500), ("b", 600), ("c", 600)] {
        port(&mut cloud, name, "outside", min(kbps)).unwrap();
    }
    let tells = |cloud: &mut Cloud, host: HostId, kbps: Option<u32>| {
        let mut report = empty_report(host);
        report.resources.physical_networks.insert("dc".parse().unwrap());
        let kbps = kbps.and_then(std::num::NonZeroU32::new).map(|kbps| ("dc".parse().unwrap(), kbps));
        report.resources.bandwidth_kbps.extend(kbps);
        cloud.hosts.entry(host).or_default().report = Some(report);
        cloud.reconcile();
    };
    let (one, two, none) = (cloud.join("one", 1), cloud.join("two", 2), cloud.join("none", 3));
    for (host, kbps) in [(one, Some(2000)), (two, Some(1000)), (none, None)] {
        tells(&mut cloud, host, kbps);
    }
    let vm = |port: &str| json!({"name": format!("vm-{port}"), "flavor": "tiny", "image": "debian", "ports": [port]});
    let [a, b, c] = ["a", "b", "c"].map(|port| cloud.launch(vm(port)).unwrap());
    assert_eq!([cloud.host_of(a), cloud.host_of(b), cloud.host_of(c)], [Some(one), Some(two), None]);
    let problem = cloud.intent.machines[&c].decision.as_ref().unwrap().problem();
    for told in [
        "one: 500 of 2000 kbit/s of physical network dc are left, 600 are needed",
        "two: 400 of 1000 kbit/s of physical network dc are left, 600 are needed",
        "none: it keeps no minimum bandwidth on physical network dc",
    ] {
        assert!(problem.contains(told), "{problem}");
    }
    set(&mut cloud, "c", 450).unwrap();
    assert_eq!(cloud.host_of(c), Some(one));

    let refused = "port a: it is on host one, where 1550 of 2000 kbit/s of physical network dc are free, less than the 1600 wanted";
    assert_eq!(set(&mut cloud, "a", 1600).unwrap_err(), refused);
    set(&mut cloud, "a", 1550).unwrap();
    let parent = json!({"parent": "b", "vlan": 7});
    let sub =
        |kbps: u32| json!({"name": "sub", "network": "outside", "trunk": parent, "qos": {"egress_min_kbps": kbps}});
    let make = |cloud: &mut Cloud, kbps: u32| {
        cloud.change(|intent, context| intent.create_port(context, read(sub(kbps)))).map_err(|it| it.to_string())
    };
    let refused = make(&mut cloud, 401).unwrap_err();
    assert!(refused.starts_with("port sub: it is on host two, where 400 of 1000 kbit/s"), "{refused}");
    make(&mut cloud, 400).unwrap();

    tells(&mut cloud, one, None);
    assert_eq!((cloud.host_of(a), cloud.host_of(c)), (Some(one), Some(one)), "what is placed stays");
    set(&mut cloud, "a", 1000).unwrap();
    let refused = set(&mut cloud, "a", 1001).unwrap_err();
    assert!(
        refused.starts_with("port a: it is on host one, which keeps no minimum bandwidth on physical network dc"),
        "{refused}"
    );
}

/// A sub-port is where its parent is, also once that moves, and only hosts that are wired for both take the machine. A parent that has one stays, with its
/// machine where it would go with that; a sub-port goes at any time.
#[test]
fn a_sub_port_is_where_its_parent_is() {
    let mut cloud = Cloud::new();
    cloud.images();
    let provider = json!({"network_type": "vlan", "physical_network": "dc", "segmentation_id": 100});
    let outside = json!({"name": "outside", "mtu": 1450, "provider": provider});
    cloud.change(|intent, context| intent.create_network(context, read(outside))).unwrap();
    let subnet = json!({"name": "out", "network": "outside", "cidr": "203.0.113.0/24"});
    cloud.change(|intent, context| intent.create_subnet(context, read(subnet))).unwrap();
    cloud.network("blue", "10.1.0.0/24").unwrap();
    let port = |cloud: &mut Cloud, new: serde_json::Value| {
        cloud.change(|intent, context| intent.create_port(context, read(new)))
    };
    let sub = |name: &str, parent: &str, vlan: u16| json!({"name": name, "network": "outside", "trunk": {"parent": parent, "vlan": vlan}});
    let parent = port(&mut cloud, json!({"name": "parent", "network": "blue"})).unwrap();
    let child = port(&mut cloud, sub("child", "parent", 7)).unwrap();
    let (one, two) = (cloud.join("one", 1), cloud.join("two", 2));
    cloud.appear(one);
    let vm = cloud.launch(json!({"name": "vm", "flavor": "tiny", "image": "debian", "ports": ["parent"]})).unwrap();
    let problem = cloud.intent.machines[&vm].decision.as_ref().unwrap().problem();
    assert!(problem.contains("dc"), "{problem}");
    let mut report = empty_report(two);
    report.resources.physical_networks.insert("dc".parse().unwrap());
    cloud.hosts.entry(two).or_default().report = Some(report);
    cloud.reconcile();
    assert_eq!(cloud.host_of(vm), Some(two), "wired for the sub-port");
    let spec = &cloud.intent.assigned[&two].spec;
    let ports = &spec.network().ports;
    assert_eq!(ports[&child].binding, ports[&parent].binding);
    assert_eq!((ports[&child].tap_port(), ports[&child].tag().map(|vlan| vlan.get())), (parent, Some(7)));
    assert_eq!(spec.machines()[&vm].ports, [parent], "the machine has one interface");

    // One of a machine that runs comes and goes with nothing else.
    let late = port(&mut cloud, sub("late", "parent", 8)).unwrap();
    assert!(cloud.intent.assigned[&two].spec.network().ports[&late].is_on(two));
    cloud.change(|intent, _| intent.delete_port("late")).unwrap();
    assert!(!cloud.intent.assigned[&two].spec.network().ports.contains_key(&late));

    let own = cloud.launch(json!({"name": "own", "flavor": "tiny", "image": "debian", "networks": ["blue"]})).unwrap();
    let made = cloud.intent.machines[&own].machine.ports[0].to_string();
    port(&mut cloud, sub("guest", &made, 9)).unwrap();
    let refused = cloud.change(|intent, _| intent.delete_machine("own")).unwrap_err().to_string();
    assert!(refused.contains("which goes with the vm, is in use by sub-port guest"), "{refused}");
    cloud.change(|intent, _| intent.delete_port("guest")).unwrap();
    cloud.change(|intent, _| intent.delete_machine("own")).unwrap();

    cloud.change(|intent, _| intent.delete_machine("vm")).unwrap();
    let refused = port(&mut cloud, sub("late", "parent", 8)).unwrap_err().to_string();
    assert!(refused.contains("its vm vm is being deleted"), "{refused}");
    for _ in 0..3 {
        cloud.settle(two);
    }
    assert!(cloud.intent.ports[&child].port.binding.is_none() && !cloud.intent.machines.contains_key(&vm));
    let refused = cloud.change(|intent, _| intent.delete_port("parent")).unwrap_err().to_string();
    assert_eq!(refused, "port parent is in use by sub-port child");
    cloud.change(|intent, _| intent.delete_port("child")).unwrap();
    cloud.change(|intent, _| intent.delete_port("parent")).unwrap();
}

/// Hosts are told where copies go and nothing else of mirrors, also once who gets them moves; a mirror that cannot be is refused with the ports that stand
/// in its way; the number of who gets copies is never another's.
#[test]
fn copies_follow_who_gets_them() {
    let mut cloud = Cloud::new();
    cloud.images();
    for (name, cidr) in [("blue", "10.1.0.0/24"), ("watch", "10.2.0.0/24")] {
        cloud.network(name, cidr).unwrap();
    }
    let port = |cloud: &mut Cloud, new: serde_json::Value| {
        cloud.change(|intent, context| intent.create_port(context, read(new)))
    };
    let set = |cloud: &mut Cloud, name: &str, mirror: serde_json::Value| {
        cloud.change(|intent, _| intent.change_port(name, &read(json!({"mirror": mirror}))))
    };
    let eye = port(&mut cloud, json!({"name": "eye", "network": "watch"})).unwrap();
    let mirror = json!({"to": "eye", "direction": "out"});
    let web = port(&mut cloud, json!({"name": "web", "network": "blue", "mirror": mirror})).unwrap();
    port(&mut cloud, json!({"name": "near", "network": "blue"})).unwrap();
    let (one, two) = (cloud.join("one", 1), cloud.join("two", 2));
    for host in [one, two] {
        cloud.appear(host);
    }
    let launch = |cloud: &mut Cloud, name: &str, port: &str, host: &str| {
        let new = json!({"name": name, "flavor": "tiny", "image": "debian", "ports": [port], "host": host});
        cloud.launch(new).unwrap()
    };
    launch(&mut cloud, "vm-web", "web", "one");
    launch(&mut cloud, "vm-near", "near", "two");
    let network = |cloud: &Cloud, host: HostId| cloud.intent.assigned[&host].spec.network().clone();
    let (here, there) = (network(&cloud, one), network(&cloud, two));
    let first = *Vni::MIRRORS.start();
    assert_eq!((here.mirrors[&eye].vni.get(), here.mirrors[&eye].place), (first, None), "nobody has the port yet");
    assert!(here.ports[&web].mirror.is_some() && !here.ports.contains_key(&eye), "nothing else is told of eye");
    assert!(there.ports[&web].mirror.is_none() && there.mirrors.is_empty(), "no copy is made there");

    let vm = launch(&mut cloud, "vm-eye", "eye", "two");
    let place = MirrorPlace { host: two, tunnel: [192, 0, 2, 2].into() };
    assert_eq!(network(&cloud, one).mirrors[&eye].place, Some(place));
    let from = MirrorPlace { host: one, tunnel: [192, 0, 2, 1].into() };
    let target = network(&cloud, two).mirrors[&eye].clone();
    assert_eq!((target.place, target.senders), (Some(place), vec![from]), "it takes in what one sends");
    assert_eq!(network(&cloud, one).mirrors[&eye].senders, []);

    let refused =
        |cloud: &mut Cloud, port: &str, to: &str| set(cloud, port, json!({"to": to})).unwrap_err().to_string();
    assert_eq!(refused(&mut cloud, "near", "near"), "port near: it can not be mirrored to itself: name another port");
    let chained = "port web: it is mirrored itself, to port eye, so it can get no copies: mirror to eye, or end that mirror first";
    assert_eq!(refused(&mut cloud, "near", "web"), chained);
    assert_eq!(
        refused(&mut cloud, "eye", "near"),
        "port eye: it gets copies of port web, so it can not be mirrored to near: end that mirror first"
    );
    let wrong = set(&mut cloud, "near", json!({"to": "eye", "direction": "up"})).unwrap_err().to_string();
    assert_eq!(wrong, "mirror.direction: read the direction of a mirror from \"up\": want in, out or both");
    let stays = cloud.change(|intent, _| intent.delete_port("eye")).unwrap_err().to_string();
    assert_eq!(stays, "port eye is in use by the mirror of port web, vm vm-eye");

    // Other changes keep the mirror; null ends it, and the number stays with eye.
    cloud.change(|intent, _| intent.change_port("web", &read(json!({"port_security": false})))).unwrap();
    assert!(network(&cloud, one).ports[&web].mirror.is_some());
    set(&mut cloud, "web", json!(null)).unwrap();
    assert!(network(&cloud, one).mirrors.is_empty() && network(&cloud, two).mirrors.is_empty());
    set(&mut cloud, "near", json!({"to": "web"})).unwrap();
    assert_eq!(network(&cloud, two).mirrors[&web].vni.get(), first + 1);
    set(&mut cloud, "near", json!({"to": "eye", "direction": "in"})).unwrap();
    assert_eq!(network(&cloud, two).mirrors[&eye].vni.get(), first);
    assert!(network(&cloud, one).mirrors.is_empty());

    cloud.change(|intent, _| intent.delete_machine("vm-eye")).unwrap();
    let late = set(&mut cloud, "web", json!({"to": "eye"})).unwrap_err().to_string();
    assert_eq!(late, "port eye: its vm vm-eye is being deleted");
    for _ in 0..3 {
        cloud.settle(two);
    }
    assert!(!cloud.intent.machines.contains_key(&vm));
    assert_eq!(network(&cloud, two).mirrors[&eye].place, None, "the port stays, and is nowhere");

    // What goes with its machine takes a mirror within the machine along, and stays while others are mirrored to it.
    let own = json!({"name": "own", "flavor": "tiny", "image": "debian", "networks": ["blue", "watch"]});
    let own = cloud.launch(own).unwrap();
    let [blue, watch] = cloud.intent.machines[&own].machine.ports[..] else { panic!("two ports") };
    set(&mut cloud, &blue.to_string(), json!({"to": watch.to_string()})).unwrap();
    set(&mut cloud, "web", json!({"to": watch.to_string()})).unwrap();
    let stays = cloud.change(|intent, _| intent.delete_machine("own")).unwrap_err().to_string();
    assert!(stays.ends_with("which goes with the vm, is in use by the mirror of port web"), "{stays}");
    set(&mut cloud, "web", json!(null)).unwrap();
    cloud.change(|intent, _| intent.delete_machine("own")).unwrap();
}

/// A router's address of IPv6 outside has a host that is up and wired, which is told of the router and all ports behind it; machines whose addresses are routed are
/// placed on hosts that are wired.
#[test]
fn a_router_is_led_out_by_ipv6() {
    let mut cloud = Cloud::new();
    let provider = json!({"network_type": "vlan", "physical_network": "dc", "segmentation_id": 100});
    let outside = json!({"name": "outside", "provider": provider, "routed_prefixes": ["2001:db8:100::/40"]});
    cloud.change(|intent, context| intent.create_network(context, read(outside))).unwrap();
    cloud.network("blue", "10.1.0.0/24").unwrap();
    for (name, network, cidr) in [("out6", "outside", "2001:db8:ffff::/64"), ("in6", "blue", "2001:db8:100:1::/64")] {
        let subnet = json!({"name": name, "network": network, "cidr": cidr});
        cloud.change(|intent, context| intent.create_subnet(context, read(subnet))).unwrap();
    }
    let id = cloud.change(|intent, context| intent.create_router(context, read(json!({"name": "r"})))).unwrap();
    cloud.change(|intent, _| intent.add_interface("r", &read(json!({"subnet": "in6"})))).unwrap();
    cloud.change(|intent, _| intent.set_ipv6_gateway("r", &read(json!({"subnet": "out6"})))).unwrap();
    let hosts: Vec<HostId> = ["one", "two"].iter().zip(1..).map(|(name, last)| cloud.join(name, last)).collect();
    let [one, two] = hosts[..] else { panic!("two hosts") };
    for (host, is_wired) in [(one, false), (two, true)] {
        let mut report = empty_report(host);
        report.resources.physical_networks.extend(is_wired.then(|| "dc".parse().unwrap()));
        cloud.hosts.entry(host).or_default().report = Some(report);
    }
    cloud.reconcile();
    let gateways = &cloud.intent.routers[&id].ipv6_gateway.as_ref().unwrap().gateways;
    assert_eq!(gateways.iter().map(|gateway| gateway.host).collect::<Vec<_>>(), [two], "the one that is wired");
    let spec = cloud.intent.assigned[&two].spec.network();
    assert!(spec.routers.contains_key(&id) && spec.networks.len() == 2, "it is told, though it has no machine there");
    assert!(cloud.intent.assigned[&one].spec.network().routers.is_empty(), "others need to know nothing");
    let port =
        cloud.change(|intent, context| intent.create_port(context, read(json!({"name": "p", "network": "blue"}))));
    let wire = super::routed(&cloud.intent, port.unwrap());
    assert_eq!(wire.map(|wire| wire.to_string()).as_deref(), Some("dc"), "its machine goes where that is");
}

/// A router's gateway is a host that is up and wired, and stays it until it is down or unwired and another can take over; nothing moves back.
#[test]
fn a_router_has_its_gateway_on_one_host_until_that_is_down() {
    let mut cloud = Cloud::new();
    let provider = json!({"network_type": "vlan", "physical_network": "dc", "segmentation_id": 100});
    let outside = json!({"name": "outside", "provider": provider});
    cloud.change(|intent, context| intent.create_network(context, read(outside))).unwrap();
    let subnet = json!({"name": "out", "network": "outside", "cidr": "203.0.113.0/24"});
    cloud.change(|intent, context| intent.create_subnet(context, read(subnet))).unwrap();
    cloud.network("blue", "10.1.0.0/24").unwrap();
    let lead_out = |cloud: &mut Cloud, name: &str, snat: serde_json::Value| {
        let gateway = json!({"subnet": "out", "enable_snat": snat});
        cloud.change(|intent, _| intent.set_gateway(name, &read(gateway))).unwrap()
    };
    for name in ["r", "s"] {
        cloud.change(|intent, context| intent.create_router(context, read(json!({"name": name})))).unwrap();
    }
    cloud.change(|intent, _| intent.add_interface("r", &read(json!({"subnet": "blue-a"})))).unwrap();
    let id = lead_out(&mut cloud, "r", json!(null));
    let hosts: Vec<HostId> =
        ["one", "two", "three"].iter().zip(1..).map(|(name, last)| cloud.join(name, last)).collect();
    let snat = |cloud: &Cloud, id| cloud.intent.routers[&id].external.as_ref().unwrap().snat.clone();
    let chosen = |cloud: &Cloud, id| -> Vec<HostId> {
        snat(cloud, id).unwrap().gateways.iter().map(|gateway| gateway.host).collect()
    };
    let wired = |cloud: &mut Cloud, host: HostId, is_wired: bool| {
        let mut report = empty_report(host);
        report.resources.physical_networks.extend(is_wired.then(|| "dc".parse().unwrap()));
        cloud.hosts.entry(host).or_default().report = Some(report);
        cloud.reconcile();
    };
    let [one, two, three] = hosts[..] else { panic!("three hosts") };
    wired(&mut cloud, one, false);
    assert_eq!(chosen(&cloud, id), [], "none is wired");
    wired(&mut cloud, two, true);
    wired(&mut cloud, one, true);
    assert_eq!(chosen(&cloud, id), [two, one], "the first that could, whatever its identity");
    let spec = cloud.intent.assigned[&two].spec.network();
    assert!(spec.routers.contains_key(&id) && spec.networks.len() == 2, "it is told, though it has no machine there");
    assert_eq!(snat(&cloud, id).unwrap().gateways[0].tunnel, std::net::Ipv4Addr::new(192, 0, 2, 2));
    let standby = cloud.intent.assigned[&one].spec.network();
    assert!(standby.routers.contains_key(&id) && standby.networks.len() == 2, "who stands by takes over by itself");
    assert!(cloud.intent.assigned[&three].spec.network().routers.is_empty(), "others need to know nothing");

    // Another router goes to the host that leads out fewer.
    let other = lead_out(&mut cloud, "s", json!(true));
    assert_eq!(chosen(&cloud, other)[0], one);
    let (mine, theirs) = (snat(&cloud, id).unwrap(), snat(&cloud, other).unwrap());
    assert!(mine.address != theirs.address && mine.mac != theirs.mac);

    // Down: the next one takes over, and keeps it.
    cloud.hosts.get_mut(&two).unwrap().report = None;
    wired(&mut cloud, three, true);
    assert_eq!(chosen(&cloud, id), [one, three]);
    wired(&mut cloud, two, true);
    assert_eq!(chosen(&cloud, id), [one, three, two], "back again, and last");
    // A switch that does not answer says nothing; a wire that is pulled does.
    let mut silent = empty_report(one);
    silent.resources.switch = false;
    cloud.hosts.get_mut(&one).unwrap().report = Some(silent);
    cloud.reconcile();
    assert_eq!(chosen(&cloud, id)[0], one);
    wired(&mut cloud, one, false);
    assert_eq!(chosen(&cloud, id), [three, two]);
    // All of them down: the last that could keeps it, for nobody is better.
    for host in [one, two, three] {
        cloud.hosts.get_mut(&host).unwrap().report = None;
    }
    cloud.reconcile();
    assert_eq!(chosen(&cloud, id), [three, two]);

    lead_out(&mut cloud, "r", json!(false));
    assert_eq!(snat(&cloud, id), None);
    assert!(!cloud.intent.assigned[&three].spec.network().routers.contains_key(&id));
}

/// A cloud with routers that lead out to one physical network, and hosts wired to it, of which the last ones' switches are in user space.
fn leading_out(routers: usize, hosts: u8, in_user_space: u8) -> (Cloud, Vec<RouterId>, Vec<HostId>) {
    let mut cloud = Cloud::new();
    let provider = json!({"network_type": "flat", "physical_network": "dc"});
    let outside = json!({"name": "outside", "provider": provider});
    cloud.change(|intent, context| intent.create_network(context, read(outside))).unwrap();
    let subnet = json!({"name": "out", "network": "outside", "cidr": "198.18.0.0/16"});
    cloud.change(|intent, context| intent.create_subnet(context, read(subnet))).unwrap();
    let ids: Vec<HostId> = (0..hosts).map(|host| cloud.join(&format!("host{host}"), host + 1)).collect();
    for (number, host) in (0..hosts).zip(&ids) {
        let mut report = empty_report(*host);
        report.resources.physical_networks.insert("dc".parse().unwrap());
        report.resources.no_snat = number + in_user_space >= hosts;
        cloud.hosts.entry(*host).or_default().report = Some(report);
    }
    let router = |number: usize| {
        let name = format!("r{number}");
        cloud.change(|intent, context| intent.create_router(context, read(json!({"name": name})))).unwrap();
        cloud.change(|intent, _| intent.set_gateway(&name, &read(json!({"subnet": "out"})))).unwrap()
    };
    let routers = (0..routers).map(router).collect();
    (cloud, routers, ids)
}

/// The hosts of a router, the gateway first.
fn gateways(cloud: &Cloud, id: RouterId) -> Vec<HostId> {
    let snat = cloud.intent.routers[&id].external.as_ref().unwrap().snat.as_ref().unwrap();
    snat.gateways.iter().map(|gateway| gateway.host).collect()
}

/// A host that is being drained gives way to one that can lead out, goes last, and stays where it is when nobody else can.
#[test]
fn a_host_that_is_drained_leads_no_router_out() {
    let (mut cloud, routers, hosts) = leading_out(1, 2, 0);
    let [one, two] = hosts[..] else { panic!("two hosts") };
    let enable = |cloud: &mut Cloud, host: &str, enabled: bool| {
        cloud.change(|intent, _| intent.change_host(host, &read(json!({"enabled": enabled})))).unwrap();
        cloud.reconcile();
    };
    assert_eq!(gateways(&cloud, routers[0]), [one, two]);
    enable(&mut cloud, "host0", false);
    assert_eq!(gateways(&cloud, routers[0]), [two, one]);
    enable(&mut cloud, "host0", true);
    assert_eq!(gateways(&cloud, routers[0]), [two, one], "nothing moves back");
    enable(&mut cloud, "host0", false);
    enable(&mut cloud, "host1", false);
    assert_eq!(gateways(&cloud, routers[0]), [two, one], "nobody else can");
}

/// A host whose switch is in user space is no gateway, also where it is the only one that is wired, or was the gateway before it said so.
#[test]
fn a_switch_in_user_space_leads_no_router_out() {
    let (mut cloud, routers, hosts) = leading_out(2, 3, 1);
    assert_eq!(gateways(&cloud, routers[0]), hosts[..2]);
    for host in &hosts[..2] {
        cloud.hosts.get_mut(host).unwrap().report.as_mut().unwrap().resources.no_snat = true;
        cloud.reconcile();
    }
    assert_eq!(gateways(&cloud, routers[0]), []);
    assert_eq!(gateways(&cloud, routers[1]), []);
}

/// Routers are spread over the hosts, and one more change moves none.
#[test]
fn many_routers_are_spread_over_many_hosts() {
    let (mut cloud, routers, hosts) = leading_out(60, 30, 0);
    let mut led: BTreeMap<HostId, usize> = BTreeMap::new();
    for router in &routers {
        assert_eq!(gateways(&cloud, *router).len(), 3);
        *led.entry(gateways(&cloud, *router)[0]).or_default() += 1;
    }
    assert_eq!((led.len(), led.values().max()), (hosts.len(), Some(&2)), "{led:?}");
    let before: Vec<_> = routers.iter().map(|router| gateways(&cloud, *router)).collect();
    cloud.reconcile();
    assert_eq!(before, routers.iter().map(|router| gateways(&cloud, *router)).collect::<Vec<_>>());
}

/// A change of an address group that is too long is refused by its length, before its addresses are looked for.
#[test]
fn too_many_addresses_are_refused_by_their_number() {
    let mut cloud = Cloud::new();
    let office = json!({"name": "office", "addresses": ["192.0.2.0/24"]});
    cloud.change(|intent, context| intent.create_address_group(context, &read(office))).unwrap();
    let mut refused = |change: serde_json::Value| {
        cloud.change(|intent, _| intent.change_address_group("office", &read(change))).unwrap_err().to_string()
    };
    let addresses = |count: u32| (0..count).map(|it| std::net::Ipv4Addr::from(it).to_string()).collect::<Vec<_>>();
    let twice: Vec<String> = addresses(4096).into_iter().chain(["192.0.2.0/24".to_owned()]).collect();
    let crowd = refused(json!({"add": twice}));
    assert!(crowd.ends_with("address group office: it has 4098 addresses, want 4096 at most"), "{crowd}");
    let removed = refused(json!({"remove": addresses(5000)}));
    assert!(removed.ends_with("address group office has 1 addresses, 5000 are to be removed"), "{removed}");
}

#[derive(Debug, Clone)]
enum Step {
    Network(u8),
    Port(u8, u8),
    Mirror(u8, u8),
    SubPort(u8, u8),
    Group(u8),
    Rule(u8, u8),
    Addresses(u8, u8),
    Router(u8),
    Foot(u8, u8),
    Balance(u8, u8),
    Launch { name: u8, network: u8, host: Option<u8>, local: bool },
    Volume(u8),
    Attach { name: u8, volume: u8 },
    Power(u8, bool),
    Delete(u8, u8),
    Settle(u8),
    Enable(u8, bool),
    Roam(u8, u8, u8),
    Wall(u8, u8),
}

fn any_step() -> impl Strategy<Value = Step> {
    let small = 0_u8..4;
    proptest::prop_oneof![
        small.clone().prop_map(Step::Network),
        (small.clone(), small.clone()).prop_map(|(a, b)| Step::Port(a, b)),
        (small.clone(), small.clone()).prop_map(|(a, b)| Step::SubPort(a, b)),
        (small.clone(), small.clone()).prop_map(|(a, b)| Step::Mirror(a, b)),
        small.clone().prop_map(Step::Group),
        (small.clone(), small.clone()).prop_map(|(a, b)| Step::Rule(a, b)),
        (small.clone(), small.clone()).prop_map(|(a, b)| Step::Addresses(a, b)),
        (small.clone(), 1_u8..8).prop_map(|(n, last)| Step::Balance(n, last)),
        small.clone().prop_map(Step::Router),
        (small.clone(), small.clone()).prop_map(|(a, b)| Step::Foot(a, b)),
        (small.clone(), small.clone(), prop::option::of(0_u8..2), any::<bool>())
            .prop_map(|(name, network, host, local)| Step::Launch { name, network, host, local }),
        small.clone().prop_map(Step::Volume),
        (small.clone(), small.clone()).prop_map(|(name, volume)| Step::Attach { name, volume }),
        (small.clone(), any::<bool>()).prop_map(|(name, on)| Step::Power(name, on)),
        (small.clone(), small.clone()).prop_map(|(a, b)| Step::Wall(a, b)),
        (0_u8..10, small).prop_map(|(kind, name)| Step::Delete(kind, name)),
        (0_u8..2).prop_map(Step::Settle),
        (0_u8..2).prop_map(Step::Settle),
        (0_u8..2, any::<bool>()).prop_map(|(host, on)| Step::Enable(host, on)),
        (0_u8..4, any::<u8>(), 0_u8..2).prop_map(|(kind, port, host)| Step::Roam(kind, port, host)),
        (0_u8..4, any::<u8>(), 0_u8..2).prop_map(|(kind, port, host)| Step::Roam(kind, port, host)),
    ]
}

/// An address group, other addresses of it, a rule that names it: whichever can be done.
fn list(cloud: &mut Cloud, a: u8, b: u8) -> Result<(), Refusal> {
    let (name, group) = (format!("list{b}"), format!("group{a}"));
    let new = json!({"name": name, "addresses": [format!("192.0.{a}.0/24")]});
    let change = json!({"add": [format!("198.51.{a}.0/24")]});
    let rule = json!({"direction": "egress", "remote_address_group": name});
    cloud
        .change(|intent, context| intent.create_address_group(context, &read(new)).map(|_| ()))
        .or_else(|_| cloud.change(|intent, _| intent.change_address_group(&name, &read(change)).map(|_| ())))
        .or_else(|_| cloud.change(|intent, context| intent.add_rule(context, &group, &read(rule)).map(|_| ())))
}

/// A firewall policy, for a router, a rule of it, one that is none any more: whichever can be done.
fn wall(cloud: &mut Cloud, a: u8, b: u8) -> Result<(), Refusal> {
    let (policy, router) = (format!("wall{b}"), format!("router{a}"));
    let new = json!({"name": policy});
    let firewall = json!({"ingress_firewall_policy": policy});
    let rule = json!({"name": format!("rule{a}"), "action": "allow", "protocol": "tcp", "destination_port": "80:90"});
    let has_one = cloud.intent.routers.values().any(|it| it.name == router && it.firewall.is_some());
    cloud
        .change(|intent, context| intent.create_firewall_policy(context, &read(new)).map(|_| ()))
        .or_else(|refusal| match has_one {
            true => Err(refusal),
            false => cloud.change(|intent, _| intent.set_firewall(&router, &read(firewall)).map(|_| ())),
        })
        .or_else(|_| {
            cloud.change(|intent, context| intent.add_firewall_rule(context, &policy, &read(rule)).map(|_| ()))
        })
        .or_else(|_| cloud.change(|intent, _| intent.remove_firewall_rule(&policy, &format!("rule{a}")).map(|_| ())))
        .or_else(|_| cloud.change(|intent, _| intent.clear_firewall(&router).map(|_| ())))
}

/// A load balancer, a listener of it, a member of that: whichever can be done.
fn balance(cloud: &mut Cloud, number: u8, last: u8) -> Result<(), Refusal> {
    let front = format!("front{number}");
    let new = json!({"name": front, "subnet": format!("net{number}-a")});
    let (listener, member) =
        (json!({"protocol": "tcp", "port": 80}), json!({"address": format!("10.{number}.0.{last}"), "weight": last}));
    cloud
        .change(|intent, context| intent.create_balancer(context, &read(new)))
        .or_else(|_| cloud.change(|intent, _| intent.add_listener(&front, &read(listener))))
        .or_else(|_| cloud.change(|intent, _| intent.add_member(&front, ("tcp", "80"), &read(member))))
        .map(|_| ())
}

/// Some port.
fn nth_port(cloud: &Cloud, nth: u8) -> String {
    let ports: Vec<String> = cloud.intent.ports.values().map(|it| it.port.name.clone()).collect();
    ports.get(usize::from(nth) % ports.len().max(1)).cloned().unwrap_or_default()
}

/// A port is bound a second time, or no more, or a host says of all that it awaits that it came, in this attempt or in the one before.
fn roam(cloud: &mut Cloud, hosts: &[HostId], (kind, port, host): (u8, u8, u8)) -> Result<(), Refusal> {
    let (port, cluster, here) = (nth_port(cloud, port), cloud.cluster(), hosts[usize::from(host)]);
    match kind {
        0 => {
            let new = json!({"host": format!("host{host}")});
            cloud.change(|intent, _| intent.bind_port(&cluster, &port, &read(new))).map(|_| ())
        }
        1 => cloud.change(|intent, _| intent.unbind_port(&port)).map(|_| ()),
        kind => {
            let spec = cloud.intent.assigned.get(&here).map(|it| it.spec.network().clone());
            let awaited = spec.iter().flat_map(|it| it.awaited_ports()).filter(|port| port.trunk.is_none());
            let awaited = awaited.filter_map(|port| Some((port.id, port.arriving?.serial)));
            let arrived = awaited.map(|(port, serial)| Arrived { port, serial: serial - u64::from(kind == 3) });
            cloud.settle_with(here, arrived.collect());
            Ok(())
        }
    }
}

fn take(cloud: &mut Cloud, hosts: &[HostId], step: &Step) {
    let name = |word: &str, number: u8| format!("{word}{number}");
    // Refusals are fine: what counts is what the cloud looks like afterwards.
    let _ = match *step {
        Step::Network(n) => cloud.network(&name("net", n), &format!("10.{}.0.0/29", n % 3)),
        Step::Port(n, group) => cloud
            .change(|intent, context| {
                let groups = if group == 0 { vec![] } else { vec![name("group", group)] };
                intent.create_port(context, read(json!({"network": name("net", n), "groups": groups})))
            })
            .map(|_| ()),
        Step::SubPort(n, vlan) => {
            // The youngest port has the machine that was launched last, most often.
            let parent = cloud.intent.ports.values().max_by_key(|it| it.port.key).map(|it| it.port.name.clone());
            let trunk = json!({"parent": parent.unwrap_or_default(), "vlan": vlan + 1});
            let new = json!({"network": name("net", n), "trunk": trunk});
            cloud.change(|intent, context| intent.create_port(context, read(new))).map(|_| ())
        }
        Step::Mirror(a, b) => {
            let named = |nth: u8| {
                let ports: Vec<String> = cloud.intent.ports.values().map(|it| it.port.name.clone()).collect();
                ports.get(usize::from(nth) % ports.len().max(1)).cloned().unwrap_or_default()
            };
            let (port, to) = (named(a), named(b));
            let mirror = if a == b { json!(null) } else { json!({"to": to}) };
            cloud.change(|intent, _| intent.change_port(&port, &read(json!({"mirror": mirror})))).map(|_| ())
        }
        Step::Group(n) => cloud
            .change(|intent, context| intent.create_group(context, read(json!({"name": name("group", n)}))))
            .map(|_| ()),
        Step::Rule(a, b) => {
            let rule =
                json!({"direction": "ingress", "protocol": "tcp", "port_min": 80, "remote_group": name("group", b)});
            cloud.change(|intent, context| intent.add_rule(context, &name("group", a), &read(rule))).map(|_| ())
        }
        Step::Addresses(a, b) => list(cloud, a, b),
        Step::Wall(a, b) => wall(cloud, a, b),
        Step::Router(n) => cloud
            .change(|intent, context| intent.create_router(context, read(json!({"name": name("router", n)}))))
            .map(|_| ()),
        Step::Foot(r, n) => {
            let foot = json!({"subnet": format!("net{n}-a")});
            cloud.change(|intent, _| intent.add_interface(&name("router", r), &read(foot))).map(|_| ())
        }
        Step::Balance(n, last) => balance(cloud, n, last),
        Step::Launch { name: n, network, host, local } => cloud
            .launch(json!({"name": name("vm", n), "flavor": "tiny", "image": "debian",
                "volume_backend": if local { "local" } else { "rbd" }, "networks": [name("net", network)],
                "host": host.map(|host| name("host", host))}))
            .map(|_| ()),
        Step::Volume(n) => {
            let volume =
                json!({"name": name("volume", n), "size_mib": 8, "backend": if n % 2 == 0 { "rbd" } else { "local" }});
            cloud.change(|intent, context| intent.create_volume(context, read(volume))).map(|_| ())
        }
        Step::Attach { name: n, volume } => cloud
            .launch(json!({"name": name("vm", n), "flavor": "tiny", "disks": [name("volume", volume)],
                "boot": {"kernel": "vmlinuz"}}))
            .map(|_| ()),
        Step::Power(n, true) => cloud.change(|intent, _| intent.start_machine(&name("vm", n))).map(|_| ()),
        Step::Power(n, false) => cloud.change(|intent, _| intent.stop_machine(&name("vm", n))).map(|_| ()),
        Step::Delete(kind, n) => cloud.change(|intent, _| match kind {
            0 => intent.delete_network(&name("net", n)),
            1 => intent.delete_subnet(&format!("net{n}-a")),
            2 => intent.delete_group(&name("group", n)),
            3 => intent.delete_router(&name("router", n)),
            4 => intent.delete_volume(&name("volume", n)),
            6 => intent.delete_address_group(&name("list", n)),
            7 => intent.delete_balancer(&name("front", n)),
            8 => intent.delete_firewall_policy(&name("wall", n)),
            5 => intent.remove_interface(&name("router", n), &format!("net{n}-a")).map(|_| ()),
            _ => intent.delete_machine(&name("vm", n)).map(|_| ()),
        }),
        Step::Settle(n) => {
            cloud.settle(hosts[usize::from(n)]);
            Ok(())
        }
        Step::Roam(kind, port, host) => roam(cloud, hosts, (kind, port, host)),
        Step::Enable(n, on) => {
            let change = json!({"enabled": on});
            cloud.change(|intent, _| intent.change_host(&name("host", n), &read(change))).map(|_| ())
        }
    };
}

proptest! {
    #[test]
    fn whatever_is_asked_and_reported_the_cloud_stays_whole(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut cloud = Cloud::new();
        cloud.images();
        let hosts = [cloud.join("host0", 1), cloud.join("host1", 2)];
        for host in hosts {
            cloud.appear(host);
        }
        for step in &steps {
            take(&mut cloud, &hosts, step);
        }
        for port in cloud.intent.ports.values().map(|it| it.port.name.clone()).collect::<Vec<_>>() {
            cloud.change(|intent, _| intent.change_port(&port, &read(json!({"mirror": null})))).unwrap();
        }
        let subs = cloud.intent.ports.values().filter(|it| it.port.trunk.is_some()).map(|it| it.port.name.clone());
        for sub in subs.collect::<Vec<_>>() {
            cloud.change(|intent, _| intent.delete_port(&sub)).unwrap();
        }
        // Everything that is deleted goes once hosts have done what they were told.
        for vm in cloud.intent.machines.values().map(|vm| vm.machine.name.clone()).collect::<Vec<_>>() {
            cloud.change(|intent, _| intent.delete_machine(&vm)).unwrap();
        }
        for volume in cloud.intent.volumes.values().map(|it| it.volume.id.to_string()).collect::<Vec<_>>() {
            let _ = cloud.change(|intent, _| intent.delete_volume(&volume));
        }
        for _ in 0..3 {
            hosts.iter().for_each(|host| cloud.settle(*host));
            for volume in cloud.intent.volumes.values().map(|it| it.volume.id.to_string()).collect::<Vec<_>>() {
                cloud.change(|intent, _| intent.delete_volume(&volume)).unwrap();
            }
        }
        assert!(cloud.intent.machines.is_empty() && cloud.intent.volumes.is_empty());
        assert!(cloud.intent.ports.values().all(|port| !port.goes_with_vm));
        let local = |volume: &crate::intent::volume::VolumeIntent| volume.volume.backend == VolumeBackend::Local;
        assert!(!cloud.intent.volumes.values().any(|volume| local(volume)));
    }
}
