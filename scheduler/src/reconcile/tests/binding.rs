//! A port that is bound a second time: what is refused and why, what each host is told, and who is first when an unbinding and an arrival meet.

use model::PortId;
use model::arrival::Arrived;
use model::network::Port;

use super::*;

/// Two hosts wired to dc, with a machine on the first that has a port with a sub-port and a floating IP; a third host that is not wired.
struct Scene {
    cloud: Cloud,
    port: PortId,
    sub: PortId,
    one: HostId,
    two: HostId,
    three: HostId,
}

impl Scene {
    fn new() -> Self {
        let mut cloud = Cloud::new();
        cloud.images();
        let provider = json!({"network_type": "vlan", "physical_network": "dc", "segmentation_id": 100});
        let outside = json!({"name": "outside", "mtu": 1450, "provider": provider});
        cloud.change(|intent, context| intent.create_network(context, read(outside))).unwrap();
        let subnet = json!({"name": "out", "network": "outside", "cidr": "203.0.113.0/24"});
        cloud.change(|intent, context| intent.create_subnet(context, read(subnet))).unwrap();
        cloud.network("blue", "10.1.0.0/24").unwrap();
        cloud.network("green", "10.2.0.0/24").unwrap();
        let make = |cloud: &mut Cloud, new: serde_json::Value| {
            cloud.change(|intent, context| intent.create_port(context, read(new))).unwrap()
        };
        let port = make(&mut cloud, json!({"name": "port", "network": "blue"}));
        let trunk = json!({"parent": "port", "vlan": 7});
        let sub = make(&mut cloud, json!({"name": "sub", "network": "outside", "trunk": trunk}));
        let [one, two, three] = [("one", 1), ("two", 2), ("three", 3)].map(|(name, last)| cloud.join(name, last));
        for host in [one, two] {
            let mut report = empty_report(host);
            report.resources.physical_networks.insert("dc".parse().unwrap());
            cloud.hosts.entry(host).or_default().report = Some(report);
        }
        cloud.appear(three);
        let vm = json!({"name": "vm", "flavor": "tiny", "image": "debian", "ports": ["port"], "host": "one"});
        let vm = cloud.launch(vm).unwrap();
        assert_eq!(cloud.host_of(vm), Some(one));
        Self { cloud, port, sub, one, two, three }
    }

    fn bind(&mut self, port: &str, host: &str) -> Result<PortId, Refusal> {
        let cluster = self.cloud.cluster();
        self.cloud.change(|intent, _| intent.bind_port(&cluster, port, &read(json!({"host": host}))))
    }

    fn unbind(&mut self) -> Result<PortId, Refusal> {
        self.cloud.change(|intent, _| intent.unbind_port("port"))
    }

    /// A host settles, wired as before, and says that the port has come in this attempt.
    fn says(&mut self, host: HostId, serial: u64) {
        let port = self.port;
        let wired = self.cloud.hosts[&host].report.as_ref().unwrap().resources.physical_networks.clone();
        let mut report = empty_report(host);
        report.resources.physical_networks = wired;
        report.accepted = self.cloud.intent.generation(host);
        report.arrived = vec![Arrived { port, serial }];
        self.cloud.hosts.get_mut(&host).unwrap().report = Some(report);
        self.cloud.reconcile();
    }

    /// The port as a host was told of it.
    fn told(&self, host: HostId, port: PortId) -> Option<Port> {
        self.cloud.intent.assigned.get(&host)?.spec.network().ports.get(&port).cloned()
    }

    /// Where the hosts that know the port take it to be, and where to be awaited.
    fn places(&self, port: PortId) -> Vec<(HostId, Option<(HostId, u64)>)> {
        let told = [self.one, self.two, self.three].into_iter().filter_map(|host| self.told(host, port));
        let place = |port: Port| (port.binding.unwrap().host, port.arriving.map(|it| (it.host, it.serial)));
        told.map(place).collect()
    }
}

fn words<T: std::fmt::Debug>(refused: Result<T, Refusal>) -> String {
    refused.unwrap_err().to_string()
}

/// All hosts are told: where it is, where it is awaited with its sub-ports, and, once it came, that it is there.
#[test]
fn a_port_is_awaited_and_then_where_its_machine_spoke() {
    let mut scene = Scene::new();
    let (one, two) = (scene.one, scene.two);
    let before = scene.cloud.intent.clone();
    assert_eq!(scene.places(scene.port), [(one, None)], "the second host knows nothing of it");
    scene.bind("port", "two").unwrap();
    for port in [scene.port, scene.sub] {
        assert_eq!(scene.places(port), [(one, Some((two, 1))); 2]);
        assert!(scene.told(two, port).unwrap().is_awaited_on(two));
    }
    let text = serde_json::to_string(scene.cloud.intent.assigned[&two].as_ref()).unwrap();
    assert!(text.contains("arriving"), "{text}");

    // Called off, nothing of it is left but the number.
    scene.unbind().unwrap();
    assert_eq!(scene.places(scene.port), [(one, None)]);
    assert_eq!(scene.cloud.intent.assigned[&one].spec.network(), before.assigned[&one].spec.network());
    let text = serde_json::to_string(scene.cloud.intent.assigned[&two].as_ref()).unwrap();
    assert!(!text.contains("arriving") && text.contains("\"ports\":[]"), "agents from before it read it: {text}");

    scene.bind("port", "two").unwrap();
    scene.says(two, 2);
    assert_eq!(scene.places(scene.port), [(two, None); 2]);
    assert_eq!(scene.places(scene.sub), [(two, None)], "its old host needs to know of it no more");
    assert!(scene.cloud.intent.assigned[&one].spec.machines().len() == 1, "its machine is where it was");
    // And back.
    assert!(words(scene.bind("port", "two")).contains("port port is plugged in there: name another host"));
    scene.bind("port", "one").unwrap();
    assert_eq!(scene.places(scene.port), [(two, Some((one, 3))); 2]);
    scene.says(one, 3);
    assert_eq!(scene.places(scene.port), [(one, None)]);
}

/// Each refusal names the object and the way out.
#[test]
fn what_cannot_be_awaited_is_refused() {
    let mut scene = Scene::new();
    let refused = words(scene.bind("port", "one"));
    assert_eq!(refused, "host one: port port is plugged in there: name another host");
    let refused = words(scene.bind("sub", "two"));
    assert_eq!(refused, "port sub: it is a sub-port and goes where port port goes: flowctl port bind port");
    let refused = words(scene.bind("port", "nowhere"));
    assert_eq!(refused, "no host has the name or id \"nowhere\"");
    let refused = words(scene.bind("port", "three"));
    assert!(refused.starts_with("host three: it is not wired to physical network dc, which port port"), "{refused}");
    let idle = json!({"name": "idle", "network": "blue"});
    scene.cloud.change(|intent, context| intent.create_port(context, read(idle))).unwrap();
    let refused = words(scene.bind("idle", "two"));
    assert!(refused.starts_with("port idle: no vm has it"), "{refused}");
    let refused = words(scene.unbind());
    assert!(refused.starts_with("port port: it is awaited on no other host"), "{refused}");

    scene.cloud.change(|intent, _| intent.change_host("two", &read(json!({"enabled": false})))).unwrap();
    let refused = words(scene.bind("port", "two"));
    assert!(refused.starts_with("host two: it takes nothing new: flowctl host enable two"), "{refused}");
    scene.cloud.change(|intent, _| intent.change_host("two", &read(json!({"enabled": true})))).unwrap();
    let report = scene.cloud.hosts.get_mut(&scene.two).unwrap().report.take();
    let refused = words(scene.bind("port", "two"));
    assert!(refused.starts_with("host two: it is down"), "{refused}");
    let mut blind = report.clone().unwrap();
    blind.resources.switch = false;
    scene.cloud.hosts.get_mut(&scene.two).unwrap().report = Some(blind);
    let refused = words(scene.bind("port", "two"));
    assert!(refused.starts_with("host two: its Open vSwitch does not answer"), "{refused}");
    scene.cloud.hosts.get_mut(&scene.two).unwrap().report = report;

    scene.bind("port", "two").unwrap();
    let refused = words(scene.bind("port", "two"));
    assert!(
        refused.contains("awaited on host two already: take that back first (flowctl port unbind port)"),
        "{refused}"
    );
    let refused = words(scene.cloud.change(|intent, _| intent.delete_host("two")));
    assert_eq!(refused, "host two is in use by port port, which is bound there");
    let refused = words(scene.cloud.change(|intent, _| intent.unbind_port("sub")));
    assert!(refused.contains("flowctl port unbind port"), "{refused}");
}

/// Of an unbinding and an arrival the first that the scheduler hears of wins, and the other is told, or ignored.
#[test]
fn an_unbinding_and_an_arrival_have_one_winner() {
    let mut scene = Scene::new();
    let (one, two) = (scene.one, scene.two);
    scene.bind("port", "two").unwrap();
    scene.unbind().unwrap();
    scene.says(two, 1);
    assert_eq!(scene.places(scene.port), [(one, None)], "it was called off");
    scene.bind("port", "two").unwrap();
    scene.says(two, 1);
    assert_eq!(scene.places(scene.port), [(one, Some((two, 2))); 2], "news of the attempt before");
    scene.says(scene.three, 2);
    assert_eq!(scene.places(scene.port), [(one, Some((two, 2))); 2], "another host's word");
    // The report is there, and nobody has looked at it yet: the unbinding comes first, and stays so.
    let report = scene.cloud.hosts.get_mut(&two).unwrap().report.as_mut().unwrap();
    report.arrived[0].serial = 2;
    scene.unbind().unwrap();
    assert_eq!(scene.places(scene.port), [(one, None)]);
    scene.bind("port", "two").unwrap();
    scene.says(two, 3);
    let refused = scene.unbind().unwrap_err();
    assert!(matches!(&refused, Refusal::State { object, .. } if object == "port port"), "{refused:?}");
    let refused = refused.to_string();
    assert!(refused.contains("spoken on host two, where it is plugged in by now (binding 3)"), "{refused}");
    assert!(refused.contains("flowctl port bind port --host one brings it back"), "{refused}");
    scene.says(two, 3);
    assert_eq!(scene.places(scene.port), [(two, None); 2], "said again");
}

/// The machine goes, or is placed anew, or the host that awaits it is silent.
#[test]
fn what_becomes_of_the_machine_or_the_host_ends_it() {
    let mut scene = Scene::new();
    let (one, two) = (scene.one, scene.two);
    scene.bind("port", "two").unwrap();
    let report = scene.cloud.hosts.get_mut(&two).unwrap().report.take();
    scene.cloud.reconcile();
    assert_eq!(scene.places(scene.port)[0], (one, Some((two, 1))), "silent, it is awaited still");
    scene.unbind().unwrap();
    assert_eq!(scene.places(scene.port), [(one, None)], "and need not be asked");
    scene.cloud.hosts.get_mut(&two).unwrap().report = report;

    // The host of the machine dies after the port has gone, and the machine is placed anew.
    scene.bind("port", "two").unwrap();
    scene.says(two, 2);
    assert_eq!(scene.places(scene.port), [(two, None); 2]);
    scene.cloud.hosts.get_mut(&one).unwrap().report = None;
    let cluster = scene.cloud.cluster();
    scene.cloud.change(|intent, _| intent.evacuate(&cluster, "one", &read(json!({"force": true})))).unwrap();
    let vm = scene.cloud.intent.machines.values().next().unwrap();
    let (vm, host) = (vm.machine.id, vm.host);
    assert_eq!(scene.cloud.intent.ports[&scene.port].journey.awaited(), None);
    assert_eq!(scene.cloud.intent.away(scene.port), None, "it is with its machine: {host:?}");

    // The host that the port went to dies: the port is with its machine again.
    let mut scene = Scene::new();
    scene.bind("port", "two").unwrap();
    scene.says(two, 1);
    assert_eq!(scene.places(scene.port), [(two, None); 2]);
    scene.cloud.hosts.get_mut(&two).unwrap().report = None;
    let cluster = scene.cloud.cluster();
    scene.cloud.change(|intent, _| intent.evacuate(&cluster, "two", &read(json!({"force": true})))).unwrap();
    assert_eq!(scene.places(scene.port), [(one, None)]);

    // Deleted while awaited, and while a report is under way.
    let mut scene = Scene::new();
    scene.bind("port", "two").unwrap();
    scene.cloud.change(|intent, _| intent.delete_machine("vm")).unwrap();
    assert_eq!(scene.told(two, scene.port).and_then(|port| port.arriving), None);
    scene.says(two, 1);
    assert_eq!(scene.cloud.intent.away(scene.port), None);
    assert!(words(scene.bind("port", "two")).contains("its vm vm is being deleted"));
    scene.cloud.settle(one);
    assert!(!scene.cloud.intent.machines.contains_key(&vm));
    scene.cloud.change(|intent, _| intent.delete_port("sub")).unwrap();
    scene.cloud.change(|intent, _| intent.delete_port("port")).unwrap();
}
