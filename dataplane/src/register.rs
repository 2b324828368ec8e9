//! What the registers of a packet mean while it walks the pipeline.
//!
//! Owns the assignment of fields to meanings and the bits of the flag register. Golden files and `trace` print these names.
//! Invariant: no two meanings share a field, no two flags a bit.

use openflow::flow::Field;

/// A meaning that a field has in our pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    /// The field that holds it.
    pub field: Field,
    /// Its name in traces.
    pub name: &'static str,
    /// What the value says.
    pub doc: &'static str,
}

/// The network that the packet is on: its VNI.
pub const NETWORK: Register = Register { field: Field::Metadata, name: "network", doc: "VNI of the network it is on" };
/// Facts gathered on the way: see [`FLAGS`].
pub const FLAG_BITS: Register = Register { field: Field::Reg0, name: "flags", doc: "facts gathered on the way" };
/// The local port that the packet came from; 0 when it came by tunnel.
pub const SOURCE: Register =
    Register { field: Field::Reg1, name: "source port", doc: "key of the local port it is from" };
/// The port that the packet goes to; 0 while it is not known.
pub const TARGET: Register =
    Register { field: Field::Reg2, name: "destination port", doc: "key of the port it goes to" };
/// The connection tracking zone: one per set of networks that routers join.
pub const ZONE: Register = Register { field: Field::Reg3, name: "zone", doc: "connection tracking zone" };
/// The identity of the sender: stands for the set of its groups.
pub const SOURCE_IDENTITY: Register =
    Register { field: Field::Reg4, name: "sender identity", doc: "set of groups of the sender" };
/// The identity of the receiver: stands for the set of its groups.
pub const TARGET_IDENTITY: Register =
    Register { field: Field::Reg5, name: "receiver identity", doc: "set of groups of the receiver" };
/// The tunnel endpoint of the host that has the destination, as an IPv4 address.
pub const ENDPOINT: Register = Register { field: Field::Reg6, name: "endpoint", doc: "tunnel endpoint to send to" };
/// The router whose routes apply.
pub const ROUTER: Register = Register { field: Field::Reg7, name: "router", doc: "key of the router that routes it" };

/// The load balancer that gives it to a member.
pub const BALANCER: Register =
    Register { field: Field::Reg8, name: "load balancer", doc: "key of the load balancer that it was sent to" };

/// The listener with a limit that it is for.
pub const LISTENER: Register =
    Register { field: Field::Reg9, name: "listener", doc: "load balancer and port of the listener that counts it" };

/// All of them.
pub const REGISTERS: &[Register] =
    &[NETWORK, FLAG_BITS, SOURCE, TARGET, ZONE, SOURCE_IDENTITY, TARGET_IDENTITY, ENDPOINT, ROUTER, BALANCER, LISTENER];

/// One bit of the flag register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// The bit, as a mask.
    pub mask: u32,
    /// Its name in traces.
    pub name: &'static str,
}

/// It came by tunnel or from a physical network, so it must not leave this host again.
pub const FROM_OUTSIDE: Flag = Flag { mask: 1 << 0, name: "from outside" };
/// The source port is here and its groups hold.
pub const SOURCE_GUARDED: Flag = Flag { mask: 1 << 1, name: "sender guarded" };
/// The destination port is here and its groups hold.
pub const TARGET_GUARDED: Flag = Flag { mask: 1 << 2, name: "receiver guarded" };
/// It goes to the host in the endpoint register.
pub const TO_TUNNEL: Flag = Flag { mask: 1 << 3, name: "to another host" };
/// It goes to every other host of its network.
pub const TO_ALL_HOSTS: Flag = Flag { mask: 1 << 4, name: "to all other hosts" };

/// The source port is guarded by stateless groups only.
pub const SOURCE_STATELESS: Flag = Flag { mask: 1 << 5, name: "sender stateless" };
/// The destination port is guarded by stateless groups only.
pub const TARGET_STATELESS: Flag = Flag { mask: 1 << 6, name: "receiver stateless" };

/// It came from a physical network, where anybody may be.
pub const FROM_PHYSICAL: Flag = Flag { mask: 1 << 7, name: "from physical network" };
/// It goes to the physical network that its network is a part of.
pub const TO_PHYSICAL: Flag = Flag { mask: 1 << 8, name: "to physical network" };

/// It goes out of the cloud from here, by the floating IP of its sender or the address of its router.
pub const LEAVING: Flag = Flag { mask: 1 << 9, name: "leaves" };

/// It is larger than what the network that it is routed to carries.
pub const TOO_LARGE: Flag = Flag { mask: 1 << 12, name: "too large" };
/// Whether it is was looked at.
pub const MEASURED: Flag = Flag { mask: 1 << 14, name: "measured" };

/// It came from outside, as an answer to a connection that left as the router.
pub const ANSWERING: Flag = Flag { mask: 1 << 13, name: "answer from outside" };

/// It is from a member of a load balancer, and whether of a balanced connection was asked.
pub const FROM_MEMBER: Flag = Flag { mask: 1 << 16, name: "from a member" };

/// Its router's address is this host's, for no gateway before it is alive.
pub const TAKES_OVER: Flag = Flag { mask: 1 << 17, name: "taken over" };
/// Its router's address is that of a gateway before this host, which is alive.
pub const STANDS_BY: Flag = Flag { mask: 1 << 18, name: "standing by" };

/// The firewall of its router let it out.
pub const LET_OUT: Flag = Flag { mask: 1 << 19, name: "let out by the firewall" };

/// Whether it is of a connection that its listener counts was looked up.
pub const LOOKED_UP: Flag = Flag { mask: 1 << 20, name: "looked up" };
/// Its listener has room for it.
pub const WITHIN_LIMIT: Flag = Flag { mask: 1 << 21, name: "within the limit" };
/// Its listener counts it.
pub const COUNTED: Flag = Flag { mask: 1 << 22, name: "counted" };

/// All flags.
pub const FLAGS: &[Flag] = &[
    FROM_OUTSIDE,
    SOURCE_GUARDED,
    TARGET_GUARDED,
    TO_TUNNEL,
    TO_ALL_HOSTS,
    SOURCE_STATELESS,
    TARGET_STATELESS,
    FROM_PHYSICAL,
    TO_PHYSICAL,
    LEAVING,
    TOO_LARGE,
    MEASURED,
    ANSWERING,
    FROM_MEMBER,
    TAKES_OVER,
    STANDS_BY,
    LET_OUT,
    LOOKED_UP,
    WITHIN_LIMIT,
    COUNTED,
];

/// The bit of a connection's mark that says that it was allowed once and is not any more.
pub const MARK_DEAD: u32 = 1;

/// The register that a field is, if it is one of ours.
#[must_use]
pub fn by_field(field: Field) -> Option<&'static Register> {
    REGISTERS.iter().find(|register| register.field == field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_used_twice() {
        for (index, register) in REGISTERS.iter().enumerate() {
            assert!(REGISTERS[..index].iter().all(|other| other.field != register.field));
        }
        assert!(FLAGS.iter().all(|flag| flag.mask.count_ones() == 1));
        let bits = FLAGS.iter().fold(0, |bits, flag| bits | flag.mask).count_ones();
        assert_eq!(usize::try_from(bits), Ok(FLAGS.len()));
    }
}
