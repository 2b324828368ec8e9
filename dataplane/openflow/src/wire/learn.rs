//! The `learn` action on the wire.
//!
//! Owns both of its forms: the plain one, and the one with a limit and a result bit.
//! Source: ovs-actions(7) "The learn action", and what `ovs-ofctl` sends.

use super::{
    action::{end, no_wire_form, subfield},
    buffer::{Reader, Writer},
    error::{DecodeError, EncodeError},
    nicira::{LEARN, LEARN2, begin_vendor},
    oxm,
};
use crate::flow::{Action, Learn, LearnSource, LearnSpec, Subfield};

const SEND_FLOW_REMOVED: u16 = 1;
const DELETE_LEARNED: u16 = 2;
const WRITE_RESULT: u16 = 4;

const TARGET_MATCH: u16 = 0;
const TARGET_LOAD: u16 = 1 << 11;
const TARGET_OUTPUT: u16 = 2 << 11;
const TARGET_MASK: u16 = 3 << 11;
const SOURCE_VALUE: u16 = 1 << 13;
const BITS_MASK: u16 = 0x7ff;

pub(super) fn put(to: &mut Writer, learn: &Learn) -> Result<(), EncodeError> {
    let is_long = learn.limit != 0 || learn.result.is_some();
    let start = begin_vendor(to, if is_long { LEARN2 } else { LEARN });
    to.u16(learn.idle_timeout);
    to.u16(learn.hard_timeout);
    to.u16(learn.priority);
    to.u64(learn.cookie);
    to.u16(
        if learn.send_flow_removed { SEND_FLOW_REMOVED } else { 0 }
            | if learn.delete_learned { DELETE_LEARNED } else { 0 }
            | if learn.result.is_some() { WRITE_RESULT } else { 0 },
    );
    to.u8(learn.table);
    to.zeros(1);
    to.u16(learn.fin_idle_timeout);
    to.u16(learn.fin_hard_timeout);
    if is_long {
        to.u32(learn.limit);
        to.u16(learn.result.map_or(0, |bit| bit.start().into()));
        to.zeros(2);
        if let Some(bit) = learn.result {
            if bit.bits() != 1 {
                return Err(no_wire_form(&Action::Learn(Box::new(learn.clone()))));
            }
            oxm::put_field(to, bit.field());
        }
    }
    learn.specs.iter().for_each(|spec| put_spec(to, *spec));
    end(to, start)
}

fn put_bits(to: &mut Writer, bits: Subfield) {
    oxm::put_field(to, bits.field());
    to.u16(bits.start().into());
}

/// Octets that a constant of so many bits takes: whole 16-bit words.
fn value_octets(bits: u16) -> usize {
    usize::from(bits).div_ceil(16) * 2
}

fn put_spec(to: &mut Writer, spec: LearnSpec) {
    let (kind, source, target) = match spec {
        LearnSpec::Match { source, target } => (TARGET_MATCH, source, Some(target)),
        LearnSpec::Load { source, target } => (TARGET_LOAD, source, Some(target)),
        LearnSpec::Output { source } => (TARGET_OUTPUT, LearnSource::Field(source), None),
    };
    match source {
        LearnSource::Field(bits) => {
            to.u16(kind | u16::from(bits.bits()));
            put_bits(to, bits);
        }
        LearnSource::Value(value) => {
            let bits = target.map_or(0, |target| target.bits().into());
            to.u16(kind | SOURCE_VALUE | bits);
            to.uint(value, value_octets(bits));
        }
    }
    if let Some(target) = target {
        put_bits(to, target);
    }
}

pub(super) fn take(body: &mut Reader<'_>, subtype: u16) -> Result<Option<Action>, DecodeError> {
    let mut learn = Learn {
        idle_timeout: body.u16()?,
        hard_timeout: body.u16()?,
        priority: body.u16()?,
        cookie: body.u64()?,
        ..Learn::default()
    };
    let flags = body.u16()?;
    learn.send_flow_removed = flags & SEND_FLOW_REMOVED != 0;
    learn.delete_learned = flags & DELETE_LEARNED != 0;
    learn.table = body.u8()?;
    body.skip(1)?;
    learn.fin_idle_timeout = body.u16()?;
    learn.fin_hard_timeout = body.u16()?;
    if subtype == LEARN2 {
        learn.limit = body.u32()?;
        let start = body.u16()?;
        body.skip(2)?;
        if flags & WRITE_RESULT != 0 {
            let Some(field) = oxm::field(body)? else { return Ok(None) };
            learn.result = Some(subfield(field, start, 1)?);
        }
    }
    while body.left() >= 2 {
        let header = body.u16()?;
        if header == 0 {
            break;
        }
        let Some(spec) = take_spec(body, header)? else { return Ok(None) };
        learn.specs.push(spec);
    }
    Ok(Some(Action::Learn(Box::new(learn))))
}

/// Reads one specification; `None` when it names a field that is not known.
fn take_spec(body: &mut Reader<'_>, header: u16) -> Result<Option<LearnSpec>, DecodeError> {
    let bits = header & BITS_MASK;
    let wrong = || DecodeError::BadValue { what: "learn specification", value: header.into() };
    let take_bits = |body: &mut Reader<'_>| -> Result<Option<Subfield>, DecodeError> {
        let field = oxm::field(body)?;
        let start = body.u16()?;
        field.map(|field| subfield(field, start, bits)).transpose()
    };
    let source = if header & SOURCE_VALUE == 0 {
        match take_bits(body)? {
            Some(bits) => LearnSource::Field(bits),
            None => return Ok(None),
        }
    } else {
        if bits == 0 || bits > 128 {
            return Err(wrong());
        }
        LearnSource::Value(body.uint(value_octets(bits))?)
    };
    match (header & TARGET_MASK, source) {
        (TARGET_MATCH, source) => Ok(take_bits(body)?.map(|target| LearnSpec::Match { source, target })),
        (TARGET_LOAD, source) => Ok(take_bits(body)?.map(|target| LearnSpec::Load { source, target })),
        (TARGET_OUTPUT, LearnSource::Field(source)) => Ok(Some(LearnSpec::Output { source })),
        _ => Err(wrong()),
    }
}
