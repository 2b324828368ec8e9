//! How a frame that the agent makes leaves by the tap of a port: with the tag of a sub-port, and copied where the port is mirrored.
//!
//! Owns [`Exit`]. Never limits what the agent says, and knows no flow: flows deliver everything else.

use model::network::Port;
use model::provider::VlanId;
use model::spec::HostNetwork;
use openflow::flow::{Action, PortNo};

use crate::compile::PortNumbers;
use crate::feature::{mirror, provider};

/// What is done with a frame before it leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    /// The VLAN whose tag it gets, for a sub-port.
    pub tag: Option<VlanId>,
    /// What copies it, without the tag.
    pub copy: Option<Action>,
}

impl Exit {
    /// To a port of this host.
    #[must_use]
    pub fn to(host: &HostNetwork, numbers: &PortNumbers, port: &Port) -> Self {
        Self { tag: port.tag(), copy: mirror::answered(host, numbers, port) }
    }

    /// What the switch is told to do with the frame.
    #[must_use]
    pub fn steps(self, number: PortNo) -> Vec<Action> {
        let tag = self.tag.into_iter().flat_map(provider::tag);
        self.copy.into_iter().chain(tag).chain([Action::Output(number)]).collect()
    }
}
