//! Whether another host answers on the network between hosts.
//!
//! Owns [`probe`]: one datagram to a port on which nobody listens, from this host's own tunnel address, and what the kernel hears of it. Needs no
//! right that the agent does not have. Never decides what an answer means for a packet.
//! Source: RFC 1122 §4.1.3.1 (a port where nobody listens is told so), RFC 4443 and RFC 792 (what a router says of a host it cannot reach).

use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv4RecvErr;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// The first port that traceroute uses, on which hosts have no service.
const PORT: u16 = 33_434;

/// Longer than Linux asks for a neighbour that does not answer (three times, a second apart).
const LIMIT: Duration = Duration::from_secs(4);

/// What is known of a host.
#[derive(Debug)]
pub enum Reach {
    /// It said something.
    Answers,
    /// It, or the way to it, is down, as the kernel or a router on the way says.
    Unreachable(io::Error),
    /// Neither was heard: a packet filter between the hosts may be why.
    Silent,
    /// The question could not be put: this host does not have its tunnel address.
    NotAsked(io::Error),
}

/// Asks `host`, from the tunnel address of this one. It takes 4 s at most.
pub async fn probe(from: Ipv4Addr, host: Ipv4Addr) -> Reach {
    let socket = match open(from).await {
        Ok(socket) => socket,
        Err(error) => return Reach::NotAsked(error),
    };
    match timeout(LIMIT, answer(&socket, host)).await {
        Ok(Ok(())) => Reach::Answers,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Reach::Answers,
        Ok(Err(error)) => Reach::Unreachable(error),
        Err(_) => Reach::Silent,
    }
}

async fn open(from: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((from, 0)).await?;
    // Without it a socket hears of closed ports alone, not of hosts that are down (ip(7)).
    setsockopt(&socket, Ipv4RecvErr, &true)?;
    Ok(socket)
}

async fn answer(socket: &UdpSocket, host: Ipv4Addr) -> io::Result<()> {
    socket.connect((host, PORT)).await?;
    socket.send(&[0]).await?;
    socket.recv(&mut [0; 64]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use anyhow::Result;
    use basalt_tests::netns::Namespace;
    use basalt_tests::require;
    use basalt_tests::skip::Need;

    use super::{Reach, probe};

    const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);

    fn ask(here: &Namespace, from: Ipv4Addr, host: Ipv4Addr) -> Result<Reach> {
        here.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(probe(from, host)))
        })?
    }

    /// A host that is there, one whose address nobody has, one that nothing leads to, and one that keeps silent are told apart.
    #[test]
    fn hosts_that_are_up_and_down_are_told_apart() -> Result<()> {
        require!(Need::Root);
        let (here, there) = (Namespace::new()?, Namespace::new()?);
        here.add_veth("under0", &there, "under0")?;
        here.add_address("under0", "10.0.9.1/24")?;
        there.add_address("under0", "10.0.9.2/24")?;
        // Frames to this station are nobody's.
        let nobody = ["ip", "neighbour", "add", "10.0.9.3", "lladdr", "02:00:00:00:00:99", "dev", "under0"];
        here.run(&nobody)?;
        let up = ask(&here, HERE, [10, 0, 9, 2].into())?;
        assert!(matches!(up, Reach::Answers), "{up:?}");
        let down = ask(&here, HERE, [10, 0, 9, 7].into())?;
        assert!(matches!(down, Reach::Unreachable(_)), "{down:?}");
        let nowhere = ask(&here, HERE, [10, 1, 0, 1].into())?;
        assert!(matches!(nowhere, Reach::Unreachable(_)), "{nowhere:?}");
        let silent = ask(&here, HERE, [10, 0, 9, 3].into())?;
        assert!(matches!(silent, Reach::Silent), "{silent:?}");
        let not_here = ask(&here, [10, 0, 9, 66].into(), [10, 0, 9, 2].into())?;
        assert!(matches!(not_here, Reach::NotAsked(_)), "{not_here:?}");
        Ok(())
    }
}
