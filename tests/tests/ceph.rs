//! The private Ceph cluster itself: up, killed, up again with its data, destroyed without a trace.

use basalt_tests::ceph::shared::{Use, lease};
use basalt_tests::ceph::{Cluster, Name, Settings};
use basalt_tests::netns::Namespace;
use basalt_tests::require;
use basalt_tests::skip::Need;

fn quiet(_line: &str) {}

/// A cluster in a namespace of its own listens on that namespace's address, survives SIGKILL of every daemon with its
/// data, refuses other settings, and leaves nothing behind.
#[test]
fn cluster_in_a_namespace_survives_sigkill() {
    require!(Need::Root, Need::Ceph);
    let namespace = Namespace::new().unwrap();
    namespace.add_tap("mgmt").unwrap();
    namespace.add_address("mgmt", "10.77.0.1/24").unwrap();
    namespace.up("mgmt").unwrap();
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("c");
    let settings = Settings {
        address: "10.77.0.1".parse().unwrap(),
        netns: Some(namespace.name().to_owned()),
        ..Settings::default()
    };
    let cluster = Cluster::up(&directory, &settings, &quiet).unwrap();
    cluster.rbd(&["create", "--size", "8M", "volumes/kept"]).unwrap();
    let monitors = cluster.ceph(&["mon", "dump"]).unwrap();
    assert!(monitors.contains("v2:10.77.0.1:3300"), "{monitors}");

    for name in [Name::Mon, Name::Mgr, Name::Osd(0)] {
        cluster.kill(name).unwrap();
    }
    assert!(!cluster.is_running());
    let cluster = Cluster::up(&directory, &settings, &quiet).unwrap();
    assert_eq!(cluster.rbd(&["ls", "volumes"]).unwrap(), "kept\n");

    let other = Settings { osds: 2, ..settings };
    let error = Cluster::up(&directory, &other, &quiet).unwrap_err().to_string();
    assert!(error.contains("destroy it to make it anew"), "{error}");

    let pids: Vec<i32> = cluster.status().iter().filter_map(|daemon| daemon.pid).collect();
    assert_eq!(pids.len(), 3);
    Cluster::destroy(&directory).unwrap();
    assert!(pids.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}/exe")).exists()));
    assert_eq!(std::fs::read_dir(&directory).map(Iterator::count).unwrap_or(0), 0);
}

/// Tests share one cluster; a test that kills daemons has it alone and leaves it to be healed by the next.
#[test]
fn shared_cluster_heals_after_a_test_that_broke_it() {
    require!(Need::Root, Need::Ceph);
    let alone = lease(Use::Alone).unwrap();
    alone.kill(Name::Osd(0)).unwrap();
    drop(alone);
    let together = lease(Use::Together).unwrap();
    assert!(together.is_running());
    let also = lease(Use::Together).unwrap();
    assert_eq!(also.conf(), together.conf());
}
