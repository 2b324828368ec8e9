//! Placement refuses for each reason by name, ranks what is left, and is the same whatever order hosts come in.

use std::num::NonZeroU32;

use super::*;
use proptest::prelude::{Strategy, any, prop, proptest};

fn id(number: u128) -> HostId {
    HostId::from_uuid(uuid::Uuid::from_u128(number))
}

fn host(number: u128) -> Candidate {
    Candidate {
        id: id(number),
        name: format!("h{number}"),
        enabled: true,
        down: None,
        resources: Resources {
            cpus: 2,
            memory_mib: 4096,
            storage_mib: 10_000,
            kvm: true,
            rbd: true,
            switch: true,
            physical_networks: BTreeSet::new(),
            bandwidth_kbps: BTreeMap::new(),
            no_snat: false,
            version: String::new(),
        },
        promised: Promised::default(),
    }
}

fn request() -> Request {
    Request {
        vcpus: 1,
        memory_mib: 512,
        rbd: true,
        storage_mib: 0,
        physical_networks: BTreeSet::new(),
        minimums: BTreeMap::new(),
        only: BTreeMap::new(),
        avoid: BTreeMap::new(),
        waits: None,
    }
}

const OVERCOMMIT: Overcommit = Overcommit { vcpus_per_cpu: 2 };

fn reason(request: &Request, host: Candidate) -> String {
    let decision = place(request, &[host], OVERCOMMIT);
    assert_eq!(decision.host, None);
    decision.problem()
}

#[test]
fn every_reason_to_refuse_a_host_is_named() {
    let cases: Vec<(Candidate, Request, &str)> = vec![
        (Candidate { down: Some("it is down".to_owned()), ..host(1) }, request(), "h1: it is down"),
        (Candidate { enabled: false, ..host(1) }, request(), "h1: it is disabled"),
        (
            Candidate { resources: Resources { kvm: false, ..host(1).resources }, ..host(1) },
            request(),
            "h1: it has no working /dev/kvm",
        ),
        (
            Candidate { resources: Resources { rbd: false, ..host(1).resources }, ..host(1) },
            request(),
            "h1: it can not open RBD volumes",
        ),
        (
            host(1),
            Request { physical_networks: BTreeSet::from(["dc".parse().unwrap()]), ..request() },
            "it is not wired to physical network dc",
        ),
        (
            host(1),
            Request { minimums: BTreeMap::from([("dc".parse().unwrap(), 5)]), ..request() },
            "h1: it keeps no minimum bandwidth on physical network dc",
        ),
        (
            Candidate {
                resources: Resources {
                    bandwidth_kbps: BTreeMap::from([("dc".parse().unwrap(), NonZeroU32::new(1000).unwrap())]),
                    ..host(1).resources
                },
                promised: Promised { bandwidth: BTreeMap::from([("dc".parse().unwrap(), 600)]), ..Promised::default() },
                ..host(1)
            },
            Request { minimums: BTreeMap::from([("dc".parse().unwrap(), 401)]), ..request() },
            "h1: 400 of 1000 kbit/s of physical network dc are left, 401 are needed",
        ),
        (host(1), Request { vcpus: 5, ..request() }, "h1: 4 of 4 vCPUs are left, 5 are needed"),
        (host(1), Request { memory_mib: 4096, ..request() }, "h1: 4096 MiB of memory are left, 4112 are needed"),
        (
            host(1),
            Request { storage_mib: 20_000, ..request() },
            "h1: 10000 MiB are left for local volumes, 20000 are needed",
        ),
        (
            host(1),
            Request { only: BTreeMap::from([(id(2), "only host h2 was asked for".to_owned())]), ..request() },
            "h1: only host h2 was asked for",
        ),
        (
            host(1),
            Request { avoid: BTreeMap::from([(id(1), "web".to_owned())]), ..request() },
            "h1: vm web of the same anti-affinity group is on it",
        ),
        (host(1), Request { waits: Some("volume d is being made".to_owned()), ..request() }, "volume d is being made"),
    ];
    for (host, request, want) in cases {
        let problem = reason(&request, host);
        assert!(problem.contains(want), "{problem:?} does not say {want:?}");
    }
    let none = place(&request(), &[], OVERCOMMIT);
    assert!(none.problem().contains("no host has joined"));
}

#[test]
fn the_emptier_host_wins_and_a_tie_goes_to_the_lowest_id() {
    let busy = Candidate { promised: Promised { machines: 1, memory_mib: 528, ..Promised::default() }, ..host(1) };
    assert_eq!(place(&request(), &[busy, host(2)], OVERCOMMIT).host, Some(id(2)));
    assert_eq!(place(&request(), &[host(2), host(1)], OVERCOMMIT).host, Some(id(1)));
}

fn any_host() -> impl Strategy<Value = Candidate> {
    let flags = any::<[bool; 4]>();
    (0_u128..8, flags, 0_u64..6, 0_u64..6000).prop_map(|(number, [up, enabled, kvm, rbd], vcpus, memory_mib)| {
        let base = host(number);
        Candidate {
            down: (!up).then(|| "it is down".to_owned()),
            enabled,
            resources: Resources { kvm, rbd, ..base.resources },
            promised: Promised { vcpus, memory_mib, ..Promised::default() },
            ..base
        }
    })
}

proptest! {
    #[test]
    fn the_choice_does_not_hang_on_order_and_fits(
        hosts in prop::collection::vec(any_host(), 0..8),
        vcpus in 1_u64..6,
        memory_mib in 1_u64..6000,
        rbd in any::<bool>(),
    ) {
        let mut hosts = hosts;
        hosts.sort_by_key(|host| host.id);
        hosts.dedup_by_key(|host| host.id);
        let request = Request { vcpus, memory_mib, rbd, ..request() };
        let decision = place(&request, &hosts, OVERCOMMIT);
        assert_eq!(decision.verdicts.len(), hosts.len());
        hosts.reverse();
        assert_eq!(place(&request, &hosts, OVERCOMMIT), decision);
        match decision.host {
            None => assert!(decision.verdicts.iter().all(|verdict| !verdict.refused.is_empty())),
            Some(id) => {
                let host = hosts.iter().find(|host| host.id == id).unwrap();
                assert!(host.down.is_none() && host.enabled && host.resources.kvm && (host.resources.rbd || !rbd));
                assert!(host.promised.memory_mib + memory_mib <= host.resources.memory_mib);
                assert!(host.promised.vcpus + vcpus <= 4);
            }
        }
    }
}
