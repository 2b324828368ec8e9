//! The tenant of the demonstration: two networks with a router between them, two security groups, three machines.
//!
//! ```text
//!   blue 10.10.1.0/24, fd00:1::/64 ── router ── green 10.10.2.0/24, fd00:2::/64
//!    web1, web2 (group web: ICMP and TCP 80 from anyone;      db1 (group db: ICMP from anyone,
//!     on different hosts by anti-affinity)                        TCP 5432 from members of group web)
//! ```
//! A provider network beside them, "outside", is a VLAN of the lab's physical network.
//! Everything is asked of the scheduler over its API; where machines land is its choice. Owns the objects' names.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use basalt_tests::process;
use serde_json::{Value, json};

use super::centre::Centre;
use super::outside;
use crate::lab::guest_image::Guest;
use crate::lab::network::PHYSICAL;
use crate::lab::progress::Progress;

/// The image that machines' volumes are made from.
pub const IMAGE: &str = "debian";
/// The flavor of all machines.
pub const FLAVOR: &str = "demo";
/// The network of the web machines.
pub const BLUE: &str = "blue";
/// The network of the data base.
pub const GREEN: &str = "green";
/// The provider network: a VLAN on which a machine outside of the cloud stands.
pub const OUTSIDE: &str = "outside";
/// Its IPv6 subnet.
pub const OUTSIDE6: &str = "outside6";
/// The group of the web machines.
pub const WEB: &str = "web";
/// The group of the data base.
pub const DATABASE: &str = "db";

/// The largest tenant packet; the underlay carries it with the VXLAN headers.
const MTU: u16 = 1500;
/// The green network carries less, so that its router has something to say.
pub const GREEN_MTU: u16 = 1400;
/// Importing an image, cloning a volume, plugging a port and starting a process, three times over on two emulated hosts.
const RUNNING_LIMIT: Duration = Duration::from_secs(180);

/// A machine as the scheduler shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Identity.
    pub id: String,
    /// Name.
    pub name: String,
    /// The name of its host.
    pub host: String,
    /// The identity of its port.
    pub port: String,
    /// Its IPv4 address.
    pub address: String,
    /// Its IPv6 address.
    pub address6: String,
    /// Its MAC address.
    pub mac: String,
    /// Its network's VXLAN network identifier.
    pub vni: u32,
}

/// Makes the tenant's images, networks, groups and machines, and waits until the machines run.
///
/// # Errors
/// The scheduler refuses something, or a machine does not run in time; the message has what the scheduler says of it.
pub fn make(centre: &Centre, guest: &Guest, progress: &Progress) -> Result<Vec<Vm>> {
    let step = progress.step("images");
    images(centre, guest)?;
    step.done("kernel, initrd and a qcow2 disk uploaded");
    let step = progress.step("networks");
    networks(centre)?;
    groups(centre)?;
    step.done("blue and green with a router, the VLAN outside, groups web and db");
    let step = progress.step("machines");
    centre.post("/v1/flavors", &json!({"name": FLAVOR, "vcpus": 1, "memory_mib": 192}))?;
    for (name, network, group) in [("web1", BLUE, WEB), ("web2", BLUE, WEB), ("db1", GREEN, DATABASE)] {
        let apart = (group == WEB).then_some(WEB);
        launch(centre, name, &json!({"networks": [network], "groups": [group], "anti_affinity": apart}))?;
    }
    let vms = ["web1", "web2", "db1"].into_iter().map(|name| wait_running(centre, name)).collect::<Result<Vec<_>>>()?;
    let places = vms.iter().map(|vm| format!("{} on {}", vm.name, vm.host)).collect::<Vec<_>>().join(", ");
    step.done(&places);
    Ok(vms)
}

/// Asks for a machine on a volume of its own made from the image; `more` adds or replaces fields of the request.
///
/// # Errors
/// The scheduler refuses.
pub fn launch(centre: &Centre, name: &str, more: &Value) -> Result<Value> {
    let mut request = json!({"name": name, "flavor": FLAVOR, "image": IMAGE, "volume_backend": "rbd"});
    if let (Some(request), Some(more)) = (request.as_object_mut(), more.as_object()) {
        request
            .extend(more.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())));
    }
    centre.post("/v1/vms", &request)
}

/// Waits until the machine called `name` runs, and shows it.
///
/// # Errors
/// It does not run in time; the message has what the scheduler says of it.
pub fn wait_running(centre: &Centre, name: &str) -> Result<Vm> {
    let path = format!("/v1/vms/{name}");
    let look = || {
        let view = centre.get(&path)?;
        Ok((view["state"] == "running").then_some(view))
    };
    let view = process::wait_for(&format!("machine {name} to run"), RUNNING_LIMIT, look)
        .with_context(|| format!("the scheduler says: {}", centre.get(&path).unwrap_or_default()))?;
    vm(centre, &view)
}

/// Waits until the scheduler knows no object at `path` any more.
///
/// # Errors
/// It is still there after `limit`.
pub fn wait_gone(centre: &Centre, path: &str, limit: Duration) -> Result<()> {
    process::wait_for(&format!("the end of {path}"), limit, || match centre.get(path) {
        Err(error) if format!("{error:#}").contains("refused with 404") => Ok(Some(())),
        Ok(_) => Ok(None),
        Err(error) => Err(error),
    })
    .with_context(|| format!("the scheduler says: {}", centre.get(path).unwrap_or_default()))
}

/// Every machine of the scheduler that runs.
///
/// # Errors
/// The scheduler does not answer as it should.
pub fn running(centre: &Centre) -> Result<Vec<Vm>> {
    let views = centre.get("/v1/vms")?;
    let views = views.as_array().ok_or_else(|| anyhow!("a list of machines that is none: {views}"))?;
    views.iter().filter(|view| view["state"] == "running").map(|view| vm(centre, view)).collect()
}

/// Reads the scheduler's view of a machine and of its first port's network.
fn vm(centre: &Centre, view: &Value) -> Result<Vm> {
    let network = centre.get(&format!("/v1/networks/{}", text(view, "/ports/0/network/id")?))?;
    let vni = network["vni"].as_u64().and_then(|vni| u32::try_from(vni).ok());
    Ok(Vm {
        id: text(view, "/id")?,
        name: text(view, "/name")?,
        host: text(view, "/host/name")?,
        port: text(view, "/ports/0/id")?,
        address: address(view, IpAddr::is_ipv4)?,
        address6: address(view, IpAddr::is_ipv6)?,
        mac: text(view, "/ports/0/mac")?,
        vni: vni.ok_or_else(|| anyhow!("a network without vni: {network}"))?,
    })
}

/// The first address of the machine's first port that is of the wanted version.
fn address(view: &Value, wanted: fn(&IpAddr) -> bool) -> Result<String> {
    let all = view.pointer("/ports/0/addresses").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut addresses = all.iter().filter_map(|text| text.as_str()?.parse::<IpAddr>().ok());
    let found = addresses.find(wanted).map(|address| address.to_string());
    found.ok_or_else(|| anyhow!("not both kinds of address in {view}"))
}

fn text(value: &Value, pointer: &str) -> Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.map(str::to_owned).ok_or_else(|| anyhow!("no text at {pointer} in {value}"))
}

fn images(centre: &Centre, guest: &Guest) -> Result<()> {
    let cmdline = Guest::command_line("ttyS0");
    let disk = json!({"name": IMAGE, "kind": "qcow2", "kernel": "debian-kernel", "initrd": "debian-initrd",
        "cmdline": cmdline});
    for (request, file) in [
        (json!({"name": "debian-kernel", "kind": "kernel"}), &guest.kernel),
        (json!({"name": "debian-initrd", "kind": "initrd"}), &guest.initrd),
        (disk, &guest.disk_qcow2),
    ] {
        let name = text(&request, "/name")?;
        centre.post("/v1/images", &request)?;
        centre.upload(&format!("/v1/images/{name}/data"), file)?;
    }
    Ok(())
}

fn networks(centre: &Centre) -> Result<()> {
    centre.post("/v1/routers", &json!({"name": "router"}))?;
    for (name, mtu, four, six) in
        [(BLUE, MTU, "10.10.1.0/24", "fd00:1::/64"), (GREEN, GREEN_MTU, "10.10.2.0/24", "fd00:2::/64")]
    {
        centre.post("/v1/networks", &json!({"name": name, "mtu": mtu}))?;
        for (subnet, cidr) in [(name.to_owned(), four), (format!("{name}6"), six)] {
            centre.post("/v1/subnets", &json!({"name": subnet, "network": name, "cidr": cidr}))?;
            centre.post("/v1/routers/router/interfaces", &json!({"subnet": subnet}))?;
        }
    }
    let provider = json!({"network_type": "vlan", "physical_network": PHYSICAL, "segmentation_id": outside::VLAN});
    centre.post("/v1/networks", &json!({"name": OUTSIDE, "provider": provider}))?;
    centre.post("/v1/subnets", &json!({"name": OUTSIDE, "network": OUTSIDE, "cidr": outside::SUBNET}))?;
    centre.post("/v1/subnets", &json!({"name": OUTSIDE6, "network": OUTSIDE, "cidr": outside::SUBNET6}))?;
    Ok(())
}

fn groups(centre: &Centre) -> Result<()> {
    for group in [WEB, DATABASE] {
        centre.post("/v1/security-groups", &json!({"name": group}))?;
    }
    for (group, mut rule) in [
        (WEB, json!({"direction": "ingress", "protocol": "icmp"})),
        (WEB, json!({"direction": "ingress", "protocol": "tcp", "port_min": 80})),
        (DATABASE, json!({"direction": "ingress", "protocol": "icmp"})),
        (DATABASE, json!({"direction": "ingress", "protocol": "tcp", "port_min": 5432, "remote_group": WEB})),
    ] {
        for ethertype in ["IPv4", "IPv6"] {
            rule["ethertype"] = json!(ethertype);
            let answer = centre.post(&format!("/v1/security-groups/{group}/rules"), &rule)?;
            if answer.is_null() {
                bail!("the rule {rule} was answered with nothing");
            }
        }
    }
    Ok(())
}
