//! Addresses for servers that a test starts as processes of their own and so has to name beforehand.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU16, Ordering};

/// The first port; each call takes the next.
const FIRST_PORT: u16 = 8443;

/// An address on loopback that nobody else listens on: the process has an address to itself, and outgoing connections, which come from 127.0.0.1, take no
/// port of it.
#[must_use]
pub fn address() -> SocketAddrV4 {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    // Linux counts processes to 2^22 at most (proc(5), pid_max).
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    SocketAddrV4::new(
        Ipv4Addr::new(127, high.saturating_add(1), middle, low),
        FIRST_PORT + COUNT.fetch_add(1, Ordering::Relaxed),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_has_an_address_to_listen_on() {
        let addresses = [address(), address()];
        assert_ne!(addresses[0], addresses[1]);
        let listeners = addresses.map(|address| std::net::TcpListener::bind(address).unwrap());
        assert!(listeners.iter().all(|listener| !listener.local_addr().unwrap().ip().is_unspecified()));
    }
}
