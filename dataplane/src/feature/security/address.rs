//! The addresses of address groups: one clause flow for each address and table, whatever number of rules names the group.
//!
//! The unit is the address group, so that an address more or less touches its own flows only; the other clauses of the conjunction (who has the rule,
//! what it lets by) and its end are the security group's. Addresses within one another are clauses of the same number: any one of them is enough.
//! Invariant: no flow is two clauses of one conjunction, for Open vSwitch counts the flows that are met, not their clauses (`lib/classifier.c`,
//! `find_conjunctive_match`). So "everyone" is two halves here: alone it would be the same flow as a rule that lets anything by.

use ipnet::IpNet;
use model::address_group::AddressGroup;
use model::security::Direction;
use openflow::flow::Action;

use super::{CONJUNCTION, SIDES};
use crate::compile::view::{Other, View};
use crate::cookie::{Cookie, Object};
use crate::family;
use crate::feature::Feature;
use crate::flow_set::Part;

/// The addresses of a group, for each direction in which rules that hold here name it.
pub(crate) fn addresses(view: &View<'_>, group: &AddressGroup, part: &mut Part) {
    let cookie = Cookie { feature: Feature::Security, object: Object::Addresses(group.key) };
    for (user, direction) in view.users(group.id) {
        let Some(side) = SIDES.iter().find(|side| side.direction == direction) else { continue };
        let id = view.conjunction(user, Other::Addresses(group.id), direction);
        for prefix in &group.addresses {
            for half in halves(*prefix) {
                let packets = family::packets(half);
                let matching = match direction {
                    Direction::Egress => family::to_net(packets, half),
                    Direction::Ingress => family::from_net(packets, half),
                };
                let clause = vec![Action::Conjunction { id, clause: 2, clauses: 3 }];
                let note = format!("{prefix} is in address group {}", group.name);
                part.add_noted(side.table, CONJUNCTION, matching, clause, (cookie, note));
            }
        }
    }
}

/// A prefix as prefixes that match something.
fn halves(prefix: IpNet) -> Vec<IpNet> {
    if prefix.prefix_len() > 0 {
        return vec![prefix.trunc()];
    }
    match prefix {
        IpNet::V4(all) => all.subnets(1).into_iter().flatten().map(IpNet::from).collect(),
        IpNet::V6(all) => all.subnets(1).into_iter().flatten().map(IpNet::from).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_is_two_halves() {
        let halved = |text: &str| halves(text.parse().unwrap()).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(halved("0.0.0.0/0"), ["0.0.0.0/1", "128.0.0.0/1"]);
        assert_eq!(halved("::/0"), ["::/1", "8000::/1"]);
        assert_eq!(halved("10.0.0.0/8"), ["10.0.0.0/8"]);
    }
}
