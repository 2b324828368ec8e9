//! Bundles: changes that a switch makes all at once or not at all.
//!
//! Owns [`BundleControl`] and [`BundleAdd`]. Never orders the changes.
//! Source: OpenFlow 1.5.1 §7.3.9.

use super::{
    Message,
    buffer::{Reader, Writer},
    error::{DecodeError, EncodeError},
};

bitflags::bitflags! {
    /// How a bundle is applied.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct BundleFlags: u16 {
        /// All or nothing, and no packet sees half of it.
        const ATOMIC = 1 << 0;
        /// In the order sent.
        const ORDERED = 1 << 1;
    }
}

/// A step in the life of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BundleStep {
    /// Open it.
    Open,
    /// It is open.
    Opened,
    /// Close it to further messages.
    Close,
    /// It is closed.
    Closed,
    /// Apply it.
    Commit,
    /// It is applied.
    Committed,
    /// Forget it.
    Discard,
    /// It is forgotten.
    Discarded,
}

const STEPS: [BundleStep; 8] = [
    BundleStep::Open,
    BundleStep::Opened,
    BundleStep::Close,
    BundleStep::Closed,
    BundleStep::Commit,
    BundleStep::Committed,
    BundleStep::Discard,
    BundleStep::Discarded,
];

/// Opens, closes, applies or forgets a bundle, and the switch's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleControl {
    /// The bundle's number, chosen by the controller.
    pub id: u32,
    /// The step.
    pub step: BundleStep,
    /// How it is applied.
    pub flags: BundleFlags,
}

impl BundleControl {
    pub(super) fn encode(self, to: &mut Writer) {
        to.u32(self.id);
        let number = STEPS.iter().position(|step| *step == self.step);
        to.u16(number.and_then(|at| u16::try_from(at).ok()).unwrap_or(0));
        to.u16(self.flags.bits());
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let (id, number) = (from.u32()?, from.u16()?);
        let step = STEPS.get(usize::from(number)).copied();
        let step = step.ok_or(DecodeError::BadValue { what: "bundle step", value: number.into() })?;
        Ok(Self { id, step, flags: BundleFlags::from_bits_truncate(from.u16()?) })
    }
}

/// Adds a message to an open bundle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleAdd {
    /// The bundle's number.
    pub id: u32,
    /// How the bundle is applied: the same as when it was opened.
    pub flags: BundleFlags,
    /// A flow, group, meter or port change, or a packet-out.
    pub message: Box<Message>,
}

impl BundleAdd {
    /// The message inside bears the transaction id of the message around it: the switch demands that.
    pub(super) fn encode(&self, to: &mut Writer, xid: u32) -> Result<(), EncodeError> {
        to.u32(self.id);
        to.zeros(2);
        to.u16(self.flags.bits());
        super::put_message(to, &self.message, xid)
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let id = from.u32()?;
        from.skip(2)?;
        let flags = BundleFlags::from_bits_truncate(from.u16()?);
        let inner = from.rest();
        use super::kind::{FLOW_MOD, GROUP_MOD, METER_MOD, PACKET_OUT, PORT_MOD};
        if !matches!(inner.get(1), Some(&(FLOW_MOD | GROUP_MOD | METER_MOD | PORT_MOD | PACKET_OUT))) {
            let value = inner.get(1).copied().unwrap_or(0).into();
            return Err(DecodeError::BadValue { what: "type of a message inside a bundle", value });
        }
        let (_, message) = super::decode(inner)?;
        Ok(Self { id, flags, message: Box::new(message) })
    }
}
