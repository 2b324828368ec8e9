//! A private Open vSwitch that holds the flows of one host of a [`Cloud`]: what the model's word is held against.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it, as a module of its own")]

use anyhow::{Context as _, Result};
use basalt_tests::ovs::Switch;
use dataplane::trace::ofproto::{Report, arguments, compare};
use dataplane::trace::{Connection, Packet};
use dataplane::{FlowSet, Installed, PortNumbers, compile, trace};
use openflow::flow::{Flow, Group, Meter, PortNo};

use crate::topology::{Cloud, VXLAN};

pub const BRIDGE: &str = "br-int";

/// One host's switch.
#[derive(Debug)]
pub struct Rig {
    pub switch: Switch,
    pub host: usize,
    pub numbers: PortNumbers,
}

impl Rig {
    /// A switch with an internal port for each of the cloud's ports on `host`, and the tunnel port.
    pub fn start(cloud: &Cloud, host: usize) -> Result<Self> {
        let switch = Switch::start()?;
        switch.add_bridge(BRIDGE)?;
        let mut rig = Self { switch, host, numbers: cloud.numbers(host) };
        rig.add_tunnel()?;
        for number in rig.numbers.physical.values() {
            let (name, request) = (format!("wire{number}"), format!("ofport_request={number}"));
            let words = ["add-port", BRIDGE, &name, "--", "set", "interface", &name, "type=internal", &request];
            rig.switch.vsctl(&words)?;
        }
        for port in cloud.ports.iter().filter(|port| rig.numbers.ports.contains_key(&port.id)) {
            let name = port.tap_name();
            let request = format!("ofport_request={}", rig.numbers.ports[&port.id]);
            rig.switch.vsctl(&[
                "add-port",
                BRIDGE,
                &name,
                "--",
                "set",
                "interface",
                &name,
                "type=internal",
                &request,
            ])?;
        }
        Ok(rig)
    }

    /// Adds the tunnel port with the number that the cloud's hosts have for it.
    pub fn add_tunnel(&mut self) -> Result<()> {
        let request = format!("ofport_request={VXLAN}");
        let tunnel = ["type=vxlan", "options:remote_ip=flow", "options:key=flow", &request];
        let words = ["add-port", BRIDGE, "vxlan0", "--", "set", "interface", "vxlan0"];
        self.switch.vsctl(&[words.as_slice(), tunnel.as_slice()].concat()).map(drop)
    }

    /// Adds the tunnel ports of peers, with the numbers given.
    pub fn add_peers(&self, numbers: &PortNumbers) -> Result<()> {
        for (endpoint, peer) in &numbers.peers {
            let (name, request) = (format!("peer{}", peer.number), format!("ofport_request={}", peer.number));
            let remote = format!("options:remote_ip={endpoint}");
            let tunnel = ["type=vxlan", &remote, "options:key=flow", &request, "bfd:enable=true"];
            let words = ["add-port", BRIDGE, &name, "--", "set", "interface", &name];
            self.switch.vsctl(&[words.as_slice(), tunnel.as_slice()].concat())?;
        }
        Ok(())
    }

    /// Tells the switch which peers are alive, in the place of what it hears.
    pub fn tell_peers(&self) -> Result<()> {
        for peer in self.numbers.peers.values() {
            let (name, alive) = (format!("peer{}", peer.number), peer.is_alive.to_string());
            self.switch.appctl(&["bfd/set-forwarding", &name, &alive])?;
        }
        self.switch.settle()
    }

    /// Compiles what the host should have and installs it whole: groups, then flows in one bundle.
    pub fn install(&self, cloud: &Cloud) -> Result<FlowSet> {
        let set = compile(&cloud.host(self.host), &self.numbers);
        let groups: String = set.groups().map(|group| format!("{group}\n")).collect();
        let flows: String = set.flows().map(|flow| format!("{flow}\n")).collect();
        let (group_file, flow_file) = (self.switch.dir().join("groups"), self.switch.dir().join("flows"));
        std::fs::write(&group_file, groups)?;
        std::fs::write(&flow_file, flows)?;
        let path = |path: &std::path::Path| path.display().to_string();
        for group in self.installed()?.groups.iter().filter(|group| set.group(group.id).is_none()) {
            self.switch.ofctl(&["del-groups", BRIDGE, &format!("group_id={}", group.id)])?;
        }
        for group in set.groups() {
            self.switch.ofctl(&["--may-create", "mod-group", BRIDGE, &group.to_string()])?;
        }
        let there = self.installed()?.meters;
        for meter in set.meters().filter(|meter| !there.contains(meter)) {
            let command = if there.iter().any(|other| other.id == meter.id) { "mod-meter" } else { "add-meter" };
            self.switch.ofctl(&[command, BRIDGE, &meter.to_string()])?;
        }
        self.switch.ofctl(&["--bundle", "replace-flows", BRIDGE, &path(&flow_file)]).context("replace flows")?;
        for meter in there.iter().filter(|meter| set.meter(meter.id).is_none()) {
            self.switch.ofctl(&["del-meter", BRIDGE, &format!("meter={}", meter.id)])?;
        }
        Ok(set)
    }

    /// What the switch says it holds.
    pub fn installed(&self) -> Result<Installed> {
        let flows = self.switch.ofctl(&["--no-stats", "dump-flows", BRIDGE])?;
        let groups = self.switch.ofctl(&["dump-groups", BRIDGE])?;
        let meters = self.switch.ofctl(&["dump-meters", BRIDGE])?;
        let meter = |rest: &str| format!("meter={rest}").parse::<Meter>().with_context(|| format!("read meter {rest}"));
        let flow = |line: &str| line.trim().parse::<Flow>().with_context(|| format!("read flow {line}"));
        let group = |line: &str| line.trim().parse::<Group>().with_context(|| format!("read group {line}"));
        Ok(Installed {
            flows: flows.lines().filter(|line| line.contains("actions=")).map(flow).collect::<Result<_>>()?,
            groups: groups.lines().filter(|line| line.contains("group_id=")).map(group).collect::<Result<_>>()?,
            meters: meters.split("meter=").skip(1).map(meter).collect::<Result<_>>()?,
        })
    }

    /// Asks the switch about a packet, and holds its word against that of the model.
    pub fn ask(&self, set: &FlowSet, packet: &Packet, connection: Connection) {
        let path = trace(set, packet, connection);
        let said = self.switch.appctl(&arguments(BRIDGE, packet, connection)).unwrap();
        let report = Report::parse(&said, Some(VXLAN.0)).unwrap();
        if let Some(parting) = compare(set, &path, &report) {
            panic!("host {}: {parting:#?}\nthe model says:\n{path}\nOpen vSwitch says:\n{said}", self.host);
        }
    }

    /// The same for several packets, each as the first of a connection and as an answer.
    pub fn ask_all(&self, set: &FlowSet, packets: &[Packet]) {
        for packet in packets {
            self.ask(set, packet, Connection::New);
            self.ask(set, packet, Connection::Reply);
        }
    }

    /// The OpenFlow port of a port of the cloud.
    pub fn number(&self, cloud: &Cloud, port: usize) -> PortNo {
        self.numbers.of(&cloud.ports[port]).unwrap()
    }
}
