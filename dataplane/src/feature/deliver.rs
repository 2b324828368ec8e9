//! Delivery to the ports of this host: one flow each, whose counters are the port's.

use openflow::flow::{Action, Match};

use crate::compile::Plan;
use crate::cookie::{Cookie, Object};
use crate::feature::Feature;
use crate::flow_set::FlowSet;
use crate::register::TARGET;
use crate::table::Table;

const HERE: u16 = 100;

pub(crate) fn add(plan: &Plan<'_>, set: &mut FlowSet) {
    set.add_miss(Table::Output);
    for local in plan.segments.iter().flat_map(|segment| &segment.local) {
        let Some(number) = local.number else { continue };
        let cookie = Cookie { feature: Feature::Deliver, object: Object::Port(local.port.key) };
        let to = Match::new().with(TARGET.field, local.port.key);
        set.plug(number, local.port.key);
        set.add(Table::Output, HERE, to, vec![Action::output(number)], cookie);
    }
}
