//! Power and reset: the ACPI sleep, reset and event registers, and for guests that know nothing newer the reset lines of the keyboard controller and
//! of PC chip sets.

use crate::bus::BusDevice;
use crate::layout;
use crate::report::{Report, Reporter};
use std::sync::atomic::{AtomicU8, Ordering};
use vmm_sys_util::eventfd::EventFd;

/// Sleep control bit: go to sleep now.
const SLEEP_ENABLE: u8 = 1 << 5;
/// The keyboard controller's command that pulls the reset line.
const I8042_RESET: u8 = 0xfe;

/// The reset control register's bit that resets; the others choose how (Intel ICH10 datasheet §13.7.5).
const RESET_CPU: u8 = 1 << 2;

/// The four ACPI registers from [`layout::SLEEP_CONTROL_PORT`] on.
#[derive(Debug)]
pub struct Power {
    reporter: Reporter,
    line: EventFd,
    events: AtomicU8,
}

impl Power {
    /// Registers that report to `reporter` and raise events by `line`.
    #[must_use]
    pub const fn new(reporter: Reporter, line: EventFd) -> Self {
        Self { reporter, line, events: AtomicU8::new(0) }
    }

    /// Presses the power button.
    pub fn press_button(&self) {
        self.events.fetch_or(layout::EVENT_POWER_BUTTON, Ordering::SeqCst);
        // A full counter means that the interrupt is on its way.
        self.line.write(1).ok();
    }
}

/// The registers' offsets in their range.
const CONTROL: u64 = 0;
const RESET: u64 = (layout::RESET_PORT - layout::SLEEP_CONTROL_PORT) as u64;
const EVENT: u64 = (layout::EVENT_PORT - layout::SLEEP_CONTROL_PORT) as u64;
/// How many ports the registers take.
pub const PORTS: u64 = EVENT + 1;

impl BusDevice for Power {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (EVENT, [events]) = (offset, data) {
            *events = self.events.swap(0, Ordering::SeqCst);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (CONTROL, &[value]) if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == layout::SLEEP_TYPE_S5 => {
                self.reporter.report(Report::PowerOff);
            }
            (RESET, &[layout::RESET_VALUE]) => self.reporter.report(Report::Reset),
            _ => {}
        }
    }
}

/// The keyboard controller's command port, of which only the reset line exists.
#[derive(Debug)]
pub struct KeyboardController(pub Reporter);

impl BusDevice for KeyboardController {
    /// Both of its buffers are empty.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [I8042_RESET] {
            self.0.report(Report::Reset);
        }
    }
}

/// The reset control register, of which nothing is kept: each way to reset is the same.
#[derive(Debug)]
pub struct ResetControl(pub Reporter);

impl BusDevice for ResetControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if matches!(data, [value] if value & RESET_CPU != 0) {
            self.0.report(Report::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report;

    #[test]
    fn only_the_right_writes_are_reported() {
        let (reporter, reports) = report::pair().unwrap();
        let power = Power::new(reporter.try_clone().unwrap(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
        for (offset, value) in [(0, !SLEEP_ENABLE), (0, SLEEP_ENABLE), (1, 0xff), (2, 0), (2, 2), (3, 1)] {
            power.write(offset, &[value]);
            assert_eq!(reports.first(), None, "{offset} {value:#x}");
        }
        power.write(0, &[5 << 2 | SLEEP_ENABLE]);
        assert_eq!(reports.first(), Some(Report::PowerOff));
        power.write(2, &[1]);
        assert_eq!(reports.first(), Some(Report::Reset));
        let keyboard = KeyboardController(reporter);
        keyboard.write(0, &[0xd1]);
        assert_eq!(reports.first(), None);
        keyboard.write(0, &[0xfe]);
        assert_eq!(reports.first(), Some(Report::Reset));
        let control = ResetControl(keyboard.0);
        for (data, report) in
            [(&[2][..], None), (&[6], Some(Report::Reset)), (&[0xe], Some(Report::Reset)), (&[6, 0], None)]
        {
            control.write(0, data);
            assert_eq!(reports.first(), report, "{data:?}");
        }
    }

    #[test]
    fn a_pressed_button_is_read_once() {
        let (reporter, _reports) = report::pair().unwrap();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let power = Power::new(reporter, line.try_clone().unwrap());
        power.press_button();
        assert_eq!(line.read().unwrap(), 1);
        let mut event = [0];
        power.read(3, &mut event);
        assert_eq!(event, [layout::EVENT_POWER_BUTTON]);
        power.read(3, &mut event);
        assert_eq!(event, [0]);
    }
}
