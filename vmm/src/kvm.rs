//! The kernel's half of the machine: one KVM virtual machine with its memory slots, interrupt controllers and event descriptors.
//!
//! [`Vm`] is shared by everything that raises interrupts or listens to notifications. It owns the interrupt routing table, because the kernel only
//! takes it whole. Message-signalled interrupts get numbers above the I/O APIC's lines, never reused within one VM.

use crate::layout;
use crate::memory::Ram;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

/// KVM refused something.
#[derive(Debug, thiserror::Error)]
#[error("KVM: {attempt}")]
pub struct KvmError {
    /// What was attempted.
    pub attempt: String,
    /// What the kernel said.
    #[source]
    pub source: kvm_ioctls::Error,
}

/// Names the attempt behind a failed KVM call.
pub fn attempt(what: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError { attempt: what.into(), source }
}

/// A message-signalled interrupt: what the device writes where (PCI 3.0 §6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Message {
    /// The address.
    pub address: u64,
    /// The data.
    pub data: u32,
}

/// One KVM virtual machine.
pub struct Vm {
    fd: VmFd,
    messages: Mutex<BTreeMap<u32, Message>>,
    next_gsi: AtomicU32,
    // Dropped after `fd`: the kernel's memory slots never outlive the mapping.
    ram: Arc<Ram>,
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm")
            .field("messages", &self.messages)
            .field("ram", &self.ram.num_regions())
            .finish_non_exhaustive()
    }
}

impl Vm {
    /// Makes a virtual machine over `ram`, and keeps it mapped.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn new(kvm: &Kvm, ram: Arc<Ram>) -> Result<Self, KvmError> {
        let fd = kvm.create_vm().map_err(attempt("create a virtual machine"))?;
        let tss = usize::try_from(layout::KVM_TSS).unwrap_or(usize::MAX);
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(attempt("place the identity map"))?;
        fd.set_tss_address(tss).map_err(attempt("place the task state segment"))?;
        fd.create_irq_chip().map_err(attempt("create the interrupt controllers"))?;
        for (slot, region) in (0..).zip(ram.iter()) {
            let start = region.start_addr().raw_value();
            let host = region.get_host_address(vm_memory::MemoryRegionAddress(0)).map_or(0, |at| at.addr() as u64);
            let memory = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: start,
                memory_size: region.len(),
                userspace_addr: host,
            };
            // SAFETY: the range is a live mapping of exactly this length, and the machine made here keeps it until after its descriptor is closed.
            unsafe { fd.set_user_memory_region(memory) }
                .map_err(attempt(format!("map {} bytes of guest memory at {start:#x}", region.len())))?;
        }
        let vm = Self { fd, messages: Mutex::default(), next_gsi: AtomicU32::new(layout::IOAPIC_LINES), ram };
        vm.load_routes(&vm.messages())?;
        Ok(vm)
    }

    /// Adds a vCPU.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn create_vcpu(&self, index: u8) -> Result<VcpuFd, KvmError> {
        self.fd.create_vcpu(u64::from(index)).map_err(attempt(format!("create vCPU {index}")))
    }

    /// Joins a new eventfd to an interrupt line of the I/O APIC.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn line(&self, gsi: u32) -> Result<EventFd, KvmError> {
        let event = new_eventfd()?;
        self.fd.register_irqfd(&event, gsi).map_err(attempt(format!("join an eventfd to interrupt {gsi}")))?;
        Ok(event)
    }

    /// Reserves a number for a message-signalled interrupt and joins a new eventfd to it. It stays silent until [`Vm::route`] gives it a message.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn message_line(&self) -> Result<(EventFd, u32), KvmError> {
        let gsi = self.next_gsi.fetch_add(1, Ordering::Relaxed);
        Ok((self.line(gsi)?, gsi))
    }

    /// Sets what interrupt `gsi` sends.
    ///
    /// # Errors
    /// [`KvmError`]; the old routes stay.
    pub fn route(&self, gsi: u32, message: Message) -> Result<(), KvmError> {
        let mut messages = self.messages();
        let old = messages.insert(gsi, message);
        if old == Some(message) {
            return Ok(());
        }
        self.load_routes(&messages).inspect_err(|_| {
            match old {
                Some(old) => messages.insert(gsi, old),
                None => messages.remove(&gsi),
            };
        })
    }

    /// Lets a store to guest address `address`, of any width, wake `event` without leaving the kernel.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn listen(&self, event: &EventFd, address: u64) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(attempt(format!("listen to stores at {address:#x}")))
    }

    /// Undoes [`Vm::listen`].
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn forget(&self, event: &EventFd, address: u64) -> Result<(), KvmError> {
        self.fd
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(attempt(format!("forget stores at {address:#x}")))
    }

    fn messages(&self) -> MutexGuard<'_, BTreeMap<u32, Message>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load_routes(&self, messages: &BTreeMap<u32, Message>) -> Result<(), KvmError> {
        let lines = (0..layout::IOAPIC_LINES).map(line_route);
        let routes: Vec<_> = lines.chain(messages.iter().map(|(&gsi, &message)| message_route(gsi, message))).collect();
        let count = routes.len();
        let table = KvmIrqRouting::from_entries(&routes).map_err(|_| KvmError {
            attempt: format!("make a table of {count} interrupt routes"),
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })?;
        self.fd.set_gsi_routing(&table).map_err(attempt(format!("load {count} interrupt routes")))
    }
}

/// A non-blocking eventfd.
///
/// # Errors
/// [`KvmError`] when the process has no descriptor left.
pub fn new_eventfd() -> Result<EventFd, KvmError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|error| KvmError {
        attempt: "make an eventfd".to_owned(),
        source: kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(libc::EMFILE)),
    })
}

fn line_route(gsi: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    entry.u.irqchip.pin = gsi;
    entry
}

fn message_route(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let [low, high] = halves(message.address);
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = low;
    entry.u.msi.address_hi = high;
    entry.u.msi.data = message.data;
    entry
}

/// The low and the high 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "cutting a number in two is the purpose")]
const fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}
