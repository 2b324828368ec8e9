//! Which system calls each kind of thread may make.
//!
//! The lists are data: [`guard_process`] holds for every thread that there is and every one made later, also by libraries; [`narrow`] takes
//! away more from one thread of a kind. A call that is not in the list raises SIGSYS, which ends the process and leaves the number of the call with
//! the kernel and the parent: a VM never goes on after it. Source: seccomp(2).

use libc::{
    SYS_accept4, SYS_access, SYS_arch_prctl, SYS_bind, SYS_brk, SYS_capget, SYS_capset, SYS_clock_getres,
    SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone, SYS_clone3, SYS_close, SYS_connect, SYS_dup, SYS_epoll_create,
    SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_wait, SYS_eventfd2, SYS_exit, SYS_exit_group,
    SYS_fallocate, SYS_fcntl, SYS_fdatasync, SYS_flock, SYS_fstat, SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_futex,
    SYS_get_mempolicy, SYS_getcpu, SYS_getcwd, SYS_getdents64, SYS_getegid, SYS_geteuid, SYS_getgid, SYS_getpeername,
    SYS_getpid, SYS_getppid, SYS_getrandom, SYS_getrusage, SYS_getsockname, SYS_getsockopt, SYS_gettid,
    SYS_gettimeofday, SYS_getuid, SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup, SYS_ioctl,
    SYS_landlock_add_rule, SYS_landlock_create_ruleset, SYS_landlock_restrict_self, SYS_listen, SYS_lseek, SYS_madvise,
    SYS_membarrier, SYS_memfd_create, SYS_mkdir, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_nanosleep,
    SYS_newfstatat, SYS_open, SYS_openat, SYS_pipe2, SYS_poll, SYS_ppoll, SYS_prctl, SYS_pread64, SYS_preadv,
    SYS_preadv2, SYS_prlimit64, SYS_pwrite64, SYS_pwritev, SYS_pwritev2, SYS_read, SYS_readlink, SYS_readlinkat,
    SYS_readv, SYS_recvfrom, SYS_recvmsg, SYS_rename, SYS_renameat, SYS_renameat2, SYS_restart_syscall, SYS_rseq,
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_setaffinity,
    SYS_sched_yield, SYS_seccomp, SYS_sendmmsg, SYS_sendmsg, SYS_sendto, SYS_set_robust_list, SYS_set_tid_address,
    SYS_setgroups, SYS_setresgid, SYS_setresuid, SYS_setsockopt, SYS_shutdown, SYS_sigaltstack, SYS_socket,
    SYS_socketpair, SYS_stat, SYS_statfs, SYS_statx, SYS_sysinfo, SYS_tgkill, SYS_timerfd_create, SYS_timerfd_settime,
    SYS_umask, SYS_uname, SYS_unlink, SYS_unlinkat, SYS_write, SYS_writev, c_long,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// What a thread does, and so which calls it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ThreadKind {
    /// Runs one vCPU: enters the guest, serves its exits.
    Vcpu,
    /// Serves queues, taps, disks and the console.
    Devices,
    /// Serves the control socket; starts and joins the others.
    Control,
}

/// What every thread of a Rust program needs: memory, locks, signals, time, its own end.
const RUNTIME: &[c_long] = &[
    SYS_brk,
    SYS_clock_getres,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_close,
    SYS_exit,
    SYS_exit_group,
    SYS_futex,
    SYS_getpid,
    SYS_getrandom,
    SYS_gettid,
    SYS_gettimeofday,
    SYS_madvise,
    SYS_membarrier,
    SYS_mmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_munmap,
    SYS_nanosleep,
    SYS_read,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_set_robust_list,
    SYS_sigaltstack,
    SYS_tgkill,
    SYS_write,
    SYS_writev,
];

/// What serving descriptors takes besides.
const DEVICES: &[c_long] = &[
    SYS_accept4,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_wait,
    SYS_eventfd2,
    SYS_fallocate,
    SYS_fcntl,
    SYS_fdatasync,
    SYS_fstat,
    SYS_fsync,
    SYS_ftruncate,
    SYS_io_uring_enter,
    SYS_ioctl,
    SYS_lseek,
    SYS_openat,
    SYS_poll,
    SYS_ppoll,
    SYS_pread64,
    SYS_preadv,
    SYS_preadv2,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_pwritev2,
    SYS_readv,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_rename,
    SYS_renameat,
    SYS_renameat2,
    SYS_sendmsg,
    SYS_sendto,
    SYS_shutdown,
    SYS_statx,
    SYS_timerfd_settime,
    SYS_unlink,
    SYS_unlinkat,
];

/// What starting and joining threads, and opening and closing volumes and sockets, takes besides.
const CONTROL: &[c_long] = &[
    SYS_arch_prctl,
    SYS_bind,
    SYS_clone,
    SYS_clone3,
    SYS_dup,
    SYS_epoll_create1,
    SYS_flock,
    SYS_getcpu,
    SYS_getcwd,
    SYS_getdents64,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_getuid,
    SYS_io_uring_register,
    SYS_io_uring_setup,
    SYS_listen,
    SYS_memfd_create,
    SYS_newfstatat,
    SYS_pipe2,
    SYS_prctl,
    SYS_prlimit64,
    SYS_readlink,
    SYS_readlinkat,
    SYS_sched_setaffinity,
    // A thread that starts narrows itself under the filter of the one that made it.
    SYS_seccomp,
    SYS_setsockopt,
    SYS_socket,
    SYS_socketpair,
    SYS_stat,
    SYS_sysinfo,
    SYS_timerfd_create,
    SYS_uname,
];

/// What librados' and librbd's own threads take besides (messengers, timers, finishers); only the whole process' filter has these.
const LIBRADOS: &[c_long] = &[
    SYS_access,
    SYS_connect,
    SYS_epoll_create,
    SYS_fstatfs,
    SYS_get_mempolicy,
    SYS_getpeername,
    SYS_getppid,
    SYS_getrusage,
    SYS_mkdir,
    SYS_open,
    SYS_sendmmsg,
    SYS_set_tid_address,
    SYS_statfs,
    SYS_umask,
];

/// What giving up privileges takes, on every thread (a change of user reaches all of them), between the two steps of the jail.
const ENTERING: &[c_long] = &[
    SYS_capget,
    SYS_capset,
    SYS_landlock_add_rule,
    SYS_landlock_create_ruleset,
    SYS_landlock_restrict_self,
    SYS_setgroups,
    SYS_setresgid,
    SYS_setresuid,
];

/// How far the process is, and so which calls any of its threads may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Volumes are being opened; the process is still who started it.
    Opening,
    /// All is open and given up.
    Running,
}

/// The device control calls of a vCPU thread: entering the guest, and reading and writing its state for pause, resume and reset.
///
/// Numbers: linux/kvm.h, `_IOC(direction, 0xAE, number, size)`.
const VCPU_CONTROLS: &[u64] = &[
    0xae80,      // KVM_RUN
    0x8090_ae81, // KVM_GET_REGS
    0x4090_ae82, // KVM_SET_REGS
    0x8138_ae83, // KVM_GET_SREGS
    0x4138_ae84, // KVM_SET_SREGS
    0xc008_ae88, // KVM_GET_MSRS
    0x4008_ae89, // KVM_SET_MSRS
    0x81a0_ae8c, // KVM_GET_FPU
    0x41a0_ae8d, // KVM_SET_FPU
    0x8400_ae8e, // KVM_GET_LAPIC
    0x4400_ae8f, // KVM_SET_LAPIC
    0x4008_ae90, // KVM_SET_CPUID2
    0x8004_ae98, // KVM_GET_MP_STATE
    0x4004_ae99, // KVM_SET_MP_STATE
    0x8040_ae9f, // KVM_GET_VCPU_EVENTS
    0x4040_aea0, // KVM_SET_VCPU_EVENTS
    0xaead,      // KVM_KVMCLOCK_CTRL
    0x4008_ae6a, // KVM_SET_GSI_ROUTING: the guest sets up an interrupt
    0x4040_ae79, // KVM_IOEVENTFD: the guest places a device's registers
];

/// The device control calls that let a thread reach beyond its descriptors; refused to device threads.
///
/// Numbers: asm-generic/ioctls.h (TIOCSTI: typing into another's terminal), linux/kvm.h (a new VM or vCPU).
const DEVICE_CONTROLS_REFUSED: &[u64] = &[
    0x5412, // TIOCSTI
    0xae01, // KVM_CREATE_VM
    0xae41, // KVM_CREATE_VCPU
];

/// A filter could not be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The list makes no program: a broken invariant of the lists in this file.
    #[error("make the system call filter of {what}")]
    Compile {
        /// Whose filter.
        what: String,
        /// Why.
        #[source]
        source: seccompiler::BackendError,
    },
    /// The kernel refused the program.
    #[error("install the system call filter of {what}")]
    Install {
        /// Whose filter.
        what: String,
        /// Why.
        #[source]
        source: seccompiler::Error,
    },
}

/// Holds every thread of the process, and each that is made later, to the calls that any thread of a VMM needs at this stage. The second call
/// takes away what the first left too much.
///
/// # Errors
/// [`SeccompError`]; also when a thread already has a filter that the caller does not share.
pub fn guard_process(stage: Stage) -> Result<(), SeccompError> {
    let rules = process_calls(stage).into_iter().map(|call| (call, Vec::new())).collect();
    let what = "the process";
    let program = compile(what, rules)?;
    seccompiler::apply_filter_all_threads(&program)
        .map_err(|source| SeccompError::Install { what: what.to_owned(), source })
}

fn process_calls(stage: Stage) -> Vec<c_long> {
    let running = [RUNTIME, DEVICES, CONTROL, LIBRADOS].concat();
    match stage {
        Stage::Opening => [&running, ENTERING].concat(),
        Stage::Running => running,
    }
}

/// Holds the calling thread to the calls of its kind.
///
/// # Errors
/// [`SeccompError`].
pub fn narrow(kind: ThreadKind) -> Result<(), SeccompError> {
    let what = format!("a thread of kind {kind:?}");
    let mut rules: Vec<(c_long, Vec<SeccompRule>)> = calls(kind).into_iter().map(|call| (call, Vec::new())).collect();
    let controls = controls(kind).map_err(|source| SeccompError::Compile { what: what.clone(), source })?;
    if !controls.is_empty() {
        rules.retain(|(call, _)| *call != SYS_ioctl);
        rules.push((SYS_ioctl, controls));
    }
    let program = compile(&what, rules)?;
    seccompiler::apply_filter(&program).map_err(|source| SeccompError::Install { what, source })
}

/// The calls of a kind, without regard to arguments.
fn calls(kind: ThreadKind) -> Vec<c_long> {
    match kind {
        // A guest that resets a device waits on its vCPU for the I/O in flight.
        ThreadKind::Vcpu => [RUNTIME, &[SYS_ioctl, SYS_fcntl, SYS_io_uring_enter, SYS_poll, SYS_ppoll]].concat(),
        ThreadKind::Devices => [RUNTIME, DEVICES].concat(),
        ThreadKind::Control => [RUNTIME, DEVICES, CONTROL].concat(),
    }
}

/// The rules on the number of a device control call; none: any.
fn controls(kind: ThreadKind) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let condition = |operator, number| SeccompCondition::new(1, SeccompCmpArgLen::Dword, operator, number);
    match kind {
        ThreadKind::Vcpu => {
            VCPU_CONTROLS.iter().map(|number| SeccompRule::new(vec![condition(SeccompCmpOp::Eq, *number)?])).collect()
        }
        ThreadKind::Devices => {
            let all = DEVICE_CONTROLS_REFUSED.iter().map(|number| condition(SeccompCmpOp::Ne, *number));
            Ok(vec![SeccompRule::new(all.collect::<Result<_, _>>()?)?])
        }
        ThreadKind::Control => Ok(Vec::new()),
    }
}

fn compile(what: &str, rules: Vec<(c_long, Vec<SeccompRule>)>) -> Result<BpfProgram, SeccompError> {
    let rules = rules.into_iter().collect();
    let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64);
    filter.and_then(TryInto::try_into).map_err(|source| SeccompError::Compile { what: what.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_stays_inside_the_filter_of_the_process() {
        let process = process_calls(Stage::Running);
        for kind in [ThreadKind::Vcpu, ThreadKind::Devices, ThreadKind::Control] {
            for call in calls(kind) {
                assert!(process.contains(&call), "{kind:?} may call {call}, the process may not");
            }
        }
    }

    #[test]
    fn what_starts_programs_or_changes_namespaces_is_in_no_list() {
        let process = process_calls(Stage::Opening);
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_chroot,
            libc::SYS_bpf,
            libc::SYS_process_vm_writev,
            libc::SYS_setuid,
            libc::SYS_open_by_handle_at,
            libc::SYS_kexec_load,
        ] {
            assert!(!process.contains(&call), "{call}");
        }
        let running = process_calls(Stage::Running);
        assert!(ENTERING.iter().all(|call| !running.contains(call)), "who is in the jail cannot change who it is");
    }
}
