//! A local copy of the watched rows.
//!
//! The replica moves from one state of the server to the next, never to a mixture: an update that does not fit is
//! refused as a whole. Each step returns what changed, row by row. After a connection was lost the whole contents come
//! again; [`Replica::replace`] compares and reports only what is different, so nothing that happened meanwhile is lost
//! and nothing is reported twice.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;
use uuid::Uuid;

use crate::monitor::{RowUpdate, TableUpdates, Watch};
use crate::row::Row;
use crate::schema::DatabaseSchema;

/// An update that does not fit what the replica holds.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReplicaError {
    /// An update of a table that is not watched.
    #[error("an update of table {table}, which is not watched")]
    Table {
        /// The table.
        table: String,
    },
    /// A difference for a row that is not there.
    #[error("a difference for row {uuid} of table {table}, which is not known")]
    Row {
        /// The table.
        table: String,
        /// The row.
        uuid: Uuid,
    },
    /// A difference for a column that is not watched.
    #[error("a difference for column {column} of table {table}, which is not watched")]
    Column {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
}

/// What happened to a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It came.
    Inserted,
    /// It has other values now.
    Modified {
        /// The columns that changed, with what they were.
        before: Row,
    },
    /// It went.
    Deleted {
        /// All that was known of it.
        before: Row,
    },
}

/// A change with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowChange {
    /// The table.
    pub table: String,
    /// The row.
    pub uuid: Uuid,
    /// What happened.
    pub change: Change,
}

/// The rows of the watched tables.
#[derive(Debug, Clone, Default)]
pub struct Replica {
    schema: DatabaseSchema,
    watch: Watch,
    tables: BTreeMap<String, BTreeMap<Uuid, Row>>,
}

impl Replica {
    /// The rows of a table with their names; nothing for a table that is not watched.
    pub fn rows(&self, table: &str) -> impl Iterator<Item = (Uuid, &Row)> {
        self.tables.get(table).into_iter().flatten().map(|(uuid, row)| (*uuid, row))
    }

    /// One row.
    #[must_use]
    pub fn row(&self, table: &str, uuid: Uuid) -> Option<&Row> {
        self.tables.get(table)?.get(&uuid)
    }

    /// The server's schema, empty before the first connection.
    #[must_use]
    pub fn schema(&self) -> &DatabaseSchema {
        &self.schema
    }

    /// What is watched of the server's schema.
    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Takes the server's schema, and what is watched of it, for the updates that follow. Rows stay.
    pub(crate) fn set_schema(&mut self, schema: DatabaseSchema, watch: Watch) {
        self.schema = schema;
        self.watch = watch;
    }

    /// Applies an update to what is there.
    ///
    /// # Errors
    /// When it does not fit; nothing is changed then.
    pub fn apply(&mut self, updates: TableUpdates) -> Result<Vec<RowChange>, ReplicaError> {
        let mut after = Vec::new();
        for (table, rows) in updates.0 {
            for (uuid, update) in rows {
                let row = self.after(&table, uuid, update)?;
                after.push((table.clone(), uuid, row));
            }
        }
        Ok(after.into_iter().filter_map(|(table, uuid, row)| self.put(table, uuid, row)).collect())
    }

    /// Takes `updates` as the whole contents: rows that are not in it are gone.
    ///
    /// # Errors
    /// When it does not fit; nothing is changed then.
    pub fn replace(&mut self, mut updates: TableUpdates) -> Result<Vec<RowChange>, ReplicaError> {
        for (table, rows) in &self.tables {
            let told = updates.0.entry(table.clone()).or_default();
            for uuid in rows.keys() {
                told.entry(*uuid).or_insert(RowUpdate::Absent);
            }
        }
        self.apply(updates)
    }

    /// What the row will be, `None` for gone.
    fn after(&self, table: &str, uuid: Uuid, update: RowUpdate) -> Result<Option<Row>, ReplicaError> {
        let unwatched = || ReplicaError::Table { table: table.to_owned() };
        let none = BTreeSet::new();
        let columns = match (self.watch.columns(table), &update) {
            (Some(columns), _) => columns,
            // A table that is no longer watched may still go.
            (None, RowUpdate::Absent) => &none,
            (None, _) => return Err(unwatched()),
        };
        match update {
            RowUpdate::Absent => Ok(None),
            RowUpdate::Present { row, complete: true } => Ok(Some(row)),
            RowUpdate::Present { row, complete: false } => {
                let schema = self.schema.tables.get(table).ok_or_else(unwatched)?;
                Ok(Some(schema.complete(&row, columns)))
            }
            RowUpdate::Difference(difference) => {
                let schema = self.schema.tables.get(table).ok_or_else(unwatched)?;
                let old = self.row(table, uuid).ok_or_else(|| ReplicaError::Row { table: table.to_owned(), uuid })?;
                let mut row = old.clone();
                for (column, value) in difference.iter() {
                    let (Some(kind), Some(old)) = (schema.columns.get(column), old.get(column)) else {
                        return Err(ReplicaError::Column { table: table.to_owned(), column: column.to_owned() });
                    };
                    row.set(column, kind.apply_difference(old, value.clone()));
                }
                Ok(Some(row))
            }
        }
    }

    fn put(&mut self, table: String, uuid: Uuid, row: Option<Row>) -> Option<RowChange> {
        let rows = self.tables.entry(table.clone()).or_default();
        let change = match (rows.remove(&uuid), row) {
            (None, None) => return None,
            (Some(before), None) => Change::Deleted { before },
            (None, Some(row)) => {
                rows.insert(uuid, row);
                Change::Inserted
            }
            (Some(old), Some(row)) => {
                let before = old.differing_from(&row);
                let same = before.is_empty() && row.differing_from(&old).is_empty();
                rows.insert(uuid, row);
                if same {
                    return None;
                }
                Change::Modified { before }
            }
        };
        Some(RowChange { table, uuid, change })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Notation;
    use serde_json::json;

    const ROW: &str = "00000000-0000-0000-0000-000000000001";

    fn replica() -> Replica {
        let schema = json!({"name": "db", "tables": {"Port": {"columns": {
            "name": {"type": "string"},
            "tag": {"type": {"key": "integer", "min": 0, "max": 1}},
            "interfaces": {"type": {"key": "uuid", "min": 1, "max": "unlimited"}},
            "external_ids": {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}},
        }}}});
        let schema = DatabaseSchema::decode(&schema).unwrap();
        let watch = Watch::new().table("Port", &["name", "tag", "external_ids", "newer_than_the_server"]);
        let watch = watch.available(&schema).unwrap();
        let mut replica = Replica::default();
        replica.set_schema(schema, watch);
        replica
    }

    fn updates(json: &serde_json::Value) -> TableUpdates {
        TableUpdates::decode(json, Notation::Difference).unwrap()
    }

    #[test]
    fn a_row_comes_changes_and_goes() {
        let mut replica = replica();
        let uuid = Uuid::from_u128(1);
        let changes = replica.apply(updates(&json!({"Port": {ROW: {"insert": {"name": "vm0"}}}}))).unwrap();
        assert_eq!(changes[0].change, Change::Inserted);
        assert_eq!(replica.row("Port", uuid).unwrap().to_string(), "{external_ids: {}, name: \"vm0\", tag: []}");

        let modify = json!({"Port": {ROW: {"modify": {"tag": 7, "external_ids": ["map", [["a", "b"]]]}}}});
        let changes = replica.apply(updates(&modify)).unwrap();
        let Change::Modified { before } = &changes[0].change else { panic!("{changes:?}") };
        assert_eq!(before.to_string(), "{external_ids: {}, tag: []}");
        assert_eq!(
            replica.row("Port", uuid).unwrap().to_string(),
            "{external_ids: {\"a\"=\"b\"}, name: \"vm0\", tag: 7}"
        );

        let changes = replica.apply(updates(&json!({"Port": {ROW: {"delete": null}}}))).unwrap();
        assert!(matches!(&changes[0].change, Change::Deleted { before } if before.get("tag").is_some()));
        assert_eq!(replica.rows("Port").count(), 0);
    }

    /// After a reconnect only what is different is reported.
    #[test]
    fn whole_contents_are_compared() {
        let mut replica = replica();
        let other = "00000000-0000-0000-0000-000000000002";
        let first = json!({"Port": {ROW: {"initial": {"name": "vm0"}}, other: {"initial": {"name": "vm1"}}}});
        assert_eq!(replica.replace(updates(&first)).unwrap().len(), 2);
        assert_eq!(replica.replace(updates(&first)).unwrap(), []);
        let second = json!({"Port": {ROW: {"initial": {"name": "vm0", "tag": 1}}}});
        let changes = replica.replace(updates(&second)).unwrap();
        assert_eq!(changes.len(), 2);
        assert!(matches!(changes[0].change, Change::Modified { .. }));
        assert!(matches!(changes[1].change, Change::Deleted { .. }));
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let mut replica = replica();
        let mixed = json!({"Bridge": {ROW: {"insert": {}}}, "Port": {ROW: {"insert": {"name": "vm0"}}}});
        assert_eq!(replica.apply(updates(&mixed)), Err(ReplicaError::Table { table: "Bridge".to_owned() }));
        let unknown = json!({"Port": {ROW: {"modify": {"tag": 1}}}});
        let error = replica.apply(updates(&unknown)).unwrap_err();
        assert_eq!(error, ReplicaError::Row { table: "Port".to_owned(), uuid: Uuid::from_u128(1) });
        assert_eq!(replica.rows("Port").count(), 0);
    }
}
