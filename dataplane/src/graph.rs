//! The pipeline as a graph: which tables lead to which, by how many flows, and how many packets went that way.
//!
//! Owns the reading of flows into nodes and edges; [`svg`] draws them. Pure: flows and counts in, values out.
//! Invariant: edges lead from a table to another; what leaves the pipeline is counted at the table where it leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;

use openflow::flow::{Action, Flow};

pub mod svg;

/// How many flows, and how many packets they counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    /// Flows.
    pub flows: u64,
    /// Packets that these flows matched; zero where nobody counted.
    pub packets: u64,
}

impl AddAssign<u64> for Weight {
    /// One more flow, with what it counted.
    fn add_assign(&mut self, packets: u64) {
        self.flows += 1;
        self.packets = self.packets.saturating_add(packets);
    }
}

/// A way out of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// To a port, or to the ports of a group.
    Sent,
    /// To the agent.
    Agent,
    /// To nowhere.
    Dropped,
}

/// What one table holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// All of its flows.
    pub flows: Weight,
    /// Those that end a packet's way, by how.
    pub exits: BTreeMap<Exit, Weight>,
    /// Those that hand it on, by the number of the next table.
    pub next: BTreeMap<u8, Weight>,
}

/// Tables by number, with what connects them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    nodes: BTreeMap<u8, Node>,
}

impl Graph {
    /// Reads flows, each with the packets that it counted.
    pub fn new<'a>(flows: impl IntoIterator<Item = (&'a Flow, u64)>) -> Self {
        let mut graph = Self::default();
        for (flow, packets) in flows {
            graph.add(flow, packets);
        }
        graph
    }

    /// The tables that hold flows or are led to, by number.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (u8, &Node)> {
        self.nodes.iter().map(|(number, node)| (*number, node))
    }

    fn add(&mut self, flow: &Flow, packets: u64) {
        let mut ways = Ways::default();
        ways.read(&flow.actions);
        for next in &ways.tables {
            self.nodes.entry(*next).or_default();
        }
        let node = self.nodes.entry(flow.table).or_default();
        node.flows += packets;
        for next in ways.tables {
            *node.next.entry(next).or_default() += packets;
        }
        // A clause of a conjunction sends a packet nowhere: the flow that asks for the conjunction does.
        let is_clause = flow.actions.iter().any(|action| matches!(action, Action::Conjunction { .. }));
        let exits =
            [(Exit::Sent, ways.is_sent), (Exit::Agent, ways.is_punted), (Exit::Dropped, flow.actions.is_empty())];
        for (exit, _) in exits.into_iter().filter(|(_, leaves)| *leaves && !is_clause) {
            *node.exits.entry(exit).or_default() += packets;
        }
    }
}

/// Where actions lead.
#[derive(Debug, Default)]
struct Ways {
    tables: BTreeSet<u8>,
    is_sent: bool,
    is_punted: bool,
}

impl Ways {
    fn read(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::GotoTable(table) | Action::Resubmit { table: Some(table), .. } => {
                    self.tables.insert(*table);
                }
                Action::Ct(ct) => {
                    if let Some(table) = ct.table {
                        self.tables.insert(table);
                    }
                    self.read(&ct.actions);
                }
                Action::Clone(inner) | Action::WriteActions(inner) => self.read(inner),
                Action::Output(_) | Action::OutputField(_) | Action::OutputTruncated { .. } | Action::Group(_) => {
                    self.is_sent = true;
                }
                Action::Controller(_) => self.is_punted = true,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use openflow::flow::Flow;

    use super::*;

    fn graph(lines: &[(&str, u64)]) -> Graph {
        let flows: Vec<(Flow, u64)> = lines.iter().map(|(line, packets)| (line.parse().unwrap(), *packets)).collect();
        Graph::new(flows.iter().map(|(flow, packets)| (flow, *packets)))
    }

    /// Every kind of way on and way out is found, through `ct` and `clone` too, and counts add up.
    #[test]
    fn ways_are_read_off_actions() {
        let graph = graph(&[
            ("table=0, priority=10, in_port=1, actions=goto_table:4", 7),
            ("table=0, priority=10, in_port=2, actions=goto_table:4", 5),
            ("table=0, priority=0, actions=drop", 3),
            ("table=4, priority=1, arp, actions=controller(max_len=128)", 2),
            ("table=4, priority=0, ip, actions=clone(output:3),ct(table=9,zone=1)", 1),
        ]);
        let nodes: BTreeMap<u8, &Node> = graph.nodes().collect();
        assert_eq!(nodes[&0].flows, Weight { flows: 3, packets: 15 });
        assert_eq!(nodes[&0].next[&4], Weight { flows: 2, packets: 12 });
        assert_eq!(nodes[&0].exits[&Exit::Dropped], Weight { flows: 1, packets: 3 });
        assert_eq!(nodes[&4].exits[&Exit::Agent], Weight { flows: 1, packets: 2 });
        assert_eq!(nodes[&4].exits[&Exit::Sent], Weight { flows: 1, packets: 1 });
        assert_eq!(nodes[&4].next[&9], Weight { flows: 1, packets: 1 });
        assert_eq!(nodes[&9], &Node::default(), "a table that is led to is there though it is empty");
    }

    /// A clause does not end a packet's way, though it names no next table.
    #[test]
    fn clauses_are_no_exits() {
        let graph = graph(&[("table=7, priority=5, ip, actions=conjunction(1,1/2)", 0)]);
        let (_, node) = graph.nodes().next().unwrap();
        assert_eq!(node.exits, BTreeMap::new());
    }
}
