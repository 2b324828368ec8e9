//! The entropy device (virtio 1.2 §5.4): 64 bytes that are not all the same.

use crate::Outcome;
use crate::machine::dma;
use crate::pci::Function;
use crate::virtio::Device;
use crate::virtqueue::Piece;

/// Reads 64 bytes.
pub fn run(function: Function) -> Outcome {
    let device = Device::open(function)?;
    device.negotiate(0)?;
    let mut queue = device.queue(0)?;
    device.start();
    let buffer = dma(64);
    queue.submit(&[Piece::output(buffer)]);
    let (_, written) = queue.wait()?;
    let filled = buffer.get(..written as usize).ok_or("the device says that it wrote more than there is room for")?;
    if filled.is_empty() || filled.iter().all(|byte| *byte == filled[0]) {
        Err("the bytes are not random")
    } else {
        Ok(())
    }
}
