//! The `bundle` and `bundle_load` actions: one port of several, chosen by a hash or by who is alive.
//!
//! Owns [`Spread`] and its text. Never knows whether a port lives. (A bundle of changes is another thing: [`crate::session::Bundle`].)
//! Invariant: text and value convert both ways without loss.
//! Source: ovs-actions(7) "The bundle and bundle_load actions".

use std::fmt;

use super::{
    PortNo,
    action::HashFields,
    subfield::Subfield,
    text::{self, TextError},
};

/// How one of the ports is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpreadAlgorithm {
    /// The first one that is up.
    ActiveBackup,
    /// Highest random weight among those that are up.
    Hrw,
}

impl SpreadAlgorithm {
    /// Wire number and name of each.
    pub(crate) const ALL: [(Self, u16, &'static str); 2] =
        [(Self::ActiveBackup, 0, "active_backup"), (Self::Hrw, 1, "hrw")];
}

/// Chooses a port, and sends the packet there or writes the port's number.
///
/// ```
/// use openflow::flow::Action;
/// let spread: Action = "bundle(symmetric_l4,0,hrw,ofport,members:4,5)".parse()?;
/// assert_eq!(spread.to_string(), "bundle(symmetric_l4,0,hrw,ofport,members:4,5)");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spread {
    /// What is hashed.
    pub fields: HashFields,
    /// Seed of the hash.
    pub basis: u16,
    /// How the port is chosen.
    pub algorithm: SpreadAlgorithm,
    /// The ports; their numbers fit 16 bits.
    pub ports: Vec<PortNo>,
    /// Where the number goes; `None` sends the packet there.
    pub target: Option<Subfield>,
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = HashFields::ALL.iter().find(|(one, ..)| *one == self.fields).map_or("", |(.., name)| name);
        let algorithm = SpreadAlgorithm::ALL.iter().find(|(one, ..)| *one == self.algorithm);
        let algorithm = algorithm.map_or("", |(.., name)| name);
        let word = if self.target.is_some() { "bundle_load" } else { "bundle" };
        write!(f, "{word}({fields},{},{algorithm},ofport,", self.basis)?;
        if let Some(target) = self.target {
            write!(f, "{target},")?;
        }
        f.write_str("members:")?;
        for (index, port) in self.ports.iter().enumerate() {
            write!(f, "{}{port}", if index == 0 { "" } else { "," })?;
        }
        f.write_str(")")
    }
}

impl Spread {
    pub(super) fn parse(text: &str, has_target: bool) -> Result<Self, TextError> {
        let bad = || text::bad("bundle", text);
        let (head, ports) = text.split_once("members:").or_else(|| text.split_once("slaves:")).ok_or_else(bad)?;
        let items = text::items(head)?;
        let (fields, basis, algorithm, target) = match (&items[..], has_target) {
            (&[fields, basis, algorithm, "ofport"], false) => (fields, basis, algorithm, None),
            (&[fields, basis, algorithm, "ofport", target], true) => (fields, basis, algorithm, Some(target.parse()?)),
            _ => return Err(bad()),
        };
        let port = |text: &str| text.parse::<PortNo>().map_err(|_| bad());
        Ok(Self {
            fields: HashFields::ALL.iter().find(|(.., name)| *name == fields).ok_or_else(bad)?.0,
            basis: text::number("bundle", basis)?,
            algorithm: SpreadAlgorithm::ALL.iter().find(|(.., name)| *name == algorithm).ok_or_else(bad)?.0,
            ports: text::items(ports)?.into_iter().map(port).collect::<Result<_, _>>()?,
            target,
        })
    }
}
