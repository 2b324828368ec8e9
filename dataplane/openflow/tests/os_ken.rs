//! Shows that the OpenFlow 1.5 messages that os-ken tests itself with are read, as what their names say, and mean the same to
//! `ovs-ofctl` once we have written them again.
//!
//! How: os-ken comes from PyPI into a directory of its own under `target/`; each of its binary messages is decoded, encoded and
//! decoded again. Tables name the messages that os-ken itself got wrong, with what is wrong with them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use basalt_tests::{process, require, skip::Need};
use openflow::wire::{self, Message, MultipartReply, MultipartRequest};

const RELEASE: &str = "os-ken==4.2.2";
const MESSAGES: &str = "os_ken/tests/packet_data/of15";
/// As many as the release holds.
const COUNT: usize = 77;
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Messages that cannot be read, with the reason that the error must give.
const WRONG: &[(&str, &str)] = &[
    // The length of its only instruction is 0x0808 where 8 was meant.
    ("flow_desc_reply", "flow description is cut short: 2052 octets needed"),
    // The header says 32 octets, and the specification's 40 follow.
    ("meter_features_reply", "message cannot have length 32"),
];

/// Messages of kinds that this crate keeps as octets: Open vSwitch has none of them.
const KEPT: &[&str] = &[
    "bundle_features_reply",
    "bundle_features_request",
    "controller_status",
    "controller_status_reply",
    "controller_status_request",
    "experimenter",
    "experimenter_reply",
    "experimenter_request",
    "flow_stats_reply",
    "flow_stats_request",
];

/// Messages that are read, and that we would not send: with the reason.
const UNSENT: &[(&str, &str)] = &[("flow_mod_match_conj", "set_field:192.168.2.9->ip_dst")];

/// Messages of which a part is read over, and lacks when we write them: with that part.
const SHORTER: &[(&str, &str)] = &[
    ("bundle_add", "the number of a buffered packet: Open vSwitch buffers none"),
    ("flow_mod", "the number of a buffered packet"),
    ("flow_mod_conjunction", "the number of a buffered packet"),
    ("packet_in", "the number of a buffered packet"),
    ("port_desc_reply", "link modes and the highest speed"),
    ("port_stats_reply", "receive errors by kind"),
    ("port_status", "link modes and the highest speed"),
];

/// The directory of messages; fetched once, and `None` with the reason when it cannot be had.
fn fetch() -> Result<PathBuf, String> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("os-ken-4.2.2");
    let messages = target.join(MESSAGES);
    if !messages.exists() {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(&target).arg(RELEASE);
        process::run(&mut pip, DOWNLOAD_TIMEOUT).map_err(|error| format!("{RELEASE} from PyPI: {error:#}"))?;
    }
    if messages.exists() { Ok(messages) } else { Err(format!("{} in {RELEASE}", messages.display())) }
}

/// Messages by name, sorted.
fn messages(directory: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "packet") {
            let name = path.file_stem().and_then(|name| name.to_str()).context("a name")?;
            found.push((name.trim_start_matches("libofproto-OFP15-").to_owned(), fs::read(&path)?));
        }
    }
    found.sort();
    Ok(found)
}

/// What `ovs-ofctl` prints for a message; `None` when it cannot read it itself.
fn printed(octets: &[u8]) -> Result<Option<String>> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), octets)?;
    let mut ofctl = Command::new("ovs-ofctl");
    let text = process::run(ofctl.arg("--no-names").arg("ofp-parse").arg(file.path()), DOWNLOAD_TIMEOUT)?;
    Ok(Some(text).filter(|text| !text.contains("***decode error")))
}

fn is_kept(message: &Message) -> bool {
    matches!(
        message,
        Message::Unknown { .. }
            | Message::MultipartRequest(MultipartRequest::Unknown { .. })
            | Message::MultipartReply { reply: MultipartReply::Unknown { .. }, .. }
    )
}

#[test]
fn os_kens_messages_are_read() -> Result<()> {
    require!(Need::Program("python3"), Need::OpenVswitch);
    let directory = match fetch() {
        Ok(directory) => directory,
        Err(missing) => {
            basalt_tests::skip::announce("os_kens_messages_are_read", &missing);
            return Ok(());
        }
    };
    let messages = messages(&directory)?;
    ensure!(messages.len() == COUNT, "{} messages", messages.len());
    let mut texts = 0;
    for (name, octets) in messages {
        let read = wire::decode(&octets);
        if let Some((_, why)) = WRONG.iter().find(|(wrong, _)| *wrong == name) {
            let error = read.err().with_context(|| format!("{name} was read"))?;
            ensure!(error.to_string().contains(why), "{name}: {error}, not {why}");
            continue;
        }
        let (xid, message) = read.with_context(|| format!("cannot read {name}"))?;
        ensure!(is_kept(&message) == KEPT.contains(&name.as_str()), "{name}: {message:?}");
        let again = match (wire::encode(&message, xid), UNSENT.iter().find(|(unsent, _)| *unsent == name)) {
            (Ok(again), None) => again,
            (Err(error), Some((_, why))) if error.to_string().contains(why) => continue,
            (outcome, _) => anyhow::bail!("{name}: {outcome:?}"),
        };
        assert_eq!(wire::decode(&again)?, (xid, message), "{name}");
        // Where ovs-ofctl cannot read theirs there is nothing to compare: it knows no experimenter but its own.
        let Some(theirs) = printed(&octets)? else { continue };
        let ours = printed(&again)?.with_context(|| format!("ovs-ofctl cannot read our {name}"))?;
        let is_shorter = SHORTER.iter().any(|(shorter, _)| *shorter == name);
        ensure!((theirs == ours) != is_shorter, "{name}: theirs is\n{theirs}\nours is\n{ours}");
        texts += 1;
    }
    ensure!(texts > 50, "ovs-ofctl read only {texts}");
    Ok(())
}
