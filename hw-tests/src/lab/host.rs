//! A handle on one running lab host: its names and addresses, and commands inside it.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use basalt_tests::process;

use super::emulator::{CONSOLE_LOG, CONSOLE_SOCKET};
use super::exec::{self, Call, Finished};
use super::network::{Network, management_address, underlay_address};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Open vSwitch 3.1 counts processors only once the machine has been up for 10 s; started earlier it forwards nothing.
const SWITCH_UPTIME_SECONDS: f64 = 10.5;
const START_SWITCH: &str = "
    mkdir -p /run/openvswitch /var/log/openvswitch /etc/openvswitch
    ovsdb-tool create /etc/openvswitch/conf.db /usr/share/openvswitch/vswitch.ovsschema
    ovsdb-server /etc/openvswitch/conf.db --remote=punix:/run/openvswitch/db.sock --pidfile --detach --log-file --no-chdir
    ovs-vsctl --no-wait init
    ovs-vsctl --no-wait set Open_vSwitch . external-ids:system-id=$(cat /etc/machine-id)
    ovs-vswitchd --pidfile --detach --log-file --no-chdir";
const CONSOLE_TAIL_BYTES: usize = 3000;
/// What Linux says on the console when it can not go on.
const KERNEL_DIES: [&str; 2] = ["Kernel panic - not syncing", "stack guard page was hit"];
/// Ends of a kernel that programs can bring about.
const BY_PROGRAMS: [&str; 2] = ["Attempted to kill init", "Out of memory"];

/// A host of the lab.
#[derive(Debug, Clone)]
pub struct Host {
    index: u8,
    name: String,
    network: Network,
    directory: PathBuf,
    hand: PathBuf,
}

impl Host {
    pub(super) fn new(index: u8, network: &Network, directory: PathBuf, hand: PathBuf) -> Self {
        Self { index, name: host_name(index), network: network.clone(), directory, hand }
    }

    /// Its number, from 1.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Its host name, `host1` to `host3`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the management network (eth0).
    #[must_use]
    pub fn management(&self) -> Ipv4Addr {
        management_address(self.index)
    }

    /// Its address on the underlay network (eth1), where VXLAN packets go.
    #[must_use]
    pub fn underlay(&self) -> Ipv4Addr {
        underlay_address(self.index)
    }

    /// A command inside; add arguments, then `ok`, `finish` or `start` it.
    pub fn command(&self, program: &str) -> Call<'_, impl FnOnce() -> Result<TcpStream> + use<>> {
        let (network, address) = (self.network.clone(), SocketAddr::from((self.management(), exec::PORT)));
        Call::new(&self.name, move || network.connect(address, CONNECT_LIMIT), program)
    }

    /// The lab's own program inside, for [`Host::command`].
    #[must_use]
    pub fn hand(&self) -> String {
        self.hand.to_string_lossy().into_owned()
    }

    /// Runs a shell script inside and returns its standard output.
    ///
    /// # Errors
    /// The host does not answer or the script ends with another status than 0.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.command("sh").args(["-ec", script]).ok()
    }

    /// Runs a shell script inside, whatever its status.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn try_sh(&self, script: &str) -> Result<Finished> {
        self.command("sh").args(["-ec", script]).finish()
    }

    /// A byte stream to a unix socket inside, such as a guest's console.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn relay(&self, socket: &str) -> Result<(exec::client::OutputStream, exec::client::InputStream)> {
        let day = Duration::from_secs(86_400);
        self.command(&self.hand()).args(["relay", socket]).limit(day).start()?.into_stream()
    }

    /// Waits until Open vSwitch may be started: it miscounts processors in the first 10 s of a machine.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn wait_ready_for_switch(&self) -> Result<()> {
        process::wait_for("10 s of uptime", Duration::from_secs(30), || {
            let text = self.command("cat").arg("/proc/uptime").ok()?;
            let uptime: f64 = text.split(' ').next().unwrap_or_default().parse().context("/proc/uptime")?;
            Ok((uptime > SWITCH_UPTIME_SECONDS).then_some(()))
        })
    }

    /// Starts Open vSwitch as a distribution does: database and switch in /run/openvswitch, on the kernel's data path.
    ///
    /// # Errors
    /// The host does not answer or Open vSwitch does not start.
    pub fn start_switch(&self) -> Result<()> {
        self.wait_ready_for_switch()?;
        self.sh(START_SWITCH).map(drop).with_context(|| format!("starting Open vSwitch in {}", self.name))
    }

    /// The serial console's log.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.directory.join(CONSOLE_LOG)
    }

    /// The end of the serial console's log, for error messages.
    #[must_use]
    pub fn console_tail(&self) -> String {
        let bytes = std::fs::read(self.console_log()).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(CONSOLE_TAIL_BYTES)..]).replace('\r', "")
    }

    /// The words with which the host's kernel died, if it did and no program can have made it. Where the processor is emulated, that is at fault (ADR 3).
    #[must_use]
    pub fn last_words(&self) -> Option<String> {
        let bytes = std::fs::read(self.console_log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        last_words(&text).map(|line| format!("{}: {line}", self.name))
    }

    /// Connects to the serial console.
    ///
    /// # Errors
    /// The host is not running.
    pub fn console(&self) -> Result<UnixStream> {
        connect_in(&self.directory, CONSOLE_SOCKET).with_context(|| format!("the console of {}", self.name))
    }
}

fn last_words(console: &str) -> Option<&str> {
    let says = |line: &str, words: &[&str]| words.iter().any(|words| line.contains(words));
    console.lines().map(str::trim).find(|line| says(line, &KERNEL_DIES) && !says(line, &BY_PROGRAMS))
}

/// The name of host `index`.
#[must_use]
pub fn host_name(index: u8) -> String {
    format!("host{index}")
}

/// Connects to a socket in `directory`, however long its path is: unix socket addresses end at 107 bytes.
fn connect_in(directory: &Path, name: &str) -> Result<UnixStream> {
    use std::os::fd::AsRawFd;
    let handle = std::fs::File::open(directory)?;
    let short = format!("/proc/self/fd/{}/{name}", handle.as_raw_fd());
    Ok(UnixStream::connect(short)?)
}

#[cfg(test)]
mod tests {
    //! Shows that a kernel's end is told from everything else that a console says.
    use super::*;

    #[test]
    fn a_kernel_that_died_is_seen() {
        let alive = "[ 1.0] kvm: already loaded vendor module 'kvm_amd'\r\nbasalt-lab: root is ready\r\n";
        assert_eq!(last_words(alive), None);
        let killed = "[ 9.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100";
        assert_eq!(last_words(&format!("{alive}{killed}\r\n")), None);
        let end = "[ 108.9] Kernel panic - not syncing: corrupted stack end detected inside scheduler";
        assert_eq!(last_words(&format!("{alive}{end}\r\n[ 109.0] Rebooting\r\n")), Some(end));
    }
}
