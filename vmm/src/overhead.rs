//! What the monitor itself costs: the proportional set size of this process without guest memory, from `/proc/self/smaps`.

use crate::memory::Ram;
use std::fs::File;
use std::io::{Read, Seek};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// The file that tells, opened before a jail hides `/proc`.
#[derive(Debug)]
pub struct Overhead(Option<Mutex<File>>);

impl Overhead {
    /// Opens the file; without one the size is told as 0.
    #[must_use]
    pub fn open() -> Self {
        Self(File::open("/proc/self/smaps").ok().map(Mutex::new))
    }

    /// The process's proportional set size without `ram`, KiB; 0 when the kernel does not tell.
    #[must_use]
    pub fn pss_kib(&self, ram: &Ram) -> u64 {
        let mut text = String::new();
        let Some(file) = &self.0 else { return 0 };
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
            Ok(_) => sum(&text, &ranges(ram)),
            Err(_) => 0,
        }
    }
}

/// Where guest memory is mapped in this process.
fn ranges(ram: &Ram) -> Vec<Range<u64>> {
    ram.iter()
        .filter_map(|region| {
            let start = region.get_host_address(MemoryRegionAddress(0)).ok()?.addr() as u64;
            Some(start..start + region.len())
        })
        .collect()
}

/// Sums the `Pss:` lines of mappings that do not start inside `excluded`.
fn sum(smaps: &str, excluded: &[Range<u64>]) -> u64 {
    let (mut total, mut counts) = (0, true);
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(_)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            counts = !excluded.iter().any(|range| range.contains(&start));
        } else if counts && first == "Pss:" {
            total += line.split_whitespace().nth(1).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_left_out() {
        let smaps = "00400000-00401000 r--p 00000000 fe:00 1 /bin/x\nRss: 4 kB\nPss:   3 kB\nPss_Dirty: 9 kB\n\
                     7f0000000000-7f0010000000 rw-p 0 00:00 0\nPss: 5000 kB\n7fff00000000-7fff00001000 rw-p 0 00:00 0 [stack]\nPss: 2 kB\n";
        let guest = Range { start: 0x7f00_0000_0000, end: 0x7f00_1000_0000 };
        assert_eq!(sum(smaps, std::slice::from_ref(&guest)), 5);
        assert_eq!(sum(smaps, &[]), 5005);
    }

    #[test]
    fn this_process_has_a_size_and_touched_guest_memory_does_not_count() {
        use vm_memory::{Bytes, GuestAddress};
        let ram = crate::memory::map(64).unwrap();
        let overhead = Overhead::open();
        let before = overhead.pss_kib(&ram);
        for page in 0..64 * 256 {
            ram.write_obj(1_u8, GuestAddress(page * 4096)).unwrap();
        }
        let after = overhead.pss_kib(&ram);
        assert!(before > 0 && after < before + 16 * 1024, "{before} {after}");
    }
}
