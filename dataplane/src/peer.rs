//! Other hosts whose life matters here: the gateways of a router to those that use it, and the other way round.
//!
//! Owns [`Peer`]. Each peer has a tunnel port of its own, over which both switches speak BFD (RFC 5880) by themselves; what they find out groups of
//! flows follow at once, without the agent. A peer that was never heard may be an agent that does not know of this, so it is taken for alive: then the
//! scheduler alone decides. Source: RFC 5880 §6.8, ovs-vswitchd.conf.db(5) "Bidirectional Forwarding Detection".

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use openflow::flow::PortNo;

/// The most peers of a host: each costs about four packets a second each way.
pub const PEERS_MAX: usize = 256;

/// Peers by tunnel endpoint.
pub type Peers = BTreeMap<Ipv4Addr, Peer>;

/// What is known of another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The OpenFlow port of its tunnel.
    pub number: PortNo,
    /// Whether it has ever told that it is alive.
    pub is_heard: bool,
    /// Whether it tells so now.
    pub is_alive: bool,
}

impl Peer {
    /// Whether it was alive and is not now.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        self.is_heard && !self.is_alive
    }
}

/// Whether two sets of peers differ in nothing but who is alive.
pub(crate) fn are_alike(this: &Peers, that: &Peers) -> bool {
    let rest = |peers: &Peers| peers.iter().map(|(at, peer)| (*at, peer.number, peer.is_heard)).collect::<Vec<_>>();
    rest(this) == rest(that)
}

/// What is known now, with what was known before: a peer that was heard once stays so while it has its port, though the switch forgets.
#[must_use]
pub fn remember(mut now: Peers, before: &Peers) -> Peers {
    for (endpoint, peer) in &mut now {
        peer.is_heard |= peer.is_alive || before.get(endpoint).is_some_and(|before| before.is_heard);
    }
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A switch that was started again tells nothing of its peers until they speak; they are not taken for agents of before then.
    #[test]
    fn who_was_heard_stays_heard() {
        let at = |last: u8| Ipv4Addr::new(192, 0, 2, last);
        let peer = |is_heard, is_alive| Peer { number: PortNo(7), is_heard, is_alive };
        let before = Peers::from([(at(1), peer(true, true)), (at(2), peer(false, false)), (at(3), peer(true, true))]);
        let now = Peers::from([(at(1), peer(false, false)), (at(2), peer(false, false)), (at(4), peer(false, true))]);
        let now = remember(now, &before);
        assert!(now[&at(1)].is_lost() && !now[&at(2)].is_lost() && now[&at(4)].is_heard);
        assert!(!are_alike(&before, &now));
        let alive = Peers::from([(at(1), peer(true, true))]);
        assert!(are_alike(&alive, &Peers::from([(at(1), peer(true, false))])));
    }
}
