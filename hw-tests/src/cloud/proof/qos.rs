//! Proof that a port's limits hold in the kernel's data path, and end when they are lifted; and that a port with a minimum has its share of a full link.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use basalt_tests::process;
use serde_json::{Value, json};

use super::trunk::SubPort;
use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::capture::Capture;
use crate::cloud::evidence::Examiner;
use crate::cloud::node::LINK_KBPS;
use crate::cloud::outside::{self, Outside};
use crate::cloud::tenant::{self, OUTSIDE, WEB};
use crate::lab::network::PHYSICAL;

/// Pings of one try, 50 ms apart: twenty a second.
const PINGS: u32 = 40;
/// Packets that the limited port may send in a second.
const RATE: u32 = 4;
/// Thousands of bits that it may be sent in a second: about as many pings of [`OCTETS`].
const KBPS: u32 = 50;
/// Octets that a ping carries.
const OCTETS: u32 = 1400;
/// The most that may be answered then: five seconds' worth where the pings take two.
const PASS_MAX: u32 = 20;
/// From a change of a port to its host limiting by it.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// The tag that machines have the provider network under.
const TAG: u16 = 9;
/// Thousands of bits of the link that one port is promised: three of four that it carries.
const MINIMUM: u32 = LINK_KBPS / 4 * 3;
/// The machine that fills the link beside another.
const RIVAL: &str = "rival";
const DELETE_LIMIT: Duration = Duration::from_secs(90);
/// Frames of the two senders that are looked at, after so many since both were seen.
const FRAMES: usize = 160;
const FRAMES_BEFORE: usize = 60;
/// For how long those may take: at the link's rate of 20 frames a second they take 11 s.
const FRAMES_LIMIT: Duration = Duration::from_secs(90);

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check("a port's rates are held to their limits, and free again without", || limited(cloud, machines));
    examiner.check("of a full link to a physical network, the port with a minimum has its share", || {
        let machine = machines.get("web1")?;
        let more = json!({"networks": [OUTSIDE], "groups": [WEB], "host": machine.vm.host});
        tenant::launch(cloud.centre(), RIVAL, &more)?;
        let seen = beside_a_rival(cloud, machine);
        let path = format!("/v1/vms/{RIVAL}");
        cloud.centre().delete(&path)?;
        tenant::wait_gone(cloud.centre(), &path, DELETE_LIMIT)?;
        seen
    });
}

/// Has a machine and another one of its host fill the link.
fn beside_a_rival(cloud: &Cloud, machine: &Occupied) -> Result<String> {
    let vm = tenant::wait_running(cloud.centre(), RIVAL)?;
    let rival = Occupied::enter(cloud, &vm)?;
    let senders = [Sender::plug(cloud, machine)?, Sender::own(&rival)?];
    let seen = shared(cloud, &senders);
    machine.succeeds(&format!("ip link del eth0.{TAG}"))?;
    cloud.centre().delete(&senders[0].path)?;
    seen
}

/// A machine on the provider network.
struct Sender<'a> {
    machine: &'a Occupied,
    /// Its port there.
    path: String,
    address: String,
}

impl<'a> Sender<'a> {
    /// A machine that is there by a sub-port.
    fn plug(cloud: &Cloud, machine: &'a Occupied) -> Result<Self> {
        let trunk = json!({"parent": machine.vm.port, "vlan": TAG});
        let port = json!({"name": "on-the-link", "network": OUTSIDE, "groups": [WEB], "trunk": trunk});
        let SubPort { mac, address } = SubPort::of(&cloud.centre().post("/v1/ports", &port)?)?;
        let add = format!("ip link add link eth0 name eth0.{TAG} type vlan id {TAG}");
        let own = format!("ip link set eth0.{TAG} address {mac} up && ip addr add {address}/24 dev eth0.{TAG}");
        machine.ok(&format!("{add} && {own}"))?;
        remember(machine, &format!("eth0.{TAG}"))?;
        Ok(Self { machine, path: "/v1/ports/on-the-link".to_owned(), address })
    }

    /// One that is nowhere else.
    fn own(machine: &'a Occupied) -> Result<Self> {
        remember(machine, "eth0")?;
        let path = format!("/v1/ports/{}", machine.vm.port);
        Ok(Self { machine, path, address: machine.vm.address.clone() })
    }

    /// Promises its port so much, or nothing.
    fn promise(&self, cloud: &Cloud, kbps: Option<u32>) -> Result<Value> {
        let qos = kbps.map_or_else(|| json!({}), |kbps| json!({"egress_min_kbps": kbps}));
        cloud.centre().patch(&self.path, &json!({"qos": qos}))
    }

    /// Sends more than the link carries until it is told to stop.
    fn begin(&self) -> Result<String> {
        let flood = format!("ping -q -i 0.01 -s {OCTETS} {}", outside::ADDRESS);
        self.machine.ok(&format!("{flood} >/dev/null 2>&1 & echo $! >/tmp/flood"))
    }

    fn end(&self) -> Result<bool> {
        self.machine.succeeds("kill $(cat /tmp/flood)")
    }
}

/// Has a machine ask for no neighbour again: the question would wait behind the flood for longer than the answer is waited for.
fn remember(machine: &Occupied, link: &str) -> Result<String> {
    machine.ok(&format!("echo 600000 >/proc/sys/net/ipv4/neigh/{link}/base_reachable_time_ms"))
}

fn shared(cloud: &Cloud, senders: &[Sender<'_>; 2]) -> Result<String> {
    let [one, rival] = senders;
    let station = Outside::start(cloud.lab().network())?;
    for sender in senders {
        let ping = format!("ping -c 1 -W 2 {}", outside::ADDRESS);
        let reached = || Ok(sender.machine.succeeds(&ping)?.then_some(()));
        process::wait_for("an answer from outside", CHANGE_LIMIT, reached).with_context(|| sender.path.clone())?;
    }
    let too_much = one.promise(cloud, Some(LINK_KBPS)).err().context("all that the link carries was promised")?;
    let refused = format!("{too_much:#}");
    // A tenth of the link is never promised.
    let most = LINK_KBPS / 10 * 9;
    ensure!(refused.contains(&format!("{most} of {most} kbit/s")), "{refused}");
    let node = cloud.node(&one.machine.vm.host)?;
    let classes = || node.host().sh("tc class show dev eth2");
    let mut told = Vec::new();
    for (favoured, other) in [(one, rival), (rival, one)] {
        favoured.promise(cloud, Some(MINIMUM))?;
        let made = || Ok(classes()?.contains(&format!("rate {MINIMUM}Kbit")).then_some(()));
        let counted =
            process::wait_for("a class of the link", CHANGE_LIMIT, made).and_then(|()| compete(cloud, senders));
        favoured.promise(cloud, None)?;
        let gone = || Ok((!classes()?.contains("htb")).then_some(()));
        process::wait_for("the link to be as it was", CHANGE_LIMIT, gone)?;
        let counted = counted?;
        let of = |sender: &Sender<'_>| counted.iter().filter(|address| **address == sender.address).count();
        let (more, less) = (of(favoured), of(other));
        ensure!(more >= 2 * less && less > 0, "{more} frames of the port with a minimum, {less} of the other");
        told.push(format!("{more} of {} by {}", more + less, favoured.machine.vm.name));
    }
    drop(station);
    Ok(format!(
        "two machines of {} fill a link of {LINK_KBPS} kbit/s; whose port is promised {MINIMUM} has sent {}; and all of the {} is refused",
        one.machine.vm.host,
        told.join(", then "),
        LINK_KBPS
    ))
}

/// Who sent each of the frames that leave while both send.
fn compete(cloud: &Cloud, senders: &[Sender<'_>; 2]) -> Result<Vec<String>> {
    let vlan = outside::VLAN.to_string();
    let capture = Capture::listen(cloud.lab().network(), PHYSICAL, &["vlan", &vlan, "and", "icmp"])?;
    senders.iter().try_for_each(|sender| sender.begin().map(drop))?;
    let look = || {
        let sender_of = |line: &String| {
            let request = |sender: &&Sender<'_>| {
                line.contains(&format!(" {} > {}: ICMP echo request", sender.address, outside::ADDRESS))
            };
            senders.iter().find(request).map(|sender| sender.address.clone())
        };
        let sent: Vec<String> = capture.lines()?.iter().filter_map(sender_of).collect();
        let seen = |sender: &Sender<'_>| sent.iter().position(|address| *address == sender.address);
        let both = senders.iter().map(seen).collect::<Option<Vec<_>>>().and_then(|seen| seen.into_iter().max());
        let window = both.and_then(|first| sent.get(first + FRAMES_BEFORE..first + FRAMES_BEFORE + FRAMES));
        Ok(window.map(<[String]>::to_vec))
    };
    let counted = process::wait_for("frames of both on the link", FRAMES_LIMIT, look);
    for sender in senders {
        sender.end()?;
    }
    counted
}

fn limited(cloud: &Cloud, machines: &Machines) -> Result<String> {
    let (one, two) = (machines.get("web1")?, machines.get("web2")?);
    let set = |qos: Value| cloud.centre().patch(&format!("/v1/ports/{}", one.vm.port), &json!({"qos": qos}));
    let held = |qos: Value| -> Result<u32> {
        set(qos)?;
        wait("pings to be dropped above the limit", || answered(one, two), |count| count <= PASS_MAX)
    };
    let packets = held(json!({"egress": {"pps": {"rate": RATE, "burst": RATE}}}));
    // Only what is free again shows that the next limit is another one.
    set(json!({}))?;
    wait("all pings to be answered between two limits", || answered(one, two), |count| count == PINGS)?;
    let bits = held(json!({"ingress": {"kbps": {"rate": KBPS, "burst": KBPS}}}));
    set(json!({}))?;
    let (packets, bits) = (packets?, bits?);
    let free = wait("all pings to be answered without a limit", || answered(one, two), |count| count == PINGS)?;
    Ok(format!(
        "of {PINGS} pings of {OCTETS} octets in 2 s {packets} are answered where {RATE} packets a second may leave, \
         {bits} where {KBPS} kb/s may come, {free} without a limit"
    ))
}

fn wait(what: &str, mut look: impl FnMut() -> Result<u32>, right: fn(u32) -> bool) -> Result<u32> {
    process::wait_for(what, CHANGE_LIMIT, || Ok(Some(look()?).filter(|count| right(*count))))
}

/// How many of the pings were answered.
fn answered(from: &Occupied, to: &Occupied) -> Result<u32> {
    let text = from.ok(&format!("ping -c {PINGS} -i 0.05 -s {OCTETS} -W 1 {} || true", to.vm.address))?;
    let count = text.split(", ").find_map(|part| part.strip_suffix(" packets received")?.parse().ok());
    count.with_context(|| format!("ping printed no sum: {text}"))
}
