//! The console device (virtio 1.2 §5.3): says that it is up, then gives back what is typed.

use crate::Outcome;
use crate::machine::dma;
use crate::pci::Function;
use crate::virtio::Device;
use crate::virtqueue::Piece;

const GREETING: &[u8] = b"hvc is up\n";
const INPUT: usize = 64;

/// Gives back `COUNT` bytes.
pub fn run(function: Function, value: &str) -> Outcome {
    let mut left = value.parse::<usize>().map_err(|_| "want a number of bytes")?;
    let device = Device::open(function)?;
    device.negotiate(0)?;
    let (mut input, mut output) = (device.queue(0)?, device.queue(1)?);
    device.start();
    let (typed, said) = (dma(INPUT), dma(INPUT));
    said[..GREETING.len()].copy_from_slice(GREETING);
    output.submit(&[Piece::input(&said[..GREETING.len()])]);
    output.wait()?;
    while left > 0 {
        input.submit(&[Piece::output(typed)]);
        let (_, count) = input.wait()?;
        let count = (count as usize).min(INPUT);
        said[..count].copy_from_slice(&typed[..count]);
        output.submit(&[Piece::input(&said[..count])]);
        output.wait()?;
        left = left.saturating_sub(count.max(1));
    }
    Ok(())
}
