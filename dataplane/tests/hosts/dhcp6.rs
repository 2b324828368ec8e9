//! A DHCPv6 client inside a machine, on dhcproto's messages: what our server says is read by somebody else's codec, after the kernel has checked
//! the datagram.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use basalt_tests::netns::Namespace;
use dhcproto::v6::{DhcpOption, IANA, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};

const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 8;

/// Solicits, requests, and gives the addresses and name servers that came of it.
pub fn lease(machine: &Namespace, interface: &str) -> Result<(Vec<Ipv6Addr>, Vec<Ipv6Addr>)> {
    let index = machine.run(&["cat", &format!("/sys/class/net/{interface}/ifindex")])?;
    let scope: u32 = index.trim().parse().context("index of the interface")?;
    let socket = machine.enter(|| UdpSocket::bind(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 546, 0, scope)))??;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let offer = exchange(&socket, scope, &message(MessageType::Solicit, &[]), MessageType::Advertise)?;
    let server = offer.opts().get(OptionCode::ServerId).context("an offer without a server")?.clone();
    let reply = exchange(&socket, scope, &message(MessageType::Request, &[server]), MessageType::Reply)?;
    let Some(DhcpOption::IANA(association)) = reply.opts().get(OptionCode::IANA) else {
        bail!("no association: {reply:?}")
    };
    let granted = association.opts.iter().filter_map(|option| match option {
        DhcpOption::IAAddr(entry) if entry.valid_life > 0 => Some(entry.addr),
        _ => None,
    });
    let servers = match reply.opts().get(OptionCode::DomainNameServers) {
        Some(DhcpOption::DomainNameServers(servers)) => servers.clone(),
        _ => Vec::new(),
    };
    Ok((granted.collect(), servers))
}

/// Solicits as fast as it can, many times more than anybody is answered, and counts the answers: questions, and answers.
pub fn flood(machine: &Namespace, interface: &str) -> Result<(usize, usize)> {
    const QUESTIONS: usize = 400;
    let index = machine.run(&["cat", &format!("/sys/class/net/{interface}/ifindex")])?;
    let scope: u32 = index.trim().parse().context("index of the interface")?;
    let socket = machine.enter(|| UdpSocket::bind(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 546, 0, scope)))??;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut octets = Vec::new();
    message(MessageType::Solicit, &[]).encode(&mut Encoder::new(&mut octets))?;
    for _ in 0..QUESTIONS {
        socket.send_to(&octets, SocketAddrV6::new(SERVERS, 547, 0, scope))?;
    }
    let mut buffer = [0; 1500];
    let mut answers = 0;
    while socket.recv_from(&mut buffer).is_ok() {
        answers += 1;
    }
    Ok((QUESTIONS, answers))
}

fn message(kind: MessageType, more: &[DhcpOption]) -> Message {
    let mut message = Message::new_with_id(kind, [1, 2, 3]);
    message.opts_mut().insert(DhcpOption::ClientId(vec![0, 3, 0, 1, 2, 2, 0, 0, 0, 1]));
    message.opts_mut().insert(DhcpOption::IANA(IANA {
        id: 7,
        t1: 0,
        t2: 0,
        opts: dhcproto::v6::DhcpOptions::default(),
    }));
    for option in more {
        message.opts_mut().insert(option.clone());
    }
    message
}

fn exchange(socket: &UdpSocket, scope: u32, message: &Message, want: MessageType) -> Result<Message> {
    let mut octets = Vec::new();
    message.encode(&mut Encoder::new(&mut octets))?;
    let mut buffer = [0; 1500];
    for _ in 0..ATTEMPTS {
        socket.send_to(&octets, SocketAddrV6::new(SERVERS, 547, 0, scope))?;
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let reply = Message::decode(&mut Decoder::new(&buffer[..length]))?;
        if reply.msg_type() == want && reply.xid() == message.xid() && from.port() == 547 {
            return Ok(reply);
        }
    }
    bail!("no {want:?} in {ATTEMPTS} attempts")
}
