//! One running machine: KVM, memory, devices and threads, built from [`Resources`] and gone without trace when it ends.
//!
//! A reset takes the machine down and builds the next one: no state of a guest can survive in a device that was forgotten. The order of the way down
//! is fixed: threads end, devices let go of guest memory, then KVM and memory go.

use crate::acpi;
use crate::boot::{BootError, reset_vector};
use crate::bus::Bus;
use crate::config::ConsoleDevice;
use crate::control::Metrics;
use crate::cpu;
use crate::gate::{Disobeyed, Gate, Order};
use crate::jail::seccomp::ThreadKind;
use crate::kvm::{KvmError, Vm};
use crate::layout;
use crate::memory::{self, MapError, Ram};
use crate::overhead::Overhead;
use crate::pci::bus::{Ecam, PciBus, Slot, Window};
use crate::poll::{Interest, Poller};
use crate::power::{self, KeyboardController, Power, ResetControl};
use crate::report::{Report, Reporter};
use crate::resources::Resources;
use crate::serial::SerialPort;
use crate::thread::{self, Confinement, ThreadError};
use crate::vcpu::{self, Buses, Exits, Vcpu};
use crate::virtio::Device;
use crate::virtio::block::Block;
use crate::virtio::console::Console;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;
use crate::virtio::transport::{BAR_BYTES, VirtioPci};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::Killable;

/// How long threads may take to pause or end: longer than a device waits for its I/O in a reset.
const ORDER_TIMEOUT: Duration = Duration::from_secs(80);

/// The machine could not be built or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// Guest memory.
    #[error("memory")]
    Memory(#[from] MapError),
    /// KVM.
    #[error("virtual machine")]
    Kvm(#[from] KvmError),
    /// Kernel, initrd or boot data.
    #[error("boot")]
    Boot(#[from] BootError),
    /// ACPI tables.
    #[error("write the ACPI tables")]
    Acpi(#[source] vm_memory::GuestMemoryError),
    /// The code at the reset vector.
    #[error("write the reset vector")]
    ResetVector(#[source] vm_memory::GuestMemoryError),
    /// A descriptor of our own.
    #[error("{attempt}")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A thread.
    #[error("threads")]
    Thread(#[from] ThreadError),
    /// Threads did not do as told.
    #[error("threads")]
    Disobeyed(#[from] Disobeyed),
}

type SharedDevice = Arc<Mutex<VirtioPci>>;

/// A machine with its threads; dropping it takes it down.
#[derive(Debug)]
pub struct Machine {
    ram: Arc<Ram>,
    devices: Vec<SharedDevice>,
    power: Arc<Power>,
    exits: Arc<Exits>,
    gate: Arc<Gate>,
    vcpus: Vec<JoinHandle<()>>,
    device_thread: Option<JoinHandle<()>>,
    device_wake: EventFd,
    overhead: Arc<Overhead>,
    started: Instant,
}

/// What the device thread serves.
struct DeviceLoop {
    poller: Poller,
    devices: Vec<SharedDevice>,
    serial: Arc<SerialPort>,
    hub_input: Option<EventFd>,
    wake: EventFd,
    gate: Arc<Gate>,
    reporter: Reporter,
}

/// Tokens of the device thread: a device's number times this, plus a queue, or plus [`OWN`] and a descriptor.
const DEVICE_STEP: u64 = 1 << 16;
const OWN: u64 = 1 << 15;
const WAKE: u64 = u64::MAX;
const SERIAL: u64 = u64::MAX - 1;

impl Machine {
    /// Builds the machine, paused at its first instruction.
    ///
    /// # Errors
    /// [`MachineError`]; nothing stays behind.
    pub fn build(resources: &Resources, confinement: Confinement, reporter: &Reporter) -> Result<Self, MachineError> {
        let config = resources.config.get();
        let ram = memory::map(config.memory_mib)?;
        let vm = Arc::new(Vm::new(&resources.kvm, Arc::clone(&ram))?);
        let rsdp = acpi::write(&ram, config.vcpus).map_err(MachineError::Acpi)?;
        reset_vector::write(&ram).map_err(MachineError::ResetVector)?;
        let entry = resources.image.load(&ram, config.memory_mib, rsdp)?;
        let devices = build_devices(resources, &ram, &vm)?;
        let clone = || reporter.try_clone().map_err(io_error("copy an eventfd"));
        let power = Arc::new(Power::new(clone()?, vm.line(layout::EVENT_GSI)?));
        let serial = Arc::new(SerialPort::new(vm.line(layout::SERIAL_GSI)?, resources.hub_for(ConsoleDevice::Serial)));
        let buses = Arc::new(wire(&devices, &serial, &power, [clone()?, clone()?]));
        let gate = Arc::new(Gate::new(usize::from(config.vcpus) + 1));
        let exits = Arc::new(Exits::default());

        let features = cpu::host_features(&resources.kvm)?;
        let mut machine = Self {
            ram,
            devices,
            power,
            exits,
            gate,
            vcpus: Vec::new(),
            device_thread: None,
            device_wake: crate::kvm::new_eventfd()?,
            overhead: Arc::clone(&resources.overhead),
            started: Instant::now(),
        };
        machine.start_device_thread(resources, confinement, serial, clone()?)?;
        let vcpus = (0..config.vcpus)
            .map(|index| {
                let fd = vm.create_vcpu(index)?;
                cpu::set_up(&fd, &features, index, config.vcpus)?;
                if index == 0 {
                    entry.apply(&fd)?;
                }
                Ok(Vcpu {
                    index,
                    fd,
                    buses: Arc::clone(&buses),
                    exits: Arc::clone(&machine.exits),
                    gate: Arc::clone(&machine.gate),
                    reporter: clone()?,
                })
            })
            .collect::<Result<Vec<_>, MachineError>>()?;
        for vcpu in vcpus {
            let name = format!("vcpu-{}", vcpu.index);
            let thread = thread::spawn(confinement, ThreadKind::Vcpu, &name, move || vcpu.run())?;
            machine.vcpus.push(thread);
        }
        Ok(machine)
    }

    fn start_device_thread(
        &mut self,
        resources: &Resources,
        confinement: Confinement,
        serial: Arc<SerialPort>,
        reporter: Reporter,
    ) -> Result<(), MachineError> {
        let poller = Poller::new().map_err(io_error("make the device thread's poller"))?;
        let watch = io_error("watch a device");
        watch_devices(&poller, &self.devices).map_err(watch)?;
        poller.add(&self.device_wake, WAKE, Interest::Read).map_err(io_error("watch the device thread's eventfd"))?;
        let hub = resources.hub_for(ConsoleDevice::Serial);
        let hub_input = hub.map(|hub| hub.input_event().try_clone()).transpose();
        let hub_input = hub_input.map_err(io_error("copy an eventfd"))?;
        if let Some(event) = &hub_input {
            poller.add(event, SERIAL, Interest::Read).map_err(io_error("watch the console"))?;
        }
        let work = DeviceLoop {
            poller,
            devices: self.devices.clone(),
            serial,
            hub_input,
            wake: self.device_wake.try_clone().map_err(io_error("copy an eventfd"))?,
            gate: Arc::clone(&self.gate),
            reporter,
        };
        self.device_thread = Some(thread::spawn(confinement, ThreadKind::Devices, "devices", move || work.run())?);
        Ok(())
    }

    /// Lets the machine run.
    ///
    /// # Errors
    /// None today; running needs no answer of the threads.
    pub fn resume(&self) -> Result<(), MachineError> {
        Ok(self.gate.order(Order::Run, ORDER_TIMEOUT, || {})?)
    }

    /// Stops vCPUs and devices where they are; returns once they stand still.
    ///
    /// # Errors
    /// [`MachineError::Disobeyed`].
    pub fn pause(&self) -> Result<(), MachineError> {
        Ok(self.gate.order(Order::Pause, ORDER_TIMEOUT, || self.kick())?)
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.power.press_button();
    }

    /// The machine's counters.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let exits = &self.exits;
        let count = |name: &str, counter: &AtomicU64| (name.to_owned(), counter.load(Ordering::Relaxed));
        Metrics {
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            vcpus: [
                count("port_read_exits", &exits.port_reads),
                count("port_write_exits", &exits.port_writes),
                count("memory_read_exits", &exits.memory_reads),
                count("memory_write_exits", &exits.memory_writes),
                count("unanswered_exits", &exits.unanswered),
                count("other_exits", &exits.other),
            ]
            .into(),
            devices: self
                .devices
                .iter()
                .map(|device| {
                    let device = lock(device);
                    (device.id().to_owned(), device.counters())
                })
                .collect(),
            overhead_kib: self.overhead.pss_kib(&self.ram),
        }
    }

    fn kick(&self) {
        for vcpu in self.vcpus.iter().filter(|vcpu| !vcpu.is_finished()) {
            // A thread that ended in between needs no kick.
            vcpu.kill(vcpu::kick_signal()).ok();
        }
        self.device_wake.write(1).ok();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Threads that were never started will not answer, and need not.
        let started = self.vcpus.len() + usize::from(self.device_thread.is_some());
        let stopped = self.gate.order_started(Order::Stop, started, ORDER_TIMEOUT, || self.kick());
        if let Err(error) = stopped {
            tracing::error!(%error, "the machine's threads are left behind with its memory");
            std::mem::forget(Arc::clone(&self.ram));
            return;
        }
        for thread in self.vcpus.drain(..).chain(self.device_thread.take()) {
            if thread.join().is_err() {
                tracing::error!("a thread of the machine panicked");
            }
        }
        self.devices.iter().for_each(|device| lock(device).shut_down());
    }
}

impl DeviceLoop {
    /// Serves devices until the machine ends. The body of the device thread.
    fn run(self) {
        while self.gate.pass() {
            match self.poller.wait(-1) {
                Ok(tokens) => tokens.into_iter().for_each(|token| self.serve(token)),
                Err(error) => {
                    self.reporter.report(Report::Failed(format!("wait for devices: {error}")));
                    if !self.gate.rest() {
                        break;
                    }
                }
            }
        }
        self.gate.leave();
    }

    fn serve(&self, token: u64) {
        match token {
            WAKE => {
                self.wake.read().ok();
            }
            SERIAL => {
                self.hub_input.as_ref().map(EventFd::read);
                self.serial.feed();
            }
            token => {
                let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
                let (device, rest) = (number(token / DEVICE_STEP), token % DEVICE_STEP);
                let Some(device) = self.devices.get(device) else { return };
                match rest.checked_sub(OWN) {
                    None => lock(device).notified(number(rest)),
                    Some(own) => lock(device).ready(number(own)),
                }
            }
        }
    }
}

/// Watches each device's notifications, and its own descriptors edge-triggered: a device that is not ready yet must not keep the thread awake.
fn watch_devices(poller: &Poller, devices: &[SharedDevice]) -> io::Result<()> {
    for (number, device) in (0_u64..).zip(devices) {
        let base = number * DEVICE_STEP;
        let (notify, own) = lock(device).descriptors();
        for (queue, fd) in (0..).zip(notify) {
            poller.add_fd(fd, base + queue, Interest::Read)?;
        }
        for (index, fd) in (0..).zip(own) {
            poller.add_fd(fd, base + OWN + index, Interest::ReadEdge)?;
        }
    }
    Ok(())
}

/// Disks, nets, console, entropy: the order of their PCI slots.
fn build_devices(resources: &Resources, ram: &Arc<Ram>, vm: &Arc<Vm>) -> Result<Vec<SharedDevice>, MachineError> {
    let config = resources.config.get();
    let mut list: Vec<(&str, Box<dyn Device>)> = Vec::new();
    for disk in &config.disks {
        if let Some(volume) = resources.volumes.get(&disk.id) {
            let serial = disk.serial.as_deref().unwrap_or(&disk.id);
            list.push((&disk.id, Box::new(Block::new(volume, disk.queues, serial))));
        }
    }
    for net in &config.nets {
        if let Some(tap) = resources.taps.get(&net.id) {
            list.push((&net.id, Box::new(Net::new(Arc::clone(tap), net.mac, net.mtu))));
        }
    }
    if let Some(hub) = resources.hub_for(ConsoleDevice::Virtio) {
        list.push(("console", Box::new(Console::new(hub))));
    }
    if config.rng {
        list.push(("rng", Box::new(Rng::new(Arc::clone(&resources.entropy)))));
    }
    let bars = (u32::try_from(layout::PCI_WINDOW).unwrap_or(0)..).step_by(BAR_BYTES as usize);
    list.into_iter()
        .zip(bars)
        .map(|((id, device), bar)| Ok(Arc::new(Mutex::new(VirtioPci::new(id, device, bar, ram, vm)?))))
        .collect()
}

/// Puts every device on its bus.
fn wire(devices: &[SharedDevice], serial: &Arc<SerialPort>, power: &Arc<Power>, reporters: [Reporter; 2]) -> Buses {
    let slots = devices.iter().map(|device| Arc::clone(device) as Slot);
    let pci = Arc::new(PciBus::new(slots));
    let (mut ports, mut memory) = (Bus::default(), Bus::default());
    ports.insert(layout::SERIAL_PORT.into(), layout::SERIAL_PORTS.into(), Arc::clone(serial) as _);
    ports.insert(layout::SLEEP_CONTROL_PORT.into(), power::PORTS, Arc::clone(power) as _);
    let [keyboard, chip_set] = reporters;
    ports.insert(layout::I8042_COMMAND_PORT.into(), 1, Arc::new(KeyboardController(keyboard)));
    ports.insert(layout::RESET_CONTROL_PORT.into(), 1, Arc::new(ResetControl(chip_set)));
    memory.insert(layout::ECAM, layout::ECAM_BYTES, Arc::new(Ecam(Arc::clone(&pci))));
    memory.insert(layout::PCI_WINDOW, layout::PCI_WINDOW_BYTES, Arc::new(Window(pci)));
    Buses { ports, memory }
}

fn lock(device: &SharedDevice) -> MutexGuard<'_, VirtioPci> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io_error(attempt: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::Io { attempt, source }
}
