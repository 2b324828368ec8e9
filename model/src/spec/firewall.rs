//! What must hold of firewalls beside what each policy is in itself: a router's policies are there, and no two rules share a number.

use super::{HostNetwork, SpecError, refer};
use crate::firewall::shared_key;

/// Holds all firewalls against the rest.
pub(super) fn check(host: &HostNetwork) -> Result<(), SpecError> {
    for router in host.routers.values() {
        let object = format!("{:?}", router.id);
        for policy in router.firewall.iter().flat_map(|firewall| firewall.policies()) {
            refer(&host.firewall_policies, &object, policy)?;
        }
    }
    for policy in host.firewall_policies.values() {
        let object = format!("{:?} ({})", policy.id, policy.name);
        policy.check().map_err(|error| SpecError::Unfit { object, problem: error.to_string() })?;
    }
    let Some((rule, other)) = shared_key(host.firewall_policies.values()) else { return Ok(()) };
    Err(SpecError::Shared {
        object: format!("firewall rule {}", rule.name),
        other: format!("firewall rule {other}"),
        what: format!("firewall rule key {}", rule.key),
    })
}
