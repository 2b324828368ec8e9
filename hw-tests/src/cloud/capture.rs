//! Looking at the wires: packets as tcpdump(8) tells them, in the lab's network, beside the hosts.

use std::time::Duration;

use anyhow::{Context, Result};
use basalt_tests::process::{self, Daemon};

use crate::lab::network::{Network, UNDERLAY};

const START_LIMIT: Duration = Duration::from_secs(20);

/// A capture under way.
#[derive(Debug)]
pub struct Capture {
    daemon: Daemon,
    log: tempfile::NamedTempFile,
}

/// A tenant's packet as it crossed the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// The sending host's underlay address.
    pub from: String,
    /// The receiving host's underlay address.
    pub to: String,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The packet inside, in tcpdump's words.
    pub inside: String,
}

impl Capture {
    /// Starts looking at every VXLAN packet.
    ///
    /// # Errors
    /// tcpdump does not start.
    pub fn start(network: &Network) -> Result<Self> {
        Self::listen(network, UNDERLAY, &["udp", "port", "4789"])
    }

    /// Starts looking at the packets on `link` that match `filter` (pcap-filter(7)).
    ///
    /// # Errors
    /// tcpdump does not start.
    pub fn listen(network: &Network, link: &str, filter: &[&str]) -> Result<Self> {
        let log = tempfile::NamedTempFile::new()?;
        let mut command = network.command("tcpdump");
        command.args(["-i", link, "-n", "-l", "-e", "--immediate-mode"]).args(filter);
        let mut daemon = Daemon::start("tcpdump", &command, log.path())?;
        let path = log.path().to_owned();
        daemon.wait_ready("tcpdump listens", START_LIMIT, || {
            Ok(std::fs::read_to_string(&path)?.contains("listening on").then_some(()))
        })?;
        Ok(Self { daemon, log })
    }

    /// Every packet seen so far.
    ///
    /// # Errors
    /// The capture's output cannot be read.
    pub fn seen(&self) -> Result<Vec<Carried>> {
        Ok(read(&std::fs::read_to_string(self.log.path())?))
    }

    /// Waits for a packet that `wanted` accepts.
    ///
    /// # Errors
    /// None was seen within `limit`; the message has what was seen instead.
    pub fn wait(&self, what: &str, limit: Duration, wanted: impl Fn(&Carried) -> bool) -> Result<Carried> {
        let look = || Ok(self.seen()?.into_iter().find(|packet| wanted(packet)));
        process::wait_for(what, limit, look).with_context(|| {
            let seen = self.seen().unwrap_or_default();
            format!("{} packets on the underlay, the last: {:?}", seen.len(), seen.last())
        })
    }

    /// Waits for a line that `wanted` accepts.
    ///
    /// # Errors
    /// None was seen within `limit`; the message has the end of what was seen instead.
    pub fn wait_line(&self, what: &str, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let text = || std::fs::read_to_string(self.log.path());
        let look = || Ok(text()?.lines().find(|line| wanted(line)).map(str::to_owned));
        process::wait_for(what, limit, look).with_context(|| {
            let seen = text().unwrap_or_default();
            format!("{} lines of tcpdump, the last: {:?}", seen.lines().count(), seen.lines().last())
        })
    }

    /// All lines so far.
    ///
    /// # Errors
    /// The capture's output cannot be read.
    pub fn lines(&self) -> Result<Vec<String>> {
        Ok(std::fs::read_to_string(self.log.path())?.lines().map(str::to_owned).collect())
    }

    /// Ends the capture and returns what was seen.
    ///
    /// # Errors
    /// As [`Capture::seen`].
    pub fn stop(mut self) -> Result<Vec<Carried>> {
        self.daemon.stop()?;
        self.seen()
    }
}

/// Reads tcpdump's two lines for each packet: the outer one with `vni`, then the inner one.
fn read(text: &str) -> Vec<Carried> {
    let lines: Vec<&str> = text.lines().collect();
    lines.windows(2).filter_map(|pair| read_packet(pair[0], pair[1])).collect()
}

fn read_packet(outer: &str, inner: &str) -> Option<Carried> {
    let (addresses, rest) = outer.split_once(": VXLAN, ")?;
    let vni = rest.split("vni ").nth(1)?.trim().parse().ok()?;
    let mut words = addresses.rsplit(' ');
    let (to, _, from) = (words.next()?, words.next()?, words.next()?);
    let host = |text: &str| text.rsplit_once('.').map(|(address, _port)| address.to_owned());
    Some(Carried { from: host(from)?, to: host(to)?, vni, inside: inner.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    //! Shows that tcpdump's lines are understood.
    use super::*;

    const LINES: &str = "\
listening on underlay, link-type EN10MB (Ethernet), snapshot length 262144 bytes
22:50:01.000001 52:54:00:77:01:01 > 52:54:00:77:01:02, ethertype IPv4 (0x0800), length 148: 10.78.0.11.45012 > 10.78.0.12.4789: VXLAN, flags [I] (0x08), vni 77
fa:16:3e:00:00:01 > fa:16:3e:00:00:02, ethertype IPv4 (0x0800), length 98: 10.10.1.3 > 10.10.1.4: ICMP echo request, id 1, seq 0, length 64
22:50:02.000001 IP something else
";

    #[test]
    fn packets_are_read() {
        let packets = read(LINES);
        assert_eq!(packets.len(), 1);
        let packet = &packets[0];
        assert_eq!((packet.from.as_str(), packet.to.as_str(), packet.vni), ("10.78.0.11", "10.78.0.12", 77));
        assert!(packet.inside.contains("10.10.1.3 > 10.10.1.4: ICMP echo request"));
    }
}
