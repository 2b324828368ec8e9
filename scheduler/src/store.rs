//! The intent on disk: redb, one transaction for each change.
//!
//! A change is written as the difference between the intent before and after it, and is durable when [`Store::save`] returns. What is read back is
//! what was last saved, whenever the process ended. A store of another schema version is refused, never guessed at.
//!
//! After a write that failed (a full disk) the database takes no further one until it is opened anew, which the next change does; whatever the
//! failed write left there is overwritten by that change.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::intent::{Intent, Table};

/// The version of the tables and of what is in them.
const SCHEMA: &str = "1";
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
const SCHEMA_KEY: &str = "schema";
const COUNTERS_KEY: &str = "counters";

/// The store can not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The file can not be opened, or another scheduler has it open.
    #[error("open the store {path:?}")]
    Open {
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    /// Reading or writing failed.
    #[error("{action} the store")]
    Access {
        action: &'static str,
        #[source]
        source: Box<redb::Error>,
    },
    /// The store was made by another version of the scheduler.
    #[error("open the store {path:?}: its schema is {found:?}, this scheduler knows {SCHEMA:?}")]
    Schema { path: PathBuf, found: String },
    /// A row is not what it should be.
    #[error("understand row {key:?} of table {table:?} in the store")]
    Row {
        table: &'static str,
        key: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// Whether there was no space left on the disk.
    pub(crate) fn is_full(&self) -> bool {
        let (Self::Open { source, .. } | Self::Access { source, .. }) = self else { return false };
        matches!(&**source, redb::Error::Io(io) if matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    }
}

fn reading<E: Into<redb::Error>>(error: E) -> StoreError {
    StoreError::Access { action: "read", source: Box::new(error.into()) }
}

fn writing<E: Into<redb::Error>>(error: E) -> StoreError {
    StoreError::Access { action: "write to", source: Box::new(error.into()) }
}

/// The open store.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// None after a write that failed, until the next one.
    database: Option<Database>,
}

/// Runs `$each!(table name, field)` for every table of the intent.
macro_rules! each_table {
    ($each:ident) => {
        $each!("hosts", hosts);
        $each!("networks", networks);
        $each!("subnets", subnets);
        $each!("ports", ports);
        $each!("groups", groups);
        $each!("address_groups", address_groups);
        $each!("firewall_policies", firewall_policies);
        $each!("routers", routers);
        $each!("balancers", balancers);
        $each!("images", images);
        $each!("volumes", volumes);
        $each!("flavors", flavors);
        $each!("machines", machines);
        $each!("assigned", assigned);
    };
}

impl Store {
    /// Opens or makes the store and reads the intent in it; none when it is new.
    pub(crate) fn open(path: &Path) -> Result<(Self, Option<Intent>), StoreError> {
        let (database, intent) = read(path)?;
        Ok((Self { path: path.to_owned(), database: Some(database) }, intent))
    }

    /// Makes what differs between `before` and `after` durable, all or nothing.
    pub(crate) fn save(&mut self, before: &Intent, after: &Intent) -> Result<(), StoreError> {
        let (database, found) = match self.database.take() {
            Some(database) => (database, None),
            None => {
                let (database, found) = read(&self.path)?;
                (database, Some(found.unwrap_or_default()))
            }
        };
        write(&database, found.as_ref().unwrap_or(before), after)?;
        self.database = Some(database);
        Ok(())
    }
}

/// Opens or makes the database and reads the intent in it; none when it is new.
fn read(path: &Path) -> Result<(Database, Option<Intent>), StoreError> {
    let database = Database::create(path)
        .map_err(|error| StoreError::Open { path: path.to_owned(), source: Box::new(error.into()) })?;
    let intent = match schema(&database)?.as_deref() {
        None => None,
        Some(SCHEMA) => Some(load(&database)?),
        Some(other) => return Err(StoreError::Schema { path: path.to_owned(), found: other.to_owned() }),
    };
    Ok((database, intent))
}

fn schema(database: &Database) -> Result<Option<String>, StoreError> {
    let transaction = database.begin_read().map_err(reading)?;
    let table = match transaction.open_table(META) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(reading(error)),
    };
    let row = table.get(SCHEMA_KEY).map_err(reading)?;
    Ok(row.map(|row| String::from_utf8_lossy(row.value()).into_owned()))
}

fn load(database: &Database) -> Result<Intent, StoreError> {
    let transaction = database.begin_read().map_err(reading)?;
    let mut intent = Intent::default();
    let meta = transaction.open_table(META).map_err(reading)?;
    if let Some(row) = meta.get(COUNTERS_KEY).map_err(reading)? {
        intent.counters = decode("meta", COUNTERS_KEY, row.value())?;
    }
    macro_rules! load {
        ($name:literal, $field:ident) => {
            intent.$field = load_table(&transaction, $name)?;
        };
    }
    each_table!(load);
    Ok(intent)
}

/// Makes what differs between `before` and `after` durable, all or nothing.
fn write(database: &Database, before: &Intent, after: &Intent) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(writing)?;
    {
        let mut meta = transaction.open_table(META).map_err(writing)?;
        meta.insert(SCHEMA_KEY, SCHEMA.as_bytes()).map_err(writing)?;
        let counters = encode("meta", COUNTERS_KEY, &after.counters)?;
        meta.insert(COUNTERS_KEY, counters.as_slice()).map_err(writing)?;
    }
    macro_rules! save {
        ($name:literal, $field:ident) => {
            save_table(&transaction, $name, &before.$field, &after.$field)?;
        };
    }
    each_table!(save);
    transaction.commit().map_err(writing)
}

fn decode<T: DeserializeOwned>(table: &'static str, key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Row {
        table,
        key: key.to_owned(),
        source: Box::new(source),
    })
}

fn encode<T: Serialize>(table: &'static str, key: &str, value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|source| StoreError::Row { table, key: key.to_owned(), source: Box::new(source) })
}

fn load_table<I, T>(transaction: &redb::ReadTransaction, name: &'static str) -> Result<Table<I, T>, StoreError>
where
    I: FromStr<Err = model::id::IdError> + Ord,
    T: DeserializeOwned,
{
    let mut table = BTreeMap::new();
    let rows = match transaction.open_table(TableDefinition::<&str, &[u8]>::new(name)) {
        Ok(rows) => rows,
        // A store from before there were objects of this kind.
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(table),
        Err(error) => return Err(reading(error)),
    };
    for row in rows.iter().map_err(reading)? {
        let (key, value) = row.map_err(reading)?;
        let id = key.value().parse().map_err(|source: model::id::IdError| StoreError::Row {
            table: name,
            key: key.value().to_owned(),
            source: Box::new(source),
        })?;
        table.insert(id, Arc::new(decode(name, key.value(), value.value())?));
    }
    Ok(table)
}

fn save_table<I: Display + Ord, T: Serialize + PartialEq>(
    transaction: &WriteTransaction,
    name: &'static str,
    before: &Table<I, T>,
    after: &Table<I, T>,
) -> Result<(), StoreError> {
    let mut rows = transaction.open_table(TableDefinition::<&str, &[u8]>::new(name)).map_err(writing)?;
    for (id, object) in after {
        let same = before.get(id).is_some_and(|old| Arc::ptr_eq(old, object) || old == object);
        if !same {
            let key = id.to_string();
            let value = encode(name, &key, object.as_ref())?;
            rows.insert(key.as_str(), value.as_slice()).map_err(writing)?;
        }
    }
    for id in before.keys().filter(|id| !after.contains_key(*id)) {
        rows.remove(id.to_string().as_str()).map_err(writing)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Defaults;
    use crate::intent::Context;

    #[test]
    fn what_is_saved_is_read_back_and_a_foreign_schema_is_refused() {
        let dir = std::env::temp_dir().join(format!("basalt-store-{}-{}", std::process::id(), line!()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("store.redb");
        let mut draw = uuid::Uuid::new_v4;
        let mut context = Context { draw: &mut draw, defaults: &Defaults::default() };
        let intent = Intent::found(&mut context).unwrap();
        {
            let (mut store, found) = Store::open(&path).unwrap();
            assert_eq!(found, None);
            store.save(&Intent::default(), &intent).unwrap();
        }
        {
            let (mut store, found) = Store::open(&path).unwrap();
            assert_eq!(found.as_ref(), Some(&intent));
            let mut less = intent.clone();
            less.delete_flavor("tiny").unwrap();
            store.save(&intent, &less).unwrap();
            let database = store.database.as_ref().unwrap();
            assert_eq!(load(database).unwrap(), less);
            let transaction = database.begin_write().unwrap();
            transaction.delete_table(TableDefinition::<&str, &[u8]>::new("address_groups")).unwrap();
            transaction.commit().unwrap();
            assert_eq!(load(database).unwrap(), less, "a store from before there were address groups");
            let transaction = database.begin_write().unwrap();
            transaction.open_table(META).unwrap().insert(SCHEMA_KEY, b"99".as_slice()).unwrap();
            transaction.commit().unwrap();
        }
        assert!(matches!(Store::open(&path), Err(StoreError::Schema { .. })));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
