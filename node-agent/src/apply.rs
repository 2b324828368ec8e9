//! Takes one step: records what has to be remembered, then calls the driver. No choice is made here.

use std::sync::Arc;

use model::MachineId;
use model::observed::Problem;
use model::volume::Volume;

use crate::driver::{Failure, Images, Machines, Network, Volumes, blocking};
use crate::ledger::{Ledger, LedgerError};
use crate::plan::Step;
use crate::record::{Launch, MachineRecord};
use crate::seen::Process;

/// The drivers of a host, bundled.
pub trait Drivers: Send + Sync + 'static {
    /// VMM processes.
    type Machines: Machines;
    /// Images.
    type Images: Images;
    /// Volumes.
    type Volumes: Volumes;
    /// Taps, bridge, flows.
    type Network: Network;

    /// VMM processes.
    fn machines(&self) -> &Self::Machines;
    /// Images.
    fn images(&self) -> &Self::Images;
    /// Volumes.
    fn volumes(&self) -> &Self::Volumes;
    /// Taps, bridge, flows.
    fn network(&self) -> &Self::Network;
}

/// Takes a step. May be cut off at any await: what was begun is seen at the next look.
///
/// # Errors
/// [`Problem`] when it failed; it is tried again while the plan still asks for it.
pub async fn take<D: Drivers>(drivers: Arc<D>, ledger: Ledger, step: Step, now_ms: u64) -> Result<(), Problem> {
    take_step(&*drivers, &ledger, step, now_ms).await.map_err(Problem::from)
}

async fn take_step<D: Drivers>(drivers: &D, ledger: &Ledger, step: Step, now_ms: u64) -> Result<(), Failure> {
    match step {
        Step::FetchImage { image, keep } => drivers.images().fetch(&image, &keep).await,
        Step::ImportImage(base) => drivers.volumes().import(&base).await,
        Step::CreateVolume { volume, image } => drivers.volumes().create(&volume, image.as_ref()).await,
        Step::GrowVolume(volume) => drivers.volumes().grow(&volume).await,
        Step::DeleteVolume(volume) => drivers.volumes().delete(&volume).await,
        Step::SetTap { tap, port, want } => drivers.network().set_tap(&tap, port, want).await,
        Step::PlugTap(plug) => drivers.network().plug(&plug).await,
        Step::UnplugTap(tap) => drivers.network().unplug(&tap).await,
        Step::DeleteTap(tap) => drivers.network().delete_tap(&tap).await,
        Step::NoteHolders { id, volumes } => note_holders(drivers, ledger, id, &volumes).await,
        Step::ReleaseHolders { id, holders } => {
            drivers.volumes().release(&holders).await?;
            remember_launch(ledger, id, |launch| launch.holders = None).await.map(drop)
        }
        Step::ProgramFlows(network) => drivers.network().program(&network).await,
        step => take_machine_step(drivers.machines(), ledger, step, now_ms).await,
    }
}

/// Records who has the locks of a running machine's volumes: its process, if that was there before and after the question, for a lock is not
/// shared and a living process does not lose it.
async fn note_holders<D: Drivers>(
    drivers: &D,
    ledger: &Ledger,
    id: MachineId,
    volumes: &[Volume],
) -> Result<(), Failure> {
    let record = ledger.record(id).map_err(ledger_failure)?;
    let before = process_of(drivers.machines(), &record).await;
    let holders = drivers.volumes().holders(volumes).await?;
    if before.is_none() || before != process_of(drivers.machines(), &record).await {
        return Err(Failure::new(format!("note the locks of vm {id}: its process ended meanwhile"), "nothing to do"));
    }
    remember_launch(ledger, id, |launch| launch.holders = Some(holders)).await.map(drop)
}

async fn process_of(machines: &impl Machines, record: &MachineRecord) -> Option<u32> {
    let seen = machines.look(vec![record.clone()]).await;
    match &seen.get(&record.id)?.known()?.process {
        Process::Alive { pid, .. } => Some(*pid),
        Process::Gone | Process::Silent { .. } => None,
    }
}

async fn take_machine_step(machines: &impl Machines, ledger: &Ledger, step: Step, now_ms: u64) -> Result<(), Failure> {
    match step {
        Step::RegisterMachine { id, uid } => keep(ledger, MachineRecord { id, uid, launch: None }).await,
        Step::LaunchMachine { id, launch } => {
            let record = remember(ledger, id, |record| record.launch = Some(*launch)).await?;
            machines.launch(&record).await
        }
        Step::ConfigureMachine(parts) => {
            let taps: Vec<String> = parts.nets.iter().map(|net| net.tap.clone()).collect();
            let machine = parts.machine.clone();
            remember_launch(ledger, machine.id, |launch| {
                launch.machine = machine;
                // Until it is configured the process may have those that it was launched with.
                let earlier = std::mem::replace(&mut launch.taps, taps);
                let left = earlier.into_iter().filter(|tap| !launch.taps.contains(tap)).collect::<Vec<_>>();
                launch.taps.extend(left);
            })
            .await?;
            machines.configure(&parts).await
        }
        Step::StartMachine(id) => {
            remember_launch(ledger, id, |launch| {
                launch.started = true;
                launch.taps.truncate(launch.machine.ports.len());
            })
            .await?;
            machines.start(id).await
        }
        Step::AskShutdown(id) => {
            remember_launch(ledger, id, |launch| launch.shutdown_asked_ms = Some(now_ms)).await?;
            machines.press_power_button(id).await
        }
        Step::ForceStop(id) => machines.force_stop(id).await,
        Step::ReapMachine { id, end } => {
            remember_launch(ledger, id, |launch| launch.end = Some(end)).await?;
            machines.reap(id).await
        }
        Step::RecordEnd { id, end } => remember_launch(ledger, id, |launch| launch.end = Some(end)).await.map(drop),
        Step::ForgetMachine(id) => {
            machines.forget(id).await?;
            let ledger = ledger.clone();
            blocking(move || ledger.forget(id).map_err(ledger_failure)).await
        }
        other => unreachable!("{} is no step of a machine", other.verb()),
    }
}

async fn remember_launch(
    ledger: &Ledger,
    id: MachineId,
    change: impl FnOnce(&mut Launch) + Send,
) -> Result<MachineRecord, Failure> {
    remember(ledger, id, |record| {
        if let Some(launch) = &mut record.launch {
            change(launch);
        }
    })
    .await
}

/// Changes a machine's record. One lane, one writer: nothing else writes this record meanwhile.
async fn remember(
    ledger: &Ledger,
    id: MachineId,
    change: impl FnOnce(&mut MachineRecord) + Send,
) -> Result<MachineRecord, Failure> {
    let mut record = ledger.record(id).map_err(ledger_failure)?;
    change(&mut record);
    keep(ledger, record.clone()).await?;
    Ok(record)
}

async fn keep(ledger: &Ledger, record: MachineRecord) -> Result<(), Failure> {
    let ledger = ledger.clone();
    blocking(move || ledger.keep_record(&record).map_err(ledger_failure)).await
}

fn ledger_failure(error: LedgerError) -> Failure {
    let remedy = error.remedy();
    Failure::caused("keep the record of a machine", remedy, error)
}
