//! Prints the bridges, ports and OpenFlow port numbers of a switch, and again with each change, until interrupted.
//!
//! Run it with `cargo run -p ovsdb --features io --example watch -- unix:/run/openvswitch/db.sock`.

#![expect(clippy::print_stdout, reason = "an example for the command line")]

use std::time::Duration;

use ovsdb::connection::Connection;
use ovsdb::monitor::Watch;
use ovsdb::replica::Replica;
use ovsdb::session::Config;
use ovsdb::tables::{Bridge, DATABASE, Interface, Port, Table, TableError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let remote = std::env::args().nth(1).unwrap_or_else(|| "unix:/run/openvswitch/db.sock".to_owned());
    let watch = Interface::watched_by(Port::watched_by(Bridge::watched_by(Watch::new())));
    let connection = Connection::start(remote.parse()?, Config::new(DATABASE, watch));
    connection.synchronised(Duration::from_secs(10)).await?;
    let mut status = connection.status();
    loop {
        let state = status.borrow_and_update().clone();
        println!("synchronised: {}, generation {}", state.synchronised, state.generation);
        connection.read(print)?;
        status.changed().await?;
    }
}

fn print(replica: &Replica) -> Result<(), TableError> {
    for bridge in Bridge::all(replica)? {
        println!("bridge {}", bridge.name);
        for port in bridge.ports {
            let Some(port) = Port::get(replica, port)? else { continue };
            for interface in port.interfaces {
                let Some(interface) = Interface::get(replica, interface)? else { continue };
                println!("  {} type {:?} ofport {:?}", interface.name, interface.kind, interface.ofport);
            }
        }
    }
    Ok(())
}
