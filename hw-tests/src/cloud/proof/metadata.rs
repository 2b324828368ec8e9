//! Proof that a machine reads about itself, and about nobody else, at the metadata service, and finds its neighbours by name.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Machines, Occupied};
use crate::cloud::evidence::Examiner;

const SERVICE: &str = "169.254.169.254";

/// Runs the proof of this module.
pub(super) fn examine(machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check("each machine reads its own metadata", || own(machines));
    examiner.check("machines of a network find each other by name, and nobody else", || names(machines));
}

fn own(machines: &Machines) -> Result<String> {
    let names = ["web1", "web2", "db1"];
    let seen = names.into_iter().map(|name| read(machines.get(name)?)).collect::<Result<Vec<_>>>()?;
    Ok(format!("{SERVICE}: {}", seen.join(", ")))
}

/// Asks the resolver that DHCP has named.
fn names(machines: &Machines) -> Result<String> {
    let (one, two, database) = (machines.get("web1")?, machines.get("web2")?, machines.get("db1")?);
    for (from, to) in [(one, two), (two, one)] {
        let answer = from.ok(&format!("nslookup {}", to.vm.name))?;
        for address in [&to.vm.address, &to.vm.address6] {
            ensure!(
                answer.lines().any(|line| line.trim_end().ends_with(&format!(" {address}"))),
                "no {address}: {answer}"
            );
        }
    }
    let answer = one.ok(&format!("cat /etc/resolv.conf; nslookup {} || true", database.vm.name))?;
    ensure!(answer.contains("NXDOMAIN") && !answer.contains(&database.vm.address), "another network's name: {answer}");
    Ok(format!("web1 finds web2 at {} and {}, and not db1; web2 finds web1", two.vm.address, two.vm.address6))
}

fn read(machine: &Occupied) -> Result<String> {
    let vm = &machine.vm;
    let text = page(machine, "/openstack/latest/meta_data.json")?;
    let data: Value = serde_json::from_str(&text).with_context(|| format!("the metadata of {}: {text}", vm.name))?;
    let address = page(machine, "/latest/meta-data/local-ipv4")?;
    if data["uuid"] != vm.id.as_str() || address.trim() != vm.address {
        bail!("{} reads uuid {} and address {address}; it is {} at {}", vm.name, data["uuid"], vm.id, vm.address);
    }
    Ok(format!("{} is {} at {}", vm.name, vm.id, vm.address))
}

/// The body of a page, asked for by hand: the wget of a static busybox looks names up by libraries that the guest does not have.
fn page(machine: &Occupied, path: &str) -> Result<String> {
    let ask = format!("printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | timeout 30 nc -w 20 {SERVICE} 80");
    let answer = machine.ok(&ask)?;
    let (head, body) = answer.split_once("\n\n").with_context(|| format!("{path}: no answer of HTTP: {answer}"))?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("{path}: {head}");
    }
    Ok(body.to_owned())
}
