//! Results on standard output: a table for people, JSON for programs, both from one value.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON value.
    Json,
}

/// A column of a table: its heading, and where in an object its value is (a JSON pointer, RFC 6901).
pub type Column = (&'static str, &'static str);

/// Prints a list of objects.
///
/// # Errors
/// What writing to standard output gives.
pub fn list(format: Format, columns: &[Column], rows: &[Value]) -> io::Result<()> {
    match format {
        Format::Json => json(&Value::Array(rows.to_vec())),
        Format::Table => text(&table(columns, rows)),
    }
}

/// Prints one object: a field a line.
///
/// # Errors
/// What writing to standard output gives.
pub fn object(format: Format, value: &Value) -> io::Result<()> {
    match format {
        Format::Json => json(value),
        Format::Table => text(&fields(value)),
    }
}

/// Prints text as it is, with a newline at its end.
///
/// # Errors
/// What writing to standard output gives.
pub fn text(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", text.trim_end())
}

/// Prints a JSON value.
///
/// # Errors
/// What writing to standard output gives.
pub fn json(value: &Value) -> io::Result<()> {
    text(&format!("{value:#}"))
}

/// Says something to the person at the terminal, on standard error; a closed one stops nothing.
pub fn note(text: &str) {
    writeln!(io::stderr().lock(), "{text}").ok();
}

/// A table with headings.
#[must_use]
pub fn table(columns: &[Column], rows: &[Value]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|(heading, _)| *heading));
    for row in rows {
        table.add_row(columns.iter().map(|(_, pointer)| cell(row.pointer(pointer).unwrap_or(&Value::Null))));
    }
    let text = table.to_string();
    text.lines().map(|line| line.trim_end().strip_prefix(' ').unwrap_or(line.trim_end())).collect::<Vec<_>>().join("\n")
}

fn fields(value: &Value) -> String {
    let Value::Object(map) = value else { return cell(value) };
    let width = map.keys().map(String::len).max().unwrap_or(0);
    let shown = map.iter().flat_map(|(key, value)| {
        let first = std::iter::once(key.as_str()).chain(std::iter::repeat(""));
        first.zip(entries(value)).map(|(key, entry)| format!("{key:width$}  {entry}")).collect::<Vec<_>>()
    });
    shown.collect::<Vec<_>>().join("\n")
}

/// What a field holds: a list of objects an entry a line, anything else on one.
fn entries(value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) if values.iter().any(Value::is_object) => values.iter().map(cell).collect(),
        other => vec![cell(other)],
    }
}

/// An object in one cell: another object of the cloud by its name, anything else as what is known of it.
fn parts(map: &serde_json::Map<String, Value>) -> String {
    if let (Some(name), true) = (map.get("name"), map.keys().all(|key| key == "name" || key == "id")) {
        return cell(name);
    }
    let known = map.iter().filter(|(_, value)| !value.is_null());
    known.map(|(key, value)| format!("{key}={}", cell(value))).collect::<Vec<_>>().join(" ")
}

/// A value in one cell: text bare, nothing as a dash, lists with commas.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(map) if map.is_empty() => "-".to_owned(),
        Value::Object(map) => parts(map),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_has_headings_values_and_dashes_for_what_is_missing() {
        let rows =
            [json!({"name": "a", "at": {"host": "h1"}, "tags": ["x", "y"]}), json!({"name": "longer", "tags": []})];
        let shown = table(&[("NAME", "/name"), ("HOST", "/at/host"), ("TAGS", "/tags")], &rows);
        assert_eq!(shown, "NAME    HOST  TAGS\na       h1    x,y\nlonger  -     -");
    }

    #[test]
    fn an_object_is_shown_a_field_a_line() {
        assert_eq!(fields(&json!({"id": 5, "name": "a"})), "id    5\nname  a");
        let port = json!({"network": {"id": "7", "name": "blue"}, "at": [{"subnet": {"id": "8", "name": "s"}, "address": "10.0.0.2"}, {"address": null}]});
        assert_eq!(fields(&port), "at       address=10.0.0.2 subnet=s\n         \nnetwork  blue");
    }
}
