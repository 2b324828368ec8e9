//! Other hosts whose life matters here: the gateways of a router to those that use it, and the other way round.
//!
//! Owns [`Peer`], what is remembered of one ([`Memory`]), and how long it is watched ([`Leavers`]). Each peer has a tunnel port of its own, over which both switches speak BFD (RFC 5880) by themselves; what they find out groups of
//! flows follow at once, without the agent. A peer that was never heard may be an agent that does not know of this, so it is taken for alive: then the
//! scheduler alone decides. Source: RFC 5880 §6.8, ovs-vswitchd.conf.db(5) "Bidirectional Forwarding Detection".

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use openflow::flow::PortNo;

/// The most peers of a host: each costs about four packets a second each way.
pub const PEERS_MAX: usize = 256;
/// How long a switch that was started again has to hear its peers: sessions come up after a second or two (RFC 5880 §6.8.3).
pub const HEARING: Duration = Duration::from_secs(4);
/// How long a peer keeps its port after nothing depends on it any more.
pub const KEPT: Duration = Duration::from_mins(10);

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

/// What is remembered of peers while the switch forgets: it is started again and tells nothing of them until they speak, and the database tells what
/// was so before.
#[derive(Debug, Default)]
pub struct Memory {
    heard: BTreeSet<Ipv4Addr>,
    switch: Session,
}

/// How the switch is.
#[derive(Debug, Clone, Copy, Default)]
enum Session {
    /// Not spoken to yet: what the database says of it is so.
    #[default]
    Unknown,
    There,
    Gone,
    /// It has come back: until then nothing that is said of peers counts.
    Back(Instant),
}

impl Memory {
    /// Takes note of whether the switch is there.
    pub fn follow(&mut self, is_there: bool, now: Instant) {
        self.switch = match (self.switch, is_there) {
            (Session::There | Session::Back(_), false) => Session::Gone,
            (Session::Unknown, true) => Session::There,
            (Session::Gone, true) => Session::Back(now + HEARING),
            (same, _) => same,
        };
    }

    /// When to look again though nothing was said.
    #[must_use]
    pub const fn due(&self) -> Option<Instant> {
        match self.switch {
            Session::Back(until) => Some(until),
            _ => None,
        }
    }

    /// What is known of peers, from what the switch tells. A switch that was just started holds none for lost: it would take over from gateways that
    /// it has had no time to hear. Then a peer that was heard once stays so while it has its port.
    pub fn tell(&mut self, mut peers: Peers, now: Instant) -> Peers {
        if matches!(self.switch, Session::Back(until) if until <= now) {
            self.switch = Session::There;
        }
        self.heard.retain(|endpoint| peers.contains_key(endpoint));
        let is_sure = matches!(self.switch, Session::Unknown | Session::There);
        for (endpoint, peer) in &mut peers {
            if is_sure && (peer.is_heard || peer.is_alive) {
                self.heard.insert(*endpoint);
            }
            peer.is_heard = is_sure && self.heard.contains(endpoint);
        }
        peers
    }
}

/// Peers that nothing depends on any more, and that keep their ports for a while: to take one away reads as death at the other side, which may have been
/// told later, or not at all.
#[derive(Debug, Default)]
pub struct Leavers {
    since: BTreeMap<Ipv4Addr, Instant>,
}

impl Leavers {
    /// Who is to have a port: who is wanted, and who was until lately, of those `present`. At most [`PEERS_MAX`].
    pub fn keep(
        &mut self,
        wanted: &BTreeSet<Ipv4Addr>,
        present: &BTreeSet<Ipv4Addr>,
        now: Instant,
    ) -> BTreeSet<Ipv4Addr> {
        self.since.retain(|endpoint, _| present.contains(endpoint) && !wanted.contains(endpoint));
        for endpoint in present.difference(wanted) {
            self.since.entry(*endpoint).or_insert(now);
        }
        let kept = self.since.iter().filter(|(_, since)| **since + KEPT > now).map(|(endpoint, _)| endpoint);
        wanted.iter().chain(kept).take(PEERS_MAX).copied().collect()
    }

    /// When the next one is to go.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.since.values().min().map(|since| *since + KEPT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, last)
    }

    const fn peer(is_heard: bool, is_alive: bool) -> Peer {
        Peer { number: PortNo(7), is_heard, is_alive }
    }

    /// A switch that was started again tells nothing of its peers until they speak, and the database tells of before then: for a while none counts as
    /// lost, then those that were heard before do, and are not taken for agents that know nothing of this.
    #[test]
    fn who_was_heard_stays_heard_and_is_not_lost_at_once() {
        let start = Instant::now();
        let mut memory = Memory::default();
        memory.follow(true, start);
        let before = Peers::from([(at(1), peer(true, true)), (at(2), peer(false, false)), (at(3), peer(true, true))]);
        assert_eq!(memory.tell(before.clone(), start), before);
        assert_eq!(memory.due(), None);
        memory.follow(false, start);
        assert!(memory.tell(before.clone(), start).values().all(|peer| !peer.is_heard), "the database lags behind");
        memory.follow(true, start);
        let now = Peers::from([(at(1), peer(false, false)), (at(2), peer(false, false)), (at(4), peer(false, true))]);
        let told = memory.tell(now.clone(), start + HEARING / 2);
        assert!(told.values().all(|peer| !peer.is_heard && !peer.is_lost()), "{told:?}");
        let due = memory.due().unwrap();
        let told = memory.tell(now, due);
        assert!(told[&at(1)].is_lost() && !told[&at(2)].is_lost() && told[&at(4)].is_heard);
        assert_eq!(memory.due(), None);
        assert!(!are_alike(&before, &told));
        let alive = Peers::from([(at(1), peer(true, true))]);
        assert!(are_alike(&alive, &Peers::from([(at(1), peer(true, false))])));
        let again = memory.tell(Peers::from([(at(3), peer(false, false))]), due);
        assert!(!again[&at(3)].is_heard, "its port was another");
    }

    /// An agent that starts beside a switch that runs believes what is said.
    #[test]
    fn a_new_agent_believes_the_switch() {
        let start = Instant::now();
        let mut memory = Memory::default();
        let lost = Peers::from([(at(1), peer(true, false))]);
        assert!(memory.tell(lost.clone(), start)[&at(1)].is_lost());
        memory.follow(true, start);
        assert!(memory.tell(lost, start)[&at(1)].is_lost());
    }

    /// A peer that is no longer wanted goes later, unless it is wanted again; the number is bounded, wanted ones first.
    #[test]
    fn peers_leave_later() {
        let start = Instant::now();
        let mut leavers = Leavers::default();
        let set = |all: &[u8]| all.iter().copied().map(at).collect::<BTreeSet<_>>();
        assert_eq!(leavers.keep(&set(&[1, 2]), &set(&[1]), start), set(&[1, 2]));
        assert_eq!(leavers.due(), None);
        assert_eq!(leavers.keep(&set(&[2]), &set(&[1, 2]), start), set(&[1, 2]));
        assert_eq!(leavers.due(), Some(start + KEPT));
        assert_eq!(leavers.keep(&set(&[1, 2]), &set(&[1, 2]), start + KEPT / 2), set(&[1, 2]));
        assert_eq!(leavers.keep(&set(&[2]), &set(&[1, 2]), start + KEPT), set(&[1, 2]), "counted anew");
        assert_eq!(leavers.keep(&set(&[2]), &set(&[1, 2]), start + KEPT * 2), set(&[2]));
        let many: BTreeSet<_> = (0..300_u32).map(Ipv4Addr::from_bits).collect();
        let kept = leavers.keep(&set(&[1]), &many, start);
        assert!(kept.contains(&at(1)) && kept.len() == PEERS_MAX);
    }
}
