//! What must hold of mirrors: who gets copies is known, is not copied itself, and has a tunnel number that is nobody else's.
//!
//! Never asks what network a port is on: copies are no frames of one.

use std::collections::BTreeMap;

use super::{HostNetwork, SpecError, refer, unique};
use crate::address::Vni;

/// Holds mirrored ports against those that get the copies, and these against their numbers and places.
pub(super) fn check(host: &HostNetwork) -> Result<(), SpecError> {
    let unfit = |object: &str, problem: String| Err(SpecError::Unfit { object: object.to_owned(), problem });
    if let Some(network) = host.networks.values().find(|network| Vni::MIRRORS.contains(&network.vni.get())) {
        return unfit(&format!("{:?}", network.id), format!("its VNI {} is kept for mirrors", network.vni));
    }
    for port in host.ports.values() {
        let Some(mirror) = port.mirror else { continue };
        let object = format!("{:?}", port.id);
        if mirror.to == port.id {
            return unfit(&object, "it is mirrored to itself".to_owned());
        }
        refer(&host.mirrors, &object, mirror.to)?;
        if host.ports.get(&mirror.to).is_some_and(|target| target.mirror.is_some()) {
            return unfit(&object, format!("it is mirrored to {:?}, which is mirrored itself", mirror.to));
        }
    }
    let mut numbers = BTreeMap::new();
    for target in host.mirrors.values() {
        let object = format!("mirror to {:?}", target.port);
        unique(&mut numbers, target.vni, &object, || format!("VNI {}", target.vni))?;
        if !Vni::MIRRORS.contains(&target.vni.get()) {
            return unfit(&object, format!("its VNI {} is not kept for mirrors", target.vni));
        }
        if target.is_on(host.host) && !refer(&host.ports, &object, target.port)?.is_on(host.host) {
            return unfit(&object, "the port is not plugged in on this host".to_owned());
        }
    }
    Ok(())
}
