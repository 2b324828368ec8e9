//! Typed rows of the `Open_vSwitch` database: the columns that a host agent reads, as Rust values.
//!
//! Each table is a struct with its columns, read from a [`Row`] of the replica by [`Table::from_row`]. Writing goes by
//! plain rows and [`crate::transaction::Transaction`]. Columns that Open vSwitch has and this list has not can be
//! watched and read by name all the same.
//!
//! Source: ovs-vswitchd.conf.db(5).

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;
use uuid::Uuid;

use crate::monitor::Watch;
use crate::replica::Replica;
use crate::row::Row;
use crate::value::{Atom, Value};

/// The name of the database.
pub const DATABASE: &str = "Open_vSwitch";

/// A row that is not what the table's type says.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TableError {
    /// A column that the row lacks: the server has it not, or it is not watched.
    #[error("row {uuid} of table {table} has no column {column}")]
    Missing {
        /// The table.
        table: &'static str,
        /// The row.
        uuid: Uuid,
        /// The column.
        column: &'static str,
    },
    /// A column of another type.
    #[error("row {uuid} of table {table}: column {column} is {value}, wanted {wanted}")]
    Type {
        /// The table.
        table: &'static str,
        /// The row.
        uuid: Uuid,
        /// The column.
        column: &'static str,
        /// Its value.
        value: String,
        /// The type wanted.
        wanted: &'static str,
    },
}

/// A Rust type that a column can be read as.
pub trait Column: Sized {
    /// The type in words, for errors.
    const WANTED: &'static str;

    /// Reads the value, `None` when it is of another type.
    fn read(value: &Value) -> Option<Self>;
}

macro_rules! scalar_column {
    ($($kind:ty: $wanted:literal, $read:expr;)+) => {$(
        impl Column for $kind {
            const WANTED: &'static str = $wanted;
            fn read(value: &Value) -> Option<Self> {
                value.as_atom().and_then($read)
            }
        }
        impl Column for Option<$kind> {
            const WANTED: &'static str = concat!($wanted, " or nothing");
            fn read(value: &Value) -> Option<Self> {
                match value {
                    Value::Set(atoms) if atoms.is_empty() => Some(None),
                    _ => <$kind>::read(value).map(Some),
                }
            }
        }
        impl Column for BTreeSet<$kind> {
            const WANTED: &'static str = concat!("a set of ", $wanted);
            fn read(value: &Value) -> Option<Self> {
                match value {
                    Value::Map(_) => None,
                    _ => value.atoms().map($read).collect(),
                }
            }
        }
    )+};
}

scalar_column! {
    bool: "a boolean", Atom::as_boolean;
    i64: "an integer", Atom::as_integer;
    String: "a string", |atom: &Atom| atom.as_str().map(str::to_owned);
    Uuid: "a UUID", Atom::as_uuid;
}

macro_rules! map_column {
    ($($key:ty, $value:ty: $wanted:literal, $read_key:expr, $read_value:expr;)+) => {$(
        impl Column for BTreeMap<$key, $value> {
            const WANTED: &'static str = $wanted;
            fn read(value: &Value) -> Option<Self> {
                let pair = |(key, value): (&Atom, &Atom)| Some(($read_key(key)?, $read_value(value)?));
                value.as_map()?.iter().map(pair).collect()
            }
        }
    )+};
}

fn text(atom: &Atom) -> Option<String> {
    atom.as_str().map(str::to_owned)
}

map_column! {
    String, String: "a map of strings", text, text;
    String, i64: "a map from strings to integers", text, Atom::as_integer;
    i64, Uuid: "a map from integers to UUIDs", Atom::as_integer, Atom::as_uuid;
}

/// A table with its columns as Rust types.
pub trait Table: Sized {
    /// The table's name.
    const NAME: &'static str;
    /// The columns read.
    const COLUMNS: &'static [&'static str];

    /// Reads a row.
    ///
    /// # Errors
    /// When a column is missing or of another type.
    fn from_row(uuid: Uuid, row: &Row) -> Result<Self, TableError>;

    /// Adds the table, with the columns read, to what is watched.
    #[must_use]
    fn watched_by(watch: Watch) -> Watch {
        watch.table(Self::NAME, Self::COLUMNS)
    }

    /// All rows of the replica.
    ///
    /// # Errors
    /// When one of them cannot be read.
    fn all(replica: &Replica) -> Result<Vec<Self>, TableError> {
        replica.rows(Self::NAME).map(|(uuid, row)| Self::from_row(uuid, row)).collect()
    }

    /// One row of the replica, `None` when it is not there.
    ///
    /// # Errors
    /// When it cannot be read.
    fn get(replica: &Replica, uuid: Uuid) -> Result<Option<Self>, TableError> {
        replica.row(Self::NAME, uuid).map(|row| Self::from_row(uuid, row)).transpose()
    }
}

fn column<T: Column>(table: &'static str, uuid: Uuid, row: &Row, column: &'static str) -> Result<T, TableError> {
    let value = row.get(column).ok_or(TableError::Missing { table, uuid, column })?;
    T::read(value).ok_or_else(|| TableError::Type { table, uuid, column, value: value.to_string(), wanted: T::WANTED })
}

macro_rules! tables {
    ($($(#[doc = $doc:literal])+ $table:ident $name:literal {
        $($(#[doc = $field_doc:literal])+ $field:ident: $kind:ty,)+
    })+) => {$(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $table {
            /// The row's name.
            pub uuid: Uuid,
            $($(#[doc = $field_doc])+ pub $field: $kind,)+
        }

        impl Table for $table {
            const NAME: &'static str = $name;
            const COLUMNS: &'static [&'static str] = &[$(column_name!($field)),+];

            fn from_row(uuid: Uuid, row: &Row) -> Result<Self, TableError> {
                Ok(Self { uuid, $($field: column($name, uuid, row, column_name!($field))?,)+ })
            }
        }
    )+};
}

/// The column behind a field; only Rust's keywords need another name.
macro_rules! column_name {
    (kind) => {
        "type"
    };
    ($field:ident) => {
        stringify!($field)
    };
}

tables! {
    /// The one row that says what the switch is configured to be.
    OpenVswitch "Open_vSwitch" {
        /// The bridges.
        bridges: BTreeSet<Uuid>,
        /// Counted up by clients with each change that they want to wait for.
        next_cfg: i64,
        /// The `next_cfg` that the switch has caught up with.
        cur_cfg: i64,
        /// The version of Open vSwitch, where the script that starts it (ovs-ctl) has written it.
        ovs_version: Option<String>,
        /// The datapath types that this switch offers.
        datapath_types: BTreeSet<String>,
        /// Settings.
        other_config: BTreeMap<String, String>,
        /// Whatever others keep here.
        external_ids: BTreeMap<String, String>,
    }

    /// A bridge.
    Bridge "Bridge" {
        /// The name, also that of the local port.
        name: String,
        /// The ports.
        ports: BTreeSet<Uuid>,
        /// The controllers.
        controller: BTreeSet<Uuid>,
        /// What is exported of all its flows.
        ipfix: Option<Uuid>,
        /// 16 hexadecimal digits, once known.
        datapath_id: Option<String>,
        /// `system`, `netdev` or empty for the default.
        datapath_type: String,
        /// `secure` or `standalone`.
        fail_mode: Option<String>,
        /// The OpenFlow versions allowed, such as `OpenFlow15`; none for the default.
        protocols: BTreeSet<String>,
        /// Settings.
        other_config: BTreeMap<String, String>,
        /// Whatever others keep here.
        external_ids: BTreeMap<String, String>,
    }

    /// A port of a bridge: one interface, or several that are bonded.
    Port "Port" {
        /// The name.
        name: String,
        /// The interfaces.
        interfaces: BTreeSet<Uuid>,
        /// The VLAN of an access port.
        tag: Option<i64>,
        /// The quality-of-service settings.
        qos: Option<Uuid>,
        /// Settings.
        other_config: BTreeMap<String, String>,
        /// Whatever others keep here.
        external_ids: BTreeMap<String, String>,
    }

    /// An interface.
    Interface "Interface" {
        /// The name, that of the network device where there is one.
        name: String,
        /// `system` or empty for a device, `internal`, `vxlan`, `patch`, ….
        kind: String,
        /// Settings of the kind, such as `remote_ip`.
        options: BTreeMap<String, String>,
        /// The OpenFlow port number; -1 when the interface does not work; nothing until the switch has looked at it.
        ofport: Option<i64>,
        /// The port number wanted.
        ofport_request: Option<i64>,
        /// What is wrong with it.
        error: Option<String>,
        /// `up` or `down`, once known.
        link_state: Option<String>,
        /// `up` or `down`, once known.
        admin_state: Option<String>,
        /// The hardware address in use, once known.
        mac_in_use: Option<String>,
        /// The MTU in use, once known.
        mtu: Option<i64>,
        /// The MTU wanted.
        mtu_request: Option<i64>,
        /// Settings of bidirectional forwarding detection.
        bfd: BTreeMap<String, String>,
        /// What that has found out.
        bfd_status: BTreeMap<String, String>,
        /// Settings.
        other_config: BTreeMap<String, String>,
        /// Whatever others keep here, such as `iface-id`.
        external_ids: BTreeMap<String, String>,
    }

    /// An OpenFlow controller of a bridge.
    Controller "Controller" {
        /// Where it is, such as `tcp:127.0.0.1:6653`.
        target: String,
        /// Whether the switch is connected to it.
        is_connected: bool,
        /// `in-band` or `out-of-band`.
        connection_mode: Option<String>,
    }

    /// An OVSDB client that the database server connects to, or an address on which it listens.
    Manager "Manager" {
        /// Where, such as `ptcp:6640:127.0.0.1`.
        target: String,
        /// Whether there is a connection.
        is_connected: bool,
    }

    /// Export of flow records by IPFIX.
    Ipfix "IPFIX" {
        /// The collectors, as `ADDRESS:PORT`.
        targets: BTreeSet<String>,
        /// One packet of so many is looked at; nothing for 400.
        sampling: Option<i64>,
        /// The observation domain.
        obs_domain_id: Option<i64>,
        /// Seconds for which a flow is counted until a record of it is sent; 0 or nothing for one of each packet.
        cache_active_timeout: Option<i64>,
        /// How many flows are counted at once; 0 or nothing for one record of each packet.
        cache_max_flows: Option<i64>,
        /// Settings, such as `enable-tunnel-sampling`.
        other_config: BTreeMap<String, String>,
        /// Whatever others keep here.
        external_ids: BTreeMap<String, String>,
    }

    /// Quality of service on a port.
    Qos "QoS" {
        /// `linux-htb` and others.
        kind: String,
        /// The queues by number.
        queues: BTreeMap<i64, Uuid>,
        /// Settings, such as `max-rate`.
        other_config: BTreeMap<String, String>,
        /// Whatever others keep here.
        external_ids: BTreeMap<String, String>,
    }

    /// A queue of a port with quality of service.
    Queue "Queue" {
        /// Settings, such as `max-rate`.
        other_config: BTreeMap<String, String>,
        /// Whatever others keep here.
        external_ids: BTreeMap<String, String>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_and_wrong_ones_named() {
        let row = Row::new()
            .with("target", "tcp:127.0.0.1:6653")
            .with("is_connected", true)
            .with("connection_mode", Value::empty());
        let controller = Controller::from_row(Uuid::nil(), &row).unwrap();
        assert!(controller.is_connected && controller.connection_mode.is_none());
        let wrong = row.clone().with("is_connected", "yes");
        assert_eq!(
            Controller::from_row(Uuid::nil(), &wrong).unwrap_err().to_string(),
            "row 00000000-0000-0000-0000-000000000000 of table Controller: column is_connected is \"yes\", wanted a boolean"
        );
        let error = Manager::from_row(Uuid::nil(), &Row::new()).unwrap_err();
        assert!(matches!(error, TableError::Missing { column: "target", .. }));
    }

    #[test]
    fn keywords_keep_their_column_names() {
        assert!(Interface::COLUMNS.contains(&"type") && !Interface::COLUMNS.contains(&"kind"));
    }

    #[test]
    fn sets_and_maps_are_read() {
        assert_eq!(BTreeSet::<i64>::read(&Value::from(1)).unwrap().len(), 1);
        assert_eq!(BTreeSet::<i64>::read(&Value::set([1, 2])).unwrap().len(), 2);
        assert_eq!(BTreeSet::<i64>::read(&Value::from("x")), None);
        assert_eq!(BTreeMap::<String, i64>::read(&Value::map([("a", 1)])).unwrap()["a"], 1);
        assert_eq!(Option::<i64>::read(&Value::set([1, 2])), None);
    }
}
