//! Nicira vendor actions, as Open vSwitch speaks them inside OpenFlow 1.5.
//!
//! Owns their wire form, apart from [`super::learn`]. Never checks whether a switch would take them.
//! Invariant: what is not known is given back as `None`, for the caller to keep as octets.
//! Source: ovs-actions(7) and the vendor actions that `ovs-ofctl` sends and prints.

use std::net::IpAddr;

use super::{
    action::{begin, end, no_wire_form, put_list, subfield, take_list},
    buffer::{Reader, Writer, padding},
    error::{DecodeError, EncodeError},
    learn, oxm,
};
use crate::flow::{
    Action, Controller, Ct, CtZone, Field, HashFields, Multipath, MultipathAlgorithm, Nat, NatChoice, NatRange,
    NatSide, Note, PacketInReason, PortNo, Sample, SampleSide, SetField, Spread, SpreadAlgorithm, Subfield,
};

/// The vendor number of Nicira.
pub(super) const NICIRA: u32 = 0x0000_2320;

const RESUBMIT: u16 = 1;
const SET_TUNNEL: u16 = 2;
const REG_MOVE: u16 = 6;
const REG_LOAD: u16 = 7;
const NOTE: u16 = 8;
const SET_TUNNEL64: u16 = 9;
const MULTIPATH: u16 = 10;
const SPREAD: u16 = 12;
const SPREAD_LOAD: u16 = 13;
const RESUBMIT_TABLE: u16 = 14;
const OUTPUT_REG: u16 = 15;
pub(super) const LEARN: u16 = 16;
const EXIT: u16 = 17;
const FIN_TIMEOUT: u16 = 19;
const CONTROLLER: u16 = 20;
const DEC_TTL_FOR: u16 = 21;
const POP_QUEUE: u16 = 5;
const STACK_PUSH: u16 = 27;
const STACK_POP: u16 = 28;
const SAMPLE: u16 = 29;
const REG_LOAD2: u16 = 33;
const CONJUNCTION: u16 = 34;
const CT: u16 = 35;
const NAT: u16 = 36;
const CONTROLLER2: u16 = 37;
const SAMPLE2: u16 = 38;
const OUTPUT_TRUNCATED: u16 = 39;
const SAMPLE3: u16 = 41;
const CLONE: u16 = 42;
const CT_CLEAR: u16 = 43;
const RESUBMIT_TABLE_CT: u16 = 44;
pub(super) const LEARN2: u16 = 45;
const CHECK_PACKET_LARGER: u16 = 49;

const TABLE_NONE: u8 = 0xff;

/// Starts a vendor action; gives the offset for [`end`].
pub(super) fn begin_vendor(to: &mut Writer, subtype: u16) -> usize {
    let start = begin(to, 0xffff);
    to.u32(NICIRA);
    to.u16(subtype);
    start
}

/// First bit and number of bits in 16 bits, as most vendor actions have them.
fn offset_bits(bits: Subfield) -> u16 {
    u16::from(bits.start()) << 6 | u16::from(bits.bits() - 1)
}

fn take_offset_bits(packed: u16, field: Field) -> Result<Subfield, DecodeError> {
    subfield(field, packed >> 6, (packed & 0x3f) + 1)
}

pub(super) fn put(to: &mut Writer, action: &Action) -> Result<(), EncodeError> {
    match action {
        Action::Resubmit { port, table, original_tuple } => {
            let port = port.to_u16().ok_or_else(|| no_wire_form(action))?;
            let start = begin_vendor(to, if *original_tuple { RESUBMIT_TABLE_CT } else { RESUBMIT_TABLE });
            to.u16(port);
            to.u8(table.unwrap_or(TABLE_NONE));
            end(to, start)
        }
        Action::OutputField(bits) => {
            if bits.bits() > 64 {
                return Err(no_wire_form(action));
            }
            let start = begin_vendor(to, OUTPUT_REG);
            to.u16(offset_bits(*bits));
            oxm::put_field(to, bits.field());
            to.u16(u16::MAX);
            end(to, start)
        }
        Action::OutputTruncated { port, octets_max } => {
            let port = port.to_u16().ok_or_else(|| no_wire_form(action))?;
            let start = begin_vendor(to, OUTPUT_TRUNCATED);
            to.u16(port);
            to.u32(*octets_max);
            end(to, start)
        }
        Action::Controller(controller) => put_controller(to, controller),
        Action::Push(bits) => put_stack(to, STACK_PUSH, *bits),
        Action::Pop(bits) => put_stack(to, STACK_POP, *bits),
        Action::DecTtlFor(ids) => {
            let start = begin_vendor(to, DEC_TTL_FOR);
            to.u16(u16::try_from(ids.len()).map_err(|_| no_wire_form(action))?);
            to.zeros(4);
            ids.iter().for_each(|id| to.u16(*id));
            end(to, start)
        }
        Action::Ct(ct) => put_ct(to, ct),
        Action::CtClear => put_empty(to, CT_CLEAR),
        Action::Nat(nat) => put_nat(to, nat),
        Action::Conjunction { id, clause, clauses } => {
            let start = begin_vendor(to, CONJUNCTION);
            to.u8(clause.saturating_sub(1));
            to.u8(*clauses);
            to.u32(*id);
            end(to, start)
        }
        Action::Note(note) => {
            let start = begin_vendor(to, NOTE);
            to.bytes(note.octets());
            end(to, start)
        }
        Action::Clone(actions) => {
            let start = begin_vendor(to, CLONE);
            to.zeros(6);
            put_list(to, actions)?;
            end(to, start)
        }
        Action::Learn(learn) => learn::put(to, learn),
        Action::CheckPacketLarger { octets, target } => {
            let start = begin_vendor(to, CHECK_PACKET_LARGER);
            to.u16(*octets);
            to.u16(target.start().into());
            oxm::put_field(to, target.field());
            end(to, start)
        }
        Action::Multipath(multipath) => put_multipath(to, multipath),
        Action::Spread(spread) => put_spread(to, spread),
        Action::Sample(sample) => put_sample(to, *sample),
        Action::FinTimeout { idle, hard } => {
            let start = begin_vendor(to, FIN_TIMEOUT);
            to.u16(*idle);
            to.u16(*hard);
            end(to, start)
        }
        Action::PopQueue => put_empty(to, POP_QUEUE),
        Action::Exit => put_empty(to, EXIT),
        other => Err(no_wire_form(other)),
    }
}

fn put_empty(to: &mut Writer, subtype: u16) -> Result<(), EncodeError> {
    let start = begin_vendor(to, subtype);
    end(to, start)
}

fn put_stack(to: &mut Writer, subtype: u16, bits: Subfield) -> Result<(), EncodeError> {
    let start = begin_vendor(to, subtype);
    to.u16(bits.start().into());
    oxm::put_field(to, bits.field());
    to.u16(bits.bits().into());
    end(to, start)
}

/// Properties of the `controller` action, by type.
mod controller_property {
    pub(super) const OCTETS_MAX: u16 = 0;
    pub(super) const ID: u16 = 1;
    pub(super) const REASON: u16 = 2;
    pub(super) const USERDATA: u16 = 3;
    pub(super) const PAUSE: u16 = 4;
    pub(super) const METER: u16 = 5;
}

fn put_controller(to: &mut Writer, controller: &Controller) -> Result<(), EncodeError> {
    use controller_property as property;
    let default = Controller::new();
    let start = begin_vendor(to, CONTROLLER2);
    to.zeros(6);
    let mut put = |kind: u16, octets: &[u8]| {
        let at = begin(to, kind);
        to.bytes(octets);
        to.patch_length(at + 2, at, "controller property")?;
        to.align(at);
        Ok(())
    };
    if controller.octets_max != default.octets_max {
        put(property::OCTETS_MAX, &controller.octets_max.to_be_bytes())?;
    }
    if controller.id != default.id {
        put(property::ID, &controller.id.to_be_bytes())?;
    }
    if controller.reason != default.reason {
        put(property::REASON, &[controller.reason.0])?;
    }
    if !controller.userdata.is_empty() {
        put(property::USERDATA, &controller.userdata)?;
    }
    if controller.pause {
        put(property::PAUSE, &[])?;
    }
    if let Some(meter) = controller.meter {
        put(property::METER, &meter.to_be_bytes())?;
    }
    end(to, start)
}

fn take_controller2(body: &mut Reader<'_>) -> Result<Action, DecodeError> {
    use controller_property as property;
    let mut controller = Controller::new();
    body.skip(6)?;
    while !body.is_empty() {
        let kind = body.u16()?;
        let length = body.u16()?;
        let mut value = body.body(length, 4, "controller property")?;
        match kind {
            property::OCTETS_MAX => controller.octets_max = value.u16()?,
            property::ID => controller.id = value.u16()?,
            property::REASON => controller.reason = PacketInReason(value.u8()?),
            property::USERDATA => controller.userdata = value.rest().to_vec(),
            property::PAUSE => controller.pause = true,
            property::METER => controller.meter = Some(value.u32()?),
            other => return Err(DecodeError::BadValue { what: "controller property", value: other.into() }),
        }
        body.skip_padding(padding(length.into()));
    }
    Ok(Action::Controller(controller))
}

const CT_COMMIT: u16 = 1;
const CT_FORCE: u16 = 2;

fn put_ct(to: &mut Writer, ct: &Ct) -> Result<(), EncodeError> {
    let start = begin_vendor(to, CT);
    to.u16(if ct.commit { CT_COMMIT } else { 0 } | if ct.force { CT_FORCE } else { 0 });
    match ct.zone {
        CtZone::Fixed(zone) => {
            to.u32(0);
            to.u16(zone);
        }
        CtZone::From(bits) => {
            oxm::put_field(to, bits.field());
            to.u16(offset_bits(bits));
        }
    }
    to.u8(ct.table.unwrap_or(TABLE_NONE));
    to.zeros(3);
    to.u16(ct.helper_port);
    put_list(to, &ct.actions)?;
    end(to, start)
}

fn take_ct(body: &mut Reader<'_>, depth: usize) -> Result<Option<Action>, DecodeError> {
    let flags = body.u16()?;
    let mut zone_field = body.sub(4, "ct zone")?;
    let zone = match zone_field.rest() {
        [0, 0, 0, 0] => CtZone::Fixed(body.u16()?),
        _ => match oxm::field(&mut zone_field)? {
            Some(field) => CtZone::From(take_offset_bits(body.u16()?, field)?),
            None => return Ok(None),
        },
    };
    let table = Some(body.u8()?).filter(|table| *table != TABLE_NONE);
    body.skip(3)?;
    let helper_port = body.u16()?;
    let actions = take_list(*body, depth + 1)?;
    let (commit, force) = (flags & CT_COMMIT != 0, flags & CT_FORCE != 0);
    Ok(Some(Action::ct(Ct { commit, force, zone, table, helper_port, actions })))
}

/// Bits of the NAT action: flags, and which parts of the range follow.
mod nat_bit {
    pub(super) const SOURCE: u16 = 1;
    pub(super) const DESTINATION: u16 = 2;
    pub(super) const PERSISTENT: u16 = 4;
    pub(super) const HASH: u16 = 8;
    pub(super) const RANDOM: u16 = 16;
    pub(super) const IPV4_FIRST: u16 = 1;
    pub(super) const IPV4_LAST: u16 = 2;
    pub(super) const IPV6_FIRST: u16 = 4;
    pub(super) const IPV6_LAST: u16 = 8;
    pub(super) const PORT_FIRST: u16 = 16;
    pub(super) const PORT_LAST: u16 = 32;
}

fn put_nat(to: &mut Writer, nat: &Nat) -> Result<(), EncodeError> {
    let start = begin_vendor(to, NAT);
    to.zeros(2);
    let side = match nat.range.map(|range| range.side) {
        None => 0,
        Some(NatSide::Source) => nat_bit::SOURCE,
        Some(NatSide::Destination) => nat_bit::DESTINATION,
    };
    let choice = match nat.choice {
        NatChoice::Default => 0,
        NatChoice::Hash => nat_bit::HASH,
        NatChoice::Random => nat_bit::RANDOM,
    };
    to.u16(side | choice | if nat.persistent { nat_bit::PERSISTENT } else { 0 });
    let (mut present, mut range) = (0, Writer::default());
    if let Some((first, last)) = nat.range.and_then(|range| range.addresses) {
        for (address, v4, v6) in
            [(Some(first), nat_bit::IPV4_FIRST, nat_bit::IPV6_FIRST), (last, nat_bit::IPV4_LAST, nat_bit::IPV6_LAST)]
        {
            match address {
                None => {}
                Some(IpAddr::V4(address)) => {
                    present |= v4;
                    range.bytes(&address.octets());
                }
                Some(IpAddr::V6(address)) => {
                    present |= v6;
                    range.bytes(&address.octets());
                }
            }
        }
    }
    if let Some((first, last)) = nat.range.and_then(|range| range.ports) {
        present |= nat_bit::PORT_FIRST;
        range.u16(first);
        if let Some(last) = last {
            present |= nat_bit::PORT_LAST;
            range.u16(last);
        }
    }
    to.u16(present);
    to.bytes(&range.into_octets());
    end(to, start)
}

fn take_nat(body: &mut Reader<'_>) -> Result<Action, DecodeError> {
    body.skip(2)?;
    let (flags, present) = (body.u16()?, body.u16()?);
    let has = |bit: u16| present & bit != 0;
    let mut v4 = |bit| -> Result<Option<IpAddr>, DecodeError> {
        if has(bit) { Ok(Some(IpAddr::V4(body.u32()?.into()))) } else { Ok(None) }
    };
    let (first4, last4) = (v4(nat_bit::IPV4_FIRST)?, v4(nat_bit::IPV4_LAST)?);
    let mut v6 = |bit| -> Result<Option<IpAddr>, DecodeError> {
        if has(bit) { Ok(Some(IpAddr::V6(body.uint(16)?.into()))) } else { Ok(None) }
    };
    let (first6, last6) = (v6(nat_bit::IPV6_FIRST)?, v6(nat_bit::IPV6_LAST)?);
    let mut port = |bit| if has(bit) { body.u16().map(Some) } else { Ok(None) };
    let (first_port, last_port) = (port(nat_bit::PORT_FIRST)?, port(nat_bit::PORT_LAST)?);
    let side = match flags & (nat_bit::SOURCE | nat_bit::DESTINATION) {
        0 => None,
        nat_bit::SOURCE => Some(NatSide::Source),
        nat_bit::DESTINATION => Some(NatSide::Destination),
        both => return Err(DecodeError::BadValue { what: "nat flags", value: both.into() }),
    };
    let range = side.map(|side| NatRange {
        side,
        addresses: first4.or(first6).map(|first| (first, last4.or(last6))),
        ports: first_port.map(|first| (first, last_port)),
    });
    let choice = match flags & (nat_bit::HASH | nat_bit::RANDOM) {
        nat_bit::HASH => NatChoice::Hash,
        nat_bit::RANDOM => NatChoice::Random,
        _ => NatChoice::Default,
    };
    Ok(Action::Nat(Nat { range, persistent: flags & nat_bit::PERSISTENT != 0, choice }))
}

fn put_multipath(to: &mut Writer, multipath: &Multipath) -> Result<(), EncodeError> {
    let start = begin_vendor(to, MULTIPATH);
    to.u16(HashFields::ALL.iter().find(|(one, ..)| *one == multipath.fields).map_or(0, |(_, number, _)| *number));
    to.u16(multipath.basis);
    to.zeros(2);
    let algorithm = MultipathAlgorithm::ALL.iter().find(|(one, ..)| *one == multipath.algorithm);
    to.u16(algorithm.map_or(0, |(_, number, _)| *number));
    to.u16(multipath.link_max);
    to.u32(multipath.argument);
    to.zeros(2);
    to.u16(offset_bits(multipath.target));
    oxm::put_field(to, multipath.target.field());
    end(to, start)
}

fn take_multipath(body: &mut Reader<'_>) -> Result<Option<Action>, DecodeError> {
    let (fields, basis) = (body.u16()?, body.u16()?);
    body.skip(2)?;
    let (algorithm, link_max, argument) = (body.u16()?, body.u16()?, body.u32()?);
    body.skip(2)?;
    let packed = body.u16()?;
    let Some(field) = oxm::field(body)? else { return Ok(None) };
    let target = take_offset_bits(packed, field)?;
    let fields = HashFields::ALL.iter().find(|(_, number, _)| *number == fields);
    let algorithm = MultipathAlgorithm::ALL.iter().find(|(_, number, _)| *number == algorithm);
    let (Some((fields, ..)), Some((algorithm, ..))) = (fields, algorithm) else { return Ok(None) };
    let (fields, algorithm) = (*fields, *algorithm);
    Ok(Some(Action::Multipath(Multipath { fields, basis, algorithm, link_max, argument, target })))
}

/// The kind of the ports of a spread: the Nicira field header of `in_port`, 16 bits.
const SPREAD_OF_PORTS: u32 = 0x0000_0002;

fn put_spread(to: &mut Writer, spread: &Spread) -> Result<(), EncodeError> {
    let wrong = || no_wire_form(&Action::Spread(spread.clone()));
    let start = begin_vendor(to, if spread.target.is_some() { SPREAD_LOAD } else { SPREAD });
    to.u16(SpreadAlgorithm::ALL.iter().find(|(one, ..)| *one == spread.algorithm).map_or(0, |(_, number, _)| *number));
    to.u16(HashFields::ALL.iter().find(|(one, ..)| *one == spread.fields).map_or(0, |(_, number, _)| *number));
    to.u16(spread.basis);
    to.u32(SPREAD_OF_PORTS);
    to.u16(u16::try_from(spread.ports.len()).map_err(|_| wrong())?);
    to.u16(spread.target.map_or(0, offset_bits));
    match spread.target {
        Some(target) => oxm::put_field(to, target.field()),
        None => to.zeros(4),
    }
    to.zeros(4);
    for port in &spread.ports {
        to.u16(port.to_u16().ok_or_else(wrong)?);
    }
    end(to, start)
}

fn take_spread(body: &mut Reader<'_>, has_target: bool) -> Result<Option<Action>, DecodeError> {
    let (algorithm, fields, basis) = (body.u16()?, body.u16()?, body.u16()?);
    let (kind, count, packed) = (body.u32()?, body.u16()?, body.u16()?);
    let target = if has_target {
        let Some(field) = oxm::field(body)? else { return Ok(None) };
        Some(take_offset_bits(packed, field)?)
    } else {
        body.skip(4)?;
        None
    };
    body.skip(4)?;
    let ports = (0..count).map(|_| body.u16().map(PortNo::from_u16)).collect::<Result<_, _>>()?;
    let fields = HashFields::ALL.iter().find(|(_, number, _)| *number == fields);
    let algorithm = SpreadAlgorithm::ALL.iter().find(|(_, number, _)| *number == algorithm);
    let (Some((fields, ..)), Some((algorithm, ..)), SPREAD_OF_PORTS) = (fields, algorithm, kind) else {
        return Ok(None);
    };
    Ok(Some(Action::Spread(Spread { fields: *fields, basis, algorithm: *algorithm, ports, target })))
}

fn put_sample(to: &mut Writer, sample: Sample) -> Result<(), EncodeError> {
    let wrong = || no_wire_form(&Action::Sample(sample));
    let has_port = sample.port.is_some() || sample.side != SampleSide::Unsaid;
    let subtype = match (has_port, sample.side) {
        (false, _) => SAMPLE,
        (true, SampleSide::Unsaid) => SAMPLE2,
        (true, _) => SAMPLE3,
    };
    let start = begin_vendor(to, subtype);
    to.u16(sample.probability);
    to.u32(sample.collector_set_id);
    to.u32(sample.obs_domain_id);
    to.u32(sample.obs_point_id);
    if has_port {
        to.u16(sample.port.unwrap_or(PortNo::ANY).to_u16().ok_or_else(wrong)?);
        to.u8(SampleSide::ALL.iter().find(|(side, ..)| *side == sample.side).map_or(0, |(_, number, _)| *number));
    }
    end(to, start)
}

fn take_sample(body: &mut Reader<'_>, subtype: u16) -> Result<Action, DecodeError> {
    let (probability, collector_set_id) = (body.u16()?, body.u32()?);
    let (obs_domain_id, obs_point_id) = (body.u32()?, body.u32()?);
    let (mut port, mut side) = (None, SampleSide::Unsaid);
    if subtype != SAMPLE {
        port = Some(PortNo::from_u16(body.u16()?)).filter(|port| *port != PortNo::ANY);
    }
    if subtype == SAMPLE3 {
        let number = body.u8()?;
        let known = SampleSide::ALL.iter().find(|(_, known, _)| *known == number);
        side = known.ok_or(DecodeError::BadValue { what: "side of a sample", value: number.into() })?.0;
    }
    Ok(Action::Sample(Sample { probability, collector_set_id, obs_domain_id, obs_point_id, port, side }))
}

/// Reads the body of a vendor action; `None` when it is not known.
pub(super) fn take(body: &mut Reader<'_>, depth: usize) -> Result<Option<Action>, DecodeError> {
    if body.u32()? != NICIRA {
        return Ok(None);
    }
    let subtype = body.u16()?;
    Ok(Some(match subtype {
        RESUBMIT => Action::Resubmit { port: PortNo::from_u16(body.u16()?), table: None, original_tuple: false },
        RESUBMIT_TABLE | RESUBMIT_TABLE_CT => Action::Resubmit {
            port: PortNo::from_u16(body.u16()?),
            table: Some(body.u8()?).filter(|table| *table != TABLE_NONE),
            original_tuple: subtype == RESUBMIT_TABLE_CT,
        },
        OUTPUT_TRUNCATED => Action::OutputTruncated { port: PortNo::from_u16(body.u16()?), octets_max: body.u32()? },
        CONTROLLER => {
            let (octets_max, id, reason) = (body.u16()?, body.u16()?, PacketInReason(body.u8()?));
            Action::Controller(Controller { octets_max, id, reason, ..Controller::new() })
        }
        CONTROLLER2 => take_controller2(body)?,
        DEC_TTL_FOR => {
            let count = body.u16()?;
            body.skip(4)?;
            Action::DecTtlFor((0..count).map(|_| body.u16()).collect::<Result<_, _>>()?)
        }
        CT => return take_ct(body, depth),
        CT_CLEAR => Action::CtClear,
        NAT => take_nat(body)?,
        CONJUNCTION => {
            let (clause, clauses, id) = (body.u8()?, body.u8()?, body.u32()?);
            Action::Conjunction { id, clause: clause.saturating_add(1), clauses }
        }
        NOTE => Action::Note(Note::new(body.rest())),
        CLONE => {
            body.skip(6)?;
            Action::Clone(take_list(*body, depth + 1)?)
        }
        LEARN | LEARN2 => return learn::take(body, subtype),
        MULTIPATH => return take_multipath(body),
        SPREAD | SPREAD_LOAD => return take_spread(body, subtype == SPREAD_LOAD),
        SAMPLE | SAMPLE2 | SAMPLE3 => take_sample(body, subtype)?,
        FIN_TIMEOUT => Action::FinTimeout { idle: body.u16()?, hard: body.u16()? },
        POP_QUEUE => Action::PopQueue,
        EXIT => Action::Exit,
        SET_TUNNEL => {
            body.skip(2)?;
            Action::set(Field::TunId, body.u32()?)
        }
        SET_TUNNEL64 => {
            body.skip(6)?;
            Action::set(Field::TunId, body.u64()?)
        }
        _ => return take_with_field(body, subtype),
    }))
}

/// Reads actions that name one or two fields; `None` when the action or a field is not known.
fn take_with_field(body: &mut Reader<'_>, subtype: u16) -> Result<Option<Action>, DecodeError> {
    match subtype {
        OUTPUT_REG => {
            let packed = body.u16()?;
            let Some(field) = oxm::field(body)? else { return Ok(None) };
            Ok(Some(Action::OutputField(take_offset_bits(packed, field)?)))
        }
        REG_MOVE => {
            let (bits, source_start, target_start) = (body.u16()?, body.u16()?, body.u16()?);
            let (Some(source), Some(target)) = (oxm::field(body)?, oxm::field(body)?) else { return Ok(None) };
            let (source, target) = (subfield(source, source_start, bits)?, subfield(target, target_start, bits)?);
            Ok(Some(Action::Move { source, target }))
        }
        REG_LOAD => {
            let packed = body.u16()?;
            let Some(field) = oxm::field(body)? else { return Ok(None) };
            Ok(Some(Action::set_bits(take_offset_bits(packed, field)?, body.u64()?)))
        }
        REG_LOAD2 => {
            body.skip(6)?;
            Ok(match oxm::take(body)? {
                oxm::Oxm::Known(field, masked) => {
                    Some(Action::SetField(SetField::new(field, masked.value, masked.mask)))
                }
                oxm::Oxm::Unknown(_) => None,
            })
        }
        STACK_PUSH | STACK_POP => {
            let start = body.u16()?;
            let Some(field) = oxm::field(body)? else { return Ok(None) };
            let bits = subfield(field, start, body.u16()?)?;
            Ok(Some(if subtype == STACK_PUSH { Action::Push(bits) } else { Action::Pop(bits) }))
        }
        CHECK_PACKET_LARGER => {
            let (octets, start) = (body.u16()?, body.u16()?);
            let Some(field) = oxm::field(body)? else { return Ok(None) };
            Ok(Some(Action::CheckPacketLarger { octets, target: subfield(field, start, 1)? }))
        }
        _ => Ok(None),
    }
}
