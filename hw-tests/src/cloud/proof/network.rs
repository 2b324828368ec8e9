//! Proofs about packets: addresses, reach, isolation, filters.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use basalt_tests::process;
use serde_json::json;

use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::capture::Capture;
use crate::cloud::evidence::Examiner;
use crate::cloud::tenant::WEB;

const SEEN_LIMIT: Duration = Duration::from_secs(15);
/// From a change of membership to every host filtering by it.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// An address of the blue subnet that no port has.
const SPOOFED: &str = "10.10.1.250";

/// Runs the proofs of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check("addresses come by DHCP", || addresses(machines));
    examiner.check("ping inside a subnet across hosts, in VXLAN on the underlay", || same_subnet(cloud, machines));
    examiner.check("ping across subnets, routed on the sending host", || routed(cloud, machines));
    examiner.check("an allowed TCP port connects and a forbidden one does not", || ports(machines));
    examiner.check("a remote-group rule follows membership", || remote_group(cloud, machines));
    examiner.check("a spoofed source is dropped", || spoofed(cloud, machines));
}

fn addresses(machines: &Machines) -> Result<String> {
    let mut seen = Vec::new();
    for name in ["web1", "web2", "db1"] {
        let machine = machines.get(name)?;
        machine.ok("n=0; until [ -s /run/lease.eth0 ]; do sleep 1; n=$((n + 1)); [ $n -lt 30 ] || exit 1; done")?;
        let line = machine.ok("ip -4 -o addr show dev eth0; cat /sys/class/net/eth0/mtu; ip route show default")?;
        if !line.contains(&format!("inet {}/24", machine.vm.address)) {
            bail!("{name} should have {}: {line}", machine.vm.address);
        }
        if !line.contains("default via") {
            bail!("{name} has no default route: {line}");
        }
        let mtu = line.lines().nth(1).unwrap_or_default().to_owned();
        seen.push(format!("{name} {} MTU {mtu}", machine.vm.address));
    }
    Ok(seen.join(", "))
}

/// Sends three pings that must all be answered.
fn ping(from: &Occupied, to: &str) -> Result<String> {
    let text = from.ok(&format!("ping -c 3 -W 10 {to}"))?;
    let line = text.lines().find(|line| line.contains("packets transmitted")).unwrap_or_default();
    if line.contains(" 0% packet loss") { Ok(line.to_owned()) } else { bail!("{text}") }
}

fn same_subnet(cloud: &Cloud, machines: &Machines) -> Result<String> {
    let (one, two) = (machines.get("web1")?, machines.get("web2")?);
    let capture = Capture::start(cloud.lab().network())?;
    let line = ping(one, &two.vm.address)?;
    let wanted = format!("{} > {}: ICMP echo request", one.vm.address, two.vm.address);
    let packet = capture.wait("the ping on the underlay", SEEN_LIMIT, |packet| packet.inside.contains(&wanted))?;
    if packet.vni != one.vm.vni {
        bail!("the packet carries VNI {}, the network has {}", packet.vni, one.vm.vni);
    }
    Ok(format!("{line}; {} > {} VNI {}: {wanted}", packet.from, packet.to, packet.vni))
}

fn routed(cloud: &Cloud, machines: &Machines) -> Result<String> {
    let database = machines.get("db1")?;
    let far = [machines.get("web1")?, machines.get("web2")?].into_iter().find(|vm| vm.vm.host != database.vm.host);
    let web = far.context("no web machine on another host than db1")?;
    let capture = Capture::start(cloud.lab().network())?;
    let line = ping(web, &database.vm.address)?;
    let wanted = format!("{} > {}: ICMP echo request", web.vm.address, database.vm.address);
    let packet = capture.wait("the ping on the underlay", SEEN_LIMIT, |packet| packet.inside.contains(&wanted))?;
    // Routed by the sender: the packet leaves its host on the target's network, for the target's own MAC address.
    if packet.vni != database.vm.vni || !packet.inside.contains(&format!("> {}", database.vm.mac)) {
        bail!("the packet left its host unrouted, VNI {}: {}", packet.vni, packet.inside);
    }
    let hop = web.ok(&format!("ping -c 1 -W 10 {} | grep -o 'ttl=[0-9]*'", database.vm.address))?;
    let (name, vni, mac) = (&web.vm.name, packet.vni, &database.vm.mac);
    Ok(format!("{line}; from {name} on {} with VNI {vni} to {mac}; answer {}", web.vm.host, hop.trim()))
}

/// Starts a listener on `port` that says its number, and shows that it works inside the machine.
fn listen(machine: &Occupied, port: u16) -> Result<()> {
    machine.ok(&format!("nc -ll -p {port} -e echo port-{port} >/dev/null 2>&1 &"))?;
    let try_here = format!("nc -w 5 127.0.0.1 {port} | grep -q port-{port}");
    let here = || Ok(machine.succeeds(&try_here)?.then_some(()));
    process::wait_for(&format!("the listener on port {port}"), SEEN_LIMIT, here)
}

/// Whether `from` gets what the listener on `port` of `to` says.
pub(super) fn connects(from: &Occupied, to: &Occupied, port: u16) -> Result<bool> {
    hears(from, &to.vm.address, port)
}

/// The same by IPv4 and by IPv6.
pub(super) fn connects_both(from: &Occupied, to: &Occupied, port: u16) -> Result<[bool; 2]> {
    Ok([hears(from, &to.vm.address, port)?, hears(from, &to.vm.address6, port)?])
}

/// Whether `from` gets what the listener on `port` of `address` says.
pub(super) fn hears(from: &Occupied, address: &str, port: u16) -> Result<bool> {
    // nc's own limit ends with the handshake; a connection that a changed rule cuts after that would be waited for without end.
    from.succeeds(&format!("timeout 8 nc -w 4 {address} {port} | grep -q port-{port}"))
}

fn ports(machines: &Machines) -> Result<String> {
    let (one, two) = (machines.get("web1")?, machines.get("web2")?);
    for port in [80, 81] {
        listen(two, port)?;
    }
    if !connects(one, two, 80)? {
        bail!("port 80 is allowed and does not connect");
    }
    if connects(one, two, 81)? {
        bail!("port 81 is not allowed and connects");
    }
    Ok("web1 to web2: port 80 answers, port 81 does not, and inside web2 both do".to_owned())
}

fn remote_group(cloud: &Cloud, machines: &Machines) -> Result<String> {
    let (web, database) = (machines.get("web1")?, machines.get("db1")?);
    listen(database, 5432)?;
    let path = format!("/v1/ports/{}", web.vm.port);
    let wait = |what: &str, wanted: bool| {
        let start = std::time::Instant::now();
        let look = || Ok((connects(web, database, 5432)? == wanted).then_some(()));
        process::wait_for(what, CHANGE_LIMIT, look).map(|()| start.elapsed().as_secs_f64())
    };
    wait("a member of group web to reach db1", true)?;
    cloud.centre().patch(&path, &json!({"groups": ["default"]}))?;
    let out = wait("db1 to refuse who left group web", false);
    cloud.centre().patch(&path, &json!({"groups": [WEB]}))?;
    let out = out?;
    let back = wait("db1 to take who came back", true)?;
    Ok(format!(
        "web1 reaches db1:5432 as a member of web, not after leaving ({out:.1} s), and again after ({back:.1} s)"
    ))
}

fn spoofed(cloud: &Cloud, machines: &Machines) -> Result<String> {
    let (one, two) = (machines.get("web1")?, machines.get("web2")?);
    let capture = Capture::start(cloud.lab().network())?;
    one.ok(&format!("ip addr add {SPOOFED}/24 dev eth0"))?;
    let answered = one.succeeds(&format!("ping -c 3 -W 2 -I {SPOOFED} {}", two.vm.address));
    one.ok(&format!("ip addr del {SPOOFED}/24 dev eth0"))?;
    if answered? {
        bail!("a ping from {SPOOFED} was answered");
    }
    // The control: the same way, unspoofed, is open in the same moment and is seen by the same capture.
    let line = ping(one, &two.vm.address)?;
    let wanted = format!("{} > {}: ICMP echo request", one.vm.address, two.vm.address);
    capture.wait("the unspoofed ping on the underlay", SEEN_LIMIT, |packet| packet.inside.contains(&wanted))?;
    let packets = capture.stop()?;
    if let Some(packet) = packets.iter().find(|packet| packet.inside.contains(SPOOFED)) {
        bail!("a spoofed packet left the host: {}", packet.inside);
    }
    Ok(format!("0 of 3 pings from {SPOOFED} left the host; from its own address: {line}"))
}
