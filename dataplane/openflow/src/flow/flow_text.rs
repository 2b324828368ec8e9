//! Flows in ovs-ofctl syntax, both ways.
//!
//! Owns the keys of a flow (`table=`, `priority=`, `cookie=`). Never touches matches or actions beyond handing them on.
//! Invariant: for every flow that passes its check, parsing its text gives it back; `ovs-ofctl add-flow` takes the text, and
//! `ovs-ofctl dump-flows` writes it.
//! Source: ovs-ofctl(8) "Flow Syntax".

use std::{fmt, str::FromStr};

use super::{
    Flow, FlowFlags, Match,
    action_text::{ActionList, parse_actions},
    learn::DEFAULT_PRIORITY,
    match_text::{dependent_field, parse_item, set_parsed},
    text::{self, TextError},
};

const FLAG_NAMES: [(FlowFlags, &str); 3] = [
    (FlowFlags::SEND_FLOW_REMOVED, "send_flow_rem"),
    (FlowFlags::NO_PACKET_COUNTS, "no_packet_counts"),
    (FlowFlags::NO_BYTE_COUNTS, "no_byte_counts"),
];

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cookie={:#x}, table={}, ", self.cookie, self.table)?;
        if self.idle_timeout != 0 {
            write!(f, "idle_timeout={}, ", self.idle_timeout)?;
        }
        if self.hard_timeout != 0 {
            write!(f, "hard_timeout={}, ", self.hard_timeout)?;
        }
        for (_, name) in FLAG_NAMES.iter().filter(|(flag, _)| self.flags.contains(*flag)) {
            write!(f, "{name} ")?;
        }
        if self.importance != 0 {
            write!(f, "importance={}, ", self.importance)?;
        }
        let matching = self.matching.to_string();
        match (self.priority, matching.is_empty()) {
            (DEFAULT_PRIORITY, true) => {}
            (DEFAULT_PRIORITY, false) => write!(f, "{matching} ")?,
            (priority, true) => write!(f, "priority={priority} ")?,
            (priority, false) => write!(f, "priority={priority},{matching} ")?,
        }
        write!(f, "actions={}", ActionList(&self.actions))
    }
}

impl FromStr for Flow {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let at = text.find("actions=").ok_or_else(|| TextError::MissingValue("actions".to_owned()))?;
        let mut flow = Self::new(0, DEFAULT_PRIORITY, Match::new(), parse_actions(&text[at + "actions=".len()..])?);
        let mut dependent = Vec::new();
        for item in text::items(&text[..at])? {
            let (key, value) = text::key_value(item);
            if flow.take_key(key, value)? {
                continue;
            }
            if !parse_item(&mut flow.matching, key, value)? {
                dependent.push((key, value.ok_or_else(|| TextError::MissingValue(key.to_owned()))?));
            }
        }
        dependent.sort_by_key(|(key, _)| *key != "nw_proto");
        for (key, value) in dependent {
            let field = dependent_field(&flow.matching, key)?;
            set_parsed(&mut flow.matching, field, key, value)?;
        }
        flow.check().map_err(|error| TextError::Invalid(error_chain(&error)))?;
        Ok(flow)
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

impl Flow {
    /// Takes a key that belongs to the flow itself; false when it belongs to the match.
    fn take_key(&mut self, key: &str, value: Option<&str>) -> Result<bool, TextError> {
        if let Some((flag, _)) = FLAG_NAMES.iter().find(|(_, name)| *name == key) {
            self.flags |= *flag;
            return Ok(true);
        }
        let Some(value) = value else { return Ok(false) };
        match key {
            "table" => self.table = text::number(key, value)?,
            "priority" => self.priority = text::number(key, value)?,
            "cookie" => self.cookie = text::number(key, value)?,
            "idle_timeout" => self.idle_timeout = text::number(key, value)?,
            "hard_timeout" => self.hard_timeout = text::number(key, value)?,
            "importance" => self.importance = text::number(key, value)?,
            // What a dump says of the past of a flow is not part of it.
            "duration" | "n_packets" | "n_bytes" | "idle_age" | "hard_age" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }
}
