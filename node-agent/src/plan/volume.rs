//! Images, bases and volumes: what to fetch, import, make, grow and delete.

use std::collections::BTreeSet;

use model::ImageId;
use model::machine::Power;
use model::observed::Problem;
use model::spec::NodeSpec;
use model::volume::{Volume, VolumeSource};

use super::{Lane, Plan, Step};
use crate::driver::BaseImage;
use crate::seen::{Base, Look, Seen};

/// Plans volumes first, then the bases that new ones need, then the images that those and the machines need.
pub(super) fn plan(plan: &mut Plan, spec: &NodeSpec, seen: &Seen) {
    let mut images: BTreeSet<ImageId> = BTreeSet::new();
    // A machine that is to stay down needs no kernel here.
    for machine in spec.machines().values().filter(|machine| machine.power == Power::Running) {
        images.insert(machine.boot.kernel);
        images.extend(machine.boot.initrd);
    }
    for volume in spec.volumes().values() {
        wanted(plan, spec, seen, volume, &mut images);
    }
    for volume in spec.retired_volumes().values() {
        retired(plan, seen, volume);
    }
    for id in images {
        image(plan, spec, seen, id);
    }
}

fn wanted(plan: &mut Plan, spec: &NodeSpec, seen: &Seen, volume: &Volume, images: &mut BTreeSet<ImageId>) {
    let lane = Lane::Volume(volume.id);
    match seen.volumes.get(&volume.id) {
        None => plan.wait(lane, "it has not been looked at yet"),
        Some(Look::Unknown(problem)) => plan.block(lane, problem.clone()),
        Some(Look::Known(Some(size))) if *size >= volume.size.bytes() => plan.right(lane),
        Some(Look::Known(Some(_))) if seen.may_use_volume(volume.id) => {
            plan.wait(lane, "it grows once no machine has it open");
        }
        Some(Look::Known(Some(_))) => plan.step(Step::GrowVolume(volume.clone())),
        Some(Look::Known(None)) => match volume.source {
            VolumeSource::Empty => plan.step(Step::CreateVolume { volume: volume.clone(), image: None }),
            VolumeSource::Image(image) => clone_of(plan, spec, seen, volume, image, images),
        },
    }
}

fn clone_of(
    plan: &mut Plan,
    spec: &NodeSpec,
    seen: &Seen,
    volume: &Volume,
    id: ImageId,
    images: &mut BTreeSet<ImageId>,
) {
    let lane = Lane::Volume(volume.id);
    let base = Base { image: id, backend: volume.backend.clone() };
    let base_lane = Lane::Base(base.clone());
    match seen.bases.get(&base) {
        Some(Look::Known(true)) => {
            plan.right(base_lane);
            let image = spec.images().get(&id).cloned();
            plan.step(Step::CreateVolume { volume: volume.clone(), image });
            return;
        }
        None => plan.wait(base_lane.clone(), "it has not been looked at yet"),
        Some(Look::Unknown(problem)) => plan.block(base_lane.clone(), problem.clone()),
        Some(Look::Known(false)) => {
            images.insert(id);
            let here = seen.images.known().is_some_and(|images| images.contains(&id));
            match spec.images().get(&id) {
                Some(image) if here => {
                    let base = BaseImage { image: image.clone(), backend: volume.backend.clone() };
                    plan.steps.insert(base_lane.clone(), Step::ImportImage(base));
                }
                _ => plan.wait(base_lane.clone(), "the image is not here yet"),
            }
        }
    }
    let reason = plan.unready(&base_lane).unwrap_or_default();
    plan.wait(lane, reason);
}

fn retired(plan: &mut Plan, seen: &Seen, volume: &Volume) {
    let lane = Lane::Volume(volume.id);
    match seen.volumes.get(&volume.id) {
        None => plan.wait(lane, "it has not been looked at yet"),
        Some(Look::Unknown(problem)) => plan.block(lane, problem.clone()),
        Some(Look::Known(None)) => plan.right(lane),
        Some(Look::Known(Some(_))) if seen.may_use_volume(volume.id) => {
            plan.wait(lane, "it is deleted once no machine has it open");
        }
        Some(Look::Known(Some(_))) => plan.step(Step::DeleteVolume(volume.clone())),
    }
}

fn image(plan: &mut Plan, spec: &NodeSpec, seen: &Seen, id: ImageId) {
    let lane = Lane::Image(id);
    match (&seen.images, spec.images().get(&id)) {
        (Look::Known(here), _) if here.contains(&id) => plan.right(lane),
        (Look::Known(_), Some(image)) => {
            let keep = spec.images().values().cloned().collect();
            plan.step(Step::FetchImage { image: image.clone(), keep });
        }
        (Look::Unknown(problem), _) => plan.block(lane, problem.clone()),
        (Look::Known(_), None) => {
            let message = format!("image {id} is not in the spec");
            plan.block(lane, Problem { message, remedy: "report this: a checked spec names every image".to_owned() });
        }
    }
}
