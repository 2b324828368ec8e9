//! What a port may send and receive in a second, and how its packets are marked.
//!
//! Owns [`Qos`]. Directions are the machine's, as everywhere: egress is what it sends.
//! Invariant: a limit lets something by, and has a burst: a machine that sends nothing for a while may then send that much at once.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// The largest mark: DSCP has six bits (RFC 2474 §3).
pub const DSCP_MAX: u8 = 63;
/// The part of a rate in percent that may come at once unless said otherwise (as in Neutron).
const BURST_PERCENT: u64 = 80;
/// Kilobits of a whole frame of an MTU of 1,500 octets: a bucket that holds less never lets one by.
const KILOBITS_MIN: u32 = 13;
/// The least that may come at once unless said otherwise, in kilobits: a frame of an MTU of 9,000 octets.
const KILOBITS_USUAL_MIN: u32 = 80;

/// Limits and mark of a port; none of them unless said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qos {
    /// Of what its machine sends.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub egress: Limits,
    /// Of what its machine is sent.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub ingress: Limits,
    /// Thousands of bits in a second that what its machine sends gets of the physical network that its own is a part of, also while others send, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_min_kbps: Option<NonZeroU32>,
    /// The mark that what its machine sends over IP gets, whatever it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dscp_mark: Option<DscpMark>,
}

/// The limits in one direction: what passes is within each of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "LimitsWire", into = "LimitsWire")]
pub struct Limits {
    /// In thousands of bits, whole Ethernet frames.
    pub kbps: Option<Limit>,
    /// In packets.
    pub pps: Option<Limit>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsWire {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kbps: Option<Kilobits>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pps: Option<Limit>,
}

/// A limit that is checked as one in kilobits.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "LimitWire", into = "LimitWire")]
struct Kilobits(Limit);

/// So much in a second, and so much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "LimitWire", into = "LimitWire")]
pub struct Limit {
    rate: NonZeroU32,
    burst: NonZeroU32,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitWire {
    rate: u32,
    #[serde(default)]
    burst: Option<u32>,
}

/// A differentiated services code point: 0 to [`DSCP_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct DscpMark(u8);

/// A number that is no limit or mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QosError {
    /// A limit that lets nothing by.
    #[error("take a limit of {rate} in a second and {burst} at once: want 1 and more of both")]
    Limit {
        /// In a second.
        rate: u32,
        /// At once.
        burst: u32,
    },
    /// A burst that no whole frame fits into.
    #[error("take a burst of {0} kilobits: want {KILOBITS_MIN} and more, the size of one frame")]
    Burst(u32),
    /// A mark that six bits do not hold.
    #[error("take {0} as a DSCP mark: want 0 to {DSCP_MAX}")]
    Mark(u8),
}

impl Limits {
    /// Whether there are none.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.kbps.is_none() && self.pps.is_none()
    }
}

impl From<LimitsWire> for Limits {
    fn from(LimitsWire { kbps, pps }: LimitsWire) -> Self {
        Self { kbps: kbps.map(|Kilobits(limit)| limit), pps }
    }
}

impl From<Limits> for LimitsWire {
    fn from(Limits { kbps, pps }: Limits) -> Self {
        Self { kbps: kbps.map(Kilobits), pps }
    }
}

impl Limit {
    /// A limit; the burst is four fifths of the rate unless said.
    ///
    /// # Errors
    /// [`QosError::Limit`] when one of them is 0.
    pub fn new(rate: u32, burst: Option<u32>) -> Result<Self, QosError> {
        let usual = u32::try_from(u64::from(rate) * BURST_PERCENT / 100).unwrap_or(u32::MAX);
        let burst = burst.unwrap_or(usual.max(1));
        let numbers = NonZeroU32::new(rate).zip(NonZeroU32::new(burst));
        numbers.map(|(rate, burst)| Self { rate, burst }).ok_or(QosError::Limit { rate, burst })
    }

    /// A limit in kilobits; the burst is four fifths of the rate and at least a large frame unless said.
    ///
    /// # Errors
    /// [`QosError::Limit`] when one of them is 0, [`QosError::Burst`] when no frame fits into the burst.
    pub fn of_kilobits(rate: u32, burst: Option<u32>) -> Result<Self, QosError> {
        let limit = Self::new(rate, burst)?;
        match burst {
            Some(burst) if burst < KILOBITS_MIN => Err(QosError::Burst(burst)),
            Some(_) => Ok(limit),
            None => Self::new(rate, Some(limit.burst().max(KILOBITS_USUAL_MIN))),
        }
    }

    /// How much in a second.
    #[must_use]
    pub const fn rate(self) -> u32 {
        self.rate.get()
    }

    /// How much at once.
    #[must_use]
    pub const fn burst(self) -> u32 {
        self.burst.get()
    }
}

impl TryFrom<LimitWire> for Limit {
    type Error = QosError;

    fn try_from(wire: LimitWire) -> Result<Self, QosError> {
        Self::new(wire.rate, wire.burst)
    }
}

impl TryFrom<LimitWire> for Kilobits {
    type Error = QosError;

    fn try_from(wire: LimitWire) -> Result<Self, QosError> {
        Limit::of_kilobits(wire.rate, wire.burst).map(Self)
    }
}

impl From<Kilobits> for LimitWire {
    fn from(Kilobits(limit): Kilobits) -> Self {
        limit.into()
    }
}

impl From<Limit> for LimitWire {
    fn from(limit: Limit) -> Self {
        Self { rate: limit.rate(), burst: Some(limit.burst()) }
    }
}

impl DscpMark {
    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for DscpMark {
    type Error = QosError;

    fn try_from(mark: u8) -> Result<Self, QosError> {
        if mark <= DSCP_MAX { Ok(Self(mark)) } else { Err(QosError::Mark(mark)) }
    }
}

impl From<DscpMark> for u8 {
    fn from(mark: DscpMark) -> Self {
        mark.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_let_something_by_and_marks_have_six_bits() {
        let qos: Qos = serde_json::from_str(r#"{"egress":{"kbps":{"rate":1000}},"dscp_mark":46}"#).unwrap();
        let limit = qos.egress.kbps.unwrap();
        assert_eq!((limit.rate(), limit.burst(), qos.ingress), (1000, 800, Limits::default()));
        assert_eq!(
            serde_json::to_string(&qos).unwrap(),
            r#"{"egress":{"kbps":{"rate":1000,"burst":800}},"dscp_mark":46}"#
        );
        assert_eq!(Limit::new(1, None).unwrap().burst(), 1);
        for (rate, burst) in [(0, None), (0, Some(5)), (5, Some(0))] {
            assert!(Limit::new(rate, burst).is_err());
        }
        let error = serde_json::from_str::<Qos>(r#"{"dscp_mark":64}"#).unwrap_err().to_string();
        assert!(error.starts_with("take 64 as a DSCP mark: want 0 to 63"), "{error}");
        assert!(serde_json::from_str::<Qos>(r#"{"egress":{"kbps":{"rate":0}}}"#).is_err());
        let slow: Qos =
            serde_json::from_str(r#"{"egress":{"kbps":{"rate":10}},"ingress":{"pps":{"rate":10}}}"#).unwrap();
        let (kbps, pps) = (Limit::new(10, Some(80)).ok(), Limit::new(10, Some(8)).ok());
        assert_eq!((slow.egress, slow.ingress), (Limits { kbps, pps: None }, Limits { kbps: None, pps }));
        assert_eq!(serde_json::from_value::<Qos>(serde_json::to_value(slow).unwrap()).unwrap(), slow);
        let small = r#"{"egress":{"kbps":{"rate":1000,"burst":12}}}"#;
        let error = serde_json::from_str::<Qos>(small).unwrap_err().to_string();
        assert!(error.starts_with("take a burst of 12 kilobits: want 13 and more"), "{error}");
        assert!(serde_json::from_str::<Qos>(r#"{"egres":{}}"#).is_err());
        assert!(serde_json::from_str::<Qos>(r#"{"egress_min_kbps":0}"#).is_err());
        let least = r#"{"egress_min_kbps":500}"#;
        assert_eq!(serde_json::to_string(&serde_json::from_str::<Qos>(least).unwrap()).unwrap(), least);
        let both = r#"{"ingress":{"kbps":{"rate":100,"burst":80},"pps":{"rate":10,"burst":8}}}"#;
        let qos: Qos = serde_json::from_str(both).unwrap();
        assert!(qos.ingress.kbps.is_some() && qos.ingress.pps.is_some(), "{qos:?}");
        assert_eq!(serde_json::to_string(&qos).unwrap(), both);
    }
}
