//! Standard actions and instructions of OpenFlow 1.5.
//!
//! Owns their wire form and hands vendor actions to [`super::nicira`]. Never checks whether a switch would take them.
//! Invariant: an action that is not known is kept octet by octet, so a foreign flow never breaks a dump.
//! Source: OpenFlow 1.5.1 §7.2.5 and §7.2.6.

use super::{
    buffer::{Reader, Writer, padding},
    error::{DecodeError, EncodeError},
    nicira,
    oxm::{self, Oxm},
};
use crate::flow::{Action, Controller, Field, NESTING_MAX, PortNo, SetField, Subfield};

const OUTPUT: u16 = 0;
const PUSH_VLAN: u16 = 17;
const POP_VLAN: u16 = 18;
const PUSH_MPLS: u16 = 19;
const POP_MPLS: u16 = 20;
const DEC_MPLS_TTL: u16 = 16;
const SET_NW_TTL: u16 = 23;
const SET_QUEUE: u16 = 21;
const GROUP: u16 = 22;
const DEC_TTL: u16 = 24;
const SET_FIELD: u16 = 25;
const COPY_FIELD: u16 = 28;
const METER: u16 = 29;
const EXPERIMENTER: u16 = 0xffff;

const GOTO_TABLE: u16 = 1;
const WRITE_METADATA: u16 = 2;
const WRITE_ACTIONS: u16 = 3;
const APPLY_ACTIONS: u16 = 4;
const CLEAR_ACTIONS: u16 = 5;

/// Starts an action; gives the offset for [`end`].
pub(super) fn begin(to: &mut Writer, kind: u16) -> usize {
    let start = to.len();
    to.u16(kind);
    to.u16(0);
    start
}

/// Pads an action and writes its length.
pub(super) fn end(to: &mut Writer, start: usize) -> Result<(), EncodeError> {
    to.align(start);
    to.patch_length(start + 2, start, "action")
}

/// Writes a list of actions.
pub(super) fn put_list(to: &mut Writer, actions: &[Action]) -> Result<(), EncodeError> {
    actions.iter().try_for_each(|action| put(to, action))
}

pub(super) fn no_wire_form(action: &Action) -> EncodeError {
    EncodeError::Action { action: action.to_string() }
}

fn put(to: &mut Writer, action: &Action) -> Result<(), EncodeError> {
    match action {
        Action::Output(port) => put_output(to, *port, 0),
        Action::Controller(controller) if controller.is_plain() => {
            put_output(to, PortNo::CONTROLLER, controller.octets_max)
        }
        Action::Group(id) => put_u32(to, GROUP, *id),
        Action::SetQueue(queue) => put_u32(to, SET_QUEUE, *queue),
        Action::Meter(id) => put_u32(to, METER, *id),
        Action::SetField(set) => {
            let start = begin(to, SET_FIELD);
            oxm::put(to, set.field(), set.value(), set.mask());
            end(to, start)
        }
        Action::Move { source, target } => {
            let start = begin(to, COPY_FIELD);
            to.u16(source.bits().into());
            to.u16(source.start().into());
            to.u16(target.start().into());
            to.zeros(2);
            oxm::put_field(to, source.field());
            oxm::put_field(to, target.field());
            end(to, start)
        }
        Action::PushVlan(ethertype) => put_ethertype(to, PUSH_VLAN, *ethertype),
        Action::PushMpls(ethertype) => put_ethertype(to, PUSH_MPLS, *ethertype),
        Action::PopMpls(ethertype) => put_ethertype(to, POP_MPLS, *ethertype),
        Action::PopVlan => put_u32(to, POP_VLAN, 0),
        Action::DecTtl => put_u32(to, DEC_TTL, 0),
        Action::DecMplsTtl => put_u32(to, DEC_MPLS_TTL, 0),
        Action::Unknown(octets) => {
            to.bytes(octets);
            Ok(())
        }
        Action::ClearActions | Action::WriteActions(_) | Action::WriteMetadata { .. } | Action::GotoTable(_) => {
            Err(no_wire_form(action))
        }
        vendor => nicira::put(to, vendor),
    }
}

fn put_u32(to: &mut Writer, kind: u16, value: u32) -> Result<(), EncodeError> {
    let start = begin(to, kind);
    to.u32(value);
    end(to, start)
}

fn put_ethertype(to: &mut Writer, kind: u16, ethertype: u16) -> Result<(), EncodeError> {
    let start = begin(to, kind);
    to.u16(ethertype);
    end(to, start)
}

fn put_output(to: &mut Writer, port: PortNo, octets_max: u16) -> Result<(), EncodeError> {
    let start = begin(to, OUTPUT);
    to.u32(port.0);
    to.u16(octets_max);
    to.zeros(6);
    end(to, start)
}

/// Reads actions up to the end.
pub(super) fn take_list(mut from: Reader<'_>, depth: usize) -> Result<Vec<Action>, DecodeError> {
    if depth > NESTING_MAX {
        return Err(DecodeError::TooDeep { limit: NESTING_MAX });
    }
    let mut actions = Vec::new();
    while !from.is_empty() {
        actions.push(take(&mut from, depth)?);
    }
    Ok(actions)
}

fn take(from: &mut Reader<'_>, depth: usize) -> Result<Action, DecodeError> {
    let whole = from.rest();
    let kind = from.u16()?;
    let length = from.u16()?;
    if !length.is_multiple_of(8) {
        return Err(DecodeError::BadLength { what: "action", length: length.into() });
    }
    let mut body = from.body(length, 4, "action")?;
    let known = match kind {
        OUTPUT => {
            let (port, octets_max) = (PortNo(body.u32()?), body.u16()?);
            Some(match port {
                PortNo::CONTROLLER => Action::Controller(Controller { octets_max, ..Controller::new() }),
                port => Action::Output(port),
            })
        }
        GROUP => Some(Action::Group(body.u32()?)),
        SET_QUEUE => Some(Action::SetQueue(body.u32()?)),
        METER => Some(Action::Meter(body.u32()?)),
        PUSH_VLAN => Some(Action::PushVlan(body.u16()?)),
        POP_VLAN => Some(Action::PopVlan),
        PUSH_MPLS => Some(Action::PushMpls(body.u16()?)),
        POP_MPLS => Some(Action::PopMpls(body.u16()?)),
        DEC_MPLS_TTL => Some(Action::DecMplsTtl),
        SET_NW_TTL => Some(Action::set(Field::IpTtl, body.u8()?)),
        DEC_TTL => Some(Action::DecTtl),
        SET_FIELD => match oxm::take(&mut body)? {
            Oxm::Known(field, masked) => Some(Action::SetField(SetField::new(field, masked.value, masked.mask))),
            Oxm::Unknown(_) => None,
        },
        COPY_FIELD => take_copy(&mut body)?,
        EXPERIMENTER => nicira::take(&mut body, depth)?,
        _ => None,
    };
    Ok(known.unwrap_or_else(|| Action::Unknown(whole[..length.into()].to_vec())))
}

fn take_copy(body: &mut Reader<'_>) -> Result<Option<Action>, DecodeError> {
    let (bits, source_start, target_start) = (body.u16()?, body.u16()?, body.u16()?);
    body.skip(2)?;
    let (source, target) = (oxm::field(body)?, oxm::field(body)?);
    let (Some(source), Some(target)) = (source, target) else { return Ok(None) };
    Ok(Some(Action::Move {
        source: subfield(source, source_start, bits)?,
        target: subfield(target, target_start, bits)?,
    }))
}

/// A run of bits as read.
pub(super) fn subfield(field: Field, start: u16, bits: u16) -> Result<Subfield, DecodeError> {
    let narrow = |value: u16| u8::try_from(value).ok();
    narrow(start)
        .zip(narrow(bits))
        .and_then(|(start, bits)| Subfield::new(field, start, bits).ok())
        .ok_or(DecodeError::BadValue { what: "subfield", value: u64::from(start) << 16 | u64::from(bits) })
}

/// Writes the actions of a flow as instructions.
pub(super) fn put_instructions(to: &mut Writer, actions: &[Action]) -> Result<(), EncodeError> {
    let is_instruction = |action: &Action| {
        matches!(
            action,
            Action::ClearActions | Action::WriteActions(_) | Action::WriteMetadata { .. } | Action::GotoTable(_)
        )
    };
    let split = actions.iter().position(is_instruction).unwrap_or(actions.len());
    let (applied, instructions) = actions.split_at(split);
    if !applied.is_empty() {
        let start = begin(to, APPLY_ACTIONS);
        to.zeros(4);
        put_list(to, applied)?;
        end(to, start)?;
    }
    for action in instructions {
        match action {
            Action::ClearActions => {
                let start = begin(to, CLEAR_ACTIONS);
                to.zeros(4);
                end(to, start)?;
            }
            Action::WriteActions(set) => {
                let start = begin(to, WRITE_ACTIONS);
                to.zeros(4);
                put_list(to, set)?;
                end(to, start)?;
            }
            Action::WriteMetadata { value, mask } => {
                let start = begin(to, WRITE_METADATA);
                to.zeros(4);
                to.u64(*value);
                to.u64(*mask);
                end(to, start)?;
            }
            Action::GotoTable(table) => {
                let start = begin(to, GOTO_TABLE);
                to.u8(*table);
                end(to, start)?;
            }
            // The check of the flow has refused actions after instructions.
            other => return Err(no_wire_form(other)),
        }
    }
    Ok(())
}

/// Reads instructions up to the end, into the order in which a switch runs them.
pub(super) fn take_instructions(mut from: Reader<'_>) -> Result<Vec<Action>, DecodeError> {
    let (mut applied, mut rest) = (Vec::new(), Vec::new());
    while !from.is_empty() {
        let kind = from.u16()?;
        let length = from.u16()?;
        let mut body = from.body(length, 4, "instruction")?;
        match kind {
            GOTO_TABLE => rest.push((5, Action::GotoTable(body.u8()?))),
            WRITE_METADATA => {
                body.skip(4)?;
                let (value, mask) = (body.u64()?, body.u64()?);
                rest.push((4, Action::WriteMetadata { value: value & mask, mask }));
            }
            WRITE_ACTIONS => {
                body.skip(4)?;
                rest.push((3, Action::WriteActions(take_list(body, 1)?)));
            }
            APPLY_ACTIONS => {
                body.skip(4)?;
                applied.append(&mut take_list(body, 0)?);
            }
            CLEAR_ACTIONS => rest.push((2, Action::ClearActions)),
            other => return Err(DecodeError::BadValue { what: "instruction type", value: other.into() }),
        }
        from.skip_padding(padding(length.into()));
    }
    rest.sort_by_key(|(rank, _)| *rank);
    applied.extend(rest.into_iter().map(|(_, action)| action));
    Ok(applied)
}
