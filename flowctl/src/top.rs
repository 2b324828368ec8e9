//! `flowctl top`: what the ports of this host carry, what is dropped and why, and what rules decide, live.
//!
//! Two readings of counters give rates. Pure but for [`run`]: counters that went backwards (a port plugged in anew) count from nothing.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stdout};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::agent::Agent;
use crate::failure::Failure;
use crate::noun::written;
use crate::output::{self, Column, Format};

const PORTS: &[Column] = &[
    ("PORT", "/name"),
    ("VM", "/vm"),
    ("SENT/s", "/sent_packets"),
    ("SENT Mb/s", "/sent_mbits"),
    ("RECV/s", "/received_packets"),
    ("RECV Mb/s", "/received_mbits"),
    ("LOST/s", "/dropped_packets"),
];
const DROPS: &[Column] = &[("DROPS/s", "/rate"), ("ALL", "/packets"), ("TABLE", "/table"), ("REASON", "/reason")];
const RULES: &[Column] =
    &[("RULES/s", "/rate"), ("ALL", "/packets"), ("OCTETS", "/octets"), ("OF", "/owner"), ("RULE", "/rule")];
/// Rules that fit below that.
const RULES_SHOWN: usize = 12;
/// Reasons that fit below the ports on a screen.
const DROPS_SHOWN: usize = 12;
/// Clears a terminal's screen and goes to its top left corner (ECMA-48 ED, CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// How to watch.
#[derive(Debug, Args)]
pub struct Top {
    /// Seconds between readings.
    #[arg(long, default_value_t = 2.0, value_parser = interval)]
    interval: f64,
    /// Stop after this many readings; without it, at Ctrl-C.
    #[arg(long, value_name = "READINGS", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "want a number of seconds".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("want 0.1 to 3600 seconds".to_owned()) }
}

/// Reads counters and shows rates, again and again. As JSON: one object a line for each reading.
///
/// # Errors
/// [`Failure`] when the agent cannot be asked.
pub async fn run(agent: &Agent, format: Format, top: &Top) -> Result<(), Failure> {
    let mut before = (agent.get("/v1/counters").await?, Instant::now());
    let mut left = top.count;
    while left != Some(0) {
        sleep(Duration::from_secs_f64(top.interval)).await;
        let now = (agent.get("/v1/counters").await?, Instant::now());
        let view = rates(&before.0, &now.0, now.1.duration_since(before.1));
        written(match format {
            Format::Json => output::text(&view.to_string()),
            Format::Table => output::text(&screen(&view)),
        })?;
        before = now;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

/// What one reading shows.
fn screen(view: &Value) -> String {
    let rows = |pointer| view.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let drops = rows("/drops");
    let shown = &drops[..drops.len().min(DROPS_SHOWN)];
    let rules = rows("/rules");
    let busy = &rules[..rules.len().min(RULES_SHOWN)];
    let clear = if stdout().is_terminal() { CLEAR } else { "" };
    let (ports, drops, rules) =
        (output::table(PORTS, rows("/ports")), output::table(DROPS, shown), output::table(RULES, busy));
    format!("{clear}{ports}\n\n{drops}\n\n{rules}\n")
}

/// Rates between two readings: a second each, from counters of all time.
fn rates(before: &Value, now: &Value, passed: Duration) -> Value {
    let per_second = |grown: u64| rounded(count(grown) / passed.as_secs_f64().max(f64::EPSILON));
    let earlier = keyed(before, "/ports", "/name");
    let ports = list(now, "/ports").map(|port| {
        let old = earlier.get(text(port, "/name")).copied();
        let grown = |pointer: &str| Some(growth(number(old.unwrap_or(&Value::Null), pointer), number(port, pointer)?));
        let mbits = |pointer: &str| grown(pointer).map(|octets| rounded(per_second(octets) * 8.0 / 1e6));
        json!({
            "name": port["name"],
            "vm": port["vm"],
            "sent_packets": grown("/sent_packets").map(per_second),
            "sent_mbits": mbits("/sent_octets"),
            "received_packets": grown("/received_packets").map(per_second),
            "received_mbits": mbits("/received_octets"),
            "dropped_packets": grown("/dropped_packets").map(per_second),
        })
    });
    let earlier = keyed(before, "/drops", "/reason");
    let mut drops: Vec<Value> = list(now, "/drops")
        .map(|drop| {
            let old = earlier.get(text(drop, "/reason")).and_then(|old| number(old, "/packets"));
            let packets = number(drop, "/packets").unwrap_or(0);
            json!({"table": drop["table"], "reason": drop["reason"], "packets": packets,
                "rate": per_second(growth(old, packets))})
        })
        .collect();
    by_rate(&mut drops);
    let rules = rules(before, now, per_second);
    json!({"seconds": passed.as_secs_f64(), "ports": ports.collect::<Vec<_>>(), "drops": drops, "rules": rules})
}

/// What each rule decided between two readings.
fn rules(before: &Value, now: &Value, per_second: impl Fn(u64) -> f64) -> Vec<Value> {
    let key = |rule: &Value| (text(rule, "/owner").to_owned(), text(rule, "/rule").to_owned());
    let earlier: BTreeMap<_, _> = list(before, "/rules").map(|rule| (key(rule), number(rule, "/packets"))).collect();
    let body = |rule: &Value| {
        let packets = number(rule, "/packets").unwrap_or(0);
        let rate = per_second(growth(earlier.get(&key(rule)).copied().flatten(), packets));
        json!({"owner": rule["owner"], "rule": rule["rule"], "key": rule["key"], "packets": packets,
            "octets": rule["octets"], "rate": rate})
    };
    let mut rules: Vec<Value> = list(now, "/rules").map(body).collect();
    by_rate(&mut rules);
    rules
}

/// What happens now is what one looks for; of the rest, what happened most.
fn by_rate(rows: &mut [Value]) {
    rows.sort_by(|one, other| {
        let key = |value: &Value| (value["rate"].as_f64().unwrap_or(0.0), value["packets"].as_u64().unwrap_or(0));
        let (one, other) = (key(one), key(other));
        other.0.total_cmp(&one.0).then(other.1.cmp(&one.1))
    });
}

/// How much a counter grew; one that shrank began anew.
fn growth(before: Option<u64>, now: u64) -> u64 {
    now.checked_sub(before.unwrap_or(0)).unwrap_or(now)
}

/// A counter for dividing: beyond 2^53 the last digits are lost, and nobody reads them in a rate.
#[expect(clippy::cast_precision_loss, reason = "a rate is shown with one decimal")]
const fn count(value: u64) -> f64 {
    value as f64
}

/// One decimal.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn keyed<'a>(value: &'a Value, rows: &str, key: &str) -> BTreeMap<&'a str, &'a Value> {
    list(value, rows).map(|row| (text(row, key), row)).collect()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, pointer: &str) -> Option<u64> {
    value.pointer(pointer).and_then(Value::as_u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(sent: u64, octets: u64, dropped: u64) -> Value {
        json!({
            "ports": [{"name": "web1", "vm": "web1", "sent_packets": sent, "sent_octets": octets,
                "received_packets": 0, "received_octets": 0, "dropped_packets": null}],
            "drops": [{"table": "ingress", "reason": "no rule", "packets": dropped, "octets": 0},
                {"table": "classify", "reason": "spoofed", "packets": 500, "octets": 0}],
            "rules": [{"owner": "security group web", "rule": "allow anything", "key": null, "packets": 900, "octets": 9},
                {"owner": "firewall rule ssh of policy in", "rule": "lets it in", "key": 3, "packets": sent, "octets": octets}],
        })
    }

    #[test]
    fn two_readings_make_rates_and_what_drops_now_stands_first() {
        let view = rates(&reading(100, 1000, 10), &reading(300, 251_000, 30), Duration::from_secs(2));
        let port = &view["ports"][0];
        assert_eq!((&port["sent_packets"], &port["sent_mbits"]), (&json!(100.0), &json!(1.0)));
        assert_eq!(port["dropped_packets"], Value::Null, "what nobody counts is not shown as none");
        let drops: Vec<_> = list(&view, "/drops").map(|drop| (text(drop, "/reason"), drop["rate"].as_f64())).collect();
        assert_eq!(drops, [("no rule", Some(10.0)), ("spoofed", Some(0.0))]);
        let rules: Vec<_> = list(&view, "/rules").map(|rule| (text(rule, "/rule"), rule["rate"].as_f64())).collect();
        assert_eq!(rules, [("lets it in", Some(100.0)), ("allow anything", Some(0.0))], "what is busy stands first");
    }

    /// A port that was plugged in anew begins at nothing, and one that was not there before counts from nothing.
    #[test]
    fn counters_that_began_anew_do_not_run_backwards() {
        let view = rates(&reading(100, 1000, 10), &reading(8, 80, 0), Duration::from_secs(2));
        assert_eq!(view["ports"][0]["sent_packets"], json!(4.0));
        let view = rates(&json!({}), &reading(8, 80, 0), Duration::from_secs(2));
        assert_eq!(view["ports"][0]["sent_packets"], json!(4.0));
    }

    #[test]
    fn intervals_have_a_range() {
        assert_eq!(interval("0.5"), Ok(0.5));
        assert!(interval("0").is_err() && interval("soon").is_err() && interval("nan").is_err());
    }

    #[test]
    fn a_screen_has_both_tables() {
        let shown = screen(&rates(&reading(0, 0, 0), &reading(20, 0, 2), Duration::from_secs(1)));
        assert!(shown.contains("web1") && shown.contains("REASON") && shown.contains("no rule"), "{shown}");
        assert!(shown.contains("firewall rule ssh of policy in"), "{shown}");
    }
}
