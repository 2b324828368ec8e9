//! Networks, subnets, ports and security groups.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use model::qos::Limit;
use serde_json::{Value, json};

use super::{Common, Kind, Name, Session, body, escape};
use crate::failure::Failure;

/// Networks.
pub const NETWORKS: Kind = Kind {
    path: "/v1/networks",
    columns: &[
        ("NAME", "/name"),
        ("VNI", "/vni"),
        ("MTU", "/mtu"),
        ("PHYSICAL", "/provider/physical_network"),
        ("VLAN", "/provider/segmentation_id"),
        ("ID", "/id"),
    ],
};
/// Ranges of addresses.
pub const SUBNETS: Kind = Kind {
    path: "/v1/subnets",
    columns: &[
        ("NAME", "/name"),
        ("NETWORK", "/network/name"),
        ("CIDR", "/cidr"),
        ("GATEWAY", "/gateway"),
        ("DHCP", "/dhcp"),
        ("ID", "/id"),
    ],
};
/// Virtual network interfaces.
pub const PORTS: Kind = Kind {
    path: "/v1/ports",
    columns: &[
        ("NAME", "/name"),
        ("STATE", "/state"),
        ("NETWORK", "/network/name"),
        ("ADDRESS", "/addresses/0/address"),
        ("MAC", "/mac"),
        ("TRUNK", "/trunk/parent/name"),
        ("VLAN", "/trunk/vlan"),
        ("MIRROR", "/mirror/to/name"),
        ("VM", "/vm/name"),
        ("HOST", "/host/name"),
        ("AWAITED", "/awaited/host/name"),
        ("ID", "/id"),
    ],
};
/// Security groups.
pub const GROUPS: Kind =
    Kind { path: "/v1/security-groups", columns: &[("NAME", "/name"), ("KEY", "/key"), ("ID", "/id")] };
/// The rules of one group.
const RULES: Kind = Kind {
    path: "",
    columns: &[
        ("DIRECTION", "/direction"),
        ("ETHERTYPE", "/ethertype"),
        ("PROTOCOL", "/protocol"),
        ("FROM PORT", "/port_min"),
        ("TO PORT", "/port_max"),
        ("PREFIX", "/remote_prefix"),
        ("GROUP", "/remote_group/name"),
        ("ADDRESS GROUP", "/remote_address_group/name"),
        ("ID", "/id"),
    ],
};
/// What can be done with networks.
#[derive(Debug, Subcommand)]
pub enum NetworkVerb {
    /// Make a network.
    Create {
        /// Its name.
        name: String,
        /// The largest IP packet in bytes; the underlay must carry 50 bytes more.
        #[arg(long)]
        mtu: Option<u16>,
        /// Make it a provider network: untagged (flat) or a VLAN of a physical network.
        #[arg(long, value_parser = ["flat", "vlan"], requires = "provider_physical_network")]
        provider_network_type: Option<String>,
        /// The physical network, by the name that agents have it under.
        #[arg(long, value_name = "NAME", requires = "provider_network_type")]
        provider_physical_network: Option<String>,
        /// The VLAN: 1 to 4094.
        #[arg(long, value_name = "VLAN", requires = "provider_network_type")]
        provider_segment: Option<u16>,
        /// A prefix of IPv6 that the data centre routes to it, as 2001:db8:100::/40; can be given more than once.
        #[arg(long = "routed", value_name = "PREFIX", requires = "provider_network_type")]
        routed: Vec<String>,
    },
    /// Change what the data centre routes to a provider network: subnets in that are reached from outside, behind routers that lead out there by IPv6.
    Set {
        /// Name or id.
        name: String,
        /// All prefixes of IPv6 that are routed to it, as 2001:db8:100::/40; can be given more than once.
        #[arg(long = "routed", value_name = "PREFIX", required_unless_present = "no_routed")]
        routed: Vec<String>,
        /// Nothing is routed to it any more.
        #[arg(long, conflicts_with = "routed")]
        no_routed: bool,
    },
    /// What can be done with every kind of object.
    #[command(flatten)]
    Common(Common),
}

/// What can be done with subnets.
#[derive(Debug, Subcommand)]
pub enum SubnetVerb {
    /// Make a subnet.
    Create {
        /// Its name.
        name: String,
        /// The network that it is on.
        #[arg(long)]
        network: String,
        /// Its addresses, as 10.1.0.0/24 or fd00:1::/64.
        #[arg(long)]
        cidr: String,
        /// The default gateway; the first host address unless said.
        #[arg(long, conflicts_with = "no_gateway")]
        gateway: Option<IpAddr>,
        /// Announce no gateway.
        #[arg(long)]
        no_gateway: bool,
        /// Do not answer DHCP.
        #[arg(long)]
        no_dhcp: bool,
        /// A name server that DHCP announces; can be given more than once. Without any, the host answers.
        #[arg(long)]
        dns: Vec<IpAddr>,
        /// The domain that machines are in, as cloud.example.org: machines of the network know each other by name in it.
        #[arg(long)]
        domain: Option<String>,
    },
    /// What can be done with every kind of object.
    #[command(flatten)]
    Common(Common),
}

/// Who gets copies of the frames of a port.
#[derive(Debug, Args)]
pub struct MirrorWords {
    /// The port that gets copies of its frames, for a machine that watches; on any host.
    #[arg(long = "mirror-to", id = "to", value_name = "PORT")]
    to: Option<String>,
    /// What is copied, as its machine sees it: what comes in, what goes out, or both.
    #[arg(long = "mirror-direction", value_name = "DIRECTION", value_parser = ["in", "out", "both"], requires = "to")]
    direction: Option<String>,
}

impl MirrorWords {
    fn body(&self) -> Value {
        self.to.as_ref().map_or(Value::Null, |to| body([("to", json!(to)), ("direction", json!(self.direction))]))
    }
}

/// What can be done with ports.
#[derive(Debug, Subcommand)]
pub enum PortVerb {
    /// Make a port.
    Create {
        /// Its name.
        name: String,
        /// The network that it is on.
        #[arg(long)]
        network: String,
        /// Its address; a free one of each version of IP that the network has unless said.
        #[arg(long)]
        address: Option<IpAddr>,
        /// Its MAC address; drawn unless said.
        #[arg(long)]
        mac: Option<String>,
        /// A security group; can be given more than once.
        #[arg(long = "group")]
        groups: Vec<String>,
        /// Addresses that it may send from beside its own, as 10.1.0.9/32 or 10.1.0.9/32,00:00:5e:00:01:07 with the MAC address that they come with
        /// (VRRP); can be given more than once.
        #[arg(long = "allowed-pair", value_name = "PREFIX[,MAC]", value_parser = pair)]
        allowed_pairs: Vec<Value>,
        /// What it may send and receive.
        #[command(flatten)]
        qos: Box<QosWords>,
        /// Let spoofed sources pass and hold no security group.
        #[arg(long)]
        no_port_security: bool,
        /// Make it a sub-port of this port: it is on the interface of that one, its frames have the tag of a VLAN there.
        #[arg(long, value_name = "PARENT", requires = "vlan")]
        trunk: Option<String>,
        /// The VLAN of the sub-port, 1 to 4094.
        #[arg(long, requires = "trunk")]
        vlan: Option<u16>,
        /// Who gets copies of its frames.
        #[command(flatten)]
        mirror: MirrorWords,
    },
    /// Change a port's security groups, allowed pairs, quality of service, port security or mirror.
    Set {
        /// Name or id.
        name: String,
        /// All security groups that it is to be in; can be given more than once.
        #[arg(long = "group", conflicts_with = "no_group")]
        groups: Vec<String>,
        /// Take it out of all security groups.
        #[arg(long)]
        no_group: bool,
        /// All that it may send from beside its own addresses; can be given more than once.
        #[arg(long = "allowed-pair", value_name = "PREFIX[,MAC]", value_parser = pair, conflicts_with = "no_allowed_pair")]
        allowed_pairs: Vec<Value>,
        /// Let it send from its own addresses only.
        #[arg(long)]
        no_allowed_pair: bool,
        /// All limits and marks that it is to have: what is not given is taken away when one is.
        #[command(flatten)]
        qos: Box<QosWords>,
        /// Take away all limits and marks.
        #[arg(long)]
        no_qos: bool,
        /// Whether spoofed sources are dropped and security groups hold.
        #[arg(long)]
        port_security: Option<bool>,
        /// Who is to get copies of its frames.
        #[command(flatten)]
        mirror: MirrorWords,
        /// Have nobody get copies of its frames any more.
        #[arg(long, conflicts_with = "to")]
        no_mirror: bool,
    },
    /// Wire a port of a running VM on another host ahead of the VM: the first frame that the VM sends there switches the port.
    Bind {
        /// Name or id; its sub-ports go with it.
        name: String,
        /// The other host, by name or id.
        #[arg(long)]
        host: String,
    },
    /// Take that back, as long as the VM has not spoken there.
    Unbind(Name),
    /// What can be done with every kind of object.
    #[command(flatten)]
    Common(Common),
}

/// Quality of service of a port. What passes is within each limit of its direction. A burst is four fifths of its rate unless said.
#[derive(Debug, Args)]
pub struct QosWords {
    /// Kilobits that it may send in a second, and at once.
    #[arg(long, value_name = "RATE[,BURST]", value_parser = limit)]
    egress_kbps: Option<Value>,
    /// Packets that it may send in a second, and at once.
    #[arg(long, value_name = "RATE[,BURST]", value_parser = limit)]
    egress_pps: Option<Value>,
    /// Kilobits that it may be sent in a second, and at once.
    #[arg(long, value_name = "RATE[,BURST]", value_parser = limit)]
    ingress_kbps: Option<Value>,
    /// Packets that it may be sent in a second, and at once.
    #[arg(long, value_name = "RATE[,BURST]", value_parser = limit)]
    ingress_pps: Option<Value>,
    /// Kilobits a second of the link to its physical network that what it sends gets, also while others send, too; on provider networks.
    #[arg(long, value_name = "RATE")]
    egress_min_kbps: Option<std::num::NonZeroU32>,
    /// The DSCP mark of what it sends, 0 to 63.
    #[arg(long, value_name = "MARK")]
    dscp_mark: Option<u8>,
}

impl QosWords {
    /// What the request says; null when nothing was given.
    fn body(&self) -> Value {
        let limits = |kbps: &Option<Value>, pps: &Option<Value>| body([("kbps", json!(kbps)), ("pps", json!(pps))]);
        let given = |limits: Value| if limits == json!({}) { Value::Null } else { limits };
        given(body([
            ("egress", given(limits(&self.egress_kbps, &self.egress_pps))),
            ("ingress", given(limits(&self.ingress_kbps, &self.ingress_pps))),
            ("egress_min_kbps", json!(self.egress_min_kbps)),
            ("dscp_mark", json!(self.dscp_mark)),
        ]))
    }
}

/// A limit as RATE or RATE,BURST.
fn limit(text: &str) -> Result<Value, String> {
    let (rate, burst) = text.split_once(',').map_or((text, None), |(rate, burst)| (rate, Some(burst)));
    let number = |text: &str| text.parse::<u32>().map_err(|error| format!("{text:?}: {error}"));
    let limit = Limit::new(number(rate)?, burst.map(number).transpose()?).map_err(|error| error.to_string())?;
    Ok(json!(limit))
}

/// What can be done with security groups.
#[derive(Debug, Subcommand)]
pub enum GroupVerb {
    /// Make a security group; it lets everything out.
    Create {
        /// Its name.
        name: String,
        /// Start without any rule: nothing comes in or goes out.
        #[arg(long)]
        empty: bool,
        /// Remember no connections: each direction needs a rule of its own.
        #[arg(long)]
        stateless: bool,
    },
    /// List the rules of a group.
    Rules(Name),
    /// Allow some traffic.
    Allow {
        /// The group.
        group: String,
        /// To the VM (ingress) or from it (egress).
        #[arg(value_parser = ["ingress", "egress"])]
        direction: String,
        /// any, tcp, udp, icmp, or an IP protocol number.
        #[arg(long, default_value = "any")]
        protocol: String,
        /// Destination port, or a range as 8000-8080.
        #[arg(long, value_parser = ports)]
        port: Option<(u16, u16)>,
        /// IPv4 or IPv6.
        #[arg(long, default_value = "IPv4", value_parser = ["IPv4", "IPv6"])]
        ethertype: String,
        /// The other side's addresses; anyone unless said.
        #[arg(long, conflicts_with = "remote_group")]
        prefix: Option<String>,
        /// The other side is in this group.
        #[arg(long)]
        remote_group: Option<String>,
        /// The other side is in this address group.
        #[arg(long, conflicts_with_all = ["prefix", "remote_group"])]
        remote_address_group: Option<String>,
    },
    /// Take a rule out of a group.
    Revoke {
        /// The group.
        group: String,
        /// The id of the rule.
        rule: String,
    },
    /// What can be done with every kind of object.
    #[command(flatten)]
    Common(Common),
}

/// Reads `80` or `8000-8080`.
fn ports(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no port: want 0 to 65535"));
    Ok((number(first)?, number(last)?))
}

/// Reads `10.1.0.9/32` or `10.1.0.9/32,00:00:5e:00:01:07`; a single address needs no prefix length.
fn pair(text: &str) -> Result<Value, String> {
    let (prefix, mac) = text.split_once(',').map_or((text, None), |(prefix, mac)| (prefix, Some(mac)));
    let prefix = match prefix.parse::<IpAddr>() {
        Ok(address) => format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }),
        Err(_) if prefix.contains('/') => prefix.to_owned(),
        Err(_) => return Err(format!("{prefix:?} is no address and no prefix")),
    };
    Ok(json!({"addresses": prefix, "mac": mac}))
}

impl Session<'_> {
    /// Does something with networks.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn network(&self, verb: &NetworkVerb) -> Result<(), Failure> {
        match verb {
            NetworkVerb::Create {
                name,
                mtu,
                provider_network_type,
                provider_physical_network,
                provider_segment,
                routed,
            } => {
                let provider = provider_network_type.as_ref().map(|kind| {
                    body([
                        ("network_type", json!(kind)),
                        ("physical_network", json!(provider_physical_network)),
                        ("segmentation_id", json!(provider_segment)),
                    ])
                });
                let fields = [
                    ("name", json!(name)),
                    ("mtu", json!(mtu)),
                    ("provider", json!(provider)),
                    ("routed_prefixes", json!(routed)),
                ];
                self.create(NETWORKS, body(fields)).await
            }
            NetworkVerb::Set { name, routed, no_routed: _ } => {
                let change = json!({"routed_prefixes": routed});
                self.show(&self.scheduler.patch(&NETWORKS.of(name), &change).await?)
            }
            NetworkVerb::Common(verb) => self.common(NETWORKS, verb).await,
        }
    }

    /// Does something with subnets.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn subnet(&self, verb: &SubnetVerb) -> Result<(), Failure> {
        match verb {
            SubnetVerb::Create { name, network, cidr, gateway, no_gateway, no_dhcp, dns, domain } => {
                let fields = [
                    ("name", json!(name)),
                    ("network", json!(network)),
                    ("cidr", json!(cidr)),
                    ("gateway", json!(gateway)),
                    ("no_gateway", json!(no_gateway)),
                    ("dhcp", json!(!no_dhcp)),
                    ("dns", json!(dns)),
                    ("domain", json!(domain)),
                ];
                self.create(SUBNETS, body(fields)).await
            }
            SubnetVerb::Common(verb) => self.common(SUBNETS, verb).await,
        }
    }

    /// Does something with ports.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn port(&self, verb: &PortVerb) -> Result<(), Failure> {
        match verb {
            PortVerb::Create {
                name,
                network,
                address,
                mac,
                groups,
                allowed_pairs,
                qos,
                no_port_security,
                trunk,
                vlan,
                mirror,
            } => {
                let trunk = trunk.as_ref().map(|parent| json!({"parent": parent, "vlan": vlan}));
                let addresses = address.iter().map(|address| json!({"address": address})).collect::<Vec<_>>();
                let fields = [
                    ("name", json!(name)),
                    ("network", json!(network)),
                    ("addresses", json!(addresses)),
                    ("mac", json!(mac)),
                    ("groups", json!(groups)),
                    ("allowed_pairs", json!(allowed_pairs)),
                    ("qos", qos.body()),
                    ("port_security", json!(!no_port_security)),
                    ("trunk", json!(trunk)),
                    ("mirror", mirror.body()),
                ];
                self.create(PORTS, body(fields)).await
            }
            PortVerb::Set {
                name,
                groups,
                no_group,
                allowed_pairs,
                no_allowed_pair,
                qos,
                no_qos,
                port_security,
                mirror,
                no_mirror,
            } => {
                let mut change = body([
                    ("groups", json!(groups)),
                    ("allowed_pairs", json!(allowed_pairs)),
                    ("qos", if *no_qos { json!({}) } else { qos.body() }),
                    ("port_security", json!(port_security)),
                    ("mirror", mirror.body()),
                ]);
                let emptied = [
                    (no_group, "groups", json!([])),
                    (no_allowed_pair, "allowed_pairs", json!([])),
                    (no_mirror, "mirror", json!(null)),
                ];
                for (is_emptied, field, nothing) in emptied {
                    if *is_emptied && let Value::Object(fields) = &mut change {
                        fields.insert(field.to_owned(), nothing);
                    }
                }
                self.show(&self.scheduler.patch(&PORTS.of(name), &change).await?)
            }
            PortVerb::Bind { name, host } => {
                let path = format!("{}/bindings", PORTS.of(name));
                self.show(&self.scheduler.post(&path, &json!({"host": host})).await?)
            }
            PortVerb::Unbind(name) => {
                self.show(&self.scheduler.delete(&format!("{}/bindings", PORTS.of(&name.name))).await?)
            }
            PortVerb::Common(verb) => self.common(PORTS, verb).await,
        }
    }

    /// Does something with security groups.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn group(&self, verb: &GroupVerb) -> Result<(), Failure> {
        match verb {
            GroupVerb::Create { name, empty, stateless } => {
                let flag = |given: &bool| if *given { json!(true) } else { Value::Null };
                let fields = [("name", json!(name)), ("bare", flag(empty)), ("stateless", flag(stateless))];
                self.create(GROUPS, body(fields)).await
            }
            GroupVerb::Rules(name) => {
                let group = self.scheduler.get(&GROUPS.of(&name.name)).await?;
                let rules = group.pointer("/rules").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                super::written(crate::output::list(self.format, RULES.columns, rules))
            }
            GroupVerb::Allow {
                group,
                direction,
                protocol,
                port,
                ethertype,
                prefix,
                remote_group,
                remote_address_group,
            } => {
                let fields = [
                    ("direction", json!(direction)),
                    ("ethertype", json!(ethertype)),
                    ("protocol", json!(protocol)),
                    ("port_min", json!(port.map(|(first, _)| first))),
                    ("port_max", json!(port.map(|(_, last)| last))),
                    ("remote_prefix", json!(prefix)),
                    ("remote_group", json!(remote_group)),
                    ("remote_address_group", json!(remote_address_group)),
                ];
                self.show(&self.scheduler.post(&format!("{}/rules", GROUPS.of(group)), &body(fields)).await?)
            }
            GroupVerb::Revoke { group, rule } => {
                self.show(&self.scheduler.delete(&format!("{}/rules/{}", GROUPS.of(group), escape(rule))).await?)
            }
            GroupVerb::Common(verb) => self.common(GROUPS, verb).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_or_a_range_of_ports_is_read() {
        assert_eq!(ports("80"), Ok((80, 80)));
        assert_eq!(ports("8000-8080"), Ok((8000, 8080)));
        assert!(ports("80-").is_err() && ports("http").is_err() && ports("65536").is_err());
    }

    #[test]
    fn a_limit_is_read_with_or_without_burst() {
        assert_eq!(limit("1000"), Ok(json!({"rate": 1000, "burst": 800})));
        assert_eq!(limit("1000,50"), Ok(json!({"rate": 1000, "burst": 50})));
        assert!(limit("0").is_err() && limit("5,").is_err() && limit("fast").is_err());
    }

    #[test]
    fn an_allowed_pair_is_read_with_or_without_length_and_mac() {
        assert_eq!(pair("10.1.0.9"), Ok(json!({"addresses": "10.1.0.9/32", "mac": null})));
        assert_eq!(pair("fd00::9"), Ok(json!({"addresses": "fd00::9/128", "mac": null})));
        let with_mac = json!({"addresses": "10.1.0.0/28", "mac": "00:00:5e:00:01:07"});
        assert_eq!(pair("10.1.0.0/28,00:00:5e:00:01:07"), Ok(with_mac));
        assert!(pair("vrrp").is_err());
    }
}
