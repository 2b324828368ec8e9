//! The HTTP side: what each route does with the centre.
//!
//! Routes are the table in `routes`, from which the router, the role checks and the OpenAPI document all come. Handlers read a request, make one
//! change or take one look, and answer with a view.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use crate::authority::Authority;
use crate::blob::Blobs;
use crate::centre::Centre;
use crate::config::Config;
use crate::intent::{Context, Intent, find};
use crate::metrics::Metrics;
use crate::refusal::Refusal;

pub(crate) mod agent;
pub(crate) mod openapi;
pub(crate) mod operator;
pub(crate) mod routes;
pub(crate) mod view;

use view::Kind;

/// The longest body of a request of an operator, images apart.
const BODY_BYTES_MAX: usize = 1 << 20;

/// What handlers work with.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: Arc<Config>,
    pub(crate) centre: Arc<Centre>,
    pub(crate) authority: Authority,
    pub(crate) blobs: Blobs,
    pub(crate) metrics: Metrics,
    /// True once the program is to end: long polls answer at once.
    pub(crate) ending: tokio::sync::watch::Receiver<bool>,
}

/// What a handler gives back.
pub(crate) type Answer = Result<Response, Refusal>;

impl App {
    /// Carries out a change where blocking is allowed.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&mut Intent, &mut Context<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        tokio::task::block_in_place(|| self.centre.change(change))
    }

    /// Makes an object and shows it.
    fn create<K: Kind>(&self, make: impl FnOnce(&mut Intent, &mut Context<'_>) -> Result<K::Id, Refusal>) -> Answer {
        let id = self.change(make)?;
        Ok((StatusCode::CREATED, self.look::<K>(id)?).into_response())
    }

    /// Changes an object and shows it.
    fn update<K: Kind>(&self, make: impl FnOnce(&mut Intent, &mut Context<'_>) -> Result<K::Id, Refusal>) -> Answer {
        let id = self.change(make)?;
        Ok(self.look::<K>(id)?.into_response())
    }

    /// Deletes an object.
    fn delete(&self, make: impl FnOnce(&mut Intent) -> Result<(), Refusal>) -> Answer {
        self.change(|intent, _| make(intent))?;
        Ok(StatusCode::NO_CONTENT.into_response())
    }

    fn look<K: Kind>(&self, id: K::Id) -> Result<Json<K::View>, Refusal> {
        let world = self.centre.world();
        let object = K::table(&world.intent).get(&id).cloned();
        let object = object.ok_or_else(|| Refusal::Internal("the object went away while it was made".to_owned()))?;
        Ok(Json(K::view(&world, &object)))
    }

    /// Shows one object.
    fn show<K: Kind>(&self, name: &str) -> Answer {
        let world = self.centre.world();
        let (_, object) = find(K::table(&world.intent), name, None)?;
        Ok(Json(K::view(&world, &object)).into_response())
    }

    /// Shows every object of a kind, by name.
    fn list<K: Kind>(&self) -> Response {
        use crate::intent::Named;
        let world = self.centre.world();
        let mut objects: Vec<_> = K::table(&world.intent).values().collect();
        objects.sort_by(|a, b| a.name().cmp(b.name()));
        Json(objects.into_iter().map(|object| K::view(&world, object)).collect::<Vec<_>>()).into_response()
    }
}

/// A JSON body; one that is wrong is refused with the field that is at fault.
pub(crate) struct Read<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Read<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        read_json(request, BODY_BYTES_MAX).await.map(Self)
    }
}

/// Reads a JSON body of bounded length.
pub(crate) async fn read_json<T: DeserializeOwned>(request: Request, bytes_max: usize) -> Result<T, Refusal> {
    let most = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    let too_large = || Refusal::TooLarge { what: "the request body", most };
    let declared = request.headers().get(axum::http::header::CONTENT_LENGTH);
    let declared = declared.and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
    if declared.is_some_and(|length| length > most) {
        return Err(too_large());
    }
    let bytes = axum::body::to_bytes(request.into_body(), bytes_max).await.map_err(|_| too_large())?;
    let mut reader = serde_json::Deserializer::from_slice(&bytes);
    let read = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = error.path().to_string();
        let problem = error.into_inner().to_string();
        match field.as_str() {
            "." | "?" => named_field(&problem).map_or_else(
                || Refusal::Body(problem.clone()),
                |field| Refusal::Invalid { field: field.to_owned(), problem: problem.clone() },
            ),
            _ => Refusal::Invalid { field, problem },
        }
    })?;
    reader.end().map_err(|error| Refusal::Body(error.to_string()))?;
    Ok(read)
}

/// The field that serde names in backticks for one that is missing or unknown.
fn named_field(problem: &str) -> Option<&str> {
    let rest = problem.strip_prefix("missing field `").or_else(|| problem.strip_prefix("unknown field `"))?;
    rest.split('`').next()
}

/// The host of the calling agent: the role check has let no one else through.
pub(crate) struct AgentHost(pub(crate) model::HostId);

impl<S: Sync> FromRequestParts<S> for AgentHost {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        match parts.extensions.get::<crate::caller::Caller>() {
            Some(crate::caller::Caller::Agent { host, .. }) => Ok(Self(*host)),
            _ => Err(Refusal::Forbidden("this route takes an agent's certificate".to_owned())),
        }
    }
}
