//! The QEMU machine that is a lab host: its command line as data, and its process.
//!
//! A host is stateless: kernel, initrd and this machine's root come from outside, its one disk is made new for each run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use basalt_tests::process;

use super::acceleration::Acceleration;
use super::network::{Network, UNDERLAY_MTU, management_tap, physical_tap, underlay_tap};

/// Size of a host's data disk (sparse), mounted at /var/lib/basalt.
const DATA_DISK_GIB: u32 = 16;
const MAKE_LIMIT: Duration = Duration::from_secs(60);
/// Translated code that QEMU keeps: enough for the host kernel, our programs and their guests.
const TRANSLATION_CACHE_MIB: u32 = 512;

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Host number, 1 to 3.
    pub index: u8,
    /// Name shown by ps(1).
    pub name: String,
    /// How instructions run.
    pub acceleration: Acceleration,
    /// Virtual processors.
    pub cpus: u8,
    /// Memory.
    pub memory_mib: u32,
    /// The kernel image.
    pub kernel: PathBuf,
    /// The first root.
    pub initrd: PathBuf,
    /// The kernel command line.
    pub command_line: String,
    /// The directory that is shown uncached as well.
    pub target: PathBuf,
    /// Where console socket, console log, data disk and QEMU's own messages are.
    pub directory: PathBuf,
}

/// The console socket's name in a host's directory.
pub const CONSOLE_SOCKET: &str = "console.sock";
/// The console log's name in a host's directory.
pub const CONSOLE_LOG: &str = "console.log";
/// QEMU's own messages.
pub const EMULATOR_LOG: &str = "qemu.log";

impl Machine {
    /// QEMU's arguments.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let index = self.index;
        let mut words = self.acceleration.arguments(TRANSLATION_CACHE_MIB);
        let mut add = |text: &str| words.extend(text.split(' ').map(str::to_owned));
        add("-M q35 -nodefaults -display none -no-reboot -rtc base=utc");
        add(&format!("-name {} -smp {} -m {}", self.name, self.cpus, self.memory_mib));
        add(&format!("-chardev socket,id=console,path={CONSOLE_SOCKET},server=on,wait=off,logfile={CONSOLE_LOG}"));
        add("-serial chardev:console -device virtio-rng-pci");
        let networks = [
            ("management", management_tap(index), 1500),
            ("underlay", underlay_tap(index), UNDERLAY_MTU),
            ("physical", physical_tap(index), 1500),
        ];
        for (place, (id, tap, mtu)) in networks.into_iter().enumerate() {
            add(&format!("-netdev tap,id={id},ifname={tap},script=no,downscript=no"));
            let mac = format!("52:54:00:77:{place:02x}:{index:02x}");
            // The bus address fixes the order: eth0 is the management network, eth1 the underlay, eth2 the physical network. Without csum=off frames
            // leave with checksums that hardware should complete, and the user-space switch of a machine outside takes them off the wire as they are.
            add(&format!(
                "-device virtio-net-pci,netdev={id},mac={mac},host_mtu={mtu},csum=off,romfile=,addr={:#x}",
                4 + place
            ));
        }
        add("-drive file=data.img,format=raw,if=none,id=data,cache=unsafe,discard=unmap,aio=threads");
        add("-device virtio-blk-pci,drive=data");
        for (tag, path) in [("root", Path::new("/")), ("target", &self.target)] {
            words.push("-fsdev".to_owned());
            let path = path.display().to_string().replace(',', ",,");
            words.push(format!("local,id={tag},path={path},security_model=none,readonly=on,multidevs=remap"));
            words.push("-device".to_owned());
            words.push(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
        }
        for (option, value) in [("-kernel", &self.kernel), ("-initrd", &self.initrd)] {
            words.push(option.to_owned());
            words.push(value.display().to_string());
        }
        words.push("-append".to_owned());
        words.push(self.command_line.clone());
        words
    }

    /// Puts the console's log so far aside, for the next start writes it anew.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn keep_console(&self) -> Result<()> {
        let log = self.directory.join(CONSOLE_LOG);
        // A machine that ended at once has said nothing.
        File::options().create(true).append(true).open(&log).with_context(|| format!("opening {}", log.display()))?;
        std::fs::rename(&log, log.with_extension("first.log")).with_context(|| format!("renaming {}", log.display()))
    }

    /// Makes the data disk and starts the machine inside `network`, in a session of its own.
    ///
    /// # Errors
    /// The disk cannot be made or QEMU cannot be started.
    pub fn start(&self, network: &Network) -> Result<Child> {
        std::fs::create_dir_all(&self.directory).with_context(|| format!("making {}", self.directory.display()))?;
        let mut make = Command::new("mke2fs");
        make.args(["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1,discard", "-m", "0"]);
        make.arg(self.directory.join("data.img")).arg(format!("{DATA_DISK_GIB}G"));
        process::run(&mut make, MAKE_LIMIT)?;
        let log = File::create(self.directory.join(EMULATOR_LOG))?;
        // A session of its own: Ctrl-C at the terminal reaches the lab's owner, who decides what ends.
        let mut command = network.command("setsid");
        command.arg("qemu-system-x86_64").args(self.arguments()).current_dir(&self.directory);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("starting QEMU for {}", self.name))
    }
}
