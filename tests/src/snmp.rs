//! What a kernel has counted, read from the text of `/proc/net/snmp`: a line of names, then a line of numbers, for each protocol (proc(5)).

use anyhow::{Context, Result};

/// How many ICMP messages of a kind the kernel has counted; `kind` is its own name, `InEchos` for example.
///
/// # Errors
/// The text has no such count.
pub fn icmp(text: &str, kind: &str) -> Result<u32> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Icmp: ")).map(str::split_whitespace);
    let (names, values) = (lines.next(), lines.next());
    let mut pairs = names.into_iter().flatten().zip(values.into_iter().flatten());
    let found = pairs.find(|(name, _)| *name == kind).and_then(|(_, value)| value.parse().ok());
    found.with_context(|| format!("no count of {kind}: {text}"))
}

#[cfg(test)]
mod tests {
    use super::icmp;

    #[test]
    fn counts_are_found_by_their_names() {
        let text = "Ip: Forwarding\nIp: 1\nIcmp: InMsgs InErrors InEchos\nIcmp: 9 0 4\nIcmpMsg: InType8\nIcmpMsg: 4\n";
        assert_eq!(icmp(text, "InEchos").ok(), Some(4));
        let missing = icmp(text, "OutEchos").map_err(|error| error.to_string());
        assert!(missing.is_err_and(|error| error.starts_with("no count of OutEchos")));
    }
}
