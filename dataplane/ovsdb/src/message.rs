//! The three JSON-RPC 1.0 messages of RFC 7047 §4: request, reply and notification.
//!
//! A message is told by its members: `method` makes a request, or a notification when `id` is null; everything else is
//! a reply. Both sides send both. Nothing here knows what a method means.

use serde_json::{Map, Value as Json, json};
use thiserror::Error;

use crate::row::kind_of;

/// A text that is no message.
#[derive(Debug, Error)]
pub enum MessageError {
    /// Not JSON at all.
    #[error("a message is not JSON")]
    Json(#[from] serde_json::Error),
    /// JSON other than an object.
    #[error("a message is a JSON object, not {0}")]
    NotAnObject(&'static str),
    /// A `method` that is no string.
    #[error("the method of a message is a string, not {0}")]
    Method(&'static str),
    /// A request or notification without an array of parameters.
    #[error("the parameters of {method} are an array, not {kind}")]
    Parameters {
        /// The method.
        method: String,
        /// What was there instead.
        kind: &'static str,
    },
    /// Neither `method` nor `result` nor `error`.
    #[error("a message has neither method nor result nor error")]
    Empty,
}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Asks for a reply with the same id.
    Request {
        /// What the reply will carry; anything but null.
        id: Json,
        /// What is asked for.
        method: String,
        /// Its parameters.
        params: Vec<Json>,
    },
    /// Answers a request.
    Reply {
        /// The id of the request.
        id: Json,
        /// The result, or the error where it is not null.
        outcome: Result<Json, Json>,
    },
    /// Asks for nothing.
    Notification {
        /// What is told.
        method: String,
        /// Its parameters.
        params: Vec<Json>,
    },
}

impl Message {
    /// Decodes the text of one message.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(text: &[u8]) -> Result<Self, MessageError> {
        let json: Json = serde_json::from_slice(text)?;
        let Json::Object(mut members) = json else { return Err(MessageError::NotAnObject(kind_of(&json))) };
        let id = take(&mut members, "id");
        match members.remove("method") {
            Some(Json::String(method)) => {
                let params = match members.remove("params") {
                    Some(Json::Array(params)) => params,
                    other => {
                        let kind = other.as_ref().map_or("absent", kind_of);
                        return Err(MessageError::Parameters { method, kind });
                    }
                };
                Ok(if id.is_null() {
                    Self::Notification { method, params }
                } else {
                    Self::Request { id, method, params }
                })
            }
            Some(other) => Err(MessageError::Method(kind_of(&other))),
            None if !members.contains_key("result") && !members.contains_key("error") => Err(MessageError::Empty),
            None => {
                let error = take(&mut members, "error");
                let outcome = if error.is_null() { Ok(take(&mut members, "result")) } else { Err(error) };
                Ok(Self::Reply { id, outcome })
            }
        }
    }

    /// The text of the message, without anything after it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let json = match self {
            Self::Request { id, method, params } => json!({"id": id, "method": method, "params": params}),
            Self::Notification { method, params } => json!({"id": null, "method": method, "params": params}),
            Self::Reply { id, outcome: Ok(result) } => json!({"id": id, "result": result, "error": null}),
            Self::Reply { id, outcome: Err(error) } => json!({"id": id, "result": null, "error": error}),
        };
        json.to_string().into_bytes()
    }
}

fn take(members: &mut Map<String, Json>, name: &str) -> Json {
    members.get_mut(name).map(Json::take).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::tests::any_json;
    use proptest::prelude::*;

    fn any_message() -> impl Strategy<Value = Message> {
        let params = || proptest::collection::vec(any_json(), 0..4);
        let id = || prop_oneof![any::<u32>().prop_map(Json::from), "[a-z]{1,8}".prop_map(Json::from)];
        prop_oneof![
            (id(), any::<String>(), params()).prop_map(|(id, method, params)| Message::Request { id, method, params }),
            (any::<String>(), params()).prop_map(|(method, params)| Message::Notification { method, params }),
            (id(), any_json()).prop_map(|(id, result)| Message::Reply { id, outcome: Ok(result) }),
            (id(), "[a-z]{1,8}").prop_map(|(id, error)| Message::Reply { id, outcome: Err(Json::from(error)) }),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_their_text(message in any_message()) {
            prop_assert_eq!(Message::decode(&message.encode()).unwrap(), message);
        }

        #[test]
        fn any_json_is_a_message_or_an_error(json in any_json()) {
            let _either = Message::decode(json.to_string().as_bytes());
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in any::<Vec<u8>>()) {
            let _either = Message::decode(&bytes);
        }
    }

    #[test]
    fn wrong_messages_are_named() {
        let cases = [
            ("[]", "a message is a JSON object, not an array"),
            ("{}", "a message has neither method nor result nor error"),
            (r#"{"id":1,"method":3}"#, "the method of a message is a string, not a number"),
            (r#"{"id":1,"method":"echo"}"#, "the parameters of echo are an array, not absent"),
        ];
        for (text, message) in cases {
            assert_eq!(Message::decode(text.as_bytes()).unwrap_err().to_string(), message);
        }
    }
}
