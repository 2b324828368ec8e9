//! Actions in ovs-ofctl syntax, both ways.
//!
//! Owns the words. Never checks more than parsing needs.
//! Invariant: for every list that passes the flow's check, parsing its text gives it back.
//! Source: ovs-actions(7).

use std::{fmt, str::FromStr};

use super::{
    PortNo,
    action::{Action, Controller, HashFields, Multipath, MultipathAlgorithm, NESTING_MAX, PacketInReason, SetField},
    ct::{Ct, Nat},
    field::Field,
    learn::Learn,
    sample::Sample,
    spread::Spread,
    subfield::{FieldValue, Subfield},
    text::{self, Place, TextError},
};

/// Writes actions as one comma-separated list; `drop` where there are none.
#[must_use]
pub fn print_actions(actions: &[Action]) -> String {
    ActionList(actions).to_string()
}

/// Reads a comma-separated list of actions.
///
/// # Errors
/// When the text is not in ovs-ofctl syntax; names the item.
pub fn parse_actions(text: &str) -> Result<Vec<Action>, TextError> {
    parse_list(text, 0)
}

/// Prints actions as one list.
pub(crate) struct ActionList<'a>(pub(crate) &'a [Action]);

impl fmt::Display for ActionList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("drop");
        }
        for (index, action) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{action}")?;
        }
        Ok(())
    }
}

struct Hex<'a>(&'a [u8], &'static str);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, octet) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(self.1)?;
            }
            write!(f, "{octet:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Display for SetField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("set_field:")?;
        text::format_value(f, self.field(), (self.value(), self.mask()), Place::Action)?;
        write!(f, "->{}", self.field())
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_plain() {
            return write!(f, "CONTROLLER:{}", self.octets_max);
        }
        let mut parts = Vec::new();
        if self.reason != PacketInReason::ACTION {
            let name = PacketInReason::NAMES.get(usize::from(self.reason.0));
            parts.push(format!("reason={}", name.map_or_else(|| self.reason.0.to_string(), |name| (*name).to_owned())));
        }
        if self.octets_max != u16::MAX {
            parts.push(format!("max_len={}", self.octets_max));
        }
        if self.id != 0 {
            parts.push(format!("id={}", self.id));
        }
        if !self.userdata.is_empty() {
            parts.push(format!("userdata={}", Hex(&self.userdata, ".")));
        }
        if self.pause {
            parts.push("pause".to_owned());
        }
        parts.extend(self.meter.map(|meter| format!("meter_id={meter}")));
        write!(f, "controller({})", parts.join(","))
    }
}

impl fmt::Display for Multipath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = HashFields::ALL.iter().find(|(one, ..)| *one == self.fields).map_or("", |(.., name)| name);
        let algorithm =
            MultipathAlgorithm::ALL.iter().find(|(one, ..)| *one == self.algorithm).map_or("", |(.., name)| name);
        write!(
            f,
            "multipath({fields},{},{algorithm},{},{},{})",
            self.basis,
            u32::from(self.link_max) + 1,
            self.argument,
            self.target
        )
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Output(port) if port.is_reserved() && port.to_string() != port.0.to_string() => write!(f, "{port}"),
            Self::Output(port) => write!(f, "output:{port}"),
            Self::OutputField(bits) => write!(f, "output:{bits}"),
            Self::OutputTruncated { port, octets_max } => write!(f, "output(port={port},max_len={octets_max})"),
            Self::Controller(controller) => write!(f, "{controller}"),
            Self::Group(id) => write!(f, "group:{id}"),
            Self::SetField(set) => write!(f, "{set}"),
            Self::Move { source, target } => write!(f, "move:{source}->{target}"),
            Self::Push(bits) => write!(f, "push:{bits}"),
            Self::Pop(bits) => write!(f, "pop:{bits}"),
            Self::PushVlan(ethertype) => write!(f, "push_vlan:{ethertype:#06x}"),
            Self::PopVlan => f.write_str("pop_vlan"),
            Self::DecTtl => f.write_str("dec_ttl"),
            Self::DecTtlFor(ids) => {
                let ids: Vec<_> = ids.iter().map(u16::to_string).collect();
                write!(f, "dec_ttl({})", ids.join(","))
            }
            Self::Resubmit { port, table, original_tuple } => resubmit(f, *port, *table, *original_tuple),
            Self::Ct(ct) => write!(f, "{ct}"),
            Self::CtClear => f.write_str("ct_clear"),
            Self::Nat(nat) => write!(f, "{nat}"),
            Self::Conjunction { id, clause, clauses } => write!(f, "conjunction({id},{clause}/{clauses})"),
            Self::Note(note) => write!(f, "note:{}", Hex(note.octets(), ".")),
            Self::Clone(actions) => write!(f, "clone({})", ActionList(actions)),
            Self::Learn(learn) => write!(f, "{learn}"),
            Self::CheckPacketLarger { octets, target } => write!(f, "check_pkt_larger({octets})->{target}"),
            Self::Multipath(multipath) => write!(f, "{multipath}"),
            Self::Spread(spread) => write!(f, "{spread}"),
            Self::Sample(sample) => write!(f, "{sample}"),
            Self::FinTimeout { idle, hard } => fin_timeout(f, *idle, *hard),
            Self::PushMpls(ethertype) => write!(f, "push_mpls:{ethertype:#06x}"),
            Self::PopMpls(ethertype) => write!(f, "pop_mpls:{ethertype:#06x}"),
            Self::DecMplsTtl => f.write_str("dec_mpls_ttl"),
            Self::SetQueue(queue) => write!(f, "set_queue:{queue}"),
            Self::PopQueue => f.write_str("pop_queue"),
            Self::Exit => f.write_str("exit"),
            Self::Meter(id) => write!(f, "meter:{id}"),
            Self::ClearActions => f.write_str("clear_actions"),
            Self::WriteActions(actions) => write!(f, "write_actions({})", ActionList(actions)),
            Self::WriteMetadata { value, mask: u64::MAX } => write!(f, "write_metadata:{value:#x}"),
            Self::WriteMetadata { value, mask } => write!(f, "write_metadata:{value:#x}/{mask:#x}"),
            Self::GotoTable(table) => write!(f, "goto_table:{table}"),
            Self::Unknown(octets) => write!(f, "unknown({})", Hex(octets, "")),
        }
    }
}

fn fin_timeout(f: &mut fmt::Formatter<'_>, idle: u16, hard: u16) -> fmt::Result {
    let parts = [("idle_timeout", idle), ("hard_timeout", hard)];
    let parts: Vec<_> = parts.iter().filter(|(_, n)| *n != 0).map(|(name, n)| format!("{name}={n}")).collect();
    write!(f, "fin_timeout({})", parts.join(","))
}

fn resubmit(f: &mut fmt::Formatter<'_>, port: PortNo, table: Option<u8>, original_tuple: bool) -> fmt::Result {
    if let (None, false, true) = (table, original_tuple, port != PortNo::IN_PORT) {
        return write!(f, "resubmit:{port}");
    }
    let port = if port == PortNo::IN_PORT { String::new() } else { port.to_string() };
    let table = table.map_or_else(String::new, |table| table.to_string());
    write!(f, "resubmit({port},{table}{})", if original_tuple { ",ct" } else { "" })
}

pub(super) fn parse_list(text: &str, depth: usize) -> Result<Vec<Action>, TextError> {
    if depth > NESTING_MAX {
        return Err(TextError::TooDeep { limit: NESTING_MAX });
    }
    let items = text::items(text)?;
    if let ["drop"] = items[..] {
        return Ok(Vec::new());
    }
    items.into_iter().map(|item| parse_action(item, depth)).collect()
}

impl FromStr for Action {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        parse_action(text.trim(), 0)
    }
}

fn parse_action(item: &str, depth: usize) -> Result<Action, TextError> {
    let (key, value) = text::key_value(item);
    let Some(value) = value else { return parse_word(key) };
    if let Some(action) = parse_write(key, value)? {
        return Ok(action);
    }
    Ok(match key {
        "output" if item.starts_with("output(") => parse_truncated(value)?,
        "output" => match value.parse::<PortNo>() {
            Ok(port) => Action::output(port),
            Err(_) => Action::OutputField(value.parse()?),
        },
        "controller" | "CONTROLLER" if item[key.len()..].starts_with('(') => parse_controller(value)?,
        "controller" | "CONTROLLER" => {
            Action::Controller(Controller { octets_max: text::number(key, value)?, ..Controller::new() })
        }
        "group" => Action::Group(text::number(key, value)?),
        "dec_ttl" => {
            let ids = text::items(value)?.into_iter().map(|id| text::number(key, id));
            Action::DecTtlFor(ids.collect::<Result<_, _>>()?)
        }
        "resubmit" => parse_resubmit(item, value)?,
        "ct" => Action::ct(Ct::parse(value, depth)?),
        "nat" => Action::Nat(Nat::parse(value)?),
        "conjunction" => parse_conjunction(value)?,
        "note" => Action::note(&parse_octets(key, value)?),
        "clone" => Action::Clone(parse_list(value, depth + 1)?),
        "learn" => Action::Learn(Box::new(Learn::parse(value)?)),
        "check_pkt_larger" => parse_check_larger(item)?,
        "multipath" => Action::Multipath(parse_multipath(value)?),
        "bundle" | "bundle_load" => Action::Spread(Spread::parse(value, key == "bundle_load")?),
        "sample" => Action::Sample(Sample::parse(value)?),
        "fin_timeout" => parse_fin_timeout(value)?,
        "push_mpls" => Action::PushMpls(text::number(key, value)?),
        "pop_mpls" => Action::PopMpls(text::number(key, value)?),
        "set_queue" => Action::SetQueue(text::number(key, value)?),
        "meter" => Action::Meter(text::number(key, value)?),
        "write_actions" => Action::WriteActions(parse_list(value, depth + 1)?),
        "write_metadata" => match value.split_once('/') {
            Some((value, mask)) => {
                Action::WriteMetadata { value: text::number(key, value)?, mask: text::number(key, mask)? }
            }
            None => Action::WriteMetadata { value: text::number(key, value)?, mask: u64::MAX },
        },
        "goto_table" => Action::GotoTable(text::number(key, value)?),
        "unknown" => Action::Unknown(parse_octets(key, value)?),
        _ => return Err(TextError::UnknownKey { key: key.to_owned(), context: "actions" }),
    })
}

/// Actions that are one word.
fn parse_word(word: &str) -> Result<Action, TextError> {
    Ok(match word {
        "pop_vlan" | "strip_vlan" => Action::PopVlan,
        "dec_ttl" => Action::DecTtl,
        "dec_mpls_ttl" => Action::DecMplsTtl,
        "ct" => Action::ct(Ct::default()),
        "ct_clear" => Action::CtClear,
        "nat" => Action::Nat(Nat::default()),
        "pop_queue" => Action::PopQueue,
        "exit" => Action::Exit,
        "clear_actions" => Action::ClearActions,
        "drop" => return Err(TextError::Invalid("drop must stand alone".to_owned())),
        _ => match word.parse::<PortNo>() {
            Ok(port) => Action::output(port),
            Err(_) => return Err(TextError::UnknownKey { key: word.to_owned(), context: "actions" }),
        },
    })
}

/// Actions that write fields, under all the names that they have had.
fn parse_write(key: &str, value: &str) -> Result<Option<Action>, TextError> {
    let whole = |field: Field| -> Result<Option<Action>, TextError> {
        let (parsed, _) = text::parse_value(field, key, value)?;
        Ok(Some(Action::set(field, parsed)))
    };
    match key {
        "set_field" => {
            let (value, target) = arrow(key, value)?;
            let bits: Subfield = target.parse()?;
            if !target.contains('[') {
                let (value, mask) = text::parse_value(bits.field(), key, value)?;
                return Ok(Some(Action::SetField(SetField::new(bits.field(), value, mask))));
            }
            Ok(Some(Action::set_bits(bits, FieldValue(text::number(key, value)?))))
        }
        "load" => {
            let (value, target) = arrow(key, value)?;
            let bits: Subfield = target.parse()?;
            Ok(Some(Action::set_bits(bits, FieldValue(text::number(key, value)?))))
        }
        "move" => {
            let (source, target) = arrow(key, value)?;
            Ok(Some(Action::Move { source: source.parse()?, target: target.parse()? }))
        }
        "push" => Ok(Some(Action::Push(value.parse()?))),
        "pop" => Ok(Some(Action::Pop(value.parse()?))),
        "push_vlan" => Ok(Some(Action::PushVlan(text::number(key, value)?))),
        "mod_dl_src" => whole(Field::EthSrc),
        "mod_dl_dst" => whole(Field::EthDst),
        "mod_nw_src" => whole(Field::Ipv4Src),
        "mod_nw_dst" => whole(Field::Ipv4Dst),
        "mod_nw_ttl" => whole(Field::IpTtl),
        "mod_nw_ecn" => whole(Field::IpEcn),
        "mod_nw_tos" => {
            let tos: u8 = text::number(key, value)?;
            if tos & 3 != 0 {
                return Err(text::bad(key, value));
            }
            Ok(Some(Action::set(Field::IpDscp, tos >> 2)))
        }
        "set_tunnel" | "set_tunnel64" => whole(Field::TunId),
        _ => Ok(None),
    }
}

fn arrow<'a>(key: &str, text: &'a str) -> Result<(&'a str, &'a str), TextError> {
    text.split_once("->").ok_or_else(|| text::bad(key, text))
}

fn parse_truncated(text: &str) -> Result<Action, TextError> {
    let (mut port, mut octets_max) = (None, None);
    for item in text::items(text)? {
        match text::key_value(item) {
            ("port", Some(value)) => port = Some(value.parse().map_err(|_| text::bad("port", value))?),
            ("max_len", Some(value)) => octets_max = Some(text::number("max_len", value)?),
            (key, _) => return Err(TextError::UnknownKey { key: key.to_owned(), context: "output()" }),
        }
    }
    match (port, octets_max) {
        (Some(port), Some(octets_max)) => Ok(Action::OutputTruncated { port, octets_max }),
        _ => Err(TextError::MissingValue("output(port=, max_len=)".to_owned())),
    }
}

fn parse_controller(text: &str) -> Result<Action, TextError> {
    let mut controller = Controller::new();
    for item in text::items(text)? {
        match text::key_value(item) {
            ("max_len", Some(value)) => controller.octets_max = text::number("max_len", value)?,
            ("id", Some(value)) => controller.id = text::number("id", value)?,
            ("reason", Some(value)) => {
                let known = PacketInReason::NAMES.iter().position(|name| *name == value);
                let number = known.and_then(|at| u8::try_from(at).ok());
                controller.reason = PacketInReason(number.map_or_else(|| text::number("reason", value), Ok)?);
            }
            ("userdata", Some(value)) => controller.userdata = parse_octets("userdata", value)?,
            ("pause", None) => controller.pause = true,
            ("meter_id", Some(value)) => controller.meter = Some(text::number("meter_id", value)?),
            (key, _) => return Err(TextError::UnknownKey { key: key.to_owned(), context: "controller()" }),
        }
    }
    Ok(Action::Controller(controller))
}

fn parse_fin_timeout(text: &str) -> Result<Action, TextError> {
    let (mut idle, mut hard) = (0, 0);
    for item in text::items(text)? {
        match text::key_value(item) {
            ("idle_timeout", Some(value)) => idle = text::number("idle_timeout", value)?,
            ("hard_timeout", Some(value)) => hard = text::number("hard_timeout", value)?,
            (key, _) => return Err(TextError::UnknownKey { key: key.to_owned(), context: "fin_timeout()" }),
        }
    }
    Ok(Action::FinTimeout { idle, hard })
}

fn parse_resubmit(item: &str, value: &str) -> Result<Action, TextError> {
    let port = |text: &str| text.parse::<PortNo>().map_err(|_| text::bad("resubmit", text));
    if !item.starts_with("resubmit(") {
        return Ok(Action::Resubmit { port: port(value)?, table: None, original_tuple: false });
    }
    let mut parts = value.split(',');
    let (first, second, third) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next());
    Ok(Action::Resubmit {
        port: if first.is_empty() { PortNo::IN_PORT } else { port(first)? },
        table: if second.is_empty() { None } else { Some(text::number("resubmit", second)?) },
        original_tuple: match third {
            None => false,
            Some("ct") => true,
            Some(other) => return Err(text::bad("resubmit", other)),
        },
    })
}

fn parse_conjunction(text: &str) -> Result<Action, TextError> {
    let bad = || text::bad("conjunction", text);
    let (id, clause) = text.split_once(',').ok_or_else(bad)?;
    let (clause, clauses) = clause.trim().split_once('/').ok_or_else(bad)?;
    Ok(Action::Conjunction {
        id: text::number("conjunction", id)?,
        clause: text::number("conjunction", clause)?,
        clauses: text::number("conjunction", clauses)?,
    })
}

fn parse_check_larger(item: &str) -> Result<Action, TextError> {
    let bad = || text::bad("check_pkt_larger", item);
    let (octets, target) = item.split_once("->").ok_or_else(bad)?;
    let octets = octets.strip_prefix("check_pkt_larger(").and_then(|rest| rest.strip_suffix(')')).ok_or_else(bad)?;
    Ok(Action::CheckPacketLarger { octets: text::number("check_pkt_larger", octets)?, target: target.parse()? })
}

fn parse_multipath(text: &str) -> Result<Multipath, TextError> {
    let items = text::items(text)?;
    let &[fields, basis, algorithm, links, argument, target] = &items[..] else {
        return Err(text::bad("multipath", text));
    };
    let links: u32 = text::number("multipath", links)?;
    let link_max = links.checked_sub(1).and_then(|max| u16::try_from(max).ok());
    Ok(Multipath {
        fields: HashFields::ALL
            .iter()
            .find(|(.., name)| *name == fields)
            .map(|(one, ..)| *one)
            .ok_or_else(|| text::bad("multipath", fields))?,
        basis: text::number("multipath", basis)?,
        algorithm: MultipathAlgorithm::ALL
            .iter()
            .find(|(.., name)| *name == algorithm)
            .map(|(one, ..)| *one)
            .ok_or_else(|| text::bad("multipath", algorithm))?,
        link_max: link_max.ok_or_else(|| text::bad("multipath", text))?,
        argument: text::number("multipath", argument)?,
        target: target.parse()?,
    })
}

/// Octets in hexadecimal, with or without dots between them.
fn parse_octets(key: &str, text: &str) -> Result<Vec<u8>, TextError> {
    let digits: String = text.chars().filter(|c| *c != '.').collect();
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return Err(text::bad(key, text));
    }
    let octets = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16));
    octets.collect::<Result<_, _>>().map_err(|_| text::bad(key, text))
}
