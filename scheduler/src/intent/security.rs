//! Security groups and their rules.

use std::sync::Arc;

use ipnet::IpNet;
use model::security::{Direction, Ethertype, PortRange, Protocol, Remote, Rule, SecurityGroup};
use model::{RuleId, SecurityGroupId};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Context, Intent, check_name, find, refuse_users};
use crate::refusal::Refusal;

/// The group of ports that were given none: everything out, and in from one another.
pub(crate) const DEFAULT_GROUP: &str = "default";
/// The most rules that a group can have.
const RULES_MAX: usize = 500;

/// A security group to make. It starts with rules that let everything out, unless `bare`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewGroup {
    /// Its name.
    name: String,
    /// Start without any rule.
    #[serde(default)]
    bare: bool,
    /// Remember no connections: each direction needs a rule of its own.
    #[serde(default)]
    stateless: bool,
}

/// A rule to add: traffic that is allowed.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRule {
    /// `ingress` (to the VM) or `egress` (from it).
    #[schema(value_type = String, example = "ingress")]
    direction: Direction,
    /// `IPv4` (unless said) or `IPv6`.
    #[schema(value_type = Option<String>)]
    ethertype: Option<Ethertype>,
    /// `any` (unless said), `tcp`, `udp`, `icmp`, or an IP protocol number.
    protocol: Option<String>,
    /// First destination port; for tcp and udp.
    port_min: Option<u16>,
    /// Last destination port; `port_min` unless said.
    port_max: Option<u16>,
    /// ICMP type; any unless said.
    icmp_type: Option<u8>,
    /// ICMP code; any unless said.
    icmp_code: Option<u8>,
    /// The other side's addresses; anyone unless said.
    #[schema(value_type = Option<String>, example = "10.0.0.0/8")]
    remote_prefix: Option<IpNet>,
    /// The other side is a port in this group, by name or id.
    remote_group: Option<String>,
    /// The other side is in this address group, by name or id.
    remote_address_group: Option<String>,
}

impl Intent {
    pub(super) fn found_default_group(&mut self, context: &mut Context<'_>) -> Result<(), Refusal> {
        let id =
            self.create_group(context, NewGroup { name: DEFAULT_GROUP.to_owned(), bare: false, stateless: false })?;
        for ethertype in [Ethertype::IPv4, Ethertype::IPv6] {
            let rule = Rule {
                id: RuleId::from_uuid((context.draw)()),
                direction: Direction::Ingress,
                ethertype,
                protocol: Protocol::Any,
                remote: Remote::Group(id),
            };
            if let Some(group) = self.groups.get_mut(&id) {
                Arc::make_mut(group).rules.push(rule);
            }
        }
        Ok(())
    }

    /// Makes a security group.
    pub(crate) fn create_group(
        &mut self,
        context: &mut Context<'_>,
        new: NewGroup,
    ) -> Result<SecurityGroupId, Refusal> {
        check_name(&self.groups, &new.name)?;
        let id = SecurityGroupId::from_uuid((context.draw)());
        let key = self.counters.next_group_key()?;
        let mut rules = Vec::new();
        for ethertype in [Ethertype::IPv4, Ethertype::IPv6].into_iter().filter(|_| !new.bare) {
            rules.push(Rule {
                id: RuleId::from_uuid((context.draw)()),
                direction: Direction::Egress,
                ethertype,
                protocol: Protocol::Any,
                remote: Remote::Any,
            });
        }
        self.groups.insert(id, Arc::new(SecurityGroup { id, name: new.name, key, stateful: !new.stateless, rules }));
        Ok(id)
    }

    /// Forgets a security group that no port is in and no other group's rule names.
    pub(crate) fn delete_group(&mut self, name: &str) -> Result<(), Refusal> {
        let (id, group) = find(&self.groups, name, None)?;
        if group.name == DEFAULT_GROUP {
            let problem = "it is the group of ports that were given none, so it stays".to_owned();
            return Err(Refusal::State { object: "security group default".to_owned(), problem, field: None });
        }
        let ports = self.ports.values().filter(|port| port.port.groups.contains(&id));
        let ports = ports.map(|port| format!("port {}", port.port.name));
        let names_it = |other: &SecurityGroup| other.rules.iter().any(|rule| rule.remote == Remote::Group(id));
        let others = self.groups.values().filter(|other| other.id != id && names_it(other));
        let others = others.map(|other| format!("a rule of security group {}", other.name));
        refuse_users(format!("security group {}", group.name), ports.chain(others))?;
        self.groups.remove(&id);
        Ok(())
    }

    /// Adds a rule to a group.
    pub(crate) fn add_rule(
        &mut self,
        context: &mut Context<'_>,
        name: &str,
        new: &NewRule,
    ) -> Result<(SecurityGroupId, RuleId), Refusal> {
        let (id, group) = find(&self.groups, name, None)?;
        if group.rules.len() >= RULES_MAX {
            return Err(Refusal::Exhausted { what: format!("rule of the {RULES_MAX} of a group"), field: None });
        }
        let ethertype = new.ethertype.unwrap_or(Ethertype::IPv4);
        let protocol = check_protocol(new)?;
        let remote = self.check_remote(new, ethertype)?;
        let rule =
            Rule { id: RuleId::from_uuid((context.draw)()), direction: new.direction, ethertype, protocol, remote };
        let same = |other: &Rule| Rule { id: rule.id, ..other.clone() } == rule;
        if let Some(other) = group.rules.iter().find(|other| same(other)) {
            let (what, owner) = ("what this rule allows".to_owned(), format!("rule {}", other.id));
            return Err(Refusal::Taken { field: "rule".to_owned(), what, owner });
        }
        let rule_id = rule.id;
        let mut group = (*group).clone();
        group.rules.push(rule);
        self.groups.insert(id, Arc::new(group));
        Ok((id, rule_id))
    }

    /// Takes a rule out of a group.
    pub(crate) fn remove_rule(&mut self, name: &str, rule: &str) -> Result<SecurityGroupId, Refusal> {
        let (id, group) = find(&self.groups, name, None)?;
        let missing = || Refusal::Missing { kind: RuleId::KIND, name: super::clip(rule), field: None };
        let rule_id: RuleId = rule.parse().map_err(|_| missing())?;
        let mut group = (*group).clone();
        let at = group.rules.iter().position(|rule| rule.id == rule_id).ok_or_else(missing)?;
        group.rules.remove(at);
        self.groups.insert(id, Arc::new(group));
        Ok(id)
    }

    fn check_remote(&self, new: &NewRule, ethertype: Ethertype) -> Result<Remote, Refusal> {
        if let Some(name) = &new.remote_address_group {
            let others = [("remote_prefix", new.remote_prefix.is_some()), ("remote_group", new.remote_group.is_some())];
            if let Some((other, _)) = others.iter().find(|(_, is_given)| *is_given) {
                return Err(Refusal::invalid("remote_address_group", format!("it is given, and {other} too")));
            }
            return Ok(Remote::Addresses(find(&self.address_groups, name, Some("remote_address_group"))?.0));
        }
        match (new.remote_prefix, &new.remote_group) {
            (Some(_), Some(_)) => Err(Refusal::invalid("remote_group", "it is given, and remote_prefix too")),
            (None, None) => Ok(Remote::Any),
            (None, Some(name)) => Ok(Remote::Group(find(&self.groups, name, Some("remote_group"))?.0)),
            (Some(prefix), None) => {
                let fits =
                    matches!((prefix, ethertype), (IpNet::V4(_), Ethertype::IPv4) | (IpNet::V6(_), Ethertype::IPv6));
                if fits {
                    Ok(Remote::Prefix(prefix.trunc()))
                } else {
                    Err(Refusal::invalid("remote_prefix", format!("{prefix} does not fit an {ethertype:?} rule")))
                }
            }
        }
    }
}

fn check_protocol(new: &NewRule) -> Result<Protocol, Refusal> {
    let name = new.protocol.as_deref().unwrap_or("any");
    let transport = matches!(name, "tcp" | "udp");
    if let Some(field) = [("port_min", new.port_min), ("port_max", new.port_max)]
        .into_iter()
        .find_map(|(field, port)| port.filter(|_| !transport).map(|_| field))
    {
        return Err(Refusal::invalid(field, format!("protocol {name:?} has no ports")));
    }
    if let Some(field) = [("icmp_type", new.icmp_type), ("icmp_code", new.icmp_code)]
        .into_iter()
        .find_map(|(field, value)| value.filter(|_| name != "icmp").map(|_| field))
    {
        return Err(Refusal::invalid(field, format!("protocol {name:?} has no ICMP messages")));
    }
    match name {
        "any" => Ok(Protocol::Any),
        "tcp" => Ok(Protocol::Tcp(check_range(new)?)),
        "udp" => Ok(Protocol::Udp(check_range(new)?)),
        "icmp" if new.icmp_code.is_some() && new.icmp_type.is_none() => {
            Err(Refusal::invalid("icmp_code", "it is given without icmp_type"))
        }
        "icmp" => Ok(Protocol::Icmp { kind: new.icmp_type, code: new.icmp_code }),
        number => number.parse().map(Protocol::Number).map_err(|_| {
            let problem = format!("{:?} is not any, tcp, udp, icmp or a number from 0 to 255", super::clip(number));
            Refusal::invalid("protocol", problem)
        }),
    }
}

fn check_range(new: &NewRule) -> Result<PortRange, Refusal> {
    match (new.port_min, new.port_max) {
        (None, None) => Ok(PortRange::ALL),
        (None, Some(_)) => Err(Refusal::invalid("port_min", "port_max is given without it")),
        (Some(first), last) => PortRange::new(first, last.unwrap_or(first))
            .map_err(|error| Refusal::invalid("port_max", error.to_string())),
    }
}
