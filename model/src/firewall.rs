//! Perimeter firewalls: what may cross the border of a router, to and from outside.
//!
//! Owns [`FirewallPolicy`], an ordered list of rules of which the first that is for a packet decides, and [`Firewall`], the two policies that a router
//! has. What no rule is for is denied. Addresses and ports are those behind the router: read after the destination of what comes in has been translated,
//! and before the source of what goes out is. Never judges what stays behind the router.
//! The words are those of OpenStack's FWaaS v2.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::id::{FirewallPolicyId, FirewallRuleId};
use crate::security::{Direction, Ethertype, PortRange};

/// The most rules of one policy.
pub const RULES_MAX: usize = 1024;

/// The most matches that the rules of one policy may take together: a range of ports is several, and two ranges are their product.
pub const MATCHES_MAX: usize = 8192;

/// The last place in a policy.
pub const RANK_MAX: u16 = 60_000;

/// What a router has at its border. A direction without a policy is closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Firewall {
    /// Of connections that begin outside.
    #[serde(default)]
    pub ingress: Option<FirewallPolicyId>,
    /// Of connections that begin behind the router.
    #[serde(default)]
    pub egress: Option<FirewallPolicyId>,
}

/// A named, ordered list of rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirewallPolicy {
    /// Identity.
    pub id: FirewallPolicyId,
    /// Name given by its owner.
    pub name: String,
    /// The rules, by rank.
    pub rules: Vec<FirewallRule>,
}

/// What becomes of some traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirewallRule {
    /// Identity.
    pub id: FirewallRuleId,
    /// Name given by its owner: unique in its policy.
    pub name: String,
    /// Number of this rule in flows: unique in the cloud, 1 and up, never used again for another rule.
    pub key: u32,
    /// Its place in the policy, 1 to [`RANK_MAX`]: of two rules for a packet the one of the lower rank decides. Ranks leave gaps, so that a rule between
    /// two others moves neither.
    pub rank: u16,
    /// Whether it is asked at all.
    #[serde(default = "enabled", skip_serializing_if = "is_enabled")]
    pub enabled: bool,
    /// What becomes of what it is for.
    pub action: FirewallAction,
    /// IP version.
    pub ethertype: Ethertype,
    /// What is carried.
    pub protocol: Carried,
    /// Who sends; none: anyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpNet>,
    /// Who is to have it; none: anyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpNet>,
}

const fn enabled() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
const fn is_enabled(enabled: &bool) -> bool {
    *enabled
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirewallAction {
    /// Lets it pass.
    Allow,
    /// Drops it.
    Deny,
}

/// What an IP packet carries, with the ports of both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carried {
    /// Anything.
    Any,
    /// TCP between these ports.
    Tcp(Ends),
    /// UDP between these ports.
    Udp(Ends),
    /// ICMP for IPv4, ICMPv6 for IPv6.
    Icmp,
    /// Any other protocol by its number.
    Number(u8),
}

/// The ports of both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ends {
    /// Of who sends.
    pub source: PortRange,
    /// Of who is to have it.
    pub destination: PortRange,
}

/// Why a list of rules can not be a policy's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FirewallError {
    /// There are too many.
    #[error("it has {count} rules, want {RULES_MAX} at most")]
    TooManyRules {
        /// How many.
        count: usize,
    },
    /// Their ranges of ports take too many matches.
    #[error("its rules up to {rule} take {count} matches of ports, want {MATCHES_MAX} at most for all")]
    TooManyMatches {
        /// The rule that is one too many.
        rule: String,
        /// How many up to that.
        count: usize,
    },
    /// Two have one name.
    #[error("two of its rules are called {rule}")]
    Twice {
        /// The name.
        rule: String,
    },
    /// A rank is not above the one before, or out of range.
    #[error("its rule {rule} has rank {rank}, want more than the one before it and {RANK_MAX} at most")]
    Rank {
        /// The rule.
        rule: String,
        /// Its rank.
        rank: u16,
    },
    /// The number of a rule is 0.
    #[error("its rule {rule} has key 0")]
    NoKey {
        /// The rule.
        rule: String,
    },
    /// A prefix of the other version of IP.
    #[error("its rule {rule} is of {ethertype:?} and names {prefix}")]
    OtherVersion {
        /// The rule.
        rule: String,
        /// Its version.
        ethertype: Ethertype,
        /// The prefix.
        prefix: IpNet,
    },
    /// A prefix names more than its length says.
    #[error("its rule {rule} names {prefix}, which has host bits set: want {}", prefix.trunc())]
    HostBits {
        /// The rule.
        rule: String,
        /// The prefix as given.
        prefix: IpNet,
    },
}

impl Ends {
    /// Any port at both ends.
    pub const ALL: Self = Self { source: PortRange::ALL, destination: PortRange::ALL };
}

impl Firewall {
    /// The policy of a direction, as seen from behind the router.
    #[must_use]
    pub const fn policy(&self, direction: Direction) -> Option<FirewallPolicyId> {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// The policies of both directions.
    pub fn policies(&self) -> impl Iterator<Item = FirewallPolicyId> {
        self.ingress.into_iter().chain(self.egress)
    }
}

impl FirewallRule {
    /// How many matches it takes.
    #[must_use]
    pub fn matches(&self) -> usize {
        match self.protocol {
            Carried::Tcp(ends) | Carried::Udp(ends) => ends.source.masks().len() * ends.destination.masks().len(),
            Carried::Any | Carried::Icmp | Carried::Number(_) => 1,
        }
    }

    fn check(&self) -> Result<(), FirewallError> {
        let rule = || self.name.clone();
        for prefix in self.source.into_iter().chain(self.destination) {
            if !self.ethertype.holds(prefix) {
                return Err(FirewallError::OtherVersion { rule: rule(), ethertype: self.ethertype, prefix });
            }
            if prefix != prefix.trunc() {
                return Err(FirewallError::HostBits { rule: rule(), prefix });
            }
        }
        if self.key == 0 { Err(FirewallError::NoKey { rule: rule() }) } else { Ok(()) }
    }
}

impl FirewallPolicy {
    /// Whether its list of rules is one that a policy can have.
    ///
    /// # Errors
    /// The first [`FirewallError`] found.
    pub fn check(&self) -> Result<(), FirewallError> {
        if self.rules.len() > RULES_MAX {
            return Err(FirewallError::TooManyRules { count: self.rules.len() });
        }
        let (mut names, mut last, mut count) = (BTreeSet::new(), 0, 0);
        for rule in &self.rules {
            rule.check()?;
            let name = || rule.name.clone();
            if !names.insert(&rule.name) {
                return Err(FirewallError::Twice { rule: name() });
            }
            if rule.rank <= last || rule.rank > RANK_MAX {
                return Err(FirewallError::Rank { rule: name(), rank: rule.rank });
            }
            last = rule.rank;
            count += rule.matches();
            if count > MATCHES_MAX {
                return Err(FirewallError::TooManyMatches { rule: name(), count });
            }
        }
        Ok(())
    }

    /// Gives its rules ranks in their order, as far from each other as it goes.
    pub fn spread(&mut self) {
        let places = u16::try_from(self.rules.len()).unwrap_or(RANK_MAX);
        let step = RANK_MAX / places.saturating_add(1).max(1);
        for (number, rule) in (1_u16..).zip(&mut self.rules) {
            rule.rank = step.saturating_mul(number);
        }
    }

    /// Puts a rule at a place among the others, and gives it a rank between its neighbours'. Where there is none between them, all are spread anew.
    pub fn insert(&mut self, at: usize, rule: FirewallRule) {
        let at = at.min(self.rules.len());
        let before = at.checked_sub(1).and_then(|before| self.rules.get(before)).map_or(0, |before| before.rank);
        // At the end, room is left for as many as there may come.
        let room = u16::try_from((RULES_MAX + 1).saturating_sub(self.rules.len())).unwrap_or(RANK_MAX).max(1);
        let last = || before.saturating_add((RANK_MAX.saturating_sub(before) / room).max(1));
        let middle = self.rules.get(at).map_or_else(last, |after| before + after.rank.saturating_sub(before) / 2);
        self.rules.insert(at, FirewallRule { rank: middle, ..rule });
        if middle <= before || middle > RANK_MAX {
            self.spread();
        }
    }
}

/// The rule that one key is given twice for, if there is one.
pub fn shared_key<'a>(policies: impl Iterator<Item = &'a FirewallPolicy>) -> Option<(&'a FirewallRule, &'a str)> {
    let mut keys = BTreeMap::new();
    policies.flat_map(|policy| &policy.rules).find_map(|rule| Some((rule, keys.insert(rule.key, rule.name.as_str())?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn rule(number: u32) -> FirewallRule {
        FirewallRule {
            id: FirewallRuleId::from_uuid(Uuid::from_u128(number.into())),
            name: format!("rule-{number}"),
            key: number,
            rank: 0,
            enabled: true,
            action: FirewallAction::Allow,
            ethertype: Ethertype::IPv4,
            protocol: Carried::Any,
            source: None,
            destination: None,
        }
    }

    fn policy(rules: u32) -> FirewallPolicy {
        let id = FirewallPolicyId::from_uuid(Uuid::from_u128(1));
        let mut policy = FirewallPolicy { id, name: "p".to_owned(), rules: (1..=rules).map(rule).collect() };
        policy.spread();
        policy
    }

    /// A rule goes in between two others, again and again at one place, and none of those before it moves until there is no room; then all are spread.
    #[test]
    fn a_rule_between_others_moves_none_while_there_is_room() {
        let mut policy = policy(1000);
        assert_eq!(policy.check(), Ok(()));
        let mut moved = 0;
        for number in 1001..=1020 {
            let before: BTreeMap<u32, u16> = policy.rules.iter().map(|rule| (rule.key, rule.rank)).collect();
            policy.insert(500, rule(number));
            assert_eq!(policy.check(), Ok(()));
            assert_eq!(policy.rules[500].key, number);
            moved +=
                usize::from(policy.rules.iter().any(|rule| before.get(&rule.key).is_some_and(|at| *at != rule.rank)));
        }
        assert!((1..=5).contains(&moved), "{moved} of 20 moved others");
    }

    /// As many as there may be, each after the last: none of them ever moves.
    #[test]
    fn rules_at_the_end_move_none() {
        let mut policy = policy(0);
        for number in 1..=1024 {
            let before: Vec<u16> = policy.rules.iter().map(|rule| rule.rank).collect();
            policy.insert(policy.rules.len(), rule(number));
            assert!(policy.rules.iter().zip(&before).all(|(rule, rank)| rule.rank == *rank), "{number}");
        }
        assert_eq!(policy.check(), Ok(()));
    }

    #[test]
    fn rules_go_first_and_last() {
        let mut policy = policy(0);
        for number in 1..=40 {
            let at = if number % 2 == 0 { 0 } else { policy.rules.len() };
            policy.insert(at, rule(number));
            assert_eq!(policy.check(), Ok(()));
            assert_eq!(policy.rules[at].key, number);
        }
    }

    /// What a policy can not have is refused by name.
    #[test]
    fn bad_rules_are_named() {
        let changed = |change: fn(&mut FirewallPolicy)| {
            let mut policy = policy(2);
            change(&mut policy);
            policy.check().unwrap_err().to_string()
        };
        let twice = changed(|policy| policy.rules[1].name = "rule-1".to_owned());
        assert_eq!(twice, "two of its rules are called rule-1");
        let rank = changed(|policy| policy.rules[1].rank = 7);
        assert_eq!(rank, "its rule rule-2 has rank 7, want more than the one before it and 60000 at most");
        let six = changed(|policy| policy.rules[0].source = "2001:db8::/32".parse().ok());
        assert_eq!(six, "its rule rule-1 is of IPv4 and names 2001:db8::/32");
        let bits = changed(|policy| policy.rules[0].destination = "10.0.0.1/8".parse().ok());
        assert_eq!(bits, "its rule rule-1 names 10.0.0.1/8, which has host bits set: want 10.0.0.0/8");
        let key = changed(|policy| policy.rules[0].key = 0);
        assert_eq!(key, "its rule rule-1 has key 0");
        let many = policy(1025).check().unwrap_err();
        assert_eq!(many, FirewallError::TooManyRules { count: 1025 });
        let range = PortRange::new(1, 65_534).unwrap();
        let mut wide = policy(20);
        for rule in &mut wide.rules {
            rule.protocol = Carried::Tcp(Ends { source: range, destination: range });
        }
        assert_eq!(wide.check(), Err(FirewallError::TooManyMatches { rule: "rule-10".to_owned(), count: 9000 }));
    }

    #[test]
    fn one_key_for_two_rules_is_found() {
        let (one, two) = (policy(2), policy(1));
        assert!(shared_key([&one].into_iter()).is_none());
        let (rule, other) = shared_key([&one, &two].into_iter()).unwrap();
        assert_eq!((rule.name.as_str(), other), ("rule-1", "rule-1"));
    }
}
