//! Counters in OpenMetrics text (OpenMetrics 1.0), made from the last snapshot when asked: nothing counts twice.

use dataplane::switch::driver::DriverStatus;
use dataplane::switch::resolver::NameCounts;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::link::LinkStatus;
use crate::reconcile::Snapshot;

/// The media type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text.
#[must_use]
pub fn text(snapshot: &Snapshot, link: Option<&LinkStatus>, flows: &DriverStatus, names: &NameCounts) -> String {
    let mut registry = Registry::with_prefix("basalt_agent");
    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    let spec = snapshot.spec.as_deref();
    gauge("generation", "Generation of the specification in force", spec.map_or(0, |spec| spec.generation().0));
    gauge("settled_generation", "Newest generation that nothing is left to do for", snapshot.settled.0);
    gauge("machines_wanted", "Machines in the specification", count(spec.map_or(0, |spec| spec.machines().len())));
    let running = snapshot.seen.as_ref().and_then(|seen| seen.machines.known()).map_or(0, |machines| {
        machines.values().filter(|look| look.known().is_some_and(crate::seen::MachineSeen::has_process)).count()
    });
    gauge("machine_processes", "VMM processes on this host", count(running));
    gauge("steps_busy", "Steps under way", count(snapshot.busy.len()));
    gauge("steps_failing", "Objects whose last step failed", count(snapshot.resting.len()));
    gauge("objects_waiting", "Objects that wait for others", count(snapshot.plan.waiting.len()));
    gauge(
        "objects_blocked",
        "Objects that cannot be seen or cannot be as they should",
        count(snapshot.plan.blocked.len()),
    );
    gauge("look_milliseconds", "How long the last look at the host took", snapshot.look_ms);
    gauge("looks", "Looks at the host since the agent started", snapshot.looks);
    gauge(
        "scheduler_connected",
        "Whether the last exchange with the scheduler went well",
        u64::from(link.is_some_and(|link| link.connected)),
    );
    gauge("switch_connected", "Whether the OpenFlow connection is up", u64::from(flows.connected));
    gauge("flows_installed", "Flows of ours installed", count(flows.flows));
    gauge("flow_repairs", "Rounds that found flows missing or changed that had been installed", flows.repairs);
    gauge("switch_connections", "OpenFlow connections made", flows.connections);
    gauge("foreign_flows", "Flows and groups that are not ours", count(flows.foreign_count));
    for (name, help, value) in [
        ("dns_questions", "Messages that machines sent to the name service", names.questions),
        ("dns_answered", "Questions answered from what is known of machines", names.answered),
        ("dns_forwarded", "Questions given to the host's resolvers", names.forwarded),
        ("dns_relayed", "Answers of the host's resolvers given to machines", names.relayed),
        ("dns_unanswered", "Questions that no resolver of the host answered in time", names.unanswered),
        ("dns_refused", "Questions refused: the host has no resolver, or too many wait", names.refused),
        ("dns_malformed", "Messages of machines that are no question", names.malformed),
        ("dns_disbelieved", "Messages of resolvers that do not answer what was asked", names.disbelieved),
    ] {
        gauge(name, help, value);
    }
    gauge("resident_bytes", "Resident memory of the agent", resident_kib().saturating_mul(1024));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => text,
        // Writing into a String does not fail.
        Err(error) => format!("# {error}\n# EOF\n"),
    }
}

fn count(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Resident memory of this process, KiB (proc(5), status).
#[must_use]
pub fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}
