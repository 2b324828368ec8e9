//! Hosts: the servers that joined, and the specification each was given last.

use std::net::Ipv4Addr;
use std::sync::Arc;

use model::HostId;
use model::image::Sha256;
use model::spec::{Generation, NodeSpec, wire};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Context, Intent, check_label, check_name, find, refuse_users};
use crate::refusal::Refusal;

/// A server that joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) name: String,
    /// Its tunnel endpoint on the underlay.
    pub(crate) tunnel: Ipv4Addr,
    /// Whether new machines may be placed on it.
    pub(crate) enabled: bool,
    /// Digest of the one certificate that it may show. Joining again replaces it, so an older one opens nothing.
    pub(crate) certificate: Sha256,
    /// Digest of the next certificate, from when it is given out until it is shown for the first time; both are good meanwhile, so that an answer
    /// that is lost shuts nobody out.
    #[serde(default)]
    pub(crate) renewed: Option<Sha256>,
    /// When it joined.
    pub(crate) joined: jiff::Timestamp,
}

/// The specification that a host was given last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assigned {
    /// What it says, under its generation.
    pub(crate) spec: NodeSpec,
}

impl Serialize for Assigned {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        wire::Envelope::from(&self.spec).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Assigned {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let envelope = wire::Envelope::deserialize(deserializer)?;
        Ok(Self { spec: NodeSpec::try_from(envelope).map_err(serde::de::Error::custom)? })
    }
}

/// What is changed of a host.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostChange {
    /// Whether new machines may be placed on it. Machines that it has stay.
    pub(crate) enabled: bool,
}

/// A host that is about to join.
#[derive(Debug, Clone)]
pub(crate) struct Joining {
    pub(crate) name: String,
    pub(crate) tunnel: Ipv4Addr,
}

impl Intent {
    /// The identity that a joining host will have: its old one if its name is known. Checks what it asks for.
    pub(crate) fn joining_id(&self, context: &mut Context<'_>, joining: &Joining) -> Result<HostId, Refusal> {
        check_label(&joining.name)?;
        let tunnel = joining.tunnel;
        if tunnel.is_unspecified() || tunnel.is_multicast() || tunnel.is_broadcast() || tunnel.is_loopback() {
            return Err(Refusal::invalid("tunnel", format!("{tunnel} can not be the end of a tunnel between hosts")));
        }
        if let Some(other) = self.hosts.values().find(|host| host.tunnel == tunnel && host.name != joining.name) {
            let owner = format!("host {}", other.name);
            return Err(Refusal::Taken { field: "tunnel".to_owned(), what: format!("the address {tunnel}"), owner });
        }
        match self.hosts.values().find(|host| host.name == joining.name) {
            Some(host) => Ok(host.id),
            None => {
                check_name(&self.hosts, &joining.name)?;
                Ok(HostId::from_uuid((context.draw)()))
            }
        }
    }

    /// Takes a host in, or gives a known one its new certificate.
    pub(crate) fn join(&mut self, id: HostId, joining: Joining, certificate: Sha256, now: jiff::Timestamp) {
        let enabled = self.hosts.get(&id).is_none_or(|host| host.enabled);
        let (name, tunnel) = (joining.name, joining.tunnel);
        let host = Host { id, name, tunnel, enabled, certificate, renewed: None, joined: now };
        self.hosts.insert(id, Arc::new(host));
    }

    /// Gives a host its next certificate, beside the one that it has.
    pub(crate) fn renew(&mut self, id: HostId, certificate: Sha256) {
        if let Some(host) = self.hosts.get_mut(&id) {
            Arc::make_mut(host).renewed = Some(certificate);
        }
    }

    /// Takes note that a host has shown a certificate: once that is its next one, the one before opens nothing any more.
    pub(crate) fn shown(&mut self, id: HostId, certificate: Sha256) {
        if let Some(host) = self.hosts.get_mut(&id).filter(|host| host.renewed == Some(certificate)) {
            let host = Arc::make_mut(host);
            (host.certificate, host.renewed) = (certificate, None);
        }
    }

    /// Changes a host.
    pub(crate) fn change_host(&mut self, name: &str, change: &HostChange) -> Result<HostId, Refusal> {
        let (id, host) = find(&self.hosts, name, None)?;
        self.hosts.insert(id, Arc::new(Host { enabled: change.enabled, ..(*host).clone() }));
        Ok(id)
    }

    /// Forgets a host that has no machines and no local volumes; its certificate opens nothing any more.
    pub(crate) fn delete_host(&mut self, name: &str) -> Result<(), Refusal> {
        let (id, host) = find(&self.hosts, name, None)?;
        let machines = self.machines.values().filter(|vm| vm.host == Some(id));
        let machines = machines.map(|vm| format!("vm {}", vm.machine.name));
        let volumes = self
            .volumes
            .values()
            .filter(|volume| volume.keeper == Some(id) && volume.volume.backend == model::volume::VolumeBackend::Local);
        let volumes = volumes.map(|volume| format!("volume {}", volume.volume.name));
        refuse_users(format!("host {}", host.name), machines.chain(volumes).chain(self.guests_of(id)))?;
        for volume in self.volumes.values_mut().filter(|volume| volume.keeper == Some(id)) {
            Arc::make_mut(volume).keeper = None;
        }
        self.hosts.remove(&id);
        self.assigned.remove(&id);
        Ok(())
    }

    /// The generation of the specification that a host was given last; 0 before the first.
    pub(crate) fn generation(&self, host: HostId) -> Generation {
        self.assigned.get(&host).map_or(Generation(0), |assigned| assigned.spec.generation())
    }
}
