//! The pattern test that every backend passes: random steps on a volume and on an array, compared byte by byte.

use proptest::prelude::*;
use storage::volume::{Operation, Volume};

/// Sectors of the volume under test.
pub(crate) const SECTORS: u64 = 256;

/// What a byte of the model is: known, or one of two where a discard may or may not have taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Is(u8),
    IsOrZero(u8),
}

impl Cell {
    fn admits(self, byte: u8) -> bool {
        match self {
            Self::Is(known) => byte == known,
            Self::IsOrZero(before) => byte == before || byte == 0,
        }
    }
}

/// One step; offsets and lengths are in sectors.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    operation: Operation,
    sector: u64,
    sectors: u64,
    fill: u8,
}

/// Random steps.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let operation = prop_oneof![
        2 => Just(Operation::Read),
        3 => Just(Operation::Write),
        1 => Just(Operation::Flush),
        1 => Just(Operation::Discard),
        1 => Just(Operation::WriteZeroes),
    ];
    let step = (operation, 0..SECTORS, 0..64_u64, any::<u8>()).prop_map(|(operation, sector, sectors, fill)| Step {
        operation,
        sector,
        sectors: sectors.min(SECTORS - sector),
        fill,
    });
    prop::collection::vec(step, 1..40)
}

/// Runs the steps on the volume, whose first [`SECTORS`] read as zeroes, and compares each read and the end.
pub(crate) fn check(volume: &mut Volume, steps: &[Step]) {
    let mut model = vec![Cell::Is(0); usize::try_from(SECTORS * 512).unwrap()];
    for (index, step) in steps.iter().enumerate() {
        let (offset, length) = (step.sector * 512, step.sectors * 512);
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
        match step.operation {
            Operation::Read => compare(volume, offset, &mut model[range], &format!("step {index}: {step:?}")),
            Operation::Write => {
                // Every sector differs, so that a misplaced one is seen.
                let bytes: Vec<u8> =
                    range.clone().map(|at| step.fill ^ u8::try_from(at / 512 % 251).unwrap()).collect();
                volume.write_at(offset, &bytes).unwrap();
                model[range].iter_mut().zip(bytes).for_each(|(cell, byte)| *cell = Cell::Is(byte));
            }
            Operation::Flush => volume.perform(Operation::Flush, 0, 0).unwrap(),
            Operation::Discard => {
                volume.perform(Operation::Discard, offset, length).unwrap();
                for cell in &mut model[range] {
                    let (Cell::Is(before) | Cell::IsOrZero(before)) = *cell;
                    *cell = Cell::IsOrZero(before);
                }
            }
            Operation::WriteZeroes => {
                volume.perform(Operation::WriteZeroes, offset, length).unwrap();
                model[range].fill(Cell::Is(0));
            }
        }
    }
    compare(volume, 0, &mut model, "the end");
}

/// Reads the range, compares it, and learns what a discard did.
fn compare(volume: &mut Volume, offset: u64, cells: &mut [Cell], what: &str) {
    let mut bytes = vec![0xEE; cells.len()];
    volume.read_at(offset, &mut bytes).unwrap();
    for (at, (cell, byte)) in cells.iter_mut().zip(bytes).enumerate() {
        assert!(cell.admits(byte), "{what}: byte {at} after {offset} is {byte:#x}, not {cell:?}");
        *cell = Cell::Is(byte);
    }
}
