//! The tables of the pipeline: numbers, names, what each is for, and what it means when no flow of it matches.
//!
//! Owns the layout and nothing that stands in the tables. Code, golden files, `trace` and `flowctl` read it from here.
//! Invariant: numbers grow along every path, so that `goto_table` is always legal; a gap is room for a feature to come.
//! A packet crosses the connection tracker at most once, in [`Table::Track`], after its destination is known. What leaves by a floating IP begins
//! again at [`Table::Forward`], by `resubmit`, as a frame of the network outside: only there is it tracked again, if its destination is here. On the
//! gateway of its router, what leaves by the router's own address crosses it once more to be translated, out of [`Table::Output`] and, coming back,
//! out of [`Table::Forward`]; both go on in [`Table::Nat`], where the first packet to a forwarded port is tracked again. What a load balancer shares out
//! crosses it once more, too, on the client's host: on its way there before it is routed on or tracked, on its way back out of [`Table::Output`]; both go
//! on in [`Table::Balance`]. What crosses the border of a router with a firewall crosses it once more, with its address behind the router, before it leaves
//! out of [`Table::Output`] or once it has come in; both go on in [`Table::Firewall`].
//! [`Table::Limit`] is on no path: a port with two limits in one direction has it asked for the second one, out of [`Table::Classify`] or
//! [`Table::Output`], and the packet goes on where it was.
//!
//! ```text
//! classify -> guard (IPv6) -> neighbour -> ask ---\--> punt
//!        |--> arrive (by tunnel) --\
//!        \--> identity (from outside) --> arp ------> forward -> route -> host -> track
//!                                          |            |          \--> reply (the router answers)
//!                                          \--> reply   |--> service
//!                                            forward -> route -> beyond -> track
//! track -> state -> egress -> ingress -> commit -> output
//!     |                  \---------\-> deny
//!     \-> output (nothing to police), from a floating IP or to one here: again from forward
//! output (leaving by the router's address) -> nat: again from forward        forward (back from there) -> nat -> route
//! output (leaving) -> firewall -> border: again in output       forward, nat (coming in) -> firewall -> border -> track, or from route again
//! forward, host (to a load balancer) -> balance -> member -> track, or from route again       output (from a member) -> balance -> output
//! balance (a listener with a limit) -> open, and balance again
//! ```

use crate::feature::Feature;

/// One table of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Which port or network a packet is from, and whether it may say so.
    Classify,
    /// What a guarded port may say in IPv6's own messages.
    Guard,
    /// Which network a packet from another host is on, or which port it is a copy for.
    Arrive,
    /// Which groups a sender outside of this host is in.
    Identity,
    /// Answers to ARP requests.
    Arp,
    /// Who is asked for by neighbour solicitations.
    Neighbour,
    /// What is a question to the agent.
    Ask,
    /// Handing it over.
    Punt,
    /// The destination on the packet's own network.
    Forward,
    /// What was translated to the address of a router or back.
    Nat,
    /// The subnet to route to.
    Route,
    /// The station outside that is next.
    Beyond,
    /// The neighbour on that subnet.
    Host,
    /// Questions to the services of this host.
    Service,
    /// What is of a balanced connection, and who gets a new one.
    Balance,
    /// The member of a load balancer that a packet is for.
    Member,
    /// What a router's firewall says of what crosses its border.
    Firewall,
    /// Remembering what it allows, and on.
    Border,
    /// The one pass through the connection tracker.
    Track,
    /// What the connection tracker said.
    State,
    /// Rules of the sender.
    Egress,
    /// Rules of the receiver.
    Ingress,
    /// Remembering an allowed connection.
    Commit,
    /// Refusing, and forgetting what was allowed before.
    Deny,
    /// Delivery to a port, to another host or to all of them, or to a physical network.
    Output,
    /// Answers, back to who asked.
    Reply,
    /// The second limit in one direction of a port that has two; a packet comes back from here to where it was.
    Limit,
    /// The open connections of listeners with a limit: only looked up, by `resubmit`.
    Open,
    /// The version of the pipeline; no packet comes here.
    Canary,
}

/// What is known of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableInfo {
    /// The table.
    pub table: Table,
    /// Its number on the wire.
    pub number: u8,
    /// Its name in dumps and traces.
    pub name: &'static str,
    /// The feature that owns it.
    pub feature: Feature,
    /// What it does, in a line.
    pub doc: &'static str,
    /// Why a packet that no flow of it matches is dropped, in the users' words.
    pub miss: &'static str,
}

/// All tables, in the order of their numbers.
pub const TABLES: &[TableInfo] = &[
    TableInfo {
        table: Table::Classify,
        number: 0,
        name: "classify",
        feature: Feature::Classify,
        doc: "names the source port and network, and drops what is spoofed",
        miss: "the sender may not use this source address, or its port or network is not known here",
    },
    TableInfo {
        table: Table::Guard,
        number: 1,
        name: "guard",
        feature: Feature::Neighbour,
        doc: "holds neighbour discovery of guarded ports to their own addresses",
        miss: "it is no neighbour message",
    },
    TableInfo {
        table: Table::Arrive,
        number: 2,
        name: "arrive",
        feature: Feature::Tunnel,
        doc: "names the network of a packet that came by tunnel, hands a mirror's copy to its port",
        miss: "its network is not known here",
    },
    TableInfo {
        table: Table::Identity,
        number: 3,
        name: "identity",
        feature: Feature::Identity,
        doc: "names the groups of a sender that came from outside, from its address",
        miss: "no path for packets from outside is installed",
    },
    TableInfo {
        table: Table::Arp,
        number: 4,
        name: "arp",
        feature: Feature::Arp,
        doc: "answers ARP requests for every known port and router",
        miss: "no path for ARP is installed",
    },
    TableInfo {
        table: Table::Neighbour,
        number: 5,
        name: "neighbour",
        feature: Feature::Neighbour,
        doc: "knows every port and router that a neighbour solicitation asks for",
        miss: "nobody known is asked for",
    },
    TableInfo {
        table: Table::Ask,
        number: 6,
        name: "ask",
        feature: Feature::Dhcp,
        doc: "knows what else the agent answers: router solicitations and DHCPv6",
        miss: "no question to the agent",
    },
    TableInfo {
        table: Table::Punt,
        number: 7,
        name: "punt",
        feature: Feature::Dhcp,
        doc: "hands questions to the agent, with the port that asks",
        miss: "the agent answers no such question of this port",
    },
    TableInfo {
        table: Table::Forward,
        number: 10,
        name: "forward",
        feature: Feature::Forward,
        doc: "finds the destination port on the packet's network, floods broadcasts, hands routed packets on",
        miss: "no port of the network has this destination MAC address",
    },
    TableInfo {
        table: Table::Nat,
        number: 11,
        name: "nat",
        feature: Feature::Snat,
        doc: "takes on what the connection tracker translated: out as the router's address outside, and answers back to their port",
        miss: "no router translates addresses here",
    },
    TableInfo {
        table: Table::Route,
        number: 12,
        name: "route",
        feature: Feature::Router,
        doc: "finds the subnet of the destination among the router's, answers pings to the router",
        miss: "the router has no route to this destination",
    },
    TableInfo {
        table: Table::Beyond,
        number: 13,
        name: "beyond",
        feature: Feature::Floating,
        doc: "finds the station of an external subnet that has the destination address",
        miss: "no floating IP of the external subnet is on this host",
    },
    TableInfo {
        table: Table::Host,
        number: 14,
        name: "host",
        feature: Feature::Router,
        doc: "finds the port that has the destination address",
        miss: "no port on the destination subnet has this address",
    },
    TableInfo {
        table: Table::Service,
        number: 15,
        name: "service",
        feature: Feature::Service,
        doc: "hands requests for metadata and questions for names to the agent, with the port that asks",
        miss: "only ports of this host are served here",
    },
    TableInfo {
        table: Table::Balance,
        number: 16,
        name: "balance",
        feature: Feature::Balancer,
        doc: "knows the packets of balanced connections, and gives new ones to a member",
        miss: "no load balancer here has sent it this way",
    },
    TableInfo {
        table: Table::Member,
        number: 17,
        name: "member",
        feature: Feature::Balancer,
        doc: "finds the member that a balanced connection is with",
        miss: "no load balancer here has this member",
    },
    TableInfo {
        table: Table::Firewall,
        number: 18,
        name: "firewall",
        feature: Feature::Firewall,
        doc: "passes replies over the border of a router, has its firewall judge the rest, in order",
        miss: "no firewall here has asked for it",
    },
    TableInfo {
        table: Table::Border,
        number: 19,
        name: "border",
        feature: Feature::Firewall,
        doc: "remembers a connection that a firewall allowed, so that its replies pass, and sends it on its way",
        miss: "no firewall here has allowed it",
    },
    TableInfo {
        table: Table::Track,
        number: 20,
        name: "track",
        feature: Feature::Security,
        doc: "sends packets of guarded ports through the connection tracker, in their network's zone",
        miss: "no path past the connection tracker is installed",
    },
    TableInfo {
        table: Table::State,
        number: 21,
        name: "state",
        feature: Feature::Security,
        doc: "passes replies, drops invalid packets, has the rules judge the rest",
        miss: "the packet was not tracked",
    },
    TableInfo {
        table: Table::Egress,
        number: 22,
        name: "egress",
        feature: Feature::Security,
        doc: "asks the rules of the sender's groups",
        miss: "no rule of the sender's security groups lets this out",
    },
    TableInfo {
        table: Table::Ingress,
        number: 23,
        name: "ingress",
        feature: Feature::Security,
        doc: "asks the rules of the receiver's groups",
        miss: "no rule of the receiver's security groups lets this in",
    },
    TableInfo {
        table: Table::Commit,
        number: 24,
        name: "commit",
        feature: Feature::Security,
        doc: "remembers an allowed connection, so that its replies pass",
        miss: "no path for allowed packets is installed",
    },
    TableInfo {
        table: Table::Deny,
        number: 26,
        name: "deny",
        feature: Feature::Security,
        doc: "marks a connection that is not allowed any more as dead, and drops",
        miss: "the rules do not allow it",
    },
    TableInfo {
        table: Table::Output,
        number: 30,
        name: "output",
        feature: Feature::Deliver,
        doc: "delivers to a port here, to another host by tunnel, to every host of a network, or to a physical network",
        miss: "the destination port is not plugged in",
    },
    TableInfo {
        table: Table::Reply,
        number: 31,
        name: "reply",
        feature: Feature::Trunk,
        doc: "sends an answer back to who asked, with the tag of a sub-port",
        miss: "no path for answers is installed",
    },
    TableInfo {
        table: Table::Limit,
        number: 32,
        name: "limit",
        feature: Feature::Qos,
        doc: "holds what a port sends or is sent to its second limit, where it has two, and leads back to where that was asked",
        miss: "the port has no second limit",
    },
    TableInfo {
        table: Table::Open,
        number: 62,
        name: "open",
        feature: Feature::Balancer,
        doc: "holds what the switch itself has learned: open connections of listeners with a limit, which it counts here",
        miss: "it is not counted yet",
    },
    TableInfo {
        table: Table::Canary,
        number: 63,
        name: "canary",
        feature: Feature::Canary,
        doc: "holds one flow that tells the version of the pipeline and that the switch still has our flows",
        miss: "no packet comes here",
    },
];

impl Table {
    /// What is known of it.
    #[must_use]
    pub const fn info(self) -> &'static TableInfo {
        &TABLES[self as usize]
    }

    /// Its number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.info().number
    }

    /// The table with this name, if the pipeline has one.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        TABLES.iter().find(|info| info.name == name).map(|info| info.table)
    }

    /// The table with this number, if the pipeline has one.
    #[must_use]
    pub fn by_number(number: u8) -> Option<Self> {
        TABLES.iter().find(|info| info.number == number).map(|info| info.table)
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.info().name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows stand at their discriminant, numbers grow, names are unique.
    #[test]
    fn the_list_is_sound() {
        for (index, info) in TABLES.iter().enumerate() {
            assert_eq!(info.table as usize, index);
            assert_eq!(Table::by_number(info.number), Some(info.table));
            assert!(TABLES[..index].iter().all(|other| other.number < info.number && other.name != info.name));
        }
        assert_eq!(Table::by_number(9), None);
    }
}
