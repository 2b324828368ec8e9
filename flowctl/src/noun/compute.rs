//! Machines, flavors and hosts.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use model::metadata::{Metadata, MetadataError, UserData};
use serde_json::{Value, json};

use super::wait::{self, Wait};
use super::{Common, Kind, Name, Session, body};
use crate::agent::Agent;
use crate::failure::Failure;
use crate::output;

/// Machines.
pub const VMS: Kind = Kind {
    path: "/v1/vms",
    columns: &[
        ("NAME", "/name"),
        ("STATE", "/state"),
        ("HOST", "/host/name"),
        ("FLAVOR", "/flavor"),
        ("ADDRESS", "/ports/0/addresses"),
        ("ID", "/id"),
        ("PROBLEM", "/problem/message"),
    ],
};
/// Sizes of machines.
pub const FLAVORS: Kind = Kind {
    path: "/v1/flavors",
    columns: &[("NAME", "/name"), ("VCPUS", "/vcpus"), ("MEMORY MIB", "/memory_mib"), ("ID", "/id")],
};
/// Servers.
pub const HOSTS: Kind = Kind {
    path: "/v1/hosts",
    columns: &[
        ("NAME", "/name"),
        ("STATE", "/state"),
        ("ENABLED", "/enabled"),
        ("TUNNEL", "/tunnel"),
        ("CPUS", "/resources/cpus"),
        ("MEMORY MIB", "/resources/memory_mib"),
        ("ID", "/id"),
        ("PROBLEM", "/problems/0/message"),
    ],
};

/// What can be done with machines.
#[derive(Debug, Subcommand)]
pub enum VmVerb {
    /// Launch a machine.
    Launch(Box<Launch>),
    /// Start a machine that is stopped or has crashed.
    Start {
        /// Which machine.
        #[command(flatten)]
        name: Name,
        /// Whether to wait until it has.
        #[command(flatten)]
        wait: Wait,
    },
    /// Shut a machine down: by its power button, by force when that has no effect.
    Stop {
        /// Which machine.
        #[command(flatten)]
        name: Name,
        /// Whether to wait until it has.
        #[command(flatten)]
        wait: Wait,
    },
    /// Say where a machine was placed, and why not elsewhere.
    Placement(Name),
    /// Attach to the console of a machine that runs on this host. Ctrl-] leaves it.
    Console(Name),
    /// What can be done with every kind of object.
    #[command(flatten)]
    Common(Common),
}

/// A machine to launch.
#[derive(Debug, Args)]
pub struct Launch {
    /// Its name, and its host name inside: a DNS label.
    name: String,
    /// Its size: the name of a flavor.
    #[arg(long)]
    flavor: String,
    /// The disk image that its first volume is made from.
    #[arg(long, required_unless_present = "volume")]
    image: Option<String>,
    /// An existing volume as its first disk.
    #[arg(long, conflicts_with = "image")]
    volume: Option<String>,
    /// Size of the volume made from the image, in MiB.
    #[arg(long, value_name = "MIB", conflicts_with = "volume")]
    volume_size: Option<u64>,
    /// Where the volume made from the image is: local or rbd.
    #[arg(long, value_parser = ["local", "rbd"], conflicts_with = "volume")]
    volume_backend: Option<String>,
    /// A further volume; can be given more than once.
    #[arg(long = "disk", value_name = "VOLUME")]
    disks: Vec<String>,
    /// An existing port; can be given more than once.
    #[arg(long = "port")]
    ports: Vec<String>,
    /// A network to make a port on; can be given more than once.
    #[arg(long = "network")]
    networks: Vec<String>,
    /// A security group for the ports made on networks; can be given more than once.
    #[arg(long = "group")]
    groups: Vec<String>,
    /// Machines with the same word here are kept on different hosts.
    #[arg(long, value_name = "WORD")]
    anti_affinity: Option<String>,
    /// The one host that may run it.
    #[arg(long)]
    host: Option<String>,
    /// The kernel image, where that is not what the disk image says.
    #[arg(long)]
    kernel: Option<String>,
    /// The initrd image, where that is not what the disk image says.
    #[arg(long)]
    initrd: Option<String>,
    /// The kernel command line, where that is not what the disk image says.
    #[arg(long)]
    cmdline: Option<String>,
    /// A file that it is to run or read at its first boot, by way of the metadata service: mostly cloud-init's, 16 KiB at most.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// A file with public SSH keys, a line each, that may log in; can be given more than once.
    #[arg(long = "ssh-key", value_name = "FILE")]
    ssh_keys: Vec<PathBuf>,
    /// Do not start it.
    #[arg(long)]
    stopped: bool,
    #[command(flatten)]
    wait: Wait,
}

impl Launch {
    /// What it is told by the metadata service, read from files.
    fn metadata(&self) -> Result<Metadata, Failure> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| Failure::Other(format!("read {}: {error}", path.display())))
        };
        let refused = |path: &PathBuf, error: MetadataError| Failure::Other(format!("{}: {error}", path.display()));
        let mut metadata = Metadata::default();
        if let Some(path) = &self.user_data {
            metadata.user_data = Some(UserData::try_from(read(path)?).map_err(|error| refused(path, error))?);
        }
        for path in &self.ssh_keys {
            let text = String::from_utf8_lossy(&read(path)?).into_owned();
            for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
                metadata.ssh_keys.push(line.parse().map_err(|error| refused(path, error))?);
            }
        }
        Ok(metadata)
    }

    fn body(&self) -> Result<Value, Failure> {
        let metadata = self.metadata()?;
        let boot =
            body([("kernel", json!(self.kernel)), ("initrd", json!(self.initrd)), ("cmdline", json!(self.cmdline))]);
        Ok(body([
            ("name", json!(self.name)),
            ("flavor", json!(self.flavor)),
            ("user_data", json!(metadata.user_data)),
            ("ssh_keys", if metadata.ssh_keys.is_empty() { Value::Null } else { json!(metadata.ssh_keys) }),
            ("image", json!(self.image)),
            ("volume", json!(self.volume)),
            ("volume_size_mib", json!(self.volume_size)),
            ("volume_backend", json!(self.volume_backend)),
            ("disks", json!(self.disks)),
            ("ports", json!(self.ports)),
            ("networks", json!(self.networks)),
            ("groups", json!(self.groups)),
            ("anti_affinity", json!(self.anti_affinity)),
            ("host", json!(self.host)),
            ("boot", if boot == json!({}) { Value::Null } else { boot }),
            ("start", if self.stopped { json!(false) } else { Value::Null }),
        ]))
    }
}

/// What can be done with flavors.
#[derive(Debug, Subcommand)]
pub enum FlavorVerb {
    /// Make a flavor.
    Create {
        /// Its name.
        name: String,
        /// Virtual CPUs.
        #[arg(long)]
        vcpus: u64,
        /// Guest memory in MiB.
        #[arg(long, value_name = "MIB")]
        memory: u64,
    },
    /// What can be done with every kind of object.
    #[command(flatten)]
    Common(Common),
}

/// What can be done with hosts.
#[derive(Debug, Subcommand)]
pub enum HostVerb {
    /// Let new machines be placed on a host.
    Enable(Name),
    /// Place no new machine on a host; those that it has stay.
    Disable(Name),
    /// Place the machines of a host that is dead on other hosts (what Nova calls evacuate).
    ///
    /// Refused for a host that is up, and without --force for one that is down: nothing proves that its machines are off. Machines with volumes on
    /// the host's own disk stay. The host gets no new machines until it is enabled again; delete it if it is gone for good.
    Evacuate {
        /// Which host.
        #[command(flatten)]
        name: Name,
        /// The host has no power, or is cut off from its networks: I have made sure of it.
        #[arg(long)]
        force: bool,
    },
    /// What can be done with every kind of object.
    #[command(flatten)]
    Common(Common),
}

impl Session<'_> {
    /// Does something with machines.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn vm(&self, verb: &VmVerb) -> Result<(), Failure> {
        match verb {
            VmVerb::Launch(launch) => {
                let made = self.scheduler.post(VMS.path, &launch.body()?).await?;
                let goal = if launch.stopped { "stopped" } else { "running" };
                self.waited(made, launch.wait, goal).await
            }
            VmVerb::Start { name, wait } => {
                let path = format!("{}/start", VMS.of(&name.name));
                self.waited(self.scheduler.post(&path, &Value::Null).await?, *wait, "running").await
            }
            VmVerb::Stop { name, wait } => {
                let path = format!("{}/stop", VMS.of(&name.name));
                self.waited(self.scheduler.post(&path, &Value::Null).await?, *wait, "stopped").await
            }
            VmVerb::Placement(name) => {
                self.show(&self.scheduler.get(&format!("{}/placement", VMS.of(&name.name))).await?)
            }
            VmVerb::Console(_) => Err(Failure::Other("a console is asked of this host's agent".to_owned())),
            VmVerb::Common(verb) => self.common(VMS, verb).await,
        }
    }

    async fn waited(&self, vm: Value, wait: Wait, goal: &str) -> Result<(), Failure> {
        let id = vm.pointer("/id").and_then(Value::as_str).unwrap_or_default();
        match wait.limit() {
            Some(limit) => self.show(&wait::until_state(self.scheduler, &VMS.of(id), goal, limit).await?),
            None => self.show(&vm),
        }
    }

    /// Does something with flavors.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn flavor(&self, verb: &FlavorVerb) -> Result<(), Failure> {
        match verb {
            FlavorVerb::Create { name, vcpus, memory } => {
                self.create(FLAVORS, json!({"name": name, "vcpus": vcpus, "memory_mib": memory})).await
            }
            FlavorVerb::Common(verb) => self.common(FLAVORS, verb).await,
        }
    }

    /// Does something with hosts.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn host(&self, verb: &HostVerb) -> Result<(), Failure> {
        let enable = |name: &Name, enabled: bool| (HOSTS.of(&name.name), json!({"enabled": enabled}));
        let (path, change) = match verb {
            HostVerb::Enable(name) => enable(name, true),
            HostVerb::Disable(name) => enable(name, false),
            HostVerb::Evacuate { name, force } => {
                let path = format!("{}/evacuate", HOSTS.of(&name.name));
                return self.show(&self.scheduler.post(&path, &json!({"force": force})).await?);
            }
            HostVerb::Common(verb) => return self.common(HOSTS, verb).await,
        };
        self.show(&self.scheduler.patch(&path, &change).await?)
    }
}

/// Attaches to the console of a machine on this host.
///
/// # Errors
/// [`Failure`] when the agent does not know the machine, or its console can not be reached.
pub async fn console(agent: &Agent, name: &str) -> Result<(), Failure> {
    let answer = agent.get(&format!("/v1/vms/{}/console", super::escape(name))).await?;
    let socket = answer.pointer("/socket").and_then(Value::as_str);
    let socket = socket.ok_or_else(|| Failure::Other(format!("{name} has no console now: does it run?")))?;
    output::note("connected; Ctrl-] leaves");
    super::console::attach(std::path::Path::new(socket)).await
}
