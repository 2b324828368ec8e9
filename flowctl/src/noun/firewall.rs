//! Firewall policies: ordered rules of what may cross the borders of routers.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Common, Kind, Name, Session, body, escape};
use crate::failure::Failure;

/// Firewall policies.
pub const FIREWALL_POLICIES: Kind =
    Kind { path: "/v1/firewall-policies", columns: &[("NAME", "/name"), ("ID", "/id")] };

/// The rules of one policy.
const RULES: Kind = Kind {
    path: "",
    columns: &[
        ("NAME", "/name"),
        ("ACTION", "/action"),
        ("IP", "/ip_version"),
        ("PROTOCOL", "/protocol"),
        ("SOURCE", "/source_ip_address"),
        ("PORT", "/source_port"),
        ("DESTINATION", "/destination_ip_address"),
        ("PORT", "/destination_port"),
        ("ENABLED", "/enabled"),
        ("KEY", "/key"),
    ],
};

/// What can be done with firewall policies.
#[derive(Debug, Subcommand)]
pub enum FirewallPolicyVerb {
    /// Make a firewall policy, for `flowctl router set-firewall`. It has no rule, so it denies everything.
    Create {
        /// Its name.
        name: String,
    },
    /// List the rules of a policy in their order: the first one that is for a packet decides, and what none is for is denied.
    Rules(Name),
    /// Put a rule into a policy, last unless said. Addresses and ports are those behind the router, whatever it translates.
    AddRule {
        /// The policy.
        policy: String,
        /// The rule's name.
        name: String,
        /// What becomes of what it is for.
        #[arg(long, value_parser = ["allow", "deny"])]
        action: String,
        /// any, tcp, udp, icmp, or an IP protocol number.
        #[arg(long, default_value = "any")]
        protocol: String,
        /// 4 or 6.
        #[arg(long, default_value = "4", value_parser = clap::value_parser!(u8))]
        ip_version: u8,
        /// Who sends, as 198.51.100.0/24; anyone unless said.
        #[arg(long, value_name = "PREFIX")]
        source_ip_address: Option<String>,
        /// Who is to have it, as 10.1.0.5/32; anyone unless said.
        #[arg(long, value_name = "PREFIX")]
        destination_ip_address: Option<String>,
        /// A port of the sender, or a range as 8000:8999; any unless said.
        #[arg(long, value_name = "PORT")]
        source_port: Option<String>,
        /// A port of who is to have it, or a range as 8000:8999; any unless said.
        #[arg(long, value_name = "PORT")]
        destination_port: Option<String>,
        /// It is not asked until it is switched on.
        #[arg(long)]
        disabled: bool,
        /// The rule that it goes right before.
        #[arg(long, value_name = "RULE")]
        insert_before: Option<String>,
        /// The rule that it goes right after.
        #[arg(long, value_name = "RULE", conflicts_with = "insert_before")]
        insert_after: Option<String>,
    },
    /// Switch a rule on or off, or give it another action.
    SetRule {
        /// The policy.
        policy: String,
        /// The rule.
        rule: String,
        /// Whether it is asked at all.
        #[arg(long)]
        enabled: Option<bool>,
        /// What becomes of what it is for.
        #[arg(long, value_parser = ["allow", "deny"])]
        action: Option<String>,
    },
    /// Take a rule out of a policy: connections that only it allowed are cut.
    RemoveRule {
        /// The policy.
        policy: String,
        /// The rule.
        rule: String,
    },
    /// What can be done with every kind of object.
    #[command(flatten)]
    Common(Common),
}

impl Session<'_> {
    /// Does something with firewall policies.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn firewall_policy(&self, verb: &FirewallPolicyVerb) -> Result<(), Failure> {
        let rules = |policy: &str| format!("{}/rules", FIREWALL_POLICIES.of(policy));
        match verb {
            FirewallPolicyVerb::Create { name } => self.create(FIREWALL_POLICIES, json!({"name": name})).await,
            FirewallPolicyVerb::Rules(name) => {
                let policy = self.scheduler.get(&FIREWALL_POLICIES.of(&name.name)).await?;
                let rules = policy.pointer("/rules").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                super::written(crate::output::list(self.format, RULES.columns, rules))
            }
            FirewallPolicyVerb::AddRule { policy, .. } => {
                let made = self.scheduler.post(&rules(policy), &rule(verb)).await?;
                self.show(&made)
            }
            FirewallPolicyVerb::SetRule { policy, rule, enabled, action } => {
                let change = body([("enabled", json!(enabled)), ("action", json!(action))]);
                let path = format!("{}/{}", rules(policy), escape(rule));
                self.show(&self.scheduler.patch(&path, &change).await?)
            }
            FirewallPolicyVerb::RemoveRule { policy, rule } => {
                self.show(&self.scheduler.delete(&format!("{}/{}", rules(policy), escape(rule))).await?)
            }
            FirewallPolicyVerb::Common(verb) => self.common(FIREWALL_POLICIES, verb).await,
        }
    }
}

/// The body of a rule to add; nothing of other verbs.
fn rule(verb: &FirewallPolicyVerb) -> Value {
    let FirewallPolicyVerb::AddRule {
        policy: _,
        name,
        action,
        protocol,
        ip_version,
        source_ip_address,
        destination_ip_address,
        source_port,
        destination_port,
        disabled,
        insert_before,
        insert_after,
    } = verb
    else {
        return Value::Null;
    };
    body([
        ("name", json!(name)),
        ("action", json!(action)),
        ("protocol", json!(protocol)),
        ("ip_version", json!(ip_version)),
        ("source_ip_address", json!(source_ip_address)),
        ("destination_ip_address", json!(destination_ip_address)),
        ("source_port", json!(source_port)),
        ("destination_port", json!(destination_port)),
        ("enabled", if *disabled { json!(false) } else { Value::Null }),
        ("insert_before", json!(insert_before)),
        ("insert_after", json!(insert_after)),
    ])
}
