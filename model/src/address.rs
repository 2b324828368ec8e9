//! Link-layer addresses and network numbers.
//!
//! IP addresses and prefixes are `std::net` and `ipnet` types, which are checked already.

use std::fmt;
use std::net::Ipv6Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why text or a number is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not six pairs of hexadecimal digits with colons.
    #[error("parse MAC address from {0:?}: want six pairs of hexadecimal digits, as fa:16:3e:00:00:01")]
    MacShape(String),
    /// A group address or all zeros can not belong to a port.
    #[error("take {0} as a port's MAC address: it is a group address or all zeros")]
    MacNotUnicast(Mac),
    /// Outside of 1 to 16777215 (RFC 7348 §5: 24 bits; 0 is kept free).
    #[error("take {0} as a VXLAN network identifier: want 1 to 16777215")]
    VniRange(u32),
}

/// An IEEE 802 MAC address, as six bytes in transmission order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// All ones: every station of a segment.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Wraps six bytes in transmission order.
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The six bytes in transmission order.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// Whether one station can own this address: the group bit is clear and it is not all zeros.
    #[must_use]
    pub const fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0
            && u64::from_be_bytes([0, 0, self.0[0], self.0[1], self.0[2], self.0[3], self.0[4], self.0[5]]) != 0
    }

    /// This address, if one station can own it.
    ///
    /// # Errors
    /// [`AddressError::MacNotUnicast`] for a group address or all zeros.
    pub const fn unicast(self) -> Result<Self, AddressError> {
        if self.is_unicast() { Ok(self) } else { Err(AddressError::MacNotUnicast(self)) }
    }

    /// The link-local IPv6 address that a station makes from this address (RFC 4862 §5.3).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        self.autoconfigured(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0))
    }

    /// The address that a station makes from this address in a prefix of 64 bits (RFC 4291 appendix A).
    #[must_use]
    pub fn autoconfigured(self, prefix: Ipv6Addr) -> Ipv6Addr {
        let [a, b, c, d, e, g] = self.0;
        let interface = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, g]);
        Ipv6Addr::from_bits(prefix.to_bits() >> 64 << 64 | u128::from(interface))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({self})")
    }
}

impl FromStr for Mac {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refuse = || AddressError::MacShape(text.chars().take(64).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.chars().all(|c| c.is_ascii_hexdigit()))
                .ok_or_else(refuse)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() { Err(refuse()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// A VXLAN network identifier: 24 bits, never 0 (RFC 7348 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The largest identifier.
    pub const MAX: u32 = 0x00ff_ffff;
    /// The identifiers that are kept for ports that get copies of others' frames: no network has one of them.
    pub const MIRRORS: RangeInclusive<u32> = 0x00f0_0000..=Self::MAX;

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = AddressError;

    fn try_from(number: u32) -> Result<Self, AddressError> {
        if (1..=Self::MAX).contains(&number) { Ok(Self(number)) } else { Err(AddressError::VniRange(number)) }
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    proptest! {
        #[test]
        fn a_mac_parses_from_its_own_text(bytes in any::<[u8; 6]>()) {
            let mac = Mac::new(bytes);
            assert_eq!(mac.to_string().parse::<Mac>(), Ok(mac));
        }

        #[test]
        fn no_text_makes_the_mac_parser_panic(text in any::<String>()) {
            let _ = text.parse::<Mac>();
        }
    }

    #[test]
    fn malformed_macs_are_refused() {
        for text in
            ["", "fa:16:3e:00:00", "fa:16:3e:00:00:01:02", "fa-16-3e-00-00-01", "fa:16:3e:00:00:+1", "fa:16:3e:00:00:1"]
        {
            assert!(matches!(text.parse::<Mac>(), Err(AddressError::MacShape(_))), "{text}");
        }
        assert!(Mac::BROADCAST.unicast().is_err());
        assert!(Mac::new([0; 6]).unicast().is_err());
        assert!(Mac::new([0xfa, 0x16, 0x3e, 0, 0, 1]).unicast().is_ok());
    }

    #[test]
    fn the_link_local_address_is_made_as_stations_do() {
        let mac = Mac::new([0x02, 0, 0, 0x12, 0x34, 0x56]);
        assert_eq!(mac.link_local().to_string(), "fe80::ff:fe12:3456");
        let prefix = "2001:db8:1:2::77".parse().unwrap();
        assert_eq!(mac.autoconfigured(prefix).to_string(), "2001:db8:1:2:0:ff:fe12:3456");
    }

    #[test]
    fn a_vni_has_24_bits_and_is_not_zero() {
        assert_eq!(Vni::try_from(0), Err(AddressError::VniRange(0)));
        assert_eq!(Vni::try_from(1 << 24), Err(AddressError::VniRange(1 << 24)));
        assert_eq!(Vni::try_from(Vni::MAX).map(Vni::get), Ok(Vni::MAX));
    }
}
