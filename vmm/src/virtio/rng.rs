//! The entropy device (virtio 1.2 §5.4): fills what the driver offers from the host kernel's generator.

use crate::memory::Ram;
use crate::virtio::{Chain, Context, Counters, DESCRIPTORS_MAX, Device, Kind};
use std::fs::File;
use std::sync::Arc;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemory, Permissions, ReadVolatile};

const QUEUE_SIZE: u16 = 64;
/// The most bytes given for one request: a guest may not make this thread read for long.
const REQUEST_MAX_BYTES: usize = 4096;

/// The device.
#[derive(Debug)]
pub struct Rng {
    source: Arc<File>,
    requests: u64,
    bytes: u64,
}

impl Rng {
    /// A device that reads from `source`, which is `/dev/urandom` outside tests.
    #[must_use]
    pub const fn new(source: Arc<File>) -> Self {
        Self { source, requests: 0, bytes: 0 }
    }

    /// Fills the writable buffers of a chain, up to the bound; returns the bytes written.
    fn fill(&self, ram: &Ram, chain: Chain) -> usize {
        let (mut left, mut given) = (REQUEST_MAX_BYTES, 0);
        for buffer in chain.take(DESCRIPTORS_MAX).filter(Descriptor::is_write_only) {
            let count = usize::try_from(buffer.len()).unwrap_or(usize::MAX).min(left);
            let Ok(pieces) = ram.get_slices(buffer.addr(), count, Permissions::Write) else { break };
            for piece in pieces {
                let read = piece.ok().and_then(|mut piece| self.source.as_ref().read_volatile(&mut piece).ok());
                given += read.unwrap_or(0);
            }
            left -= count;
        }
        given
    }
}

impl Device for Rng {
    fn kind(&self) -> Kind {
        Kind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, _features: u64, context: &mut Context<'_>) {
        self.serve(0, context);
    }

    fn serve(&mut self, queue: usize, context: &mut Context<'_>) {
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = context.next(queue) else { break };
            let head = chain.head_index();
            let given = self.fill(context.ram, chain);
            self.requests += 1;
            self.bytes += given as u64;
            context.finish(queue, head, u32::try_from(given).unwrap_or(0));
        }
        context.signal(queue);
        if context.rearm(queue) {
            context.call_again(queue);
        }
    }

    fn ready(&mut self, _descriptor: usize, _context: &mut Context<'_>) {}

    fn reset(&mut self) {}

    fn counters(&self) -> Counters {
        Counters::from([("requests".to_owned(), self.requests), ("read_bytes".to_owned(), self.bytes)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Bench, hostile_chains};
    use basalt_tests::require;
    use basalt_tests::skip::Need;

    fn rng() -> Rng {
        Rng::new(Arc::new(File::open("/dev/urandom").unwrap()))
    }

    #[test]
    fn a_request_is_filled() {
        require!(Need::Kvm);
        let mut bench = Bench::new(&[16]);
        bench.add(0, &[(0x10_0000, 64, true), (0x11_0000, 32, true)]);
        bench.with(|context| rng().serve(0, context));
        assert_eq!(bench.used(0), vec![(0, 96)]);
        assert_ne!(bench.read(0x10_0000, 64), vec![0; 64]);
    }

    #[test]
    fn a_huge_request_is_cut_and_a_readable_buffer_gets_nothing() {
        require!(Need::Kvm);
        let mut bench = Bench::new(&[16]);
        bench.add(0, &[(0x10_0000, 1 << 20, true)]);
        bench.add(0, &[(0x10_0000, 64, false)]);
        bench.with(|context| rng().serve(0, context));
        assert_eq!(bench.used(0), vec![(0, 4096), (1, 0)]);
    }

    #[test]
    fn hostile_rings_are_survived() {
        require!(Need::Kvm);
        hostile_chains(&mut rng(), 0);
    }
}
