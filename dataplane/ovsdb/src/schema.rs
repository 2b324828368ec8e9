//! What a database says of itself: its tables, their columns and types (RFC 7047 §3.2, reply to `get_schema`).
//!
//! Only what a client needs is kept: which columns exist, what a column holds when nobody set it, and whether it holds
//! at most one element, because that decides how monitor differences are read (ovsdb-server(7), "update2"). Constraints
//! on values are left to the server.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;
use thiserror::Error;
use uuid::Uuid;

use crate::row::{Row, kind_of};
use crate::value::{Atom, Value};

/// JSON that is no schema.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SchemaError {
    /// A member that is absent or of the wrong kind.
    #[error("{place}: {member} is {kind}")]
    Member {
        /// Where in the schema.
        place: String,
        /// The member.
        member: &'static str,
        /// What was found.
        kind: &'static str,
    },
    /// A type that RFC 7047 does not know.
    #[error("{place}: no atomic type is called {name:?}")]
    AtomType {
        /// Where in the schema.
        place: String,
        /// The unknown name.
        name: String,
    },
}

/// The kind of an atom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtomType {
    /// 64-bit integers.
    Integer,
    /// Reals.
    Real,
    /// Truth values.
    Boolean,
    /// Strings.
    String,
    /// Rows.
    Uuid,
}

impl AtomType {
    fn decode(json: &Json, place: &str) -> Result<Self, SchemaError> {
        // A base type is its name, or an object with the name and constraints.
        let named = if json.is_object() { json.get("type").unwrap_or(&Json::Null) } else { json };
        match named.as_str() {
            Some("integer") => Ok(Self::Integer),
            Some("real") => Ok(Self::Real),
            Some("boolean") => Ok(Self::Boolean),
            Some("string") => Ok(Self::String),
            Some("uuid") => Ok(Self::Uuid),
            Some(name) => Err(SchemaError::AtomType { place: place.to_owned(), name: name.to_owned() }),
            None => Err(wrong(place, "type", named)),
        }
    }

    fn default_atom(self) -> Atom {
        match self {
            Self::Integer => Atom::Integer(0),
            Self::Real => Atom::Real(0.0),
            Self::Boolean => Atom::Boolean(false),
            Self::String => Atom::String(String::new()),
            Self::Uuid => Atom::Uuid(Uuid::nil()),
        }
    }
}

/// The type of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnType {
    /// The kind of the elements, or of the keys of a map.
    pub key: AtomType,
    /// The kind of the values of a map; `None` for anything but a map.
    pub value: Option<AtomType>,
    /// 0 where the column may be empty, otherwise 1.
    pub elements_min: u64,
    /// The most elements; `u64::MAX` for "unlimited".
    pub elements_max: u64,
}

impl ColumnType {
    /// What the column holds in a row in which nobody set it (RFC 7047 §5.2.1).
    #[must_use]
    pub fn default_value(&self) -> Value {
        match self.value {
            Some(value) if self.elements_min > 0 => Value::map([(self.key.default_atom(), value.default_atom())]),
            Some(_) => Value::Map(BTreeMap::new()),
            None if self.elements_min > 0 => Value::Atom(self.key.default_atom()),
            None => Value::Set(BTreeSet::new()),
        }
    }

    /// What `old` becomes by a `difference` of `update2`.
    ///
    /// A column of at most one element is replaced. Of a set, elements in both go and others come. Of a map, a pair that
    /// is in both goes, a key with another value gets it, other pairs come.
    #[must_use]
    pub fn apply_difference(&self, old: &Value, difference: Value) -> Value {
        if self.elements_max <= 1 {
            return difference;
        }
        if self.value.is_some() {
            let mut pairs = old.as_map().cloned().unwrap_or_default();
            for (key, value) in difference.as_map().into_iter().flatten() {
                if pairs.get(key) == Some(value) {
                    pairs.remove(key);
                } else {
                    pairs.insert(key.clone(), value.clone());
                }
            }
            return Value::Map(pairs);
        }
        let old: BTreeSet<&Atom> = old.atoms().collect();
        let difference: BTreeSet<&Atom> = difference.atoms().collect();
        Value::set(old.symmetric_difference(&difference).map(|atom| (*atom).clone()))
    }

    fn decode(json: &Json, place: &str) -> Result<Self, SchemaError> {
        if json.is_string() {
            return Ok(Self { key: AtomType::decode(json, place)?, value: None, elements_min: 1, elements_max: 1 });
        }
        let member = |name| json.get(name).unwrap_or(&Json::Null);
        let key = AtomType::decode(member("key"), place)?;
        let value = json.get("value").map(|value| AtomType::decode(value, place)).transpose()?;
        let elements_min = match member("min") {
            Json::Null => 1,
            other => other.as_u64().ok_or_else(|| wrong(place, "min", other))?,
        };
        let elements_max = match member("max") {
            Json::Null => 1,
            Json::String(text) if text == "unlimited" => u64::MAX,
            other => other.as_u64().ok_or_else(|| wrong(place, "max", other))?,
        };
        Ok(Self { key, value, elements_min, elements_max })
    }
}

fn wrong(place: &str, member: &'static str, json: &Json) -> SchemaError {
    SchemaError::Member { place: place.to_owned(), member, kind: kind_of(json) }
}

/// The columns of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableSchema {
    /// The columns by name.
    pub columns: BTreeMap<String, ColumnType>,
}

impl TableSchema {
    /// `row` with every column of `columns` that it lacks at its default; columns not in the schema are left out.
    #[must_use]
    pub fn complete(&self, row: &Row, columns: &BTreeSet<String>) -> Row {
        columns
            .iter()
            .filter_map(|column| {
                let value = row.get(column).cloned();
                Some((column.clone(), value.or_else(|| Some(self.columns.get(column)?.default_value()))?))
            })
            .collect()
    }
}

/// The tables of one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatabaseSchema {
    /// The database's name.
    pub name: String,
    /// The schema's version.
    pub version: String,
    /// The tables by name.
    pub tables: BTreeMap<String, TableSchema>,
}

impl DatabaseSchema {
    /// Decodes the reply to `get_schema`.
    ///
    /// # Errors
    /// When `json` is no schema.
    pub fn decode(json: &Json) -> Result<Self, SchemaError> {
        let text = |member| json.get(member).and_then(Json::as_str).unwrap_or_default().to_owned();
        let tables = object(json, "the database", "tables")?;
        let tables = tables.map(|(name, json)| Ok((name.clone(), decode_table(name, json)?)));
        Ok(Self { name: text("name"), version: text("version"), tables: tables.collect::<Result<_, _>>()? })
    }
}

fn decode_table(table: &str, json: &Json) -> Result<TableSchema, SchemaError> {
    let decode = |(column, json): (&String, &Json)| {
        let place = format!("column {column} of table {table}");
        Ok((column.clone(), ColumnType::decode(json.get("type").unwrap_or(&Json::Null), &place)?))
    };
    let columns = object(json, &format!("table {table}"), "columns")?.map(decode).collect::<Result<_, _>>()?;
    Ok(TableSchema { columns })
}

fn object<'a>(
    json: &'a Json,
    place: &str,
    member: &'static str,
) -> Result<impl Iterator<Item = (&'a String, &'a Json)> + use<'a>, SchemaError> {
    let found = json.get(member).unwrap_or(&Json::Null);
    found.as_object().map(|members| members.iter()).ok_or_else(|| wrong(place, member, found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::tests::any_json;
    use proptest::prelude::*;
    use serde_json::json;

    fn column(json: &Json) -> ColumnType {
        ColumnType::decode(json, "test").unwrap()
    }

    #[test]
    fn defaults_follow_the_type() {
        let cases = [
            (json!("string"), Value::from("")),
            (json!({"key": "integer", "min": 0}), Value::empty()),
            (json!({"key": {"type": "uuid", "refTable": "Port"}, "min": 0, "max": "unlimited"}), Value::empty()),
            (json!({"key": "string", "value": "string", "min": 0, "max": "unlimited"}), Value::Map(BTreeMap::new())),
            (json!({"key": {"type": "boolean"}}), Value::from(false)),
        ];
        for (json, value) in cases {
            assert_eq!(column(&json).default_value(), value, "{json}");
        }
    }

    #[test]
    fn differences_replace_scalars_and_toggle_members() {
        let optional = column(&json!({"key": "integer", "min": 0, "max": 1}));
        assert_eq!(optional.apply_difference(&Value::from(1), Value::from(2)), Value::from(2));
        assert_eq!(optional.apply_difference(&Value::from(1), Value::empty()), Value::empty());
        let set = column(&json!({"key": "string", "min": 0, "max": "unlimited"}));
        assert_eq!(set.apply_difference(&Value::set(["a", "b"]), Value::set(["b", "c"])), Value::set(["a", "c"]));
        assert_eq!(set.apply_difference(&Value::from("a"), Value::from("a")), Value::empty());
        let map = column(&json!({"key": "string", "value": "string", "min": 0, "max": "unlimited"}));
        let old = Value::map([("same", "1"), ("gone", "2"), ("other", "3")]);
        let difference = Value::map([("gone", "2"), ("other", "4"), ("new", "5")]);
        let new = Value::map([("same", "1"), ("other", "4"), ("new", "5")]);
        assert_eq!(map.apply_difference(&old, difference), new);
    }

    #[test]
    fn wrong_schemas_are_named() {
        let cases = [
            (json!(3), "the database: tables is null"),
            (json!({"tables": {"T": {}}}), "table T: columns is null"),
            (json!({"tables": {"T": {"columns": {"c": {}}}}}), "column c of table T: type is null"),
            (
                json!({"tables": {"T": {"columns": {"c": {"type": "text"}}}}}),
                "column c of table T: no atomic type is called \"text\"",
            ),
            (
                json!({"tables": {"T": {"columns": {"c": {"type": {"key": "real", "max": "many"}}}}}}),
                "column c of table T: max is a string",
            ),
        ];
        for (json, message) in cases {
            assert_eq!(DatabaseSchema::decode(&json).unwrap_err().to_string(), message);
        }
    }

    proptest! {
        #[test]
        fn any_json_is_a_schema_or_an_error(json in any_json()) {
            let _either = DatabaseSchema::decode(&json);
        }
    }
}
