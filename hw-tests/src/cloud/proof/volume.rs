//! Proof that data is in the volume and not in the machine: written on one host, read on another after the writer is gone.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use basalt_tests::process;
use serde_json::json;

use super::{Occupied, provider};
use crate::cloud::Cloud;
use crate::cloud::evidence::Examiner;
use crate::cloud::tenant::{self, OUTSIDE, WEB};

const DELETE_LIMIT: Duration = Duration::from_secs(90);
const VOLUME: &str = "data";
const MIB: u32 = 16;

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, examiner: &mut Examiner<'_>) {
    let mut writer = None;
    let name = "a machine on a VLAN of a physical network and one outside reach each other, marked as the port says";
    examiner.check(name, || {
        let [first, ..] = cloud.nodes() else { bail!("this needs a host") };
        cloud.centre().post("/v1/volumes", &json!({"name": VOLUME, "size_mib": 64, "backend": "rbd"}))?;
        let machine = writer.insert(with_volume(cloud, "writer", first.host().name())?);
        provider::reached(cloud, machine)
    });
    let name = "data on an RBD volume is read back on the other host after its writer is deleted";
    examiner.check(name, || written_here_read_there(cloud, writer.context("there is no writer")?));
}

fn written_here_read_there(cloud: &Cloud, writer: Occupied) -> Result<String> {
    let [first, second, ..] = cloud.nodes() else { bail!("this needs two hosts") };
    let centre = cloud.centre();
    let write = format!("dd if=/dev/urandom of=/dev/vdb bs=1M count={MIB} conv=fsync 2>&1 && sync");
    writer.ok(&write)?;
    let written = digest(&writer)?;
    drop(writer);
    delete(cloud, "writer")?;

    let reader = with_volume(cloud, "reader", second.host().name())?;
    let read = digest(&reader)?;
    drop(reader);
    delete(cloud, "reader")?;
    centre.delete(&format!("/v1/volumes/{VOLUME}"))?;
    if written != read {
        bail!("written {written}, read {read}");
    }
    Ok(format!("{MIB} MiB with MD5 {read} written on {}, read on {}", first.host().name(), second.host().name()))
}

/// Launches a machine on `host` that has the volume as its second disk.
fn with_volume(cloud: &Cloud, name: &str, host: &str) -> Result<Occupied> {
    let more = json!({"networks": [OUTSIDE], "groups": [WEB], "disks": [VOLUME], "host": host});
    tenant::launch(cloud.centre(), name, &more)?;
    let vm = tenant::wait_running(cloud.centre(), name)?;
    if vm.host != host {
        bail!("{name} was asked for on {host} and runs on {}", vm.host);
    }
    Occupied::enter(cloud, &vm)
}

fn digest(machine: &Occupied) -> Result<String> {
    let text = machine.ok(&format!("dd if=/dev/vdb bs=1M count={MIB} 2>/dev/null | md5sum"))?;
    text.split_whitespace().next().map(str::to_owned).context("md5sum printed nothing")
}

fn delete(cloud: &Cloud, name: &str) -> Result<()> {
    let path = format!("/v1/vms/{name}");
    cloud.centre().delete(&path)?;
    tenant::wait_gone(cloud.centre(), &path, DELETE_LIMIT)?;
    let free = || Ok(cloud.centre().get(&format!("/v1/volumes/{VOLUME}")).is_ok().then_some(()));
    process::wait_for("the volume to be there still", DELETE_LIMIT, free)
}
