//! A row: some of the columns of one table with their values.
//!
//! It knows nothing of the table's schema: which columns may be there is the server's to say.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value as Json};
use thiserror::Error;

use crate::value::{Value, ValueError};

/// JSON that is no row.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RowError {
    /// Something other than an object.
    #[error("a row is a JSON object, not {0}")]
    NotAnObject(&'static str),
    /// A column whose value is none.
    #[error("column {column}")]
    Column {
        /// The column's name.
        column: String,
        /// What is wrong with its value.
        #[source]
        source: ValueError,
    },
}

/// Column names with values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row(BTreeMap<String, Value>);

impl Row {
    /// A row without columns.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The row with one more column, for building rows in one expression.
    #[must_use]
    pub fn with(mut self, column: &str, value: impl Into<Value>) -> Self {
        self.set(column, value);
        self
    }

    /// Sets a column and returns what it was.
    pub fn set(&mut self, column: &str, value: impl Into<Value>) -> Option<Value> {
        self.0.insert(column.to_owned(), value.into())
    }

    /// The value of a column.
    #[must_use]
    pub fn get(&self, column: &str) -> Option<&Value> {
        self.0.get(column)
    }

    /// All columns in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(column, value)| (column.as_str(), value))
    }

    /// Whether there is no column.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The columns in which `self` has another value than `other`, with the values of `self`; columns that `other` has
    /// not count as different.
    #[must_use]
    pub fn differing_from(&self, other: &Row) -> Row {
        Self(
            self.0
                .iter()
                .filter(|(column, value)| other.get(column) != Some(value))
                .map(|(column, value)| (column.clone(), value.clone()))
                .collect(),
        )
    }

    /// Decodes a row.
    ///
    /// # Errors
    /// When `json` is none.
    pub fn decode(json: &Json) -> Result<Self, RowError> {
        let object = json.as_object().ok_or_else(|| RowError::NotAnObject(kind_of(json)))?;
        let decode = |(column, json): (&String, &Json)| match Value::decode(json) {
            Ok(value) => Ok((column.clone(), value)),
            Err(source) => Err(RowError::Column { column: column.clone(), source }),
        };
        object.iter().map(decode).collect::<Result<_, _>>().map(Self)
    }

    /// The JSON notation.
    #[must_use]
    pub fn encode(&self) -> Json {
        Json::Object(self.0.iter().map(|(column, value)| (column.clone(), value.encode())).collect::<Map<_, _>>())
    }
}

impl FromIterator<(String, Value)> for Row {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(|(column, value)| format!("{column}: {value}")).collect();
        write!(formatter, "{{{}}}", words.join(", "))
    }
}

/// The name of the kind of JSON that `json` is, for errors.
pub(crate) fn kind_of(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::value::tests::{any_json, any_value};
    use proptest::prelude::*;

    pub(crate) fn any_row() -> impl Strategy<Value = Row> {
        proptest::collection::btree_map("[a-z_]{1,6}", any_value(), 0..6).prop_map(Row)
    }

    proptest! {
        #[test]
        fn rows_survive_their_notation(row in any_row()) {
            prop_assert_eq!(Row::decode(&row.encode()).unwrap(), row);
        }

        #[test]
        fn any_json_is_a_row_or_an_error(json in any_json()) {
            let _either = Row::decode(&json);
        }
    }

    #[test]
    fn the_difference_has_only_what_changed() {
        let old = Row::new().with("name", "vm0").with("ofport", 1);
        let new = Row::new().with("name", "vm0").with("ofport", 2).with("error", Value::empty());
        assert_eq!(new.differing_from(&old), Row::new().with("ofport", 2).with("error", Value::empty()));
        assert!(old.differing_from(&old).is_empty());
    }
}
