//! The layout of EC2: a tree of small texts.

use std::net::IpAddr;

use super::{Asker, Page};

/// Versions of the layout that are told apart nowhere: what is there was in the first.
const VERSIONS: [&str; 3] = ["1.0", "2009-04-04", "latest"];

pub(super) fn page(asker: Asker<'_>, words: &[&str]) -> Option<Page> {
    match words {
        [] => Some(Page::text(&VERSIONS)),
        [version, rest @ ..] if VERSIONS.contains(version) => versioned(asker, rest),
        _ => None,
    }
}

fn versioned(asker: Asker<'_>, words: &[&str]) -> Option<Page> {
    let user_data = asker.machine.metadata.user_data.as_ref();
    match words {
        [] => Some(Page::text(&[&["meta-data/"][..], if user_data.is_some() { &["user-data"] } else { &[] }].concat())),
        ["user-data"] => user_data.map(|data| Page::octets(data.octets())),
        ["meta-data"] => {
            let leaves = LEAVES.iter().filter(|name| leaf(asker, name).is_some()).copied();
            let keys = (!asker.machine.metadata.ssh_keys.is_empty()).then_some("public-keys/");
            Some(Page::text(&leaves.chain(keys).collect::<Vec<_>>()))
        }
        ["meta-data", "public-keys", rest @ ..] => public_keys(asker, rest),
        ["meta-data", name] => leaf(asker, name).map(|text| Page::text(&[text])),
        _ => None,
    }
}

/// The texts that there may be, in the order of their listing.
const LEAVES: [&str; 6] = ["hostname", "instance-id", "ipv6", "local-hostname", "local-ipv4", "mac"];

fn leaf(asker: Asker<'_>, name: &str) -> Option<String> {
    let addresses = || asker.port.addresses.iter().map(|fixed| fixed.address);
    match name {
        "hostname" | "local-hostname" => Some(asker.full_name()),
        "instance-id" => Some(asker.machine.id.to_string()),
        "local-ipv4" => addresses().find(IpAddr::is_ipv4).map(|address| address.to_string()),
        "ipv6" => addresses().find(IpAddr::is_ipv6).map(|address| address.to_string()),
        "mac" => Some(asker.port.mac.to_string()),
        _ => None,
    }
}

fn public_keys(asker: Asker<'_>, words: &[&str]) -> Option<Page> {
    let keys = asker.keys();
    if keys.is_empty() {
        return None;
    }
    let key = |number: &str| number.parse().ok().and_then(|number: usize| keys.get(number));
    match words {
        [] => {
            let listing = keys.iter().enumerate().map(|(number, (name, _))| format!("{number}={name}"));
            Some(Page::text(&listing.collect::<Vec<_>>()))
        }
        [number] => key(number).map(|_| Page::text(&["openssh-key"])),
        [number, "openssh-key"] => key(number).map(|(_, key)| Page::text(&[key])),
        _ => None,
    }
}
