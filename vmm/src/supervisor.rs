//! The control thread: one owner of the machine's state, which waits for requests, reports and signals and acts on one at a time.
//!
//! What is legal is asked of [`State::after`] before anything is done; the state changes only after it was done. The machine is built and taken down
//! here and nowhere else. After the machine has ended its resources are closed, so that its volumes can be opened elsewhere, and the process stays to
//! tell how it ended.

use crate::clients::Clients;
use crate::config::{Checked, DiskSource, VmConfig};
use crate::console::server::Server;
use crate::control::{Call, ErrorCode, Event, Metrics, Refusal, Response, StateReport};
use crate::jail::privilege::Identity;
use crate::jail::seccomp::ThreadKind;
use crate::jail::{self, Jail};
use crate::machine::Machine;
use crate::poll::{Interest, Poller};
use crate::report::{self, Report, Reporter, Reports};
use crate::resources::{self, Prepared, Resources};
use crate::state::{State, Step};
use crate::thread::{self, Confinement};
use crate::triple_fault::{self, TripleFaults};
use crate::vcpu;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::Value;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

const LISTENER: u64 = 0;
const REPORTS: u64 = 1;
const SIGNALS: u64 = 2;
const FIRST_CLIENT: u64 = 16;
/// Console tokens of the n-th configuration count from n times this.
const CONSOLE_STEP: u64 = 1 << 40;
/// The first bytes an owner alone may use the control socket.
const SOCKET_MODE: u32 = 0o600;

/// The control thread could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The control socket.
    #[error("listen at {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A descriptor of our own.
    #[error("{attempt}")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The configuration given at the start was refused, or one that the process cannot outlive.
    #[error("{method} was refused")]
    Refused {
        /// What was attempted.
        method: &'static str,
        /// Why.
        #[source]
        refusal: Refusal,
    },
}

/// The process's one owner of state.
#[derive(Debug)]
pub struct Supervisor {
    poller: Poller,
    clients: Clients,
    control: PathBuf,
    signals: SignalFd,
    reporter: Reporter,
    reports: Reports,
    state: State,
    reason: Option<String>,
    name: Option<String>,
    resources: Option<Resources>,
    console: Option<Server>,
    configurations: u64,
    confinement: Confinement,
    machine: Option<Machine>,
    resets: u64,
    triple_faults: TripleFaults,
    quits: bool,
    /// Why the process must end.
    fatal: Option<Refusal>,
}

impl Supervisor {
    /// Listens at `control` for requests.
    ///
    /// # Errors
    /// [`SupervisorError`].
    pub fn new(control: &Path) -> Result<Self, SupervisorError> {
        let io = |attempt| move |source| SupervisorError::Io { attempt, source };
        let refused = |source| SupervisorError::Listen { path: control.to_owned(), source };
        vcpu::install_kick_handler().map_err(|error| SupervisorError::Io {
            attempt: "install the handler of the kick signal",
            source: io::Error::from_raw_os_error(error.errno()),
        })?;
        let mut ending = SigSet::empty();
        [Signal::SIGTERM, Signal::SIGINT].into_iter().for_each(|signal| ending.add(signal));
        ending.thread_block().map_err(|error| io("block signals")(error.into()))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&ending, flags).map_err(|error| io("watch signals")(error.into()))?;
        let (reporter, reports) = report::pair().map_err(io("make an eventfd"))?;
        let poller = Poller::new().map_err(io("make a poller"))?;
        let listener = resources::listen(control).map_err(refused)?;
        std::fs::set_permissions(control, std::fs::Permissions::from_mode(SOCKET_MODE)).map_err(refused)?;
        let clients = Clients::new(listener, &poller, LISTENER, FIRST_CLIENT).map_err(refused)?;
        poller.add(reports.event(), REPORTS, Interest::Read).map_err(io("watch reports"))?;
        poller.add(&std::os::fd::AsFd::as_fd(&signals), SIGNALS, Interest::Read).map_err(io("watch signals"))?;
        Ok(Self {
            poller,
            clients,
            control: control.to_owned(),
            signals,
            reporter,
            reports,
            state: State::Created,
            reason: None,
            name: None,
            resources: None,
            console: None,
            configurations: 0,
            confinement: Confinement::Off,
            machine: None,
            resets: 0,
            triple_faults: TripleFaults::default(),
            quits: false,
            fatal: None,
        })
    }

    /// Does what a client could ask, without one: for a configuration given on the command line.
    ///
    /// # Errors
    /// [`SupervisorError::Refused`].
    pub fn ask(&mut self, call: Call) -> Result<Value, SupervisorError> {
        let method = call.method();
        self.act(call).map_err(|refusal| SupervisorError::Refused { method, refusal })
    }

    /// Waits and acts until told to quit, or until the machine ended where `until_end`. Returns the last state.
    ///
    /// # Errors
    /// [`SupervisorError::Io`] when waiting fails; [`SupervisorError::Refused`] when the jail was entered in vain.
    pub fn run(mut self, until_end: bool) -> Result<State, SupervisorError> {
        while !(self.quits || self.fatal.is_some() || until_end && self.state.is_final()) {
            let waited = self.poller.wait(-1);
            let tokens = waited.map_err(|source| SupervisorError::Io { attempt: "wait for events", source })?;
            tokens.into_iter().for_each(|token| self.serve(token));
        }
        self.end_machine();
        self.flush_console();
        if let Err(error) = std::fs::remove_file(&self.control) {
            tracing::debug!(%error, "the control socket was not removed");
        }
        if let Some(refusal) = self.fatal {
            return Err(SupervisorError::Refused { method: "configure", refusal });
        }
        Ok(self.state)
    }

    fn serve(&mut self, token: u64) {
        match token {
            LISTENER => self.clients.accept(&self.poller),
            REPORTS => {
                if let Some(report) = self.reports.first() {
                    self.take(report);
                }
            }
            SIGNALS => {
                if let Ok(Some(signal)) = self.signals.read_signal() {
                    tracing::info!(signal = signal.ssi_signo, "told to quit by a signal");
                    self.quits = true;
                }
            }
            token if token >= CONSOLE_STEP => {
                let base = self.console_base();
                if let (Some(console), Some(which)) = (&mut self.console, token.checked_sub(base)) {
                    console.serve(&self.poller, base, which);
                }
            }
            token => {
                for asked in self.clients.read(&self.poller, token) {
                    self.answer(token, asked);
                }
            }
        }
    }

    fn answer(&mut self, token: u64, asked: Result<crate::control::Request, Response>) {
        let response = match asked {
            Err(response) => response,
            Ok(request) => {
                let subscribes = request.call == Call::Events;
                let outcome = self.act(request.call);
                if subscribes {
                    self.clients.subscribe(token);
                }
                Response { id: Some(request.id), outcome }
            }
        };
        self.clients.respond(&self.poller, token, &response);
    }

    /// Does one call.
    fn act(&mut self, call: Call) -> Result<Value, Refusal> {
        match call {
            Call::Configure(config) => self.configure(*config)?,
            Call::Start => self.start()?,
            Call::Pause => {
                let after = self.legal(Step::Pause)?;
                self.on_machine(|machine| machine.pause())?;
                self.enter(after, Event::Paused);
            }
            Call::Resume => {
                let after = self.legal(Step::Resume)?;
                self.on_machine(|machine| machine.resume())?;
                self.enter(after, Event::Running);
            }
            Call::Shutdown => {
                self.legal(Step::PowerOff)?;
                self.on_machine(|machine| {
                    machine.press_power_button();
                    Ok(())
                })?;
            }
            Call::Reset => self.reset()?,
            Call::Stop => {
                let after = self.legal(Step::Stop)?;
                self.finish(after, "stopped by a client");
            }
            Call::State | Call::Events => return Ok(json(&self.report())),
            Call::Metrics => return Ok(json(&self.machine.as_ref().map_or_else(Metrics::default, Machine::metrics))),
            Call::Quit => self.quits = true,
        }
        Ok(Value::Object(serde_json::Map::new()))
    }

    fn configure(&mut self, config: VmConfig) -> Result<(), Refusal> {
        let after = self.legal(Step::Configure)?;
        if self.confinement == Confinement::On {
            let message = "the process is in the jail of its first configuration and opens nothing more: start another";
            return Err(Refusal { code: ErrorCode::IllegalState, message: message.to_owned() });
        }
        let config = Checked::try_from(config).map_err(|error| Refusal::new(ErrorCode::InvalidConfig, &error))?;
        let name = config.get().name.clone();
        // An earlier configuration lets go first: the new one may name the same volume.
        (self.resources, self.console) = (None, None);
        self.state = State::Created;
        let unavailable = |error| Refusal::new(ErrorCode::Unavailable, &error);
        let (prepared, console) = Prepared::new(config).map_err(unavailable)?;
        let resources = match jail_of(prepared.config().get(), &self.control) {
            None => prepared.open().map_err(unavailable)?,
            Some(jail) => self.open_in_jail(prepared, &jail)?,
        };
        self.configurations += 1;
        console.watch(&self.poller, self.console_base()).map_err(|error| Refusal::new(ErrorCode::Internal, &error))?;
        (self.resources, self.console, self.name) = (Some(resources), Some(console), Some(name));
        self.enter(after, Event::Configured);
        Ok(())
    }

    /// Opens the volumes behind the jail's first walls, then puts up the rest. The process ends when that fails: nothing could be tried again in it.
    fn open_in_jail(&mut self, prepared: Prepared, jail: &Jail) -> Result<Resources, Refusal> {
        self.confinement = Confinement::On;
        confine(prepared, jail).map_err(|Refusal { code, message }| {
            let message = format!("{message} (the process, which is in its jail, ends)");
            self.fatal.insert(Refusal { code, message }).clone()
        })
    }

    fn start(&mut self) -> Result<(), Refusal> {
        let after = self.legal(Step::Start)?;
        self.build()?;
        self.on_machine(|machine| machine.resume())?;
        self.enter(after, Event::Running);
        Ok(())
    }

    /// Builds the machine, in the jail.
    fn build(&mut self) -> Result<(), Refusal> {
        let failed = |error: &dyn std::error::Error| Refusal::new(ErrorCode::StartFailed, error);
        let Some(resources) = &self.resources else {
            return Err(Refusal { code: ErrorCode::Internal, message: "nothing is configured".to_owned() });
        };
        self.machine =
            Some(Machine::build(resources, self.confinement, &self.reporter).map_err(|error| failed(&error))?);
        Ok(())
    }

    /// Takes the machine down and builds the next one, which runs where the old one did.
    fn reset(&mut self) -> Result<(), Refusal> {
        let after = self.legal(Step::Reset)?;
        self.end_machine();
        let built = self.build().and_then(|()| match after {
            State::Running => self.on_machine(|machine| machine.resume()),
            _ => Ok(()),
        });
        if let Err(refusal) = built {
            self.crash(format!("the machine could not start again: {refusal}"));
            return Err(refusal);
        }
        self.resets += 1;
        self.enter(after, Event::Reset);
        Ok(())
    }

    /// The machine reported something only we can act on.
    fn take(&mut self, report: Report) {
        match report {
            Report::Reset => self.reset_for_guest(),
            Report::TripleFault { vcpu } if self.triple_faults.may_reset(Instant::now()) => {
                tracing::warn!(vcpu, "a vCPU met a triple fault: the machine resets, as hardware does");
                self.reset_for_guest();
            }
            Report::TripleFault { vcpu } => {
                let (more, window) = (triple_fault::RESETS_MAX, triple_fault::WINDOW.as_secs());
                self.crash(format!("vCPU {vcpu}: triple fault, after {more} others within {window} s"));
            }
            Report::PowerOff => match self.state.after(Step::PowerOff) {
                Ok(after) => self.finish(after, "powered off by the guest"),
                Err(error) => tracing::warn!(%error, "a power-off by the guest came too late"),
            },
            Report::Failed(reason) => self.crash(reason),
        }
    }

    fn reset_for_guest(&mut self) {
        if let Err(refusal) = self.reset() {
            tracing::warn!(%refusal, "a reset by the guest was refused");
        }
    }

    fn crash(&mut self, reason: String) {
        let Ok(after) = self.state.after(Step::Crash) else { return };
        tracing::error!(reason, "the machine crashed");
        self.close();
        self.reason = Some(reason.clone());
        self.enter(after, Event::Crashed { reason });
    }

    fn finish(&mut self, after: State, reason: &str) {
        self.close();
        self.reason = Some(reason.to_owned());
        self.enter(after, Event::Shutdown { reason: reason.to_owned() });
    }

    /// Ends the machine and lets go of its resources; the console's clients stay to read its last words.
    fn close(&mut self) {
        self.end_machine();
        self.flush_console();
        self.resources = None;
    }

    fn end_machine(&mut self) {
        self.machine = None;
        // What the ended machine reported on its way down is about nobody now.
        self.reports.first();
    }

    fn flush_console(&mut self) {
        let base = self.console_base();
        if let Some(console) = &mut self.console {
            console.flush(&self.poller, base);
        }
    }

    const fn console_base(&self) -> u64 {
        self.configurations * CONSOLE_STEP
    }

    fn legal(&self, step: Step) -> Result<State, Refusal> {
        self.state.after(step).map_err(|error| Refusal::new(ErrorCode::IllegalState, &error))
    }

    fn on_machine(
        &self,
        act: impl FnOnce(&Machine) -> Result<(), crate::machine::MachineError>,
    ) -> Result<(), Refusal> {
        let Some(machine) = &self.machine else {
            return Err(Refusal { code: ErrorCode::Internal, message: "there is no machine".to_owned() });
        };
        act(machine).map_err(|error| Refusal::new(ErrorCode::Timeout, &error))
    }

    fn enter(&mut self, state: State, event: Event) {
        tracing::info!(from = %self.state, to = %state, vm = self.name.as_deref(), "the machine's state changed");
        self.state = state;
        self.clients.broadcast(&self.poller, &event);
    }

    fn report(&self) -> StateReport {
        StateReport {
            state: self.state,
            reason: self.reason.clone(),
            name: self.name.clone(),
            resets: self.resets,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// The jail that a configuration asks for.
fn jail_of(config: &VmConfig, control: &Path) -> Option<Jail> {
    let wanted = config.jail.as_ref()?;
    // To take its socket away at the end.
    let own = control.parent().map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path });
    let identity = Some(Identity { uid: wanted.uid, gid: wanted.gid });
    Some(Jail { identity, writable: own.map(Path::to_owned).into_iter().collect() })
}

/// Puts the process into its jail, and opens the volumes on the way in.
fn confine(prepared: Prepared, jail: &Jail) -> Result<Resources, Refusal> {
    let failed = |error: &dyn std::error::Error| Refusal::new(ErrorCode::StartFailed, error);
    // librados makes threads of its own from this one, which need what the filter of the whole process leaves them.
    let has_rbd = prepared.config().get().disks.iter().any(|disk| matches!(disk.source, DiskSource::Rbd(_)));
    let wall = jail::surround(jail, &prepared.reads()).map_err(|error| failed(&error))?;
    let resources = prepared.open().map_err(|error| Refusal::new(ErrorCode::Unavailable, &error))?;
    drop(wall);
    let entered = jail::enter(jail).map_err(|error| failed(&error))?;
    if !has_rbd {
        thread::confine(Confinement::On, ThreadKind::Control).map_err(|error| failed(&error))?;
    }
    tracing::info!(identity = ?jail.identity, landlock = entered.filesystem, "the process is jailed");
    Ok(resources)
}

/// A value of [`crate::control`] as JSON; they have string keys and finite numbers, so this cannot fail.
fn json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_else(|error| unreachable!("write a result: {error}"))
}
