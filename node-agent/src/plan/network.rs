//! Taps, their places on the bridge and the flows.

use std::collections::BTreeMap;

use model::network::Port;
use model::spec::NodeSpec;

use super::{Lane, Plan, Step};
use crate::driver::Plug;
use crate::seen::{Bridge, Look, Seen, Tap};

/// Who owns a tap whose machine is not here: the superuser, whom no tap keeps out. A tap without an owner is anybody's (tuntap.txt, "TUNSETOWNER").
const NOBODY: u32 = 0;

/// Plans the taps that should be, the taps that should not, and the flows.
pub(super) fn plan(plan: &mut Plan, spec: &NodeSpec, seen: &Seen) {
    let mut wanted = BTreeMap::new();
    // A sub-port is on the tap of its parent.
    let network = spec.network();
    for port in network.local_ports().chain(network.awaited_ports()).filter(|port| port.trunk.is_none()) {
        wanted.insert(port.tap_name(), port);
    }
    for (name, port) in &wanted {
        present(plan, spec, seen, name, port);
    }
    let made = seen.taps.known().into_iter().flat_map(BTreeMap::keys);
    let plugged = seen.switch.known().into_iter().flat_map(|bridge| bridge.ports.keys());
    let surplus: std::collections::BTreeSet<&String> =
        made.chain(plugged).filter(|name| !wanted.contains_key(*name)).collect();
    for name in surplus {
        absent(plan, seen, name);
    }
    flows(plan, spec, seen);
}

fn present(plan: &mut Plan, spec: &NodeSpec, seen: &Seen, name: &str, port: &Port) {
    let lane = Lane::Tap(name.to_owned());
    let taps = match &seen.taps {
        Look::Known(taps) => taps,
        Look::Unknown(problem) => return plan.block(lane, problem.clone()),
    };
    let Some(owner) = owner(spec, seen, port) else {
        return plan.wait(lane, "its machine is not registered yet");
    };
    let mtu = spec.network().networks.get(&port.network).map_or(1500, |network| u32::from(network.mtu));
    let want = Tap { owner: Some(owner), mtu, up: true };
    let set = Step::SetTap { tap: name.to_owned(), port: port.id, want };
    match taps.get(name) {
        None => return plan.step(set),
        Some(tap) if *tap == want => {}
        // The owner of a tap that a guest uses matters to nobody; MTU and state can be put right under it.
        Some(tap) if tap.owner != want.owner && !seen.may_use_tap(name) => return plan.step(set),
        Some(tap) if (tap.mtu, tap.up) != (want.mtu, want.up) => return plan.step(set),
        Some(_) => {}
    }
    match &seen.switch {
        Look::Unknown(problem) => plan.block(lane, problem.clone()),
        Look::Known(Bridge { ports, .. }) => match ports.get(name) {
            Some(Some(_)) => plan.right(lane),
            Some(None) | None => {
                let Some(binding) = &port.binding else { return };
                let (tap, machine) = (name.to_owned(), binding.machine);
                plan.step(Step::PlugTap(Plug { tap, port: port.id, machine, mac: port.mac }));
            }
        },
    }
}

/// The user id of the machine that the port is plugged into; nobody's where that machine is another host's, so that nobody attaches to a tap that awaits it.
fn owner(spec: &NodeSpec, seen: &Seen, port: &Port) -> Option<u32> {
    let machine = port.binding.as_ref()?.machine;
    let machines = seen.machines.known()?;
    let known = machines.get(&machine).and_then(crate::seen::Look::known).map(|seen| seen.record.uid);
    let is_elsewhere = !machines.contains_key(&machine) && !spec.machines().contains_key(&machine);
    known.or_else(|| is_elsewhere.then_some(NOBODY))
}

fn absent(plan: &mut Plan, seen: &Seen, name: &str) {
    let lane = Lane::Tap(name.to_owned());
    if seen.may_use_tap(name) {
        return plan.wait(lane, "it is removed once no machine has it open");
    }
    match &seen.switch {
        Look::Unknown(problem) => plan.block(lane, problem.clone()),
        Look::Known(bridge) if bridge.ports.contains_key(name) => plan.step(Step::UnplugTap(name.to_owned())),
        Look::Known(_) => plan.step(Step::DeleteTap(name.to_owned())),
    }
}

fn flows(plan: &mut Plan, spec: &NodeSpec, seen: &Seen) {
    match &seen.switch {
        Look::Unknown(problem) => plan.block(Lane::Flows, problem.clone()),
        Look::Known(bridge) if bridge.changes_pending == 0 => plan.right(Lane::Flows),
        Look::Known(_) => plan.step(Step::ProgramFlows(Box::new(spec.network().clone()))),
    }
}
