//! The whole cloud in the lab: private Ceph, scheduler, two hosts with Open vSwitch and our agent, a tenant with machines,
//! and the proofs that it works. `cargo xtask up` and tests bring it up through here.
//!
//! ```text
//!   lab hosts boot ┬ Ceph starts        (both at once)
//!   scheduler  ──  Open vSwitch in each host, agents join
//!   images, networks, groups, machines  (tenant)
//!   checks                              (proof)
//! ```
//! Ceph and the scheduler run in the lab's network namespace and so end with it.

pub mod capture;
pub mod centre;
pub mod evidence;
pub mod node;
pub mod outside;
pub mod program;
pub mod proof;
pub mod tenant;

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use basalt_tests::ceph::{Cluster, Settings};
use basalt_tests::process;

use crate::lab::acceleration::Acceleration;
use crate::lab::artifact::Cache;
use crate::lab::guest_image::Guest;
use crate::lab::network::OUTER;
use crate::lab::progress::Progress;
use crate::lab::{Config, Host, Lab, run_directory};
use centre::Centre;
use node::Node;
use program::Programs;

/// Longest time from an agent's start to the scheduler counting its host as up with all it needs.
const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// A cloud.
#[derive(Debug)]
pub struct Cloud {
    lab: Lab,
    ceph: Cluster,
    centre: Centre,
    nodes: Vec<Node>,
    guest: Guest,
}

/// An emulated host lost its kernel: the emulator's doing, which says nothing about the product.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an emulated host's kernel died ({0})")]
pub struct HostLost(String);

impl Cloud {
    /// Brings up a cloud of `config.hosts` hosts without any tenant; it lives as long as the value.
    ///
    /// # Errors
    /// The step that failed, with the words of the program that did.
    pub fn up(config: &Config, programs: &Programs, progress: &Progress) -> Result<Self> {
        let step = progress.step("guest image");
        let guest = Guest::get(&Cache::open()?)?;
        step.done(&guest.disk_qcow2.display().to_string());
        let ceph_directory = ceph_directory(&config.name);
        if ceph_directory.exists() {
            Cluster::destroy(&ceph_directory)?;
        }
        let (lab, ceph) = Lab::up_and(config, progress, |network| {
            let step = progress.step("Ceph");
            let settings =
                Settings { address: OUTER.into(), netns: Some(network.name().to_owned()), ..Settings::default() };
            let ceph = Cluster::up(&ceph_directory, &settings, &|text| step.note(text))?;
            step.done(&ceph.health()?);
            Ok(ceph)
        })?;
        let step = progress.step("scheduler");
        let centre = Centre::start(&lab.directory().join("scheduler"), lab.network(), programs)?;
        step.done(&centre.url());
        let nodes = lab.hosts().iter().map(|host| Node::new(host, programs)).collect();
        let cloud = Self { lab, ceph, centre, nodes, guest };
        cloud.start_nodes(programs, progress).map_err(|error| match cloud.lost_host() {
            Some(lost) => error.context(lost),
            None => error,
        })?;
        Ok(cloud)
    }

    /// The first host whose kernel died by the emulator's fault, if one did.
    #[must_use]
    pub fn lost_host(&self) -> Option<HostLost> {
        let emulated = self.lab.acceleration() == Acceleration::Emulation;
        self.lab.hosts().iter().filter(|_| emulated).find_map(Host::last_words).map(HostLost)
    }

    /// The running cloud called `name`; dropping the value leaves it running.
    ///
    /// # Errors
    /// There is none.
    pub fn open(name: &str, programs: &Programs) -> Result<Self> {
        let lab = Lab::open(name)?;
        let directory = ceph_directory(name);
        let ceph = Cluster::at(&directory)?.with_context(|| format!("no Ceph in {}", directory.display()))?;
        let centre = Centre::at(&lab.directory().join("scheduler"), lab.network(), programs);
        let nodes = lab.hosts().iter().map(|host| Node::new(host, programs)).collect();
        Ok(Self { lab, ceph, centre, nodes, guest: Guest::get(&Cache::open()?)? })
    }

    /// Leaves the cloud running after the value is gone.
    ///
    /// # Errors
    /// As [`Lab::keep`].
    pub fn keep(&mut self) -> Result<()> {
        self.lab.keep()
    }

    /// Takes a cloud away, in whatever state it is.
    ///
    /// # Errors
    /// As [`Lab::down`], or Ceph's directory cannot be removed.
    pub fn down(name: &str) -> Result<()> {
        Lab::down(name)?;
        let directory = ceph_directory(name);
        if directory.exists() { Cluster::destroy(&directory) } else { Ok(()) }
    }

    /// The hosts and their network.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The Ceph cluster.
    #[must_use]
    pub fn ceph(&self) -> &Cluster {
        &self.ceph
    }

    /// The scheduler.
    #[must_use]
    pub fn centre(&self) -> &Centre {
        &self.centre
    }

    /// The nodes in order.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What guests are made from.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The node of the host called `name`.
    ///
    /// # Errors
    /// There is no such host.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let found = self.nodes.iter().find(|node| node.host().name() == name);
        found.ok_or_else(|| anyhow!("the scheduler names a host {name:?} that the lab does not have"))
    }

    /// Starts Open vSwitch and the agent in all hosts at once and waits until the scheduler counts them as up.
    fn start_nodes(&self, programs: &Programs, progress: &Progress) -> Result<()> {
        let step = progress.step("agents");
        let conf = self.ceph.conf().display().to_string();
        let start = |node: &Node| -> Result<()> {
            let token = self.centre.token(node.host().name())?;
            node.host().start_switch()?;
            node.join(&self.centre, &token, programs, &conf)
        };
        thread::scope(|scope| {
            let starts: Vec<_> = self.nodes.iter().map(|node| scope.spawn(|| start(node))).collect();
            starts.into_iter().try_for_each(|start| start.join().map_err(|_| anyhow!("starting a node panicked"))?)
        })?;
        for node in &self.nodes {
            let path = format!("/v1/hosts/{}", node.host().name());
            let look = || {
                let view = self.centre.get(&path)?;
                let ready = ["kvm", "rbd", "switch"].iter().all(|part| view["resources"][part] == true);
                Ok((view["state"] == "up" && ready).then_some(()))
            };
            process::wait_for(&format!("{} to be up", node.host().name()), JOIN_LIMIT, look).with_context(|| {
                let view = self.centre.get(&path).unwrap_or_default();
                format!("the scheduler says: {view}\n{}", node.log_tail())
            })?;
        }
        step.done(&format!("{} joined over mTLS, with kvm, rbd and switch", self.nodes.len()));
        Ok(())
    }
}

/// Where the cloud called `name` keeps its Ceph: outside the lab's directory, which goes before the daemons are counted.
fn ceph_directory(name: &str) -> PathBuf {
    run_directory(name).with_extension("ceph")
}
