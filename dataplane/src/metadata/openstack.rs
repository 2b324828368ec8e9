//! The layout of OpenStack: a few JSON documents.

use std::net::IpAddr;

use ipnet::IpNet;
use model::network::{FixedIp, Port, Subnet};
use model::spec::HostNetwork;
use serde_json::{Map, Value, json};

use super::{Asker, Page};
use crate::dns::is_resolver;
use crate::feature::service::ADDRESS_V4;

/// Versions of the layout: cloud-init takes the newest that it knows. `network_data.json` came with 2015-10-15.
const VERSIONS: [&str; 6] = ["2012-08-10", "2013-04-04", "2015-10-15", "2016-10-06", "2018-08-27", "latest"];

pub(super) fn page(asker: Asker<'_>, words: &[&str]) -> Option<Page> {
    let user_data = asker.machine.metadata.user_data.as_ref();
    match words {
        [] => Some(Page::text(&VERSIONS)),
        [version, rest @ ..] if VERSIONS.contains(version) => match rest {
            [] => {
                let data = user_data.map(|_| "user_data");
                let names = ["meta_data.json", "network_data.json", "vendor_data.json"].into_iter().chain(data);
                Some(Page::text(&names.collect::<Vec<_>>()))
            }
            ["meta_data.json"] => Some(Page::json(&meta_data(asker))),
            ["network_data.json"] => Some(Page::json(&network_data(asker))),
            ["vendor_data.json"] => Some(Page::json(&json!({}))),
            ["user_data"] => user_data.map(|data| Page::octets(data.octets())),
            _ => None,
        },
        _ => None,
    }
}

fn meta_data(asker: Asker<'_>) -> Value {
    let keys = asker.keys();
    let by_name: Map<String, Value> = keys.iter().map(|(name, key)| (name.clone(), json!(key))).collect();
    let list: Vec<Value> = keys.iter().map(|(name, key)| json!({ "name": name, "type": "ssh", "data": key })).collect();
    json!({
        "uuid": asker.machine.id.to_string(),
        "name": asker.machine.name,
        "hostname": asker.full_name(),
        "launch_index": 0,
        "meta": {},
        "public_keys": by_name,
        "keys": list,
    })
}

/// All interfaces of the machine, not only the one that asks, and behind each the sub-ports that are on it.
fn network_data(asker: Asker<'_>) -> Value {
    let mut interfaces = Interfaces::default();
    for id in &asker.machine.ports {
        let Some(port) = asker.network.ports.get(id) else { continue };
        let link = port.tap_name();
        interfaces.add_port(asker.network, port, link.clone());
        let on_it = |other: &&Port| other.trunk.is_some_and(|trunk| trunk.parent == port.id);
        for sub_port in asker.network.ports.values().filter(on_it) {
            interfaces.add_port(asker.network, sub_port, link.clone());
        }
    }
    let Interfaces { links, networks, services } = interfaces;
    json!({ "links": links, "networks": networks, "services": services })
}

/// The document as it grows.
#[derive(Default)]
struct Interfaces {
    links: Vec<Value>,
    networks: Vec<Value>,
    services: Vec<Value>,
}

impl Interfaces {
    /// A port that is `tap`, or a VLAN of it.
    fn add_port(&mut self, network: &HostNetwork, port: &Port, tap: String) {
        let mut link = match port.tag() {
            None => json!({ "id": tap, "type": "ovs", "ethernet_mac_address": port.mac.to_string() }),
            Some(vlan) => json!({
                "id": format!("{tap}.{}", vlan.get()),
                "type": "vlan",
                "vlan_link": tap,
                "vlan_id": vlan.get(),
                "vlan_mac_address": port.mac.to_string(),
            }),
        };
        link["vif_id"] = json!(port.id.to_string());
        link["mtu"] = json!(network.networks.get(&port.network).map(|network| network.mtu));
        let id = link["id"].clone();
        self.links.push(link);
        for fixed in &port.addresses {
            let Some(subnet) = network.subnets.get(&fixed.subnet) else { continue };
            self.add_address(fixed, subnet, &id, port);
            // The host's IPv6 address means nothing without a link, which cloud-init has no word for.
            let host = [IpAddr::from(ADDRESS_V4)];
            let is_ours = subnet.cidr.addr().is_ipv4() && is_resolver(network, port);
            for server in if is_ours { &host[..] } else { &subnet.dns } {
                let service = json!({ "type": "dns", "address": server.to_string() });
                if !self.services.contains(&service) {
                    self.services.push(service);
                }
            }
        }
    }

    fn add_address(&mut self, fixed: &FixedIp, subnet: &Subnet, link: &Value, port: &Port) {
        let kind = match (subnet.cidr, subnet.dhcp) {
            (IpNet::V4(_), true) => "ipv4_dhcp",
            (IpNet::V4(_), false) => "ipv4",
            (IpNet::V6(_), true) => "ipv6_dhcpv6-stateful",
            (IpNet::V6(_), false) => "ipv6",
        };
        let default = if subnet.cidr.addr().is_ipv4() { "0.0.0.0" } else { "::" };
        let leads_out =
            |gateway: IpAddr| json!({ "network": default, "netmask": default, "gateway": gateway.to_string() });
        self.networks.push(json!({
            "id": format!("network{}", self.networks.len()),
            "type": kind,
            "link": link,
            "network_id": port.network.to_string(),
            "ip_address": fixed.address.to_string(),
            "netmask": subnet.cidr.netmask().to_string(),
            "routes": subnet.gateway.map(leads_out).into_iter().collect::<Vec<_>>(),
        }));
    }
}
