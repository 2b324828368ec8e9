//! Queues on the interfaces of physical networks: what ports are promised of them.
//!
//! Owns the rows of tables QoS and Queue that have our mark, and the QoS of ports of ours that has it; what somebody else has put on such a port stays,
//! and no port has a queue there then. An interface has queues only while a port has a minimum on it: before the first one and after the last it is as
//! it was. Each queue has its minimum and may take what the others leave, up to what the link carries; queue 0, for everybody else, has what is not
//! promised.
//!
//! Invariant: a queue keeps its number as long as its port is promised anything there, and no number is twice on this bridge, so that a packet that leaves
//! by another interface than its port's has no other port's queue.
//! Source: ovs-vswitchd.conf.db(5), tables QoS (linux-htb) and Queue; tc-htb(8).

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use model::PortId;
use model::provider::PhysicalNetwork;
use ovsdb::Uuid;
use ovsdb::replica::Replica;
use ovsdb::row::Row;
use ovsdb::tables::{Bridge, Port, Qos, Queue, Table};
use ovsdb::transaction::{Transaction, Where};
use ovsdb::value::{Atom, Value};

use super::plan::{Plan, find_bridge, find_port};
use super::{BridgeError, Settings};
use crate::compile::Minimums;

/// Marks a row as ours, with the name of the bridge.
const BRIDGE_KEY: &str = "basalt:bridge";
/// The port that a queue is for.
const PORT_KEY: &str = "basalt:port";
/// The only kind with minimums that Linux has under Open vSwitch, beside linux-hfsc.
const KIND: &str = "linux-htb";
/// The queue of everybody else.
const REST: i64 = 0;
/// One more than the last number that Open vSwitch has a class of linux-htb for.
const NUMBERS_END: i64 = 0xf000;
/// The part of the link that is everybody else's, whatever is promised: one of so many.
const REST_PART: u64 = 10;
/// What a queue may send at once: what the link carries in two milliseconds, for the kernel may come so late, in bits for each thousand a second.
const BURST: u64 = 2;

/// The queues of our ports by number.
pub(super) fn numbers(replica: &Replica, bridge: &str) -> Result<BTreeMap<PortId, u32>, BridgeError> {
    let mut numbers = BTreeMap::new();
    for qos in ours(replica, bridge)? {
        let used = Port::all(replica)?.iter().any(|port| port.qos == Some(qos.uuid));
        for (port, (number, _)) in queues(replica, &qos)?.into_iter().filter(|_| used) {
            numbers.extend(u32::try_from(number).ok().map(|number| (port, number)));
        }
    }
    Ok(numbers)
}

/// Whether somebody else has shaped what leaves by a port.
pub(super) fn is_foreign(replica: &Replica, bridge: &str, port: &Port) -> Result<bool, BridgeError> {
    let Some(qos) = port.qos else { return Ok(false) };
    Ok(!ours(replica, bridge)?.iter().any(|mine| mine.uuid == qos))
}

/// Plans the queues of all physical networks.
pub(super) fn plan(replica: &Replica, settings: &Settings, wanted: &Minimums) -> Result<Plan, BridgeError> {
    let bridge =
        find_bridge(replica, &settings.bridge)?.ok_or_else(|| BridgeError::NoBridge(settings.bridge.clone()))?;
    let mut plan = Plan::default();
    let mine = ours(replica, &bridge.name)?;
    if wanted.is_empty() && mine.is_empty() && !Queue::all(replica)?.iter().any(|row| is_marked(row, &bridge.name)) {
        return Ok(plan);
    }
    let mut kept = Kept::default();
    let mut links = Vec::new();
    for (network, minimums) in wanted {
        let link = settings.physical.get(network).zip(settings.bandwidth_kbps.get(network));
        let Some((interface, capacity)) = link.filter(|_| !minimums.is_empty()) else { continue };
        let found = match find_port(replica, &bridge, interface) {
            Err(BridgeError::Elsewhere { .. }) | Ok(None) => continue,
            found => found?,
        };
        let Some(port) = found.map(|found| found.port) else { continue };
        let qos = mine.iter().find(|mine| Some(mine.uuid) == port.qos);
        if port.qos.is_some() && qos.is_none() {
            continue;
        }
        let has = qos.map(|qos| queues(replica, qos)).transpose()?.unwrap_or_default();
        let has: Queues = has.into_iter().filter(|(port, _)| minimums.contains_key(port)).collect();
        kept.numbers.extend(has.values().map(|(number, _)| *number));
        links.push(Link { network, port, qos, has, minimums, capacity: *capacity });
    }
    for link in links {
        link.plan(&mut plan, replica, &bridge.name, &mut kept)?;
    }
    sweep(&mut plan, replica, &bridge, &kept)?;
    Ok(plan)
}

/// The queue of each port: its number and its row.
type Queues = BTreeMap<PortId, (i64, Uuid)>;

/// Rows and numbers that stay or are given.
#[derive(Debug, Default)]
struct Kept {
    rows: BTreeSet<Uuid>,
    numbers: BTreeSet<i64>,
}

impl Kept {
    fn next(&mut self) -> Option<i64> {
        let number = (REST + 1..NUMBERS_END).find(|number| !self.numbers.contains(number))?;
        self.numbers.insert(number);
        Some(number)
    }
}

/// The interface of a physical network that ports have minimums on.
struct Link<'a> {
    network: &'a PhysicalNetwork,
    port: Port,
    /// Its settings, if it has any.
    qos: Option<&'a Qos>,
    /// The queues that stay.
    has: Queues,
    minimums: &'a BTreeMap<PortId, NonZeroU32>,
    capacity: NonZeroU32,
}

impl Link<'_> {
    fn plan(self, plan: &mut Plan, replica: &Replica, bridge: &str, kept: &mut Kept) -> Result<(), BridgeError> {
        let capacity = u64::from(self.capacity.get());
        let promised: u64 = self.minimums.values().map(|minimum| u64::from(minimum.get())).sum();
        let most = promisable(capacity);
        let rest = capacity.saturating_sub(promised.min(most)).max(1);
        let mut steps = Vec::new();
        let transaction = &mut plan.transaction;
        let row = |minimum: u64, port: Option<PortId>| {
            let ids =
                port.map(|port| (PORT_KEY, port.to_string())).into_iter().chain([(BRIDGE_KEY, bridge.to_owned())]);
            let burst = ("burst", (capacity * BURST).to_string());
            let rates = [("max-rate", bits(capacity)), ("min-rate", bits(minimum)), burst];
            Row::new().with("other_config", Value::map(rates)).with("external_ids", Value::map(ids))
        };
        let spare = self.qos.and_then(|qos| qos.queues.get(&REST)).copied();
        let spare = spare.map(|uuid| Queue::get(replica, uuid)).transpose()?.flatten();
        let spare = spare.filter(|queue| is_marked(queue, bridge)).map(|queue| queue.uuid);
        let (queue, differs) = keep(transaction, replica, (spare, &row(rest, None)), kept);
        if differs {
            steps.push(format!("leave {rest} kbit/s of physical network {} to everybody else", self.network));
        }
        let mut all: Vec<(i64, Atom)> = vec![(REST, queue)];
        for (id, minimum) in self.minimums {
            // A link that carries less than was promised gives each its part of that.
            let kept_of = |kbps: u64| if promised > most { (kbps * most / promised).max(1) } else { kbps };
            let (has, minimum) = (self.has.get(id), kept_of(minimum.get().into()));
            let Some(number) = has.map(|(number, _)| *number).or_else(|| kept.next()) else { continue };
            let wanted = row(minimum, Some(*id));
            let (queue, differs) = keep(transaction, replica, (has.map(|(_, uuid)| *uuid), &wanted), kept);
            if differs {
                let network = self.network;
                steps
                    .push(format!("give port {id} queue {number} with {minimum} kbit/s of physical network {network}"));
            }
            all.push((number, queue));
        }
        let wanted = Row::new()
            .with("type", KIND)
            .with("queues", Value::map(all))
            .with("other_config", Value::map([("max-rate", bits(capacity))]))
            .with("external_ids", Value::map([(BRIDGE_KEY, bridge)]));
        if let Some(qos) = self.qos {
            kept.rows.insert(qos.uuid);
            let differing = replica.row(Qos::NAME, qos.uuid).map_or(wanted.clone(), |is| wanted.differing_from(is));
            if !differing.is_empty() {
                steps.push(format!("set {differing} on the queues of port {}", self.port.name));
                transaction.update(Qos::NAME, &Where::row(qos.uuid), &differing);
            }
        } else {
            steps.push(format!("give port {} queues, and {capacity} kbit/s in all", self.port.name));
            let qos = transaction.insert(Qos::NAME, &wanted);
            // Somebody else may be about to shape it.
            let none = [Row::new().with("qos", Value::empty())];
            transaction.require(Port::NAME, &Where::row(self.port.uuid), &["qos"], &none);
            let with = Row::new().with("qos", &qos);
            transaction.update(Port::NAME, &Where::row(self.port.uuid), &with);
        }
        plan.steps.extend(steps);
        Ok(())
    }
}

/// Keeps a row of table Queue, corrected, or makes it; says whether anything changes.
fn keep(
    transaction: &mut Transaction,
    replica: &Replica,
    wanted: (Option<Uuid>, &Row),
    kept: &mut Kept,
) -> (Atom, bool) {
    let (Some(uuid), row) = wanted else {
        return ((&transaction.insert(Queue::NAME, wanted.1)).into(), true);
    };
    kept.rows.insert(uuid);
    let differing = replica.row(Queue::NAME, uuid).map_or_else(|| row.clone(), |is| row.differing_from(is));
    if !differing.is_empty() {
        transaction.update(Queue::NAME, &Where::row(uuid), &differing);
    }
    (uuid.into(), !differing.is_empty())
}

/// Takes away what is ours and was not kept.
fn sweep(plan: &mut Plan, replica: &Replica, bridge: &Bridge, kept: &Kept) -> Result<(), BridgeError> {
    for qos in ours(replica, &bridge.name)?.into_iter().filter(|qos| !kept.rows.contains(&qos.uuid)) {
        for port in Port::all(replica)?.into_iter().filter(|port| port.qos == Some(qos.uuid)) {
            plan.steps.push(format!("take the queues off port {}: nothing is promised there any more", port.name));
            let none = Row::new().with("qos", Value::empty());
            // Somebody else may be about to put theirs there.
            let still = [Row::new().with("qos", qos.uuid)];
            plan.transaction.require(Port::NAME, &Where::row(port.uuid), &["qos"], &still);
            plan.transaction.update(Port::NAME, &Where::row(port.uuid), &none);
        }
        plan.steps.push(format!("delete settings {} of queues", qos.uuid));
        plan.transaction.delete(Qos::NAME, &Where::row(qos.uuid));
    }
    let over = |queue: &Queue| is_marked(queue, &bridge.name) && !kept.rows.contains(&queue.uuid);
    for queue in Queue::all(replica)?.into_iter().filter(over) {
        plan.steps.push(match queue.external_ids.get(PORT_KEY) {
            Some(port) => format!("delete the queue of port {port}"),
            None => format!("delete queue {}", queue.uuid),
        });
        plan.transaction.delete(Queue::NAME, &Where::row(queue.uuid));
    }
    Ok(())
}

/// What of a link may be promised, in thousands of bits: the rest is for routers, answers of the host, and ports without a minimum.
#[must_use]
pub const fn promisable(capacity: u64) -> u64 {
    capacity - capacity.div_ceil(REST_PART)
}

/// Our rows of table QoS.
fn ours(replica: &Replica, bridge: &str) -> Result<Vec<Qos>, BridgeError> {
    let all = Qos::all(replica)?.into_iter();
    Ok(all.filter(|qos| qos.external_ids.get(BRIDGE_KEY).is_some_and(|name| name == bridge)).collect())
}

fn is_marked(queue: &Queue, bridge: &str) -> bool {
    queue.external_ids.get(BRIDGE_KEY).is_some_and(|name| name == bridge)
}

/// The queues of ports among our settings of an interface.
fn queues(replica: &Replica, qos: &Qos) -> Result<Queues, BridgeError> {
    let mut queues = Queues::new();
    for (number, uuid) in &qos.queues {
        let bridge = qos.external_ids.get(BRIDGE_KEY).map_or("", String::as_str);
        let Some(queue) = Queue::get(replica, *uuid)?.filter(|queue| is_marked(queue, bridge)) else { continue };
        let port = queue.external_ids.get(PORT_KEY).and_then(|text| text.parse().ok());
        queues.extend(port.map(|port| (port, (*number, *uuid))));
    }
    Ok(queues)
}

/// A rate as Open vSwitch has it: bits in a second.
fn bits(kbps: u64) -> String {
    (kbps * 1000).to_string()
}
