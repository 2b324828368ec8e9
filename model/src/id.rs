//! One identity type per kind of object, so that a port is never taken for a network.
//!
//! Each is a UUID (RFC 9562) underneath and prints as one. Ids are drawn where intent is taken in (the scheduler); nothing here draws one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The text given was no UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse {kind} id from {text:?}: not a UUID")]
pub struct IdError {
    /// What kind of object the id was to name.
    pub kind: &'static str,
    /// The text as given, cut to 64 characters.
    pub text: String,
}

macro_rules! id_types {
    ($($(#[$doc:meta])* $name:ident = $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// The kind of object that this id names, in the users' words.
            pub const KIND: &'static str = $kind;

            /// Wraps a UUID that names an object of this kind.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID underneath.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// The first eight hexadecimal digits: for names with little room, never for identity.
            #[must_use]
            pub fn short(self) -> String {
                self.0.simple().to_string().split_at(8).0.to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", $kind, self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::parse_str(text)
                    .map(Self)
                    .map_err(|_| IdError { kind: $kind, text: text.chars().take(64).collect() })
            }
        }
    )*};
}

id_types! {
    /// A server that runs an agent.
    HostId = "host";
    /// A virtual machine.
    MachineId = "vm";
    /// A tenant network: one layer-2 segment.
    NetworkId = "network";
    /// A range of addresses on a network.
    SubnetId = "subnet";
    /// A virtual network interface.
    PortId = "port";
    /// A router between subnets.
    RouterId = "router";
    /// A set of rules that ports share.
    SecurityGroupId = "security group";
    /// One rule of a security group.
    RuleId = "security group rule";
    /// A set of addresses that rules name.
    AddressGroupId = "address group";
    /// An ordered list of firewall rules.
    FirewallPolicyId = "firewall policy";
    /// One rule of a firewall policy.
    FirewallRuleId = "firewall rule";
    /// A load balancer.
    BalancerId = "load balancer";
    /// A block volume.
    VolumeId = "volume";
    /// A disk, kernel or initrd image.
    ImageId = "image";
    /// A size of virtual machine.
    FlavorId = "flavor";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_prints_as_it_parses_and_refuses_other_text() {
        let text = "6f1f9a3e-0b6e-4c55-9a53-0d6f1c2b7a10";
        let id: PortId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(id.short(), "6f1f9a3e");
        let error = "port-1".parse::<PortId>().unwrap_err();
        assert_eq!(error.to_string(), "parse port id from \"port-1\": not a UUID");
    }
}
