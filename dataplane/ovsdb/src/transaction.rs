//! Transactions: operations that all happen or do not (RFC 7047 §4.1.3 and §5.2).
//!
//! [`Transaction`] collects operations; each method that adds one returns its number, under which [`Outcome`] has its
//! result. [`TransactionError`] names the kind of failure, the operation that failed, and the server's own words.

use std::fmt;

use serde_json::{Value as Json, json};
use thiserror::Error;
use uuid::Uuid;

use crate::row::{Row, RowError};
use crate::value::{Atom, Name, Value, ValueError};

/// How a condition compares (RFC 7047 §5.1, `<function>`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `>=`
    GreaterOrEqual,
    /// `>`
    Greater,
    /// The column has all of the elements.
    Includes,
    /// The column has none of the elements.
    Excludes,
}

impl Comparison {
    fn symbol(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::GreaterOrEqual => ">=",
            Self::Greater => ">",
            Self::Includes => "includes",
            Self::Excludes => "excludes",
        }
    }
}

/// Which rows an operation is about: those for which all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Where(Vec<(String, Comparison, Value)>);

impl Where {
    /// Every row of the table.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// The row with this name.
    #[must_use]
    pub fn row(uuid: Uuid) -> Self {
        Self::all().and("_uuid", Comparison::Equal, uuid)
    }

    /// The rows with this value in a column.
    #[must_use]
    pub fn equal(column: &str, value: impl Into<Value>) -> Self {
        Self::all().and(column, Comparison::Equal, value)
    }

    /// One more condition.
    #[must_use]
    pub fn and(mut self, column: &str, comparison: Comparison, value: impl Into<Value>) -> Self {
        self.0.push((column.to_owned(), comparison, value.into()));
        self
    }

    fn encode(&self) -> Json {
        self.0.iter().map(|(column, comparison, value)| json!([column, comparison.symbol(), value.encode()])).collect()
    }
}

/// How a mutation changes a column (RFC 7047 §5.1, `<mutator>`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutator {
    /// `+=`
    Add,
    /// `-=`
    Subtract,
    /// `*=`
    Multiply,
    /// `/=`
    Divide,
    /// `%=`
    Remainder,
    /// Elements come; a key of a map that is there keeps its value.
    Insert,
    /// Elements or pairs go; of a map also the pairs with the keys of a set.
    Delete,
}

impl Mutator {
    fn symbol(self) -> &'static str {
        match self {
            Self::Add => "+=",
            Self::Subtract => "-=",
            Self::Multiply => "*=",
            Self::Divide => "/=",
            Self::Remainder => "%=",
            Self::Insert => "insert",
            Self::Delete => "delete",
        }
    }
}

/// The row that an operation of the same transaction inserts, to refer to it before it has a UUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inserted {
    operation: usize,
    name: Name,
}

impl Inserted {
    /// The number of the operation.
    #[must_use]
    pub fn operation(&self) -> usize {
        self.operation
    }
}

impl From<&Inserted> for Atom {
    fn from(inserted: &Inserted) -> Self {
        Self::NamedUuid(inserted.name.clone())
    }
}

/// Operations on one database that happen together or not at all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transaction {
    operations: Vec<Json>,
}

impl Transaction {
    /// A transaction without operations.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it has no operation.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Inserts a row; columns that it lacks get their default.
    pub fn insert(&mut self, table: &str, row: &Row) -> Inserted {
        let operation = self.operations.len();
        let name = Name::of_operation(operation);
        self.push(json!({"op": "insert", "table": table, "row": row.encode(), "uuid-name": name.as_str()}));
        Inserted { operation, name }
    }

    /// Reads rows; the result has `columns` of each.
    pub fn select(&mut self, table: &str, rows: &Where, columns: &[&str]) -> usize {
        self.push(json!({"op": "select", "table": table, "where": rows.encode(), "columns": columns}))
    }

    /// Sets columns; the result is the number of rows.
    pub fn update(&mut self, table: &str, rows: &Where, row: &Row) -> usize {
        self.push(json!({"op": "update", "table": table, "where": rows.encode(), "row": row.encode()}))
    }

    /// Changes columns relative to what they are; the result is the number of rows.
    pub fn mutate(&mut self, table: &str, rows: &Where, mutations: &[(&str, Mutator, Value)]) -> usize {
        let mutations: Vec<Json> = mutations
            .iter()
            .map(|(column, mutator, value)| json!([column, mutator.symbol(), value.encode()]))
            .collect();
        self.push(json!({"op": "mutate", "table": table, "where": rows.encode(), "mutations": mutations}))
    }

    /// Deletes rows; the result is their number.
    pub fn delete(&mut self, table: &str, rows: &Where) -> usize {
        self.push(json!({"op": "delete", "table": table, "where": rows.encode()}))
    }

    /// Goes on only if `columns` of the rows are exactly `expected`; otherwise the transaction fails at once with
    /// [`ErrorKind::TimedOut`]. This is how a change is made to depend on what was read.
    pub fn require(&mut self, table: &str, rows: &Where, columns: &[&str], expected: &[Row]) -> usize {
        self.wait(table, rows, columns, Until::Equal(expected), 0)
    }

    /// Waits up to `timeout_ms` for `columns` of the rows to be, or no longer be, what `until` says.
    pub fn wait(&mut self, table: &str, rows: &Where, columns: &[&str], until: Until<'_>, timeout_ms: u64) -> usize {
        let (word, expected) = match until {
            Until::Equal(expected) => ("==", expected),
            Until::Different(expected) => ("!=", expected),
        };
        let expected: Vec<Json> = expected.iter().map(Row::encode).collect();
        self.push(json!({
            "op": "wait", "timeout": timeout_ms, "table": table, "where": rows.encode(), "columns": columns,
            "until": word, "rows": expected,
        }))
    }

    /// Fails the transaction with [`ErrorKind::NotOwner`] unless this client holds the lock.
    pub fn assert_lock(&mut self, lock: &Name) -> usize {
        self.push(json!({"op": "assert", "lock": lock.as_str()}))
    }

    /// Notes a reason in the database's log.
    pub fn comment(&mut self, text: &str) -> usize {
        self.push(json!({"op": "comment", "comment": text}))
    }

    /// Fails the transaction with [`ErrorKind::Aborted`], after its other operations have been checked.
    pub fn abort(&mut self) -> usize {
        self.push(json!({"op": "abort"}))
    }

    fn push(&mut self, operation: Json) -> usize {
        self.operations.push(operation);
        self.operations.len() - 1
    }

    /// The parameters of `transact`.
    #[must_use]
    pub fn encode(&self, database: &str) -> Vec<Json> {
        std::iter::once(Json::from(database)).chain(self.operations.iter().cloned()).collect()
    }
}

/// What [`Transaction::wait`] waits for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Until<'a> {
    /// The rows are these, in any order.
    Equal(&'a [Row]),
    /// The rows are others.
    Different(&'a [Row]),
}

/// The result of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperationResult {
    /// The name of the inserted row.
    Inserted(Uuid),
    /// The rows read.
    Rows(Vec<Row>),
    /// How many rows were changed.
    Count(u64),
    /// Nothing to tell.
    Done,
}

/// The results of a transaction that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    results: Vec<OperationResult>,
}

impl Outcome {
    /// The results in the order of the operations.
    #[must_use]
    pub fn results(&self) -> &[OperationResult] {
        &self.results
    }

    /// The UUID that an inserted row got.
    #[must_use]
    pub fn uuid_of(&self, inserted: &Inserted) -> Option<Uuid> {
        match self.results.get(inserted.operation) {
            Some(OperationResult::Inserted(uuid)) => Some(*uuid),
            _ => None,
        }
    }

    /// The rows that operation number `operation` read.
    #[must_use]
    pub fn rows(&self, operation: usize) -> Option<&[Row]> {
        match self.results.get(operation) {
            Some(OperationResult::Rows(rows)) => Some(rows),
            _ => None,
        }
    }

    /// How many rows operation number `operation` changed.
    #[must_use]
    pub fn count(&self, operation: usize) -> Option<u64> {
        match self.results.get(operation) {
            Some(OperationResult::Count(count)) => Some(*count),
            _ => None,
        }
    }
}

/// The errors that RFC 7047 names, and those that ovsdb-server adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErrorKind {
    /// A reference to a row that is not there, or a row still referred to.
    ReferentialIntegrityViolation,
    /// A value, an index or a number of rows that the schema forbids.
    ConstraintViolation,
    /// Two rows of one transaction with the same name.
    DuplicateUuidName,
    /// Arithmetic outside of its domain, such as division by zero.
    DomainError,
    /// Arithmetic with a result that does not fit.
    RangeError,
    /// A wait whose condition was not met in time.
    TimedOut,
    /// The client does not hold the lock.
    NotOwner,
    /// An abort operation.
    Aborted,
    /// The server ran out of something.
    ResourcesExhausted,
    /// The server could not write.
    IoError,
    /// An operation that the server does not support.
    NotSupported,
    /// An operation or parameter that the server cannot read, an unknown table or column.
    SyntaxError,
    /// A database that the server does not have.
    UnknownDatabase,
    /// Any other, in the server's word.
    Other(String),
}

const ERROR_KINDS: [(&str, ErrorKind); 13] = [
    ("referential integrity violation", ErrorKind::ReferentialIntegrityViolation),
    ("constraint violation", ErrorKind::ConstraintViolation),
    ("duplicate uuid-name", ErrorKind::DuplicateUuidName),
    ("domain error", ErrorKind::DomainError),
    ("range error", ErrorKind::RangeError),
    ("timed out", ErrorKind::TimedOut),
    ("not owner", ErrorKind::NotOwner),
    ("aborted", ErrorKind::Aborted),
    ("resources exhausted", ErrorKind::ResourcesExhausted),
    ("I/O error", ErrorKind::IoError),
    ("not supported", ErrorKind::NotSupported),
    ("syntax error", ErrorKind::SyntaxError),
    ("unknown database", ErrorKind::UnknownDatabase),
];

impl ErrorKind {
    fn decode(word: &str) -> Self {
        let known = ERROR_KINDS.iter().find(|(known, _)| *known == word);
        known.map_or_else(|| Self::Other(word.to_owned()), |(_, kind)| kind.clone())
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Other(word) = self {
            return formatter.write_str(word);
        }
        let known = ERROR_KINDS.iter().find(|(_, kind)| kind == self);
        formatter.write_str(known.map_or("unknown", |(word, _)| word))
    }
}

/// Why a transaction did not happen, or is not known to have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TransactionError {
    /// The server refused it; nothing of it happened.
    #[error("{kind}{}: {details}", operation.map(|number| format!(" in operation {number}")).unwrap_or_default())]
    Refused {
        /// The kind of failure.
        kind: ErrorKind,
        /// The server's explanation.
        details: String,
        /// The number of the operation that failed; `None` when the whole failed at commit.
        operation: Option<usize>,
    },
    /// The reply cannot be read; whether it happened is not known.
    #[error("the reply to a transaction has {0}")]
    Reply(&'static str),
    /// The reply has a value that cannot be read; whether it happened is not known.
    #[error("the reply to a transaction has a wrong value")]
    Value(#[from] ValueError),
    /// The reply has a row that cannot be read; whether it happened is not known.
    #[error("the reply to a transaction has a wrong row")]
    Row(#[from] RowError),
    /// The connection went before the reply; whether it happened is not known.
    #[error("the connection went before the reply to a transaction")]
    Disconnected,
    /// There is no connection; it was not sent.
    #[error("not connected to the database")]
    NotConnected,
    /// More transactions than [`crate::session::TRANSACTIONS_MAX`] are under way; it was not sent.
    #[error("too many transactions are under way")]
    Busy,
}

fn refusal(json: &Json, operation: Option<usize>) -> Option<TransactionError> {
    let word = json.get("error").and_then(Json::as_str)?;
    let details = json.get("details").and_then(Json::as_str).unwrap_or("no details").to_owned();
    Some(TransactionError::Refused { kind: ErrorKind::decode(word), details, operation })
}

/// Reads the reply to `transact` with `operations` operations.
///
/// # Errors
/// When the server refused the transaction or the reply is none.
pub fn decode_reply(reply: &Result<Json, Json>, operations: usize) -> Result<Outcome, TransactionError> {
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => {
            let error = refusal(error, None).or_else(|| refusal(&json!({"error": error}), None));
            return Err(error.unwrap_or(TransactionError::Reply("an error that is neither object nor string")));
        }
    };
    let elements = reply.as_array().ok_or(TransactionError::Reply("no array"))?;
    for (number, element) in elements.iter().enumerate() {
        // An element after those of the operations is about the commit (RFC 7047 §4.1.3).
        if let Some(refused) = refusal(element, (number < operations).then_some(number)) {
            return Err(refused);
        }
    }
    if elements.len() < operations {
        return Err(TransactionError::Reply("fewer results than operations"));
    }
    let results = elements.iter().take(operations).map(decode_result).collect::<Result<_, _>>()?;
    Ok(Outcome { results })
}

fn decode_result(json: &Json) -> Result<OperationResult, TransactionError> {
    if let Some(uuid) = json.get("uuid") {
        let uuid = Atom::decode(uuid)?.as_uuid().ok_or(TransactionError::Reply("a uuid that is none"))?;
        return Ok(OperationResult::Inserted(uuid));
    }
    if let Some(rows) = json.get("rows") {
        let rows = rows.as_array().ok_or(TransactionError::Reply("rows that are no array"))?;
        return Ok(OperationResult::Rows(rows.iter().map(Row::decode).collect::<Result<_, _>>()?));
    }
    if let Some(count) = json.get("count") {
        return Ok(OperationResult::Count(count.as_u64().ok_or(TransactionError::Reply("a count that is none"))?));
    }
    match json {
        Json::Object(members) if members.is_empty() => Ok(OperationResult::Done),
        _ => Err(TransactionError::Reply("a result of no known kind")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::tests::any_json;
    use proptest::prelude::*;

    #[test]
    fn operations_have_the_notation_of_the_rfc() {
        let mut transaction = Transaction::new();
        let interface = transaction.insert("Interface", &Row::new().with("name", "vm0"));
        let port = transaction.insert("Port", &Row::new().with("interfaces", &interface));
        let mutation = ("ports", Mutator::Insert, Value::set([&port]));
        transaction.mutate("Bridge", &Where::equal("name", "br-int"), &[mutation]);
        transaction.require("Bridge", &Where::row(Uuid::nil()), &["name"], &[Row::new().with("name", "br-int")]);
        let expected = json!(["db",
            {"op": "insert", "table": "Interface", "row": {"name": "vm0"}, "uuid-name": "row0"},
            {"op": "insert", "table": "Port", "row": {"interfaces": ["named-uuid", "row0"]}, "uuid-name": "row1"},
            {"op": "mutate", "table": "Bridge", "where": [["name", "==", "br-int"]],
             "mutations": [["ports", "insert", ["named-uuid", "row1"]]]},
            {"op": "wait", "timeout": 0, "table": "Bridge", "columns": ["name"], "until": "==",
             "where": [["_uuid", "==", ["uuid", "00000000-0000-0000-0000-000000000000"]]],
             "rows": [{"name": "br-int"}]},
        ]);
        assert_eq!(Json::from(transaction.encode("db")), expected);
    }

    #[test]
    fn replies_are_read_by_operation() {
        let uuid = Uuid::from_u128(7);
        let reply = json!([{"uuid": ["uuid", uuid.to_string()]}, {"count": 2}, {"rows": [{"a": 1}]}, {}]);
        let outcome = decode_reply(&Ok(reply), 4).unwrap();
        assert_eq!(outcome.uuid_of(&Inserted { operation: 0, name: Name::of_operation(0) }), Some(uuid));
        assert_eq!(outcome.count(1), Some(2));
        assert_eq!(outcome.rows(2), Some([Row::new().with("a", 1)].as_slice()));
        assert_eq!(outcome.results()[3], OperationResult::Done);
    }

    #[test]
    fn refusals_name_kind_operation_and_details() {
        let operation = json!([{}, {"error": "timed out", "details": "\"where\" clause"}, null]);
        let error = decode_reply(&Ok(operation), 3).unwrap_err();
        assert_eq!(error.to_string(), "timed out in operation 1: \"where\" clause");
        let commit = json!([{}, {"error": "constraint violation", "details": "two rows"}]);
        let error = decode_reply(&Ok(commit), 1).unwrap_err();
        assert_eq!(error.to_string(), "constraint violation: two rows");
        let whole = decode_reply(&Err(json!({"error": "odd", "details": "x"})), 1).unwrap_err();
        assert_eq!(whole.to_string(), "odd: x");
        assert_eq!(decode_reply(&Ok(json!([])), 1), Err(TransactionError::Reply("fewer results than operations")));
    }

    proptest! {
        #[test]
        fn any_json_is_a_reply_or_an_error(json in any_json(), operations in 0_usize..4) {
            let _either = decode_reply(&Ok(json.clone()), operations);
            let _either = decode_reply(&Err(json), operations);
        }
    }
}
