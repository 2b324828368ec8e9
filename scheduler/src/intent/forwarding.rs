//! Port forwardings: ports of a router's own address outside that lead to ports of addresses behind it.

use std::net::IpAddr;
use std::sync::Arc;

use model::network::{ForwardedProtocol, PortForwarding, Router, Snat};
use model::spec::external::PORT_FORWARDINGS_MAX;
use model::{PortId, RouterId, SubnetId};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Intent, clip, find, refuse_users};
use crate::refusal::Refusal;

/// A port forwarding to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPortForwarding {
    /// tcp or udp.
    #[schema(value_type = String, example = "tcp")]
    protocol: String,
    /// The port of the router's address outside: 1 to 65535.
    external_port: u16,
    /// The port behind the router that has the address, by name or id.
    port: String,
    /// Which IPv4 address of the port; its first one behind the router unless said.
    #[schema(value_type = Option<String>, example = "10.1.0.5")]
    internal_ip_address: Option<IpAddr>,
    /// The port there: 1 to 65535.
    internal_port: u16,
}

impl Intent {
    /// Forwards a port of a router's address.
    pub(crate) fn add_port_forwarding(&mut self, name: &str, new: &NewPortForwarding) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        let protocol = protocol(&new.protocol)?;
        for (field, number) in [("external_port", new.external_port), ("internal_port", new.internal_port)] {
            if number == 0 {
                return Err(Refusal::invalid(field, "there is no port 0: they go from 1 to 65535"));
            }
        }
        let mut router = (*router).clone();
        let (port, fixed) = self.end_behind(&router, new)?;
        let Some(snat) = router.external.as_mut().and_then(|external| external.snat.as_mut()) else {
            return Err(Refusal::State {
                object: format!("router {}", router.name),
                problem: "it has no address outside to forward ports of: set its gateway, with SNAT".to_owned(),
                field: None,
            });
        };
        let forwarding = PortForwarding {
            protocol,
            external_port: new.external_port,
            port,
            internal_ip_address: fixed,
            internal_port: new.internal_port,
        };
        refuse_taken(snat, &forwarding)?;
        if snat.forwardings.len() >= PORT_FORWARDINGS_MAX {
            let problem =
                format!("a router forwards at most {PORT_FORWARDINGS_MAX} ports: remove one that is not used");
            return Err(Refusal::invalid("external_port", problem));
        }
        snat.forwardings.push(forwarding);
        self.routers.insert(id, Arc::new(router));
        Ok(id)
    }

    /// The port that is meant, with its address behind the router, which no floating IP may stand for.
    fn end_behind(&self, router: &Router, new: &NewPortForwarding) -> Result<(PortId, std::net::Ipv4Addr), Refusal> {
        let (id, port) = find(&self.ports, &new.port, Some("port"))?;
        let port = &port.port;
        if let Some(IpAddr::V6(address)) = new.internal_ip_address {
            let problem = format!("{address} is of IPv6, whose addresses need no forwarding: only IPv4 is translated");
            return Err(Refusal::invalid("internal_ip_address", problem));
        }
        let is_near = |subnet: SubnetId| router.interfaces.iter().any(|foot| foot.subnet == subnet);
        let mut near = port
            .addresses
            .iter()
            .filter(|fixed| is_near(fixed.subnet))
            .filter_map(|fixed| if let IpAddr::V4(address) = fixed.address { Some(address) } else { None });
        let Some(fixed) = near.find(|address| new.internal_ip_address.is_none_or(|wanted| wanted == *address)) else {
            let problem = format!("port {} has no such IPv4 address behind router {}", port.name, router.name);
            let field = if new.internal_ip_address.is_some() { "internal_ip_address" } else { "port" };
            return Err(Refusal::invalid(field, problem));
        };
        let external = router.external.iter().flat_map(|external| &external.floating_ips);
        if let Some(floating) = external.into_iter().find(|it| it.port == id && it.fixed == fixed) {
            let problem = format!(
                "{fixed} of port {} has floating IP {}, by which its answers would leave: it is reached by that",
                port.name, floating.address
            );
            return Err(Refusal::invalid("port", problem));
        }
        Ok((id, fixed))
    }

    /// Forwards a port of a router's address no more.
    pub(crate) fn remove_port_forwarding(
        &mut self,
        name: &str,
        protocol: &str,
        external_port: &str,
    ) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        let mut router = (*router).clone();
        let forwardings = router.external.as_mut().and_then(|it| it.snat.as_mut()).map(|snat| &mut snat.forwardings);
        let removed = forwardings.is_some_and(|all| {
            let before = all.len();
            all.retain(|it| it.protocol.name() != protocol || it.external_port.to_string() != external_port);
            all.len() < before
        });
        if !removed {
            let name = format!("{} {}", clip(protocol), clip(external_port));
            return Err(Refusal::Missing { kind: "port forwarding of the router", name, field: None });
        }
        self.routers.insert(id, Arc::new(router));
        Ok(id)
    }

    /// Takes away the port forwardings to a port that goes.
    pub(super) fn drop_port_forwardings(&mut self, port: PortId) {
        for router in self.routers.values_mut() {
            if forwardings(router).all(|forwarding| forwarding.port != port) {
                continue;
            }
            let external = Arc::make_mut(router).external.as_mut();
            if let Some(snat) = external.and_then(|external| external.snat.as_mut()) {
                snat.forwardings.retain(|forwarding| forwarding.port != port);
            }
        }
    }

    /// The port forwardings to a port, in words.
    pub(super) fn port_forwardings_to(&self, port: PortId) -> impl Iterator<Item = String> {
        let all = self.routers.values().flat_map(|router| forwardings(router).map(move |it| (&router.name, it)));
        all.filter(move |(_, forwarding)| forwarding.port == port).map(|(router, it)| words(router, it))
    }
}

/// The ports that a router forwards.
fn forwardings(router: &Router) -> impl Iterator<Item = &PortForwarding> {
    let snat = router.external.iter().filter_map(|external| external.snat.as_ref());
    snat.flat_map(|snat| &snat.forwardings)
}

/// A port forwarding, by what removes it.
fn words(router: &str, forwarding: &PortForwarding) -> String {
    let PortForwarding { protocol, external_port, .. } = forwarding;
    format!("port forwarding {protocol} {external_port} of router {router}")
}

/// Refuses to take from a router what some of its port forwardings need.
pub(super) fn refuse_forwarded(
    router: &Router,
    object: String,
    needs: impl Fn(&PortForwarding) -> bool,
) -> Result<(), Refusal> {
    let users = forwardings(router).filter(|forwarding| needs(forwarding));
    refuse_users(object, users.map(|forwarding| words(&router.name, forwarding)))
}

/// Refuses a second way from a port outside, and a second way back from one inside.
fn refuse_taken(snat: &Snat, new: &PortForwarding) -> Result<(), Refusal> {
    let PortForwarding { protocol, external_port, .. } = *new;
    for other in snat.forwardings.iter().filter(|other| other.protocol == protocol) {
        let owner = format!("port forwarding {other}");
        if other.external_port == external_port {
            let what = format!("{protocol} port {external_port} of {}", snat.address);
            return Err(Refusal::Taken { field: "external_port".to_owned(), what, owner });
        }
        let end = |it: &PortForwarding| (it.port, it.internal_ip_address, it.internal_port);
        if end(other) == end(new) {
            let what = format!("{protocol} port {} of {}", new.internal_port, new.internal_ip_address);
            return Err(Refusal::Taken { field: "internal_port".to_owned(), what, owner });
        }
    }
    Ok(())
}

fn protocol(name: &str) -> Result<ForwardedProtocol, Refusal> {
    match name {
        "tcp" => Ok(ForwardedProtocol::Tcp),
        "udp" => Ok(ForwardedProtocol::Udp),
        other => Err(Refusal::invalid("protocol", format!("{:?} is neither tcp nor udp", clip(other)))),
    }
}
