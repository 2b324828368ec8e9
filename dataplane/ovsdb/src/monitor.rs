//! What to watch, and what the server tells of it: the three generations of monitors in one form.
//!
//! | method               | notification | a changed row comes as          |
//! |----------------------|--------------|---------------------------------|
//! | `monitor_cond_since` | `update3`    | difference, with transaction id |
//! | `monitor_cond`       | `update2`    | difference                      |
//! | `monitor`            | `update`     | the whole row                   |
//!
//! Sources: RFC 7047 §4.1.5 and §4.1.6; ovsdb-server(7) §4.1.12 to §4.1.15.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json, json};
use thiserror::Error;
use uuid::Uuid;

use crate::row::{Row, RowError, kind_of};
use crate::schema::DatabaseSchema;

/// JSON that is no update, or a table to be watched that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MonitorError {
    /// A part of an update of the wrong kind.
    #[error("{place} is {kind}")]
    Kind {
        /// The part.
        place: &'static str,
        /// What was found.
        kind: &'static str,
    },
    /// A row whose name is no UUID.
    #[error("table {table}: {text:?} is not a UUID")]
    Uuid {
        /// The table.
        table: String,
        /// The text in place of a UUID.
        text: String,
    },
    /// A row that is told to have changed in no known way.
    #[error("table {table}, row {uuid}: nothing known has happened to it")]
    Change {
        /// The table.
        table: String,
        /// The row.
        uuid: Uuid,
    },
    /// A row that cannot be read.
    #[error("table {table}, row {uuid}")]
    Row {
        /// The table.
        table: String,
        /// The row.
        uuid: Uuid,
        /// What is wrong with it.
        #[source]
        source: RowError,
    },
    /// A table to be watched that the server's schema does not have.
    #[error("database {database} has no table {table}")]
    NoTable {
        /// The database.
        database: String,
        /// The table.
        table: String,
    },
}

/// The tables to watch, each with the columns wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch(BTreeMap<String, BTreeSet<String>>);

impl Watch {
    /// Watches nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Watches `columns` of `table` as well. Columns that the server's schema lacks are left out when it is asked.
    #[must_use]
    pub fn table(mut self, table: &str, columns: &[&str]) -> Self {
        self.0.entry(table.to_owned()).or_default().extend(columns.iter().map(|&column| column.to_owned()));
        self
    }

    /// The part of it that a server with `schema` can give.
    ///
    /// # Errors
    /// When it lacks a whole table.
    pub fn available(&self, schema: &DatabaseSchema) -> Result<Self, MonitorError> {
        let restrict = |(table, columns): (&String, &BTreeSet<String>)| {
            let known = schema
                .tables
                .get(table)
                .ok_or_else(|| MonitorError::NoTable { database: schema.name.clone(), table: table.clone() })?;
            let columns = columns.iter().filter(|column| known.columns.contains_key(*column)).cloned();
            Ok((table.clone(), columns.collect()))
        };
        self.0.iter().map(restrict).collect::<Result<_, _>>().map(Self)
    }

    /// The columns watched of `table`, or `None` when it is not watched.
    #[must_use]
    pub fn columns(&self, table: &str) -> Option<&BTreeSet<String>> {
        self.0.get(table)
    }

    /// The requests of a monitor method: one per table, in an array, which all three methods take.
    #[must_use]
    pub fn encode(&self) -> Json {
        let requests = self.0.iter().map(|(table, columns)| (table.clone(), json!([{ "columns": columns }])));
        Json::Object(requests.collect::<Map<_, _>>())
    }
}

/// What happened to one row.
#[derive(Debug, Clone, PartialEq)]
pub enum RowUpdate {
    /// It is there with these columns. `complete` says whether columns at their default are written out.
    Present {
        /// The columns told.
        row: Row,
        /// Whether a column that is not told is unchanged or unwatched rather than at its default.
        complete: bool,
    },
    /// These columns changed, in the way of `update2`.
    Difference(Row),
    /// It is gone.
    Absent,
}

/// Which notation an update has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notation {
    /// `old` and `new` (RFC 7047 §4.1.6).
    Whole,
    /// `initial`, `insert`, `modify`, `delete` (ovsdb-server(7) §4.1.14).
    Difference,
}

/// Changed rows by table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TableUpdates(pub BTreeMap<String, BTreeMap<Uuid, RowUpdate>>);

impl TableUpdates {
    /// Decodes `<table-updates>` or `<table-updates2>`.
    ///
    /// # Errors
    /// When `json` is neither.
    pub fn decode(json: &Json, notation: Notation) -> Result<Self, MonitorError> {
        let mut updates = BTreeMap::new();
        for (table, json) in members(json, "an update of tables")? {
            let mut rows = BTreeMap::new();
            for (text, json) in members(json, "an update of a table")? {
                let uuid = Uuid::try_parse(text)
                    .map_err(|_| MonitorError::Uuid { table: table.clone(), text: text.chars().take(64).collect() })?;
                rows.insert(uuid, decode_row_update(table, uuid, json, notation)?);
            }
            updates.insert(table.clone(), rows);
        }
        Ok(Self(updates))
    }

    /// The JSON notation, the way a server would write it.
    #[must_use]
    pub fn encode(&self) -> Json {
        let encode = |update: &RowUpdate| match update {
            RowUpdate::Present { row, complete: true } => json!({"new": row.encode()}),
            RowUpdate::Present { row, complete: false } => json!({"insert": row.encode()}),
            RowUpdate::Difference(row) => json!({"modify": row.encode()}),
            RowUpdate::Absent => json!({"delete": null, "old": {}}),
        };
        let table = |rows: &BTreeMap<Uuid, RowUpdate>| {
            Json::Object(rows.iter().map(|(uuid, update)| (uuid.to_string(), encode(update))).collect::<Map<_, _>>())
        };
        Json::Object(self.0.iter().map(|(name, rows)| (name.clone(), table(rows))).collect::<Map<_, _>>())
    }
}

fn members<'a>(json: &'a Json, place: &'static str) -> Result<&'a Map<String, Json>, MonitorError> {
    json.as_object().ok_or_else(|| MonitorError::Kind { place, kind: kind_of(json) })
}

fn decode_row_update(table: &str, uuid: Uuid, json: &Json, notation: Notation) -> Result<RowUpdate, MonitorError> {
    let json = members(json, "an update of a row")?;
    let row =
        |json: &Json| Row::decode(json).map_err(|source| MonitorError::Row { table: table.to_owned(), uuid, source });
    let nothing = || MonitorError::Change { table: table.to_owned(), uuid };
    match notation {
        Notation::Whole => match (json.get("new"), json.get("old")) {
            (Some(new), _) if !new.is_null() => Ok(RowUpdate::Present { row: row(new)?, complete: true }),
            (_, Some(_)) => Ok(RowUpdate::Absent),
            _ => Err(nothing()),
        },
        Notation::Difference => match (json.get("initial").or(json.get("insert")), json.get("modify")) {
            (Some(new), _) => Ok(RowUpdate::Present { row: row(new)?, complete: false }),
            (None, Some(difference)) => Ok(RowUpdate::Difference(row(difference)?)),
            (None, None) if json.contains_key("delete") => Ok(RowUpdate::Absent),
            (None, None) => Err(nothing()),
        },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::row::tests::any_row;
    use crate::value::tests::any_json;
    use proptest::prelude::*;

    fn any_updates(notation: Notation) -> impl Strategy<Value = TableUpdates> {
        let change = match notation {
            Notation::Whole => prop_oneof![
                any_row().prop_map(|row| RowUpdate::Present { row, complete: true }),
                Just(RowUpdate::Absent)
            ]
            .boxed(),
            Notation::Difference => prop_oneof![
                any_row().prop_map(|row| RowUpdate::Present { row, complete: false }),
                any_row().prop_map(RowUpdate::Difference),
                Just(RowUpdate::Absent)
            ]
            .boxed(),
        };
        let rows = proptest::collection::btree_map(any::<u128>().prop_map(Uuid::from_u128), change, 0..4);
        proptest::collection::btree_map("[A-Z][a-z]{0,4}", rows, 0..3).prop_map(TableUpdates)
    }

    proptest! {
        #[test]
        fn updates_survive_their_notation(
            whole in any_updates(Notation::Whole),
            difference in any_updates(Notation::Difference),
        ) {
            prop_assert_eq!(TableUpdates::decode(&whole.encode(), Notation::Whole).unwrap(), whole);
            prop_assert_eq!(TableUpdates::decode(&difference.encode(), Notation::Difference).unwrap(), difference);
        }

        #[test]
        fn any_json_is_an_update_or_an_error(json in any_json()) {
            let _either = TableUpdates::decode(&json, Notation::Whole);
            let _either = TableUpdates::decode(&json, Notation::Difference);
        }
    }
}
