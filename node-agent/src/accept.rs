//! Which spec is taken in: only one for this host, and none older than the one in force.
//!
//! Pure; the caller keeps the spec in the ledger before it counts.

use model::HostId;
use model::spec::{Generation, NodeSpec};
use serde::Serialize;

use crate::ledger::LedgerError;

/// Why a spec was refused. What was in force stays in force.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is older than the one in force.
    #[error("take in generation {offered}: generation {in_force} is in force already")]
    Stale {
        /// The one offered.
        offered: Generation,
        /// The one in force.
        in_force: Generation,
    },
    /// It has the number of the one in force and says something else.
    #[error("take in generation {generation}: it differs from the one of the same number in force")]
    Differs {
        /// The number of both.
        generation: Generation,
    },
    /// It is for another host.
    #[error("take in generation {generation}: it is for host {other}, this is host {this}")]
    OtherHost {
        /// Its number.
        generation: Generation,
        /// The host that it is for.
        other: HostId,
        /// This host.
        this: HostId,
    },
    /// Specs come from elsewhere.
    #[error("take in a spec through the local API: spec.source says that it comes from {0}")]
    OtherSource(&'static str),
    /// It could not be kept.
    #[error("keep the spec in the ledger")]
    Ledger(#[from] LedgerError),
}

impl Refusal {
    /// What its sender can do.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Stale { .. } | Self::Differs { .. } => "send it under a generation number that is larger".to_owned(),
            Self::OtherHost { this, .. } => format!("send the spec of host {this}"),
            Self::OtherSource(_) => "set spec.source = \"api\" for a host without a scheduler".to_owned(),
            Self::Ledger(error) => error.remedy(),
        }
    }

    /// A word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Stale { .. } => "stale_generation",
            Self::Differs { .. } => "generation_differs",
            Self::OtherHost { .. } => "other_host",
            Self::OtherSource(_) => "other_source",
            Self::Ledger(_) => "ledger",
        }
    }
}

/// What became of an offered spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Accepted {
    /// It is in force now.
    New,
    /// It was in force already.
    Same,
}

/// Decides on an offered spec.
///
/// # Errors
/// [`Refusal`] when it is not to be taken in.
pub fn accept(in_force: Option<&NodeSpec>, this: Option<HostId>, offered: &NodeSpec) -> Result<Accepted, Refusal> {
    let generation = offered.generation();
    let this = this.or_else(|| in_force.map(NodeSpec::host));
    if let Some(this) = this.filter(|this| *this != offered.host()) {
        return Err(Refusal::OtherHost { generation, other: offered.host(), this });
    }
    match in_force {
        // What was in force before the host joined says nothing about what its scheduler counts.
        Some(now) if now.host() != offered.host() => Ok(Accepted::New),
        Some(now) if generation < now.generation() => {
            Err(Refusal::Stale { offered: generation, in_force: now.generation() })
        }
        Some(now) if generation == now.generation() && now == offered => Ok(Accepted::Same),
        Some(now) if generation == now.generation() => Err(Refusal::Differs { generation }),
        _ => Ok(Accepted::New),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::spec::SpecParts;
    use std::net::Ipv4Addr;

    fn host(number: u128) -> HostId {
        HostId::from_uuid(uuid::Uuid::from_u128(number))
    }

    fn spec(generation: u64, of: u128, tunnel: u8) -> NodeSpec {
        NodeSpec::check(SpecParts {
            generation: Generation(generation),
            host: host(of),
            tunnel: Ipv4Addr::new(10, 0, 0, tunnel),
            networks: vec![],
            subnets: vec![],
            routers: vec![],
            address_groups: vec![],
            balancers: vec![],
            firewall_policies: vec![],
            mirrors: vec![],
            groups: vec![],
            ports: vec![],
            images: vec![],
            volumes: vec![],
            retired_volumes: vec![],
            machines: vec![],
        })
        .unwrap()
    }

    #[test]
    fn only_newer_specs_for_this_host_are_taken_in() {
        let now = spec(5, 1, 1);
        assert_eq!(accept(None, None, &now).unwrap(), Accepted::New);
        assert_eq!(accept(Some(&now), None, &spec(6, 1, 1)).unwrap(), Accepted::New);
        assert_eq!(accept(Some(&now), None, &now.clone()).unwrap(), Accepted::Same);
        assert!(matches!(accept(Some(&now), None, &spec(4, 1, 1)), Err(Refusal::Stale { .. })));
        assert!(matches!(accept(Some(&now), None, &spec(5, 1, 2)), Err(Refusal::Differs { .. })));
        assert!(matches!(accept(Some(&now), Some(host(1)), &spec(6, 2, 1)), Err(Refusal::OtherHost { .. })));
    }
}
