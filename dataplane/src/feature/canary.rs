//! The canary: one flow that no packet meets. As long as it is installed, the switch has not lost our flows; its match says which version of the
//! pipeline they are of.

use openflow::flow::{Field, Match};

use crate::cookie::{Cookie, Object};
use crate::feature::Feature;
use crate::flow_set::Part;
use crate::table::Table;

/// Counts the layouts of tables and registers: it grows when flows of two versions must not stand beside each other.
pub const PIPELINE_VERSION: u32 = 1;

const COOKIE: Cookie = Cookie { feature: Feature::Canary, object: Object::Pipeline };

/// The match of the canary.
#[must_use]
pub fn canary_match() -> Match {
    Match::new().with(Field::Reg0, PIPELINE_VERSION)
}

pub(crate) fn host(part: &mut Part) {
    part.add(Table::Canary, 1, canary_match(), Vec::new(), COOKIE);
}
