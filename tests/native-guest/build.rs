//! Builds the guest: a freestanding program of its own, without the standard library, a start file or a dynamic linker.
//!
//! It is no ordinary binary of the workspace because it must not unwind (`-C panic=abort` holds for a whole profile) and must be linked
//! to the address where the VMM puts it. The compiler is the one that builds everything else.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Where the guest is loaded: above the first MiB, below everything else it uses.
const LOAD_ADDRESS: &str = "0x200000";
/// Where an ELF file names its ABI, and the value for an application that runs without a kernel (System V gABI, `e_ident`): a VMM told nothing
/// else knows by it how to enter.
const ELF_ABI: usize = 7;
const ELF_ABI_STANDALONE: u8 = 255;

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo names the crate's directory"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names the output directory")).join("native-guest.elf");
    let rustc = env::var_os("RUSTC").expect("cargo names the compiler");
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=NATIVE_GUEST_ELF={}", out.display());

    let status = Command::new(rustc)
        .args(["--edition", "2024", "--crate-name", "native_guest", "--crate-type", "bin", "-D", "warnings"])
        .args(["-C", "panic=abort", "-C", "opt-level=2", "-C", "relocation-model=static", "-C", "strip=symbols"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib", "-C", "link-arg=-static"])
        .args(["-C", &format!("link-arg=-Wl,--image-base={LOAD_ADDRESS},--build-id=none,-z,norelro")])
        .arg("-o")
        .arg(&out)
        .arg(manifest.join("guest/main.rs"))
        .status()
        .expect("run the compiler for the guest");
    assert!(status.success(), "the native guest does not compile: {status}");
    let mut program = fs::read(&out).expect("read the guest");
    program[ELF_ABI] = ELF_ABI_STANDALONE;
    fs::write(&out, program).expect("mark the guest");
}
