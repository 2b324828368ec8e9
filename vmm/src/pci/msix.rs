//! MSI-X: the table of messages a function sends as interrupts (PCI 3.0 §6.8.2).
//!
//! Each vector has an eventfd joined to KVM for good. Raising it is one write to that eventfd; while the vector is masked the pending bit is set
//! instead and the interrupt is sent on unmasking. Routes are loaded when a vector is unmasked with a new message, not at each store.

use crate::kvm::{KvmError, Message, Vm};
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// Bytes of one table entry.
pub const ENTRY_BYTES: u64 = 16;
/// The capability's id.
pub const CAPABILITY_ID: u8 = 0x11;
/// Message control bit: messages are sent.
const ENABLE: u16 = 1 << 15;
/// Message control bit: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;
const VECTOR_MASK: u32 = 1;

#[derive(Debug)]
struct Vector {
    entry: [u8; 16],
    pending: bool,
    event: EventFd,
    gsi: u32,
}

impl Vector {
    fn dword(&self, index: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.entry[index * 4..index * 4 + 4]);
        u32::from_le_bytes(bytes)
    }

    fn message(&self) -> Message {
        Message { address: u64::from(self.dword(0)) | u64::from(self.dword(1)) << 32, data: self.dword(2) }
    }

    fn is_masked(&self) -> bool {
        self.dword(3) & VECTOR_MASK != 0
    }
}

/// The vectors of one function.
#[derive(Debug)]
pub struct Msix {
    vm: Arc<Vm>,
    vectors: Vec<Vector>,
    control: u16,
}

impl Msix {
    /// `count` masked vectors.
    ///
    /// # Errors
    /// [`KvmError`] when an eventfd cannot be joined.
    pub fn new(vm: &Arc<Vm>, count: u16) -> Result<Self, KvmError> {
        let vectors = (0..count)
            .map(|_| {
                let (event, gsi) = vm.message_line()?;
                let mut entry = [0; 16];
                entry[12] = 1;
                Ok(Vector { entry, pending: false, event, gsi })
            })
            .collect::<Result<_, KvmError>>()?;
        Ok(Self { vm: Arc::clone(vm), vectors, control: 0 })
    }

    /// The capability's body, with the table and the pending bits in BAR 0 at these offsets.
    #[must_use]
    pub fn capability(&self, table: u32, pending: u32) -> [u8; 10] {
        let last = u16::try_from(self.vectors.len()).unwrap_or(0).saturating_sub(1);
        let mut body = [0; 10];
        body[..2].copy_from_slice(&last.to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        body
    }

    /// What the guest may change of the capability's message control word.
    #[must_use]
    pub const fn control_mask() -> u16 {
        ENABLE | FUNCTION_MASK
    }

    /// The guest wrote the message control word.
    pub fn set_control(&mut self, control: u16) {
        self.control = control & Self::control_mask();
        (0..self.vectors.len()).for_each(|index| self.settle(index));
    }

    /// True when the guest chose messages for interrupts.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// Sends vector `index`, now or when it is unmasked. A vector that does not exist is ignored (virtio's "no vector" is 0xffff).
    pub fn raise(&mut self, index: u16) {
        let Some(vector) = self.vectors.get_mut(usize::from(index)) else { return };
        vector.pending = true;
        self.settle(usize::from(index));
    }

    /// True when there is such a vector.
    #[must_use]
    pub fn has_vector(&self, index: u16) -> bool {
        usize::from(index) < self.vectors.len()
    }

    /// The guest reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some((vector, at)) = self.locate(offset, data.len()) {
            data.copy_from_slice(&self.vectors[vector].entry[at..at + data.len()]);
        }
    }

    /// The guest writes the table.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if let Some((vector, at)) = self.locate(offset, data.len()) {
            self.vectors[vector].entry[at..at + data.len()].copy_from_slice(data);
            self.settle(vector);
        }
    }

    /// The guest reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (index, _) in self.vectors.iter().enumerate().filter(|(_, vector)| vector.pending) {
            let at = (index as u64 / 8).checked_sub(offset).and_then(|at| usize::try_from(at).ok());
            if let Some(byte) = at.and_then(|at| data.get_mut(at)) {
                *byte |= 1 << (index % 8);
            }
        }
    }

    /// Forgets messages and pending bits, as after a reset of the function.
    pub fn reset(&mut self) {
        self.control = 0;
        for vector in &mut self.vectors {
            vector.entry = [0; 16];
            vector.entry[12] = 1;
            vector.pending = false;
        }
    }

    /// The vector and the offset in its entry, for an access that lies inside one entry.
    fn locate(&self, offset: u64, length: usize) -> Option<(usize, usize)> {
        let vector = usize::try_from(offset / ENTRY_BYTES).ok().filter(|&index| index < self.vectors.len())?;
        let at = usize::try_from(offset % ENTRY_BYTES).ok()?;
        (at + length <= 16).then_some((vector, at))
    }

    /// Loads the route of an unmasked vector and sends what is pending.
    fn settle(&mut self, index: usize) {
        if self.control & (ENABLE | FUNCTION_MASK) != ENABLE {
            return;
        }
        let vector = &mut self.vectors[index];
        if vector.is_masked() {
            return;
        }
        if let Err(error) = self.vm.route(vector.gsi, vector.message()) {
            tracing::warn!(%error, gsi = vector.gsi, "an interrupt route was refused");
            return;
        }
        // A counter at its maximum means that the interrupt is on its way already.
        if std::mem::take(&mut vector.pending) && vector.event.write(1).is_err() {
            tracing::debug!(gsi = vector.gsi, "an interrupt eventfd was full");
        }
    }
}
