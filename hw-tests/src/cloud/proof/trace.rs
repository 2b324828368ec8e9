//! Proof that our model of the flows and Open vSwitch agree on every kind of path that the other proofs sent packets along.

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::evidence::Examiner;

/// An address of the blue subnet that no port has.
const SPOOFED: &str = "10.10.1.250";

/// A path: what is asked, and the word that its verdict must have.
struct Path<'a> {
    from: &'a Occupied,
    to: &'a Occupied,
    options: &'static [&'static str],
    verdict: &'static str,
}

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    let name = "flowctl trace and Open vSwitch agree on every path above";
    examiner.check(name, || agree(cloud, machines));
}

fn agree(cloud: &Cloud, machines: &Machines) -> Result<String> {
    let (one, two, database) = (machines.get("web1")?, machines.get("web2")?, machines.get("db1")?);
    let beside = [one, two].into_iter().find(|web| web.vm.host == database.vm.host);
    // With more than two hosts db1 may be alone on its own; then its rules are asked there, and the sender's host only sends.
    let (arrives, refused) = if beside.is_some() { ("delivered", "dropped") } else { ("sent to", "sent to") };
    let beside = beside.unwrap_or(one);
    let apart = if std::ptr::eq(beside, one) { two } else { one };
    let paths = [
        Path { from: one, to: two, options: &[], verdict: "sent to" },
        Path { from: two, to: one, options: &["--tcp", "80"], verdict: "sent to" },
        Path { from: apart, to: database, options: &[], verdict: "sent to" },
        Path { from: beside, to: database, options: &[], verdict: arrives },
        Path { from: beside, to: database, options: &["--tcp", "5432"], verdict: arrives },
        Path { from: beside, to: database, options: &["--tcp", "81"], verdict: refused },
        Path { from: one, to: two, options: &["--source", SPOOFED], verdict: "dropped" },
    ];
    let seen = paths.iter().map(|path| trace(cloud, path)).collect::<Result<Vec<_>>>()?;
    Ok(seen.join("; "))
}

/// Asks on the sender's host; both must answer, agree, and say what packets did.
fn trace(cloud: &Cloud, path: &Path<'_>) -> Result<String> {
    let node = cloud.node(&path.from.vm.host)?;
    let (from, to) = (path.from.vm.name.as_str(), path.to.vm.address.as_str());
    let mut words = vec!["--output", "json", "trace", "--from", from, "--to", to];
    words.extend(path.options);
    let asked = words[2..].join(" ");
    let done = node.flowctl(&words)?;
    let answer: Value =
        serde_json::from_str(&done.text()).with_context(|| format!("{asked}: {}", done.error_text()))?;
    let line = answer["line"].as_str().ok_or_else(|| anyhow!("{asked}: no verdict: {answer}"))?;
    if answer["agree"].as_bool() != Some(true) {
        bail!("{asked}: {line}; disagreement {}, problem {}", answer["disagreement"], answer["problem"]);
    }
    if !line.to_lowercase().contains(path.verdict) {
        bail!("{asked}: {line}; want {:?}", path.verdict);
    }
    Ok(format!("{asked}: {line}"))
}
