//! The modern PCI transport (virtio 1.2 §4.1): one function with its registers, queues, interrupts and notifications, around one [`Device`].
//!
//! BAR 0 holds all structures, each on a page of its own:
//!
//! ```text
//!  0x0000 common  0x1000 isr  0x2000 device  0x3000 notify (4 bytes a queue)  0x4000 MSI-X table  0x5000 MSI-X pending bits
//! ```
//!
//! A store to the notify page wakes an eventfd inside KVM and never leaves the kernel; the eventfds follow the BAR when the guest moves it.
//! There is no interrupt line: a driver without MSI-X must poll, which the specification allows a device to demand by having no interrupt pin.
//! Invariant: a device is called only between the driver's `DRIVER_OK` and the next reset.

use crate::kvm::{KvmError, Vm, new_eventfd};
use crate::memory::Ram;
use crate::pci::bus::Function;
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::msix::{self, Msix};
use crate::virtio::{Context, Counters, Device, NO_VECTOR, feature};
use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

/// The size of BAR 0, bytes.
pub const BAR_BYTES: u32 = 0x8000;
/// Where the notify page starts in BAR 0.
pub const NOTIFY: u64 = 0x3000;
/// Bytes between the notify addresses of two queues.
pub const NOTIFY_STEP: u64 = 4;

const PAGE: u64 = 0x1000;
const COMMON_BYTES: u32 = 0x38;
const TABLE: u32 = 0x4000;
const PENDING: u32 = 0x5000;

const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
const CAPABILITY_VENDOR: u8 = 0x09;

/// Device status bits (virtio 1.2 §2.1).
pub mod status {
    /// The driver accepted its features.
    pub const FEATURES_OK: u8 = 8;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The device cannot go on without a reset.
    pub const NEEDS_RESET: u8 = 0x40;
}

/// Registers of the common structure that are plain memory.
#[derive(Debug, Default)]
struct Common {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    status: u8,
    config_generation: u8,
    queue_select: u16,
    config_vector: u16,
}

/// One virtio function.
pub struct VirtioPci {
    id: String,
    space: ConfigSpace,
    msix_at: u16,
    msix: Msix,
    common: Common,
    queues: Vec<Queue>,
    vectors: Vec<u16>,
    notify: Vec<EventFd>,
    listening_at: Option<u64>,
    config: Vec<u8>,
    device: Box<dyn Device>,
    ram: Arc<Ram>,
    vm: Arc<Vm>,
    broken: Option<String>,
    interrupt_status: u8,
}

impl fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPci").field("id", &self.id).field("common", &self.common).finish_non_exhaustive()
    }
}

impl VirtioPci {
    /// A function around `device`, with its BAR at `bar`.
    ///
    /// # Errors
    /// [`KvmError`] when interrupts or notifications cannot be set up.
    pub fn new(id: &str, device: Box<dyn Device>, bar: u32, ram: &Arc<Ram>, vm: &Arc<Vm>) -> Result<Self, KvmError> {
        let queues: Vec<Queue> = device.queue_sizes().into_iter().map(new_queue).collect();
        let count = u16::try_from(queues.len()).unwrap_or(0);
        let msix = Msix::new(vm, count + 1)?;
        let config = device.config();
        let (space, msix_at) = configuration(device.as_ref(), bar, &msix, config.len());
        Ok(Self {
            id: id.to_owned(),
            space,
            msix_at,
            msix,
            common: Common { config_vector: NO_VECTOR, ..Common::default() },
            vectors: vec![NO_VECTOR; queues.len()],
            notify: queues.iter().map(|_| new_eventfd()).collect::<Result<_, _>>()?,
            queues,
            listening_at: None,
            config,
            device,
            ram: Arc::clone(ram),
            vm: Arc::clone(vm),
            broken: None,
            interrupt_status: 0,
        })
    }

    /// The configured id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the device did so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.device.counters()
    }

    /// The eventfds that notifications of each queue arrive at, and the device's own descriptors.
    #[must_use]
    pub fn descriptors(&self) -> (Vec<RawFd>, Vec<RawFd>) {
        use std::os::fd::AsRawFd;
        (self.notify.iter().map(AsRawFd::as_raw_fd).collect(), self.device.descriptors())
    }

    /// The driver notified queue `queue`. Called on the device thread.
    pub fn notified(&mut self, queue: usize) {
        if let Some(event) = self.notify.get(queue) {
            // Nothing to read only means that another look has served it.
            event.read().ok();
        }
        if self.is_live() && self.queues.get(queue).is_some_and(QueueT::ready) {
            self.with_device(|device, context| device.serve(queue, context));
        }
    }

    /// One of the device's own descriptors has input. Called on the device thread.
    pub fn ready(&mut self, descriptor: usize) {
        if self.is_live() {
            self.with_device(|device, context| device.ready(descriptor, context));
        }
    }

    /// Takes the machine away from the device: nothing of guest memory is touched after this.
    pub fn shut_down(&mut self) {
        self.listen(None);
        self.reset();
    }

    fn is_live(&self) -> bool {
        self.common.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    fn offered(&self) -> u64 {
        self.device.features() | feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC
    }

    /// Calls the device with its context, then looks whether a ring was found broken.
    fn with_device(&mut self, call: impl FnOnce(&mut dyn Device, &mut Context<'_>)) {
        let mut again = 0;
        let mut context = Context {
            ram: &self.ram,
            queues: &mut self.queues,
            vectors: &self.vectors,
            msix: &mut self.msix,
            broken: &mut self.broken,
            again: &mut again,
        };
        call(self.device.as_mut(), &mut context);
        for (_, event) in self.notify.iter().enumerate().filter(|(queue, _)| again & 1 << queue != 0) {
            // A full counter means that the call is on its way already.
            event.write(1).ok();
        }
        if let Some(reason) = self.broken.take() {
            self.ask_for_reset(&reason);
        }
    }

    fn ask_for_reset(&mut self, reason: &str) {
        tracing::warn!(device = %self.id, reason, "the guest's driver broke its ring; the device asks for a reset");
        self.common.status |= status::NEEDS_RESET;
        self.common.config_generation = self.common.config_generation.wrapping_add(1);
        self.interrupt_status |= 2;
        self.msix.raise(self.common.config_vector);
    }

    fn set_status(&mut self, new: u8) {
        if new == 0 {
            return self.reset();
        }
        let (old, mut new) = (self.common.status, new | self.common.status & status::NEEDS_RESET);
        let accepted = self.common.driver_features;
        if new & status::FEATURES_OK != 0 && (accepted & !self.offered() != 0 || accepted & feature::VERSION_1 == 0) {
            // §3.1.1 step 6: the driver reads the bit back and gives up.
            new &= !status::FEATURES_OK;
        }
        let goes_live = !old & new & status::DRIVER_OK != 0 && new & status::FEATURES_OK != 0;
        self.common.status = if goes_live { new } else { new & !(status::DRIVER_OK & !old) };
        if goes_live {
            self.go_live();
        }
    }

    fn go_live(&mut self) {
        let accepted = self.common.driver_features;
        for queue in self.queues.iter_mut().filter(|queue| queue.ready()) {
            queue.set_event_idx(accepted & feature::EVENT_IDX != 0);
        }
        let bad = self.queues.iter().position(|queue| queue.ready() && !queue.is_valid(self.ram.as_ref()));
        if let Some(queue) = bad {
            return self.ask_for_reset(&format!("queue {queue} does not lie in guest memory"));
        }
        self.with_device(|device, context| device.activate(accepted, context));
    }

    fn reset(&mut self) {
        if self.common.status != 0 {
            self.device.reset();
        }
        self.queues.iter_mut().for_each(QueueT::reset);
        self.vectors.fill(NO_VECTOR);
        self.common = Common { config_vector: NO_VECTOR, ..Common::default() };
        self.broken = None;
        self.interrupt_status = 0;
    }

    fn selected(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(self.common.queue_select))
    }

    fn read_common(&mut self, offset: u64, data: &mut [u8]) {
        let select = usize::from(self.common.queue_select);
        let (device_half, driver_half) = (self.common.device_feature_select, self.common.driver_feature_select);
        let queue = self.queues.get(select);
        let value: u64 = match offset {
            0x00 => u64::from(device_half),
            0x04 => half(self.offered(), device_half),
            0x08 => u64::from(driver_half),
            0x0c => half(self.common.driver_features, driver_half),
            0x10 => u64::from(self.common.config_vector),
            0x12 => self.queues.len() as u64,
            0x14 => u64::from(self.common.status),
            0x15 => u64::from(self.common.config_generation),
            0x16 => u64::from(self.common.queue_select),
            0x18 => queue.map_or(0, |queue| u64::from(queue.size())),
            0x1a => self.vectors.get(select).copied().unwrap_or(NO_VECTOR).into(),
            0x1c => queue.is_some_and(QueueT::ready).into(),
            0x1e => u64::from(self.common.queue_select),
            0x20 => queue.map_or(0, QueueT::desc_table),
            0x24 => queue.map_or(0, QueueT::desc_table) >> 32,
            0x28 => queue.map_or(0, QueueT::avail_ring),
            0x2c => queue.map_or(0, QueueT::avail_ring) >> 32,
            0x30 => queue.map_or(0, QueueT::used_ring),
            0x34 => queue.map_or(0, QueueT::used_ring) >> 32,
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        let count = data.len().min(bytes.len());
        data[..count].copy_from_slice(&bytes[..count]);
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        let count = data.len().min(8);
        bytes[..count].copy_from_slice(&data[..count]);
        let [a, b, c, d, e, f, g, h] = bytes;
        let (byte, word, low, high) =
            (a, u16::from_le_bytes([a, b]), u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let high = (count == 8).then_some(high);
        let frozen = self.common.status & status::FEATURES_OK != 0;
        match offset {
            0x00 => self.common.device_feature_select = low,
            0x08 => self.common.driver_feature_select = low,
            0x0c if !frozen => self.accept(low),
            0x10 => self.common.config_vector = self.checked_vector(word),
            0x14 => self.set_status(byte),
            0x16 => self.common.queue_select = word,
            0x1a => {
                let vector = self.checked_vector(word);
                if let Some(slot) = self.vectors.get_mut(usize::from(self.common.queue_select)) {
                    *slot = vector;
                }
            }
            0x18 | 0x1c | 0x20..=0x34 => self.write_queue(offset, word, low, high),
            _ => {}
        }
    }

    /// The registers of the selected queue. An enabled queue's are frozen (§4.1.4.3.2).
    fn write_queue(&mut self, offset: u64, word: u16, low: u32, high: Option<u32>) {
        let Some(queue) = self.selected().filter(|queue| !queue.ready()) else { return };
        match offset {
            0x18 => queue.set_size(word),
            0x1c if word == 1 => queue.set_ready(true),
            0x20 => queue.set_desc_table_address(Some(low), high),
            0x24 => queue.set_desc_table_address(None, Some(low)),
            0x28 => queue.set_avail_ring_address(Some(low), high),
            0x2c => queue.set_avail_ring_address(None, Some(low)),
            0x30 => queue.set_used_ring_address(Some(low), high),
            0x34 => queue.set_used_ring_address(None, Some(low)),
            _ => {}
        }
    }

    fn accept(&mut self, value: u32) {
        let shift = match self.common.driver_feature_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let kept = self.common.driver_features & !(u64::from(u32::MAX) << shift);
        self.common.driver_features = kept | u64::from(value) << shift;
    }

    /// A vector that does not exist reads back as none (§4.1.5.1.2.1).
    fn checked_vector(&self, vector: u16) -> u16 {
        if self.msix.has_vector(vector) { vector } else { NO_VECTOR }
    }

    /// Moves the notification eventfds to where the BAR answers now.
    fn listen(&mut self, bar: Option<u64>) {
        if bar == self.listening_at {
            return;
        }
        for (address, event) in addresses(self.listening_at.take()).zip(&self.notify) {
            if let Err(error) = self.vm.forget(event, address) {
                tracing::warn!(device = %self.id, %error, "a notification address could not be given up");
            }
        }
        for (address, event) in addresses(bar).zip(&self.notify) {
            // Without it notifications still arrive, by way of a vCPU exit.
            if let Err(error) = self.vm.listen(event, address) {
                tracing::warn!(device = %self.id, %error, "a notification address could not be listened to");
            }
        }
        self.listening_at = bar;
    }
}

/// The notify addresses of a BAR at `bar`, in queue order; none without one.
fn addresses(bar: Option<u64>) -> impl Iterator<Item = u64> {
    bar.into_iter().flat_map(|bar| (0..).map(move |index: u64| bar + NOTIFY + index * NOTIFY_STEP))
}

/// 32 of 64 feature bits; a selector above 1 selects nothing.
const fn half(features: u64, select: u32) -> u64 {
    match select {
        0 => features & 0xffff_ffff,
        1 => features >> 32,
        _ => 0,
    }
}

fn new_queue(size: u16) -> Queue {
    Queue::new(size).unwrap_or_else(|error| unreachable!("queue sizes are our own powers of two: {size}: {error}"))
}

/// Configuration space with the five structures and MSI-X; and where the MSI-X capability is.
fn configuration(device: &dyn Device, bar: u32, msix: &Msix, config_bytes: usize) -> (ConfigSpace, u16) {
    let kind = device.kind();
    let mut space = ConfigSpace::new(Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + kind as u16,
        revision: 1,
        class: kind.class(),
        subsystem_vendor: VENDOR,
        subsystem: DEVICE_BASE + kind as u16,
    });
    space.set_bar0(bar, BAR_BYTES);
    let page = u32::try_from(PAGE).unwrap_or(0);
    let config_bytes = u32::try_from(config_bytes).unwrap_or(0);
    // Structure types: 1 common, 3 isr, 4 device, 2 notify (§4.1.4).
    let structures = [(1, 0, COMMON_BYTES), (3, page, 1), (4, 2 * page, config_bytes), (2, 3 * page, page)];
    for (kind, offset, bytes) in structures.into_iter().filter(|&(_, _, bytes)| bytes > 0) {
        let mut body = vec![if kind == 2 { 20 } else { 16 }, kind, 0, 0, 0, 0];
        body.extend(u32::to_le_bytes(offset));
        body.extend(bytes.to_le_bytes());
        if kind == 2 {
            body.extend(u32::try_from(NOTIFY_STEP).unwrap_or(0).to_le_bytes());
        }
        space.add_capability(CAPABILITY_VENDOR, &body);
    }
    let at = space.add_capability(msix::CAPABILITY_ID, &msix.capability(TABLE, PENDING));
    space.allow(at + 2, &Msix::control_mask().to_le_bytes());
    (space, u16::from(at))
}

impl Function for VirtioPci {
    fn read_config(&self, at: u16, data: &mut [u8]) {
        self.space.read(at, data);
    }

    fn write_config(&mut self, at: u16, data: &[u8]) {
        self.space.write(at, data);
        self.listen(self.space.bar0());
        let control = self.msix_at + 2;
        if at < control + 2 && control < at.saturating_add(8) {
            let control = self.space.word(u8::try_from(control).unwrap_or(0));
            self.msix.set_control(control);
        }
    }

    fn bar(&self) -> Option<(u64, u64)> {
        self.space.bar0().map(|start| (start, u64::from(BAR_BYTES)))
    }

    fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let at = offset % PAGE;
        match offset / PAGE {
            0 => self.read_common(at, data),
            1 if at == 0 => {
                if let Some(byte) = data.first_mut() {
                    *byte = std::mem::take(&mut self.interrupt_status);
                }
            }
            2 => {
                for (byte, index) in data.iter_mut().zip(at..) {
                    let value = usize::try_from(index).ok().and_then(|index| self.config.get(index));
                    *byte = value.copied().unwrap_or(0);
                }
            }
            4 => self.msix.read_table(at, data),
            5 => self.msix.read_pending(at, data),
            _ => {}
        }
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) {
        let at = offset % PAGE;
        match offset / PAGE {
            0 => self.write_common(at, data),
            // A notification that KVM did not catch.
            3 => {
                let queue = usize::try_from(at / NOTIFY_STEP).unwrap_or(usize::MAX);
                if let Some(event) = self.notify.get(queue)
                    && let Err(error) = event.write(1)
                {
                    tracing::debug!(device = %self.id, %error, "a notification eventfd was full");
                }
            }
            4 => self.msix.write_table(at, data),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
