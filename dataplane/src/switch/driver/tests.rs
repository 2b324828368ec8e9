//! The driver against a switch in memory, with time that passes when everybody waits.

use std::collections::VecDeque;
use std::sync::Mutex;

use model::network::{Network, Port};
use model::spec::HostNetwork;
use model::{HostId, Mac, NetworkId, PortId, Vni};
use openflow::flow::{Action, Flow, Match, PortNo};
use openflow::wire::CtFlush;
use uuid::Uuid;

use super::super::channel::Reply;
use super::*;
use crate::diff::Counts;
use crate::exit::Exit;
use crate::{PortNumbers, compile};

/// What the test sees of the switch, and what it makes the switch do.
#[derive(Debug, Default)]
struct State {
    up: bool,
    installed: Installed,
    applies: usize,
    reads: usize,
    refuse: usize,
    packets: VecDeque<Punted>,
    sent: Vec<Reply>,
    forgotten: Vec<u16>,
    cut: Vec<CtFlush>,
}

#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<State>>);

impl Memory {
    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn check(&self, what: &'static str) -> Result<(), ChannelError> {
        let lost = || ChannelError::Lost { what, source: "killed".into() };
        self.with(|state| if state.up { Ok(()) } else { Err(lost()) })
    }
}

impl Connector for Memory {
    type Channel = Self;

    async fn connect(&mut self) -> Result<Self, ChannelError> {
        let target = "memory".to_owned();
        let connect = |_| ChannelError::Connect { target, source: "no such socket".into() };
        self.check("connect").map_err(connect)?;
        Ok(self.clone())
    }
}

impl Channel for Memory {
    async fn read(&mut self) -> Result<Installed, ChannelError> {
        self.check("read")?;
        Ok(self.with(|state| {
            state.reads += 1;
            state.installed.clone()
        }))
    }

    async fn count(&mut self) -> Result<Counts, ChannelError> {
        self.check("count")?;
        Ok(self.with(|state| state.installed.counts()))
    }

    async fn apply(&mut self, changes: Changes) -> Result<usize, ChannelError> {
        self.check("apply")?;
        self.with(|state| {
            if state.refuse > 0 {
                state.refuse -= 1;
                return Err(ChannelError::Refused { what: "apply", source: "table full".into() });
            }
            state.applies += 1;
            state.installed = state.installed.after(&changes);
            Ok(changes.steps().count())
        })
    }

    async fn forget(&mut self, zone: u16) -> Result<(), ChannelError> {
        self.check("forget")?;
        self.with(|state| state.forgotten.push(zone));
        Ok(())
    }

    async fn forget_connections(&mut self, which: CtFlush) -> Result<(), ChannelError> {
        self.check("forget")?;
        self.with(|state| state.cut.push(which));
        Ok(())
    }

    async fn punted(&mut self) -> Result<Punted, ChannelError> {
        loop {
            self.check("listen")?;
            if let Some(packet) = self.with(|state| state.packets.pop_front()) {
                return Ok(packet);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn send(&mut self, reply: Reply) -> Result<(), ChannelError> {
        self.check("send")?;
        self.with(|state| state.sent.push(reply));
        Ok(())
    }
}

/// Sends each packet back to where it came from.
struct Echo;

impl Responder for Echo {
    fn respond(&mut self, packet: &Punted) -> Option<Reply> {
        Some(Reply::Out { port: packet.in_port, exit: Exit::default(), frame: packet.frame.clone() })
    }
}

/// The flows of a host with `ports` ports on one network.
fn flows(ports: u8) -> Arc<FlowSet> {
    let host = HostId::from_uuid(Uuid::from_u128(1));
    let tunnel = [192, 0, 2, 1].into();
    let mut network = HostNetwork::empty(host, tunnel);
    let id = NetworkId::from_uuid(Uuid::from_u128(2));
    let vni = Vni::try_from(7).unwrap();
    network.networks.insert(
        id,
        Network { id, name: "net".to_owned(), vni, mtu: 1450, provider: None, routed_prefixes: Vec::new() },
    );
    let mut numbers = PortNumbers { vxlan: Some(PortNo(1)), ..PortNumbers::default() };
    for number in 1..=ports {
        let port = PortId::from_uuid(Uuid::from_u128(u128::from(number) << 8));
        let binding = model::network::Binding {
            machine: model::MachineId::from_uuid(Uuid::from_u128(u128::from(number))),
            hostname: format!("vm{number}"),
            host,
            tunnel,
        };
        let value = Port {
            id: port,
            name: format!("port{number}"),
            network: id,
            key: u32::from(number),
            mac: Mac::new([2, 0, 0, 0, 0, number]),
            addresses: Vec::new(),
            groups: Vec::new(),
            allowed_pairs: Vec::new(),
            qos: model::qos::Qos::default(),
            port_security: true,
            trunk: None,
            mirror: None,
            arriving: None,
            binding: Some(binding),
        };
        network.ports.insert(port, value);
        numbers.ports.insert(port, PortNo(u32::from(number) + 1));
    }
    Arc::new(compile(&network, &numbers))
}

fn start() -> (Memory, Driver) {
    let memory = Memory::default();
    memory.with(|state| state.up = true);
    let driver = Driver::start(memory.clone(), Echo);
    (memory, driver)
}

const LIMIT: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn applying_again_changes_nothing_and_one_port_costs_one_port() {
    let (memory, driver) = start();
    let first = driver.applied(driver.set(flows(3)), LIMIT).await.unwrap();
    assert_eq!(first.added_flows, flows(3).flows().len());
    let again = driver.applied(driver.set(flows(3)), LIMIT).await.unwrap();
    assert_eq!((again.messages, again.unchanged_flows), (0, flows(3).flows().len()));
    let more = driver.applied(driver.set(flows(4)), LIMIT).await.unwrap();
    assert_eq!(more.deleted_flows, 0);
    assert_eq!(more.added_flows, flows(4).flows().len() - flows(3).flows().len());
    let pending = driver.pending(flows(3)).await.unwrap();
    assert_eq!(pending.delete_flows.len(), more.added_flows);
    assert!(driver.pending(flows(4)).await.unwrap().is_empty());
    memory.with(|state| assert_eq!((state.applies, state.reads), (2, 1), "read once, counted after"));
}

#[tokio::test(start_paused = true)]
async fn a_restarted_switch_gets_its_flows_back() {
    let (memory, driver) = start();
    driver.applied(driver.set(flows(3)), LIMIT).await.unwrap();
    memory.with(|state| *state = State::default());
    let mut status = driver.status();
    assert!(status.borrow().is_in_place());
    status.wait_for(|status| !status.connected).await.unwrap();
    assert!(matches!(driver.installed().await, Err(DriverError::NotConnected(_))));
    let late = driver.applied(driver.set(flows(4)), Duration::from_secs(30)).await.unwrap_err().to_string();
    assert!(late.contains("no such socket"), "{late}");
    memory.with(|state| state.up = true);
    status.wait_for(|status| status.applied == 2).await.unwrap();
    memory.with(|state| assert_eq!(state.installed.flows.len(), flows(4).flows().len()));
    assert_eq!((status.borrow().connections, status.borrow().settled), (2, 2));
    assert_eq!(status.borrow().problem, None);
}

/// Two flows as one set: one of the switch's pipeline, and one that translates in a zone to an address.
fn translating(address: Option<[u8; 4]>) -> Arc<FlowSet> {
    let mut part = crate::flow_set::Part::default();
    crate::feature::floating::host(&mut part);
    if let Some(address) = address {
        let addresses = Some((std::net::IpAddr::from(address), None));
        let range = openflow::flow::NatRange { side: openflow::flow::NatSide::Source, addresses, ports: None };
        let nat = openflow::flow::Nat { range: Some(range), ..openflow::flow::Nat::default() };
        let ct = openflow::flow::Ct::commit(openflow::flow::CtZone::Fixed(77));
        let ct = Action::ct(openflow::flow::Ct { actions: vec![Action::Nat(nat)], ..ct });
        let cookie =
            crate::cookie::Cookie { feature: crate::feature::Feature::Snat, object: crate::cookie::Object::Pipeline };
        part.add(crate::table::Table::Output, 1, Match::new().ip(), vec![ct], cookie);
    }
    let mut assembly = crate::flow_set::Assembly::default();
    assembly.replace([(crate::compile::unit::Unit::Host, Some(part))]);
    Arc::new(assembly.set().clone())
}

/// Connections of a zone are forgotten when it translates to another address, or begins or ceases to; twice, for the data path lags behind. A switch
/// that comes back with nothing keeps its connections, and so does one that has all in place.
#[tokio::test(start_paused = true)]
async fn connections_are_forgotten_when_they_are_translated_in_another_way() {
    let (memory, driver) = start();
    let forgotten = async |flows: Arc<FlowSet>| {
        driver.applied(driver.set(flows), LIMIT).await.unwrap();
        tokio::time::sleep(LIMIT).await;
        memory.with(|state| std::mem::take(&mut state.forgotten))
    };
    let (one, other) = (translating(Some([203, 0, 113, 40])), translating(Some([203, 0, 113, 41])));
    assert_eq!(forgotten(Arc::clone(&one)).await, [0; 0], "it may have been there before");
    assert_eq!(forgotten(Arc::clone(&one)).await, [0; 0]);
    assert_eq!(forgotten(Arc::clone(&other)).await, [77, 77]);
    assert_eq!(forgotten(translating(None)).await, [77, 77]);
    assert_eq!(forgotten(Arc::clone(&one)).await, [77, 77]);
    // Another agent on the same switch, to which the address changed meanwhile.
    let next = Driver::start(memory.clone(), Echo);
    next.applied(next.set(Arc::clone(&one)), LIMIT).await.unwrap();
    tokio::time::sleep(LIMIT).await;
    memory.with(|state| assert_eq!(state.forgotten, [0; 0]));
    drop(next);
    let next = Driver::start(memory.clone(), Echo);
    next.applied(next.set(other), LIMIT).await.unwrap();
    tokio::time::sleep(LIMIT).await;
    memory.with(|state| assert_eq!(state.forgotten, [77, 77]));
}

#[tokio::test(start_paused = true)]
async fn what_others_did_is_repaired_or_reported_by_the_audit() {
    let (memory, driver) = start();
    driver.applied(driver.set(flows(2)), LIMIT).await.unwrap();
    let foreign = Flow::new(0, 7, Match::new(), vec![Action::output(PortNo(9))]);
    memory.with(|state| {
        state.installed.flows.truncate(3);
        state.installed.flows.push(foreign.clone());
    });
    let mut status = driver.status();
    status.wait_for(|status| status.repairs == 1).await.unwrap();
    assert_eq!(status.borrow().foreign, [foreign.to_string()]);
    let installed = driver.installed().await.unwrap();
    assert!(installed.flows.contains(&foreign), "not ours to delete");
    assert_eq!(installed.flows.len(), flows(2).flows().len() + 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ours_goes_when_the_settings_say_so() {
    let memory = Memory::default();
    let foreign = Flow::new(0, 7, Match::new(), vec![Action::output(PortNo(9))]);
    let group = openflow::flow::Group::new(7, openflow::flow::GroupKind::All, [vec![Action::output(PortNo(9))]]);
    memory.with(|state| {
        state.up = true;
        state.installed = Installed { flows: vec![foreign], groups: vec![group], meters: Vec::new() };
    });
    let driver = Driver::start_with(DriverSettings { remove_foreign: true }, memory.clone(), Echo);
    driver.applied(driver.set(flows(2)), LIMIT).await.unwrap();
    memory.with(|state| assert_eq!(state.installed.counts(), flows(2).counts()));
    assert_eq!(driver.status().borrow().foreign_count, 0);
}

/// Flows that are said to be touched are looked at and no others; versions that nobody waited for are not left out.
#[tokio::test(start_paused = true)]
async fn an_update_is_applied_at_the_touched_places() {
    let (memory, driver) = start();
    let sets = [flows(2), flows(3), flows(5), flows(4)];
    driver.applied(driver.set(Arc::clone(&sets[0])), LIMIT).await.unwrap();
    let versions: Vec<u64> =
        sets.windows(2).map(|pair| driver.update((*pair[1]).clone(), pair[0].differences(&pair[1]))).collect();
    driver.applied(versions[2], LIMIT).await.unwrap();
    let installed = memory.with(|state| state.installed.clone());
    assert!(diff(&sets[3], &installed).is_empty());
    assert_eq!(installed.counts(), sets[3].counts());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_and_tried_again() {
    let (memory, driver) = start();
    memory.with(|state| state.refuse = 3);
    let version = driver.set(flows(1));
    let error = driver.applied(version, Duration::from_millis(500)).await.unwrap_err().to_string();
    assert!(error.contains("table full"), "{error}");
    driver.applied(version, Duration::from_secs(60)).await.unwrap();
    assert_eq!(driver.status().borrow().connections, 1, "the connection stays");
}

#[tokio::test(start_paused = true)]
async fn packets_are_answered() {
    let (memory, driver) = start();
    let packet = Punted { in_port: PortNo(3), user_data: Vec::new(), frame: vec![1, 2, 3], paused: None };
    memory.with(|state| state.packets.push_back(packet));
    driver.applied(driver.set(flows(1)), LIMIT).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    memory.with(|state| {
        assert_eq!(state.sent, [Reply::Out { port: PortNo(3), exit: Exit::default(), frame: vec![1, 2, 3] }])
    });
}
