//! What has to be changed in the database for the bridge and its ports to be as they should.
//!
//! Pure: looks at the replica, returns a [`Plan`] with each step in words and as database operations. A plan for what is
//! already right is empty.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ovsdb::replica::Replica;
use ovsdb::row::Row;
use ovsdb::tables::{Bridge, Interface, OpenVswitch, Port, Table};
use ovsdb::transaction::{Comparison, Mutator, Transaction, Where};
use ovsdb::value::Value;

use super::{BridgeError, PortState, Pulse, Settings, TUNNEL_PORT, TapPort, VXLAN_UDP_PORT, export, queues};

/// The key that marks a port as ours, with the machine's id.
const MACHINE_KEY: &str = "basalt:vm";
/// The key that marks a port as ours, with the name of its physical network.
const PHYSICAL_KEY: &str = "basalt:physical";
/// The key that marks a tunnel port as a peer's, with its endpoint.
const PEER_KEY: &str = "basalt:peer";
/// How peers tell each other that they are alive: three times missed is dead, after 900 ms. Only what has no VNI counts: machines may speak BFD to
/// each other (ovs-vswitchd.conf.db(5), `bfd:check_tnl_key`).
const BFD: [(&str, &str); 5] =
    [("enable", "true"), ("min_tx", "300"), ("min_rx", "300"), ("mult", "3"), ("check_tnl_key", "true")];
/// The key for the port's id.
const PORT_KEY: &str = "iface-id";
/// The key for the machine's address on the port.
const MAC_KEY: &str = "attached-mac";
/// The OpenFlow version that we speak.
const PROTOCOL: &str = "OpenFlow15";
/// Drop everything while there are no flows.
const FAIL_MODE: &str = "secure";

/// Changes to make together, each in words.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<String>,
    pub(super) transaction: Transaction,
}

impl Plan {
    /// A plan whose only effect is that the switch looks at its configuration.
    pub(super) fn step(what: &str) -> Self {
        Self { steps: vec![what.to_owned()], transaction: Transaction::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub(super) fn into_steps(self) -> Vec<String> {
        self.steps
    }

    /// The transaction, which also counts up the number that the switch has to catch up with, and that number.
    pub(super) fn transaction(&mut self, replica: &Replica) -> Result<(Transaction, i64), BridgeError> {
        let mut transaction = std::mem::take(&mut self.transaction);
        let root = root(replica)?;
        let rows = Where::row(root.uuid);
        // Two clients that count up at once must not take each other's number for their own.
        transaction.require("Open_vSwitch", &rows, &["next_cfg"], &[Row::new().with("next_cfg", root.next_cfg)]);
        transaction.mutate("Open_vSwitch", &rows, &[("next_cfg", Mutator::Add, Value::from(1))]);
        transaction.comment(&format!("basalt: {self}"));
        Ok((transaction, root.next_cfg + 1))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.steps.join(", "))
    }
}

/// The row that says how the switch is configured.
pub(super) fn root(replica: &Replica) -> Result<OpenVswitch, BridgeError> {
    OpenVswitch::all(replica)?.pop().ok_or(BridgeError::Uninitialised)
}

pub(super) fn find_bridge(replica: &Replica, name: &str) -> Result<Option<Bridge>, BridgeError> {
    Ok(Bridge::all(replica)?.into_iter().find(|bridge| bridge.name == name))
}

/// Whether the switch has made the bridge.
pub(super) fn is_made(replica: &Replica, name: &str) -> Result<bool, BridgeError> {
    Ok(find_bridge(replica, name)?.is_some_and(|bridge| bridge.datapath_id.is_some()))
}

/// A port with its one interface.
pub(super) struct Found {
    pub(super) port: Port,
    interface: Interface,
}

/// The row of the port called `name`, on whatever bridge.
fn named<'a>(replica: &'a Replica, name: &str) -> Option<(ovsdb::Uuid, &'a Row)> {
    let is_it = |row: &Row| row.get("name").and_then(Value::as_atom).and_then(|atom| atom.as_str()) == Some(name);
    replica.rows(Port::NAME).find(|(_, row)| is_it(row))
}

/// The port called `name`, on our bridge.
pub(super) fn find_port(replica: &Replica, bridge: &Bridge, name: &str) -> Result<Option<Found>, BridgeError> {
    let Some((uuid, row)) = named(replica, name) else { return Ok(None) };
    let port = Port::from_row(uuid, row)?;
    if !bridge.ports.contains(&port.uuid) {
        return Err(BridgeError::Elsewhere { port: name.to_owned(), bridge: bridge.name.clone() });
    }
    let interface = port.interfaces.first().map(|uuid| Interface::get(replica, *uuid)).transpose()?.flatten();
    Ok(interface.map(|interface| Found { port, interface }))
}

/// Plans the bridge and its tunnel port.
pub(super) fn bridge(replica: &Replica, settings: &Settings) -> Result<Plan, BridgeError> {
    let mut plan = Plan::default();
    let root = root(replica)?;
    let Some(bridge) = find_bridge(replica, &settings.bridge)? else {
        create_bridge(&mut plan, replica, &root, settings);
        return Ok(plan);
    };
    let mut row = Row::new();
    if bridge.datapath_type != settings.datapath.word() {
        row.set("datapath_type", settings.datapath.word());
    }
    if bridge.fail_mode.as_deref() != Some(FAIL_MODE) {
        row.set("fail_mode", FAIL_MODE);
    }
    if !bridge.protocols.contains(PROTOCOL) {
        row.set("protocols", Value::set(bridge.protocols.iter().map(String::as_str).chain([PROTOCOL])));
    }
    if !row.is_empty() {
        plan.steps.push(format!("set {row} on bridge {}", bridge.name));
        plan.transaction.update(Bridge::NAME, &Where::row(bridge.uuid), &row);
    }
    if let Some(options) = tunnel_options(settings) {
        tunnel(&mut plan, replica, &bridge, options)?;
    }
    physical(&mut plan, replica, &bridge, settings)?;
    export::plan(&mut plan, replica, &bridge, settings.export.as_ref());
    Ok(plan)
}

/// Plans the ports of physical networks: those that are wanted, and no others of ours.
fn physical(plan: &mut Plan, replica: &Replica, bridge: &Bridge, settings: &Settings) -> Result<(), BridgeError> {
    for (network, interface) in &settings.physical {
        let ids = Value::map([(PHYSICAL_KEY, network.as_str())]);
        // What somebody else uses is theirs: the network is not plugged in here then, which its flows and the doctor say, and nothing else suffers.
        let found = match find_port(replica, bridge, interface) {
            Err(BridgeError::Elsewhere { .. }) => continue,
            found => found?,
        };
        match found {
            None => {
                plan.steps.push(format!("create port {interface} for physical network {network}"));
                add_port(&mut plan.transaction, bridge, interface, &Row::new().with("external_ids", ids));
            }
            Some(found) => match found.interface.external_ids.get(PHYSICAL_KEY) {
                None => {}
                Some(name) if name == network.as_str() => {}
                Some(_) => {
                    plan.steps.push(format!("name port {interface} after physical network {network}"));
                    let row = Row::new().with("external_ids", ids);
                    plan.transaction.update(Interface::NAME, &Where::row(found.interface.uuid), &row);
                }
            },
        }
    }
    for uuid in &bridge.ports {
        let Some(port) = Port::get(replica, *uuid)? else { continue };
        let interface = port.interfaces.first().map(|uuid| Interface::get(replica, *uuid)).transpose()?.flatten();
        let is_ours = interface.is_some_and(|interface| interface.external_ids.contains_key(PHYSICAL_KEY));
        if is_ours && !settings.physical.values().any(|wanted| *wanted == port.name) {
            plan.steps.push(format!("remove port {}: it is no physical network's any more", port.name));
            let mutation = ("ports", Mutator::Delete, Value::from(port.uuid));
            plan.transaction.mutate(Bridge::NAME, &Where::row(bridge.uuid), &[mutation]);
        }
    }
    Ok(())
}

fn create_bridge(plan: &mut Plan, replica: &Replica, root: &OpenVswitch, settings: &Settings) {
    plan.steps.push(format!("create bridge {} with datapath {}", settings.bridge, settings.datapath));
    let name = settings.bridge.as_str();
    let transaction = &mut plan.transaction;
    let mut ports = vec![insert_port(transaction, name, &Row::new().with("type", "internal"))];
    if let Some(options) = tunnel_options(settings) {
        plan.steps.push(format!("create tunnel port {TUNNEL_PORT}"));
        ports.push(insert_port(transaction, TUNNEL_PORT, &Row::new().with("type", "vxlan").with("options", options)));
    }
    for (network, interface) in settings.physical.iter().filter(|(_, interface)| named(replica, interface).is_none()) {
        plan.steps.push(format!("create port {interface} for physical network {network}"));
        let row = Row::new().with("external_ids", Value::map([(PHYSICAL_KEY, network.as_str())]));
        ports.push(insert_port(transaction, interface, &row));
    }
    let ipfix = settings.export.as_ref().map(|export| export::create(transaction, export));
    let row = Row::new()
        .with("name", name)
        .with("datapath_type", settings.datapath.word())
        .with("fail_mode", FAIL_MODE)
        .with("protocols", PROTOCOL)
        .with("ports", Value::set(ports))
        .with("ipfix", Value::set(ipfix));
    let bridge = transaction.insert(Bridge::NAME, &row);
    let mutation = ("bridges", Mutator::Insert, Value::from(&bridge));
    transaction.mutate(OpenVswitch::NAME, &Where::row(root.uuid), &[mutation]);
}

fn tunnel_options(settings: &Settings) -> Option<Value> {
    options_to(settings, "flow")
}

/// Settings of a tunnel port to one endpoint, or to those that flows name.
fn options_to(settings: &Settings, remote: &str) -> Option<Value> {
    let port = VXLAN_UDP_PORT.to_string();
    let local = settings.tunnel_ip?.to_string();
    let options = [("remote_ip", remote), ("key", "flow"), ("dst_port", port.as_str()), ("local_ip", local.as_str())];
    Some(Value::map(options))
}

fn tunnel(plan: &mut Plan, replica: &Replica, bridge: &Bridge, options: Value) -> Result<(), BridgeError> {
    let row = Row::new().with("type", "vxlan").with("options", options);
    tunnel_port(plan, replica, bridge, TUNNEL_PORT, row)
}

/// Plans the tunnel ports of peers: those that are wanted, and no others of ours.
pub(super) fn peers(replica: &Replica, settings: &Settings, wanted: &BTreeSet<Ipv4Addr>) -> Result<Plan, BridgeError> {
    let bridge =
        find_bridge(replica, &settings.bridge)?.ok_or_else(|| BridgeError::NoBridge(settings.bridge.clone()))?;
    let mut plan = Plan::default();
    let states = ports(replica, &settings.bridge)?;
    if wanted.is_empty() && states.values().all(|state| state.peer.is_none()) {
        return Ok(plan);
    }
    for endpoint in wanted {
        let (text, name) = (endpoint.to_string(), peer_port(*endpoint));
        let Some(options) = options_to(settings, &text) else { continue };
        // What somebody else has under this name is theirs: that peer is not watched then, and so never lost.
        let mut ids = match find_port(replica, &bridge, &name) {
            Err(BridgeError::Elsewhere { .. }) => continue,
            found => found?.map(|found| found.interface.external_ids),
        };
        if ids.as_ref().is_some_and(|ids| !ids.contains_key(PEER_KEY)) {
            continue;
        }
        ids.get_or_insert_default().insert(PEER_KEY.to_owned(), text.clone());
        let row = Row::new().with("type", "vxlan").with("options", options).with("bfd", Value::map(BFD));
        let row = row.with("external_ids", Value::map(ids.unwrap_or_default()));
        tunnel_port(&mut plan, replica, &bridge, &name, row)?;
    }
    let is_over = |state: &PortState| state.peer.is_some_and(|(endpoint, _)| !wanted.contains(&endpoint));
    for (name, _) in states.iter().filter(|(_, state)| is_over(state)) {
        let Some(port) = find_port(replica, &bridge, name)? else { continue };
        plan.steps.push(format!("remove tunnel port {name}: nothing depends on that host any more"));
        let mutation = ("ports", Mutator::Delete, Value::from(port.port.uuid));
        plan.transaction.mutate(Bridge::NAME, &Where::row(bridge.uuid), &[mutation]);
    }
    Ok(plan)
}

/// The name of a peer's tunnel port, as long as a device's may be.
fn peer_port(endpoint: Ipv4Addr) -> String {
    format!("peer{:08x}", endpoint.to_bits())
}

/// What BFD says on an interface.
fn pulse(interface: &Interface) -> Pulse {
    let says = |key: &str| interface.bfd_status.get(key).map(String::as_str);
    let is_alive = says("forwarding") == Some("true");
    Pulse { is_heard: is_alive || says("flap_count").is_some_and(|count| count != "0"), is_alive }
}

/// Plans one tunnel port.
fn tunnel_port(plan: &mut Plan, replica: &Replica, bridge: &Bridge, name: &str, row: Row) -> Result<(), BridgeError> {
    let Some(found) = find_port(replica, bridge, name)? else {
        plan.steps.push(format!("create tunnel port {name}"));
        add_port(&mut plan.transaction, bridge, name, &row);
        return Ok(());
    };
    let is = replica.row(Interface::NAME, found.interface.uuid);
    let differing = is.map_or_else(|| row.clone(), |is| row.differing_from(is));
    if !differing.is_empty() {
        plan.steps.push(format!("set {differing} on tunnel port {name}"));
        plan.transaction.update(Interface::NAME, &Where::row(found.interface.uuid), &differing);
    }
    Ok(())
}

/// Plans the port of a machine.
pub(super) fn port(replica: &Replica, settings: &Settings, wanted: &TapPort) -> Result<Plan, BridgeError> {
    let bridge =
        find_bridge(replica, &settings.bridge)?.ok_or_else(|| BridgeError::NoBridge(settings.bridge.clone()))?;
    let mut plan = Plan::default();
    let ids = [
        (PORT_KEY, wanted.port.to_string()),
        (MACHINE_KEY, wanted.machine.to_string()),
        (MAC_KEY, wanted.mac.to_string()),
    ];
    let Some(found) = find_port(replica, &bridge, &wanted.tap)? else {
        plan.steps.push(format!("create port {} for port {} of vm {}", wanted.tap, wanted.port, wanted.machine));
        let ids = Value::map(ids);
        add_port(&mut plan.transaction, &bridge, &wanted.tap, &Row::new().with("external_ids", ids));
        return Ok(plan);
    };
    check_ours(&found, &bridge)?;
    let mut external_ids = found.interface.external_ids;
    let before = external_ids.clone();
    external_ids.extend(ids.map(|(key, value)| (key.to_owned(), value)));
    if external_ids != before {
        plan.steps.push(format!("name port {} after port {} of vm {}", wanted.tap, wanted.port, wanted.machine));
        let row = Row::new().with("external_ids", Value::map(external_ids));
        plan.transaction.update(Interface::NAME, &Where::row(found.interface.uuid), &row);
    }
    Ok(plan)
}

/// Plans that a machine's port is gone.
pub(super) fn no_port(replica: &Replica, settings: &Settings, tap: &str) -> Result<Plan, BridgeError> {
    let mut plan = Plan::default();
    let Some(bridge) = find_bridge(replica, &settings.bridge)? else { return Ok(plan) };
    let Some(found) = find_port(replica, &bridge, tap)? else { return Ok(plan) };
    check_ours(&found, &bridge)?;
    plan.steps.push(format!("remove port {tap}"));
    // Rows that nothing refers to are collected by the server.
    let mutation = ("ports", Mutator::Delete, Value::from(found.port.uuid));
    plan.transaction.mutate(Bridge::NAME, &Where::row(bridge.uuid), &[mutation]);
    Ok(plan)
}

/// A port is ours when it has our mark.
fn check_ours(found: &Found, bridge: &Bridge) -> Result<(), BridgeError> {
    if found.interface.external_ids.contains_key(MACHINE_KEY) {
        return Ok(());
    }
    Err(BridgeError::Foreign { port: found.port.name.clone(), bridge: bridge.name.clone() })
}

fn insert_port(transaction: &mut Transaction, name: &str, interface: &Row) -> ovsdb::value::Atom {
    let interface = transaction.insert(Interface::NAME, &interface.clone().with("name", name));
    (&transaction.insert(Port::NAME, &Row::new().with("name", name).with("interfaces", &interface))).into()
}

fn add_port(transaction: &mut Transaction, bridge: &Bridge, name: &str, interface: &Row) {
    let port = insert_port(transaction, name, interface);
    let rows = Where::row(bridge.uuid).and("name", Comparison::Equal, bridge.name.as_str());
    // A bridge that went since would match no row, and the new rows would be collected in silence.
    let expected = [Row::new().with("name", bridge.name.as_str())];
    transaction.require(Bridge::NAME, &Where::row(bridge.uuid), &["name"], &expected);
    transaction.mutate(Bridge::NAME, &rows, &[("ports", Mutator::Insert, Value::from(port))]);
}

/// The ports of a bridge by name, without the bridge's own.
pub(super) fn ports(replica: &Replica, bridge: &str) -> Result<BTreeMap<String, PortState>, BridgeError> {
    let found = find_bridge(replica, bridge)?.ok_or_else(|| BridgeError::NoBridge(bridge.to_owned()))?;
    let mut states = BTreeMap::new();
    for uuid in found.ports {
        let Some(port) = Port::get(replica, uuid)?.filter(|port| port.name != bridge) else { continue };
        let Some(&uuid) = port.interfaces.first() else { continue };
        let Some(interface) = Interface::get(replica, uuid)? else { continue };
        let id = |key: &str| interface.external_ids.get(key);
        let state = PortState {
            number: interface.ofport.and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0),
            error: interface.error.clone(),
            port: id(PORT_KEY).and_then(|text| text.parse().ok()),
            machine: id(MACHINE_KEY).and_then(|text| text.parse().ok()),
            physical: id(PHYSICAL_KEY).and_then(|text| text.parse().ok()),
            is_shaped: queues::is_foreign(replica, bridge, &port)?,
            peer: id(PEER_KEY).and_then(|text| text.parse().ok()).map(|endpoint| (endpoint, pulse(&interface))),
        };
        states.insert(port.name, state);
    }
    Ok(states)
}
