//! What a host's links to physical networks carry, and what of that is promised.

use std::num::NonZeroU32;

use model::HostId;
use model::observed::Resources;
use model::provider::PhysicalNetwork;
use serde::Serialize;
use utoipa::ToSchema;

use crate::bandwidth;
use crate::intent::Intent;

/// What the link to a physical network carries, and what of it ports are promised.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BandwidthView {
    physical_network: String,
    /// Thousands of bits a second that may be promised; 0: the host keeps none any more.
    kbps: u32,
    promised_kbps: u64,
}

/// What is so of the links of a host on which minimum bandwidth is kept.
pub(super) fn of(intent: &Intent, host: HostId, resources: &Resources) -> Vec<BandwidthView> {
    let promised = bandwidth::promised(intent).remove(&host).unwrap_or_default();
    let of = |(network, kbps): (&PhysicalNetwork, &NonZeroU32)| BandwidthView {
        physical_network: network.to_string(),
        kbps: kbps.get(),
        promised_kbps: promised.get(network).copied().unwrap_or_default(),
    };
    // What is promised though the host does not say any more that it keeps it is told, too.
    let lost = promised.iter().filter(|(network, _)| !resources.bandwidth_kbps.contains_key(network));
    let lost = lost.map(|(network, kbps)| BandwidthView {
        physical_network: network.to_string(),
        kbps: 0,
        promised_kbps: *kbps,
    });
    resources.bandwidth_kbps.iter().map(of).chain(lost).collect()
}
