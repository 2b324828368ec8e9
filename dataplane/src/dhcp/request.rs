//! What a DHCPv4 client asks: the header fields and the three options that decide the answer.
//!
//! Read here and not by dhcproto, whose decoder panics on some malformed options (0.15: an option cut short in its middle); its encoder builds the
//! replies. Reads what it needs and skips the rest; never copies guest octets anywhere.
//! Source: RFC 2131 §2 (layout), RFC 2132 §2 and §9 (options).

use std::net::Ipv4Addr;

use model::Mac;

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) transaction: u32,
    pub(super) broadcast: bool,
    /// The address it has and uses; unspecified when it has none.
    pub(super) client: Ipv4Addr,
    /// The relay that it came through; unspecified when it came straight.
    pub(super) relay: Ipv4Addr,
    pub(super) mac: Mac,
    pub(super) kind: Kind,
    /// Option 50.
    pub(super) requested: Option<Ipv4Addr>,
    /// Option 54.
    pub(super) server: Option<Ipv4Addr>,
}

/// Message types that clients send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Discover,
    Request,
    Inform,
    /// DECLINE, RELEASE and everything newer: nothing that wants an answer.
    Other,
}

/// Why octets are no DHCP request of an Ethernet client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Shorter than the fixed part, or an option is.
    #[error("it ends inside of {0}")]
    Short(&'static str),
    /// A fixed field has a value that no request has.
    #[error("its {field} is {value:#x}, want {want:#x}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u32,
        /// What a request holds.
        want: u32,
    },
    /// No message type: BOOTP, which is not served.
    #[error("it has no message type")]
    NoKind,
}

/// Octets up to the options: the fixed fields, server name, file name, magic.
const FIXED_LEN: usize = 240;
const BOOT_REQUEST: u8 = 1;
const ETHERNET: u8 = 1;
const ETHERNET_LEN: u8 = 6;
const MAGIC: u32 = 0x6382_5363;
const BROADCAST_FLAG: u8 = 0x80;

const PAD: u8 = 0;
const END: u8 = 255;
const REQUESTED_ADDRESS: u8 = 50;
const MESSAGE_TYPE: u8 = 53;
const SERVER_IDENTIFIER: u8 = 54;

impl Request {
    pub(super) fn parse(octets: &[u8]) -> Result<Self, RequestError> {
        let (fixed, options) = octets.split_first_chunk::<FIXED_LEN>().ok_or(RequestError::Short("the fixed part"))?;
        let word = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        for (field, value, want) in [
            ("operation", u32::from(fixed[0]), u32::from(BOOT_REQUEST)),
            ("hardware type", fixed[1].into(), ETHERNET.into()),
            ("hardware address length", fixed[2].into(), ETHERNET_LEN.into()),
            ("magic cookie", word(236), MAGIC),
        ] {
            if value != want {
                return Err(RequestError::Field { field, value, want });
            }
        }
        let mut request = Self {
            transaction: word(4),
            broadcast: fixed[10] & BROADCAST_FLAG != 0,
            client: Ipv4Addr::from_bits(word(12)),
            relay: Ipv4Addr::from_bits(word(24)),
            mac: Mac::new([fixed[28], fixed[29], fixed[30], fixed[31], fixed[32], fixed[33]]),
            kind: Kind::Other,
            requested: None,
            server: None,
        };
        request.read_options(options)?;
        Ok(request)
    }

    fn read_options(&mut self, mut options: &[u8]) -> Result<(), RequestError> {
        let mut kind = None;
        loop {
            let (code, rest) = match options {
                [] | [END, ..] => break,
                [PAD, rest @ ..] => {
                    options = rest;
                    continue;
                }
                [code, rest @ ..] => (*code, rest),
            };
            let (length, rest) = rest.split_first().ok_or(RequestError::Short("an option's length"))?;
            let (value, rest) = rest.split_at_checked(usize::from(*length)).ok_or(RequestError::Short("an option"))?;
            let address = || <[u8; 4]>::try_from(value).map(Ipv4Addr::from).ok();
            match code {
                MESSAGE_TYPE => kind = value.first().copied(),
                REQUESTED_ADDRESS => self.requested = address(),
                SERVER_IDENTIFIER => self.server = address(),
                _ => {}
            }
            options = rest;
        }
        self.kind = match kind.ok_or(RequestError::NoKind)? {
            1 => Kind::Discover,
            3 => Kind::Request,
            8 => Kind::Inform,
            _ => Kind::Other,
        };
        Ok(())
    }
}
