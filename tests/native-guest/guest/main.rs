//! The native guest: runs the words of its command line against the devices that it finds. See the crate's documentation.

#![no_std]
#![no_main]

mod acpi;
mod block;
mod console;
mod dhcp;
mod entropy;
mod hostile;
mod machine;
mod net;
mod pci;
mod serial;
mod start_info;
mod virtio;
mod virtqueue;

use core::panic::PanicInfo;

use pci::Kind;

/// What a word came to: the text after `ok` or `FAIL`.
type Outcome = Result<(), &'static str>;

#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) -> ! {
    let info = start_info::read(start_info);
    let bus = match info.and_then(|info| acpi::ecam(info.rsdp)).map(pci::Bus::new) {
        Ok(bus) => bus,
        Err(why) => {
            println!("FAIL boot {why}");
            finish()
        }
    };
    let words = info.map_or("", |info| info.command_line);
    for word in words.split_ascii_whitespace() {
        match run(word, &bus) {
            Some(Ok(())) => println!("ok {word}"),
            Some(Err(why)) => println!("FAIL {word} {why}"),
            None => {}
        }
    }
    finish()
}

/// Runs one word; none where the word is not ours (the VMM may add its own).
fn run(word: &str, bus: &pci::Bus) -> Option<Outcome> {
    let (name, value) = word.split_once('=').unwrap_or((word, ""));
    Some(match name {
        "pci" => list(bus),
        "blk" => bus.find(Kind::Block, 0).and_then(|device| block::run(device, value)),
        "net" => bus.find(Kind::Net, 0).and_then(|device| net::run(device, value)),
        "hvc" => bus.find(Kind::Console, 0).and_then(|device| console::run(device, value)),
        "hostile" => bus.find(Kind::Block, 0).and_then(hostile::run),
        "rng" => bus.find(Kind::Entropy, 0).and_then(entropy::run),
        _ => return None,
    })
}

fn list(bus: &pci::Bus) -> Outcome {
    for kind in [Kind::Net, Kind::Block, Kind::Console, Kind::Entropy] {
        let mut index = 0;
        while bus.find(kind, index).is_ok() {
            println!("virtio {kind:?} {index}");
            index += 1;
        }
    }
    Ok(())
}

fn finish() -> ! {
    println!("done");
    machine::reset()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("FAIL panic {info}");
    finish()
}
