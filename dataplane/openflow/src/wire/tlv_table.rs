//! The map from tunnel options (Geneve TLVs) to the fields `tun_metadata0` to `tun_metadata63`.
//!
//! Owns [`TlvMap`], [`TlvTableMod`] and [`TlvTable`]. Never reads an option.
//! Source: ovs-fields(7) "Geneve Fields", and what `ovs-ofctl` 3.1 sends for `add-tlv-map`.

use super::{
    buffer::{Reader, Writer},
    error::DecodeError,
};

/// One option and the field that it becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TlvMap {
    /// Class of the option.
    pub class: u16,
    /// Type of the option.
    pub kind: u8,
    /// Octets of its value: a multiple of 4, at most 124.
    pub octets: u8,
    /// Number of the field, 0 to 63.
    pub field: u16,
}

impl TlvMap {
    fn encode(self, to: &mut Writer) {
        to.u16(self.class);
        to.u8(self.kind);
        to.u8(self.octets);
        to.u16(self.field);
        to.zeros(2);
    }

    fn decode_all(mut from: Reader<'_>) -> Result<Vec<Self>, DecodeError> {
        let mut maps = Vec::new();
        while !from.is_empty() {
            let (class, kind, octets, field) = (from.u16()?, from.u8()?, from.u8()?, from.u16()?);
            from.skip(2)?;
            maps.push(Self { class, kind, octets, field });
        }
        Ok(maps)
    }
}

/// Changes the map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlvTableMod {
    /// Adds entries.
    Add(Vec<TlvMap>),
    /// Deletes entries.
    Delete(Vec<TlvMap>),
    /// Deletes all.
    Clear,
}

impl TlvTableMod {
    pub(super) fn encode(&self, to: &mut Writer) {
        let (command, maps) = match self {
            Self::Add(maps) => (0, maps.as_slice()),
            Self::Delete(maps) => (1, maps.as_slice()),
            Self::Clear => (2, [].as_slice()),
        };
        to.u16(command);
        to.zeros(6);
        maps.iter().for_each(|map| map.encode(to));
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let command = from.u16()?;
        from.skip(6)?;
        let maps = TlvMap::decode_all(from)?;
        match command {
            0 => Ok(Self::Add(maps)),
            1 => Ok(Self::Delete(maps)),
            2 => Ok(Self::Clear),
            other => Err(DecodeError::BadValue { what: "TLV table command", value: other.into() }),
        }
    }
}

/// The map as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TlvTable {
    /// Octets that all options together may take.
    pub octets_max: u32,
    /// Number of fields.
    pub fields_max: u16,
    /// The entries.
    pub maps: Vec<TlvMap>,
}

impl TlvTable {
    pub(super) fn encode(&self, to: &mut Writer) {
        to.u32(self.octets_max);
        to.u16(self.fields_max);
        to.zeros(10);
        self.maps.iter().for_each(|map| map.encode(to));
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let (octets_max, fields_max) = (from.u32()?, from.u16()?);
        from.skip(10)?;
        Ok(Self { octets_max, fields_max, maps: TlvMap::decode_all(from)? })
    }
}
