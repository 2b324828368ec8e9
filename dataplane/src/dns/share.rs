//! How many questions of each port may wait for other resolvers.
//!
//! Owns [`Share`]. Each port has a bound of its own, all together another. When all places are taken, a port that has fewer than the one with the most
//! takes a place from that one, so that however many a few ports ask, each other port has its share. The newest question of the greedy port gives way:
//! older ones have waited longer.
//! Invariant: no port has more than [`PORT_MAX`], all together no more than [`ALL_MAX`].

use std::collections::BTreeMap;

/// Questions of one port.
pub const PORT_MAX: usize = 32;
/// Questions of all ports: each has a socket and about 5 KiB.
pub const ALL_MAX: usize = 256;

/// A question that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// Whether a question may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Yes(Ticket),
    /// It may, and this other one may no longer.
    InsteadOf(Ticket, Ticket),
    /// It may not.
    No,
}

/// Who waits.
#[derive(Debug, Default)]
pub struct Share {
    /// The tickets of each port that has any, oldest first.
    held: BTreeMap<u32, Vec<Ticket>>,
    total: usize,
    next: u64,
}

impl Share {
    /// Asks for a place for one more question of this port.
    pub fn admit(&mut self, port: u32) -> Admission {
        let own = self.held.get(&port).map_or(0, Vec::len);
        if own >= PORT_MAX {
            return Admission::No;
        }
        let displaced = if self.total < ALL_MAX {
            None
        } else {
            let greedy = self.held.iter().max_by_key(|(_, tickets)| tickets.len());
            // Equal shares stay as they are.
            let Some((greedy, most)) = greedy.filter(|(_, tickets)| tickets.len() > own + 1) else {
                return Admission::No;
            };
            let (greedy, newest) = (*greedy, most.last().copied());
            if let Some(newest) = newest {
                self.release(greedy, newest);
            }
            newest
        };
        let ticket = Ticket(self.next);
        self.next += 1;
        self.held.entry(port).or_default().push(ticket);
        self.total += 1;
        displaced.map_or(Admission::Yes(ticket), |displaced| Admission::InsteadOf(ticket, displaced))
    }

    /// Gives a place back; says whether there was one.
    pub fn release(&mut self, port: u32, ticket: Ticket) -> bool {
        let Some(tickets) = self.held.get_mut(&port) else { return false };
        let before = tickets.len();
        tickets.retain(|other| *other != ticket);
        let freed = before - tickets.len();
        if tickets.is_empty() {
            self.held.remove(&port);
        }
        self.total -= freed;
        freed > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many a few ports ask, one that comes late has its place, until all have the same.
    #[test]
    fn a_port_that_asks_much_makes_room_for_one_that_asks_little() {
        let mut share = Share::default();
        let greedy = u32::try_from(ALL_MAX / PORT_MAX).unwrap();
        for port in 0..greedy {
            assert!((0..PORT_MAX).all(|_| matches!(share.admit(port), Admission::Yes(_))));
            assert_eq!(share.admit(port), Admission::No, "its own bound");
        }
        for late in greedy..greedy + 8 {
            assert!(matches!(share.admit(late), Admission::InsteadOf(..)));
        }
        assert_eq!((share.total, share.held.values().map(Vec::len).sum::<usize>()), (ALL_MAX, ALL_MAX));
        let mut last = 0;
        while let Admission::InsteadOf(..) = share.admit(1000) {
            last += 1;
        }
        let most = share.held.values().map(Vec::len).max().unwrap();
        assert!(most <= last + 1 && share.total == ALL_MAX, "{most} and {last}");
    }

    #[test]
    fn a_place_is_given_back_once() {
        let mut share = Share::default();
        let Admission::Yes(ticket) = share.admit(7) else { panic!("no place") };
        assert!(!share.release(8, ticket));
        assert!(share.release(7, ticket));
        assert!(!share.release(7, ticket));
        assert_eq!((share.total, share.held.len()), (0, 0));
    }
}
