//! The command line: nouns, then verbs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::agent::{self, Agent};
use crate::failure::{EXIT_CODES, Failure};
use crate::manual;
use crate::noun::address_group::AddressGroupVerb;
use crate::noun::compute::{FlavorVerb, HostVerb, VmVerb};
use crate::noun::firewall::FirewallPolicyVerb;
use crate::noun::load_balancer::LoadBalancerVerb;
use crate::noun::network::{GroupVerb, NetworkVerb, PortVerb, SubnetVerb};
use crate::noun::router::RouterVerb;
use crate::noun::storage::{ImageVerb, VolumeVerb};
use crate::noun::{self, Session};
use crate::output::{self, Format};
use crate::question::{self, FlowVerb, Trace, Why};
use crate::scheduler::Scheduler;
use crate::top::{self, Top};

/// Asks Basalt's scheduler and agents, and tells them what should be.
#[derive(Debug, Parser)]
#[command(name = "flowctl", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// How results are printed.
    #[arg(long, short, global = true, value_enum, default_value_t)]
    pub output: Format,
    /// The socket of this host's agent.
    #[arg(long, global = true, env = "BASALT_AGENT", default_value = agent::SOCKET, value_name = "SOCKET")]
    pub agent: PathBuf,
    /// The file that says where the scheduler is and who we are.
    #[arg(long, global = true, env = "BASALT_CLIENT", value_name = "FILE")]
    pub client: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Noun,
}

/// What a command is about.
#[derive(Debug, Subcommand)]
pub enum Noun {
    /// Virtual machines.
    #[command(subcommand)]
    Vm(VmVerb),
    /// Block volumes.
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Disk, kernel and initrd images.
    #[command(subcommand)]
    Image(ImageVerb),
    /// Tenant networks.
    #[command(subcommand)]
    Network(NetworkVerb),
    /// Ranges of addresses.
    #[command(subcommand)]
    Subnet(SubnetVerb),
    /// Virtual network interfaces.
    #[command(subcommand)]
    Port(PortVerb),
    /// Security groups and their rules.
    #[command(subcommand)]
    Group(GroupVerb),
    /// Lists of addresses that rules of security groups name.
    #[command(subcommand)]
    AddressGroup(AddressGroupVerb),
    /// Ordered rules of what may cross the borders of routers.
    #[command(subcommand)]
    FirewallPolicy(FirewallPolicyVerb),
    /// Routers between subnets.
    #[command(subcommand)]
    Router(RouterVerb),
    /// Addresses whose connections are shared out among members.
    #[command(subcommand)]
    LoadBalancer(LoadBalancerVerb),
    /// Servers of the cloud.
    #[command(subcommand)]
    Host(HostVerb),
    /// Sizes of virtual machines.
    #[command(subcommand)]
    Flavor(FlavorVerb),
    /// The flows of this host.
    #[command(subcommand)]
    Flow(FlowVerb),
    /// Show the way of a packet from a VM on this host: by our flows and by Open vSwitch, side by side.
    Trace(Trace),
    /// Say in one line what stops a packet or a VM.
    Why(Why),
    /// Show what the ports of this host carry, and what is dropped and why, live.
    Top(Top),
    /// Check this host: KVM, Open vSwitch, Ceph, MTU, time, certificates, each with the way out.
    Doctor,
    /// How this host's agent is: specification, link to the scheduler, problems.
    Status,
    /// Print a shell's completion script.
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual pages into a directory.
    Man {
        /// The directory; made where it is missing.
        directory: PathBuf,
    },
}

/// Runs a command and says how it ended.
pub async fn run(cli: Cli) -> ExitCode {
    match dispatch(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::note(&format!("flowctl: {failure}"));
            failure.exit_code()
        }
    }
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let agent = Agent::at(&cli.agent);
    let printed = match &cli.command {
        Noun::Status => output::object(cli.output, &agent.get("/v1/status").await?),
        Noun::Completion { shell } => output::text(&manual::completion(&mut Cli::command(), *shell)),
        Noun::Man { directory } => {
            let pages = manual::write_pages(Cli::command(), directory)
                .map_err(|error| Failure::Other(format!("write manual pages to {}: {error}", directory.display())))?;
            output::text(&format!("{pages} pages in {}", directory.display()))
        }
        Noun::Vm(VmVerb::Console(name)) => return noun::compute::console(&agent, &name.name).await,
        Noun::Flow(verb) => return question::flow(&agent, cli.output, verb).await,
        Noun::Trace(trace) => return question::trace(&agent, cli.output, trace).await,
        Noun::Why(why) => return question::why(&agent, cli.output, why).await,
        Noun::Top(watch) => return top::run(&agent, cli.output, watch).await,
        Noun::Doctor => return question::doctor(&agent, cli.output).await,
        noun => return of_the_cloud(&cli, noun).await,
    };
    noun::written(printed)
}

/// What the scheduler is asked for.
async fn of_the_cloud(cli: &Cli, noun: &Noun) -> Result<(), Failure> {
    let scheduler = Scheduler::open(cli.client.as_deref())?;
    let session = Session { scheduler: &scheduler, format: cli.output };
    match noun {
        Noun::Vm(verb) => session.vm(verb).await,
        Noun::Volume(verb) => session.volume(verb).await,
        Noun::Image(verb) => session.image(verb).await,
        Noun::Network(verb) => session.network(verb).await,
        Noun::Subnet(verb) => session.subnet(verb).await,
        Noun::Port(verb) => session.port(verb).await,
        Noun::Group(verb) => session.group(verb).await,
        Noun::AddressGroup(verb) => session.address_group(verb).await,
        Noun::FirewallPolicy(verb) => session.firewall_policy(verb).await,
        Noun::Router(verb) => session.router(verb).await,
        Noun::LoadBalancer(verb) => session.load_balancer(verb).await,
        Noun::Host(verb) => session.host(verb).await,
        Noun::Flavor(verb) => session.flavor(verb).await,
        Noun::Flow(_)
        | Noun::Trace(_)
        | Noun::Why(_)
        | Noun::Top(_)
        | Noun::Doctor
        | Noun::Status
        | Noun::Completion { .. }
        | Noun::Man { .. } => Err(Failure::Other("this is asked of the agent, not of the scheduler".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Every path of commands, without the program's name: `vm`, `vm launch`, …
    fn paths(command: &clap::Command, before: &str) -> Vec<String> {
        let mut all = Vec::new();
        for sub in command.get_subcommands() {
            let path = format!("{before} {}", sub.get_name()).trim().to_owned();
            all.extend(paths(sub, &path));
            all.push(path);
        }
        all
    }

    #[test]
    fn every_command_has_a_manual_page_and_a_completion() {
        let directory = tempfile::tempdir().unwrap();
        manual::write_pages(Cli::command(), directory.path()).unwrap();
        let scripts =
            [Shell::Bash, Shell::Zsh, Shell::Fish].map(|shell| manual::completion(&mut Cli::command(), shell));
        let paths = paths(&Cli::command(), "");
        assert!(paths.len() > 60, "{paths:?}");
        for path in &paths {
            let page = directory.path().join(format!("flowctl-{}.1", path.replace(' ', "-")));
            let text = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            assert!(text.contains(".SH SYNOPSIS"), "{path}");
            let word = path.rsplit(' ').next().unwrap_or_default();
            for script in &scripts {
                assert!(script.contains(word), "{path} is in no completion");
            }
        }
    }
}
