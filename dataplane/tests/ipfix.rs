//! Flow records: a collector sees the packets that our flows forward.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod topology;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::switch::bridge::{Bridge, FlowExport, Settings};
use hosts::Host;
use model::security::Remote;
use model::spec::HostNetwork;
use topology::{Cloud, PING, endpoint, host_id};

const LIMIT: Duration = Duration::from_secs(20);
/// How long records may take: flows are counted for a second before they are sent.
const RECORDS_TIMEOUT: Duration = Duration::from_secs(20);

/// Information elements (IANA registry "IPFIX Information Elements").
const PACKETS: u16 = 2;
const SOURCE_IPV4: u16 = 8;
const TARGET_IPV4: u16 = 12;
const INTERFACE_NAME: u16 = 82;
/// What marks an element as somebody's own, whose number follows; the length of an element that says its own; and the sets that are no data
/// (RFC 7011 §3.2, §7 and §3.3.2).
const ENTERPRISE: u16 = 0x8000;
const VARIABLE: u16 = 0xffff;
const TEMPLATES: u16 = 2;
const DATA: u16 = 256;

/// What a collector was told.
#[derive(Debug, Default)]
struct Told {
    /// Of each template the elements with their lengths; those of enterprises have no number here.
    templates: BTreeMap<u16, Vec<(Option<u16>, u16)>>,
    /// Packets by source and destination.
    packets: BTreeMap<(Ipv4Addr, Ipv4Addr), u64>,
    /// Where they came in or went out.
    interfaces: BTreeSet<String>,
    /// Who tells of flows.
    domains: BTreeSet<u32>,
}

fn number(octets: &[u8]) -> u64 {
    octets.iter().fold(0, |number, octet| number << 8 | u64::from(*octet))
}

/// Takes the first octets off.
fn cut<'a>(from: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (head, tail) = from.split_at_checked(length).with_context(|| format!("{length} octets of {}", from.len()))?;
    *from = tail;
    Ok(head)
}

fn word(from: &mut &[u8]) -> Result<u16> {
    Ok(u16::try_from(number(cut(from, 2)?))?)
}

impl Told {
    /// A message: its header and the sets behind it (RFC 7011 §3.1).
    fn take(&mut self, mut from: &[u8]) -> Result<()> {
        assert_eq!((word(&mut from)?, usize::from(word(&mut from)?)), (10, from.len() + 4), "version and length");
        cut(&mut from, 8)?;
        let domain = u32::try_from(number(cut(&mut from, 4)?))?;
        while !from.is_empty() {
            let (set, length) = (word(&mut from)?, usize::from(word(&mut from)?));
            let body = cut(&mut from, length - 4)?;
            match set {
                TEMPLATES => self.template(body)?,
                DATA.. if self.templates.contains_key(&set) => {
                    self.domains.insert(domain);
                    self.records(set, body)?;
                }
                // Options say nothing of flows.
                _ => {}
            }
        }
        Ok(())
    }

    fn template(&mut self, mut from: &[u8]) -> Result<()> {
        while !from.is_empty() {
            let (id, count) = (word(&mut from)?, word(&mut from)?);
            let mut elements = Vec::new();
            for _ in 0..count {
                let (element, length) = (word(&mut from)?, word(&mut from)?);
                let is_own = element & ENTERPRISE != 0;
                elements.push(((!is_own).then_some(element), length));
                cut(&mut from, if is_own { 4 } else { 0 })?;
            }
            self.templates.insert(id, elements);
        }
        Ok(())
    }

    fn records(&mut self, template: u16, mut from: &[u8]) -> Result<()> {
        let elements = self.templates.get(&template).context("template")?;
        while !from.is_empty() {
            let (mut ends, mut packets) = ([None; 2], 0);
            for (element, length) in elements {
                let length = if *length == VARIABLE { number(cut(&mut from, 1)?) } else { u64::from(*length) };
                let value = cut(&mut from, usize::try_from(length)?)?;
                match *element {
                    Some(SOURCE_IPV4) => ends[0] = Some(Ipv4Addr::from_bits(u32::try_from(number(value))?)),
                    Some(TARGET_IPV4) => ends[1] = Some(Ipv4Addr::from_bits(u32::try_from(number(value))?)),
                    Some(PACKETS) => packets = number(value),
                    Some(INTERFACE_NAME) => drop(self.interfaces.insert(String::from_utf8_lossy(value).into_owned())),
                    _ => {}
                }
            }
            if let [Some(source), Some(target)] = ends {
                *self.packets.entry((source, target)).or_default() += packets;
            }
        }
        Ok(())
    }
}

/// Every packet is looked at: the pings of one machine to another and their answers are in the records, under the host's domain; and when no export is
/// wanted any more, none comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_sees_what_is_forwarded() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"));
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let all = cloud.group("all");
    cloud.allow(all, PING, Remote::Any);
    for (name, last) in [("web-1", 11), ("web-2", 12)] {
        cloud.port(name, blue, 0, last, &[all]);
    }
    let host = Host::start(HostNetwork::empty(host_id(0), endpoint(0))).await?;
    let mut machines = Vec::new();
    for (index, port) in cloud.ports.iter().enumerate() {
        let machine = host.plug(port).await?;
        machine.configure(cloud.address(index), Ipv4Addr::new(10, 0, 1, 1))?;
        machines.push(machine);
    }
    host.program(cloud.host(0)).await?;

    let collector = host.switch.namespace().enter(|| UdpSocket::bind("127.0.0.1:0"))??;
    collector.set_read_timeout(Some(Duration::from_millis(200)))?;
    let export = FlowExport {
        collectors: [collector.local_addr()?].into(),
        sampling: NonZeroU32::MIN,
        active: Duration::from_secs(1),
        domain: 77,
    };
    let settings = host.host.bridge().settings().clone();
    let bridge = Bridge::start(Settings { export: Some(export.clone()), ..settings.clone() });
    bridge.connected(LIMIT).await?;
    assert_eq!(bridge.ensure().await?, ["export flows of bridge br-int"]);
    assert_eq!(bridge.ensure().await?, Vec::<String>::new());
    host.switch.settle()?;

    let (mine, other) = (cloud.address(0), cloud.address(1));
    assert_eq!(machines[0].pings(other)?, 3);
    let (mut told, mut octets) = (Told::default(), [0; 65_536]);
    let wanted = [(mine, other), (other, mine)];
    let end = Instant::now() + RECORDS_TIMEOUT;
    // Each is looked at twice: as it comes in and as it goes out.
    while !wanted.iter().all(|pair| told.packets.get(pair) == Some(&6)) {
        ensure!(Instant::now() < end, "the records say {:?} of {:?}", told.packets, told.interfaces);
        let Ok(length) = collector.recv(&mut octets) else { continue };
        told.take(octets.get(..length).context("length")?)?;
    }
    assert_eq!(told.domains, [77].into());
    for port in &cloud.ports {
        let tap = port.tap_name();
        ensure!(told.interfaces.iter().any(|name| name.contains(&tap)), "{tap} is not in {:?}", told.interfaces);
    }

    let twice = NonZeroU32::new(2).context("two")?;
    let less = Bridge::start(Settings { export: Some(FlowExport { sampling: twice, ..export }), ..settings.clone() });
    less.connected(LIMIT).await?;
    let changed = less.ensure().await?;
    ensure!(changed.len() == 1 && changed[0].contains("sampling"), "{changed:?}");
    let none = Bridge::start(settings);
    none.connected(LIMIT).await?;
    assert_eq!(none.ensure().await?, ["export no flows of bridge br-int"]);
    assert_eq!(host.switch.vsctl(&["--columns=_uuid", "list", "ipfix"])?.trim(), "");
    Ok(())
}

/// A new bridge is made with its export, and what somebody else has exported stays while none is wanted of us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_of_somebody_else_stays() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let host = Host::start(HostNetwork::empty(host_id(0), endpoint(0))).await?;
    let set =
        ["--", "--id=@x", "create", "ipfix", "targets=\"127.0.0.1:4739\"", "--", "set", "bridge", "br-int", "ipfix=@x"];
    host.switch.vsctl(&set)?;
    let settings = host.host.bridge().settings().clone();
    let bridge = Bridge::start(settings.clone());
    bridge.connected(LIMIT).await?;
    assert_eq!(bridge.ensure().await?, Vec::<String>::new());
    host.switch.vsctl(&["del-br", "br-int"])?;
    let collector: SocketAddr = "[::1]:4739".parse()?;
    let export =
        FlowExport { collectors: [collector].into(), sampling: NonZeroU32::MIN, active: Duration::ZERO, domain: 1 };
    let made = Bridge::start(Settings { export: Some(export), ..settings });
    made.connected(LIMIT).await?;
    made.ensure().await?;
    let shown = host.switch.vsctl(&["--columns=targets", "--bare", "list", "ipfix"])?;
    assert_eq!(shown.trim(), "[::1]:4739");
    Ok(())
}
