//! What the switch tells collectors of the flows that it forwards, by IPFIX.
//!
//! Owns [`FlowExport`] and how it stands in the database. The switch samples, caches and sends by itself: nothing here sees a packet. A bridge whose
//! flows somebody else has exported is left as it is while no export is wanted of us.
//! Source: ovs-vswitchd.conf.db(5), table IPFIX; RFC 7011.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use ovsdb::replica::Replica;
use ovsdb::row::Row;
use ovsdb::tables::{Bridge, Ipfix, Table};
use ovsdb::transaction::{Transaction, Where};
use ovsdb::value::{Atom, Value};

use super::plan::Plan;

/// Marks the row as ours.
const OURS_KEY: &str = "basalt:export";
/// Flow records that wait until they are sent; older ones are sent at once when there are more.
const CACHED_FLOWS_MAX: i64 = 10_000;

/// What is exported, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowExport {
    /// Where collectors listen, by UDP. Each gets all.
    pub collectors: BTreeSet<SocketAddr>,
    /// One packet of so many is looked at.
    pub sampling: NonZeroU32,
    /// For how long packets of a flow are counted until a record of it is sent, in whole seconds, 4200 at most; none: each sampled packet is one.
    pub active: Duration,
    /// By which a collector tells this host from others: the observation domain of RFC 7011 §3.1.
    pub domain: u32,
}

impl FlowExport {
    fn row(&self) -> Row {
        let active = i64::try_from(self.active.as_secs()).unwrap_or(i64::MAX);
        Row::new()
            .with("targets", Value::set(self.collectors.iter().map(ToString::to_string).map(Atom::String)))
            .with("sampling", i64::from(self.sampling.get()))
            .with("obs_domain_id", i64::from(self.domain))
            .with("cache_active_timeout", active)
            .with("cache_max_flows", CACHED_FLOWS_MAX)
            .with("external_ids", Value::map([(OURS_KEY, "bridge")]))
    }
}

/// The row for a bridge that is being made.
pub(super) fn create(transaction: &mut Transaction, export: &FlowExport) -> Atom {
    (&transaction.insert(Ipfix::NAME, &export.row())).into()
}

/// Plans what a bridge exports.
pub(super) fn plan(plan: &mut Plan, replica: &Replica, bridge: &Bridge, export: Option<&FlowExport>) {
    let found = bridge.ipfix.and_then(|uuid| Some((uuid, replica.row(Ipfix::NAME, uuid)?)));
    let is_ours = |row: &Row| {
        row.get("external_ids").and_then(Value::as_map).is_some_and(|ids| ids.contains_key(&OURS_KEY.into()))
    };
    match (export, found) {
        (None, Some((_, row))) if is_ours(row) => {
            plan.steps.push(format!("export no flows of bridge {}", bridge.name));
            let none = Row::new().with("ipfix", Value::empty());
            plan.transaction.update(Bridge::NAME, &Where::row(bridge.uuid), &none);
        }
        (None, _) => {}
        (Some(export), None) => {
            plan.steps.push(format!("export flows of bridge {}", bridge.name));
            let row = create(&mut plan.transaction, export);
            plan.transaction.update(Bridge::NAME, &Where::row(bridge.uuid), &Row::new().with("ipfix", row));
        }
        (Some(export), Some((uuid, row))) => {
            let differing = export.row().differing_from(row);
            if !differing.is_empty() {
                plan.steps.push(format!("set {differing} on the export of bridge {}", bridge.name));
                plan.transaction.update(Ipfix::NAME, &Where::row(uuid), &differing);
            }
        }
    }
}
