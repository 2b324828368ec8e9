//! The console device (virtio 1.2 §5.3), one port: queue 0 carries input to the guest, queue 1 output to the console hub.

use crate::console::Hub;
use crate::virtio::{Context, Counters, DESCRIPTORS_MAX, Device, Kind};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use virtio_queue::desc::split::Descriptor;
use vm_memory::Bytes;

const QUEUE_SIZE: u16 = 64;
/// The most bytes taken of one chain of output.
const CHUNK_MAX: usize = 4096;
const INPUT: usize = 0;
const OUTPUT: usize = 1;

/// The device.
#[derive(Debug)]
pub struct Console {
    hub: Arc<Hub>,
    input_bytes: u64,
    output_bytes: u64,
}

impl Console {
    /// A device joined to `hub`.
    #[must_use]
    pub const fn new(hub: Arc<Hub>) -> Self {
        Self { hub, input_bytes: 0, output_bytes: 0 }
    }

    fn give_input(&mut self, context: &mut Context<'_>) {
        let mut moved = false;
        for _ in 0..QUEUE_SIZE {
            if !self.hub.has_input() {
                break;
            }
            let Some(chain) = context.next(INPUT) else {
                if context.rearm(INPUT) {
                    context.call_again(INPUT);
                }
                break;
            };
            let head = chain.head_index();
            let mut written = 0;
            for buffer in chain.take(DESCRIPTORS_MAX).filter(Descriptor::is_write_only) {
                let bytes = self.hub.take_input(usize::try_from(buffer.len()).unwrap_or(0).min(CHUNK_MAX));
                if context.ram.write_slice(&bytes, buffer.addr()).is_ok() {
                    written += bytes.len();
                }
            }
            self.input_bytes += written as u64;
            context.finish(INPUT, head, u32::try_from(written).unwrap_or(0));
            moved = true;
        }
        if moved {
            context.signal(INPUT);
        }
    }

    fn take_output(&mut self, context: &mut Context<'_>) {
        let mut moved = false;
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = context.next(OUTPUT) else { break };
            let head = chain.head_index();
            for buffer in chain.take(DESCRIPTORS_MAX).filter(|buffer| !buffer.is_write_only()) {
                let mut bytes = vec![0; usize::try_from(buffer.len()).unwrap_or(0).min(CHUNK_MAX)];
                if context.ram.read_slice(&mut bytes, buffer.addr()).is_ok() {
                    self.hub.output(&bytes);
                    self.output_bytes += bytes.len() as u64;
                }
            }
            context.finish(OUTPUT, head, 0);
            moved = true;
        }
        if moved {
            context.signal(OUTPUT);
        }
        if context.rearm(OUTPUT) {
            context.call_again(OUTPUT);
        }
    }
}

impl Device for Console {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    /// `struct virtio_console_config` (§5.3.4); no feature makes any of it valid.
    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.hub.input_event().as_raw_fd()]
    }

    fn activate(&mut self, _features: u64, context: &mut Context<'_>) {
        context.call_again(INPUT);
        context.call_again(OUTPUT);
    }

    fn serve(&mut self, queue: usize, context: &mut Context<'_>) {
        match queue {
            INPUT => self.give_input(context),
            _ => self.take_output(context),
        }
    }

    fn ready(&mut self, _descriptor: usize, context: &mut Context<'_>) {
        self.hub.input_event().read().ok();
        self.give_input(context);
    }

    fn reset(&mut self) {}

    fn counters(&self) -> Counters {
        [("input_bytes", self.input_bytes), ("output_bytes", self.output_bytes)]
            .map(|(name, value)| (name.to_owned(), value))
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Bench, hostile_chains};
    use basalt_tests::require;
    use basalt_tests::skip::Need;

    #[test]
    fn output_reaches_the_hub_and_input_the_guest() {
        require!(Need::Kvm);
        let hub = Arc::new(Hub::new().unwrap());
        let mut console = Console::new(Arc::clone(&hub));
        let mut bench = Bench::new(&[64, 64]);
        bench.write(0x10_0000, b"hello");
        bench.add(OUTPUT, &[(0x10_0000, 5, false)]);
        bench.with(|context| console.serve(OUTPUT, context));
        assert_eq!(hub.scrollback(0).1, b"hello");
        assert_eq!(bench.used(OUTPUT), vec![(0, 0)]);

        assert_eq!(hub.input(b"abc"), 3);
        bench.with(|context| console.ready(0, context));
        assert!(bench.used(INPUT).is_empty());
        bench.add(INPUT, &[(0x11_0000, 2, true)]);
        bench.add(INPUT, &[(0x12_0000, 64, true)]);
        bench.with(|context| console.serve(INPUT, context));
        assert_eq!(bench.used(INPUT), vec![(0, 2), (1, 1)]);
        assert_eq!([bench.read(0x11_0000, 2), bench.read(0x12_0000, 1)].concat(), b"abc");
    }

    #[test]
    fn hostile_rings_are_survived() {
        require!(Need::Kvm);
        let hub = Arc::new(Hub::new().unwrap());
        hub.input(b"input that waits");
        hostile_chains(&mut Console::new(Arc::clone(&hub)), INPUT);
        hostile_chains(&mut Console::new(hub), OUTPUT);
    }
}
