//! What a vCPU says it is: the host's features as KVM offers them, with this machine's topology written in (Intel SDM `CPUID`, AMD APM vol. 3 app. E).
//!
//! All vCPUs are cores of one socket, one thread each. LAPIC ids are the vCPU numbers.

use crate::kvm::{KvmError, attempt};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_THREADS: u32 = 1 << 28;

const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// Memory type ranges are on and memory is write-back unless a guest says otherwise.
const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;

/// What KVM offers on this host, before it is made one vCPU's.
///
/// # Errors
/// [`KvmError`].
pub fn host_features(kvm: &Kvm) -> Result<CpuId, KvmError> {
    let mut features =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(attempt("read the host's CPU features"))?;
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        let ones = features.as_mut_slice().iter_mut().filter(|entry| entry.function == 1);
        ones.for_each(|entry| entry.ecx |= ECX_TSC_DEADLINE);
    }
    Ok(features)
}

/// Makes a vCPU number `index` of `count`.
///
/// # Errors
/// [`KvmError`].
pub fn set_up(vcpu: &VcpuFd, features: &CpuId, index: u8, count: u8) -> Result<(), KvmError> {
    let mut features = features.clone();
    features.as_mut_slice().iter_mut().for_each(|entry| describe(entry, index, count));
    vcpu.set_cpuid2(&features).map_err(attempt(format!("set the features of vCPU {index}")))?;
    let entry = kvm_msr_entry { index: MSR_MTRR_DEFAULT_TYPE, data: MTRR_ON_WRITE_BACK, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry]).map_err(|_| KvmError {
        attempt: "make a list of registers".to_owned(),
        source: kvm_ioctls::Error::new(libc::ENOMEM),
    })?;
    vcpu.set_msrs(&msrs).map_err(attempt(format!("set the memory types of vCPU {index}")))?;
    Ok(())
}

/// Writes the topology into one leaf.
fn describe(entry: &mut kvm_cpuid_entry2, index: u8, count: u8) {
    let (id, cores) = (u32::from(index), u32::from(count));
    // Bits of a LAPIC id that tell the cores of the socket apart.
    let shift = cores.next_power_of_two().trailing_zeros();
    match (entry.function, entry.index) {
        (0x1, _) => {
            entry.ebx = entry.ebx & 0xffff | cores << 16 | id << 24;
            entry.ecx |= ECX_HYPERVISOR;
            entry.edx = if cores > 1 { entry.edx | EDX_THREADS } else { entry.edx & !EDX_THREADS };
        }
        // Intel's caches: bits 31-26 cores a socket, bits 25-14 threads that share the cache.
        (0x4, _) if entry.eax & 0x1f != 0 => {
            let shared = if entry.eax >> 5 & 7 == 3 { (1 << shift) - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | shared << 14 | ((1 << shift) - 1) << 26;
        }
        (0xb | 0x1f, level) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = match level {
                0 => (0, 1, 1 << 8, id),
                1 => (shift, cores, 2 << 8 | 1, id),
                level => (0, 0, level, id),
            };
        }
        (0x8000_0008, _) => entry.ecx = (cores - 1) | shift << 12,
        (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax: 0x21, ..Default::default() }
    }

    #[test]
    fn each_vcpu_has_its_own_number_in_every_leaf() {
        for (index, count) in [(0, 1), (1, 2), (2, 3), (63, 64)] {
            let id = u32::from(index);
            let mut entry = leaf(1, 0);
            describe(&mut entry, index, count);
            assert_eq!((entry.ebx >> 24, entry.ebx >> 16 & 0xff), (id, u32::from(count)));
            assert_eq!(entry.edx & EDX_THREADS != 0, count > 1);
            let mut entry = leaf(0xb, 1);
            describe(&mut entry, index, count);
            assert_eq!((entry.edx, entry.ebx), (id, u32::from(count)));
            assert!(1_u32 << entry.eax >= u32::from(count));
        }
    }
}
