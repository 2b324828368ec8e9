//! Checks of a whole flow that do not need a switch.
//!
//! Owns [`FlowError`] and [`Flow::check`]. Never repairs.
//! Invariant: a flow that passes can be encoded; most flows that Open vSwitch refuses do not pass.
//! Source: OpenFlow 1.5.1 §5.5 (order of instructions), ovs-actions(7).

use thiserror::Error;

use super::{
    Action, ActionError, Ct, CtZone, Field, Flow, Match, MatchError, NESTING_MAX, PortNo, Sample, SetField, Subfield,
    field::Prerequisite,
};

/// A flow that no switch would take.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FlowError {
    /// The table is out of range.
    #[error("table {table} is not among 0 to 254")]
    Table {
        /// The table.
        table: u8,
    },
    /// The match is wrong.
    #[error("bad match")]
    Match(#[from] MatchError),
    /// An action is wrong.
    #[error("bad action")]
    Action(#[from] ActionError),
}

impl Flow {
    /// Checks ranges, prerequisites, nesting and the order of instructions.
    ///
    /// # Errors
    /// Names the first thing that a switch would refuse.
    pub fn check(&self) -> Result<(), FlowError> {
        if self.table == u8::MAX {
            return Err(FlowError::Table { table: self.table });
        }
        self.matching.check()?;
        check_actions(&self.actions, &self.matching)?;
        for action in &self.actions {
            if let Action::GotoTable(next) = action
                && *next <= self.table
            {
                let why = "the table must be later than the flow's own";
                return Err(ActionError::Invalid { action: action.to_string(), why }.into());
            }
        }
        Ok(())
    }
}

/// Checks the actions of a flow, with the order that instructions have.
fn check_actions(actions: &[Action], matching: &Match) -> Result<(), ActionError> {
    let mut rank_before = 0;
    for action in actions {
        let rank = instruction_rank(action);
        if rank < rank_before || (rank == rank_before && rank > RANK_APPLY) {
            return Err(misplaced(
                action,
                "after what precedes it (order: actions, clear_actions, write_actions, write_metadata, goto_table, each once)",
            ));
        }
        rank_before = rank;
        check_action(action, matching, Inside::Flow, 0)?;
    }
    let conjunctions = actions.iter().filter(|action| matches!(action, Action::Conjunction { .. })).count();
    let notes = actions.iter().filter(|action| matches!(action, Action::Note(_))).count();
    if conjunctions > 0 && conjunctions + notes != actions.len() {
        let action = &actions[0];
        return Err(misplaced(action, "beside conjunction"));
    }
    Ok(())
}

/// Checks actions that stand alone, as in a group bucket or a packet-out.
pub(crate) fn check_plain(actions: &[Action]) -> Result<(), ActionError> {
    actions.iter().try_for_each(|action| {
        if instruction_rank(action) > RANK_APPLY {
            return Err(misplaced(action, "outside of a flow"));
        }
        check_action(action, &Match::new(), Inside::Bucket, 0)
    })
}

const RANK_APPLY: u8 = 1;

fn instruction_rank(action: &Action) -> u8 {
    match action {
        Action::ClearActions => 2,
        Action::WriteActions(_) => 3,
        Action::WriteMetadata { .. } => 4,
        Action::GotoTable(_) => 5,
        _ => RANK_APPLY,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    Flow,
    Bucket,
    Set,
    Clone,
    Ct,
}

fn misplaced(action: &Action, place: &'static str) -> ActionError {
    ActionError::Misplaced { action: action.to_string(), place }
}

fn check_action(action: &Action, matching: &Match, inside: Inside, depth: usize) -> Result<(), ActionError> {
    if depth > NESTING_MAX {
        return Err(ActionError::TooDeep { limit: NESTING_MAX });
    }
    let invalid = |why| Err(ActionError::Invalid { action: action.to_string(), why });
    if inside != Inside::Flow && instruction_rank(action) > RANK_APPLY {
        return Err(misplaced(action, "inside another action"));
    }
    if inside == Inside::Ct && !matches!(action, Action::Nat(_) | Action::SetField(_) | Action::Move { .. }) {
        return Err(misplaced(action, "inside ct()"));
    }
    match action {
        Action::Output(PortNo::CONTROLLER) => Err(misplaced(action, "as output: use Action::Controller")),
        Action::OutputTruncated { octets_max: 0..14, .. } => invalid("at least 14 octets must stay"),
        Action::SetField(set) => check_set(*set, matching, inside),
        Action::Move { source, target } => {
            let (source_bits, target_bits) = (source.bits(), target.bits());
            if source_bits != target_bits {
                return Err(ActionError::MoveLength { source_bits, target_bits });
            }
            check_prerequisite(source.field(), matching, inside)?;
            check_target(*target, matching, inside)
        }
        Action::Push(bits) => check_prerequisite(bits.field(), matching, inside),
        Action::Pop(bits) => check_target(*bits, matching, inside),
        Action::Resubmit { port, table, original_tuple } => match (port.to_u16(), table, original_tuple) {
            (None, ..) => invalid("the port must fit 16 bits"),
            (_, Some(u8::MAX), _) => invalid("the table must be among 0 to 254"),
            (_, None, true) => invalid("the original tuple needs a table"),
            _ => Ok(()),
        },
        Action::PushVlan(ethertype) if !matches!(ethertype, 0x8100 | 0x88a8) => {
            invalid("the EtherType must be 0x8100 or 0x88a8")
        }
        Action::PushMpls(ethertype) if !matches!(ethertype, 0x8847 | 0x8848) => {
            invalid("the EtherType must be 0x8847 or 0x8848")
        }
        Action::Sample(Sample { probability: 0, .. }) => invalid("the probability must be at least 1"),
        Action::Sample(sample) if sample.port.is_some_and(|port| port.to_u16().is_none()) => {
            invalid("the port must fit 16 bits")
        }
        Action::Spread(spread) if spread.ports.iter().any(|port| port.to_u16().is_none()) => {
            invalid("the ports must fit 16 bits")
        }
        Action::Spread(spread) => match spread.target {
            Some(target) if target.bits() < 16 => invalid("the target must be at least 16 bits"),
            Some(target) => check_target(target, matching, inside),
            None => Ok(()),
        },
        Action::FinTimeout { .. } => check_prerequisite(Field::TcpFlags, matching, inside),
        Action::DecTtlFor(ids) if ids.is_empty() => invalid("at least one controller id is needed"),
        Action::Ct(ct) => check_ct(action, ct, matching, depth),
        Action::Nat(_) if inside != Inside::Ct => Err(misplaced(action, "outside of ct()")),
        Action::Conjunction { .. } if inside != Inside::Flow => Err(misplaced(action, "inside another action")),
        Action::Conjunction { clause, clauses, .. }
            if !(2..=64).contains(clauses) || *clause == 0 || clause > clauses =>
        {
            invalid("clauses must number 2 to 64 and the clause be one of them")
        }
        Action::Clone(nested) => {
            nested.iter().try_for_each(|action| check_action(action, matching, Inside::Clone, depth + 1))
        }
        Action::WriteActions(nested) => {
            nested.iter().try_for_each(|action| check_action(action, matching, Inside::Set, depth + 1))
        }
        Action::CheckPacketLarger { target, .. } if target.bits() != 1 => invalid("the target must be one bit"),
        Action::CheckPacketLarger { target, .. } => check_target(*target, matching, inside),
        Action::Multipath(multipath) => {
            if multipath.target.bits() < 16 && u32::from(multipath.link_max) >> multipath.target.bits() != 0 {
                return invalid("the target is too narrow for the number of links");
            }
            check_target(multipath.target, matching, inside)
        }
        Action::WriteMetadata { value, mask } if value & !mask != 0 => {
            invalid("a bit of the value is outside the mask")
        }
        Action::WriteMetadata { mask: 0, .. } => invalid("the mask is empty"),
        _ => Ok(()),
    }
}

fn check_ct(action: &Action, ct: &Ct, matching: &Match, depth: usize) -> Result<(), ActionError> {
    let invalid = |why| Err(ActionError::Invalid { action: action.to_string(), why });
    if ct.force && !ct.commit {
        return invalid("force needs commit");
    }
    if !ct.actions.is_empty() && !ct.commit && !matches!(ct.actions[..], [Action::Nat(_)]) {
        return invalid("exec needs commit");
    }
    if ct.table == Some(u8::MAX) {
        return invalid("the table must be among 0 to 254");
    }
    match ct.zone {
        CtZone::From(bits) if bits.bits() != 16 => return invalid("the zone must be 16 bits"),
        _ => {}
    }
    ct.actions.iter().try_for_each(|nested| check_action(nested, matching, Inside::Ct, depth + 1))
}

fn check_set(set: SetField, matching: &Match, inside: Inside) -> Result<(), ActionError> {
    let field = set.field();
    let (value, mask) = (set.value(), set.mask());
    if (value | mask) & !field.full_mask() != 0 || mask == 0 || (!set.is_whole() && !field.info().maskable) {
        return Err(ActionError::BadValue { field, value, mask });
    }
    check_write(field, matching, inside)
}

fn check_target(bits: Subfield, matching: &Match, inside: Inside) -> Result<(), ActionError> {
    check_write(bits.field(), matching, inside)
}

fn check_write(field: Field, matching: &Match, inside: Inside) -> Result<(), ActionError> {
    let is_tracked = matches!(field, Field::CtMark | Field::CtLabel);
    if !field.info().writable || is_tracked != (inside == Inside::Ct) {
        return Err(ActionError::ReadOnly { field });
    }
    check_prerequisite(field, matching, inside)
}

/// Buckets are run for packets that we know nothing of; a VLAN tag may have been pushed on the way.
fn check_prerequisite(field: Field, matching: &Match, inside: Inside) -> Result<(), ActionError> {
    if inside == Inside::Bucket || field.info().prerequisite == Prerequisite::Vlan {
        return Ok(());
    }
    matching.check_prerequisite(field).map_err(ActionError::Prerequisite)
}
