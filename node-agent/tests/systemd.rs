//! The packaged units under a real systemd: ready when it has looked, watched, restarted when it hangs, and machines that outlive all of it.
//!
//! systemd is the distribution's own, as PID 1 of namespaces of its own (`basalt_tests::systemd`); switch, KVM and VMM are real. The units
//! are those of `packaging/systemd`; only the watchdog's time is shortened and the log put into a
//! file, by a drop-in, as an operator would.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

#[expect(dead_code, reason = "not all tests use all of it")]
mod agent;

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::{ask, running, spec_value, uuid};
use basalt_tests::ovs::Switch;
use basalt_tests::process::wait_for;
use basalt_tests::require;
use basalt_tests::skip::Need;
use basalt_tests::systemd::{self, Systemd};
use serde_json::{Value, json};

const UNIT: &str = "basalt-node-agent.service";
const SETTLE: Duration = Duration::from_secs(60);
/// Short, so that the test need not wait a minute for systemd to lose patience; long enough for a loaded machine.
const WATCHDOG: &str = "[Service]\nWatchdogSec=6\nStandardError=append:/run/agent.log\n";

struct Host {
    systemd: Systemd,
    switch: Switch,
}

impl Host {
    fn boot() -> Self {
        let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd");
        let packaged = |name: &'static str| (name, std::fs::read_to_string(packaging.join(name)).unwrap());
        let units = [packaged(UNIT), packaged("basalt.slice"), packaged("basalt-scheduler.service")];
        let switch = Switch::start().unwrap();
        let systemd = Systemd::boot(&units, Some(switch.namespace()), &[switch.dir()]).unwrap();
        let host = Self { systemd, switch };
        host.copy(Path::new(env!("CARGO_BIN_EXE_node-agent")), "/usr/bin/node-agent");
        host.copy(&basalt_tests::program::built("vmm").unwrap(), "/usr/bin/vmm");
        let run_dir = host.switch.dir();
        // Everything else is as a package leaves it.
        host.write(
            "/etc/basalt/agent.toml",
            &format!(
                "[spec]\nsource = \"api\"\n[images]\ndirectory = \"/var/images\"\n[machines]\nshutdown_grace_seconds = 1\n\
                 [switch]\ndatapath = \"netdev\"\nrun_dir = {run_dir:?}\ndatabase = {:?}\n",
                run_dir.join("db.sock")
            ),
        );
        host.write(&format!("/etc/systemd/system/{UNIT}.d/watchdog.conf"), WATCHDOG);
        host.systemd.systemctl(&["daemon-reload"]).unwrap();
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.systemd.path(path).unwrap()
    }

    fn copy(&self, from: &Path, to: &str) {
        std::fs::copy(from, self.path(to)).unwrap();
    }

    fn write(&self, to: &str, text: &str) {
        let path = self.path(to);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn status(&self) -> Value {
        let text = ask(&self.path("/run/basalt/agent.sock"), "GET", "/v1/status", "");
        text.map_or_else(|error| json!({ "error": error }), |text| serde_json::from_str(&text).unwrap())
    }

    fn settled(&self, generation: u64) {
        let look = || {
            let status = self.status();
            Ok((status["settled"] == true && status["generation"] == generation).then_some(()))
        };
        let waited = wait_for("the host to settle", SETTLE, look);
        waited.unwrap_or_else(|error| panic!("{error}: {:#}\n{}", self.status(), self.log()));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("/run/agent.log")).unwrap_or_default()
    }

    fn put(&self, spec: &Value) {
        ask(&self.path("/run/basalt/agent.sock"), "PUT", "/v1/spec", &spec.to_string()).unwrap();
    }

    fn property(&self, name: &str) -> String {
        self.systemd.property(UNIT, name).unwrap()
    }

    /// Waits until the unit is active with another process than `before`.
    fn restarted(&self, before: &str) -> String {
        let look = || {
            let now = self.property("MainPID");
            Ok((now != before && self.property("ActiveState") == "active").then_some(now))
        };
        wait_for("systemd to start the agent again", SETTLE, look)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }
}

/// `systemctl start` returns when the agent has looked at its host, and fails for an agent that cannot begin; the watchdog hears of it; a
/// machine sits in a scope of its own, and neither a restart of the unit, nor an agent that hangs and is killed for it, nor a stop touch it.
#[test]
fn the_units_run_under_systemd_and_machines_outlive_them() {
    require!(
        Need::Root,
        Need::OpenVswitch,
        Need::Kvm,
        Need::File(systemd::PROGRAM),
        Need::Program("systemd-run"),
        Need::File("/dev/net/tun")
    );
    let host = Host::boot();
    let systemd = &host.systemd;

    host.write("/var/lib/basalt/ledger/spec.json", "{");
    assert!(systemd.systemctl(&["start", UNIT]).is_err(), "an agent that cannot begin is not ready");
    std::fs::remove_file(host.path("/var/lib/basalt/ledger/spec.json")).unwrap();
    systemd.systemctl(&["stop", UNIT]).unwrap();

    systemd.systemctl(&["start", UNIT]).unwrap();
    assert_eq!((host.property("Type"), host.property("ActiveState")), ("notify".to_owned(), "active".to_owned()));
    assert_eq!(host.property("StatusText"), "no specification yet", "READY and STATUS came from the agent");

    let spec = running(spec_value(1, 1, false), "blk=bench:4000000000", &host.path("/var/images"));
    host.put(&spec);
    host.settled(1);
    let scope = format!("basalt-vm-{}.scope", uuid(1, 1));
    assert_eq!(systemd.property(&scope, "ActiveState").unwrap(), "active");
    assert_eq!(systemd.property(&scope, "Slice").unwrap(), "basalt.slice");
    let machine = systemd.processes(&scope).unwrap();
    let [vmm] = machine[..] else { panic!("one process in the scope: {machine:?}") };
    assert!(std::fs::read_to_string(format!("/proc/{vmm}/cmdline")).unwrap().contains("/usr/bin/vmm"));
    let of_agent = systemd.processes(UNIT).unwrap();
    assert!(!of_agent.contains(&vmm), "{of_agent:?}");
    let port = host.switch.ofport("tap1").unwrap();
    let untouched = |after: &str| {
        assert_eq!(systemd.processes(&scope).unwrap(), machine, "after {after}");
        assert_eq!(host.switch.ofport("tap1").unwrap(), port, "after {after}");
    };

    let first = host.property("MainPID");
    systemd.systemctl(&["restart", UNIT]).unwrap();
    let second = host.restarted(&first);
    host.settled(1);
    untouched("a restart");

    let heard = host.property("WatchdogTimestampMonotonic");
    let again = || Ok((host.property("WatchdogTimestampMonotonic") != heard).then_some(()));
    wait_for("a word to the watchdog", SETTLE, again).unwrap();
    assert_eq!(host.property("NRestarts"), "0", "an agent that turns is left alone");

    systemd.run("kill", &["-STOP", &second]).unwrap();
    host.restarted(&second);
    assert_eq!(host.property("NRestarts"), "1", "systemd ended the agent that hung");
    host.settled(1);
    untouched("an agent that hung");

    systemd.systemctl(&["stop", UNIT]).unwrap();
    assert_eq!(host.property("ActiveState"), "inactive");
    untouched("a stop");

    systemd.systemctl(&["start", UNIT]).unwrap();
    let mut stopped = spec;
    stopped["generation"] = json!(2);
    stopped["machines"][0]["power"] = json!("stopped");
    host.put(&stopped);
    host.settled(2);
    assert_eq!(systemd.property(&scope, "ActiveState").unwrap(), "inactive", "the scope ends with its machine");
}
