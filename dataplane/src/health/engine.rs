//! All checks of a host: who is asked when, and what the answers in a row make of a member.
//!
//! Owns [`Engine`]. A member begins as its specification says, or as one that serves; checks in a row that say otherwise turn it, and one that agrees with
//! what it is starts the count again. Checks begin at a moment of each member's own within its first delay, so that a host that starts does not ask all at once.
//! Each load balancer has its share of the checks that may wait for an answer, and connections theirs apart from the rest: who answers late, or never, makes
//! nobody wait but its own load balancer's members.
//! Invariant: never more than [`CHECKS_MAX`] connections and [`DATAGRAMS_MAX`] others wait for an answer. Reads no clock: `now` counts from any one moment.
//!
//! ```text
//!           max_retries_down failures in a row
//! online ---------------------------------------> error
//!        <---------------------------------------
//!              max_retries successes in a row
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::BalancerId;
use model::balancer::monitor::Check;
use model::balancer::{MemberHealth, MemberRef};

use super::Target;
use super::check::{Finding, Flight, Step};
use crate::feature::health::FIRST_PORT;
use crate::line::Sent;

/// Connections of one host that may wait for an answer at once; further ones begin when these are over.
pub const CHECKS_MAX: usize = 64;
/// The same of pings and datagrams, of which nothing is kept but that they were sent.
pub const DATAGRAMS_MAX: usize = 512;

/// The least time between two datagrams to one port: machines say of a closed port no more than once a second to one address (icmp(7), `icmp_ratelimit`), and
/// silence would be taken for an open one.
const DATAGRAM_GAP: Duration = Duration::from_secs(1);
/// The first check, and that of a monitor that was changed, begins within this, or within the delay where that is less.
const FIRST_WITHIN: Duration = Duration::from_secs(5);

/// The checks of a host.
#[derive(Debug)]
pub struct Engine {
    members: BTreeMap<MemberRef, Watched>,
    seed: u64,
    /// The port that was asked from last.
    port: u16,
    /// When a datagram was sent to each port last, where that is not long ago.
    sent: BTreeMap<u32, Duration>,
    /// Whether verdicts, or their reasons, are others than those that were taken last.
    has_news: bool,
}

/// A member with what is known of it.
#[derive(Debug)]
struct Watched {
    target: Target,
    is_online: bool,
    /// Checks in a row that say otherwise.
    contrary: u8,
    /// What the last check that counted said; none: nothing was found out yet.
    reason: Option<String>,
    /// When it is asked next.
    due: Duration,
    flight: Option<Flight>,
}

impl Engine {
    /// Checks nobody yet. Ports and sequence numbers follow from `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { members: BTreeMap::new(), seed, port: 0, sent: BTreeMap::new(), has_news: true }
    }

    /// Takes note of who is to be checked. What is known of those who were holds.
    pub fn update(&mut self, targets: BTreeMap<MemberRef, Target>, now: Duration) {
        let count = self.members.len();
        self.members.retain(|member, _| targets.contains_key(member));
        self.has_news |= self.members.len() != count;
        for (member, target) in targets {
            let share = u32::try_from(self.draw() % 1024).unwrap_or_default();
            let due = now + delay(&target).min(FIRST_WITHIN) * share / 1024;
            if let Some(watched) = self.members.get_mut(&member) {
                watched.follow(target, due);
                continue;
            }
            let is_online = !target.in_error;
            self.members.insert(member, Watched { target, is_online, contrary: 0, reason: None, due, flight: None });
        }
    }

    /// Whether there is nobody to check.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.members.is_empty()
    }

    /// Checks that wait for an answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.members.values().filter(|watched| watched.flight.is_some()).count()
    }

    /// The ports that an answer is waited for of.
    #[must_use]
    pub fn asked(&self) -> BTreeSet<u32> {
        self.members.values().filter(|it| it.flight.is_some()).map(|it| it.target.port).collect()
    }

    /// Forgets the checks that wait for an answer, without a verdict: what they sent, or what comes back, is lost.
    pub fn forget(&mut self) {
        self.members.values_mut().for_each(|watched| watched.flight = None);
    }

    /// Takes a frame of a port.
    pub fn receive(&mut self, port: u32, frame: &[u8], now: Duration) -> Vec<Sent> {
        for watched in self.members.values_mut().filter(|watched| watched.target.port == port) {
            let Some(flight) = &mut watched.flight else { continue };
            if let Some(step) = flight.receive(&watched.target, frame, now) {
                return watched.take(step, &mut self.has_news);
            }
        }
        Vec::new()
    }

    /// Takes note that a frame to this port was not sent: its silence says nothing. Connections ask again on their own.
    pub fn unsent(&mut self, port: u32) {
        for watched in self.members.values_mut().filter(|watched| watched.target.port == port && watched.kind() == 1) {
            watched.flight = None;
        }
    }

    /// Does what time asks for; new checks begin only where `may_begin`.
    pub fn tick(&mut self, now: Duration, may_begin: bool) -> Vec<Sent> {
        let mut sent = Vec::new();
        self.sent.retain(|_, at| *at + DATAGRAM_GAP > now);
        for watched in self.members.values_mut() {
            let Some(flight) = &mut watched.flight else { continue };
            if flight.due(&watched.target, now) <= now {
                let step = flight.tick(&watched.target, now);
                sent.extend(watched.take(step, &mut self.has_news));
            }
        }
        let mut waiting = if may_begin { self.waiting(now) } else { Vec::new() };
        waiting.sort_unstable();
        let mut room = Room::left(&self.members);
        for (due, member) in waiting {
            let is_quiet = |watched: &Watched| self.ready(watched) <= now;
            if !self.members.get(&member).is_some_and(|watched| is_quiet(watched) && room.take(watched)) {
                continue;
            }
            let (port, seed) = (self.free_port(), self.draw());
            let Some(watched) = self.members.get_mut(&member) else { continue };
            let (flight, step) = Flight::begin(&watched.target, port, seed, now);
            watched.flight = flight;
            if watched.target.monitor.check == Check::UdpConnect {
                self.sent.insert(watched.target.port, now);
            }
            // From one check to the next it is as long as was asked for, unless one had to wait longer than that.
            let delay = delay(&watched.target);
            watched.due = if now < due + delay { due + delay } else { now + delay };
            sent.extend(watched.take(step, &mut self.has_news));
        }
        sent
    }

    /// When the next tick is due; none while there is nobody to check.
    pub fn next_tick(&mut self, now: Duration) -> Option<Duration> {
        let (room, gaps) = (Room::left(&self.members), &self.sent);
        let due = |watched: &mut Watched| match &mut watched.flight {
            Some(flight) => Some(flight.due(&watched.target, now)),
            None => {
                let quiet =
                    gaps.get(&watched.target.port).filter(|_| watched.is_datagram()).map(|at| *at + DATAGRAM_GAP);
                room.has(watched).then_some(watched.due.max(quiet.unwrap_or_default()))
            }
        };
        self.members.values_mut().filter_map(due).min()
    }

    /// What was found out, of each member of which something was.
    #[must_use]
    pub fn verdicts(&self) -> Vec<MemberHealth> {
        let verdict = |(member, watched): (&MemberRef, &Watched)| {
            let reason = watched.reason.clone()?;
            Some(MemberHealth { member: *member, online: watched.is_online, reason })
        };
        self.members.iter().filter_map(verdict).collect()
    }

    /// Whether there is another answer to [`Engine::verdicts`] than when this was told last; it counts as told then.
    pub const fn take_news(&mut self) -> bool {
        std::mem::replace(&mut self.has_news, false)
    }

    /// The same, without taking note.
    #[must_use]
    pub const fn has_news(&self) -> bool {
        self.has_news
    }

    /// How many members should have been asked more than their delay ago, and how long the first of them has waited since; none: all are asked in time.
    #[must_use]
    pub fn late(&self, now: Duration) -> Option<(usize, Duration)> {
        let waits = self.members.values().filter(|watched| watched.flight.is_none()).filter_map(|watched| {
            let late = now.checked_sub(watched.due)?;
            (late > delay(&watched.target)).then_some(late)
        });
        let (count, longest) = waits.fold((0, Duration::ZERO), |(count, most), late| (count + 1, most.max(late)));
        (count > 0).then_some((count, longest))
    }

    fn waiting(&self, now: Duration) -> Vec<(Duration, MemberRef)> {
        let due = self.members.iter().filter(|(_, watched)| watched.flight.is_none() && watched.due <= now);
        due.map(|(member, watched)| (watched.due, *member)).collect()
    }

    /// When it may be asked: datagrams to one port keep their distance.
    fn ready(&self, watched: &Watched) -> Duration {
        let last = self.sent.get(&watched.target.port).filter(|_| watched.is_datagram());
        watched.due.max(last.map_or(Duration::ZERO, |at| *at + DATAGRAM_GAP))
    }

    /// A port that no check asks from: there are more of them than checks.
    fn free_port(&mut self) -> u16 {
        let flights = self.members.values().filter_map(|watched| watched.flight.as_ref());
        let taken: BTreeSet<u16> = flights.map(Flight::port).collect();
        if self.port == 0 {
            self.port = u16::try_from(self.draw() % 1024).unwrap_or_default();
        }
        for _ in 0..=CHECKS_MAX + DATAGRAMS_MAX {
            self.port = self.port.wrapping_add(1) | FIRST_PORT;
            if !taken.contains(&self.port) {
                break;
            }
        }
        self.port
    }

    /// The next number of the generator (SplitMix64).
    const fn draw(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Checks that may begin, of each load balancer: connections, and others.
struct Room {
    /// By kind.
    all: [usize; 2],
    share: [usize; 2],
    taken: BTreeMap<(usize, BalancerId), usize>,
}

impl Room {
    /// Once those that wait for an answer have theirs.
    fn left(members: &BTreeMap<MemberRef, Watched>) -> Self {
        let mut owners = [BTreeSet::new(), BTreeSet::new()];
        for (member, watched) in members {
            owners[watched.kind()].insert(member.balancer);
        }
        let all = [CHECKS_MAX, DATAGRAMS_MAX];
        let share = [0, 1].map(|kind: usize| (all[kind] / owners[kind].len().max(1)).max(1));
        let mut room = Self { all, share, taken: BTreeMap::new() };
        for watched in members.values().filter(|watched| watched.flight.is_some()) {
            let kind = watched.kind();
            room.all[kind] = room.all[kind].saturating_sub(1);
            *room.taken.entry((kind, watched.target.member.balancer)).or_default() += 1;
        }
        room
    }

    fn has(&self, watched: &Watched) -> bool {
        let kind = watched.kind();
        let taken = self.taken.get(&(kind, watched.target.member.balancer)).copied().unwrap_or_default();
        self.all[kind] > 0 && taken < self.share[kind]
    }

    /// Takes the room of one check, if there is any.
    fn take(&mut self, watched: &Watched) -> bool {
        let has = self.has(watched);
        if has {
            let kind = watched.kind();
            self.all[kind] -= 1;
            *self.taken.entry((kind, watched.target.member.balancer)).or_default() += 1;
        }
        has
    }
}

fn delay(target: &Target) -> Duration {
    Duration::from_secs(target.monitor.delay_seconds.into())
}

impl Watched {
    fn is_datagram(&self) -> bool {
        self.target.monitor.check == Check::UdpConnect
    }

    /// 0 for connections, 1 for what nothing is kept of.
    const fn kind(&self) -> usize {
        match self.target.monitor.check {
            Check::Tcp | Check::Http { .. } => 0,
            Check::Ping | Check::UdpConnect => 1,
        }
    }

    /// Goes on with what is known now of the same member; another question begins a new count.
    fn follow(&mut self, target: Target, soon: Duration) {
        let is_same = Target { in_error: target.in_error, ..self.target.clone() } == target;
        if !is_same {
            (self.flight, self.contrary, self.due) = (None, 0, self.due.min(soon));
        }
        self.target = target;
    }

    fn take(&mut self, step: Step, has_news: &mut bool) -> Vec<Sent> {
        if let Some(found) = step.found {
            self.flight = None;
            *has_news |= self.judge(found);
        }
        let port = self.target.port;
        step.frames.into_iter().map(|frame| Sent { port, frame }).collect()
    }

    /// Says whether there is another verdict, or another reason for it.
    fn judge(&mut self, found: Finding) -> bool {
        let (is_well, monitor) = (found.is_ok(), &self.target.monitor);
        let reason = found.err().unwrap_or_else(|| format!("answers checks by {}", monitor.check.name()));
        let wanted = if is_well { monitor.max_retries } else { monitor.max_retries_down };
        self.contrary = if is_well == self.is_online { 0 } else { self.contrary.saturating_add(1) };
        if self.contrary > 0 && self.contrary < wanted {
            return false;
        }
        let before = (self.is_online, self.reason.replace(reason));
        (self.is_online, self.contrary) = (is_well, 0);
        before != (self.is_online, self.reason.clone())
    }
}
