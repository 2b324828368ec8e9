//! Load balancers: addresses whose connections are shared out among members.

use std::net::IpAddr;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{Common, Kind, Name, Session, body, escape};
use crate::failure::Failure;

/// Load balancers.
pub const LOAD_BALANCERS: Kind = Kind {
    path: "/v1/load-balancers",
    columns: &[
        ("NAME", "/name"),
        ("ADDRESS", "/address"),
        ("SUBNET", "/subnet/name"),
        ("STATUS", "/operating_status"),
        ("KEY", "/key"),
        ("ID", "/id"),
    ],
};

/// The members of all listeners of one load balancer.
const MEMBERS: Kind = Kind {
    path: "",
    columns: &[
        ("LISTENER", "/listener"),
        ("PERSISTENCE", "/session_persistence"),
        ("ADDRESS", "/member/address"),
        ("PORT", "/member/port"),
        ("WEIGHT", "/member/weight"),
        ("NETWORK PORT", "/member/network_port/name"),
        ("STATUS", "/member/operating_status"),
        ("REASON", "/member/status_reason"),
    ],
};

/// What can be done with load balancers.
#[derive(Debug, Subcommand)]
pub enum LoadBalancerVerb {
    /// Make a load balancer.
    Create {
        /// Its name.
        name: String,
        /// The subnet that its address is of.
        #[arg(long)]
        subnet: String,
        /// Its address there; a free one unless said.
        #[arg(long)]
        address: Option<IpAddr>,
    },
    /// Have a load balancer listen.
    AddListener {
        /// The load balancer.
        load_balancer: String,
        /// The protocol and the port that clients connect to, as tcp:80.
        listener: Listener,
        /// Which connections keep to one member.
        #[arg(long, value_enum)]
        session_persistence: Option<SessionPersistence>,
        /// How many of its connections may be open at once from each host that has clients, 1 to 1000; any number unless said.
        #[arg(long)]
        connection_limit: Option<u32>,
    },
    /// Give a listener another limit of connections; those that are open stay.
    SetListener {
        /// Which.
        #[command(flatten)]
        at: At,
        /// How many of its connections may be open at once from each host that has clients, 1 to 1000.
        #[arg(long, required_unless_present = "no_connection_limit")]
        connection_limit: Option<u32>,
        /// Any number of them.
        #[arg(long, conflicts_with = "connection_limit")]
        no_connection_limit: bool,
    },
    /// Have it listen no more: connections of the listener are cut.
    RemoveListener {
        /// The load balancer.
        load_balancer: String,
        /// The listener, as tcp:80.
        listener: Listener,
    },
    /// Have the members of a listener checked, each by its own host: who is in error gets nothing new.
    SetMonitor(Monitor),
    /// Check the members of a listener no more: all are taken for online.
    RemoveMonitor(At),
    /// List the members of a load balancer, with what their health monitors found.
    Members(Name),
    /// Give a listener a member: live connections stay where they are.
    AddMember {
        /// Which.
        #[command(flatten)]
        at: At,
        /// Its address: on the load balancer's network, or in a subnet where a router of that stands.
        #[arg(long)]
        address: IpAddr,
        /// The port that it listens on; the listener's unless said.
        #[arg(long)]
        port: Option<u16>,
        /// Its share beside those of the others, 0 to 256; 1 unless said.
        #[arg(long)]
        weight: Option<u16>,
    },
    /// Give a member another weight; with 0 it keeps its connections and gets nothing new.
    SetMember {
        /// Which.
        #[command(flatten)]
        at: At,
        /// Its address.
        #[arg(long)]
        address: IpAddr,
        /// Its port; the listener's unless said.
        #[arg(long)]
        port: Option<u16>,
        /// Its share beside those of the others, 0 to 256.
        #[arg(long)]
        weight: u16,
    },
    /// Take a member away: its connections are cut.
    RemoveMember {
        /// Which.
        #[command(flatten)]
        at: At,
        /// Its address.
        #[arg(long)]
        address: IpAddr,
        /// Its port; the listener's unless said.
        #[arg(long)]
        port: Option<u16>,
    },
    /// What can be done with every kind of object.
    #[command(flatten)]
    Common(Common),
}

/// How the members of a listener are checked.
#[derive(Debug, Clone, Args)]
pub struct Monitor {
    /// Which.
    #[command(flatten)]
    at: At,
    /// What members are asked.
    #[arg(long = "type", value_enum)]
    kind: CheckType,
    /// From one check to the next, in seconds, 1 to 3600; 5 unless said.
    #[arg(long)]
    delay: Option<u16>,
    /// How long an answer may take, in seconds, 1 to the delay, 60 at most; 3 unless said.
    #[arg(long)]
    timeout: Option<u16>,
    /// Checks in a row that must go well before a member in error is online, 1 to 10; 3 unless said.
    #[arg(long)]
    max_retries: Option<u8>,
    /// Checks in a row that must fail before a member is in error, 1 to 10; 3 unless said.
    #[arg(long)]
    max_retries_down: Option<u8>,
    /// GET or HEAD, for http; GET unless said.
    #[arg(long)]
    http_method: Option<String>,
    /// What is requested, for http; / unless said.
    #[arg(long)]
    url_path: Option<String>,
    /// The codes of an answer that is well, for http, as 200, 200,202 or 200-299; 200 unless said.
    #[arg(long)]
    expected_codes: Option<String>,
    /// Keep the monitor and check nobody.
    #[arg(long)]
    disable: bool,
}

/// What a member is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckType {
    /// Whether it takes a connection.
    Tcp,
    /// Whether it answers a request with an expected code.
    Http,
    /// Whether it answers an ICMP echo request.
    Ping,
    /// Whether its port of UDP is open.
    UdpConnect,
}

impl Monitor {
    fn body(&self) -> Value {
        let kind = match self.kind {
            CheckType::Tcp => "TCP",
            CheckType::Http => "HTTP",
            CheckType::Ping => "PING",
            CheckType::UdpConnect => "UDP-CONNECT",
        };
        body([
            ("type", json!(kind)),
            ("delay", json!(self.delay)),
            ("timeout", json!(self.timeout)),
            ("max_retries", json!(self.max_retries)),
            ("max_retries_down", json!(self.max_retries_down)),
            ("http_method", json!(self.http_method)),
            ("url_path", json!(self.url_path)),
            ("expected_codes", json!(self.expected_codes)),
            ("admin_state_up", json!(self.disable.then_some(false))),
        ])
    }
}

/// A listener of a load balancer.
#[derive(Debug, Clone, Args)]
pub struct At {
    /// The load balancer.
    load_balancer: String,
    /// The listener, as tcp:80.
    listener: Listener,
}

/// What names a listener: its protocol and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    protocol: String,
    port: u16,
}

/// Which connections keep to one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SessionPersistence {
    /// Each one for itself.
    None,
    /// All of one client address.
    SourceIp,
}

impl FromStr for Listener {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no protocol and port, as tcp:80");
        let (protocol, port) = text.split_once(':').ok_or_else(wrong)?;
        Ok(Self { protocol: protocol.to_owned(), port: port.parse().map_err(|_| wrong())? })
    }
}

impl Listener {
    fn path(&self, load_balancer: &str) -> String {
        format!("{}/listeners/{}/{}", LOAD_BALANCERS.of(load_balancer), escape(&self.protocol), self.port)
    }
}

impl At {
    fn members(&self) -> String {
        format!("{}/members", self.listener.path(&self.load_balancer))
    }

    fn monitor(&self) -> String {
        format!("{}/health-monitor", self.listener.path(&self.load_balancer))
    }

    fn member(&self, address: IpAddr, port: Option<u16>) -> String {
        format!("{}/{}/{}", self.members(), escape(&address.to_string()), port.unwrap_or(self.listener.port))
    }
}

impl Session<'_> {
    /// Does something with load balancers.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn load_balancer(&self, verb: &LoadBalancerVerb) -> Result<(), Failure> {
        match verb {
            LoadBalancerVerb::Create { name, subnet, address } => {
                let new = [("name", json!(name)), ("subnet", json!(subnet)), ("address", json!(address))];
                self.create(LOAD_BALANCERS, body(new)).await
            }
            LoadBalancerVerb::AddListener { load_balancer, listener, session_persistence, connection_limit } => {
                let persistence = session_persistence.map(|persistence| match persistence {
                    SessionPersistence::None => "none",
                    SessionPersistence::SourceIp => "source_ip",
                });
                let new = [
                    ("protocol", json!(listener.protocol)),
                    ("port", json!(listener.port)),
                    ("session_persistence", json!(persistence)),
                    ("connection_limit", json!(connection_limit)),
                ];
                let path = format!("{}/listeners", LOAD_BALANCERS.of(load_balancer));
                self.show(&self.scheduler.post(&path, &body(new)).await?)
            }
            LoadBalancerVerb::SetListener { at, connection_limit, no_connection_limit: _ } => {
                let change = json!({"connection_limit": connection_limit});
                self.show(&self.scheduler.patch(&at.listener.path(&at.load_balancer), &change).await?)
            }
            LoadBalancerVerb::RemoveListener { load_balancer, listener } => {
                self.show(&self.scheduler.delete(&listener.path(load_balancer)).await?)
            }
            LoadBalancerVerb::SetMonitor(monitor) => {
                self.show(&self.scheduler.put(&monitor.at.monitor(), &monitor.body()).await?)
            }
            LoadBalancerVerb::RemoveMonitor(at) => self.show(&self.scheduler.delete(&at.monitor()).await?),
            LoadBalancerVerb::Members(name) => {
                let balancer = self.scheduler.get(&LOAD_BALANCERS.of(&name.name)).await?;
                super::written(crate::output::list(self.format, MEMBERS.columns, &members(&balancer)))
            }
            LoadBalancerVerb::AddMember { at, address, port, weight } => {
                let new = [("address", json!(address)), ("port", json!(port)), ("weight", json!(weight))];
                self.show(&self.scheduler.post(&at.members(), &body(new)).await?)
            }
            LoadBalancerVerb::SetMember { at, address, port, weight } => {
                let change = json!({"weight": weight});
                self.show(&self.scheduler.patch(&at.member(*address, *port), &change).await?)
            }
            LoadBalancerVerb::RemoveMember { at, address, port } => {
                self.show(&self.scheduler.delete(&at.member(*address, *port)).await?)
            }
            LoadBalancerVerb::Common(verb) => self.common(LOAD_BALANCERS, verb).await,
        }
    }
}

/// The members of all listeners, each with its listener.
fn members(balancer: &Value) -> Vec<Value> {
    let all = |value: &Value, name: &str| value.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let word = |value: &Value, name: &str| value.get(name).cloned().unwrap_or_default();
    let rows = all(balancer, "listeners").into_iter().flat_map(|listener| {
        let name = format!("{}:{}", word(&listener, "protocol").as_str().unwrap_or("-"), word(&listener, "port"));
        let persistence = word(&listener, "session_persistence");
        let row = move |member| json!({"listener": name, "session_persistence": persistence, "member": member});
        all(&listener, "members").into_iter().map(row)
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_a_protocol_and_a_port() {
        let listener: Listener = "tcp:80".parse().unwrap();
        assert_eq!(listener.path("a/b"), "/v1/load-balancers/a%2Fb/listeners/tcp/80");
        for wrong in ["80", "tcp", "tcp:http", "tcp:65536", ""] {
            assert_eq!(wrong.parse::<Listener>(), Err(format!("{wrong:?} is no protocol and port, as tcp:80")));
        }
    }
}
