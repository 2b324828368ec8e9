//! DHCPv6 messages: what a client's one says, read without trust, and the options of a reply, written.
//!
//! Reads what decides the answer and skips the rest. Relayed messages are refused: clients stand on our own taps.
//! Invariant: whatever the octets, reading ends with a value or an error, and what is read is no longer than the frame.
//! Source: RFC 8415 §8 (layout), §21.2 to §21.6, §21.13, §21.14 (options).

use std::net::Ipv6Addr;

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) kind: Kind,
    pub(super) transaction: [u8; 3],
    pub(super) client: Option<&'a [u8]>,
    pub(super) server: Option<&'a [u8]>,
    pub(super) rapid: bool,
    pub(super) associations: Vec<Association>,
}

/// Message types that clients send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Solicit,
    Request,
    Confirm,
    Renew,
    Rebind,
    Release,
    Decline,
    Inform,
}

/// An identity association for addresses, with those that the client names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Association {
    pub(super) id: [u8; 4],
    pub(super) addresses: Vec<Ipv6Addr>,
}

/// Why octets are no message of a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// A part is shorter than its form.
    #[error("it ends inside of {0}")]
    Short(&'static str),
    /// A message that no client sends.
    #[error("its type is {0}, which no client sends")]
    Kind(u8),
    /// A client's identifier longer than any (RFC 8415 §11.1).
    #[error("its client identifier has {0} octets, want 1 to {CLIENT_ID_MAX}")]
    ClientId(usize),
    /// More associations or addresses than a client has reason for.
    #[error("it asks for more than {ASKED_MAX} {0}")]
    Many(&'static str),
}

/// Octets of a client's identifier (RFC 8415 §11.1: two of type, up to 128 more).
const CLIENT_ID_MAX: usize = 130;
/// Associations in a message, and addresses in each, that are read.
const ASKED_MAX: usize = 16;

const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const ASSOCIATION: u16 = 3;
const ADDRESS: u16 = 5;
const STATUS: u16 = 13;
const RAPID_COMMIT: u16 = 14;
const NAME_SERVERS: u16 = 23;
const SEARCH: u16 = 24;
const NTP: u16 = 56;
/// The suboption of a time server's address (RFC 5908 §4.1).
const NTP_ADDRESS: u16 = 1;

/// The next option and what follows it.
fn option(octets: &[u8]) -> Result<(u16, &[u8], &[u8]), MessageError> {
    let ([a, b, c, d], rest) = octets.split_first_chunk::<4>().ok_or(MessageError::Short("an option's head"))?;
    let length = usize::from(u16::from_be_bytes([*c, *d]));
    let (value, rest) = rest.split_at_checked(length).ok_or(MessageError::Short("an option"))?;
    Ok((u16::from_be_bytes([*a, *b]), value, rest))
}

impl<'a> Message<'a> {
    pub(super) fn parse(octets: &'a [u8]) -> Result<Self, MessageError> {
        let ([kind, a, b, c], mut options) = octets.split_first_chunk::<4>().ok_or(MessageError::Short("the head"))?;
        let kind = match kind {
            1 => Kind::Solicit,
            3 => Kind::Request,
            4 => Kind::Confirm,
            5 => Kind::Renew,
            6 => Kind::Rebind,
            8 => Kind::Release,
            9 => Kind::Decline,
            11 => Kind::Inform,
            other => return Err(MessageError::Kind(*other)),
        };
        let mut message = Self {
            kind,
            transaction: [*a, *b, *c],
            client: None,
            server: None,
            rapid: false,
            associations: Vec::new(),
        };
        while !options.is_empty() {
            let (code, value, rest) = option(options)?;
            match code {
                CLIENT_ID if (1..=CLIENT_ID_MAX).contains(&value.len()) => message.client = Some(value),
                CLIENT_ID => return Err(MessageError::ClientId(value.len())),
                SERVER_ID => message.server = Some(value),
                RAPID_COMMIT => message.rapid = true,
                ASSOCIATION if message.associations.len() == ASKED_MAX => {
                    return Err(MessageError::Many("associations"));
                }
                ASSOCIATION => message.associations.push(Association::parse(value)?),
                _ => {}
            }
            options = rest;
        }
        Ok(message)
    }
}

impl Association {
    fn parse(octets: &[u8]) -> Result<Self, MessageError> {
        let (head, mut options) = octets.split_first_chunk::<12>().ok_or(MessageError::Short("an association"))?;
        let [a, b, c, d, ..] = *head;
        let mut association = Self { id: [a, b, c, d], addresses: Vec::new() };
        while !options.is_empty() {
            let (code, value, rest) = option(options)?;
            if code == ADDRESS {
                let (address, _) = value.split_first_chunk::<16>().ok_or(MessageError::Short("an address"))?;
                if association.addresses.len() == ASKED_MAX {
                    return Err(MessageError::Many("addresses"));
                }
                association.addresses.push(Ipv6Addr::from(*address));
            }
            options = rest;
        }
        Ok(association)
    }
}

/// A reply as it is written.
#[derive(Debug)]
pub(super) struct Options {
    octets: Vec<u8>,
}

impl Options {
    pub(super) fn new(kind: u8, transaction: [u8; 3]) -> Self {
        let [a, b, c] = transaction;
        Self { octets: vec![kind, a, b, c] }
    }

    /// Writes an option. What does not fit into its length is left out: no option of ours comes near that.
    fn put(octets: &mut Vec<u8>, code: u16, value: &[u8]) {
        if let Ok(length) = u16::try_from(value.len()) {
            octets.extend(code.to_be_bytes());
            octets.extend(length.to_be_bytes());
            octets.extend(value);
        }
    }

    pub(super) fn client_id(&mut self, id: &[u8]) {
        Self::put(&mut self.octets, CLIENT_ID, id);
    }

    pub(super) fn server_id(&mut self, id: &[u8]) {
        Self::put(&mut self.octets, SERVER_ID, id);
    }

    pub(super) fn rapid_commit(&mut self) {
        Self::put(&mut self.octets, RAPID_COMMIT, &[]);
    }

    pub(super) fn status(&mut self, code: u16) {
        Self::put(&mut self.octets, STATUS, &code.to_be_bytes());
    }

    /// An association with its addresses and how long each is good for, the times of renewal and rebinding, and a status where it is no success.
    pub(super) fn association(
        &mut self,
        id: [u8; 4],
        addresses: &[(Ipv6Addr, u32)],
        (renew, rebind): (u32, u32),
        status: Option<u16>,
    ) {
        let mut value = id.to_vec();
        value.extend(renew.to_be_bytes());
        value.extend(rebind.to_be_bytes());
        for (address, seconds) in addresses {
            let mut entry = address.octets().to_vec();
            entry.extend(seconds.to_be_bytes());
            entry.extend(seconds.to_be_bytes());
            Self::put(&mut value, ADDRESS, &entry);
        }
        if let Some(code) = status {
            Self::put(&mut value, STATUS, &code.to_be_bytes());
        }
        Self::put(&mut self.octets, ASSOCIATION, &value);
    }

    pub(super) fn name_servers(&mut self, servers: &[Ipv6Addr]) {
        if !servers.is_empty() {
            let value: Vec<u8> = servers.iter().flat_map(Ipv6Addr::octets).collect();
            Self::put(&mut self.octets, NAME_SERVERS, &value);
        }
    }

    /// Domains that short names are looked up in, as DNS messages carry them.
    pub(super) fn search(&mut self, names: &[u8]) {
        if !names.is_empty() {
            Self::put(&mut self.octets, SEARCH, names);
        }
    }

    pub(super) fn time_servers(&mut self, servers: impl Iterator<Item = Ipv6Addr>) {
        let mut value = Vec::new();
        servers.for_each(|server| Self::put(&mut value, NTP_ADDRESS, &server.octets()));
        if !value.is_empty() {
            Self::put(&mut self.octets, NTP, &value);
        }
    }

    pub(super) fn into_octets(self) -> Vec<u8> {
        self.octets
    }
}
