//! One vCPU: a thread that runs guest code and answers its exits from the buses.
//!
//! The thread passes the machine's gate before each entry. A kick is a signal whose handler does nothing: it only makes the kernel return. What a vCPU
//! cannot go on after is reported once; the thread then rests at the gate until the machine is taken down.

use crate::bus::Bus;
use crate::gate::Gate;
use crate::report::{Report, Reporter};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// The address spaces a vCPU reaches.
#[derive(Debug)]
pub struct Buses {
    /// I/O ports.
    pub ports: Bus,
    /// Memory that is not RAM.
    pub memory: Bus,
}

/// Counts of exits to user space, by kind.
#[derive(Debug, Default)]
pub struct Exits {
    /// Port reads.
    pub port_reads: AtomicU64,
    /// Port writes.
    pub port_writes: AtomicU64,
    /// Memory reads.
    pub memory_reads: AtomicU64,
    /// Memory writes.
    pub memory_writes: AtomicU64,
    /// Accesses that no device answered.
    pub unanswered: AtomicU64,
    /// The rest: kicks and what needs no answer.
    pub other: AtomicU64,
}

/// The signal that kicks a vCPU out of the kernel.
#[must_use]
pub fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Makes the kick signal harmless. Called once before any vCPU thread.
///
/// # Errors
/// What the kernel said.
pub fn install_kick_handler() -> Result<(), vmm_sys_util::errno::Error> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(kick_signal(), nothing)
}

/// A vCPU and what it reaches.
#[derive(Debug)]
pub struct Vcpu {
    /// Its number.
    pub index: u8,
    /// KVM's handle.
    pub fd: VcpuFd,
    /// The address spaces.
    pub buses: Arc<Buses>,
    /// Counts shared by all vCPUs.
    pub exits: Arc<Exits>,
    /// The machine's gate.
    pub gate: Arc<Gate>,
    /// Where failures go.
    pub reporter: Reporter,
}

/// What to do after an exit.
enum Next {
    Enter,
    /// The guest does not go on from here.
    Rest(Report),
}

impl Vcpu {
    /// Runs guest code until the machine ends. The body of a vCPU thread.
    pub fn run(mut self) {
        while self.gate.pass() {
            if let Next::Rest(report) = self.enter() {
                self.reporter.report(report);
                if !self.gate.rest() {
                    break;
                }
            }
        }
        self.gate.leave();
    }

    /// Enters the guest once and answers its exit.
    fn enter(&mut self) -> Next {
        let count = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let (buses, exits) = (&self.buses, &self.exits);
        let answered = match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&exits.port_reads);
                buses.ports.read(u64::from(port), data)
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&exits.port_writes);
                buses.ports.write(u64::from(port), data)
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(&exits.memory_reads);
                buses.memory.read(address, data)
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(&exits.memory_writes);
                buses.memory.write(address, data)
            }
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {
                count(&exits.other);
                true
            }
            Ok(VcpuExit::Shutdown) => return Next::Rest(Report::TripleFault { vcpu: self.index }),
            Ok(VcpuExit::FailEntry(reason, _)) => return self.failed(&format!("KVM refused to enter: {reason:#x}")),
            Ok(exit) => {
                let exit = format!("{exit:?}");
                return self.failed(&format!("exit {exit} at {}", self.position()));
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                count(&exits.other);
                true
            }
            Err(error) => return self.failed(&format!("KVM_RUN failed at {}: {error}", self.position())),
        };
        if !answered {
            count(&exits.unanswered);
        }
        Next::Enter
    }

    fn failed(&self, reason: &str) -> Next {
        Next::Rest(Report::Failed(format!("vCPU {}: {reason}", self.index)))
    }

    /// Where the guest was, for a failure's message.
    fn position(&self) -> String {
        self.fd.get_regs().map_or_else(|error| error.to_string(), |regs| format!("{:#x}", regs.rip))
    }
}
