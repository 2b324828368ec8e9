//! Values of fields and runs of bits inside them.
//!
//! Owns [`FieldValue`] and [`Subfield`]. Never knows what a field means.
//! Invariant: a subfield lies inside its field.
//! Source: ovs-actions(7) "Field Specifications".

use std::fmt;

use thiserror::Error;

use super::field::{Field, ones};

/// A value for a field, right-aligned: built from numbers, addresses and MAC octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FieldValue(pub u128);

macro_rules! value_from {
    ($($kind:ty),*) => {$(
        impl From<$kind> for FieldValue {
            fn from(value: $kind) -> Self {
                Self(u128::from(value))
            }
        }
    )*};
}
value_from!(bool, u8, u16, u32, u64, u128);

impl From<i32> for FieldValue {
    /// For literals: a negative number becomes a value too wide for any field, which `check` refuses.
    fn from(value: i32) -> Self {
        Self(u128::try_from(value).unwrap_or(u128::MAX))
    }
}

impl From<std::net::Ipv4Addr> for FieldValue {
    fn from(value: std::net::Ipv4Addr) -> Self {
        Self(u128::from(value.to_bits()))
    }
}

impl From<std::net::Ipv6Addr> for FieldValue {
    fn from(value: std::net::Ipv6Addr) -> Self {
        Self(value.to_bits())
    }
}

impl From<[u8; 6]> for FieldValue {
    fn from(value: [u8; 6]) -> Self {
        Self(value.iter().fold(0, |sum, octet| sum << 8 | u128::from(*octet)))
    }
}

impl From<super::PortNo> for FieldValue {
    fn from(value: super::PortNo) -> Self {
        Self(u128::from(value.0))
    }
}

/// A run of bits inside a field, as in `NXM_NX_REG0[0..15]`.
///
/// ```
/// use openflow::flow::{Field, Subfield};
/// let low: Subfield = "reg0[0..15]".parse()?;
/// assert_eq!(low, Subfield::new(Field::Reg0, 0, 16)?);
/// assert_eq!(low.to_string(), "NXM_NX_REG0[0..15]");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subfield {
    field: Field,
    start: u8,
    bits: u8,
}

/// A run of bits that a field does not have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field} has {width} bits: bits {start} to {start} + {bits} are not inside it")]
pub struct SubfieldError {
    /// The field asked for.
    pub field: Field,
    /// Its width.
    pub width: u8,
    /// First bit asked for.
    pub start: u8,
    /// Number of bits asked for.
    pub bits: u8,
}

impl Subfield {
    /// Bits `start` to `start + bits - 1` of `field`.
    ///
    /// # Errors
    /// When the field has no such bits, or `bits` is zero.
    pub fn new(field: Field, start: u8, bits: u8) -> Result<Self, SubfieldError> {
        let width = field.subfield_bits();
        if bits == 0 || u16::from(start) + u16::from(bits) > u16::from(width) {
            return Err(SubfieldError { field, width, start, bits });
        }
        Ok(Self { field, start, bits })
    }

    /// All bits of `field`.
    #[must_use]
    pub fn whole(field: Field) -> Self {
        Self { field, start: 0, bits: field.subfield_bits() }
    }

    /// The field.
    #[must_use]
    pub fn field(self) -> Field {
        self.field
    }

    /// The least significant bit of the run.
    #[must_use]
    pub fn start(self) -> u8 {
        self.start
    }

    /// Number of bits.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// The mask of these bits inside the field.
    #[must_use]
    pub fn mask(self) -> u128 {
        ones(self.bits) << self.start
    }

    /// Whether it covers the whole field.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.bits == self.field.subfield_bits()
    }
}

impl From<Field> for Subfield {
    fn from(field: Field) -> Self {
        Self::whole(field)
    }
}

impl fmt::Display for Subfield {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.field.info().code_points[0].name;
        match (self.is_whole(), self.bits) {
            (true, _) => write!(f, "{name}[]"),
            (false, 1) => write!(f, "{name}[{}]", self.start),
            (false, bits) => write!(f, "{name}[{}..{}]", self.start, self.start + bits - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Field, Subfield};

    /// Shows that bits outside a field are refused.
    #[test]
    fn subfields_stay_inside() {
        assert!(Subfield::new(Field::Reg0, 16, 17).is_err());
        assert!(Subfield::new(Field::Reg0, 0, 0).is_err());
        assert_eq!(Subfield::new(Field::Reg0, 4, 4).map(Subfield::mask), Ok(0xf0));
    }
}
