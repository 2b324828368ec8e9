//! All hosts of a cloud with their flows, in the model: what becomes of a packet from where it begins to where it ends, over tunnels too.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it, as a module of its own")]

use std::net::IpAddr;

use dataplane::trace::{Connection, Outcome, Packet, Payload, Verdict};
use dataplane::{FlowSet, PortNumbers, compile, trace};

use crate::topology::{Cloud, VXLAN, endpoint, host_id};

pub struct World {
    pub cloud: Cloud,
    pub numbers: Vec<PortNumbers>,
    pub sets: Vec<FlowSet>,
}

impl World {
    /// So many hosts, each with the numbers that it knows.
    pub fn of(cloud: Cloud, hosts: usize, numbers: impl Fn(&Cloud, usize) -> PortNumbers) -> Self {
        let numbers: Vec<_> = (0..hosts).map(|host| numbers(&cloud, host)).collect();
        let sets = numbers.iter().enumerate().map(|(host, numbers)| compile(&cloud.host(host), numbers)).collect();
        Self { cloud, numbers, sets }
    }

    /// The host that a port is on; the first for one that is nowhere.
    pub fn host_of(&self, port: usize) -> usize {
        (0..self.sets.len()).find(|host| self.cloud.ports[port].is_on(host_id(*host))).unwrap_or(0)
    }

    pub fn from(&self, port: usize, to: impl Into<IpAddr>, payload: Payload) -> Packet {
        let host = self.host_of(port);
        Packet::from_port(&self.cloud.host(host), &self.numbers[host], &self.cloud.ports[port], to, payload).unwrap()
    }

    /// As it comes out of the tunnel at `host`, by the port of its sender where it has one there.
    pub fn arrival(&self, from: usize, host: usize, outcome: &Outcome, vni: u32) -> Packet {
        let port = self.numbers[host].peers.get(&endpoint(from)).map_or(VXLAN, |peer| peer.number);
        outcome.leaving.out_of_tunnel(port, (endpoint(from), vni))
    }

    /// What becomes of a packet at the end, with the host where it did.
    pub fn ends(&self, host: usize, packet: &Packet, connection: Connection) -> Vec<(usize, Outcome)> {
        let mut ends = Vec::new();
        for outcome in trace(&self.sets[host], packet, connection).outcomes {
            match outcome.verdict {
                Verdict::Tunnelled { endpoint: at, vni, host: named, .. } => {
                    let other = (0..self.sets.len()).find(|other| endpoint(*other) == at);
                    let Some(other) = other else { panic!("no host has endpoint {at}") };
                    assert_eq!(named, Some(host_id(other)), "the endpoint is named");
                    ends.extend(self.ends(other, &self.arrival(host, other, &outcome, vni), connection));
                }
                _ => ends.push((host, outcome)),
            }
        }
        ends
    }

    /// The same in words.
    pub fn says(&self, host: usize, packet: &Packet, connection: Connection) -> String {
        let ends = self.ends(host, packet, connection);
        let words = ends.iter().map(|(host, outcome)| format!("host {host}: {}", outcome.verdict));
        words.collect::<Vec<_>>().join(" | ")
    }
}
