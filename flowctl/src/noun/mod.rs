//! The nouns of the cloud: what each is called on the command line, where the scheduler keeps it, and what its table shows.

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::output::{self, Column, Format};
use crate::scheduler::Scheduler;

pub mod address_group;
pub mod compute;
pub mod console;
pub mod firewall;
pub mod load_balancer;
pub mod network;
pub mod router;
pub mod storage;
pub mod wait;

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Where the scheduler keeps them.
    pub path: &'static str,
    /// What the table of all of them shows.
    pub columns: &'static [Column],
}

/// What can be done with objects of every kind.
#[derive(Debug, Clone, Subcommand)]
pub enum Common {
    /// List all.
    List,
    /// Show one.
    Show {
        /// Name or id.
        name: String,
    },
    /// Delete one.
    Delete {
        /// Name or id.
        name: String,
        /// Whether to wait until it is gone.
        #[command(flatten)]
        wait: wait::Wait,
    },
}

/// What a command on the scheduler needs.
#[derive(Debug)]
pub struct Session<'a> {
    /// The scheduler.
    pub scheduler: &'a Scheduler,
    /// How results are printed.
    pub format: Format,
}

impl Session<'_> {
    /// Does what can be done with objects of every kind.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn common(&self, kind: Kind, verb: &Common) -> Result<(), Failure> {
        match verb {
            Common::List => {
                let all = self.scheduler.get(kind.path).await?;
                let rows = all.as_array().map(Vec::as_slice).unwrap_or_default();
                written(output::list(self.format, kind.columns, rows))
            }
            Common::Show { name } => self.show(&self.scheduler.get(&kind.of(name)).await?),
            Common::Delete { name, wait } => {
                self.scheduler.delete(&kind.of(name)).await?;
                match wait.limit() {
                    Some(limit) => wait::until_gone(self.scheduler, &kind.of(name), limit).await,
                    None => Ok(()),
                }
            }
        }
    }

    /// Prints an object.
    ///
    /// # Errors
    /// [`Failure`] when standard output does not take it.
    pub fn show(&self, object: &Value) -> Result<(), Failure> {
        written(output::object(self.format, object))
    }

    /// Makes an object of a kind and prints it.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn create(&self, kind: Kind, body: Value) -> Result<(), Failure> {
        let made = self.scheduler.post(kind.path, &body).await?;
        self.show(&made)
    }
}

impl Kind {
    /// Where one object is, by name or id.
    #[must_use]
    pub fn of(self, name: &str) -> String {
        format!("{}/{}", self.path, escape(name))
    }
}

/// A name as one segment of a path (RFC 3986 §3.3): all but unreserved characters in percent form.
#[must_use]
pub fn escape(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A request body without the fields that were not given.
#[must_use]
pub fn body<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let given = fields.into_iter().filter(|(_, value)| !value.is_null() && value != &Value::Array(Vec::new()));
    Value::Object(given.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

/// The failure of writing a result.
///
/// # Errors
/// [`Failure::Other`] when it could not be written.
pub fn written(result: std::io::Result<()>) -> Result<(), Failure> {
    result.map_err(|error| Failure::Other(format!("write the result: {error}")))
}

/// A name and nothing else.
#[derive(Debug, Clone, Args)]
pub struct Name {
    /// Name or id.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_name_with_a_slash_stays_one_segment() {
        let kind = Kind { path: "/v1/vms", columns: &[] };
        assert_eq!(kind.of("web-1"), "/v1/vms/web-1");
        assert_eq!(kind.of("a/b?c"), "/v1/vms/a%2Fb%3Fc");
    }

    #[test]
    fn fields_that_were_not_given_are_left_out() {
        let made = body([("name", json!("a")), ("mtu", Value::Null), ("dns", json!([]))]);
        assert_eq!(made, json!({"name": "a"}));
    }
}
