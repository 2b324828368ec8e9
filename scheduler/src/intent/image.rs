//! Images: named bytes that volumes are made from and machines boot, and what a disk image wants to be booted with.

use std::sync::Arc;

use model::ImageId;
use model::image::{Image, ImageKind, Sha256};
use model::volume::VolumeSource;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Context, Intent, check_name, find, refuse_users};
use crate::refusal::Refusal;

/// The longest kernel command line (see `model::machine::Boot`).
pub(super) const CMDLINE_MAX: usize = 2047;

/// An image: known by name from the start, by content once its bytes are here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageIntent {
    pub(crate) id: ImageId,
    pub(crate) name: String,
    pub(crate) kind: ImageKind,
    /// What machines on this disk boot unless they are told otherwise.
    pub(crate) boot: BootWith,
    /// What was uploaded; none before.
    pub(crate) content: Option<Content>,
}

/// What a disk image wants to be booted with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootWith {
    pub(crate) kernel: Option<ImageId>,
    pub(crate) initrd: Option<ImageId>,
    pub(crate) cmdline: Option<String>,
}

/// The bytes of an image, by what is in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Content {
    pub(crate) sha256: Sha256,
    pub(crate) size_bytes: u64,
    /// The size of the disk inside, which for qcow2 is not the size of the file.
    pub(crate) virtual_size_bytes: u64,
}

/// An image to make; its bytes follow by PUT.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewImage {
    /// Its name.
    name: String,
    /// `raw`, `qcow2`, `kernel` or `initrd`.
    #[schema(value_type = String, example = "qcow2")]
    kind: ImageKind,
    /// For a disk: the kernel image that machines on it boot, by name or id.
    kernel: Option<String>,
    /// For a disk: the initrd image, by name or id.
    initrd: Option<String>,
    /// For a disk: the kernel command line.
    cmdline: Option<String>,
}

impl ImageIntent {
    /// The image as hosts know it; none before its bytes are here.
    pub(crate) fn image(&self) -> Option<Image> {
        self.content.as_ref().map(|content| Image {
            id: self.id,
            name: self.name.clone(),
            kind: self.kind,
            sha256: content.sha256,
            size_bytes: content.size_bytes,
        })
    }
}

impl Intent {
    /// Makes an image without bytes.
    pub(crate) fn create_image(&mut self, context: &mut Context<'_>, new: NewImage) -> Result<ImageId, Refusal> {
        check_name(&self.images, &new.name)?;
        let fields =
            [("kernel", new.kernel.is_some()), ("initrd", new.initrd.is_some()), ("cmdline", new.cmdline.is_some())];
        if let Some((field, _)) = fields.into_iter().find(|(_, given)| *given && !new.kind.is_disk()) {
            return Err(Refusal::invalid(field, "only a disk image says what it is booted with"));
        }
        let boot = BootWith {
            kernel: new.kernel.as_deref().map(|name| self.find_kind(name, ImageKind::Kernel, "kernel")).transpose()?,
            initrd: new.initrd.as_deref().map(|name| self.find_kind(name, ImageKind::Initrd, "initrd")).transpose()?,
            cmdline: new.cmdline.map(|text| check_cmdline(text, "cmdline")).transpose()?,
        };
        let id = ImageId::from_uuid((context.draw)());
        self.images.insert(id, Arc::new(ImageIntent { id, name: new.name, kind: new.kind, boot, content: None }));
        Ok(id)
    }

    /// Checks that an image still waits for its bytes.
    pub(crate) fn awaits_content(&self, name: &str) -> Result<Arc<ImageIntent>, Refusal> {
        let (_, image) = find(&self.images, name, None)?;
        if image.content.is_some() {
            let problem = "it has its bytes already: make another image for other bytes".to_owned();
            return Err(Refusal::State { object: format!("image {}", image.name), problem, field: None });
        }
        Ok(image)
    }

    /// Gives an image its bytes.
    pub(crate) fn set_content(&mut self, name: &str, content: Content) -> Result<ImageId, Refusal> {
        let image = self.awaits_content(name)?;
        let id = image.id;
        self.images.insert(id, Arc::new(ImageIntent { content: Some(content), ..(*image).clone() }));
        Ok(id)
    }

    /// Forgets an image that nothing is made from.
    pub(crate) fn delete_image(&mut self, name: &str) -> Result<(), Refusal> {
        let (id, image) = find(&self.images, name, None)?;
        let volumes = self.volumes.values().filter(|volume| volume.volume.source == VolumeSource::Image(id));
        let volumes = volumes.map(|volume| format!("volume {}", volume.volume.name));
        let boots =
            |vm: &super::machine::MachineIntent| vm.machine.boot.kernel == id || vm.machine.boot.initrd == Some(id);
        let vms = self.machines.values().filter(|vm| boots(vm)).map(|vm| format!("vm {}", vm.machine.name));
        let names = |other: &ImageIntent| other.boot.kernel == Some(id) || other.boot.initrd == Some(id);
        let images = self.images.values().filter(|other| names(other)).map(|other| format!("image {}", other.name));
        refuse_users(format!("image {}", image.name), volumes.chain(vms).chain(images))?;
        self.images.remove(&id);
        Ok(())
    }

    /// Finds an image of one kind.
    pub(super) fn find_kind(&self, name: &str, kind: ImageKind, field: &str) -> Result<ImageId, Refusal> {
        let (id, image) = find(&self.images, name, Some(field))?;
        if image.kind == kind {
            return Ok(id);
        }
        Err(Refusal::invalid(field, format!("image {} is of kind {:?}, want {kind:?}", image.name, image.kind)))
    }

    /// Finds an image whose bytes are here.
    pub(super) fn ready_image(&self, id: ImageId, field: &str) -> Result<(&ImageIntent, &Content), Refusal> {
        let missing = || Refusal::Missing { kind: ImageId::KIND, name: id.to_string(), field: Some(field.to_owned()) };
        let image = self.images.get(&id).ok_or_else(missing)?;
        let content = image.content.as_ref().ok_or_else(|| Refusal::State {
            object: format!("image {}", image.name),
            problem: "its bytes are not uploaded yet".to_owned(),
            field: Some(field.to_owned()),
        })?;
        Ok((image, content))
    }
}

/// Checks a kernel command line: printable ASCII of bounded length.
pub(super) fn check_cmdline(text: String, field: &str) -> Result<String, Refusal> {
    if text.len() > CMDLINE_MAX || !text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Err(Refusal::invalid(field, format!("want at most {CMDLINE_MAX} bytes of printable ASCII")));
    }
    Ok(text)
}
