//! The layout of OpenStack: a few JSON documents.

use std::net::IpAddr;

use ipnet::IpNet;
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

/// All interfaces of the machine, not only the one that asks.
fn network_data(asker: Asker<'_>) -> Value {
    let (mut links, mut networks, mut services) = (Vec::new(), Vec::new(), Vec::new());
    for id in &asker.machine.ports {
        let Some(port) = asker.network.ports.get(id) else { continue };
        let link = port.tap_name();
        let mtu = asker.network.networks.get(&port.network).map(|network| network.mtu);
        links.push(json!({
            "id": link,
            "vif_id": port.id.to_string(),
            "type": "ovs",
            "ethernet_mac_address": port.mac.to_string(),
            "mtu": mtu,
        }));
        for fixed in &port.addresses {
            let Some(subnet) = asker.network.subnets.get(&fixed.subnet) else { continue };
            let kind = match (subnet.cidr, subnet.dhcp) {
                (IpNet::V4(_), true) => "ipv4_dhcp",
                (IpNet::V4(_), false) => "ipv4",
                (IpNet::V6(_), true) => "ipv6_dhcpv6-stateful",
                (IpNet::V6(_), false) => "ipv6",
            };
            let mut network = json!({
                "id": format!("network{}", networks.len()),
                "type": kind,
                "link": link,
                "network_id": port.network.to_string(),
                "ip_address": fixed.address.to_string(),
                "netmask": subnet.cidr.netmask().to_string(),
            });
            let default = if subnet.cidr.addr().is_ipv4() { "0.0.0.0" } else { "::" };
            let routes = subnet
                .gateway
                .map(|gateway| json!({ "network": default, "netmask": default, "gateway": gateway.to_string() }));
            network["routes"] = routes.into_iter().collect();
            networks.push(network);
            // The host's IPv6 address means nothing without a link, which cloud-init has no word for.
            let host = [IpAddr::from(ADDRESS_V4)];
            let is_ours = subnet.cidr.addr().is_ipv4() && is_resolver(asker.network, port);
            for server in if is_ours { &host[..] } else { &subnet.dns } {
                let service = json!({ "type": "dns", "address": server.to_string() });
                if !services.contains(&service) {
                    services.push(service);
                }
            }
        }
    }
    json!({ "links": links, "networks": networks, "services": services })
}
