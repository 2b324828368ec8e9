//! Delivery to the ports of this host: one flow each, whose counters are the port's.

use openflow::flow::{Action, Match};

use crate::compile::view::{Spot, View};
use crate::cookie::{Cookie, Object};
use crate::feature::{Feature, qos};
use crate::flow_set::Part;
use crate::register::TARGET;
use crate::table::Table;

const HERE: u16 = 100;

pub(crate) fn host(part: &mut Part) {
    part.add_miss(Table::Output);
}

/// A port that is plugged in here.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let (Some(_), Some(number)) = (spot.segment, view.number(spot.port.id)) else { return };
    let cookie = Cookie { feature: Feature::Deliver, object: Object::Port(spot.port.key) };
    let to = Match::new().with(TARGET.field, spot.port.key);
    part.plug(number, spot.port.key);
    let steps = qos::receiving(spot.port).into_iter().chain([Action::output(number)]).collect();
    part.add(Table::Output, HERE, to, steps, cookie);
}
