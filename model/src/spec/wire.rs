//! The bytes of a spec: JSON with a version, unknown fields refused.
//!
//! A version is never changed once released: a new shape is a new variant here, and the domain type is reached from each. What a feature adds is written
//! only where the feature is used, so that agents from before it go on reading specs that have nothing of it.

use serde::{Deserialize, Serialize};

use super::{Generation, NodeSpec, SpecError, SpecParts};
use crate::address_group::AddressGroup;
use crate::balancer::Balancer;
use crate::firewall::FirewallPolicy;
use crate::id::HostId;
use crate::image::Image;
use crate::machine::Machine;
use crate::mirror::MirrorTarget;
use crate::network::{Network, Port, Router, Subnet};
use crate::security::SecurityGroup;
use crate::volume::Volume;

/// Why bytes are no spec.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON of a known shape.
    #[error("decode a node specification of {length} bytes")]
    Shape {
        /// How many bytes were given.
        length: usize,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The shape is right, the objects contradict each other.
    #[error("check the node specification")]
    Check(#[from] SpecError),
}

/// A spec as it travels, under its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "version")]
pub enum Envelope {
    /// The first version.
    #[serde(rename = "1")]
    V1(V1),
}

/// The first version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct V1 {
    generation: Generation,
    host: HostId,
    tunnel: std::net::Ipv4Addr,
    networks: Vec<Network>,
    subnets: Vec<Subnet>,
    routers: Vec<Router>,
    /// As with address groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    firewall_policies: Vec<FirewallPolicy>,
    /// Written only where there are some: an agent from before them refuses what it does not know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    address_groups: Vec<AddressGroup>,
    groups: Vec<SecurityGroup>,
    ports: Vec<Port>,
    /// As with address groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    balancers: Vec<Balancer>,
    /// As with address groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mirrors: Vec<MirrorTarget>,
    images: Vec<Image>,
    volumes: Vec<Volume>,
    retired_volumes: Vec<Volume>,
    machines: Vec<Machine>,
}

impl From<&NodeSpec> for Envelope {
    fn from(spec: &NodeSpec) -> Self {
        let network = spec.network();
        Self::V1(V1 {
            generation: spec.generation(),
            host: network.host,
            tunnel: network.tunnel,
            networks: network.networks.values().cloned().collect(),
            subnets: network.subnets.values().cloned().collect(),
            routers: network.routers.values().cloned().collect(),
            firewall_policies: network.firewall_policies.values().cloned().collect(),
            address_groups: network.address_groups.values().cloned().collect(),
            groups: network.groups.values().cloned().collect(),
            ports: network.ports.values().cloned().collect(),
            balancers: network.balancers.values().cloned().collect(),
            mirrors: network.mirrors.values().cloned().collect(),
            images: spec.images().values().cloned().collect(),
            volumes: spec.volumes().values().cloned().collect(),
            retired_volumes: spec.retired_volumes().values().cloned().collect(),
            machines: spec.machines().values().cloned().collect(),
        })
    }
}

impl TryFrom<Envelope> for NodeSpec {
    type Error = SpecError;

    fn try_from(Envelope::V1(wire): Envelope) -> Result<Self, SpecError> {
        Self::check(SpecParts {
            generation: wire.generation,
            host: wire.host,
            tunnel: wire.tunnel,
            networks: wire.networks,
            subnets: wire.subnets,
            routers: wire.routers,
            firewall_policies: wire.firewall_policies,
            address_groups: wire.address_groups,
            groups: wire.groups,
            ports: wire.ports,
            balancers: wire.balancers,
            mirrors: wire.mirrors,
            images: wire.images,
            volumes: wire.volumes,
            retired_volumes: wire.retired_volumes,
            machines: wire.machines,
        })
    }
}

/// Reads a spec from JSON.
///
/// # Errors
/// [`DecodeError`] when the bytes have another shape or the objects contradict each other.
pub fn decode(bytes: &[u8]) -> Result<NodeSpec, DecodeError> {
    let envelope: Envelope =
        serde_json::from_slice(bytes).map_err(|source| DecodeError::Shape { length: bytes.len(), source })?;
    Ok(NodeSpec::try_from(envelope)?)
}

/// Writes a spec as JSON.
///
/// # Errors
/// What `serde_json` refuses: with these types, only a lack of memory.
pub fn encode(spec: &NodeSpec) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Envelope::from(spec))
}
