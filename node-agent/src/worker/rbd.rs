//! What the worker does on a cluster, through [`storage::rbd`]. Blocking, in a process of its own.

use std::collections::BTreeMap;

use storage::format::Format;
use storage::image::{BASE_SNAPSHOT, Import};
use storage::rbd::{Pool, RbdError, Timeouts};

use super::{Answer, Task, Trouble, Work};
use crate::config::Ceph;
use crate::record::Holder;

/// The largest disk that an image may hold: what a volume can be at most is far beyond, this stops nonsense in a header.
pub(crate) const IMAGE_BYTES_MAX: u64 = 16 << 40;

/// Does a task.
pub(super) fn perform(task: &Task) -> Result<Answer, Trouble> {
    let mut pools = Pools { ceph: &task.ceph, open: BTreeMap::new() };
    let done = |result: Result<(), RbdError>| result.map(|()| Answer::default()).map_err(|error| trouble(&error));
    match &task.work {
        Work::Look { images, bases } => look(&mut pools, images, bases),
        Work::Create { pool, image, size_bytes } => done(pools.get(pool)?.create(image, *size_bytes)),
        Work::Clone { pool, base, image, size_bytes } => {
            done(pools.get(pool)?.clone_image(base, BASE_SNAPSHOT, image, *size_bytes))
        }
        Work::Grow { pool, image, size_bytes } => done(pools.get(pool)?.grow(image, *size_bytes)),
        Work::Delete { pool, image } => done(match pools.get(pool)?.remove(image) {
            Err(RbdError::NotFound { .. }) => Ok(()),
            other => other,
        }),
        Work::Holders { images } => holders(&mut pools, images),
        Work::Release { holders } => release(&mut pools, holders),
        Work::Import { path, qcow2, pool } => {
            let format = if *qcow2 { Format::Qcow2 } else { Format::Raw };
            let import = Import { path: path.clone(), format, sha256: None, size_bytes_max: IMAGE_BYTES_MAX };
            let imported = import.into_pool(&pools.get(pool)?, &mut |_| ());
            imported.map(|_| Answer::default()).map_err(|error| {
                Trouble::of(&error, "is the image what its kind says, and has the pool room? look at `ceph -s`")
            })
        }
    }
}

/// The pools of one task, each connected to once.
struct Pools<'a> {
    ceph: &'a Ceph,
    open: BTreeMap<String, Pool>,
}

impl Pools<'_> {
    fn get(&mut self, name: &str) -> Result<Pool, Trouble> {
        if let Some(pool) = self.open.get(name) {
            return Ok(pool.clone());
        }
        let pool = Pool::connect(&self.ceph.conf, &self.ceph.user, name, Timeouts::default());
        let pool = pool.map_err(|error| trouble(&error))?;
        self.open.insert(name.to_owned(), pool.clone());
        Ok(pool)
    }
}

fn look(pools: &mut Pools<'_>, images: &[(String, String)], bases: &[(String, String)]) -> Result<Answer, Trouble> {
    if images.is_empty() && bases.is_empty() {
        // Nothing but whether the cluster answers.
        let configured = pools.ceph.pool.clone();
        let pool = pools.get(&configured)?;
        return pool.fsid().map(|_| Answer::default()).map_err(|error| trouble(&error));
    }
    let mut answer = Answer::default();
    for (pool, image) in images {
        let size = pools.get(pool).and_then(|pool| match pool.stat(image) {
            Ok(stat) => Ok(Some(stat.size_bytes)),
            Err(RbdError::NotFound { .. }) => Ok(None),
            Err(error) => Err(trouble(&error)),
        });
        answer.sizes.insert(format!("{pool}/{image}"), size);
    }
    for (pool, base) in bases {
        let there = pools.get(pool).and_then(|pool| match pool.snapshot(base, BASE_SNAPSHOT) {
            Ok(snapshot) => Ok(snapshot.is_protected),
            Err(RbdError::NotFound { .. }) => Ok(false),
            Err(error) => Err(trouble(&error)),
        });
        answer.bases.insert(format!("{pool}/{base}"), there);
    }
    Ok(answer)
}

fn holders(pools: &mut Pools<'_>, images: &[(String, String)]) -> Result<Answer, Trouble> {
    let mut answer = Answer::default();
    for (pool, image) in images {
        let owner = pools.get(pool)?.lock_owner(image).map_err(|error| trouble(&error))?;
        let holder = owner.map(|owner| Holder { pool: pool.clone(), image: image.clone(), address: owner.address });
        answer.holders.extend(holder);
    }
    Ok(answer)
}

fn release(pools: &mut Pools<'_>, holders: &[Holder]) -> Result<Answer, Trouble> {
    for holder in holders {
        match pools.get(&holder.pool)?.fence_client(&holder.image, &holder.address) {
            // What is gone is locked by nobody.
            Ok(_) | Err(RbdError::NotFound { .. }) => {}
            Err(error) => return Err(trouble(&error)),
        }
    }
    Ok(Answer::default())
}

fn trouble(error: &RbdError) -> Trouble {
    let remedy = match error {
        RbdError::Library { package, .. } => format!("apt-get install {package}"),
        RbdError::Configuration { .. } => "check ceph.conf in the agent's configuration".to_owned(),
        RbdError::Refused { .. } => "check ceph.user, its keyring and `ceph auth get`".to_owned(),
        RbdError::NoPool { pool } => format!("`ceph osd pool create {pool}` and `rbd pool init {pool}`"),
        RbdError::Held { .. } | RbdError::InUse { .. } => {
            "end what has it open; it is left as it is until then".to_owned()
        }
        _ => "look at the cluster: `ceph -s`; are its monitors reachable from this host?".to_owned(),
    };
    Trouble::of(error, remedy)
}
