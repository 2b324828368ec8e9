//! Flavors: the sizes of machine that can be launched.

use std::sync::Arc;

use model::{FlavorId, Mib, Vcpus};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Context, Intent, check_name, find};
use crate::refusal::Refusal;

/// Flavors that a new cloud starts with: name, vCPUs, MiB of memory.
const FOUNDED: [(&str, u64, u64); 4] = [("tiny", 1, 128), ("small", 1, 512), ("medium", 2, 2048), ("large", 4, 8192)];

/// A size of machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Flavor {
    pub(crate) id: FlavorId,
    pub(crate) name: String,
    pub(crate) vcpus: Vcpus,
    pub(crate) memory: Mib,
}

/// A flavor to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewFlavor {
    /// Its name.
    name: String,
    /// Virtual CPUs: 1 to 254.
    #[schema(value_type = u64)]
    vcpus: Vcpus,
    /// Guest memory in MiB.
    #[schema(value_type = u64)]
    memory_mib: Mib,
}

impl Intent {
    pub(super) fn found_flavors(&mut self, context: &mut Context<'_>) -> Result<(), Refusal> {
        for (name, vcpus, memory) in FOUNDED {
            let range = |error: model::units::RangeError| Refusal::Internal(error.to_string());
            let (vcpus, memory_mib) = (Vcpus::try_from(vcpus).map_err(range)?, Mib::try_from(memory).map_err(range)?);
            self.create_flavor(context, NewFlavor { name: name.to_owned(), vcpus, memory_mib })?;
        }
        Ok(())
    }

    /// Makes a flavor.
    pub(crate) fn create_flavor(&mut self, context: &mut Context<'_>, new: NewFlavor) -> Result<FlavorId, Refusal> {
        check_name(&self.flavors, &new.name)?;
        let id = FlavorId::from_uuid((context.draw)());
        let flavor = Flavor { id, name: new.name, vcpus: new.vcpus, memory: new.memory_mib };
        self.flavors.insert(id, Arc::new(flavor));
        Ok(id)
    }

    /// Forgets a flavor. Machines keep the size that they were launched with.
    pub(crate) fn delete_flavor(&mut self, name: &str) -> Result<(), Refusal> {
        let (id, _) = find(&self.flavors, name, None)?;
        self.flavors.remove(&id);
        Ok(())
    }
}
