//! Mirrors: which port gets copies of the frames of another one.
//!
//! Owns what makes a mirror one that can be: who gets copies is another port, is not mirrored itself, and nobody else is mirrored to who is. So no copy
//! is ever copied, and there are no chains or rings. A port that gets copies for the first time is given a number for them, which it keeps.

use std::sync::Arc;

use model::PortId;
use model::mirror::{Mirror, MirrorDirection};
use serde::Deserialize;
use utoipa::ToSchema;

use super::port::PortIntent;
use super::{Intent, find};
use crate::refusal::Refusal;

/// Who is to get copies of the frames of a port.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewMirror {
    /// The port that gets the copies, by name or id: another one, not mirrored itself.
    to: String,
    /// What is copied, as the machine sees it: `in` (what it is sent), `out` (what it sends) or `both`; both unless said.
    #[schema(example = "both")]
    direction: Option<String>,
}

impl Intent {
    /// Has a port mirrored, which may be one that is yet to be made.
    pub(super) fn choose_mirror(&mut self, (id, name): (PortId, &str), new: &NewMirror) -> Result<Mirror, Refusal> {
        let direction = new.direction.as_deref().map_or(Ok(MirrorDirection::Both), str::parse::<MirrorDirection>);
        let direction = direction.map_err(|error| Refusal::invalid("mirror.direction", error.to_string()))?;
        let (to, target) = find(&self.ports, &new.to, Some("mirror.to"))?;
        let state = |object: &str, problem: String| {
            Err(Refusal::State { object: format!("port {object}"), problem, field: Some("mirror.to".to_owned()) })
        };
        if to == id {
            return state(name, "it can not be mirrored to itself: name another port".to_owned());
        }
        if let Some(mirror) = target.port.mirror {
            let next = self.ports.get(&mirror.to).map_or_else(|| mirror.to.to_string(), |next| next.port.name.clone());
            let problem = format!(
                "it is mirrored itself, to port {next}, so it can get no copies: mirror to {next}, or end that mirror first"
            );
            return state(&target.port.name, problem);
        }
        if let Some(source) = self.mirrored_to(id).next() {
            let problem = format!(
                "it gets copies of port {}, so it can not be mirrored to {}: end that mirror first",
                source.port.name, target.port.name
            );
            return state(name, problem);
        }
        let user = self.port_user(target.port.tap_port()).and_then(|(vm, _)| self.machines.get(&vm));
        if let Some(vm) = user.filter(|vm| vm.deleting) {
            return state(&target.port.name, format!("its vm {} is being deleted", vm.machine.name));
        }
        if target.mirror_vni.is_none() {
            let mirror_vni = Some(self.counters.next_mirror_vni()?);
            self.ports.insert(to, Arc::new(PortIntent { mirror_vni, ..(*target).clone() }));
        }
        Ok(Mirror { to, direction })
    }

    /// The ports that are mirrored to a port.
    pub(crate) fn mirrored_to(&self, target: PortId) -> impl Iterator<Item = &Arc<PortIntent>> {
        self.ports.values().filter(move |it| it.port.mirror.is_some_and(|mirror| mirror.to == target))
    }

    /// Names those who need a port: the ports that are mirrored to it.
    pub(super) fn mirrors_to(&self, target: PortId) -> impl Iterator<Item = String> {
        self.mirrored_to(target).map(|it| format!("the mirror of port {}", it.port.name))
    }

    /// Ends all mirrors to a port.
    pub(super) fn drop_mirrors_to(&mut self, target: PortId) {
        for port in self.ports.values_mut() {
            if port.port.mirror.is_some_and(|mirror| mirror.to == target) {
                Arc::make_mut(port).port.mirror = None;
            }
        }
    }
}
