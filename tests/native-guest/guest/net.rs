//! The network device (virtio 1.2 §5.1): answers ARP (RFC 826) and ICMP echo (RFC 792), for a given address or one from DHCP.

use crate::machine::{dma, read, ticks};
use crate::pci::Function;
use crate::virtio::Device;
use crate::virtqueue::{Piece, Queue};
use crate::{Outcome, dhcp, println};

/// Feature: the device has a MAC address.
const FEATURE_MAC: u64 = 1 << 5;
/// The header before each packet; with version 1 it always has the number of buffers (§5.1.6).
const HEADER: usize = 12;
const FRAME_MAX: usize = 2048;
/// Receive buffers under way.
const RECEIVE_BUFFERS: usize = 32;
/// How long no packet may come in before the guest gives up: about 20 seconds.
const PATIENCE_TICKS: u64 = 60_000_000_000;

/// A started network device.
pub struct Interface {
    receive: Queue,
    transmit: Queue,
    /// Its MAC address.
    pub mac: [u8; 6],
    buffers: [&'static mut [u8]; RECEIVE_BUFFERS],
    heads: [usize; Queue::SIZE as usize],
    frame: &'static mut [u8],
}

/// Runs `ADDRESS:ECHOES` or `dhcp:ECHOES`.
pub fn run(function: Function, value: &str) -> Outcome {
    let (address, echoes) = value.split_once(':').ok_or("want ADDRESS:ECHOES")?;
    let echoes = echoes.parse::<u64>().map_err(|_| "want a number of echoes")?;
    let mut interface = Interface::start(&Device::open(function)?)?;
    let address = match address {
        "dhcp" => dhcp::ask(&mut interface)?,
        text => parse(text)?,
    };
    println!("net {}.{}.{}.{} is up", address[0], address[1], address[2], address[3]);
    interface.answer(address, echoes)
}

fn parse(text: &str) -> Result<[u8; 4], &'static str> {
    let mut address = [0; 4];
    let mut parts = text.split('.');
    for byte in &mut address {
        *byte = parts.next().and_then(|part| part.parse().ok()).ok_or("want an IPv4 address")?;
    }
    Ok(address)
}

impl Interface {
    fn start(device: &Device) -> Result<Self, &'static str> {
        if device.negotiate(FEATURE_MAC)? & FEATURE_MAC == 0 {
            return Err("the device has no MAC address");
        }
        let (receive, transmit) = (device.queue(0)?, device.queue(1)?);
        let mac = core::array::from_fn(|at| read::<u8>(device.config + at as u64));
        device.start();
        let buffers = core::array::from_fn(|_| dma(FRAME_MAX));
        let mut interface =
            Self { receive, transmit, mac, buffers, heads: [0; Queue::SIZE as usize], frame: dma(FRAME_MAX) };
        (0..RECEIVE_BUFFERS).for_each(|buffer| interface.provide(buffer));
        Ok(interface)
    }

    fn provide(&mut self, buffer: usize) {
        let head = self.receive.submit(&[Piece::output(self.buffers[buffer])]);
        self.heads[usize::from(head)] = buffer;
    }

    /// Sends one frame and waits until the device took it.
    pub fn send(&mut self, frame: &[u8]) -> Outcome {
        let room = self.frame.get_mut(HEADER..HEADER + frame.len()).ok_or("the frame is too long")?;
        room.copy_from_slice(frame);
        self.frame[..HEADER].fill(0);
        self.transmit.submit(&[Piece::input(&self.frame[..HEADER + frame.len()])]);
        self.transmit.wait().map(drop)
    }

    /// Takes the next frame into `frame`, waiting at most `patience` ticks; returns its length.
    pub fn take(&mut self, frame: &mut [u8; FRAME_MAX], patience: u64) -> Option<usize> {
        let start = ticks();
        while ticks() - start < patience {
            let Some((head, written)) = self.receive.poll() else {
                core::hint::spin_loop();
                continue;
            };
            let buffer = self.heads[usize::from(head % Queue::SIZE)];
            let length = (written as usize).clamp(HEADER, FRAME_MAX) - HEADER;
            frame[..length].copy_from_slice(&self.buffers[buffer][HEADER..HEADER + length]);
            self.provide(buffer);
            return Some(length);
        }
        None
    }

    /// Answers until `echoes` echo requests have been answered.
    fn answer(&mut self, address: [u8; 4], echoes: u64) -> Outcome {
        let mut frame = [0; FRAME_MAX];
        let mut answered = 0;
        while answered < echoes {
            let length = self.take(&mut frame, PATIENCE_TICKS).ok_or("no packet came in")?;
            let frame = &mut frame[..length];
            if is_arp_request_for(frame, address) {
                self.answer_arp(frame, address)?;
            } else if is_echo_request_for(frame, address) {
                self.answer_echo(frame)?;
                answered += 1;
            }
        }
        println!("net {answered} echoes answered");
        Ok(())
    }

    fn answer_arp(&mut self, frame: &mut [u8], address: [u8; 4]) -> Outcome {
        let mac = self.mac;
        frame.copy_within(22..32, 32);
        frame[22..28].copy_from_slice(&mac);
        frame[28..32].copy_from_slice(&address);
        frame[21] = 2;
        frame.copy_within(32..38, 0);
        frame[6..12].copy_from_slice(&mac);
        self.send(frame)
    }

    fn answer_echo(&mut self, frame: &mut [u8]) -> Outcome {
        let mac = self.mac;
        frame.copy_within(6..12, 0);
        frame[6..12].copy_from_slice(&mac);
        let addresses: [u8; 8] = core::array::from_fn(|at| frame[26 + at]);
        frame[26..30].copy_from_slice(&addresses[4..]);
        frame[30..34].copy_from_slice(&addresses[..4]);
        let icmp = 14 + usize::from(frame[14] & 0xf) * 4;
        let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        frame[icmp] = 0;
        frame[icmp + 2..icmp + 4].fill(0);
        let sum = checksum(&frame[icmp..end]);
        frame[icmp + 2..icmp + 4].copy_from_slice(&sum.to_be_bytes());
        self.send(frame)
    }
}

fn is_arp_request_for(frame: &[u8], address: [u8; 4]) -> bool {
    frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 1] && frame[38..42] == address
}

fn is_echo_request_for(frame: &[u8], address: [u8; 4]) -> bool {
    if frame.len() < 42 || frame[12..14] != [8, 0] || frame[23] != 1 || frame[30..34] != address {
        return false;
    }
    let icmp = 14 + usize::from(frame[14] & 0xf) * 4;
    let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    icmp + 8 <= end && end <= frame.len() && frame[icmp] == 8
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = bytes
        .chunks(2)
        .fold(0u32, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
