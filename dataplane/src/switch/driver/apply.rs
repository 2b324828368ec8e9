//! One change of what is installed, and what it came to.

use std::time::Duration;

use super::Applied;
use crate::diff::{Changes, Counts, Foreign};
use crate::flow_set::FlowSet;
use crate::switch::channel::{Channel, ChannelError};

/// Has the switch take what is to change, if anything is.
pub(super) async fn apply(channel: &mut impl Channel, changes: Changes) -> Result<Applied, ChannelError> {
    let mut applied = summary(&changes);
    if !changes.is_empty() {
        applied.messages = channel.apply(changes).await?;
    }
    Ok(applied)
}

/// Holds the counts of the switch against what should be there.
pub(super) async fn verify(channel: &mut impl Channel, flows: &FlowSet, foreign: &Foreign) -> Result<(), ChannelError> {
    let ours = flows.counts();
    let want = Counts {
        flows: ours.flows + foreign.flows.len(),
        groups: ours.groups + foreign.groups.len(),
        meters: ours.meters,
    };
    let have = channel.count().await?;
    if have == want {
        return Ok(());
    }
    let source = format!("after all was applied the switch holds {have:?}, not {want:?}").into();
    Err(ChannelError::Refused { what: "verify flows", source })
}

fn summary(changes: &Changes) -> Applied {
    Applied {
        added_flows: changes.add_flows.len() - changes.replaced_flows.min(changes.add_flows.len()),
        replaced_flows: changes.replaced_flows,
        deleted_flows: changes.delete_flows.len(),
        unchanged_flows: changes.unchanged_flows,
        changed_groups: changes.add_groups.len() + changes.modify_groups.len() + changes.delete_groups.len(),
        changed_meters: changes.add_meters.len() + changes.modify_meters.len() + changes.delete_meters.len(),
        messages: 0,
        took: Duration::ZERO,
        compile: Duration::ZERO,
    }
}
