//! The client against a real `ovsdb-server` and `ovs-vswitchd`, private to each test.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use basalt_tests::ovs::Switch;
use basalt_tests::require;
use basalt_tests::skip::Need;
use ovsdb::Uuid;
use ovsdb::connection::{Connection, Remote};
use ovsdb::monitor::Watch;
use ovsdb::replica::Change;
use ovsdb::row::Row;
use ovsdb::session::Config;
use ovsdb::tables::{Bridge, DATABASE, Interface, OpenVswitch, Port, Table};
use ovsdb::transaction::{ErrorKind, Mutator, Transaction, TransactionError, Until, Where};
use ovsdb::value::{Name, Value};

const LIMIT: Duration = Duration::from_secs(20);

fn watch() -> Watch {
    Interface::watched_by(Port::watched_by(Bridge::watched_by(OpenVswitch::watched_by(Watch::new()))))
}

async fn connect(switch: &Switch) -> Result<Connection> {
    let connection = Connection::start(Remote::Unix(switch.db_socket()), Config::new(DATABASE, watch()));
    connection.synchronised(LIMIT).await?;
    Ok(connection)
}

/// A bridge with a port and a flow-based VXLAN interface, and the count by which the switch is told to look.
fn bridge_with_tunnel() -> Transaction {
    let mut transaction = Transaction::new();
    let options = Value::map([("remote_ip", "flow"), ("key", "flow"), ("dst_port", "4789")]);
    let tunnel = transaction
        .insert("Interface", &Row::new().with("name", "vxlan0").with("type", "vxlan").with("options", options));
    let port = transaction.insert("Port", &Row::new().with("name", "vxlan0").with("interfaces", &tunnel));
    let local = transaction.insert("Interface", &Row::new().with("name", "br-int").with("type", "internal"));
    let local_port = transaction.insert("Port", &Row::new().with("name", "br-int").with("interfaces", &local));
    let row = Row::new()
        .with("name", "br-int")
        .with("datapath_type", "netdev")
        .with("fail_mode", "secure")
        .with("ports", Value::set([&port, &local_port]));
    let bridge = transaction.insert("Bridge", &row);
    let mutations = [("bridges", Mutator::Insert, Value::from(&bridge)), ("next_cfg", Mutator::Add, Value::from(1))];
    transaction.mutate("Open_vSwitch", &Where::all(), &mutations);
    transaction
}

fn refusal(outcome: Result<impl std::fmt::Debug, TransactionError>) -> Result<(ErrorKind, String, Option<usize>)> {
    match outcome {
        Err(TransactionError::Refused { kind, details, operation }) => Ok((kind, details, operation)),
        other => bail!("not refused: {other:?}"),
    }
}

/// Bridge, port and tunnel are made by one transaction; the port number that the switch gives comes by the monitor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_gets_its_port_number() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let switch = Switch::start()?;
    let connection = connect(&switch).await?;
    let mut changes = connection.changes();
    let outcome = connection.transact(&bridge_with_tunnel()).await?;
    assert_eq!(outcome.count(5), Some(1));
    let find = |replica: &ovsdb::replica::Replica| {
        let interfaces = Interface::all(replica).ok()?;
        interfaces.into_iter().find(|interface| interface.name == "vxlan0")?.ofport
    };
    let port = connection.wait_for(LIMIT, find).await?;
    assert!(port > 0, "{port}");
    assert_eq!(u32::try_from(port)?, switch.ofport("vxlan0")?);
    let first = changes.recv().await?;
    assert!(first.iter().any(|change| change.table == "Bridge" && change.change == Change::Inserted), "{first:?}");
    Ok(())
}

/// The replica says the same as `ovs-vsctl` after sets and maps were changed in many steps: differences are read right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replica_agrees_with_the_server_after_many_changes() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let switch = Switch::start()?;
    let connection = connect(&switch).await?;
    connection.transact(&bridge_with_tunnel()).await?;
    for step in 0..30 {
        let key = format!("key{}", step % 7);
        let mut transaction = Transaction::new();
        let mutation = match step % 3 {
            0 => ("external_ids", Mutator::Insert, Value::map([(key.as_str(), step.to_string().as_str())])),
            1 => ("external_ids", Mutator::Delete, Value::from(key.as_str())),
            _ => ("protocols", if step % 2 == 0 { Mutator::Insert } else { Mutator::Delete }, "OpenFlow14".into()),
        };
        transaction.mutate("Bridge", &Where::equal("name", "br-int"), &[mutation]);
        if step % 5 == 0 {
            let port = Row::new().with("tag", if step % 2 == 0 { Value::from(step) } else { Value::empty() });
            transaction.update("Port", &Where::equal("name", "vxlan0"), &port);
        }
        connection.transact(&transaction).await?;
    }
    let mut read = Transaction::new();
    let bridges = read.select("Bridge", &Where::all(), Bridge::COLUMNS);
    let ports = read.select("Port", &Where::all(), Port::COLUMNS);
    let outcome = connection.transact(&read).await?;
    // The reply to the transaction comes after the updates that it could have seen (RFC 7047 §4.1.3).
    let replica =
        |table| connection.read(|replica| replica.rows(table).map(|(_, row)| row.clone()).collect::<Vec<_>>());
    for (operation, table) in [(bridges, "Bridge"), (ports, "Port")] {
        let (mut server, mut ours) = (outcome.rows(operation).context("no rows")?.to_vec(), replica(table));
        server.sort_by_key(ToString::to_string);
        ours.sort_by_key(ToString::to_string);
        assert_eq!(server, ours);
    }
    Ok(())
}

/// A failed precondition, two rows with one name, a wrong column: each refusal has its kind and the server's words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_typed() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let switch = Switch::start()?;
    let connection = connect(&switch).await?;
    connection.transact(&bridge_with_tunnel()).await?;

    let mut stale = Transaction::new();
    let expected = [Row::new().with("fail_mode", "standalone")];
    stale.require("Bridge", &Where::equal("name", "br-int"), &["fail_mode"], &expected);
    stale.update("Bridge", &Where::equal("name", "br-int"), &Row::new().with("fail_mode", "standalone"));
    let (kind, details, operation) = refusal(connection.transact(&stale).await)?;
    assert_eq!((kind, operation), (ErrorKind::TimedOut, Some(0)), "{details}");

    let (kind, details, _) = refusal(connection.transact(&bridge_with_tunnel()).await)?;
    assert_eq!(kind, ErrorKind::ConstraintViolation);
    assert!(details.contains("have identical values"), "{details}");

    let mut wrong = Transaction::new();
    wrong.comment("about to fail");
    wrong.update("Bridge", &Where::all(), &Row::new().with("fail_mode", "sometimes"));
    let (kind, details, operation) = refusal(connection.transact(&wrong).await)?;
    assert_eq!((kind, operation), (ErrorKind::ConstraintViolation, Some(1)));
    assert!(details.contains("sometimes"), "{details}");

    let mut dangling = Transaction::new();
    let row = Row::new().with("ports", Uuid::from_u128(1));
    dangling.update("Bridge", &Where::equal("name", "br-int"), &row);
    let (kind, ..) = refusal(connection.transact(&dangling).await)?;
    assert_eq!(kind, ErrorKind::ReferentialIntegrityViolation);

    let mut aborted = Transaction::new();
    aborted.delete("Bridge", &Where::all());
    aborted.abort();
    let (kind, _, operation) = refusal(connection.transact(&aborted).await)?;
    assert_eq!((kind, operation), (ErrorKind::Aborted, Some(1)));

    let mut waiting = Transaction::new();
    let other = [Row::new().with("name", "br-other")];
    waiting.wait("Bridge", &Where::all(), &["name"], Until::Equal(&other), 50);
    let (kind, ..) = refusal(connection.transact(&waiting).await)?;
    assert_eq!(kind, ErrorKind::TimedOut);
    Ok(())
}

/// The server is killed, the database changes while the client is away, and the replica catches up by differences.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replica_catches_up_after_the_server_was_killed() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let mut switch = Switch::start()?;
    let connection = connect(&switch).await?;
    connection.transact(&bridge_with_tunnel()).await?;
    let mut status = connection.status();
    switch.kill_ovsdb()?;
    tokio::time::timeout(LIMIT, status.wait_for(|status| !status.synchronised)).await??;
    let refused = connection.transact(&bridge_with_tunnel()).await;
    assert!(matches!(refused, Err(TransactionError::NotConnected)), "{refused:?}");
    assert!(status.borrow().problem.is_some());
    assert_eq!(connection.read(|replica| replica.rows("Bridge").count()), 1, "what was known stays");

    let mut changes = connection.changes();
    let before = connection.read(Port::all)?.len();
    switch.start_ovsdb()?;
    switch.vsctl(&["--no-wait", "add-port", "br-int", "late", "--", "set", "interface", "late", "type=internal"])?;
    let find = |replica: &ovsdb::replica::Replica| {
        Port::all(replica).ok()?.into_iter().find(|port| port.name == "late").map(|port| port.uuid)
    };
    let late = connection.wait_for(LIMIT, find).await?;
    assert_eq!(connection.read(Port::all)?.len(), before + 1);
    let mut told = Vec::new();
    while let Ok(changes) = changes.try_recv() {
        told.extend(changes.iter().cloned());
    }
    assert!(told.iter().any(|change| change.uuid == late && change.change == Change::Inserted), "{told:?}");
    let again = told.iter().any(|change| change.table == "Bridge" && change.change == Change::Inserted);
    assert!(!again, "the bridge was there all the time: {told:?}");
    connection.transact(&Transaction::new()).await?;
    Ok(())
}

/// Of two clients that want a lock one has it; the other gets it when the first lets go, and only then may write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_has_one_owner() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let switch = Switch::start()?;
    let (first, second) = (connect(&switch).await?, connect(&switch).await?);
    let name = Name::new("basalt_test")?;
    let mut held = first.lock(name.clone());
    tokio::time::timeout(LIMIT, held.wait_for(|locks| locks.contains(&name))).await??;
    let mut waiting = second.lock(name.clone());
    let mut guarded = Transaction::new();
    guarded.assert_lock(&name);
    first.transact(&guarded).await?;
    let (kind, ..) = refusal(second.transact(&guarded).await)?;
    assert_eq!(kind, ErrorKind::NotOwner);
    assert!(waiting.borrow().is_empty());
    first.unlock(&name);
    tokio::time::timeout(LIMIT, waiting.wait_for(|locks| locks.contains(&name))).await??;
    second.transact(&guarded).await?;
    Ok(())
}

/// A server that is not there gives an error with the reason, in the time asked for.
#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let remote: Remote = "unix:/nonexistent/db.sock".parse().unwrap();
    let connection = Connection::start(remote, Config::new(DATABASE, watch()));
    let error = connection.synchronised(Duration::from_millis(300)).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/db.sock") && error.contains("No such file"), "{error}");
}
