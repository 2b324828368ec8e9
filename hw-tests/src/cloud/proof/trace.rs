//! Proof that our model of the flows and Open vSwitch agree on every kind of path that the other proofs sent packets along.

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::evidence::Examiner;

/// An address of the blue subnet that no port has.
const SPOOFED: &str = "10.10.1.250";

/// A path: what is asked, and the words that its verdicts must have.
struct Path<'a> {
    from: &'a Occupied,
    to: &'a Occupied,
    /// Whether by IPv6.
    six: bool,
    options: &'static [&'static str],
    /// What the sender's host does with the packet when the receiver is on another; `None` where it does not leave.
    leaves: Option<&'static str>,
    /// What the receiver's host does with it.
    ends: &'static str,
}

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    let name = "flowctl trace and Open vSwitch agree on every path above";
    examiner.check(name, || agree(cloud, machines));
}

fn agree(cloud: &Cloud, machines: &Machines) -> Result<String> {
    let (one, two, database) = (machines.get("web1")?, machines.get("web2")?, machines.get("db1")?);
    let sent = |from, to, options, ends| Path { from, to, six: false, options, leaves: Some("sent to"), ends };
    let paths = [
        sent(one, two, &[][..], "delivered"),
        sent(two, one, &["--tcp", "80"], "delivered"),
        sent(one, database, &[], "delivered"),
        sent(two, database, &[], "delivered"),
        sent(one, database, &["--tcp", "5432"], "delivered"),
        sent(two, database, &["--tcp", "5432"], "delivered"),
        sent(one, database, &["--tcp", "81"], "dropped"),
        sent(two, database, &["--tcp", "81"], "dropped"),
        Path { six: true, ..sent(one, two, &["--tcp", "80"], "delivered") },
        Path { six: true, ..sent(two, database, &[], "delivered") },
        Path { six: true, ..sent(one, database, &["--tcp", "81"], "dropped") },
        Path { leaves: None, ..sent(one, two, &["--source", SPOOFED], "dropped") },
    ];
    let seen = paths.iter().map(|path| both_ends(cloud, path)).collect::<Result<Vec<_>>>()?;
    Ok(seen.join("; "))
}

/// Asks on the sender's host and, of a packet that leaves it for another, there too.
fn both_ends(cloud: &Cloud, path: &Path<'_>) -> Result<String> {
    let (here, there) = (path.from.vm.host.as_str(), path.to.vm.host.as_str());
    match path.leaves {
        Some(leaves) if here != there => {
            Ok(format!("{}; {}", trace(cloud, here, path, leaves)?, trace(cloud, there, path, path.ends)?))
        }
        _ => trace(cloud, here, path, path.ends),
    }
}

/// Asks on one host; model and switch must agree there, and say what packets did.
fn trace(cloud: &Cloud, host: &str, path: &Path<'_>, verdict: &str) -> Result<String> {
    let to = if path.six { &path.to.vm.address6 } else { &path.to.vm.address };
    let (from, to) = (path.from.vm.name.as_str(), to.as_str());
    let mut words = vec!["--output", "json", "trace", "--from", from, "--to", to];
    words.extend(path.options);
    let asked = format!("{host}: {}", words[2..].join(" "));
    let done = cloud.node(host)?.flowctl(&words)?;
    let answer: Value =
        serde_json::from_str(&done.text()).with_context(|| format!("{asked}: {}", done.error_text()))?;
    let line = answer["line"].as_str().ok_or_else(|| anyhow!("{asked}: no verdict: {answer}"))?;
    if answer["agree"].as_bool() != Some(true) {
        bail!("{asked}: {line}; disagreement {}, problem {}", answer["disagreement"], answer["problem"]);
    }
    if !line.to_lowercase().contains(verdict) {
        bail!("{asked}: {line}; want {verdict:?}");
    }
    Ok(format!("{asked}: {line}"))
}
