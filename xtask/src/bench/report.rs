//! What was measured, as a table and as docs/bench.md with its chart.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Run, Side};

/// A row of the table: what, its unit, and where it stands in a side.
type Row = (&'static str, fn(&Side) -> String);

const ROWS: &[Row] = &[
    ("flows", |side| side.flows.to_string()),
    ("all installed, s", |side| format!("{:.2}", side.install_s)),
    ("CPU of all daemons for that, s", |side| format!("{:.2}", side.cpu_s)),
    ("memory of the agent, MB", |side| format!("{:.0}", side.agent_rss_mb)),
    ("memory of the switch, MB", |side| format!("{:.0}", side.switch_rss_mb)),
    ("one port more, ms", |side| format!("{:.1}", side.add_port_ms)),
    ("one rule of all ports, ms", |side| format!("{:.1}", side.change_rule_ms)),
    ("one port less, ms", |side| format!("{:.1}", side.delete_port_ms)),
    ("cold restart, s", |side| format!("{:.2}", side.restart_s)),
    ("passes a packet, one network", |side| format!("{:.2}", side.passes_l2)),
    ("passes a packet, routed", |side| format!("{:.2}", side.passes_routed)),
    ("megaflows of a connection, one network", |side| side.megaflows_l2.to_string()),
    ("megaflows of a connection, routed", |side| side.megaflows_routed.to_string()),
    ("throughput, Gb/s", |side| format!("{:.2}", side.gbps)),
    ("ping, µs", |side| format!("{:.0}", side.latency_us)),
    ("compile one port, ms", |side| optional(side.compile_port_ms)),
    ("compile one rule, ms", |side| optional(side.compile_rule_ms)),
    ("compile all, ms", |side| optional(side.compile_all_ms)),
];

fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}

/// All runs as a table in Markdown: a column for each side of each run.
pub(super) fn table(runs: &[Run]) -> String {
    let mut columns: Vec<(String, &Side)> = Vec::new();
    for run in runs {
        columns.push((format!("ours, {}", run.ports), &run.ours));
        columns.extend(run.ovn.iter().map(|side| (format!("OVN, {}", run.ports), side)));
    }
    let cells = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = cells([vec![String::new()], columns.iter().map(|(name, _)| name.clone()).collect()].concat());
    text += &cells(vec!["---".to_owned(); columns.len() + 1]);
    for (what, value) in ROWS {
        text += &cells([vec![(*what).to_owned()], columns.iter().map(|(_, side)| value(side)).collect()].concat());
    }
    text
}

/// Writes docs/bench.md and docs/bench.svg.
pub(super) fn write(root: &Path, runs: &[Run]) -> Result<()> {
    let mut text = String::from(
        "# Measured: the network\n\nWritten by `cargo xtask bench net --write`; every number is from one run, OVN is Debian's. Both sides get the same \
         topology: ports on networks of 50, one router, one security group of ten rules, one of them for its own members, on every port; every \
         other port is on this host, the rest on another. Ports of the host exist in the switch, and the switch rests, before the clock starts.\n\n",
    );
    text += &table(runs);
    text += "\n![Time for one port more, by number of ports](bench.svg)\n\n## How it was measured\n\n";
    text += "- *all installed*: from the specification until the switch has confirmed every flow (ours: reading a file, checking it, compiling, \
             one atomic bundle; OVN: `ovn-nbctl` with its daemon until `ovn-installed` stands on every port and `--wait=hv` returns).\n\
             - *agent*: ours is the process that compiles and drives (`dataplane/examples/host_agent.rs`, release build); of OVN it is \
             ovn-controller alone, while *CPU of all daemons* counts northd and its databases as well.\n\
             - *one port*, *one rule*: from the change until the flows are confirmed; medians. Ours is told the object that changed, as OVN is.\n\
             - *cold restart*: the agent is killed and the flows are deleted; until a new one has all installed.\n\
             - *passes* and *megaflows*: from the datapath's counters over one TCP connection with a mebibyte each way and its ARP, between \
             network namespaces on the userspace datapath.\n\
             - *throughput* and *ping*: iperf3 over TCP without offloads, in turns with the other side and with the switch's built-in learning \
             (`NORMAL`); medians of three turns.\n\n";
    text += "## Conditions\n\nWhere the load is above the number of cores, other work shared the machine: seconds are then many times those of an \
             idle one, and only counts and the ratio within a row mean something.\n\n";
    for run in runs {
        let at = &run.conditions;
        let normal = &run.normal;
        writeln!(
            text,
            "- {} ports: {}, {} cores, kernel {}, load before the end {}; NORMAL: {:.2} Gb/s, ping {:.0} µs",
            run.ports, at.date, at.cores, at.kernel, at.load, normal.gbps, normal.latency_us
        )?;
        for (name, side) in [("ours", Some(&run.ours)), ("OVN", run.ovn.as_ref())] {
            let Some(side) = side else { continue };
            let daemons = side.daemons.iter();
            let daemons = daemons.map(|one| format!("{} {:.2} s, {:.0} MB", one.name, one.cpu_s, one.rss_mb));
            writeln!(text, "  - {name}: {}", daemons.collect::<Vec<_>>().join("; "))?;
        }
    }
    let path = root.join("docs/bench.md");
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    let path = root.join("docs/bench.svg");
    std::fs::write(&path, chart(runs)?).with_context(|| format!("write {}", path.display()))
}

/// Size of the chart, and of its margins.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 30.0;
/// The decades of milliseconds that the chart shows: 0.1 ms to 100 s.
const DECADES: std::ops::RangeInclusive<i32> = -1..=5;

/// Milliseconds for one port more, both axes by powers of ten.
fn chart(runs: &[Run]) -> Result<String> {
    let x = |ports: f64| LEFT + (ports.log10() - 2.0) / 2.4 * (WIDTH - LEFT - 90.0);
    let span = f64::from(DECADES.end() - DECADES.start());
    let y = |ms: f64| {
        let above = ms.max(0.1).log10() - f64::from(*DECADES.start());
        HEIGHT - BOTTOM - above / span * (HEIGHT - BOTTOM - TOP)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"18\">One port more: milliseconds until its flows are installed</text>\n"
    );
    for decade in DECADES {
        let (value, at) = (10_f64.powi(decade), y(10_f64.powi(decade)));
        let right = WIDTH - 20.0;
        writeln!(svg, "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>")?;
        writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>", LEFT - 8.0, at + 4.0)?;
    }
    for run in runs {
        let at = x(f64::from(run.ports));
        writeln!(svg, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{} ports</text>", HEIGHT - 14.0, run.ports)?;
    }
    let ours: Vec<(f64, f64)> = runs.iter().map(|run| (f64::from(run.ports), run.ours.add_port_ms)).collect();
    let ovn = runs.iter().filter_map(|run| Some((f64::from(run.ports), run.ovn.as_ref()?.add_port_ms)));
    for (name, colour, points) in [("ours", "#0a6", ours), ("OVN", "#c40", ovn.collect())] {
        let line: Vec<String> = points.iter().map(|(ports, ms)| format!("{:.1},{:.1}", x(*ports), y(*ms))).collect();
        writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        )?;
        for (ports, ms) in &points {
            writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/>", x(*ports), y(*ms))?;
        }
        if let Some((ports, ms)) = points.last() {
            let (at, up) = (x(*ports) + 8.0, y(*ms) - 6.0);
            writeln!(svg, "<text x=\"{at:.1}\" y=\"{up:.1}\" fill=\"{colour}\">{name}</text>")?;
        }
    }
    svg += "</svg>\n";
    Ok(svg)
}
