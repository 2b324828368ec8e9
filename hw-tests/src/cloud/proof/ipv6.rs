//! Proof that IPv6 works as IPv4 does on the kernel's data path: routers by advertisement, neighbours, routing, rules.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use basalt_tests::process;

use super::{Machines, Occupied, network};
use crate::cloud::evidence::Examiner;

/// Guests ask for routers three times, four seconds apart (RFC 4861 §10), and then wait for what is announced.
const ADVERT_LIMIT: Duration = Duration::from_secs(30);

/// What listens on web2 since the proof of ports.
const LISTENERS: [u16; 2] = [80, 81];

/// Runs the proof of this module.
pub(super) fn examine(machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner
        .check("IPv6: addresses by router advertisement, ping and TCP inside a subnet and across", || works(machines));
}

fn works(machines: &Machines) -> Result<String> {
    let all = [machines.get("web1")?, machines.get("web2")?, machines.get("db1")?];
    let routers = all.into_iter().map(settle).collect::<Result<Vec<_>>>()?;
    let [one, two, database] = all;
    let inside = ping(one, two)?;
    let across = [ping(one, database)?, ping(two, database)?];
    // The listeners of the proof of ports take both versions of IP.
    for port in LISTENERS {
        if !connects(two, two, port)? {
            bail!("the listener on port {port} of {} does not answer there", two.vm.name);
        }
    }
    if !connects(one, two, 80)? {
        bail!("port 80 is allowed and does not connect");
    }
    if connects(one, two, 81)? {
        bail!("port 81 is not allowed and connects");
    }
    Ok(format!(
        "web1 made {} with router {}; inside: {inside}; across: {}; port 80 answers, port 81 does not",
        one.vm.address6,
        routers[0],
        across.join(" and ")
    ))
}

/// Waits until the machine has its address, which it made itself from what a router advertised, and a way to that router; gives the router.
fn settle(machine: &Occupied) -> Result<String> {
    let wanted = format!("inet6 {}/64", machine.vm.address6);
    let look = || {
        let text = machine.ok("ip -6 route show default; ip -6 -o addr show dev eth0")?;
        let router = text.lines().find_map(|line| line.strip_prefix("default via ")?.split(' ').next());
        let usable = text.lines().any(|line| line.contains(&wanted) && !line.contains("tentative"));
        Ok(router.filter(|_| usable).map(str::to_owned))
    };
    let router = process::wait_for(&format!("{wanted} and a router"), ADVERT_LIMIT, look);
    router.with_context(|| machine.ok("ip -6 addr; ip -6 route").unwrap_or_default())
}

fn ping(from: &Occupied, to: &Occupied) -> Result<String> {
    let text = from.ok(&format!("ping -6 -c 3 -W 10 {}", to.vm.address6))?;
    let line = text.lines().find(|line| line.contains("packets transmitted")).unwrap_or_default();
    if line.contains(" 0% packet loss") { Ok(line.to_owned()) } else { bail!("{text}") }
}

fn connects(from: &Occupied, to: &Occupied, port: u16) -> Result<bool> {
    network::hears(from, &to.vm.address6, port)
}
