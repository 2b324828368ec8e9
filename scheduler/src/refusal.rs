//! Why a request is refused, in words for people and a code for programs.
//!
//! Every variant says which field of the request is at fault where one is. The HTTP status and the body are derived here and nowhere else.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use model::agent::{ErrorBody, ErrorDetail};

/// A request that is not carried out; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// A field has a value that can not be taken.
    #[error("{field}: {problem}")]
    Invalid { field: String, problem: String },
    /// The body as a whole is no JSON of the right shape.
    #[error("read the request body: {0}")]
    Body(String),
    /// No object has this name or id; `field` names the reference, none means the object of the route.
    #[error("no {kind} has the name or id {name:?}")]
    Missing { kind: &'static str, name: String, field: Option<String> },
    /// A name, address or other thing of which there is one is taken already.
    #[error("{what} is taken by {owner}")]
    Taken { field: String, what: String, owner: String },
    /// The object is needed by others.
    #[error("{object} is in use by {users}")]
    InUse { object: String, users: String },
    /// The object is not in a state in which this can be done.
    #[error("{object}: {problem}")]
    State { object: String, problem: String, field: Option<String> },
    /// There is no number or address left to give.
    #[error("no {what} is left")]
    Exhausted { what: String, field: Option<String> },
    /// No route has this path.
    #[error("there is no such route: see /v1/openapi.json")]
    NoRoute,
    /// The route is not called this way.
    #[error("this route has no such method: see /v1/openapi.json")]
    NoMethod,
    /// The caller has shown no certificate, or one that does not allow this.
    #[error("{0}")]
    Forbidden(String),
    /// The request is larger than its bound.
    #[error("{what} is larger than {most} bytes")]
    TooLarge { what: &'static str, most: u64 },
    /// The disk with the scheduler's directory is full.
    #[error(
        "there is no space left on the scheduler's disk at {path}: nothing was changed; free some there, then try again"
    )]
    Full { path: String },
    /// Something of ours failed; the cause is in the log.
    #[error("{0}")]
    Internal(String),
}

impl Refusal {
    /// A field that can not be taken.
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    const fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. } | Self::Body(_) | Self::Missing { field: Some(_), .. } => StatusCode::BAD_REQUEST,
            Self::Missing { field: None, .. } | Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::Taken { .. } | Self::InUse { .. } | Self::State { .. } | Self::Exhausted { .. } => {
                StatusCode::CONFLICT
            }
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Full { .. } => StatusCode::INSUFFICIENT_STORAGE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    const fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid",
            Self::Body(_) => "bad_body",
            Self::Missing { field: Some(_), .. } => "unknown_reference",
            Self::Missing { field: None, .. } | Self::NoRoute => "not_found",
            Self::NoMethod => "no_method",
            Self::Taken { .. } => "taken",
            Self::InUse { .. } => "in_use",
            Self::State { .. } => "wrong_state",
            Self::Exhausted { .. } => "exhausted",
            Self::Forbidden(_) => "forbidden",
            Self::TooLarge { .. } => "too_large",
            Self::Full { .. } => "disk_full",
            Self::Internal(_) => "internal",
        }
    }

    fn field(&self) -> Option<String> {
        match self {
            Self::Invalid { field, .. } | Self::Taken { field, .. } => Some(field.clone()),
            Self::Missing { field, .. } | Self::Exhausted { field, .. } | Self::State { field, .. } => field.clone(),
            _ => None,
        }
    }
}

impl Refusal {
    /// The body that says so.
    pub(crate) fn body(&self) -> Json<ErrorBody> {
        let detail = ErrorDetail { code: self.code().to_owned(), message: self.to_string(), field: self.field() };
        Json(ErrorBody { error: detail })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status(), self.body()).into_response()
    }
}
