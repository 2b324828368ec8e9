//! Proof that hosts tell a collector of what they forward, as flow records (IPFIX), in the kernel's data path.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use basalt_tests::ipfix::Told;
use basalt_tests::process;

use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::evidence::Examiner;
use crate::cloud::node::{COLLECTOR, SAMPLING};

/// Pings of one try: none of them being looked at is once in 600 tries.
const PINGS: u32 = 100;
/// Records are sent two seconds after a flow's first packet, and sampling may miss a try.
const RECORDS_LIMIT: Duration = Duration::from_secs(60);
const READ_LIMIT: Duration = Duration::from_millis(500);

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check("a collector gets records of the flows that hosts forward, and of ports and rules", || {
        let (one, two, database) = (machines.get("web1")?, machines.get("web2")?, machines.get("db1")?);
        recorded(cloud, &[(one, two), (two, database)])
    });
}

fn recorded(cloud: &Cloud, pairs: &[(&Occupied, &Occupied)]) -> Result<String> {
    let collector = cloud.lab().network().listen_udp(COLLECTOR)?;
    collector.set_read_timeout(Some(READ_LIMIT))?;
    let mut told = Told::default();
    let mut octets = vec![0; 65_536];
    for (from, to) in pairs {
        for [source, target] in [[&from.vm.address, &to.vm.address], [&from.vm.address6, &to.vm.address6]] {
            let ends: [IpAddr; 2] = [source.parse()?, target.parse()?];
            let look = || {
                let text = from.ok(&format!("ping -c {PINGS} -i 0.02 -W 5 {target}"))?;
                ensure!(text.contains(" 0% packet loss"), "{text}");
                while let Ok((length, exporter)) = collector.recv_from(&mut octets) {
                    told.take(exporter, octets.get(..length).context("a datagram's length")?)?;
                }
                let both = [(ends[0], ends[1]), (ends[1], ends[0])];
                Ok(both.iter().all(|way| told.packets.contains_key(way)).then_some(()))
            };
            process::wait_for(&format!("records of {source} and {target}, both ways"), RECORDS_LIMIT, look)?;
        }
    }
    let rule = |name: &String| name.starts_with("security group web: allow icmp");
    let look = || {
        while let Ok((length, exporter)) = collector.recv_from(&mut octets) {
            told.take(exporter, octets.get(..length).context("a datagram's length")?)?;
        }
        let rule = told.selectors.iter().find(|(name, packets)| rule(name) && **packets > 0);
        Ok(rule.map(|(name, packets)| format!("{name:?} {packets} packets")))
    };
    let rule = process::wait_for("a record of the rule that let the pings by", RECORDS_LIMIT, look)?;
    ensure!(told.ports.values().any(|packets| *packets > 0), "no port has a record: {:?}", told.ports);
    Ok(format!(
        "one packet of {SAMPLING}: {} flows told of, those of {} and {} among them, both ways, IPv4 and IPv6; {} ports, {} rules and reasons for drops, {rule}",
        told.packets.len(),
        words(pairs[0]),
        words(pairs[1]),
        told.ports.len() / 2,
        told.selectors.len()
    ))
}

fn words((from, to): (&Occupied, &Occupied)) -> String {
    format!("{} and {}", from.vm.name, to.vm.name)
}
