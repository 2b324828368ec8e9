//! The graph as a picture: tables from top to bottom with what they count, ways between them as curves on the right, the busier the thicker.
//!
//! Owns the layout and the SVG text. Source: SVG 1.1. Invariant: the text is well-formed for any name, and the same for the same graph.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::{Exit, Graph, Node, Weight};
use crate::table::Table;

const WIDTH: usize = 960;
const BOX_WIDTH: usize = 700;
const BOX_HEIGHT: usize = 70;
const ROW_HEIGHT: usize = 90;
const MARGIN: usize = 20;
/// How far a curve bends to the right for each row that it passes.
const BEND: usize = 26;
const BEND_MAX: usize = 220;

const STYLE: &str = "text{font:13px sans-serif;fill:#222}.small{font-size:11px;fill:#555}\
    .table{fill:#f4f6fa;stroke:#5b6b8c}.way{fill:none;stroke:#5b6b8c;opacity:.75}.idle{stroke-dasharray:4 4;opacity:.45}";

/// Draws the graph; `title` stands above it.
#[must_use]
pub fn draw(graph: &Graph, title: &str) -> String {
    let mut text = String::new();
    write(&mut text, graph, title).unwrap_or_else(|_| unreachable!("writing to a string does not fail"));
    text
}

fn write(text: &mut String, graph: &Graph, title: &str) -> fmt::Result {
    let rows: BTreeMap<u8, usize> = graph.nodes().enumerate().map(|(row, (number, _))| (number, row)).collect();
    let height = MARGIN * 2 + 30 + rows.len() * ROW_HEIGHT;
    writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\">"
    )?;
    writeln!(text, "<style>{STYLE}</style>")?;
    writeln!(text, "<text x=\"{MARGIN}\" y=\"{}\">{}</text>", MARGIN + 8, Escaped(title))?;
    for (number, node) in graph.nodes() {
        for (next, weight) in &node.next {
            if let (Some(from), Some(to)) = (rows.get(&number), rows.get(next)) {
                way(text, *from, *to, *weight)?;
            }
        }
    }
    for (number, node) in graph.nodes() {
        table(text, rows.get(&number).copied().unwrap_or_default(), number, node)?;
    }
    writeln!(text, "</svg>")
}

const fn top_of(row: usize) -> usize {
    MARGIN + 30 + row * ROW_HEIGHT
}

fn table(text: &mut String, row: usize, number: u8, node: &Node) -> fmt::Result {
    let (top, left) = (top_of(row), MARGIN + 12);
    let info = Table::by_number(number).map(Table::info);
    let (name, doc) = info.map_or(("", "not a table of ours"), |info| (info.name, info.doc));
    writeln!(
        text,
        "<rect class=\"table\" x=\"{MARGIN}\" y=\"{top}\" width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\" rx=\"6\"/>"
    )?;
    writeln!(
        text,
        "<text x=\"{left}\" y=\"{}\"><tspan font-weight=\"bold\">{number} {}</tspan>  {}</text>",
        top + 17,
        Escaped(name),
        Counts(node.flows)
    )?;
    writeln!(text, "<text class=\"small\" x=\"{left}\" y=\"{}\">{}</text>", top + 32, Escaped(doc))?;
    let next = node.next.iter().map(|(next, weight)| format!("{} {}", Name(*next), Counts(*weight)));
    let next = next.collect::<Vec<_>>().join("; ");
    let exits = node.exits.iter().map(|(exit, weight)| format!("{} {}", exit.word(), Counts(*weight)));
    let exits = exits.collect::<Vec<_>>().join("; ");
    let next = if next.is_empty() { next } else { format!("to {next}") };
    for (line, words) in [next, exits].into_iter().filter(|words| !words.is_empty()).enumerate() {
        let y = top + 47 + line * 15;
        writeln!(text, "<text class=\"small\" x=\"{left}\" y=\"{y}\">{}</text>", Escaped(&words))?;
    }
    Ok(())
}

/// A way from row to row: out of the right edge, round what is between, into the right edge.
fn way(text: &mut String, from: usize, to: usize, weight: Weight) -> fmt::Result {
    let edge = MARGIN + BOX_WIDTH;
    let bend = edge + (from.abs_diff(to) * BEND + 20).min(BEND_MAX);
    let (start, end) = (top_of(from) + BOX_HEIGHT * 2 / 3, top_of(to) + BOX_HEIGHT / 3);
    let idle = if weight.packets == 0 { " idle" } else { "" };
    // One more unit of thickness for each factor of ten.
    let thickness = 1 + weight.packets.checked_ilog10().map_or(0, |power| power + 1);
    writeln!(
        text,
        "<path class=\"way{idle}\" stroke-width=\"{thickness}\" d=\"M{edge} {start} C{bend} {start} {bend} {end} {edge} {end}\"/>"
    )
}

/// A table's name, or its number where it is none of ours.
struct Name(u8);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Table::by_number(self.0) {
            Some(table) => f.write_str(table.info().name),
            None => write!(f, "table {}", self.0),
        }
    }
}

impl Exit {
    /// The word in the picture.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Agent => "handed to the agent",
            Self::Dropped => "dropped",
        }
    }
}

/// `3 flows, 12 packets`.
struct Counts(Weight);

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Weight { flows, packets } = self.0;
        let plural = |count: u64| if count == 1 { "" } else { "s" };
        write!(f, "{flows} flow{}, {packets} packet{}", plural(flows), plural(packets))
    }
}

/// Text in which nothing is markup.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                // XML 1.0 §2.2: other control characters may not stand in a document at all.
                letter if letter.is_control() => f.write_char(' ')?,
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use openflow::flow::Flow;

    use super::*;

    fn flows() -> Vec<Flow> {
        ["table=0, priority=1, in_port=1, actions=goto_table:10", "table=10, priority=0, actions=drop"]
            .map(|line| line.parse().unwrap())
            .to_vec()
    }

    /// Tables have their names, ways their counts, idle ways their own look.
    #[test]
    fn tables_and_ways_are_drawn() {
        let flows = flows();
        let picture = draw(&Graph::new(flows.iter().zip([120, 0])), "br-int");
        for part in [
            "0 classify",
            "10 forward",
            "1 flow, 120 packets",
            "stroke-width=\"4\"",
            "to forward 1 flow, 120 packets",
            "dropped 1 flow, 0 packets",
        ] {
            assert!(picture.contains(part), "{part} in {picture}");
        }
        let idle = draw(&Graph::new(flows.iter().zip([0, 0])), "br-int");
        assert!(idle.contains("way idle"));
    }

    #[test]
    fn no_name_breaks_the_document() {
        let picture = draw(&Graph::default(), "<b> & \u{7}");
        assert!(picture.contains("&lt;b&gt; &amp;  </text>"), "{picture}");
    }
}
