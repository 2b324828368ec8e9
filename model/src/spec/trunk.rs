//! What must hold of trunks: a sub-port is where its parent is, and the tag says which one a frame is of.
//!
//! Never asks what network a sub-port is on: it may be any, its parent's too. Invariant: on a tap of this host each tag belongs to one port at most.

use std::collections::BTreeMap;

use super::{HostNetwork, SpecError, refer, unique};

/// Holds all sub-ports against their parents. The parent of a sub-port that is not here need not be known.
pub(super) fn check(host: &HostNetwork) -> Result<(), SpecError> {
    let mut tags = BTreeMap::new();
    for port in host.ports.values() {
        let Some(trunk) = port.trunk else { continue };
        let object = format!("{:?}", port.id);
        let refuse = |problem: String| Err(SpecError::Unfit { object: object.clone(), problem });
        unique(&mut tags, (trunk.parent, trunk.vlan), &object, || {
            format!("VLAN {} of {:?}", trunk.vlan.get(), trunk.parent)
        })?;
        let parent = match host.ports.get(&trunk.parent) {
            None if !port.is_on(host.host) => continue,
            _ => refer(&host.ports, &object, trunk.parent)?,
        };
        if parent.trunk.is_some() {
            return refuse(format!("its parent {:?} is a sub-port itself", parent.id));
        }
        let place = |port: &crate::network::Port| {
            (port.binding.as_ref().map(|binding| (binding.host, binding.machine)), port.arriving)
        };
        if place(port) != place(parent) {
            return refuse(format!("it is plugged in elsewhere than its parent {:?}", parent.id));
        }
    }
    Ok(())
}
