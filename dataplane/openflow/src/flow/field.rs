//! The fields that flows match on and actions write: one table that text, wire codec and checks all read.
//!
//! Owns names, widths, prerequisites and OXM code points of each [`Field`]. Never holds a value.
//! Invariant: row `n` of [`FIELDS`] describes the field whose discriminant is `n`; no two rows share a name or a code point.
//! Source: ovs-fields(7) of Open vSwitch 3.1; OpenFlow 1.5.1 §7.2.3.

use std::fmt;

/// How the value of a field is written in ovs-ofctl syntax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Decimal number.
    Decimal,
    /// Hexadecimal number with `0x`.
    Hexadecimal,
    /// Ethernet address.
    Ethernet,
    /// IPv4 address, optionally with a prefix length or a mask.
    Ipv4,
    /// IPv6 address, optionally with a prefix length or a mask.
    Ipv6,
    /// Kind of IP fragment (`no`, `yes`, `first`, `later`, `not_later`).
    Fragment,
    /// Connection tracking state flags, as in `+trk+est`.
    CtState,
    /// Tunnel flags, as in `+oam`.
    TunnelFlags,
    /// TCP flags, as in `+syn-ack`.
    TcpFlags,
    /// OpenFlow port number or reserved port name.
    Port,
    /// Kind of packet as name space and type, as in `(1,0x800)`.
    PacketType,
}

/// What else a match must say before a field means anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prerequisite {
    /// The field stands alone.
    None,
    /// `vlan_vid` must say that a tag is present.
    Vlan,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// IPv4 or IPv6.
    Ip,
    /// ARP or RARP.
    Arp,
    /// IPv4 or IPv6, with this protocol number.
    Transport(u8),
    /// ICMP over IPv4.
    Icmpv4,
    /// ICMP over IPv6.
    Icmpv6,
    /// ICMPv6 neighbour solicitation or advertisement.
    Neighbour,
    /// ICMPv6 neighbour solicitation.
    NeighbourSolicit,
    /// ICMPv6 neighbour advertisement.
    NeighbourAdvert,
    /// MPLS.
    Mpls,
    /// A tracked IPv4 packet: `ct_state=+trk` is not demanded by the switch, IPv4 or IPv6 is.
    Conntrack,
}

/// An OXM code point: the class and field number of a TLV header, with its symbolic name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodePoint {
    /// Symbolic name, as in `NXM_OF_ETH_SRC`.
    pub name: &'static str,
    /// OXM class, as in `0x8000`.
    pub class: u16,
    /// Field number within the class (7 bits).
    pub number: u8,
}

/// Everything that is known of a field.
#[derive(Debug, Clone, Copy)]
pub struct FieldInfo {
    /// The field itself.
    pub field: Field,
    /// The name that `set_field` uses.
    pub name: &'static str,
    /// The name that a match is printed with.
    pub match_name: &'static str,
    /// Other accepted names.
    pub aliases: &'static [&'static str],
    /// Number of bits that may be nonzero.
    pub bits: u8,
    /// Octets of the value on the wire.
    pub octets: u8,
    /// How values are written.
    pub format: Format,
    /// Whether a match may mask it.
    pub maskable: bool,
    /// Whether `set_field` and `move` may write it.
    pub writable: bool,
    /// What a match must also say.
    pub prerequisite: Prerequisite,
    /// Code points, oldest first. The last one is what we send; the first one names the field inside brackets.
    pub code_points: &'static [CodePoint],
}

const NXM_0: u16 = 0x0000;
const NXM_1: u16 = 0x0001;
const ERICOXM: u16 = 0x1000;
const OXM: u16 = 0x8000;
const PKT_REG: u16 = 0x8001;

macro_rules! fields {
    ($($(#[$doc:meta])* $variant:ident $name:literal $match_name:literal [$($alias:literal),*] $bits:literal/$octets:literal
       $format:ident $maskable:ident $writable:ident $prerequisite:expr; $(($point:literal $class:ident $number:literal)),+;)*) => {
        /// A field of a packet, of its metadata or of the pipeline's registers.
        ///
        /// ```
        /// use openflow::flow::Field;
        /// assert_eq!(Field::by_name("nw_src"), Some(Field::Ipv4Src));
        /// assert_eq!(Field::Ipv4Src.info().bits, 32);
        /// assert_eq!(Field::reg(3), Some(Field::Reg3));
        /// ```
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Field { $($(#[$doc])* $variant),* }

        /// One row per field, in the order of the discriminants.
        pub const FIELDS: &[FieldInfo] = &[$(FieldInfo {
            field: Field::$variant,
            name: $name,
            match_name: $match_name,
            aliases: &[$($alias),*],
            bits: $bits,
            octets: $octets,
            format: Format::$format,
            maskable: masking!($maskable),
            writable: access!($writable),
            prerequisite: $prerequisite,
            code_points: &[$(CodePoint { name: $point, class: $class, number: $number }),+],
        }),*];
    };
}

macro_rules! masking {
    (mask) => {
        true
    };
    (exact) => {
        false
    };
}
macro_rules! access {
    (rw) => {
        true
    };
    (ro) => {
        false
    };
}

use Prerequisite as P;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

// Matches are sent in this order: what a field presupposes stands before it.
fields! {
    /// Ingress port: the canonical, 32-bit form that matches use.
    InPort "in_port_oxm" "in_port" [] 32/4 Port exact rw P::None; ("OXM_OF_IN_PORT" OXM 0);
    /// Ingress port in the 16-bit form that actions write (`set_field:0->in_port` lets a packet leave where it came in).
    InPort16 "in_port" "in_port" [] 16/2 Port exact rw P::None; ("NXM_OF_IN_PORT" NXM_0 0);
    /// Packet mark of the Linux kernel.
    PktMark "pkt_mark" "pkt_mark" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_PKT_MARK" NXM_1 33);
    /// Which pass through the datapath it is; 0 is the first.
    RecircId "recirc_id" "recirc_id" [] 32/4 Hexadecimal exact ro P::None; ("NXM_NX_RECIRC_ID" NXM_1 36);
    /// Hash that the datapath computed.
    DpHash "dp_hash" "dp_hash" [] 32/4 Hexadecimal mask ro P::None; ("NXM_NX_DP_HASH" NXM_1 35);
    /// Output port in the action set.
    ActsetOutput "actset_output" "actset_output" [] 32/4 Port exact ro P::None; ("OXM_OF_ACTSET_OUTPUT" OXM 43);
    /// Kind of packet: name space (0 Ethernet, 1 EtherType) and type.
    PacketType "packet_type" "packet_type" [] 32/4 PacketType exact ro P::None; ("OXM_OF_PACKET_TYPE" OXM 44);
    /// Identifier of a satisfied conjunction.
    ConjId "conj_id" "conj_id" [] 32/4 Decimal exact ro P::None; ("NXM_NX_CONJ_ID" NXM_1 37);
    /// Connection tracking state: see [`ct_state`](crate::flow::ct_state).
    ///
    /// Only the eight bits that have a meaning count as the field: the switch sends the others back as wildcards.
    CtState "ct_state" "ct_state" [] 8/4 CtState mask ro P::None; ("NXM_NX_CT_STATE" NXM_1 105);
    /// Connection tracking zone.
    CtZone "ct_zone" "ct_zone" [] 16/2 Hexadecimal exact ro P::None; ("NXM_NX_CT_ZONE" NXM_1 106);
    /// Connection tracking mark.
    CtMark "ct_mark" "ct_mark" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_CT_MARK" NXM_1 107);
    /// Connection tracking label.
    CtLabel "ct_label" "ct_label" [] 128/16 Hexadecimal mask rw P::None; ("NXM_NX_CT_LABEL" NXM_1 108);
    /// Register 0.
    Reg0 "reg0" "reg0" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG0" NXM_1 0);
    /// Register 1.
    Reg1 "reg1" "reg1" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG1" NXM_1 1);
    /// Register 2.
    Reg2 "reg2" "reg2" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG2" NXM_1 2);
    /// Register 3.
    Reg3 "reg3" "reg3" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG3" NXM_1 3);
    /// Register 4.
    Reg4 "reg4" "reg4" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG4" NXM_1 4);
    /// Register 5.
    Reg5 "reg5" "reg5" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG5" NXM_1 5);
    /// Register 6.
    Reg6 "reg6" "reg6" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG6" NXM_1 6);
    /// Register 7.
    Reg7 "reg7" "reg7" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG7" NXM_1 7);
    /// Register 8.
    Reg8 "reg8" "reg8" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG8" NXM_1 8);
    /// Register 9.
    Reg9 "reg9" "reg9" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG9" NXM_1 9);
    /// Register 10.
    Reg10 "reg10" "reg10" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG10" NXM_1 10);
    /// Register 11.
    Reg11 "reg11" "reg11" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG11" NXM_1 11);
    /// Register 12.
    Reg12 "reg12" "reg12" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG12" NXM_1 12);
    /// Register 13.
    Reg13 "reg13" "reg13" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG13" NXM_1 13);
    /// Register 14.
    Reg14 "reg14" "reg14" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG14" NXM_1 14);
    /// Register 15.
    Reg15 "reg15" "reg15" [] 32/4 Hexadecimal mask rw P::None; ("NXM_NX_REG15" NXM_1 15);
    /// Registers 0 and 1 as one.
    XReg0 "xreg0" "xreg0" [] 64/8 Hexadecimal mask rw P::None; ("OXM_OF_PKT_REG0" PKT_REG 0);
    /// Registers 2 and 3 as one.
    XReg1 "xreg1" "xreg1" [] 64/8 Hexadecimal mask rw P::None; ("OXM_OF_PKT_REG1" PKT_REG 1);
    /// Registers 4 and 5 as one.
    XReg2 "xreg2" "xreg2" [] 64/8 Hexadecimal mask rw P::None; ("OXM_OF_PKT_REG2" PKT_REG 2);
    /// Registers 6 and 7 as one.
    XReg3 "xreg3" "xreg3" [] 64/8 Hexadecimal mask rw P::None; ("OXM_OF_PKT_REG3" PKT_REG 3);
    /// Registers 8 and 9 as one.
    XReg4 "xreg4" "xreg4" [] 64/8 Hexadecimal mask rw P::None; ("OXM_OF_PKT_REG4" PKT_REG 4);
    /// Registers 10 and 11 as one.
    XReg5 "xreg5" "xreg5" [] 64/8 Hexadecimal mask rw P::None; ("OXM_OF_PKT_REG5" PKT_REG 5);
    /// Registers 12 and 13 as one.
    XReg6 "xreg6" "xreg6" [] 64/8 Hexadecimal mask rw P::None; ("OXM_OF_PKT_REG6" PKT_REG 6);
    /// Registers 14 and 15 as one.
    XReg7 "xreg7" "xreg7" [] 64/8 Hexadecimal mask rw P::None; ("OXM_OF_PKT_REG7" PKT_REG 7);
    /// Registers 0 to 3 as one.
    XXReg0 "xxreg0" "xxreg0" [] 128/16 Hexadecimal mask rw P::None; ("NXM_NX_XXREG0" NXM_1 111);
    /// Registers 4 to 7 as one.
    XXReg1 "xxreg1" "xxreg1" [] 128/16 Hexadecimal mask rw P::None; ("NXM_NX_XXREG1" NXM_1 112);
    /// Registers 8 to 11 as one.
    XXReg2 "xxreg2" "xxreg2" [] 128/16 Hexadecimal mask rw P::None; ("NXM_NX_XXREG2" NXM_1 113);
    /// Registers 12 to 15 as one.
    XXReg3 "xxreg3" "xxreg3" [] 128/16 Hexadecimal mask rw P::None; ("NXM_NX_XXREG3" NXM_1 114);
    /// Tunnel identifier, such as a VXLAN VNI.
    TunId "tun_id" "tun_id" ["tunnel_id"] 64/8 Hexadecimal mask rw P::None; ("NXM_NX_TUN_ID" NXM_1 16), ("OXM_OF_TUNNEL_ID" OXM 38);
    /// IPv4 source of the tunnel.
    TunSrc "tun_src" "tun_src" [] 32/4 Ipv4 mask rw P::None; ("NXM_NX_TUN_IPV4_SRC" NXM_1 31);
    /// IPv4 destination of the tunnel.
    TunDst "tun_dst" "tun_dst" [] 32/4 Ipv4 mask rw P::None; ("NXM_NX_TUN_IPV4_DST" NXM_1 32);
    /// IPv6 source of the tunnel.
    TunIpv6Src "tun_ipv6_src" "tun_ipv6_src" [] 128/16 Ipv6 mask rw P::None; ("NXM_NX_TUN_IPV6_SRC" NXM_1 109);
    /// IPv6 destination of the tunnel.
    TunIpv6Dst "tun_ipv6_dst" "tun_ipv6_dst" [] 128/16 Ipv6 mask rw P::None; ("NXM_NX_TUN_IPV6_DST" NXM_1 110);
    /// Flags of the tunnel header.
    TunFlags "tun_flags" "tun_flags" [] 1/2 TunnelFlags mask rw P::None; ("NXM_NX_TUN_FLAGS" NXM_1 104);
    /// Group policy identifier of a VXLAN tunnel.
    TunGbpId "tun_gbp_id" "tun_gbp_id" [] 16/2 Decimal mask rw P::None; ("NXM_NX_TUN_GBP_ID" NXM_1 38);
    /// Group policy flags of a VXLAN tunnel.
    TunGbpFlags "tun_gbp_flags" "tun_gbp_flags" [] 8/1 Hexadecimal mask rw P::None; ("NXM_NX_TUN_GBP_FLAGS" NXM_1 39);
    /// Metadata carried between tables.
    Metadata "metadata" "metadata" [] 64/8 Hexadecimal mask rw P::None; ("OXM_OF_METADATA" OXM 2);
    /// Ethernet source.
    EthSrc "eth_src" "dl_src" ["dl_src"] 48/6 Ethernet mask rw P::None; ("NXM_OF_ETH_SRC" NXM_0 2), ("OXM_OF_ETH_SRC" OXM 4);
    /// Ethernet destination.
    EthDst "eth_dst" "dl_dst" ["dl_dst"] 48/6 Ethernet mask rw P::None; ("NXM_OF_ETH_DST" NXM_0 1), ("OXM_OF_ETH_DST" OXM 3);
    /// Ethernet type (after VLAN tags).
    EthType "eth_type" "dl_type" ["dl_type"] 16/2 Hexadecimal exact ro P::None; ("NXM_OF_ETH_TYPE" NXM_0 3), ("OXM_OF_ETH_TYPE" OXM 5);
    /// VLAN identifier (12 bits) with the "a tag is present" bit 0x1000.
    VlanVid "vlan_vid" "vlan_vid" [] 13/2 Decimal mask rw P::None; ("OXM_OF_VLAN_VID" OXM 6);
    /// VLAN priority.
    VlanPcp "vlan_pcp" "dl_vlan_pcp" ["dl_vlan_pcp"] 3/1 Decimal exact rw P::Vlan; ("OXM_OF_VLAN_PCP" OXM 7);
    /// VLAN tag as 16 bits. In a match it becomes `VlanVid` and `VlanPcp`.
    VlanTci "vlan_tci" "vlan_tci" [] 16/2 Hexadecimal mask rw P::None; ("NXM_OF_VLAN_TCI" NXM_0 4);
    /// MPLS label.
    MplsLabel "mpls_label" "mpls_label" [] 20/4 Decimal exact rw P::Mpls; ("OXM_OF_MPLS_LABEL" OXM 34);
    /// MPLS traffic class.
    MplsTc "mpls_tc" "mpls_tc" [] 3/1 Decimal exact rw P::Mpls; ("OXM_OF_MPLS_TC" OXM 35);
    /// MPLS time to live.
    MplsTtl "mpls_ttl" "mpls_ttl" [] 8/1 Decimal exact rw P::Mpls; ("NXM_NX_MPLS_TTL" NXM_1 30);
    /// MPLS bottom of stack.
    MplsBos "mpls_bos" "mpls_bos" [] 1/1 Decimal exact ro P::Mpls; ("OXM_OF_MPLS_BOS" OXM 36);
    /// IPv4 source.
    Ipv4Src "ip_src" "nw_src" ["nw_src"] 32/4 Ipv4 mask rw P::Ipv4; ("NXM_OF_IP_SRC" NXM_0 7), ("OXM_OF_IPV4_SRC" OXM 11);
    /// IPv4 destination.
    Ipv4Dst "ip_dst" "nw_dst" ["nw_dst"] 32/4 Ipv4 mask rw P::Ipv4; ("NXM_OF_IP_DST" NXM_0 8), ("OXM_OF_IPV4_DST" OXM 12);
    /// IPv6 source.
    Ipv6Src "ipv6_src" "ipv6_src" [] 128/16 Ipv6 mask rw P::Ipv6; ("NXM_NX_IPV6_SRC" NXM_1 19), ("OXM_OF_IPV6_SRC" OXM 26);
    /// IPv6 destination.
    Ipv6Dst "ipv6_dst" "ipv6_dst" [] 128/16 Ipv6 mask rw P::Ipv6; ("NXM_NX_IPV6_DST" NXM_1 20), ("OXM_OF_IPV6_DST" OXM 27);
    /// IPv6 flow label.
    Ipv6Label "ipv6_label" "ipv6_label" [] 20/4 Hexadecimal mask rw P::Ipv6; ("NXM_NX_IPV6_LABEL" NXM_1 27), ("OXM_OF_IPV6_FLABEL" OXM 28);
    /// IP protocol.
    IpProto "nw_proto" "nw_proto" ["ip_proto"] 8/1 Decimal exact ro P::Ip; ("NXM_OF_IP_PROTO" NXM_0 6), ("OXM_OF_IP_PROTO" OXM 10);
    /// IP type of service as 8 bits, of which DSCP is written. In a match it becomes `IpDscp`.
    NwTos "nw_tos" "nw_tos" [] 8/1 Decimal exact rw P::Ip; ("NXM_OF_IP_TOS" NXM_0 5);
    /// IP differentiated services code point.
    IpDscp "ip_dscp" "nw_tos" [] 6/1 Decimal exact rw P::Ip; ("OXM_OF_IP_DSCP" OXM 8);
    /// IP explicit congestion notification.
    IpEcn "nw_ecn" "nw_ecn" ["ip_ecn"] 2/1 Decimal exact rw P::Ip; ("NXM_NX_IP_ECN" NXM_1 28), ("OXM_OF_IP_ECN" OXM 9);
    /// IP time to live or hop limit.
    IpTtl "nw_ttl" "nw_ttl" [] 8/1 Decimal exact rw P::Ip; ("NXM_NX_IP_TTL" NXM_1 29);
    /// IP fragment bits: bit 0 any fragment, bit 1 not the first one.
    IpFrag "ip_frag" "nw_frag" ["nw_frag"] 2/1 Fragment mask ro P::Ip; ("NXM_NX_IP_FRAG" NXM_1 26);
    /// ARP operation.
    ArpOp "arp_op" "arp_op" [] 16/2 Decimal exact rw P::Arp; ("NXM_OF_ARP_OP" NXM_0 15), ("OXM_OF_ARP_OP" OXM 21);
    /// ARP sender protocol address.
    ArpSpa "arp_spa" "arp_spa" [] 32/4 Ipv4 mask rw P::Arp; ("NXM_OF_ARP_SPA" NXM_0 16), ("OXM_OF_ARP_SPA" OXM 22);
    /// ARP target protocol address.
    ArpTpa "arp_tpa" "arp_tpa" [] 32/4 Ipv4 mask rw P::Arp; ("NXM_OF_ARP_TPA" NXM_0 17), ("OXM_OF_ARP_TPA" OXM 23);
    /// ARP sender hardware address.
    ArpSha "arp_sha" "arp_sha" [] 48/6 Ethernet mask rw P::Arp; ("NXM_NX_ARP_SHA" NXM_1 17), ("OXM_OF_ARP_SHA" OXM 24);
    /// ARP target hardware address.
    ArpTha "arp_tha" "arp_tha" [] 48/6 Ethernet mask rw P::Arp; ("NXM_NX_ARP_THA" NXM_1 18), ("OXM_OF_ARP_THA" OXM 25);
    /// TCP source port.
    TcpSrc "tcp_src" "tp_src" [] 16/2 Decimal mask rw P::Transport(TCP); ("NXM_OF_TCP_SRC" NXM_0 9), ("OXM_OF_TCP_SRC" OXM 13);
    /// TCP destination port.
    TcpDst "tcp_dst" "tp_dst" [] 16/2 Decimal mask rw P::Transport(TCP); ("NXM_OF_TCP_DST" NXM_0 10), ("OXM_OF_TCP_DST" OXM 14);
    /// TCP flags.
    TcpFlags "tcp_flags" "tcp_flags" [] 12/2 TcpFlags mask ro P::Transport(TCP); ("NXM_NX_TCP_FLAGS" NXM_1 34), ("OXM_OF_TCP_FLAGS" OXM 42);
    /// UDP source port.
    UdpSrc "udp_src" "tp_src" [] 16/2 Decimal mask rw P::Transport(UDP); ("NXM_OF_UDP_SRC" NXM_0 11), ("OXM_OF_UDP_SRC" OXM 15);
    /// UDP destination port.
    UdpDst "udp_dst" "tp_dst" [] 16/2 Decimal mask rw P::Transport(UDP); ("NXM_OF_UDP_DST" NXM_0 12), ("OXM_OF_UDP_DST" OXM 16);
    /// SCTP source port.
    SctpSrc "sctp_src" "tp_src" [] 16/2 Decimal mask rw P::Transport(SCTP); ("OXM_OF_SCTP_SRC" OXM 17);
    /// SCTP destination port.
    SctpDst "sctp_dst" "tp_dst" [] 16/2 Decimal mask rw P::Transport(SCTP); ("OXM_OF_SCTP_DST" OXM 18);
    /// ICMP type.
    IcmpType "icmp_type" "icmp_type" [] 8/1 Decimal exact rw P::Icmpv4; ("NXM_OF_ICMP_TYPE" NXM_0 13), ("OXM_OF_ICMPV4_TYPE" OXM 19);
    /// ICMP code.
    IcmpCode "icmp_code" "icmp_code" [] 8/1 Decimal exact rw P::Icmpv4; ("NXM_OF_ICMP_CODE" NXM_0 14), ("OXM_OF_ICMPV4_CODE" OXM 20);
    /// ICMPv6 type.
    Icmpv6Type "icmpv6_type" "icmp_type" [] 8/1 Decimal exact rw P::Icmpv6; ("NXM_NX_ICMPV6_TYPE" NXM_1 21), ("OXM_OF_ICMPV6_TYPE" OXM 29);
    /// ICMPv6 code.
    Icmpv6Code "icmpv6_code" "icmp_code" [] 8/1 Decimal exact rw P::Icmpv6; ("NXM_NX_ICMPV6_CODE" NXM_1 22), ("OXM_OF_ICMPV6_CODE" OXM 30);
    /// Target of a neighbour solicitation or advertisement.
    NdTarget "nd_target" "nd_target" [] 128/16 Ipv6 mask rw P::Neighbour; ("NXM_NX_ND_TARGET" NXM_1 23), ("OXM_OF_IPV6_ND_TARGET" OXM 31);
    /// Source link-layer address option of a neighbour solicitation.
    NdSll "nd_sll" "nd_sll" [] 48/6 Ethernet mask rw P::NeighbourSolicit; ("NXM_NX_ND_SLL" NXM_1 24), ("OXM_OF_IPV6_ND_SLL" OXM 32);
    /// Target link-layer address option of a neighbour advertisement.
    NdTll "nd_tll" "nd_tll" [] 48/6 Ethernet mask rw P::NeighbourAdvert; ("NXM_NX_ND_TLL" NXM_1 25), ("OXM_OF_IPV6_ND_TLL" OXM 33);
    /// Reserved word of a neighbour message, which holds the router, solicited and override flags.
    NdReserved "nd_reserved" "nd_reserved" [] 32/4 Decimal exact rw P::Neighbour; ("ERICOXM_OF_ICMPV6_ND_RESERVED" ERICOXM 1);
    /// Type of the first option of a neighbour message.
    NdOptionsType "nd_options_type" "nd_options_type" [] 8/1 Decimal exact rw P::Neighbour; ("ERICOXM_OF_ICMPV6_ND_OPTIONS_TYPE" ERICOXM 2);
    /// IPv4 source of the tracked connection's original direction.
    CtNwSrc "ct_nw_src" "ct_nw_src" [] 32/4 Ipv4 mask ro P::Conntrack; ("NXM_NX_CT_NW_SRC" NXM_1 120);
    /// IPv4 destination of the tracked connection's original direction.
    CtNwDst "ct_nw_dst" "ct_nw_dst" [] 32/4 Ipv4 mask ro P::Conntrack; ("NXM_NX_CT_NW_DST" NXM_1 121);
    /// IPv6 source of the tracked connection's original direction.
    CtIpv6Src "ct_ipv6_src" "ct_ipv6_src" [] 128/16 Ipv6 mask ro P::Conntrack; ("NXM_NX_CT_IPV6_SRC" NXM_1 122);
    /// IPv6 destination of the tracked connection's original direction.
    CtIpv6Dst "ct_ipv6_dst" "ct_ipv6_dst" [] 128/16 Ipv6 mask ro P::Conntrack; ("NXM_NX_CT_IPV6_DST" NXM_1 123);
    /// IP protocol of the tracked connection's original direction.
    CtNwProto "ct_nw_proto" "ct_nw_proto" [] 8/1 Decimal exact ro P::Conntrack; ("NXM_NX_CT_NW_PROTO" NXM_1 119);
    /// Transport source of the tracked connection's original direction.
    CtTpSrc "ct_tp_src" "ct_tp_src" [] 16/2 Decimal mask ro P::Conntrack; ("NXM_NX_CT_TP_SRC" NXM_1 124);
    /// Transport destination of the tracked connection's original direction.
    CtTpDst "ct_tp_dst" "ct_tp_dst" [] 16/2 Decimal mask ro P::Conntrack; ("NXM_NX_CT_TP_DST" NXM_1 125);
}

impl Field {
    /// The 32-bit registers in order.
    pub const REGS: [Self; 16] = [
        Self::Reg0,
        Self::Reg1,
        Self::Reg2,
        Self::Reg3,
        Self::Reg4,
        Self::Reg5,
        Self::Reg6,
        Self::Reg7,
        Self::Reg8,
        Self::Reg9,
        Self::Reg10,
        Self::Reg11,
        Self::Reg12,
        Self::Reg13,
        Self::Reg14,
        Self::Reg15,
    ];

    /// The table row of this field.
    #[must_use]
    pub fn info(self) -> &'static FieldInfo {
        &FIELDS[self as usize]
    }

    /// Register `n`, 0 to 15.
    #[must_use]
    pub fn reg(n: u8) -> Option<Self> {
        Self::REGS.get(usize::from(n)).copied()
    }

    /// The field with this name, alias or code point name (`eth_src`, `dl_src`, `NXM_OF_ETH_SRC`), in any letter case for the latter.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        FIELDS
            .iter()
            .find(|row| {
                row.name == name
                    || row.aliases.contains(&name)
                    || row.code_points.iter().any(|point| point.name.eq_ignore_ascii_case(name))
            })
            .map(|row| row.field)
    }

    /// The field with this OXM class and number.
    #[must_use]
    pub fn by_code_point(class: u16, number: u8) -> Option<Self> {
        FIELDS
            .iter()
            .find(|row| row.code_points.iter().any(|point| point.class == class && point.number == number))
            .map(|row| row.field)
    }

    /// The code point that we send.
    #[must_use]
    pub fn code_point(self) -> CodePoint {
        let points = self.info().code_points;
        points[points.len() - 1]
    }

    /// The mask that covers every bit of the field.
    #[must_use]
    pub fn full_mask(self) -> u128 {
        ones(self.info().bits)
    }

    /// Bits that a subfield may address: without the "tag present" bit of a VLAN identifier, with the unused ones of `ct_state`.
    pub(super) fn subfield_bits(self) -> u8 {
        match self {
            Self::VlanVid => 12,
            Self::CtState => 32,
            _ => self.info().bits,
        }
    }

    /// The 32-bit registers that an `xreg` or `xxreg` covers, most significant first; empty for every other field.
    #[must_use]
    pub fn covered_registers(self) -> &'static [Self] {
        const REGS: &[Field; 16] = &Field::REGS;
        let at = self as usize;
        let (xreg, xxreg) = (Self::XReg0 as usize, Self::XXReg0 as usize);
        if (xreg..xreg + 8).contains(&at) {
            let first = (at - xreg) * 2;
            &REGS[first..first + 2]
        } else if (xxreg..xxreg + 4).contains(&at) {
            let first = (at - xxreg) * 4;
            &REGS[first..first + 4]
        } else {
            &[]
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info().name)
    }
}

/// `bits` one bits, least significant first.
pub(crate) fn ones(bits: u8) -> u128 {
    if bits >= 128 { u128::MAX } else { (1 << bits) - 1 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{FIELDS, Field};

    /// Shows that the table is sound: rows stand at their discriminant, and names and code points are unique.
    #[test]
    fn table_is_sound() {
        let mut names = BTreeSet::new();
        let mut points = BTreeSet::new();
        for (index, row) in FIELDS.iter().enumerate() {
            assert_eq!(row.field as usize, index);
            assert!(names.insert(row.name), "{} twice", row.name);
            for alias in row.aliases {
                assert!(names.insert(alias), "{alias} twice");
            }
            for point in row.code_points {
                assert!(points.insert((point.class, point.number)), "{} twice", point.name);
            }
            assert!(u16::from(row.bits) <= u16::from(row.octets) * 8);
        }
    }

    /// Shows which plain registers the wide ones stand for.
    #[test]
    fn wide_registers_cover_plain_ones() {
        assert_eq!(Field::XReg7.covered_registers(), [Field::Reg14, Field::Reg15]);
        assert_eq!(Field::XXReg1.covered_registers(), [Field::Reg4, Field::Reg5, Field::Reg6, Field::Reg7]);
        assert!(Field::Reg0.covered_registers().is_empty() && Field::TunId.covered_registers().is_empty());
    }
}
