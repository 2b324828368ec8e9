//! The serial port (16550 at 0x3f8), written by polling.

use core::fmt::{self, Write};

use crate::machine::{in8, out8};

/// Data register of the first serial port.
const DATA: u16 = 0x3f8;
/// Its line status register; bit 5: a byte can be written.
const LINE_STATUS: u16 = 0x3fd;
/// How often the status is asked for before the byte is written anyway.
const PATIENCE: u32 = 10_000;

/// Writes text to the port.
pub struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let mut left = PATIENCE;
            while in8(LINE_STATUS) & 0x20 == 0 && left > 0 {
                left -= 1;
            }
            out8(DATA, byte);
        }
        Ok(())
    }
}

/// Prints a line to the serial port.
#[macro_export]
macro_rules! println {
    ($($words:tt)*) => {{
        use core::fmt::Write as _;
        let mut port = $crate::serial::Port;
        let _ = port.write_fmt(format_args!($($words)*));
        let _ = port.write_str("\n");
    }};
}
