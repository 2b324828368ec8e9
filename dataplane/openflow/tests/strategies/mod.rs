//! Random flows and groups that pass their checks, for property tests.

use openflow::flow::{
    Action, Bucket, Controller, Ct, CtZone, Field, Flow, FlowFlags, Group, GroupKind, HashFields, Learn, LearnSource,
    LearnSpec, Match, Multipath, MultipathAlgorithm, Nat, NatChoice, NatRange, NatSide, PacketInReason, PortNo, Sample,
    Selection, Spread, SpreadAlgorithm, Subfield, eth_type, ip_proto,
};
use proptest::{collection::vec, option, prelude::*, sample::select};

/// Fields that need nothing else.
const FREE: &[Field] = &[
    Field::PktMark,
    Field::RecircId,
    Field::DpHash,
    Field::ActsetOutput,
    Field::TunGbpId,
    Field::TunGbpFlags,
    Field::ConjId,
    Field::CtZone,
    Field::CtMark,
    Field::CtLabel,
    Field::Reg0,
    Field::Reg7,
    Field::Reg15,
    Field::XReg2,
    Field::XXReg2,
    Field::TunId,
    Field::TunSrc,
    Field::TunDst,
    Field::TunIpv6Src,
    Field::TunIpv6Dst,
    Field::TunFlags,
    Field::Metadata,
    Field::EthSrc,
    Field::EthDst,
];

const IP: &[Field] = &[Field::IpDscp, Field::IpEcn, Field::IpTtl];

/// Fields of each kind of packet, with the shorthand that allows them.
fn packets() -> impl Strategy<Value = (Match, Vec<Field>)> {
    let v4 = || [IP, &[Field::Ipv4Src, Field::Ipv4Dst]].concat();
    let v6 = || [IP, &[Field::Ipv6Src, Field::Ipv6Dst, Field::Ipv6Label]].concat();
    let tcp = [Field::TcpSrc, Field::TcpDst, Field::TcpFlags];
    let arp = vec![Field::ArpOp, Field::ArpSpa, Field::ArpTpa, Field::ArpSha, Field::ArpTha];
    let neighbour = |kind: u8, own: Field| {
        let matching = Match::new().icmp6().with(Field::Icmpv6Type, kind);
        (matching, [v6(), vec![Field::NdTarget, own, Field::NdReserved, Field::NdOptionsType]].concat())
    };
    select(vec![
        (Match::new(), vec![]),
        (Match::new().eth_type(0x88cc), vec![]),
        (Match::new().eth_type(eth_type::MPLS), vec![Field::MplsLabel, Field::MplsTc, Field::MplsTtl, Field::MplsBos]),
        (Match::new().ip(), v4()),
        (Match::new().ipv6(), v6()),
        (Match::new().ip().ip_proto(99), v4()),
        (Match::new().arp(), arp.clone()),
        (Match::new().eth_type(eth_type::RARP), arp),
        (Match::new().tcp(), [v4(), tcp.to_vec()].concat()),
        (Match::new().tcp6(), [v6(), tcp.to_vec()].concat()),
        (Match::new().udp(), [v4(), vec![Field::UdpSrc, Field::UdpDst]].concat()),
        (Match::new().udp6(), [v6(), vec![Field::UdpSrc, Field::UdpDst]].concat()),
        (Match::new().ip().ip_proto(ip_proto::SCTP), [v4(), vec![Field::SctpSrc, Field::SctpDst]].concat()),
        (Match::new().icmp(), [v4(), vec![Field::IcmpType, Field::IcmpCode]].concat()),
        (Match::new().icmp6(), [v6(), vec![Field::Icmpv6Type, Field::Icmpv6Code]].concat()),
        neighbour(135, Field::NdSll),
        neighbour(136, Field::NdTll),
    ])
}

fn fill(matching: Match, field: Field, value: u128, mask: Option<u128>) -> Match {
    let full = field.full_mask();
    match mask {
        Some(mask) if field.info().maskable && mask & full != 0 => {
            matching.with_masked(field, value & full, mask & full)
        }
        _ => matching.with(field, value & full),
    }
}

pub(crate) fn matching() -> impl Strategy<Value = Match> {
    let free = vec((select(FREE), any::<u128>(), option::of(any::<u128>())), 0..4);
    let ct = option::of((0..0x100_u32, 0..0x100_u32));
    let vlan = prop_oneof![
        3 => Just(None),
        1 => (0..0x1000_u16).prop_map(|vid| Some(Match::new().vlan(vid))),
        1 => Just(Some(Match::new().untagged())),
        1 => (0..0x1000_u16, 0..8_u8).prop_map(|(vid, pcp)| Some(Match::new().vlan(vid).with(Field::VlanPcp, pcp))),
    ];
    let port = option::of(prop_oneof![0..0xff00_u32, Just(PortNo::LOCAL.0)]);
    let bound = packets().prop_flat_map(|(matching, fields)| {
        let count = fields.len().min(3);
        let chosen = proptest::sample::subsequence(fields, 0..=count);
        let values = vec((any::<u128>(), option::of(any::<u128>())), 3);
        (Just(matching), chosen, values, option::of(select(vec![(0_u8, 3_u8), (1, 3), (0, 2)])))
    });
    (free, ct, vlan, port, bound).prop_map(|(free, ct, vlan, port, (mut matching, fields, values, frag))| {
        if let (Some((value, mask)), true) = (frag, matching.get(Field::EthType).is_some_and(|t| t.value == 0x800)) {
            matching = matching.with_masked(Field::IpFrag, value, mask);
        }
        for (field, (value, mask)) in fields.into_iter().zip(values) {
            matching = fill(matching, field, value, mask);
        }
        for (field, value, mask) in free {
            matching = fill(matching, field, value, mask);
        }
        if let Some((set, clear)) = ct {
            matching = matching.ct_state(set, clear);
        }
        if let Some(vlan) = vlan {
            for (field, masked) in vlan.iter() {
                matching = matching.with_masked(field, masked.value, masked.mask);
            }
        }
        if let Some(port) = port {
            matching = matching.in_port(PortNo(port));
        }
        matching
    })
}

/// Fields that actions may write whatever the packet.
const WRITABLE: &[Field] = &[
    Field::PktMark,
    Field::Reg0,
    Field::Reg9,
    Field::XReg1,
    Field::XXReg3,
    Field::TunId,
    Field::TunSrc,
    Field::TunIpv6Dst,
    Field::Metadata,
    Field::EthSrc,
    Field::EthDst,
    Field::InPort16,
];

fn bits_of(fields: &'static [Field], width: u8) -> impl Strategy<Value = Subfield> {
    (select(fields), any::<u8>()).prop_filter_map("too narrow", move |(field, start)| {
        let room = field.info().bits.checked_sub(width)?;
        Subfield::new(field, start % (room + 1), width).ok()
    })
}

fn writable_bits() -> impl Strategy<Value = Subfield> {
    (select(WRITABLE), 1..=128_u8, any::<u8>()).prop_map(|(field, bits, start)| {
        let bits = bits.min(field.info().bits);
        Subfield::new(field, start % (field.info().bits - bits + 1), bits).expect("inside the field")
    })
}

fn set_field(fields: &'static [Field]) -> impl Strategy<Value = Action> {
    (select(fields), any::<u128>(), option::of(any::<u128>())).prop_map(|(field, value, mask)| {
        let full = field.full_mask();
        match mask {
            Some(mask) if field.info().maskable && mask & full != 0 => {
                Action::set_masked(field, value & full, mask & full)
            }
            _ => Action::set(field, value & full),
        }
    })
}

fn port() -> impl Strategy<Value = PortNo> {
    prop_oneof![
        4 => (1..0xff00_u32).prop_map(PortNo),
        1 => select(vec![PortNo::LOCAL, PortNo::IN_PORT, PortNo::NORMAL, PortNo::FLOOD, PortNo::ALL]),
    ]
}

fn nat() -> impl Strategy<Value = Nat> {
    let side = select(vec![NatSide::Source, NatSide::Destination]);
    let v4 = (any::<[u8; 4]>(), option::of(any::<[u8; 4]>()))
        .prop_map(|(first, last)| (first.into(), last.map(std::net::IpAddr::from)));
    let v6 = (any::<[u8; 16]>(), option::of(any::<[u8; 16]>()))
        .prop_map(|(first, last)| (first.into(), last.map(std::net::IpAddr::from)));
    let addresses = prop_oneof![v4, v6];
    let ports = option::of((1..u16::MAX, option::of(1..u16::MAX)));
    let range = (side, addresses, ports).prop_map(|(side, addresses, ports)| NatRange {
        side,
        addresses: Some(addresses),
        ports,
    });
    let choice = select(vec![NatChoice::Default, NatChoice::Hash, NatChoice::Random]);
    (option::of(range), any::<bool>(), choice).prop_map(|(range, persistent, choice)| match range {
        None => Nat::default(),
        Some(_) => Nat { range, persistent, choice },
    })
}

fn ct() -> impl Strategy<Value = Action> {
    let zone = prop_oneof![
        any::<u16>().prop_map(CtZone::Fixed),
        bits_of(&[Field::Reg3, Field::XReg1, Field::Metadata], 16).prop_map(CtZone::From),
    ];
    let helper = select(vec![0_u16, 0, 0, 21, 69]);
    let exec = vec(set_field(&[Field::CtMark, Field::CtLabel]), 0..3);
    (any::<bool>(), any::<bool>(), zone, option::of(0..255_u8), helper, option::of(nat()), exec).prop_map(
        |(commit, force, zone, table, helper_port, nat, exec)| {
            let mut actions: Vec<_> = nat.into_iter().map(Action::Nat).collect();
            if commit {
                actions.extend(exec);
            }
            Action::ct(Ct { commit, force: force && commit, zone, table, helper_port, actions })
        },
    )
}

fn controller() -> impl Strategy<Value = Action> {
    let reason = (0..6_u8).prop_map(PacketInReason);
    (any::<u16>(), reason, any::<u16>(), vec(any::<u8>(), 0..20), any::<bool>(), option::of(1..100_u32)).prop_map(
        |(octets_max, reason, id, userdata, pause, meter)| {
            Action::Controller(Controller { octets_max, reason, id, userdata, pause, meter })
        },
    )
}

fn learn() -> impl Strategy<Value = Action> {
    let pair = (1..32_u8).prop_flat_map(|width| {
        (bits_of(&[Field::Reg1, Field::EthSrc, Field::TunId], width), bits_of(&[Field::Reg5, Field::EthDst], width))
    });
    let value = (writable_bits(), any::<u128>()).prop_map(|(target, value)| {
        let source = LearnSource::Value(value & (target.mask() >> target.start()));
        LearnSpec::Load { source, target }
    });
    let matched = (bits_of(&[Field::Reg5, Field::EthDst], 16), any::<u16>())
        .prop_map(|(target, value)| LearnSpec::Match { source: LearnSource::Value(value.into()), target });
    let spec = prop_oneof![
        pair.clone().prop_map(|(source, target)| LearnSpec::Match { source: LearnSource::Field(source), target }),
        pair.prop_map(|(source, target)| LearnSpec::Load { source: LearnSource::Field(source), target }),
        bits_of(&[Field::Reg1, Field::XReg4], 16).prop_map(|source| LearnSpec::Output { source }),
        value,
        matched,
    ];
    let base = (0..255_u8, any::<u16>(), any::<u16>(), any::<u16>(), any::<u64>(), any::<bool>(), any::<bool>());
    let extended = option::of((0..1000_u32, option::of(bits_of(&[Field::Reg0], 1))));
    (base, vec(spec, 0..4), extended).prop_map(
        |((table, idle, hard, priority, cookie, send_flow_removed, delete_learned), specs, extended)| {
            let (limit, result) = extended.unwrap_or((0, None));
            Action::Learn(Box::new(Learn {
                table,
                idle_timeout: idle,
                hard_timeout: hard,
                priority,
                cookie,
                send_flow_removed,
                delete_learned,
                fin_idle_timeout: idle / 2,
                fin_hard_timeout: hard / 3,
                limit,
                result,
                specs,
            }))
        },
    )
}

fn multipath() -> impl Strategy<Value = Action> {
    let fields = select(vec![HashFields::EthSrc, HashFields::SymmetricL4, HashFields::NwDst]);
    let algorithm = select(vec![MultipathAlgorithm::ModuloN, MultipathAlgorithm::Hrw, MultipathAlgorithm::IterHash]);
    (fields, any::<u16>(), algorithm, 0..1024_u16, any::<u32>(), bits_of(&[Field::Reg2], 12)).prop_map(
        |(fields, basis, algorithm, link_max, argument, target)| {
            Action::Multipath(Multipath { fields, basis, algorithm, link_max, argument, target })
        },
    )
}

/// One action that may stand anywhere.
fn simple() -> impl Strategy<Value = Action> {
    let moved = (1..=32_u8).prop_flat_map(|width| {
        (bits_of(&[Field::Reg1, Field::EthSrc, Field::CtLabel, Field::TunId], width), bits_of(WRITABLE, width))
            .prop_map(|(source, target)| Action::Move { source, target })
    });
    let resubmit = (select(vec![PortNo::IN_PORT, PortNo(1), PortNo::LOCAL]), option::of(0..255_u8), any::<bool>())
        .prop_map(|(port, table, ct)| Action::Resubmit { port, table, original_tuple: ct && table.is_some() });
    let first = prop_oneof![
        port().prop_map(Action::Output),
        bits_of(&[Field::Reg0, Field::Reg1], 16).prop_map(Action::OutputField),
        (port(), 14..u32::MAX).prop_map(|(port, octets_max)| Action::OutputTruncated { port, octets_max }),
        (1..0xffff_ff00_u32).prop_map(Action::Group),
        set_field(WRITABLE),
        moved,
        writable_bits().prop_map(Action::Push),
        writable_bits().prop_map(Action::Pop),
        resubmit,
    ];
    let second = prop_oneof![
        select(vec![Action::PopVlan, Action::DecTtl, Action::CtClear, Action::PopQueue, Action::Exit]),
        select(vec![Action::PushVlan(0x8100), Action::PushVlan(0x88a8)]),
        vec(1..u16::MAX, 1..4).prop_map(Action::DecTtlFor),
        vec(any::<u8>(), 0..20).prop_map(|octets| Action::note(&octets)),
        (any::<u16>(), bits_of(&[Field::Reg0], 1))
            .prop_map(|(octets, target)| Action::CheckPacketLarger { octets, target }),
        any::<u32>().prop_map(Action::SetQueue),
        (1..u16::MAX, any::<u32>(), any::<u32>(), option::of(1..0xff00_u32)).prop_map(
            |(probability, collector_set_id, obs_point_id, port)| Action::Sample(Sample {
                obs_point_id,
                port: port.map(PortNo),
                ..Sample::new(probability, collector_set_id)
            })
        ),
        (any::<u16>(), vec((1..0xff00_u32).prop_map(PortNo), 0..4), option::of(bits_of(&[Field::Reg2], 20))).prop_map(
            |(basis, ports, target)| Action::Spread(Spread {
                fields: HashFields::NwSrc,
                basis,
                algorithm: SpreadAlgorithm::Hrw,
                ports,
                target,
            })
        ),
        select(vec![Action::PushMpls(0x8847), Action::PopMpls(0x0800), Action::DecMplsTtl]),
        (1..1000_u32).prop_map(Action::Meter),
    ];
    // Boxed: the value trees of all kinds side by side would not fit a test thread's stack.
    prop_oneof![
        5 => first.boxed(),
        3 => second.boxed(),
        1 => ct().boxed(),
        1 => controller().boxed(),
        1 => learn().boxed(),
        1 => multipath().boxed(),
    ]
}

pub(crate) fn plain_actions() -> impl Strategy<Value = Vec<Action>> {
    let nested = prop_oneof![8 => simple().boxed(), 1 => vec(simple().boxed(), 0..3).prop_map(Action::Clone)];
    vec(nested, 0..5)
}

pub(crate) fn actions() -> impl Strategy<Value = Vec<Action>> {
    let metadata = (any::<u64>(), any::<u64>()).prop_filter_map("empty mask", |(value, mask)| {
        (mask != 0).then_some(Action::WriteMetadata { value: value & mask, mask })
    });
    let set = vec(select(vec![Action::Output(PortNo(3)), Action::Group(4), Action::PopVlan]), 1..3);
    let listed =
        (plain_actions().boxed(), any::<bool>(), option::of(set), option::of(metadata), option::of(250..255_u8))
            .prop_map(|(mut actions, clear, set, metadata, goto)| {
                if clear {
                    actions.push(Action::ClearActions);
                }
                actions.extend(set.map(Action::WriteActions));
                actions.extend(metadata);
                actions.extend(goto.map(Action::GotoTable));
                actions
            });
    let conjunction = (any::<u32>(), 2..=64_u8, any::<u8>()).prop_map(|(id, clauses, clause)| Action::Conjunction {
        id,
        clause: clause % clauses + 1,
        clauses,
    });
    prop_oneof![5 => listed, 1 => vec(conjunction, 1..3)]
}

pub(crate) fn flow() -> impl Strategy<Value = Flow> {
    let times = (prop_oneof![Just(0), any::<u16>()], prop_oneof![Just(0), any::<u16>()]);
    let flags = (0..32_u16).prop_map(FlowFlags::from_bits_truncate);
    let importance = prop_oneof![Just(0), any::<u16>()];
    (0..250_u8, any::<u16>(), matching().boxed(), any::<u64>(), actions().boxed(), times, flags, importance).prop_map(
        |(table, priority, matching, cookie, actions, (idle_timeout, hard_timeout), flags, importance)| Flow {
            table,
            priority,
            matching,
            cookie,
            actions,
            idle_timeout,
            hard_timeout,
            flags,
            importance,
        },
    )
}

pub(crate) fn group() -> impl Strategy<Value = Group> {
    let bucket = (plain_actions().boxed(), any::<u16>(), option::of(1..100_u32), option::of(1..100_u32));
    let kind = select(vec![GroupKind::All, GroupKind::Select, GroupKind::FastFailover]);
    let fields = proptest::sample::subsequence(vec![Field::EthSrc, Field::EthDst, Field::Reg3], 0..=3);
    let selection = option::of((select(vec!["hash", "dp_hash"]), any::<u64>(), fields));
    (0..0xffff_ff00_u32, kind, vec(bucket, 0..4), selection).prop_map(|(id, kind, buckets, selection)| {
        let is_select = kind == GroupKind::Select;
        let buckets = (0_u32..).zip(buckets).map(|(id, (actions, weight, port, group))| Bucket {
            id: id * 3,
            weight: if is_select { weight } else { 0 },
            watch_port: port.map(PortNo),
            watch_group: group,
            actions,
        });
        let selection = selection.filter(|_| is_select).map(|(method, parameter, fields)| Selection {
            method: method.to_owned(),
            parameter,
            fields: fields.into_iter().map(|field| (field, field.full_mask())).collect(),
        });
        Group { id, kind, selection, buckets: buckets.collect() }
    })
}
