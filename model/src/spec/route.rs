//! What must hold of a router's static routes: each leads out of one of its subnets, to somebody else, and further than the subnets themselves.
//!
//! Owns the bounds of a router's routes. Never asks whether anybody has the next hop's address: a port may be plugged in later.

use std::collections::{BTreeMap, BTreeSet};

use super::{SpecError, refer};
use crate::id::SubnetId;
use crate::network::{Router, Subnet};

/// The most routes of one router: flows number what shares next hops in 8 bits.
pub const ROUTES_MAX: usize = 256;
/// The most next hops of one destination.
pub const NEXT_HOPS_MAX: usize = 16;

/// Holds a router's routes against its feet.
pub(super) fn check(object: &str, router: &Router, subnets: &BTreeMap<SubnetId, Subnet>) -> Result<(), SpecError> {
    let refuse = |problem: String| Err(SpecError::Unfit { object: object.to_owned(), problem });
    if router.routes.len() > ROUTES_MAX {
        return refuse(format!("it has {} routes, at most {ROUTES_MAX}", router.routes.len()));
    }
    let mut near = Vec::new();
    for foot in &router.interfaces {
        near.push(refer(subnets, object, foot.subnet)?.cidr);
    }
    let mut ways: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for route in &router.routes {
        let (to, hop) = (route.destination, route.next_hop);
        if to != to.trunc() {
            return refuse(format!("its destination {to} has host bits set"));
        }
        if to.addr().is_ipv4() != hop.is_ipv4() {
            return refuse(format!("its next hop {hop} to {to} is of another version of IP"));
        }
        if near.contains(&to) {
            return refuse(format!("its destination {to} is one of its own subnets"));
        }
        if !near.iter().any(|cidr| cidr.contains(&hop)) {
            return refuse(format!("its next hop {hop} to {to} is on no subnet of it"));
        }
        if router.interfaces.iter().any(|foot| foot.address == hop) {
            return refuse(format!("its next hop {hop} to {to} is the router itself"));
        }
        let hops = ways.entry(to).or_default();
        if !hops.insert(hop) {
            return Err(SpecError::Twice { object: format!("the route to {to} by {hop} of {object}") });
        }
        if hops.len() > NEXT_HOPS_MAX {
            return refuse(format!("its destination {to} has more than {NEXT_HOPS_MAX} next hops"));
        }
    }
    Ok(())
}
