//! Mirroring: another port gets a copy of what a port may send, of what it is sent, or of both.
//!
//! A copy is one more action where the frame is anyway: where it has passed anti-spoofing (tables classify and, of IPv6, guard) and where it is
//! delivered or answered (output, reply, and what the agent sends). It goes straight out of the tap of who gets it, or by tunnel with a VNI of its
//! own to the host of that port, where table arrive hands it over. It meets no other table, so nothing judges, routes, limits or copies it, and
//! nothing of it is left in the frame that goes on. A port that is not mirrored has the flows that it has without this.
//!
//! A copy has no VLAN tag of a trunk but that of the port that gets it, and of what its owner asks for, neither limit nor DSCP mark. Frames that the
//! switch answers with silence (probes for the port's own address) are copied, too: the machine may send them. Open vSwitch sends nothing out of the
//! port that a frame came in by; a copy forgets which that was, for who gets it may be who sent the frame.
//! Source: ovs-actions(7) "clone", "The in_port field"; RFC 7348 §5 (VNI).

use std::net::{Ipv4Addr, Ipv6Addr};

use model::mirror::MirrorTarget;
use model::network::Port;
use model::provider::VlanId;
use model::spec::HostNetwork;
use model::{HostId, PortId};
use openflow::flow::{Action, Field, Match, PortNo};

use crate::compile::PortNumbers;
use crate::compile::view::{Spot, View};
use crate::cookie::{Cookie, Object};
use crate::feature::neighbour::SOLICIT;
use crate::feature::{Feature, provider, qos, trunk};
use crate::flow_set::Part;
use crate::register::{SOURCE, TARGET};
use crate::table::Table;

const ARRIVAL: u16 = 100;
/// Above the drop of ARP probes, below what a port may send.
const ARP_PROBE: u16 = 75;
const ARP_REQUEST: u16 = 1;
/// In table guard: above what holds for every port's probes, bare solicitations, and all the rest.
const PROBE: u16 = 121;
const BARE: u16 = 111;
const REST: u16 = 50;
/// Above delivery to a port by its number.
const OWN: u16 = 105;
/// Below answers to sub-ports, which have their own.
const ANSWER: u16 = 90;
/// What the ingress port of a copy is: none, so that it may leave by any.
const NO_PORT: u16 = 0;

/// The way of copies to the port that gets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To a tap of this host.
    Here(PortNo, Option<VlanId>),
    /// To another host, by tunnel.
    There { endpoint: Ipv4Addr, vni: u32, vxlan: PortNo },
}

impl Way {
    /// The way to a port; none while there is none.
    fn to(
        target: &MirrorTarget,
        here: HostId,
        tap: impl FnOnce(PortId) -> Option<(PortNo, Option<VlanId>)>,
        tunnel: impl FnOnce() -> Option<PortNo>,
    ) -> Option<Self> {
        let place = target.place?;
        if place.host == here {
            return tap(target.port).map(|(number, tag)| Self::Here(number, tag));
        }
        Some(Self::There { endpoint: place.tunnel, vni: target.vni.get(), vxlan: tunnel()? })
    }

    /// What makes a copy and sends it this way.
    fn copy(self) -> Action {
        let mut steps = vec![Action::set(Field::InPort16, NO_PORT)];
        match self {
            Self::Here(number, tag) => steps.extend(to_tap(number, tag)),
            Self::There { endpoint, vni, vxlan } => {
                let header = [Action::set(Field::TunId, vni), Action::set(Field::TunDst, endpoint)];
                steps.extend(header.into_iter().chain([Action::output(vxlan)]));
            }
        }
        Action::Clone(steps)
    }
}

fn to_tap(number: PortNo, tag: Option<VlanId>) -> impl Iterator<Item = Action> {
    tag.into_iter().flat_map(provider::tag).chain([Action::output(number)])
}

/// Where the copies of a port go.
fn way(view: &View<'_>, port: &Port) -> Option<Way> {
    let target = view.mirror(port.mirror?.to)?;
    let tap = |id: PortId| view.port(id).and_then(|to| Some((view.number(to)?, to.tag())));
    Way::to(target, view.here(), tap, || view.tunnel())
}

/// What copies what a port may send.
pub(crate) fn sent(view: &View<'_>, port: &Port) -> Option<Action> {
    port.mirror.filter(|mirror| mirror.direction.has_out() && !view.is_awaited(port))?;
    way(view, port).map(Way::copy)
}

/// What copies what a port is sent.
pub(crate) fn received(view: &View<'_>, port: &Port) -> Option<Action> {
    port.mirror.filter(|mirror| mirror.direction.has_in() && !view.is_awaited(port))?;
    way(view, port).map(Way::copy)
}

/// What copies what the agent sends to a port.
pub(crate) fn answered(host: &HostNetwork, numbers: &PortNumbers, port: &Port) -> Option<Action> {
    let mirror = port.mirror.filter(|mirror| mirror.direction.has_in())?;
    let tap = |id: PortId| host.ports.get(&id).and_then(|to| Some((numbers.of(to)?, to.tag())));
    Way::to(host.mirrors.get(&mirror.to)?, host.host, tap, || numbers.vxlan).map(Way::copy)
}

/// A port that gets copies: what comes for it from other hosts.
pub(crate) fn target(view: &View<'_>, target: &MirrorTarget, part: &mut Part) {
    part.name(Object::Mirror(target.vni.get()), format!("port {}", target.name));
    if !target.is_on(view.here()) || view.tunnel().is_none() {
        return;
    }
    let Some((port, number)) = view.port(target.port).and_then(|port| Some((port, view.number(port)?))) else { return };
    let cookie = Cookie { feature: Feature::Mirror, object: Object::Port(port.key) };
    let arrival = Match::new().with(Field::TunId, target.vni.get());
    let note = "a copy of what another port sent or was sent".to_owned();
    part.add_noted(Table::Arrive, ARRIVAL, arrival, to_tap(number, port.tag()).collect(), (cookie, note));
}

/// A port that is plugged in here.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let (Some(_), Some(number)) = (spot.segment, view.number(spot.port)) else { return };
    if let Some(copy) = sent(view, spot.port).filter(|_| spot.port.port_security) {
        add_silenced(view, spot.port, (number, copy), part);
    }
    if let Some(copy) = received(view, spot.port) {
        add_received(spot.port, (number, copy), part);
    }
}

/// What a guarded port may send and no flow of its own is for.
fn add_silenced(view: &View<'_>, port: &Port, (number, copy): (PortNo, Action), part: &mut Part) {
    let cookie = Cookie { feature: Feature::Mirror, object: Object::Port(port.key) };
    let mac = port.mac.bytes();
    let probe = trunk::frames(port, number).eth_src(mac).arp().with(Field::ArpSpa, Ipv4Addr::UNSPECIFIED);
    let probe = probe.with(Field::ArpOp, ARP_REQUEST).with(Field::ArpSha, mac);
    let steps = qos::sending(port).chain(trunk::untag(port)).chain([copy.clone()]).collect();
    let note = || "it asks whether an address is taken, which the switch knows better".to_owned();
    part.add_noted(Table::Classify, trunk::rank(port, ARP_PROBE), probe, steps, (cookie, note()));
    let solicit = Match::new().icmp6().with(SOURCE.field, port.key).with(Field::Icmpv6Type, SOLICIT);
    let probe = solicit.clone().with(Field::Ipv6Src, Ipv6Addr::UNSPECIFIED);
    part.add_noted(Table::Guard, PROBE, probe, vec![copy], (cookie, note()));
    let onward = || past_guard(view, port, Table::Neighbour);
    part.add(Table::Guard, BARE, solicit.with(Field::NdSll, [0; 6]), onward(), cookie);
    part.add(Table::Guard, REST, Match::new().ipv6().with(SOURCE.field, port.key), onward(), cookie);
}

/// What leads a packet of a guarded port on once table guard has let it pass: there it is copied and marked if it is mirrored.
pub(crate) fn past_guard(view: &View<'_>, port: &Port, next: Table) -> Vec<Action> {
    let copy = sent(view, port);
    let mark = copy.is_some().then(|| qos::mark(port)).flatten();
    copy.into_iter().chain(mark).chain([Action::GotoTable(next.number())]).collect()
}

/// What a port is sent and no flow of its own is for; and what is not sent, for it came from there.
fn add_received(port: &Port, (number, copy): (PortNo, Action), part: &mut Part) {
    let cookie = Cookie { feature: Feature::Mirror, object: Object::Port(port.key) };
    let own = Match::new().in_port(number).with(TARGET.field, port.key);
    part.add_noted(Table::Output, OWN, own, Vec::new(), (cookie, "it is from there".to_owned()));
    if port.trunk.is_none() {
        // Who answers is known by now: this flow is nobody's.
        let nobody = Cookie { feature: Feature::Mirror, object: Object::Pipeline };
        let note = format!("back to who asked, port {}", port.name);
        let asked = Match::new().with(SOURCE.field, port.key);
        let answer = vec![copy, Action::output(PortNo::IN_PORT)];
        part.add_noted(Table::Reply, ANSWER, asked, answer, (nobody, note));
    }
}
