//! What must hold of load balancers beside what each is in itself: its address is on its subnet and nobody else's.
//!
//! Never asks whether a member is there, or can be reached: one that is not gets no connection.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{HostNetwork, SpecError, refer, unique};
use crate::address::Mac;
use crate::balancer::{BALANCERS_MAX, MEMBERS_OF_NETWORK_MAX};
use crate::id::NetworkId;

/// Holds all load balancers against the rest.
pub(super) fn check(host: &HostNetwork) -> Result<(), SpecError> {
    if host.balancers.is_empty() {
        return Ok(());
    }
    let (mut keys, mut counts) = (BTreeMap::new(), BTreeMap::<NetworkId, (usize, usize)>::new());
    let (mut addresses, mut macs) = taken(host);
    for balancer in host.balancers.values() {
        let object = format!("{:?}", balancer.id);
        let refuse = |problem: String| Err(SpecError::Unfit { object: object.clone(), problem });
        let subnet = refer(&host.subnets, &object, balancer.subnet)?;
        let network = refer(&host.networks, &object, subnet.network)?;
        unique(&mut keys, balancer.key, &object, || format!("load balancer key {}", balancer.key))?;
        let (address, mac) = (balancer.address, balancer.mac);
        unique(&mut addresses, (network.id, address), &object, || format!("address {address}"))?;
        unique(&mut macs, (network.id, mac), &object, || format!("MAC address {mac}"))?;
        if balancer.key == 0 {
            return refuse("its key is 0".to_owned());
        }
        if !mac.is_unicast() {
            return refuse(format!("{mac} is no unicast MAC address"));
        }
        if !subnet.cidr.contains(&address) {
            return refuse(format!("its address {address} is outside of {}", subnet.cidr));
        }
        if network.provider.is_some() {
            return refuse(format!("its {:?} is a part of a physical network", network.id));
        }
        let count = counts.entry(network.id).or_default();
        *count = (count.0 + 1, count.1 + balancer.members());
        if count.0 > BALANCERS_MAX {
            return refuse(format!("its {:?} has more than {BALANCERS_MAX} load balancers", network.id));
        }
        if count.1 > MEMBERS_OF_NETWORK_MAX {
            let problem =
                format!("load balancers of its {:?} have more than {MEMBERS_OF_NETWORK_MAX} members", network.id);
            return refuse(problem);
        }
        balancer.check().map_err(|error| SpecError::Unfit { object, problem: error.to_string() })?;
    }
    Ok(())
}

/// By network, who has which address and which MAC address.
type Owners<T> = BTreeMap<(NetworkId, T), String>;

/// What ports and routers have.
fn taken(host: &HostNetwork) -> (Owners<IpAddr>, Owners<Mac>) {
    let (mut addresses, mut macs) = (Owners::new(), Owners::new());
    for port in host.ports.values() {
        macs.insert((port.network, port.mac), format!("{:?}", port.id));
        addresses.extend(port.addresses.iter().map(|fixed| ((port.network, fixed.address), format!("{:?}", port.id))));
    }
    for router in host.routers.values() {
        for foot in &router.interfaces {
            let Some(subnet) = host.subnets.get(&foot.subnet) else { continue };
            addresses.insert((subnet.network, foot.address), format!("{:?}", router.id));
            macs.insert((subnet.network, foot.mac), format!("{:?}", router.id));
        }
    }
    (addresses, macs)
}
