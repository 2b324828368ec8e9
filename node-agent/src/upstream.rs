//! The resolvers that names of machines are not looked up with, but all others: from the configuration, or the host's own.
//!
//! Owns [`Upstream`], the one form of them in the configuration, and [`follow`], which tells the switch of the host's own resolvers and of changes of
//! them. Asks none of them itself.
//! Source: resolv.conf(5).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::driver::bridge::HostNetworking;

/// Resolvers that are asked: what resolv.conf(5) has at most.
pub const UPSTREAMS_MAX: usize = 3;
/// Where the host's own resolvers stand.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How often that is looked at.
const INTERVAL: Duration = Duration::from_secs(10);
/// The port of DNS (RFC 1035 §4.2).
const PORT: u16 = 53;

/// A resolver: `192.0.2.53`, `2001:db8::53`, or with a port `192.0.2.53:5353`, `[2001:db8::53]:5353`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Upstream(SocketAddr);

/// Text that is no resolver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "take {0:?} as a resolver: want an IP address, or one with a port as in 192.0.2.53:5353 or [2001:db8::53]:5353"
)]
pub struct UpstreamError(String);

impl Upstream {
    /// Where it is asked.
    #[must_use]
    pub const fn address(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let plain = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, PORT));
        let address = plain.or_else(|_| text.parse()).map_err(|_| UpstreamError(text.chars().take(64).collect()))?;
        let can_be_asked = !address.ip().is_unspecified() && !address.ip().is_multicast() && address.port() != 0;
        if can_be_asked { Ok(Self(address)) } else { Err(UpstreamError(text.to_owned())) }
    }
}

impl TryFrom<String> for Upstream {
    type Error = UpstreamError;

    fn try_from(text: String) -> Result<Self, UpstreamError> {
        text.parse()
    }
}

impl From<Upstream> for String {
    fn from(upstream: Upstream) -> Self {
        let Upstream(address) = upstream;
        if address.port() == PORT { address.ip().to_string() } else { address.to_string() }
    }
}

/// The resolvers that text in the form of resolv.conf(5) names; those on a link of their own (`fe80::1%eth0`) are left out.
fn host_resolvers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().map(str::split_ascii_whitespace);
    let named = lines.filter_map(|mut words| (words.next() == Some("nameserver")).then(|| words.next()).flatten());
    let upstreams = named.filter_map(|word| word.parse::<Upstream>().ok());
    upstreams.map(Upstream::address).take(UPSTREAMS_MAX).collect()
}

/// Tells the switch whom to ask: these, or those that the host itself asks, for as long as the agent runs.
pub async fn follow(configured: Option<Vec<Upstream>>, network: Arc<HostNetworking>) {
    if let Some(upstreams) = configured {
        return network.switch().ask_names_of(upstreams.into_iter().map(Upstream::address).collect());
    }
    let mut told = None;
    loop {
        // A file that is not there names nobody.
        let text = tokio::fs::read_to_string(Path::new(RESOLV_CONF)).await.unwrap_or_default();
        let resolvers = host_resolvers(&text);
        if told.as_ref() != Some(&resolvers) {
            tracing::info!(?resolvers, "names of others are asked of the host's resolvers");
            network.switch().ask_names_of(resolvers.clone());
            told = Some(resolvers);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_is_an_address_with_or_without_a_port_and_prints_as_it_was_written() {
        for text in ["192.0.2.53", "192.0.2.53:5353", "2001:db8::53", "[2001:db8::53]:5353"] {
            assert_eq!(String::from(text.parse::<Upstream>().unwrap()), text);
        }
        assert_eq!("::1".parse::<Upstream>().unwrap().address(), "[::1]:53".parse().unwrap());
        for text in ["", "dns.example.org", "192.0.2.53:0", "0.0.0.0", "224.0.0.1", "192.0.2.53/24"] {
            assert!(text.parse::<Upstream>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_hosts_own_resolvers_are_read_as_its_library_reads_them() {
        let text = "# nameserver 192.0.2.1\nsearch example.org\nnameserver 192.0.2.2\nnameserver\tfe80::1%eth0\n\
                    nameserver 2001:db8::3\nnameserver 192.0.2.4 # third\nnameserver 192.0.2.5\noptions edns0\n";
        let want = ["192.0.2.2:53", "[2001:db8::3]:53", "192.0.2.4:53"].map(|text| text.parse().unwrap());
        assert_eq!(host_resolvers(text), want);
        assert_eq!(host_resolvers(""), []);
    }
}
