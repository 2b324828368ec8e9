//! Routers: where they stand, where they lead, and the floating IPs of ports behind them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Common, Kind, Name, Session, body, escape};
use crate::failure::Failure;

/// Routers.
pub const ROUTERS: Kind = Kind { path: "/v1/routers", columns: &[("NAME", "/name"), ("KEY", "/key"), ("ID", "/id")] };

/// The floating IPs of one router.
const FLOATING_IPS: Kind = Kind {
    path: "",
    columns: &[("ADDRESS", "/address"), ("PORT", "/port/name"), ("FIXED", "/fixed"), ("MAC", "/mac")],
};

/// The ports that one router forwards.
const PORT_FORWARDINGS: Kind = Kind {
    path: "",
    columns: &[
        ("PROTOCOL", "/protocol"),
        ("EXTERNAL PORT", "/external_port"),
        ("PORT", "/port/name"),
        ("INTERNAL ADDRESS", "/internal_ip_address"),
        ("INTERNAL PORT", "/internal_port"),
    ],
};

/// The routes of one router.
const ROUTES: Kind = Kind { path: "", columns: &[("DESTINATION", "/destination"), ("NEXT HOP", "/next_hop")] };

/// What can be done with routers.
#[derive(Debug, Subcommand)]
pub enum RouterVerb {
    /// Make a router.
    Create {
        /// Its name.
        name: String,
    },
    /// Put a router into a subnet.
    Attach {
        /// The router.
        router: String,
        /// The subnet.
        subnet: String,
        /// Its address there; the subnet's gateway unless said.
        #[arg(long)]
        address: Option<IpAddr>,
    },
    /// Take a router out of a subnet.
    Detach {
        /// The router.
        router: String,
        /// The subnet.
        subnet: String,
    },
    /// List the routes of a router.
    Routes(Name),
    /// Give a router a route; several next hops for one destination share its connections.
    AddRoute {
        /// The router.
        router: String,
        /// The addresses that it leads to, as 172.16.0.0/12.
        #[arg(long)]
        destination: String,
        /// Who leads there: an address in a subnet where the router stands.
        #[arg(long)]
        next_hop: IpAddr,
    },
    /// Take a route from a router.
    RemoveRoute {
        /// The router.
        router: String,
        /// The addresses that it leads to.
        #[arg(long)]
        destination: String,
        /// Who leads there.
        #[arg(long)]
        next_hop: IpAddr,
    },
    /// Lead a router out of the cloud.
    SetGateway {
        /// The router.
        router: String,
        /// The external subnet, on a provider network; its gateway leads to everywhere else.
        subnet: String,
        /// Ports without a floating IP do not get out; else they share an address that the router takes there.
        #[arg(long)]
        no_snat: bool,
    },
    /// Take a router's way out.
    ClearGateway {
        /// The router.
        router: String,
    },
    /// Lead a router out of the cloud by IPv6: nothing is translated, and ports behind it leave from their own hosts. What of its subnets is reached from outside
    /// lies in a prefix that is routed to the network (network set --routed); others stay inside.
    SetIpv6Gateway {
        /// The router.
        router: String,
        /// The external subnet, of IPv6 on a provider network; its gateway leads to everywhere else.
        subnet: String,
        /// The router's own address there, by which the data centre may route prefixes to it; a free one unless said.
        #[arg(long)]
        address: Option<Ipv6Addr>,
    },
    /// Take a router's way out by IPv6.
    ClearIpv6Gateway {
        /// The router.
        router: String,
    },
    /// List the floating IPs of a router.
    FloatingIps(Name),
    /// Give a port behind a router an address outside, for both directions.
    AddFloatingIp {
        /// The router.
        router: String,
        /// The port.
        port: String,
        /// The address in the external subnet; a free one unless said.
        #[arg(long)]
        address: Option<Ipv4Addr>,
        /// Which address of the port; the first one behind the router unless said.
        #[arg(long)]
        fixed: Option<Ipv4Addr>,
    },
    /// Take a floating IP away.
    RemoveFloatingIp {
        /// The router.
        router: String,
        /// The address.
        address: Ipv4Addr,
    },
    /// List the ports of a router's own address outside that it forwards.
    PortForwardings(Name),
    /// Forward a port of a router's own address outside, which SNAT gives it, to a port behind the router.
    AddPortForwarding {
        /// The router.
        router: String,
        /// tcp or udp.
        #[arg(long)]
        protocol: String,
        /// The port outside.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        external_port: u16,
        /// The port that has the address.
        #[arg(long)]
        port: String,
        /// Which address of the port; the first one behind the router unless said.
        #[arg(long)]
        internal_ip_address: Option<IpAddr>,
        /// The port there.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        internal_port: u16,
    },
    /// Forward a port no more; connections by it are cut.
    RemovePortForwarding {
        /// The router.
        router: String,
        /// tcp or udp.
        #[arg(long)]
        protocol: String,
        /// The port outside.
        #[arg(long)]
        external_port: u16,
    },
    /// Have all that crosses a router's way out judged; a direction without a policy is closed.
    SetFirewall {
        /// The router.
        router: String,
        /// The policy of connections that begin outside.
        #[arg(long, value_name = "POLICY")]
        ingress: Option<String>,
        /// The policy of connections that begin behind the router.
        #[arg(long, value_name = "POLICY")]
        egress: Option<String>,
    },
    /// Take a router's firewall away: all may cross.
    ClearFirewall {
        /// The router.
        router: String,
    },
    /// What can be done with every kind of object.
    #[command(flatten)]
    Common(Common),
}

impl Session<'_> {
    /// Does something with routers.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn router(&self, verb: &RouterVerb) -> Result<(), Failure> {
        match verb {
            RouterVerb::Create { name } => self.create(ROUTERS, json!({"name": name})).await,
            RouterVerb::Attach { router, subnet, address } => {
                let path = format!("{}/interfaces", ROUTERS.of(router));
                let foot = body([("subnet", json!(subnet)), ("address", json!(address))]);
                self.show(&self.scheduler.post(&path, &foot).await?)
            }
            RouterVerb::Detach { router, subnet } => {
                let path = format!("{}/interfaces/{}", ROUTERS.of(router), escape(subnet));
                self.show(&self.scheduler.delete(&path).await?)
            }
            RouterVerb::Routes(name) => self.list_of(name, "/routes", &ROUTES).await,
            RouterVerb::AddRoute { router, destination, next_hop } => {
                let route = json!({"destination": destination, "next_hop": next_hop});
                self.show(&self.scheduler.post(&format!("{}/routes", ROUTERS.of(router)), &route).await?)
            }
            RouterVerb::RemoveRoute { router, destination, next_hop } => {
                let next_hop = escape(&next_hop.to_string());
                let path = format!("{}/routes/{}/{next_hop}", ROUTERS.of(router), escape(destination));
                self.show(&self.scheduler.delete(&path).await?)
            }
            RouterVerb::SetGateway { router, subnet, no_snat } => {
                let path = format!("{}/gateway", ROUTERS.of(router));
                let gateway = json!({"subnet": subnet, "enable_snat": !no_snat});
                self.show(&self.scheduler.post(&path, &gateway).await?)
            }
            RouterVerb::SetIpv6Gateway { router, subnet, address } => {
                let path = format!("{}/ipv6-gateway", ROUTERS.of(router));
                let gateway = body([("subnet", json!(subnet)), ("address", json!(address))]);
                self.show(&self.scheduler.post(&path, &gateway).await?)
            }
            RouterVerb::ClearIpv6Gateway { router } => self.take(router, "ipv6-gateway").await,
            RouterVerb::ClearGateway { router } => self.take(router, "gateway").await,
            RouterVerb::FloatingIps(name) => self.list_of(name, "/gateway/floating_ips", &FLOATING_IPS).await,
            RouterVerb::AddFloatingIp { router, port, address, fixed } => {
                let path = format!("{}/floating-ips", ROUTERS.of(router));
                let new = [("port", json!(port)), ("address", json!(address)), ("fixed", json!(fixed))];
                self.show(&self.scheduler.post(&path, &body(new)).await?)
            }
            RouterVerb::RemoveFloatingIp { router, address } => {
                self.show(&self.scheduler.delete(&format!("{}/floating-ips/{address}", ROUTERS.of(router))).await?)
            }
            RouterVerb::PortForwardings(name) => {
                self.list_of(name, "/gateway/port_forwardings", &PORT_FORWARDINGS).await
            }
            RouterVerb::AddPortForwarding {
                router,
                protocol,
                external_port,
                port,
                internal_ip_address,
                internal_port,
            } => {
                let path = format!("{}/port-forwardings", ROUTERS.of(router));
                let new = [
                    ("protocol", json!(protocol)),
                    ("external_port", json!(external_port)),
                    ("port", json!(port)),
                    ("internal_ip_address", json!(internal_ip_address)),
                    ("internal_port", json!(internal_port)),
                ];
                self.show(&self.scheduler.post(&path, &body(new)).await?)
            }
            RouterVerb::RemovePortForwarding { router, protocol, external_port } => {
                let path = format!("{}/port-forwardings/{}/{external_port}", ROUTERS.of(router), escape(protocol));
                self.show(&self.scheduler.delete(&path).await?)
            }
            RouterVerb::SetFirewall { router, ingress, egress } => {
                let policies = [("ingress_firewall_policy", json!(ingress)), ("egress_firewall_policy", json!(egress))];
                self.show(&self.scheduler.post(&format!("{}/firewall", ROUTERS.of(router)), &body(policies)).await?)
            }
            RouterVerb::ClearFirewall { router } => self.take(router, "firewall").await,
            RouterVerb::Common(verb) => self.common(ROUTERS, verb).await,
        }
    }

    /// Takes a part of a router away.
    async fn take(&self, router: &str, part: &str) -> Result<(), Failure> {
        self.show(&self.scheduler.delete(&format!("{}/{part}", ROUTERS.of(router))).await?)
    }

    /// Lists what a router has of one kind.
    async fn list_of(&self, name: &Name, pointer: &str, kind: &Kind) -> Result<(), Failure> {
        let router = self.scheduler.get(&ROUTERS.of(&name.name)).await?;
        let all = router.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        super::written(crate::output::list(self.format, kind.columns, all))
    }
}
