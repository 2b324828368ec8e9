//! All checks of a host: who is asked when, and what the answers in a row make of a member.
//!
//! Owns [`Engine`]. A member begins as its specification says, or as one that serves; checks in a row that say otherwise turn it, and one that agrees with
//! what it is starts the count again. Checks begin at a moment of each member's own within its first delay, so that a host that starts does not ask all at once.
//! Invariant: never more than [`CHECKS_MAX`] checks wait for an answer. Reads no clock: `now` counts from any one moment.
//!
//! ```text
//!           max_retries_down failures in a row
//! online ---------------------------------------> error
//!        <---------------------------------------
//!              max_retries successes in a row
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::balancer::{MemberHealth, MemberRef};

use super::Target;
use super::check::{Finding, Flight, Step};
use crate::feature::health::FIRST_PORT;
use crate::line::Sent;

/// Checks of one host that may wait for an answer at once; further ones begin when these are over.
pub const CHECKS_MAX: usize = 64;

/// The checks of a host.
#[derive(Debug)]
pub struct Engine {
    members: BTreeMap<MemberRef, Watched>,
    seed: u64,
    /// The port that was asked from last.
    port: u16,
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
        Self { members: BTreeMap::new(), seed, port: 0, has_news: true }
    }

    /// Takes note of who is to be checked. What is known of those who were holds.
    pub fn update(&mut self, targets: BTreeMap<MemberRef, Target>, now: Duration) {
        let count = self.members.len();
        self.members.retain(|member, _| targets.contains_key(member));
        self.has_news |= self.members.len() != count;
        for (member, target) in targets {
            if let Some(watched) = self.members.get_mut(&member) {
                watched.follow(target);
                continue;
            }
            let share = u32::try_from(self.draw() % 1024).unwrap_or_default();
            let due = now + delay(&target) * share / 1024;
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

    /// Does what time asks for; new checks begin only where `may_begin`.
    pub fn tick(&mut self, now: Duration, may_begin: bool) -> Vec<Sent> {
        let mut sent = Vec::new();
        for watched in self.members.values_mut() {
            let Some(flight) = &mut watched.flight else { continue };
            if flight.due(&watched.target, now) <= now {
                let step = flight.tick(&watched.target, now);
                sent.extend(watched.take(step, &mut self.has_news));
            }
        }
        let mut waiting = if may_begin { self.waiting(now) } else { Vec::new() };
        waiting.sort_unstable();
        let room = CHECKS_MAX.saturating_sub(self.in_flight());
        for (due, member) in waiting.into_iter().take(room) {
            let (port, seed) = (self.free_port(), self.draw());
            let Some(watched) = self.members.get_mut(&member) else { continue };
            let (flight, step) = Flight::begin(&watched.target, port, seed, now);
            watched.flight = flight;
            // From one check to the next it is as long as was asked for, unless one had to wait longer than that.
            let delay = delay(&watched.target);
            watched.due = if now < due + delay { due + delay } else { now + delay };
            sent.extend(watched.take(step, &mut self.has_news));
        }
        sent
    }

    /// When the next tick is due; none while there is nobody to check.
    pub fn next_tick(&mut self, now: Duration) -> Option<Duration> {
        let has_room = self.in_flight() < CHECKS_MAX;
        let due = |watched: &mut Watched| match &mut watched.flight {
            Some(flight) => Some(flight.due(&watched.target, now)),
            None => has_room.then_some(watched.due),
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

    fn waiting(&self, now: Duration) -> Vec<(Duration, MemberRef)> {
        let due = self.members.iter().filter(|(_, watched)| watched.flight.is_none() && watched.due <= now);
        due.map(|(member, watched)| (watched.due, *member)).collect()
    }

    /// A port that no check asks from: there are more of them than checks.
    fn free_port(&mut self) -> u16 {
        let flights = self.members.values().filter_map(|watched| watched.flight.as_ref());
        let taken: BTreeSet<u16> = flights.map(Flight::port).collect();
        if self.port == 0 {
            self.port = u16::try_from(self.draw() % 1024).unwrap_or_default();
        }
        for _ in 0..=CHECKS_MAX {
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

fn delay(target: &Target) -> Duration {
    Duration::from_secs(target.monitor.delay_seconds.into())
}

impl Watched {
    /// Goes on with what is known now of the same member; another question begins a new count.
    fn follow(&mut self, target: Target) {
        let is_same = Target { in_error: target.in_error, ..self.target.clone() } == target;
        if !is_same {
            (self.flight, self.contrary) = (None, 0);
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
