//! The metadata service: what the model says of packets to it, that Open vSwitch says the same, and what machines get from it over real packets,
//! two tenants with the same addresses among them.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result};
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::feature::service::{ADDRESS_V4, ADDRESS_V6};
use dataplane::trace::{Connection, Packet, Payload};
use dataplane::{compile, trace};
use hosts::{Host, Machine};
use model::machine::{Boot, Power};
use model::metadata::{Metadata, USER_DATA_MAX, UserData};
use model::spec::HostNetwork;
use model::{ImageId, MachineId, Mib, Vcpus};
use openflow::flow::Field;
use rig::Rig;
use topology::{Cloud, VXLAN, endpoint, host_id};
use uuid::Uuid;

const HTTP: Payload = Payload::Tcp { source: 40_000, target: 80 };

/// Two tenants with the same ranges and addresses: the first has a router, the second is alone on its network.
fn tenants() -> Cloud {
    let mut cloud = Cloud::default();
    let (red, blue) = (cloud.network("red", "10.0.1.0/24"), cloud.network("blue", "10.0.1.0/24"));
    cloud.ipv6(red, "fd00:0:0:1::/64");
    cloud.ipv6(blue, "fd00:0:0:1::/64");
    cloud.router("main", &[red]);
    let group = cloud.group("shut");
    cloud.groups[group].rules.clear();
    cloud.port("red-1", red, 0, 11, &[group]);
    cloud.port("blue-1", blue, 0, 11, &[group]);
    cloud
}

/// The machines that have the ports, with user data of the greatest length.
#[cfg(test)]
fn machines(cloud: &Cloud) -> BTreeMap<MachineId, model::machine::Machine> {
    let machine = |port: &model::network::Port| {
        let id = port.binding.as_ref().unwrap().machine;
        let data = port.name.bytes().cycle().take(USER_DATA_MAX).collect::<Vec<u8>>();
        let machine = model::machine::Machine {
            id,
            name: port.name.clone(),
            vcpus: Vcpus::try_from(1).unwrap(),
            memory: Mib::try_from(64).unwrap(),
            boot: Boot { kernel: ImageId::from_uuid(Uuid::nil()), initrd: None, cmdline: String::new() },
            disks: vec![],
            ports: vec![port.id],
            power: Power::Running,
            starts: 1,
            metadata: Metadata { user_data: Some(UserData::try_from(data).unwrap()), ssh_keys: vec![] },
        };
        (id, machine)
    };
    cloud.ports.iter().map(machine).collect()
}

#[cfg(test)]
fn says(cloud: &Cloud, packet: &Packet) -> String {
    let path = trace(&compile(&cloud.host(0), &cloud.numbers(0)), packet, Connection::New);
    path.verdicts().iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

/// Requests are handed to the agent at the port's own rate though no rule allows them; nothing else is at these addresses; Open vSwitch agrees.
#[test]
fn the_model_and_the_switch_agree_on_who_is_served() {
    require!(Need::Root, Need::OpenVswitch);
    let mut cloud = tenants();
    cloud.port("red-2", 0, 1, 12, &[0]);
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let rig = Rig::start(&cloud, 0).unwrap();
    let set = rig.install(&cloud).unwrap();
    let path =
        trace(&set, &Packet::from_port(&host, &numbers, &cloud.ports[0], ADDRESS_V4, HTTP).unwrap(), Connection::New);
    let effects: Vec<&String> = path.hops.iter().flat_map(|hop| &hop.effects).collect();
    assert!(effects.iter().any(|effect| *effect == "drops what exceeds 200 packets a second"), "{path}");
    for (from, to) in
        [(0, IpAddr::V4(ADDRESS_V4)), (1, ADDRESS_V4.into()), (0, ADDRESS_V6.into()), (1, ADDRESS_V6.into())]
    {
        let port = &cloud.ports[from];
        let packet = |payload| Packet::from_port(&host, &numbers, port, to, payload).unwrap();
        let wanted = format!("handed to the agent: request for metadata of port {}", port.name);
        assert_eq!(says(&cloud, &packet(HTTP)), wanted);
        let other = packet(Payload::Tcp { source: 40_000, target: 22 });
        assert_eq!(says(&cloud, &other), format!("dropped in forward: no service of {to} listens there"));
        let spoofed = packet(HTTP).with(Field::EthSrc, [2, 9, 9, 9, 9, 9]);
        assert!(says(&cloud, &spoofed).starts_with("dropped in classify"));
        let number = rig.number(&cloud, from);
        let asked = match to {
            IpAddr::V4(to) => Packet::arp_request(number, (port.mac, cloud.address(from)), to),
            IpAddr::V6(to) => Packet::neighbour_solicit(number, (port.mac, port.mac.link_local()), to),
        };
        let answered = match to {
            IpAddr::V4(_) => format!("answered by this host for port {}", port.name),
            IpAddr::V6(_) => format!("handed to the agent: neighbour solicitation of port {}", port.name),
        };
        assert_eq!(says(&cloud, &asked), answered);
        let away = packet(HTTP).out_of_tunnel(VXLAN, (endpoint(1), cloud.networks[0].vni.get()));
        assert!(says(&cloud, &away).starts_with("dropped in service"), "{}", says(&cloud, &away));
        for packet in [packet(HTTP), packet(Payload::Icmp { kind: 8, code: 0 }), other, spoofed, asked, away] {
            rig.ask(&set, &packet, Connection::New);
        }
    }
}

#[cfg(test)]
fn get(machine: &Machine, host: &str, path: &str) -> Result<String> {
    let url = format!("http://{host}{path}");
    machine.namespace.run(&["curl", "--silent", "--show-error", "--max-time", "10", "--fail", "--globoff", &url])
}

/// Each machine reads about itself, over both versions of IP, whatever addresses others have; many requests one after the other and at once are
/// served; before the agent knows the machines they are told to come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_with_the_same_addresses_read_about_themselves() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("curl"), Need::Program("busybox"), Need::Program("ethtool"));
    let cloud = tenants();
    let host = Host::start(HostNetwork::empty(host_id(0), endpoint(0))).await?;
    let mut guests = Vec::new();
    for port in &cloud.ports {
        guests.push(host.plug(port).await?);
    }
    host.program(cloud.host(0)).await?;
    // A link that comes up has the address that its MAC address makes, to be used at once.
    for guest in &guests {
        guest.namespace.run(&["sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0"])?;
        guest.namespace.run(&["ip", "link", "set", "dev", "eth0", "down"])?;
        guest.namespace.up("eth0")?;
    }
    guests[0].ask_dhcp()?;
    // What DHCP's option 121 says to a machine whose gateway is none of our routers.
    guests[1].configure(cloud.address(1), Ipv4Addr::new(10, 0, 1, 1))?;
    guests[1].namespace.run(&["ip", "route", "add", "169.254.169.254/32", "dev", "eth0"])?;
    let early = get(&guests[0], "169.254.169.254", "/latest/meta-data/instance-id").unwrap_err().to_string();
    assert!(format!("{early:?}").contains("503"), "{early}");
    let machines = machines(&cloud);
    host.host.describe(machines.clone());
    for (guest, machine) in guests.iter().zip(machines.values()) {
        for at in ["169.254.169.254", "[fe80::a9fe:a9fe%25eth0]"] {
            assert_eq!(get(guest, at, "/latest/meta-data/instance-id")?, machine.id.to_string());
            let document = get(guest, at, "/openstack/latest/meta_data.json")?;
            assert!(document.contains(&format!("\"hostname\":\"{}\"", machine.name)), "{document}");
            let data = get(guest, at, "/latest/user-data")?;
            assert_eq!(data.as_bytes(), machine.metadata.user_data.as_ref().context("user data")?.octets());
            let url = format!("http://{at}:81/");
            let elsewhere = guest.namespace.run(&["curl", "--silent", "--max-time", "1", "--globoff", &url]);
            assert!(elsewhere.is_err(), "nothing listens there");
        }
    }
    let answers = (0..20).map(|_| get(&guests[0], "169.254.169.254", "/latest/meta-data/hostname"));
    let answers = answers.collect::<Result<Vec<_>>>()?;
    assert!(answers.iter().all(|name| name == "red-1"), "{answers:?}");
    let many =
        "for i in 1 2 3 4; do curl --silent --max-time 20 http://169.254.169.254/latest/user-data | wc -c & done; wait";
    let lengths = guests[0].namespace.run(&["sh", "-c", many])?;
    assert_eq!(lengths.split_whitespace().collect::<Vec<_>>(), vec![USER_DATA_MAX.to_string(); 4]);
    Ok(())
}
