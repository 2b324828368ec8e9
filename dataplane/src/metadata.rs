//! The metadata service: what a machine may ask about itself, in the layouts of EC2 and OpenStack that cloud-init reads.
//!
//! Owns [`page`], which finds what stands at a path for one port. `http` speaks HTTP over bytes, `stack` TCP over frames; the shell that moves them
//! is [`switch`](crate::switch). A page is made from the host's networks and the machine of the port that asked: which port that is, is the switch's
//! word, so that tenants with the same addresses are told apart.
//! Never tells one machine about another, never logs what it tells: user data may hold passwords.
//! Source: EC2 "Instance metadata categories"; OpenStack Nova "Metadata service", "network_data.json"; cloud-init's DataSourceEc2 and
//! DataSourceOpenStack.

use std::collections::BTreeSet;

use model::machine::Machine;
use model::network::Port;
use model::spec::HostNetwork;

mod ec2;
mod http;
mod openstack;
pub mod stack;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// What it is (RFC 9110 §8.3).
    pub kind: &'static str,
    /// Its octets.
    pub body: Vec<u8>,
}

/// What came of looking for a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is there.
    Page(Page),
    /// Nothing stands there.
    Nothing,
    /// What the machine is, is not known yet: a client that asks again may learn more.
    NotYet,
}

/// Who asks, with all that there is to tell.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The networks of this host.
    pub network: &'a HostNetwork,
    /// The port.
    pub port: &'a Port,
    /// The machine that has it.
    pub machine: &'a Machine,
}

impl Page {
    fn text(lines: &[impl AsRef<str>]) -> Self {
        let lines: Vec<&str> = lines.iter().map(AsRef::as_ref).collect();
        Self { kind: "text/plain; charset=utf-8", body: lines.join("\n").into_bytes() }
    }

    fn json(value: &serde_json::Value) -> Self {
        Self { kind: "application/json", body: value.to_string().into_bytes() }
    }

    fn octets(octets: &[u8]) -> Self {
        Self { kind: "application/octet-stream", body: octets.to_owned() }
    }
}

/// What stands at `path`, which begins with a slash; none when nothing does.
#[must_use]
pub fn page(asker: Asker<'_>, path: &str) -> Option<Page> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    // Clients double slashes and leave out the last one.
    let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    match words.as_slice() {
        ["openstack", rest @ ..] => openstack::page(asker, rest),
        words => ec2::page(asker, words),
    }
}

impl Asker<'_> {
    /// The machine's name in its domain: that of the first subnet of the port that has one.
    fn full_name(&self) -> String {
        let subnets = self.port.addresses.iter().filter_map(|fixed| self.network.subnets.get(&fixed.subnet));
        match subnets.into_iter().find_map(|subnet| subnet.announced.domain.as_ref()) {
            Some(domain) => format!("{}.{domain}", self.machine.name),
            None => self.machine.name.clone(),
        }
    }

    /// Keys with a name each: their comment where that is one word, else their number.
    fn keys(&self) -> Vec<(String, &str)> {
        let keys = self.machine.metadata.ssh_keys.iter().enumerate();
        let named = keys.map(|(number, key)| {
            let is_word = |text: &&str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@+".contains(c));
            let name = key.comment().filter(|text| !text.is_empty()).filter(is_word);
            (name.map_or_else(|| format!("key-{number}"), str::to_owned), key.as_str())
        });
        let mut keys: Vec<(String, &str)> = named.collect();
        let mut taken = BTreeSet::new();
        for (number, (name, _)) in keys.iter_mut().enumerate() {
            // Each turn makes the name longer than any that is taken may be.
            while !taken.insert(name.clone()) {
                *name = format!("{name}-{number}");
            }
        }
        keys
    }
}

#[cfg(test)]
mod tests;
