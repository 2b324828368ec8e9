//! The one owner of the state: takes changes one after another, makes each durable, and shows the newest intent to everyone who waits for it.
//!
//! A change works on a clone of the intent, is brought forward by `reconcile`, is written in one transaction, and only then takes the old one's
//! place: what a caller or an agent is shown is on disk already, and a change that fails leaves nothing behind.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use model::observed::Report;
use tokio::sync::watch;

use crate::bandwidth;
use crate::cluster::{Cluster, Reports};
use crate::config::Config;
use crate::intent::{Context, Intent};
use crate::reconcile::reconcile;
use crate::refusal::Refusal;
use crate::store::{Store, StoreError};

/// The owner of the state.
#[derive(Debug)]
pub(crate) struct Centre {
    config: Arc<Config>,
    store: Mutex<Store>,
    reports: Mutex<Reports>,
    newest: watch::Sender<Arc<Intent>>,
}

/// Everything at one moment: what is wanted and what is seen.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) intent: Arc<Intent>,
    pub(crate) cluster: Cluster,
}

impl Centre {
    /// Opens the store; a new one gets what a new cloud starts with.
    pub(crate) fn open(config: Arc<Config>) -> Result<Self, StoreError> {
        let (mut store, found) = Store::open(&config.store_path())?;
        let intent = match found {
            Some(intent) => intent,
            None => {
                let mut draw = uuid::Uuid::new_v4;
                let mut context = Context { draw: &mut draw, defaults: &config.defaults };
                // What a new cloud starts with is written here in the program: if it is refused, the program is wrong.
                let intent = Intent::found(&mut context).unwrap_or_else(|refusal| {
                    tracing::error!(%refusal, "a new cloud starts empty");
                    Intent::default()
                });
                store.save(&Intent::default(), &intent)?;
                intent
            }
        };
        let reports = Mutex::new(Reports::new(Instant::now()));
        Ok(Self { config, store: Mutex::new(store), reports, newest: watch::Sender::new(Arc::new(intent)) })
    }

    /// The newest intent, and word of every newer one.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Intent>> {
        self.newest.subscribe()
    }

    /// The newest intent.
    pub(crate) fn intent(&self) -> Arc<Intent> {
        Arc::clone(&self.newest.borrow())
    }

    /// Everything as it is now.
    pub(crate) fn world(&self) -> World {
        World { intent: self.intent(), cluster: self.reports().look(Instant::now()) }
    }

    /// Carries out a change: all of it, durably, or nothing. Waits for the disk: to be called where blocking is allowed.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&mut Intent, &mut Context<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.intent();
        let mut after = (*before).clone();
        let mut draw = uuid::Uuid::new_v4;
        let mut context = Context { draw: &mut draw, defaults: &self.config.defaults };
        let answer = change(&mut after, &mut context)?;
        let cluster = self.reports().look(Instant::now());
        bandwidth::check(&before, &after, &cluster)?;
        for fault in reconcile(&mut after, &cluster, self.config.overcommit()) {
            tracing::error!(host_id = %fault.host, error = %fault.error, "a specification contradicts itself");
        }
        if after != *before {
            store.save(&before, &after).map_err(|error| self.unsaved(&error))?;
            log_changes(&before, &after);
            self.newest.send_replace(Arc::new(after));
        }
        Ok(answer)
    }

    fn unsaved(&self, error: &StoreError) -> Refusal {
        tracing::error!(error = %chain(error), "a change could not be saved");
        if error.is_full() {
            Refusal::Full { path: self.config.dir.display().to_string() }
        } else {
            Refusal::Internal("the change could not be saved: see the scheduler's log".to_owned())
        }
    }

    /// Looks again at what hosts report and brings the intent forward.
    pub(crate) fn tick(&self) {
        if let Err(refusal) = self.change(|_, _| Ok(())) {
            tracing::error!(%refusal, "the intent could not be brought forward");
        }
    }

    /// Takes in a host's report.
    pub(crate) fn hear(&self, report: Report) {
        let news = self.reports().hear(report, Instant::now());
        if news {
            self.tick();
        }
    }

    /// Forgets what a host reported.
    pub(crate) fn forget(&self, host: model::HostId) {
        self.reports().forget(host);
    }

    fn reports(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}

fn log_changes(before: &Intent, after: &Intent) {
    for (id, vm) in &after.machines {
        let was = before.machines.get(id);
        let (host, decision) = (was.and_then(|was| was.host), was.and_then(|was| was.decision.as_ref()));
        if vm.host.is_some() && host != vm.host {
            let host_id = vm.host.map(|host| host.to_string()).unwrap_or_default();
            tracing::info!(vm_id = %id, vm = vm.machine.name, host_id, "vm placed");
        } else if vm.host.is_none() && decision != vm.decision.as_ref() {
            let reason = vm.decision.as_ref().map(crate::place::Decision::problem).unwrap_or_default();
            tracing::warn!(vm_id = %id, vm = vm.machine.name, reason, "no host takes the vm");
        }
    }
    for (id, vm) in before.machines.iter().filter(|(id, _)| !after.machines.contains_key(id)) {
        tracing::info!(vm_id = %id, vm = vm.machine.name, "vm gone");
    }
    for (host, assigned) in &after.assigned {
        let generation = assigned.spec.generation();
        if before.generation(*host) != generation {
            tracing::info!(host_id = %host, %generation, "new specification");
        }
    }
}
