//! Loading of small ELF files made here: what the first vCPU is given, and what is refused.

use super::*;
use crate::memory;
use std::io::Write;

/// An ELF file with one segment at 2 MiB, entered at its start, with a PVH note where `pvh`.
fn elf(pvh: bool, memory_bytes: u64) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2_u16.to_le_bytes());
    file.extend(62_u16.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend(0x20_0000_u64.to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 2, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut header = |kind: u32, offset: u64, bytes: u64, memory: u64| {
        file.extend(kind.to_le_bytes());
        file.extend(7_u32.to_le_bytes());
        for value in [offset, 0x20_0000, 0x20_0000, bytes, memory, 4] {
            file.extend(value.to_le_bytes());
        }
    };
    header(1, 0x200, 4, memory_bytes);
    header(if pvh { 4 } else { 0 }, 0x100, 20, 20);
    file.resize(0x100, 0);
    for word in [4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x20_0040] {
        file.extend(word.to_le_bytes());
    }
    file.resize(0x200, 0);
    file.extend(b"code");
    file
}

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new(kernel: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("kernel"), kernel).unwrap();
        Self { directory }
    }

    fn config(&self, protocol: BootProtocol) -> BootConfig {
        let kernel = self.directory.path().join("kernel");
        BootConfig { kernel, initrd: None, cmdline: "quiet".to_owned(), protocol, cache: None }
    }
}

/// A program that says of itself that it runs without a kernel needs no word about how to enter it, and no note counts against that.
#[test]
fn a_standalone_program_is_known_as_such() {
    let mut file = elf(true, 4096);
    file[7] = 255;
    let files = Files::new(&file);
    let ram = memory::map(16).unwrap();
    let entry = Image::open(&files.config(BootProtocol::Auto)).unwrap().load(&ram, 16, 0xe_0000).unwrap();
    assert_eq!((entry.regs.rip, entry.code.dpl), (0x20_0000, 3));
    let entry = Image::open(&files.config(BootProtocol::Pvh)).unwrap().load(&ram, 16, 0xe_0000).unwrap();
    assert_eq!((entry.regs.rip, entry.code.dpl), (0x20_0040, 0), "what is asked for goes first");
}

#[test]
fn each_protocol_enters_where_it_should() {
    let files = Files::new(&elf(true, 4096));
    let rows = [
        (BootProtocol::Auto, 0x20_0040, 0, layout::START_INFO),
        (BootProtocol::Pvh, 0x20_0040, 0, layout::START_INFO),
        (BootProtocol::Linux64, 0x20_0000, layout::ZERO_PAGE, 0),
        (BootProtocol::Native, 0x20_0000, 0, 0),
    ];
    for (protocol, rip, rsi, rbx) in rows {
        let ram = memory::map(16).unwrap();
        let entry = Image::open(&files.config(protocol)).unwrap().load(&ram, 16, 0xe_0000).unwrap();
        assert_eq!((entry.regs.rip, entry.regs.rsi, entry.regs.rbx), (rip, rsi, rbx), "{protocol:?}");
        let mut code = [0; 4];
        ram.read_slice(&mut code, GuestAddress(0x20_0000)).unwrap();
        let mut cmdline = [0; 6];
        ram.read_slice(&mut cmdline, GuestAddress(layout::CMDLINE)).unwrap();
        assert_eq!((&code, &cmdline), (b"code", b"quiet\0"));
        assert_eq!(entry.code.dpl, if protocol == BootProtocol::Native { 3 } else { 0 });
    }
}

#[test]
fn a_kernel_without_the_note_is_entered_in_long_mode_unless_pvh_was_asked_for() {
    let files = Files::new(&elf(false, 4096));
    let ram = memory::map(16).unwrap();
    let entry = Image::open(&files.config(BootProtocol::Auto)).unwrap().load(&ram, 16, 0).unwrap();
    assert_eq!(entry.regs.rsi, layout::ZERO_PAGE);
    let refused = Image::open(&files.config(BootProtocol::Pvh)).unwrap().load(&ram, 16, 0);
    assert!(matches!(refused, Err(BootError::NoPvh { .. })));
}

#[test]
fn the_initrd_goes_to_the_top_and_is_told() {
    let files = Files::new(&elf(true, 4096));
    let path = files.directory.path().join("initrd");
    std::fs::File::create(&path).unwrap().write_all(&[5; 5000]).unwrap();
    let config = BootConfig { initrd: Some(path), ..files.config(BootProtocol::Auto) };
    let ram = memory::map(16).unwrap();
    Image::open(&config).unwrap().load(&ram, 16, 0).unwrap();
    let start = (16_u64 << 20) - 8192;
    let module: u64 = ram.read_obj(GuestAddress(layout::START_INFO + 0x100)).unwrap();
    let byte: u8 = ram.read_obj(GuestAddress(start + 4999)).unwrap();
    assert_eq!((module, byte), (start, 5));
}

#[test]
fn what_does_not_fit_is_refused_with_its_path() {
    let files = Files::new(&elf(true, 64 << 20));
    let ram = memory::map(16).unwrap();
    let error = Image::open(&files.config(BootProtocol::Auto)).unwrap().load(&ram, 16, 0).unwrap_err();
    assert!(error.to_string().contains("into 16 MiB"), "{error}");
    let files = Files::new(&elf(true, 4096));
    let path = files.directory.path().join("initrd");
    std::fs::File::create(&path).unwrap().set_len(15 << 20).unwrap();
    let config = BootConfig { initrd: Some(path), ..files.config(BootProtocol::Auto) };
    let refused = Image::open(&config).unwrap().load(&ram, 16, 0);
    assert!(matches!(refused, Err(BootError::InitrdTooLarge { .. })));
    let missing = BootConfig { kernel: "/nonexistent".into(), ..files.config(BootProtocol::Auto) };
    assert!(Image::open(&missing).unwrap_err().to_string().contains("/nonexistent"));
}

/// Every truncation of an ELF file, and many single-byte changes, end in an entry or an error.
#[test]
fn damaged_files_never_panic() {
    let whole = elf(true, 4096);
    let ram = memory::map(16).unwrap();
    let try_one = |bytes: &[u8]| {
        let files = Files::new(bytes);
        if let Ok(image) = Image::open(&files.config(BootProtocol::Auto)) {
            image.load(&ram, 16, 0).map(drop).ok();
        }
    };
    (0..whole.len()).step_by(7).for_each(|end| try_one(&whole[..end]));
    for at in 4..0x120 {
        let mut changed = whole.clone();
        changed[at] ^= 0xff;
        try_one(&changed);
    }
}
