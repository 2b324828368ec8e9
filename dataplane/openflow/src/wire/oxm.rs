//! OXM TLVs and the match made of them.
//!
//! Owns headers of fields and the wire form of [`Match`]. Never checks prerequisites: that is the match's own business.
//! Invariant: fields of unknown class or number survive as they are.
//! Source: OpenFlow 1.5.1 §7.2.3.

use super::{
    buffer::{Reader, Writer, padding},
    error::{DecodeError, EncodeError},
};
use crate::flow::{Field, Masked, Match};

/// The class whose TLVs name a vendor.
const EXPERIMENTER: u16 = 0xffff;
/// The type of a match made of OXM TLVs.
const MATCH_OXM: u16 = 1;

/// Writes the header of a field that carries `length` octets.
fn put_header(to: &mut Writer, field: Field, has_mask: bool, length: u8) {
    let point = field.code_point();
    to.u16(point.class);
    to.u8(point.number << 1 | u8::from(has_mask));
    to.u8(length);
}

/// Writes a header alone, as actions do to name a field.
pub(super) fn put_field(to: &mut Writer, field: Field) {
    put_header(to, field, false, field.info().octets);
}

/// Reads a header alone; `Ok(None)` when the field is not known.
pub(super) fn field(from: &mut Reader<'_>) -> Result<Option<Field>, DecodeError> {
    let class = from.u16()?;
    let number = from.u8()? >> 1;
    from.skip(1)?;
    if class == EXPERIMENTER {
        from.skip(4)?;
        return Ok(None);
    }
    Ok(Field::by_code_point(class, number))
}

/// Writes one TLV. A mask that covers the field is left out.
pub(super) fn put(to: &mut Writer, field: Field, value: u128, mask: u128) {
    let octets = field.info().octets;
    // Bits of `ct_state` without a meaning stay out of the match.
    let has_mask = mask != field.full_mask() || field == Field::CtState;
    put_header(to, field, has_mask, if has_mask { octets * 2 } else { octets });
    to.uint(value, octets.into());
    if has_mask {
        to.uint(mask, octets.into());
    }
}

/// One TLV as read.
#[derive(Debug)]
pub(super) enum Oxm<'a> {
    /// A field that we know.
    Known(Field, Masked),
    /// The whole TLV of another.
    Unknown(&'a [u8]),
}

/// Reads one TLV.
pub(super) fn take<'a>(from: &mut Reader<'a>) -> Result<Oxm<'a>, DecodeError> {
    let whole = from.rest();
    let class = from.u16()?;
    let number = from.u8()?;
    let length = usize::from(from.u8()?);
    let mut body = from.sub(length, "OXM field")?;
    let known = if class == EXPERIMENTER { None } else { Field::by_code_point(class, number >> 1) };
    let Some(field) = known else { return Ok(Oxm::Unknown(&whole[..4 + length])) };
    let octets = usize::from(field.info().octets);
    let has_mask = number & 1 == 1;
    if length != if has_mask { octets * 2 } else { octets } {
        return Err(DecodeError::BadLength { what: "OXM field", length });
    }
    let full = field.full_mask();
    let value = body.uint(octets)? & full;
    let mask = if has_mask { body.uint(octets)? & full } else { full };
    Ok(Oxm::Known(field, Masked { value: value & mask, mask }))
}

/// Reads TLVs up to the end.
pub(super) fn take_all(mut from: Reader<'_>) -> Result<Match, DecodeError> {
    // A field takes five octets at least with its header, and few flows match more than eight.
    let mut matching = Match::with_room((from.left() / 5).min(8));
    while !from.is_empty() {
        match take(&mut from)? {
            Oxm::Known(field, Masked { value, mask }) => matching = matching.with_masked(field, value, mask),
            Oxm::Unknown(tlv) => matching.add_unknown(tlv.to_vec()),
        }
    }
    Ok(matching)
}

/// Writes the TLVs of a match without a header.
pub(super) fn put_all(to: &mut Writer, matching: &Match) {
    for (field, Masked { value, mask }) in matching.iter() {
        put(to, field, value, mask);
    }
    for tlv in matching.unknown() {
        to.bytes(tlv);
    }
}

/// Writes a match with its header and padding.
pub(super) fn put_match(to: &mut Writer, matching: &Match) -> Result<(), EncodeError> {
    let start = to.len();
    to.u16(MATCH_OXM);
    to.u16(0);
    put_all(to, matching);
    to.patch_length(start + 2, start, "match")?;
    to.align(start);
    Ok(())
}

/// Reads a match with its header and padding.
pub(super) fn take_match(from: &mut Reader<'_>) -> Result<Match, DecodeError> {
    let kind = from.u16()?;
    let length = from.u16()?;
    if kind != MATCH_OXM {
        return Err(DecodeError::BadValue { what: "match type", value: kind.into() });
    }
    let matching = take_all(from.body(length, 4, "match")?)?;
    from.skip_padding(padding(length.into()));
    Ok(matching)
}
