//! The network half of a host's agent as a process of its own: takes a specification, compiles it, drives a real Open vSwitch, and says what each
//! step cost. `cargo xtask bench net` measures it.
//!
//! usage: `host_agent DATABASE_SOCKET BRIDGE_SOCKET LISTEN_SOCKET`. It listens on a unix socket; each line is a command, each answer a line of JSON.
//! Everything but the listening is what `node-agent` runs: the same [`HostSwitch`], the same decoding of the same file.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use dataplane::Edit;
use dataplane::switch::bridge::{Datapath, Settings};
use dataplane::switch::driver::Applied;
use dataplane::switch::host::HostSwitch;
use dataplane::switch::openflow::OpenFlow;
use model::network::Port;
use model::security::SecurityGroup;
use model::spec::{HostNetwork, NodeSpec};
use model::{HostId, PortId};
use ovsdb::connection::Remote;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixListener;

/// How long flows may take.
const LIMIT: Duration = Duration::from_secs(300);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Command {
    /// Waits until the switch has given numbers to this many ports.
    Ready(usize),
    /// Takes a specification from a file, and waits until its flows are installed.
    Spec(PathBuf),
    /// Adds or replaces a port.
    PutPort(Box<Port>),
    /// Takes a port away.
    RemovePort(PortId),
    /// Adds or replaces a security group.
    PutGroup(Box<SecurityGroup>),
}

/// What a command cost.
#[derive(Debug, Default, Serialize)]
struct Answer {
    /// Reading and checking the specification.
    read_ms: f64,
    compile_ms: f64,
    /// From the command until the switch has confirmed.
    total_ms: f64,
    messages: usize,
    flows: usize,
    groups: usize,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [database, bridge, listen] = arguments.as_slice() else {
        bail!("usage: host_agent DATABASE_SOCKET BRIDGE_SOCKET LISTEN_SOCKET");
    };
    let settings = Settings {
        database: Remote::Unix(database.clone()),
        bridge: "br-int".to_owned(),
        datapath: Datapath::Netdev,
        tunnel_ip: Some([127, 0, 0, 1].into()),
        physical: std::collections::BTreeMap::new(),
        bandwidth_kbps: Default::default(),
        export: None,
        watches_peers: false,
    };
    let nothing = HostNetwork::empty(HostId::from_uuid(uuid::Uuid::nil()), [127, 0, 0, 1].into());
    let switch = HostSwitch::start(settings, OpenFlow::unix(bridge.clone()), nothing);
    switch.ensure().await?;
    let listener = UnixListener::bind(listen).with_context(|| format!("listen on {}", listen.display()))?;
    let (stream, _) = listener.accept().await?;
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        let command: Command = serde_json::from_str(&line).with_context(|| format!("read command {line}"))?;
        let mut answer = serde_json::to_string(&serve(&switch, command).await?)?;
        answer.push('\n');
        write.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

async fn serve(switch: &HostSwitch, command: Command) -> Result<Answer> {
    let start = Instant::now();
    let mut read = Duration::ZERO;
    let applied = match command {
        Command::Ready(ports) => {
            let mut changes = switch.bridge().changes();
            while switch.bridge().numbers()?.ports.len() < ports {
                changes.changed().await?;
            }
            Applied::default()
        }
        Command::Spec(path) => {
            let network = {
                let octets = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
                let spec: NodeSpec = model::spec::wire::decode(&octets)?;
                spec.network().clone()
            };
            read = start.elapsed();
            switch.program(network, LIMIT).await?
        }
        Command::PutPort(port) => switch.edit(vec![Edit::PutPort(port)], LIMIT).await?,
        Command::RemovePort(id) => switch.edit(vec![Edit::RemovePort(id)], LIMIT).await?,
        Command::PutGroup(group) => switch.edit(vec![Edit::PutGroup(group)], LIMIT).await?,
    };
    let flows = switch.flows();
    Ok(Answer {
        read_ms: milliseconds(read),
        compile_ms: milliseconds(applied.compile),
        total_ms: milliseconds(start.elapsed()),
        messages: applied.messages,
        flows: flows.flows().len(),
        groups: flows.groups().len(),
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
