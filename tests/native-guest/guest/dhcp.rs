//! A DHCP client (RFC 2131 §4.4) that gets as far as an address: discover, offer, request, acknowledge.

use crate::net::{Interface, checksum};

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACKNOWLEDGE: u8 = 5;
const TRANSACTION: [u8; 4] = *b"nat1";
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Times that each message is sent.
const TRIES: u32 = 5;
/// How long an answer is waited for: about two seconds.
const PATIENCE_TICKS: u64 = 6_000_000_000;
/// Bytes before the DHCP message: Ethernet, IPv4, UDP.
const BEFORE: usize = 42;
/// Bytes before the options.
const FIXED: usize = 240;
/// Bytes of a message that this client sends.
const LENGTH: usize = BEFORE + FIXED + 60;

/// Asks for an address and returns it.
pub fn ask(interface: &mut Interface) -> Result<[u8; 4], &'static str> {
    let (offered, server) = exchange(interface, DISCOVER, OFFER, None)?;
    let (address, _) = exchange(interface, REQUEST, ACKNOWLEDGE, Some((offered, server)))?;
    if address == offered { Ok(address) } else { Err("the server acknowledged another address than it offered") }
}

/// Sends a message of type `say` until one of type `want` comes; returns its address and its server.
fn exchange(
    interface: &mut Interface,
    say: u8,
    want: u8,
    chosen: Option<([u8; 4], [u8; 4])>,
) -> Result<([u8; 4], [u8; 4]), &'static str> {
    let message = message(interface.mac, say, chosen);
    let mut frame = [0; 2048];
    for _ in 0..TRIES {
        interface.send(&message)?;
        while let Some(length) = interface.take(&mut frame, PATIENCE_TICKS) {
            if let Some(answer) = read(&frame[..length], interface.mac, want) {
                return Ok(answer);
            }
        }
    }
    Err("no DHCP server answers")
}

fn message(mac: [u8; 6], kind: u8, chosen: Option<([u8; 4], [u8; 4])>) -> [u8; LENGTH] {
    let mut frame = [0; LENGTH];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&((LENGTH - 14) as u16).to_be_bytes());
    frame[22..24].copy_from_slice(&[64, 17]);
    frame[30..34].fill(0xff);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[34..38].copy_from_slice(&[0, 68, 0, 67]);
    frame[38..40].copy_from_slice(&((LENGTH - 34) as u16).to_be_bytes());
    // A UDP checksum of zero: none (RFC 768).
    let dhcp = &mut frame[BEFORE..];
    dhcp[..3].copy_from_slice(&[1, 1, 6]);
    dhcp[4..8].copy_from_slice(&TRANSACTION);
    // The broadcast flag: this client has no address to be reached at yet.
    dhcp[10] = 0x80;
    dhcp[28..34].copy_from_slice(&mac);
    dhcp[236..240].copy_from_slice(&COOKIE);
    let options = &mut dhcp[FIXED..];
    options[..3].copy_from_slice(&[53, 1, kind]);
    let mut at = 3;
    if let Some((address, server)) = chosen {
        for (code, value) in [(50, address), (54, server)] {
            options[at..at + 2].copy_from_slice(&[code, 4]);
            options[at + 2..at + 6].copy_from_slice(&value);
            at += 6;
        }
    }
    options[at] = 255;
    frame
}

fn read(frame: &[u8], mac: [u8; 6], want: u8) -> Option<([u8; 4], [u8; 4])> {
    if frame.len() < BEFORE + FIXED || frame[12..14] != [8, 0] || frame[23] != 17 || frame[34..38] != [0, 67, 0, 68] {
        return None;
    }
    let dhcp = &frame[BEFORE..];
    if dhcp[0] != 2 || dhcp[4..8] != TRANSACTION || dhcp[28..34] != mac || dhcp[236..240] != COOKIE {
        return None;
    }
    let address = [dhcp[16], dhcp[17], dhcp[18], dhcp[19]];
    let kind = option(dhcp, 53)?;
    let server = option(dhcp, 54)?;
    (kind.first() == Some(&want) && server.len() == 4).then(|| (address, [server[0], server[1], server[2], server[3]]))
}

fn option(dhcp: &[u8], code: u8) -> Option<&[u8]> {
    let mut at = FIXED;
    while at + 1 < dhcp.len() && dhcp[at] != 255 {
        if dhcp[at] == 0 {
            at += 1;
            continue;
        }
        let end = at + 2 + usize::from(dhcp[at + 1]);
        if dhcp[at] == code {
            return dhcp.get(at + 2..end);
        }
        at = end;
    }
    None
}
