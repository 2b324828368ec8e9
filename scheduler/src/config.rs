//! The scheduler's settings: one strict TOML file, every key with a default but `dir`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::intent::volume::Backend;
use crate::place::Overcommit;

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can not be read.
    #[error("read the configuration {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("understand the configuration {path:?}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: toml::de::Error,
    },
    /// A value that can not be taken.
    #[error("take {key} = {value} from the configuration: {problem}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where certificates, keys, the store and image bytes are: what `scheduler init` made.
    pub dir: PathBuf,
    /// Where agents and operators are answered.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Where `/metrics` and `/healthz` are also answered without TLS; nowhere unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// The largest image that is taken, in bytes.
    #[serde(default = "default_image_bytes_max")]
    pub image_bytes_max: u64,
    /// vCPUs that a host may be promised for each logical CPU.
    #[serde(default = "default_vcpus_per_cpu")]
    pub vcpus_per_cpu: u64,
    /// How long a host's certificate is good, seconds. Agents renew theirs when a third of that is left.
    #[serde(default = "default_host_certificate_seconds")]
    pub host_certificate_seconds: u64,
    /// What is taken where a request says nothing.
    #[serde(default)]
    pub defaults: Defaults,
    /// The log, on standard error.
    #[serde(default)]
    pub log: Log,
}

/// What is taken where a request says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// The largest IP packet of a network: what a common underlay of 1500 bytes leaves.
    pub mtu: u16,
    /// Where volumes are.
    pub(crate) backend: Backend,
    /// The RBD pool.
    pub pool: String,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { mtu: 1450, backend: Backend::Rbd, pool: "volumes".to_owned() }
    }
}

/// How the log looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Text for people or JSON for programs.
    pub format: LogFormat,
    /// Which events: a level, or directives as of tracing-subscriber's `EnvFilter`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}

/// Who reads the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// People.
    Text,
    /// Programs: one JSON object a line.
    Json,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 7443))
}

const fn default_image_bytes_max() -> u64 {
    64 << 30
}

const fn default_host_certificate_seconds() -> u64 {
    365 * 24 * 3600
}

const fn default_vcpus_per_cpu() -> u64 {
    8
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] when the file can not be read, has an unknown key or a value that can not be taken.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self =
            toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        config.check()
    }

    fn check(self) -> Result<Self, ConfigError> {
        if !self.dir.is_absolute() {
            let value = self.dir.display().to_string();
            return Err(ConfigError::Value { key: "dir", value, problem: "want an absolute path" });
        }
        if !(1..=1024).contains(&self.vcpus_per_cpu) {
            let value = self.vcpus_per_cpu.to_string();
            return Err(ConfigError::Value { key: "vcpus_per_cpu", value, problem: "want 1 to 1024" });
        }
        // Up to the CA's own end; at the least what a handshake and a renewal take on a slow host.
        if !(10..=20 * 365 * 24 * 3600).contains(&self.host_certificate_seconds) {
            let value = self.host_certificate_seconds.to_string();
            return Err(ConfigError::Value {
                key: "host_certificate_seconds",
                value,
                problem: "want 10 s to 20 years",
            });
        }
        if !(68..=9000).contains(&self.defaults.mtu) {
            let value = self.defaults.mtu.to_string();
            return Err(ConfigError::Value { key: "defaults.mtu", value, problem: "want 68 to 9000" });
        }
        Ok(self)
    }

    pub(crate) const fn overcommit(&self) -> Overcommit {
        Overcommit { vcpus_per_cpu: self.vcpus_per_cpu }
    }

    pub(crate) fn store_path(&self) -> PathBuf {
        self.dir.join("store.redb")
    }

    pub(crate) fn blobs_dir(&self) -> PathBuf {
        self.dir.join("images")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let config: Config =
            toml::from_str(text).map_err(|source| ConfigError::Parse { path: PathBuf::from("test"), source })?;
        config.check()
    }

    #[test]
    fn a_directory_is_all_that_must_be_said() {
        let config = read("dir = \"/var/lib/basalt\"").unwrap();
        assert_eq!(config.defaults.mtu, 1450);
        let printed = toml::to_string(&config).unwrap();
        assert_eq!(read(&printed).unwrap(), config, "the printed configuration reads back as itself");
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused() {
        for text in ["dir = \"/x\"\nlisten_on = \"[::]:1\"", "dir = \"x\"", "dir = \"/x\"\nvcpus_per_cpu = 0", ""] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
