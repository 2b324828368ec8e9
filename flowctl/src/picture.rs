//! `flowctl flow graph`: the pipeline of this host as it is in the switch, with what each way through it counted.
//!
//! Thin: the graph and the drawing are `dataplane`'s. Flows that this version cannot read are counted and named, never left out in silence.

use std::path::Path;

use dataplane::graph::{Graph, svg};
use openflow::flow::Flow;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::failure::Failure;
use crate::noun::written;
use crate::output::{self, Format};

/// Asks for the counted flows, draws them, and writes the picture to `file`, or to standard output. As JSON: the nodes and ways instead.
///
/// # Errors
/// [`Failure`] when the agent cannot be asked, a flow cannot be read, or the file cannot be written.
pub async fn graph(agent: &Agent, format: Format, file: Option<&Path>) -> Result<(), Failure> {
    let answer = agent.get("/v1/flows/counted").await?;
    let flows = read(&answer)?;
    let graph = Graph::new(flows.iter().map(|(flow, packets)| (flow, *packets)));
    let text = match format {
        Format::Json => format!("{:#}", nodes(&graph)),
        Format::Table => svg::draw(&graph, &format!("{} flows of this host", flows.len())),
    };
    match file {
        None => written(output::text(&text)),
        Some(file) => std::fs::write(file, text)
            .map_err(|error| Failure::Other(format!("write the picture to {}: {error}", file.display()))),
    }
}

/// The flows of an answer, each with its packets.
fn read(answer: &Value) -> Result<Vec<(Flow, u64)>, Failure> {
    let one = |value: &Value| {
        let text = value.pointer("/flow").and_then(Value::as_str).unwrap_or_default();
        let flow = text.parse().map_err(|error| Failure::Other(format!("read the flow {text:?}: {error}")))?;
        Ok((flow, value.pointer("/packets").and_then(Value::as_u64).unwrap_or(0)))
    };
    answer.as_array().into_iter().flatten().map(one).collect()
}

fn nodes(graph: &Graph) -> Value {
    let nodes = graph.nodes().map(|(number, node)| {
        let weight = |weight: dataplane::graph::Weight| json!({"flows": weight.flows, "packets": weight.packets});
        let next: Vec<Value> = node
            .next
            .iter()
            .map(|(table, passed)| json!({"table": table, "flows": passed.flows, "packets": passed.packets}))
            .collect();
        let exits: serde_json::Map<String, Value> =
            node.exits.iter().map(|(exit, left)| (exit.word().to_owned(), weight(*left))).collect();
        let name = dataplane::table::Table::by_number(number).map(|table| table.info().name);
        json!({"table": number, "name": name, "all": weight(node.flows), "next": next, "exits": exits})
    });
    json!({ "tables": nodes.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the agent answers becomes a graph with its names and counts.
    #[test]
    fn an_answer_becomes_nodes_and_ways() {
        let answer = json!([
            {"table": 0, "flow": "table=0, priority=3, in_port=1, actions=goto_table:10", "packets": 4},
            {"table": 10, "flow": "table=10, priority=0, actions=drop", "packets": 4},
        ]);
        let flows = read(&answer).unwrap();
        let shown = nodes(&Graph::new(flows.iter().map(|(flow, packets)| (flow, *packets))));
        assert_eq!(shown.pointer("/tables/0/name"), Some(&json!("classify")));
        assert_eq!(shown.pointer("/tables/0/next/0"), Some(&json!({"table": 10, "flows": 1, "packets": 4})));
        assert_eq!(shown.pointer("/tables/1/exits/dropped/packets"), Some(&json!(4)));
    }

    #[test]
    fn a_flow_that_cannot_be_read_is_named() {
        let failure = read(&json!([{"flow": "table=0,nonsense=1 actions=drop"}])).unwrap_err();
        assert!(failure.to_string().contains("nonsense"), "{failure}");
    }
}
