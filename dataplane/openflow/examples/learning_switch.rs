//! A learning switch: floods what it does not know, and installs a flow for each address that it has seen.
//!
//! Usage: `cargo run --features io --example learning_switch -- unix:/run/openvswitch/br0.mgmt`

#![expect(clippy::print_stderr, reason = "an example that is run by hand says on standard error what it does")]

use std::{collections::BTreeMap, env, process::ExitCode};

use openflow::{
    connection::{Connection, Options, Target, Unasked},
    flow::{Action, Controller, Field, Flow, Match, PortNo},
    wire::{FlowMod, PacketIn},
};

const COOKIE: u64 = 0x1ea4;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("learning_switch: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let target: Target = env::args().nth(1).ok_or("give the switch, as in unix:/run/openvswitch/br0.mgmt")?.parse()?;
    let options = Options { wants_unasked: true, ..Options::default() };
    let (switch, mut incoming) = Connection::connect(&target, options).await?;
    // Table 0 asks the controller about new sources and goes on to table 1, which knows where addresses are.
    let unknown = Action::Controller(Controller::new().with_userdata(*b"new"));
    let flood = Flow::new(1, 0, Match::new(), vec![Action::output(PortNo::FLOOD)]);
    let ask = Flow::new(0, 0, Match::new(), vec![unknown, Action::GotoTable(1)]);
    let base = [flood, ask].map(|flow| FlowMod::add(flow.with_cookie(COOKIE)).into());
    switch.apply_bundle(base.to_vec()).await?;
    eprintln!("switch {:#x}: learning", switch.features().datapath_id);
    let mut places: BTreeMap<[u8; 6], PortNo> = BTreeMap::new();
    while let Some(message) = incoming.next().await {
        if let Unasked::PacketIn(packet) = message {
            learn(&switch, &mut places, &packet).await?;
        }
    }
    Err("the switch closed the connection".into())
}

/// Installs flows for the packet's source, when it is new or has moved.
async fn learn(
    switch: &Connection,
    places: &mut BTreeMap<[u8; 6], PortNo>,
    packet: &PacketIn,
) -> Result<(), Box<dyn std::error::Error>> {
    let (Some(port), Some(source)) = (packet.in_port(), packet.packet.get(6..12)) else { return Ok(()) };
    let source: [u8; 6] = source.try_into()?;
    if places.insert(source, port) == Some(port) {
        return Ok(());
    }
    let known = Match::new().in_port(port).eth_src(source);
    let known = Flow::new(0, 10, known, vec![Action::GotoTable(1)]);
    let place = Match::new().with(Field::EthDst, source);
    let place = Flow::new(1, 10, place, vec![Action::output(port)]);
    let changes = [known, place].map(|flow| FlowMod::add(flow.with_cookie(COOKIE).with_timeouts(60, 0)).into());
    switch.apply_bundle(changes.to_vec()).await?;
    Ok(())
}
