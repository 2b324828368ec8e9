//! Shows that the learning switch of `examples/` switches between real machines, and fits on a page.
//!
//! How: the example runs against a private Open vSwitch; two network namespaces ping each other.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use basalt_tests::{
    netns::Namespace,
    ovs::Switch,
    process::{Daemon, wait_for},
    require,
    skip::Need,
};

const BRIDGE: &str = "br-learn";
const TIMEOUT: Duration = Duration::from_secs(20);

/// Where cargo puts the example when it builds the tests.
fn example() -> Result<PathBuf> {
    let own = env::current_exe()?;
    let directory = own.ancestors().nth(2).context("the directory of built programs")?;
    Ok(directory.join("examples/learning_switch"))
}

#[test]
fn the_learning_switch_learns() -> Result<()> {
    require!(Need::OpenVswitch, Need::Root);
    let source = include_str!("../examples/learning_switch.rs");
    ensure!(source.lines().count() < 100, "{} lines", source.lines().count());
    let switch = Switch::start()?;
    switch.add_bridge(BRIDGE)?;
    switch.vsctl(&["set", "bridge", BRIDGE, "protocols=OpenFlow10,OpenFlow15", "fail_mode=secure"])?;
    let machines = [Namespace::new()?, Namespace::new()?];
    for (n, machine) in machines.iter().enumerate() {
        switch.plug(BRIDGE, &format!("port{n}"), machine, &format!("02:00:00:00:00:0{}", n + 1))?;
        machine.up("eth0")?;
        machine.add_address("eth0", &format!("10.5.0.{}/24", n + 1))?;
    }
    // A port without checksums on the wire would lose every packet that the userspace datapath hands on.
    ensure!(machines[0].ping([10, 5, 0, 2].into(), 1, Duration::from_secs(1))? == 0, "nobody switches yet");

    let program = example()?;
    ensure!(program.exists(), "{} is not built", program.display());
    let socket = format!("unix:{}", switch.bridge_socket(BRIDGE).display());
    let mut command = Command::new(&program);
    command.arg(&socket);
    let log = switch.dir().join("learning_switch.log");
    let mut running = Daemon::start("learning_switch", &command, Path::new(&log))?;
    running.wait_ready("the learning switch", TIMEOUT, || Ok(running_says(&log, "learning").then_some(())))?;
    let answered = machines[0].ping([10, 5, 0, 2].into(), 5, Duration::from_secs(2))?;
    ensure!(answered == 5, "{answered} of 5 answered: {}", running.log_tail());
    let learned = wait_for("flows for both machines", TIMEOUT, || {
        let flows = switch.ofctl(&["-O", "OpenFlow15", "dump-flows", &socket, "cookie=0x1ea4/-1,table=1"])?;
        Ok((flows.matches("dl_dst=02:00:00:00:00:0").count() >= 2).then_some(flows))
    })?;
    ensure!(learned.contains("idle_timeout=60"), "{learned}");
    running.stop()?;
    Ok(())
}

fn running_says(log: &Path, word: &str) -> bool {
    std::fs::read_to_string(log).is_ok_and(|text| text.contains(word))
}
