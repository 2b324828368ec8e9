//! Shows that messages survive the wire, and that no octets break the decoder.
//!
//! How: random messages are encoded and decoded; random octets, and good messages with damaged octets, are decoded.

mod strategies;

use std::time::Duration;

use openflow::{
    flow::{Band, BandAction, Match, PacketInReason, PortNo},
    wire::{
        self, AsyncConfig, BucketPlace, BundleAdd, BundleControl, BundleFlags, BundleStep, CtFlush, CtTuple,
        Description, Features, FlowCounters, FlowMod, FlowMonitor, FlowRemoved, FlowStats, FlowUpdate, GroupCounters,
        GroupFeatures, GroupMod, Hello, Message, Meter, MeterCounters, MeterFeatures, MeterMod, MeterUnit,
        MonitorFlags, MultipartReply, MultipartRequest, PacketIn, PacketInFormat, PacketOut, Port, PortChange,
        PortCounters, PortMod, PortStatus, Queue, QueueCounters, QueueFilter, RemovedReason, Resume, Role, RoleKind,
        RoleStatus, SwitchConfig, SwitchError, Table, TableCounters, TableFeatures, TableMod, TableStatus, TlvMap,
        TlvTable, TlvTableMod, Vacancy, WatchedFlow,
    },
};
use proptest::{collection::vec, option, prelude::*, sample::select};

fn counters() -> impl Strategy<Value = FlowCounters> {
    let duration = || option::of((any::<u32>(), 0..1_000_000_000_u32).prop_map(|(s, n)| Duration::new(s.into(), n)));
    (duration(), duration(), any::<Option<u32>>(), any::<Option<u64>>(), any::<Option<u64>>())
        .prop_map(|(duration, idle, flows, packets, octets)| FlowCounters { duration, idle, flows, packets, octets })
}

fn packet_in() -> impl Strategy<Value = PacketIn> {
    let octets = || vec(any::<u8>(), 0..80);
    let continuation = option::of(octets());
    (octets(), 0..6_u8, any::<u8>(), any::<u64>(), strategies::matching(), octets(), continuation).prop_map(
        |(packet, reason, table, cookie, metadata, userdata, continuation)| PacketIn {
            octets_total: u32::try_from(packet.len()).unwrap_or(0),
            packet,
            reason: PacketInReason(reason),
            table,
            cookie,
            metadata,
            userdata,
            continuation,
        },
    )
}

fn port() -> impl Strategy<Value = Port> {
    (any::<u32>(), any::<[u8; 6]>(), "[a-z0-9]{0,15}", any::<u32>(), any::<u32>(), any::<u32>()).prop_map(
        |(number, address, name, config, state, speed_kbps)| Port {
            number: PortNo(number),
            address,
            name,
            config,
            state,
            speed_kbps,
        },
    )
}

fn meter() -> impl Strategy<Value = Meter> {
    let action = prop_oneof![Just(BandAction::Drop), any::<u8>().prop_map(|levels| BandAction::DscpRemark { levels })];
    let band = (any::<u32>(), 0..9_u32, action).prop_map(|(rate, burst, action)| Band { rate, burst, action });
    let unit = select(vec![MeterUnit::Packets, MeterUnit::Kilobits]);
    (1..100_u32, unit, any::<bool>(), vec(band, 1..4)).prop_map(|(id, unit, has_stats, bands)| Meter {
        id,
        unit,
        has_stats,
        bands,
    })
}

fn change() -> impl Strategy<Value = Message> {
    let flow = (strategies::flow().boxed(), 0..5_u8, any::<bool>()).prop_map(|(flow, kind, flag)| {
        Message::FlowMod(match kind {
            0 => FlowMod { check_overlap: flag, ..FlowMod::add(flow) },
            1 => FlowMod { reset_counts: flag, ..FlowMod::modify_strict(flow) },
            2 => FlowMod::delete_strict(flow.key()),
            3 => FlowMod::delete_table(flow.table),
            _ => FlowMod::delete_cookie(flow.cookie, u64::MAX),
        })
    });
    let group = (strategies::group().boxed(), 0..6_u8).prop_map(|(group, kind)| {
        Message::GroupMod(match kind {
            0 => GroupMod::Add(group),
            1 => GroupMod::Modify(group),
            2 => GroupMod::AddOrModify(group),
            3 => GroupMod::InsertBuckets(BucketPlace::Bucket(4), group),
            4 => GroupMod::RemoveBuckets(BucketPlace::Last, group.id),
            _ => GroupMod::Delete(group.id),
        })
    });
    let meter = (meter(), 0..3_u8).prop_map(|(meter, kind)| {
        Message::MeterMod(match kind {
            0 => MeterMod::Add(meter),
            1 => MeterMod::Modify(meter),
            _ => MeterMod::Delete(meter.id),
        })
    });
    prop_oneof![4 => flow.boxed(), 2 => group.boxed(), 1 => meter.boxed()]
}

fn reply() -> impl Strategy<Value = MultipartReply> {
    let flows = vec((strategies::flow(), counters()).prop_map(|(flow, counters)| FlowStats { flow, counters }), 0..4);
    let pair = || any::<(u64, u64)>();
    let port_counters =
        (any::<u32>(), pair(), pair(), pair(), pair()).prop_map(|(n, packets, octets, dropped, errors)| PortCounters {
            number: PortNo(n),
            packets,
            octets,
            dropped,
            errors,
        });
    let table = (any::<u8>(), any::<u32>(), pair()).prop_map(|(table, active, (lookups, matched))| TableCounters {
        table,
        active,
        lookups,
        matched,
    });
    let group = (any::<u32>(), any::<u32>(), pair(), 0..9_u32, vec(pair(), 0..3)).prop_map(
        |(group, references, (packets, octets), seconds, buckets)| GroupCounters {
            group,
            references,
            packets,
            octets,
            duration: Duration::new(seconds.into(), 5),
            buckets,
        },
    );
    let description = ("[a-z]{0,20}", "[a-z]{0,255}").prop_map(|(short, long)| {
        MultipartReply::Description(Box::new(Description {
            manufacturer: long.clone(),
            hardware: short.clone(),
            software: long,
            serial: short.clone(),
            datapath: short,
        }))
    });
    let (described, counted) = settings();
    prop_oneof![
        described.boxed(),
        counted.boxed(),
        vec(meter(), 0..3).prop_map(MultipartReply::Meters),
        vec(update(), 0..3).prop_map(MultipartReply::FlowUpdates),
        flows.prop_map(MultipartReply::Flows),
        counters().prop_map(MultipartReply::Aggregate),
        vec(table, 0..4).prop_map(MultipartReply::Tables),
        vec(port_counters, 0..4).prop_map(MultipartReply::PortStats),
        vec(group, 0..4).prop_map(MultipartReply::GroupStats),
        vec(strategies::group(), 0..4).prop_map(MultipartReply::Groups),
        vec(port(), 0..4).prop_map(MultipartReply::Ports),
        description,
        (20..30_u16, vec(any::<u8>(), 0..20)).prop_map(|(kind, body)| MultipartReply::Unknown { kind, body }),
    ]
}

fn update() -> impl Strategy<Value = FlowUpdate> {
    (strategies::flow().boxed(), 0..7_u8).prop_map(|(flow, kind)| {
        let flow = WatchedFlow {
            key: flow.key(),
            cookie: flow.cookie,
            idle_timeout: flow.idle_timeout,
            hard_timeout: flow.hard_timeout,
            actions: flow.actions,
        };
        match kind {
            0 => FlowUpdate::Initial(flow),
            1 => FlowUpdate::Added(flow),
            2 => FlowUpdate::Removed(flow, RemovedReason::DELETE),
            3 => FlowUpdate::Modified(flow),
            4 => FlowUpdate::Own(9),
            5 => FlowUpdate::Paused,
            _ => FlowUpdate::Resumed,
        }
    })
}

fn table() -> impl Strategy<Value = Table> {
    let vacancy = option::of(any::<[u8; 3]>()).prop_map(|percent| {
        percent.map(|[down_percent, up_percent, now_percent]| Vacancy { down_percent, up_percent, now_percent })
    });
    (any::<u8>(), any::<u32>(), any::<Option<u32>>(), vacancy).prop_map(|(id, config, eviction, vacancy)| Table {
        id,
        config,
        eviction,
        vacancy,
    })
}

/// Answers that describe, and answers that count.
fn settings() -> (impl Strategy<Value = MultipartReply>, impl Strategy<Value = MultipartReply>) {
    let words = || any::<[u32; 4]>();
    let features =
        (any::<u8>(), "[a-z]{0,31}", any::<(u64, u64)>(), any::<u32>(), vec((0..20_u16, vec(any::<u8>(), 0..9)), 0..3))
            .prop_map(|(table, name, (metadata_match, metadata_write), entries_max, properties)| TableFeatures {
                table,
                command: 1,
                features: 2,
                name,
                metadata_match,
                metadata_write,
                capabilities: 3,
                entries_max,
                properties,
            });
    let queue = (any::<u32>(), any::<u32>(), any::<Option<u16>>(), any::<Option<u16>>()).prop_map(
        |(port, queue, rate_min_permille, rate_max_permille)| Queue {
            port: PortNo(port),
            queue,
            rate_min_permille,
            rate_max_permille,
        },
    );
    let described = prop_oneof![
        vec(table(), 0..3).prop_map(MultipartReply::TableSettings),
        vec(features, 0..3).prop_map(MultipartReply::TableFeatures),
        vec(queue, 0..3).prop_map(MultipartReply::Queues),
        (any::<u32>(), words(), words()).prop_map(|(kinds, groups_max, actions)| {
            MultipartReply::GroupFeatures(GroupFeatures { kinds, capabilities: 5, groups_max, actions })
        }),
        (words(), any::<u8>()).prop_map(|([meters_max, band_kinds, capabilities, features], bands_max)| {
            MultipartReply::MeterFeatures(MeterFeatures {
                meters_max,
                band_kinds,
                capabilities,
                bands_max,
                colours_max: 1,
                features,
            })
        }),
    ];
    let time = |seconds: u32| Duration::new(seconds.into(), 7);
    let queue = (words(), any::<(u64, u64)>()).prop_map(move |([port, queue, seconds, errors], (octets, packets))| {
        QueueCounters { port: PortNo(port), queue, octets, packets, errors: errors.into(), duration: time(seconds) }
    });
    let meter = (words(), any::<(u64, u64)>(), vec(any::<(u64, u64)>(), 0..3)).prop_map(
        move |([meter, references, seconds, _], (packets, octets), bands)| MeterCounters {
            meter,
            references,
            packets,
            octets,
            duration: time(seconds),
            bands,
        },
    );
    let counted = prop_oneof![
        vec(queue, 0..3).prop_map(MultipartReply::QueueStats),
        vec(meter, 0..3).prop_map(MultipartReply::MeterStats),
    ];
    (described, counted)
}

/// Messages about ports, tables, roles, tunnel options and tracked connections.
fn rare() -> impl Strategy<Value = Message> {
    let port = (any::<[u32; 4]>(), any::<[u8; 6]>()).prop_map(|([number, config, mask, advertise], address)| {
        Message::PortMod(PortMod { number: PortNo(number), address, config, mask, advertise })
    });
    let role = (any::<u8>(), any::<u64>()).prop_map(|(reason, generation)| {
        Message::RoleStatus(RoleStatus { role: Role { kind: RoleKind::Secondary, generation }, reason })
    });
    let map = (any::<u16>(), any::<u8>(), any::<u8>(), any::<u16>()).prop_map(|(class, kind, octets, field)| TlvMap {
        class,
        kind,
        octets,
        field,
    });
    let maps = (vec(map, 0..4), 0..4_u8).prop_map(|(maps, kind)| match kind {
        0 => Message::TlvTableMod(TlvTableMod::Add(maps)),
        1 => Message::TlvTableMod(TlvTableMod::Delete(maps)),
        2 => Message::TlvTableMod(TlvTableMod::Clear),
        _ => Message::TlvTableReply(TlvTable { octets_max: 252, fields_max: 64, maps }),
    });
    let address = || {
        option::of(prop_oneof![
            any::<[u8; 4]>().prop_map(std::net::IpAddr::from),
            // Not an IPv4 address in IPv6 clothes, which is how the wire carries IPv4.
            any::<[u8; 15]>().prop_map(|low| {
                let mut octets = [0xfd; 16];
                octets[1..].copy_from_slice(&low);
                octets.into()
            }),
        ])
    };
    let tuple = || {
        option::of((address(), address(), any::<[u16; 2]>(), any::<Option<(u16, u8, u8)>>()).prop_map(
            |(source, target, [source_port, target_port], icmp)| CtTuple {
                source,
                target,
                source_port,
                target_port,
                icmp,
            },
        ))
    };
    let flush = (any::<Option<u16>>(), any::<u8>(), tuple(), tuple())
        .prop_map(|(zone, proto, original, reply)| Message::CtFlush(CtFlush { zone, proto, original, reply }));
    let forwarded =
        meter().prop_map(|meter| Message::RequestForward(Box::new(Message::MeterMod(MeterMod::Add(meter)))));
    prop_oneof![
        port.boxed(),
        table().prop_map(|table| Message::TableMod(TableMod(table))).boxed(),
        table().prop_map(|table| Message::TableStatus(TableStatus { reason: 3, table })).boxed(),
        role.boxed(),
        maps.boxed(),
        Just(Message::TlvTableRequest),
        any::<u16>().prop_map(Message::CtFlushZone).boxed(),
        flush.boxed(),
        forwarded.boxed(),
    ]
}

fn request() -> impl Strategy<Value = MultipartRequest> {
    select(vec![
        MultipartRequest::Description,
        MultipartRequest::Tables,
        MultipartRequest::all_flows(),
        MultipartRequest::Aggregate(openflow::wire::FlowFilter {
            table: 3,
            matching: Match::new().tcp(),
            ..openflow::wire::FlowFilter::default()
        }),
        MultipartRequest::all_groups(),
        MultipartRequest::GroupStats(7),
        MultipartRequest::PortStats(PortNo::ANY),
        MultipartRequest::Ports(PortNo(4)),
        MultipartRequest::QueueStats(QueueFilter { port: PortNo(3), queue: 9 }),
        MultipartRequest::Queues(QueueFilter { port: PortNo::ANY, queue: 9 }),
        MultipartRequest::GroupFeatures,
        MultipartRequest::MeterStats(3),
        MultipartRequest::all_meters(),
        MultipartRequest::MeterFeatures,
        MultipartRequest::TableSettings,
        MultipartRequest::TableFeatures(Vec::new()),
        MultipartRequest::FlowMonitor(vec![
            FlowMonitor::new(5),
            FlowMonitor { flags: MonitorFlags::ADD, matching: Match::new().tcp(), ..FlowMonitor::delete(6) },
        ]),
    ])
}

fn small() -> impl Strategy<Value = Message> {
    let octets = || vec(any::<u8>(), 0..40);
    let error = (0..18_u16, 0..20_u16, octets()).prop_map(|(kind, code, data)| SwitchError {
        kind,
        code,
        experimenter: None,
        data,
    });
    let steps =
        vec![BundleStep::Open, BundleStep::Opened, BundleStep::Close, BundleStep::Commit, BundleStep::Discarded];
    let role = (select(vec![RoleKind::NoChange, RoleKind::Equal, RoleKind::Primary]), any::<u64>())
        .prop_map(|(kind, generation)| Role { kind, generation });
    let features = (any::<u64>(), any::<u32>(), any::<u8>(), any::<u8>(), any::<u32>()).prop_map(
        |(datapath_id, buffers, tables, auxiliary_id, capabilities)| {
            Message::FeaturesReply(Features { datapath_id, buffers, tables, auxiliary_id, capabilities })
        },
    );
    let config = (0..4_u16, any::<u16>()).prop_map(|(flags, miss_octets_max)| SwitchConfig { flags, miss_octets_max });
    let masks = vec((0..8_u16, any::<u32>()), 0..4);
    let step = (any::<u32>(), select(steps), 0..4_u16).prop_map(|(id, step, flags)| {
        Message::BundleControl(BundleControl { id, step, flags: BundleFlags::from_bits_truncate(flags) })
    });
    prop_oneof![
        any::<u32>().prop_map(|versions| Message::Hello(Hello { versions })),
        error.prop_map(Message::Error),
        octets().prop_map(Message::EchoRequest),
        octets().prop_map(Message::EchoReply),
        select(vec![
            Message::FeaturesRequest,
            Message::GetConfigRequest,
            Message::BarrierRequest,
            Message::BarrierReply,
            Message::GetAsyncRequest,
            Message::SetPacketInFormat(PacketInFormat::Extended),
            Message::SetPacketInFormat(PacketInFormat::Standard),
            Message::SetControllerId(7),
        ]),
        features,
        config.prop_map(Message::SetConfig),
        role.prop_map(Message::RoleRequest),
        masks.prop_map(|masks| Message::SetAsync(AsyncConfig { masks })),
        step,
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let removed = (strategies::flow(), 0..6_u8, counters()).prop_map(|(flow, reason, counters)| {
        Message::FlowRemoved(FlowRemoved {
            key: flow.key(),
            cookie: flow.cookie,
            reason: RemovedReason(reason),
            idle_timeout: flow.idle_timeout,
            hard_timeout: flow.hard_timeout,
            counters,
        })
    });
    let packet_out = (strategies::plain_actions(), vec(any::<u8>(), 0..80))
        .prop_map(|(actions, packet)| Message::PacketOut(PacketOut::new(PortNo::CONTROLLER, actions, packet)));
    let status = (select(vec![PortChange::Added, PortChange::Deleted, PortChange::Modified]), port())
        .prop_map(|(change, port)| Message::PortStatus(PortStatus { change, port }));
    let bundled = (any::<u32>(), change()).prop_map(|(id, message)| {
        let flags = BundleFlags::ATOMIC | BundleFlags::ORDERED;
        Message::BundleAdd(BundleAdd { id, flags, message: Box::new(message) })
    });
    prop_oneof![
        3 => change().boxed(),
        2 => bundled.boxed(),
        2 => (reply().boxed(), any::<bool>()).prop_map(|(reply, more)| Message::MultipartReply { reply, more }),
        1 => request().prop_map(Message::MultipartRequest),
        1 => packet_in().prop_map(Message::PacketIn).boxed(),
        1 => packet_in().prop_map(|packet_in| Message::Resume(Resume(packet_in))).boxed(),
        1 => packet_out.boxed(),
        1 => status.boxed(),
        1 => removed.boxed(),
        2 => small().boxed(),
        2 => rare().boxed(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn messages_survive_the_wire(message in message(), xid in any::<u32>()) {
        let octets = wire::encode(&message, xid).unwrap();
        prop_assert_eq!(wire::message_length(&octets), Ok(Some(octets.len())));
        prop_assert_eq!(octets[1] == 14 || octets[1] == 15, matches!(message, Message::FlowMod(_) | Message::GroupMod(_)));
        prop_assert_eq!(wire::decode(&octets).unwrap(), (xid, message));
    }

    #[test]
    fn any_octets_decode_or_fail(kind in 0..40_u8, body in vec(any::<u8>(), 0..300)) {
        let length = u16::try_from(body.len() + 8).unwrap().to_be_bytes();
        let mut octets = vec![6, kind, length[0], length[1], 0, 0, 0, 1];
        octets.extend(body);
        let _ = wire::decode(&octets);
    }

    #[test]
    fn damaged_messages_decode_or_fail(message in message(), damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8)) {
        let mut octets = wire::encode(&message, 1).unwrap();
        for (at, value) in damage {
            let at = at.index(octets.len());
            octets[at] = value;
        }
        let _ = wire::decode(&octets);
        let half = &octets[..octets.len() / 2];
        prop_assert!(wire::decode(half).is_err());
    }
}

/// Shows that endlessly nested actions are refused rather than recursed into.
#[test]
fn deep_nesting_is_refused() {
    let mut action: Vec<u8> = vec![0, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    for _ in 0..1000 {
        let length = u16::try_from(action.len() + 16).unwrap().to_be_bytes();
        let mut clone = vec![0xff, 0xff, length[0], length[1], 0, 0, 0x23, 0x20, 0, 42, 0, 0, 0, 0, 0, 0];
        clone.extend(action);
        action = clone;
    }
    let length = u16::try_from(action.len()).unwrap().to_be_bytes();
    let mut body = vec![0xff, 0xff, 0xff, 0xff, length[0], length[1], 0, 0, 0, 1, 0, 4, 0, 0, 0, 0];
    body.extend(action);
    let length = u16::try_from(body.len() + 8).unwrap().to_be_bytes();
    let mut octets = vec![6, 13, length[0], length[1], 0, 0, 0, 1];
    octets.extend(body);
    let error = wire::decode(&octets).unwrap_err();
    assert_eq!(error.to_string(), "actions nested deeper than 16");
}
