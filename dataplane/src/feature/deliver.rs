//! Delivery to the ports of this host: one flow each, whose counters are the port's.

use model::network::Port;
use openflow::flow::{Action, Match, PortNo};

use crate::compile::view::{Spot, View};
use crate::cookie::{Cookie, Object};
use crate::feature::{Feature, mirror, qos, trunk};
use crate::flow_set::Part;
use crate::register::TARGET;
use crate::table::Table;

const HERE: u16 = 100;

pub(crate) fn host(part: &mut Part) {
    part.add_miss(Table::Output);
}

/// A port that is plugged in here.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let (Some(_), Some(number)) = (spot.segment, view.number(spot.port)) else { return };
    let cookie = Cookie { feature: Feature::Deliver, object: Object::Port(spot.port.key) };
    let to = Match::new().with(TARGET.field, spot.port.key);
    part.plug(number, spot.port.tag(), spot.port.key);
    part.add(Table::Output, HERE, to, steps(view, spot.port, number), cookie);
}

/// What hands a packet to a port, out of this OpenFlow port.
pub(crate) fn steps(view: &View<'_>, port: &Port, exit: PortNo) -> Vec<Action> {
    let copy = mirror::received(view, port);
    qos::receiving(port).chain(copy).chain(trunk::tag(port)).chain([Action::output(exit)]).collect()
}
