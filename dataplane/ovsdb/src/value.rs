//! The values of OVSDB columns: atoms, sets and maps, and their JSON notation (RFC 7047 §5.1).
//!
//! The notation does not tell a set of one element from that element alone, so [`Value`] has one form for both:
//! decoding never yields a [`Value::Set`] of one element, and neither do the constructors. Two values that the server
//! holds equal are therefore equal here.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Value as Json, json};
use thiserror::Error;
use uuid::Uuid;

/// JSON that is no value in the sense of RFC 7047.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ValueError {
    /// A number that fits neither 64-bit integers nor finite reals.
    #[error("number {0} is neither a 64-bit integer nor a finite real")]
    Number(String),
    /// A second element of `["uuid", …]` that is no UUID.
    #[error("{0:?} is not a UUID")]
    Uuid(String),
    /// A second element of `["named-uuid", …]` that is no identifier.
    #[error("{0:?} is not an identifier")]
    Name(String),
    /// Some other JSON in the place of an atom.
    #[error("{0} is not an atom")]
    Atom(String),
    /// A `["set", …]` or `["map", …]` without the array it needs, or with a malformed pair.
    #[error("{0} is not a set or map")]
    Collection(String),
}

/// How much of a wrong JSON value goes into an error.
const EXCERPT_CHARS_MAX: usize = 80;

fn excerpt(json: &Json) -> String {
    let text = json.to_string();
    match text.char_indices().nth(EXCERPT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// An `<id>` of RFC 7047 §3.1: a letter or underscore, then letters, digits and underscores.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// Checks `text`.
    ///
    /// # Errors
    /// When it is no identifier.
    pub fn new(text: impl Into<String>) -> Result<Self, ValueError> {
        let text = text.into();
        let starts = text.chars().next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_');
        if starts && text.chars().all(|char| char.is_ascii_alphanumeric() || char == '_') {
            return Ok(Self(text));
        }
        Err(ValueError::Name(text))
    }

    /// The name of the row that operation number `operation` of a transaction inserts.
    pub(crate) fn of_operation(operation: usize) -> Self {
        Self(format!("row{operation}"))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// One scalar.
#[derive(Debug, Clone)]
pub enum Atom {
    /// A 64-bit integer.
    Integer(i64),
    /// A finite real. A server may write a real without fraction as an integer; [`Atom::as_real`] takes both.
    Real(f64),
    /// A truth value.
    Boolean(bool),
    /// A string.
    String(String),
    /// The name of a row.
    Uuid(Uuid),
    /// A row inserted by the same transaction, by the name given there.
    NamedUuid(Name),
}

impl Atom {
    /// Decodes one atom.
    ///
    /// # Errors
    /// When `json` is no atom.
    pub fn decode(json: &Json) -> Result<Self, ValueError> {
        match json {
            Json::Bool(value) => Ok(Self::Boolean(*value)),
            Json::String(value) => Ok(Self::String(value.clone())),
            Json::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => Ok(Self::Integer(integer)),
                (None, Some(real)) if number.is_f64() && real.is_finite() => Ok(Self::Real(real)),
                _ => Err(ValueError::Number(number.to_string())),
            },
            Json::Array(pair) => match pair.as_slice() {
                [Json::String(tag), Json::String(text)] if tag == "uuid" => {
                    Uuid::try_parse(text).map(Self::Uuid).map_err(|_| ValueError::Uuid(text.clone()))
                }
                [Json::String(tag), Json::String(text)] if tag == "named-uuid" => {
                    Name::new(text.as_str()).map(Self::NamedUuid)
                }
                _ => Err(ValueError::Atom(excerpt(json))),
            },
            Json::Null | Json::Object(_) => Err(ValueError::Atom(excerpt(json))),
        }
    }

    /// The JSON notation.
    #[must_use]
    pub fn encode(&self) -> Json {
        match self {
            Self::Integer(value) => json!(value),
            Self::Real(value) => json!(value),
            Self::Boolean(value) => json!(value),
            Self::String(value) => json!(value),
            Self::Uuid(value) => json!(["uuid", value.to_string()]),
            Self::NamedUuid(name) => json!(["named-uuid", name.as_str()]),
        }
    }

    /// The integer, if it is one.
    #[must_use]
    pub fn as_integer(&self) -> Option<i64> {
        if let Self::Integer(value) = self { Some(*value) } else { None }
    }

    /// The real, or the integer as a real where it is small enough to be exact.
    #[must_use]
    pub fn as_real(&self) -> Option<f64> {
        match self {
            Self::Real(value) => Some(*value),
            Self::Integer(value) => i32::try_from(*value).ok().map(f64::from),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    #[must_use]
    pub fn as_boolean(&self) -> Option<bool> {
        if let Self::Boolean(value) = self { Some(*value) } else { None }
    }

    /// The string, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(value) = self { Some(value) } else { None }
    }

    /// The UUID, if it is one.
    #[must_use]
    pub fn as_uuid(&self) -> Option<Uuid> {
        if let Self::Uuid(value) = self { Some(*value) } else { None }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Integer(_) => 0,
            Self::Real(_) => 1,
            Self::Boolean(_) => 2,
            Self::String(_) => 3,
            Self::Uuid(_) => 4,
            Self::NamedUuid(_) => 5,
        }
    }
}

impl Ord for Atom {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Integer(left), Self::Integer(right)) => left.cmp(right),
            (Self::Real(left), Self::Real(right)) => left.total_cmp(right),
            (Self::Boolean(left), Self::Boolean(right)) => left.cmp(right),
            (Self::String(left), Self::String(right)) => left.cmp(right),
            (Self::Uuid(left), Self::Uuid(right)) => left.cmp(right),
            (Self::NamedUuid(left), Self::NamedUuid(right)) => left.cmp(right),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Atom {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Atom {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Atom {}

impl fmt::Display for Atom {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => value.fmt(formatter),
            Self::Real(value) => value.fmt(formatter),
            Self::Boolean(value) => value.fmt(formatter),
            Self::String(value) => write!(formatter, "{value:?}"),
            Self::Uuid(value) => value.fmt(formatter),
            Self::NamedUuid(name) => write!(formatter, "@{name}"),
        }
    }
}

macro_rules! atom_from {
    ($($source:ty => $variant:ident),+ $(,)?) => {$(
        impl From<$source> for Atom {
            fn from(value: $source) -> Self {
                Self::$variant(value.into())
            }
        }
    )+};
}

atom_from! {
    i64 => Integer, i32 => Integer, u32 => Integer, u16 => Integer, u8 => Integer,
    bool => Boolean, String => String, &str => String, Uuid => Uuid, Name => NamedUuid,
}

/// The value of one column.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// One atom, which is also a set of one element.
    Atom(Atom),
    /// A set of no or several elements.
    Set(BTreeSet<Atom>),
    /// A map.
    Map(BTreeMap<Atom, Atom>),
}

impl Value {
    /// The set of `atoms`, in the one form there is for it.
    #[must_use]
    pub fn set(atoms: impl IntoIterator<Item = impl Into<Atom>>) -> Self {
        let mut atoms: BTreeSet<Atom> = atoms.into_iter().map(Into::into).collect();
        match atoms.pop_first() {
            Some(only) if atoms.is_empty() => Self::Atom(only),
            Some(first) => {
                atoms.insert(first);
                Self::Set(atoms)
            }
            None => Self::Set(atoms),
        }
    }

    /// The map of `pairs`; of equal keys the last counts.
    #[must_use]
    pub fn map(pairs: impl IntoIterator<Item = (impl Into<Atom>, impl Into<Atom>)>) -> Self {
        Self::Map(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }

    /// The value of an optional column that is not set.
    #[must_use]
    pub fn empty() -> Self {
        Self::Set(BTreeSet::new())
    }

    /// Decodes a value.
    ///
    /// # Errors
    /// When `json` is none.
    pub fn decode(json: &Json) -> Result<Self, ValueError> {
        let Json::Array(pair) = json else { return Atom::decode(json).map(Self::Atom) };
        match pair.as_slice() {
            [Json::String(tag), Json::Array(elements)] if tag == "set" => {
                elements.iter().map(Atom::decode).collect::<Result<Vec<_>, _>>().map(Self::set)
            }
            [Json::String(tag), Json::Array(pairs)] if tag == "map" => {
                pairs.iter().map(decode_pair).collect::<Result<_, _>>().map(Self::Map)
            }
            [Json::String(tag), ..] if tag == "set" || tag == "map" => Err(ValueError::Collection(excerpt(json))),
            _ => Atom::decode(json).map(Self::Atom),
        }
    }

    /// The JSON notation.
    #[must_use]
    pub fn encode(&self) -> Json {
        match self {
            Self::Atom(atom) => atom.encode(),
            Self::Set(atoms) => json!(["set", atoms.iter().map(Atom::encode).collect::<Vec<_>>()]),
            Self::Map(pairs) => {
                let pairs: Vec<Json> = pairs.iter().map(|(key, value)| json!([key.encode(), value.encode()])).collect();
                json!(["map", pairs])
            }
        }
    }

    /// The elements of a set, or the one atom; nothing for a map.
    pub fn atoms(&self) -> impl Iterator<Item = &Atom> {
        let (one, many) = match self {
            Self::Atom(atom) => (Some(atom), None),
            Self::Set(atoms) => (None, Some(atoms)),
            Self::Map(_) => (None, None),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// The one atom there is, or `None` for an empty set, several elements or a map.
    #[must_use]
    pub fn as_atom(&self) -> Option<&Atom> {
        if let Self::Atom(atom) = self { Some(atom) } else { None }
    }

    /// The pairs of a map, or `None` for anything but a map.
    #[must_use]
    pub fn as_map(&self) -> Option<&BTreeMap<Atom, Atom>> {
        if let Self::Map(pairs) = self { Some(pairs) } else { None }
    }
}

fn decode_pair(json: &Json) -> Result<(Atom, Atom), ValueError> {
    match json.as_array().map(Vec::as_slice) {
        Some([key, value]) => Ok((Atom::decode(key)?, Atom::decode(value)?)),
        _ => Err(ValueError::Collection(excerpt(json))),
    }
}

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Atom(atom) => atom.fmt(formatter),
            Self::Set(atoms) => {
                let words: Vec<String> = atoms.iter().map(Atom::to_string).collect();
                write!(formatter, "[{}]", words.join(", "))
            }
            Self::Map(pairs) => {
                let words: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
                write!(formatter, "{{{}}}", words.join(", "))
            }
        }
    }
}

impl<A: Into<Atom>> From<A> for Value {
    fn from(value: A) -> Self {
        Self::Atom(value.into())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_atom() -> impl Strategy<Value = Atom> {
        prop_oneof![
            any::<i64>().prop_map(Atom::Integer),
            proptest::num::f64::NORMAL.prop_map(Atom::Real),
            any::<bool>().prop_map(Atom::Boolean),
            any::<String>().prop_map(Atom::String),
            any::<u128>().prop_map(|bits| Atom::Uuid(Uuid::from_u128(bits))),
            "[A-Za-z_][A-Za-z0-9_]{0,8}".prop_map(|text| Atom::NamedUuid(Name::new(text).unwrap())),
        ]
    }

    pub(crate) fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any_atom().prop_map(Value::Atom),
            proptest::collection::vec(any_atom(), 0..6).prop_map(Value::set),
            proptest::collection::vec((any_atom(), any_atom()), 0..6).prop_map(Value::map),
        ]
    }

    pub(crate) fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            any::<f64>().prop_map(Json::from),
            prop_oneof![Just("set"), Just("map"), Just("uuid"), Just("named-uuid"), Just("id"), Just("")]
                .prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
                proptest::collection::vec((any_key(), inner), 0..4)
                    .prop_map(|pairs| Json::Object(pairs.into_iter().collect())),
            ]
        })
    }

    fn any_key() -> impl Strategy<Value = String> {
        let words = ["id", "method", "params", "result", "error", "details", "old", "new", "initial", "modify"];
        let more = ["insert", "delete", "uuid", "rows", "count", "key", "value", "min", "max", "columns", "tables"];
        let all = [words.as_slice(), more.as_slice()].concat();
        proptest::sample::select(all).prop_map(str::to_owned)
    }

    proptest! {
        #[test]
        fn values_survive_their_notation(value in any_value()) {
            let text = value.encode().to_string();
            let json: Json = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(Value::decode(&json).unwrap(), value);
        }

        #[test]
        fn any_json_is_a_value_or_an_error(json in any_json()) {
            if let Ok(value) = Value::decode(&json) {
                prop_assert_eq!(Value::decode(&value.encode()).unwrap(), value);
            }
        }
    }

    #[test]
    fn a_set_of_one_is_its_element() {
        let decoded = Value::decode(&json!(["set", ["secure"]])).unwrap();
        assert_eq!(decoded, Value::from("secure"));
        assert_eq!(decoded.encode(), json!("secure"));
        assert_eq!(Value::set(["b", "a", "b"]).encode(), json!(["set", ["a", "b"]]));
    }

    #[test]
    fn wrong_json_is_named() {
        let cases = [
            (json!(null), "null is not an atom"),
            (json!(["uuid", "x"]), "\"x\" is not a UUID"),
            (json!(["named-uuid", "1x"]), "\"1x\" is not an identifier"),
            (json!(["map", [["a"]]]), "[\"a\"] is not a set or map"),
            (json!(["set", 3]), "[\"set\",3] is not a set or map"),
            (json!(u64::MAX), "number 18446744073709551615 is neither a 64-bit integer nor a finite real"),
        ];
        for (json, message) in cases {
            assert_eq!(Value::decode(&json).unwrap_err().to_string(), message);
        }
    }
}
