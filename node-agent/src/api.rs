//! The local API: HTTP/JSON on a unix socket, for `flowctl`, tests and operators of this host.
//!
//! It only reads snapshots and asks; the one thing that changes anything is `PUT /v1/spec`, and only where specs come through the API. Who may
//! connect is decided by the socket's mode and group. The OpenAPI document of all this is at `/v1/openapi.json`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path as UrlPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use dataplane::switch::counters::Counters;
use dataplane::{Changes, FlowSet, PortNumbers};
use model::agent::{ErrorBody, ErrorDetail};
use model::observed::Report;
use model::spec::{NodeSpec, wire};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use utoipa::OpenApi;

use crate::accept::Refusal;
use crate::arrival;
use crate::ask::{self, AnyQuestion, AskError, Flows, Question, Traced};
use crate::config::{Config, SpecSource};
use crate::doctor::{self, Diagnosis};
use crate::driver::bridge::HostNetworking;
use crate::driver::volumes::VolumeStore;
use crate::driver::{Failure, chain};
use crate::identity::Identity;
use crate::link::LinkStatus;
use crate::metrics;
use crate::reconcile::{Command, Snapshot};
use crate::why::{self, Why};

mod body;
mod counted;

pub use body::{FlowsBody, FlowsDiff, Status, WhyQuestion};
pub use counted::{CountersBody, Drops, FlowCounted, PortCounted, RuleCounted};

/// The longest request body: a spec.
const BODY_MAX: usize = model::agent::SPEC_BYTES_MAX;
/// How long a request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(50);

/// What the API answers from.
#[derive(Debug)]
pub struct Api {
    /// The configuration.
    pub config: Arc<Config>,
    /// Who this host is, once joined.
    pub identity: Option<Identity>,
    /// The state.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// The last report.
    pub report: watch::Receiver<Option<Arc<Report>>>,
    /// The link.
    pub link: watch::Receiver<Option<LinkStatus>>,
    /// To the loop.
    pub commands: mpsc::Sender<Command>,
    /// The switch.
    pub network: Arc<HostNetworking>,
    /// The volumes.
    pub volumes: VolumeStore,
    /// When the agent started.
    pub started: tokio::time::Instant,
}

type Shared = State<Arc<Api>>;

/// A refusal, as the body [`ErrorBody`].
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    field: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), field: None }
    }

    fn no_spec() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no_spec", "this host has no specification yet")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let detail =
            ErrorDetail { code: self.code.to_owned(), message: self.message, field: self.field.map(str::to_owned) };
        (self.status, Json(ErrorBody { error: detail })).into_response()
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let problem = failure.problem();
        let message = format!("{} (way out: {})", problem.message, problem.remedy);
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }
}

impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        let (status, code, field) = match &error {
            AskError::Unknown { .. } => (StatusCode::NOT_FOUND, "not_found", None),
            AskError::Field { field, .. } => (StatusCode::BAD_REQUEST, "invalid", Some(*field)),
            AskError::Elsewhere { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "elsewhere", None),
            AskError::Packet(_) => (StatusCode::UNPROCESSABLE_ENTITY, "no_packet", None),
        };
        Self { status, code, message: chain(&error), field }
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), "invalid", rejection.body_text())
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match &refusal {
            Refusal::Ledger(_) => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::CONFLICT,
        };
        let message = format!("{} (way out: {})", chain(&refusal), refusal.remedy());
        Self::new(status, refusal.code(), message)
    }
}

impl Api {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    fn spec(&self) -> Result<Arc<NodeSpec>, ApiError> {
        self.snapshot().spec.clone().ok_or_else(ApiError::no_spec)
    }

    fn flows(&self, spec: &NodeSpec) -> Result<(FlowSet, PortNumbers), ApiError> {
        let numbers = self
            .network
            .switch()
            .bridge()
            .numbers()
            .map_err(|error| self.network.failure("read the ports of the bridge", error.into()))?;
        Ok((dataplane::compile(spec.network(), &numbers), numbers))
    }

    /// What the switch counted, and the flows that should be, for their meaning.
    async fn counted(&self) -> Result<(Counters, FlowSet), ApiError> {
        let counters = dataplane::switch::counters::read(&self.config.switch.socket()).await.map_err(|error| {
            let remedy = "is ovs-vswitchd running? look into its log";
            ApiError::from(Failure::caused("read the switch's counters", remedy, error))
        })?;
        let set = self.spec().and_then(|spec| self.flows(&spec)).map(|(set, _)| set).unwrap_or_default();
        Ok((counters, set))
    }

    async fn sums(&self) -> Result<CountersBody, ApiError> {
        let (counters, set) = self.counted().await?;
        Ok(CountersBody::new(&counters, &set, &body::ports(&self.snapshot())))
    }

    /// What ports, rules and reasons for drops counted on this host, summed up.
    ///
    /// # Errors
    /// The switch does not answer; the text says why, and the way out.
    pub async fn counters(&self) -> Result<CountersBody, String> {
        self.sums().await.map_err(|error| error.message)
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Basalt node agent", description = "The local API of one host, on a unix socket."),
    paths(
        status,
        spec,
        put_spec,
        report,
        vms,
        console,
        ports,
        flows,
        flows_installed,
        flows_diff,
        flows_counted,
        counters,
        trace,
        why,
        doctor,
        look,
        metrics_text
    )
)]
struct Document;

/// The OpenAPI document.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// The routes.
pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/spec", get(spec).put(put_spec))
        .route("/v1/report", get(report))
        .route("/v1/vms", get(vms))
        .route("/v1/vms/{id}/console", get(console))
        .route("/v1/ports", get(ports))
        .route("/v1/flows", get(flows))
        .route("/v1/flows/installed", get(flows_installed))
        .route("/v1/flows/diff", get(flows_diff))
        .route("/v1/flows/counted", get(flows_counted))
        .route("/v1/counters", get(counters))
        .route("/v1/trace", post(trace))
        .route("/v1/why", post(why))
        .route("/v1/doctor", get(doctor))
        .route("/v1/look", post(look))
        .route("/v1/openapi.json", get(|| async { Json(document()) }))
        .route("/metrics", get(metrics_text))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "no_route", "there is no such route") })
        .layer(axum::middleware::from_fn(in_time))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_MAX))
        .with_state(api)
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_LIMIT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!("no answer within {REQUEST_LIMIT:?}");
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message).into_response()
        }
    }
}

/// Listens on a unix socket of mode 0660, in place of one that an earlier agent left.
///
/// # Errors
/// When the socket cannot be made, or another agent listens on it.
pub fn listen(path: &Path) -> std::io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(std::io::Error::other("another agent listens there"));
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// How the agent is.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
async fn status(State(api): Shared) -> Json<Status> {
    Json(Status::new(&api, &api.snapshot()))
}

/// The specification in force.
#[utoipa::path(get, path = "/v1/spec", responses((status = 200, description = "the specification"), (status = 404, description = "none yet")))]
async fn spec(State(api): Shared) -> Result<Json<Value>, ApiError> {
    let envelope = wire::Envelope::from(&*api.spec()?);
    serde_json::to_value(envelope)
        .map(Json)
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "encode", error.to_string()))
}

/// Take in a specification, on a host whose `spec.source` is `api`.
#[utoipa::path(
    put,
    path = "/v1/spec",
    request_body = Value,
    responses(
        (status = 200, description = "in force"),
        (status = 400, description = "not a specification"),
        (status = 409, description = "older than the one in force, for another host, or specs come from elsewhere"),
        (status = 507, description = "the ledger could not be written")
    )
)]
async fn put_spec(State(api): Shared, body: axum::body::Bytes) -> Result<Json<Value>, ApiError> {
    match &api.config.spec.source {
        SpecSource::Api => {}
        SpecSource::Scheduler => return Err(Refusal::OtherSource("the scheduler").into()),
        SpecSource::File(_) => return Err(Refusal::OtherSource("a file").into()),
    }
    let spec = wire::decode(&body).map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "invalid", chain(&error)))?;
    let generation = spec.generation();
    let (reply, answer) = oneshot::channel();
    let ending = || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "ending", "the agent is ending");
    api.commands.send(Command::Accept { spec: Box::new(spec), reply }).await.map_err(|_| ending())?;
    let accepted = answer.await.map_err(|_| ending())??;
    Ok(Json(json!({ "generation": generation, "accepted": accepted })))
}

/// The report as the scheduler gets it.
#[utoipa::path(get, path = "/v1/report", responses((status = 200, description = "the report"), (status = 404, description = "none yet")))]
async fn report(State(api): Shared) -> Result<Json<Report>, ApiError> {
    let report = api.report.borrow().clone().ok_or_else(ApiError::no_spec)?;
    Ok(Json((*report).clone()))
}

/// The machines of this host.
#[utoipa::path(get, path = "/v1/vms", responses((status = 200, body = [body::Vm])))]
async fn vms(State(api): Shared) -> Json<Vec<body::Vm>> {
    Json(body::vms(&api.config, &api.snapshot()))
}

/// Where the console of a machine is.
#[utoipa::path(get, path = "/v1/vms/{id}/console", params(("id" = String, Path, description = "id or name")), responses((status = 200, body = body::Console), (status = 404, description = "no such machine, or it has no process")))]
async fn console(State(api): Shared, UrlPath(id): UrlPath<String>) -> Result<Json<body::Console>, ApiError> {
    let vms = body::vms(&api.config, &api.snapshot());
    let found = vms.into_iter().find(|vm| vm.id == id || vm.name == id);
    let vm = found
        .ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("there is no vm {id:?} here")))?;
    vm.console.map(Json).ok_or_else(|| {
        let message = format!("vm {id:?} is {} and has no console", vm.state);
        ApiError::new(StatusCode::NOT_FOUND, "no_console", message)
    })
}

/// The ports that are plugged in on this host.
#[utoipa::path(get, path = "/v1/ports", responses((status = 200, body = [body::PortBody])))]
async fn ports(State(api): Shared) -> Json<Vec<body::PortBody>> {
    Json(body::ports(&api.snapshot()))
}

/// The flows that should be installed.
#[utoipa::path(get, path = "/v1/flows", responses((status = 200, body = FlowsBody)))]
async fn flows(State(api): Shared) -> Result<Json<FlowsBody>, ApiError> {
    let spec = api.spec()?;
    let (set, _) = api.flows(&spec)?;
    Ok(Json(FlowsBody::desired(&set)))
}

/// The flows that are installed.
#[utoipa::path(get, path = "/v1/flows/installed", responses((status = 200, body = FlowsBody)))]
async fn flows_installed(State(api): Shared) -> Result<Json<FlowsBody>, ApiError> {
    let installed = api.network.switch().installed().await;
    let installed = installed.map_err(|error| api.network.failure("read the installed flows", error))?;
    let set = api.spec().and_then(|spec| api.flows(&spec)).map(|(set, _)| set).unwrap_or_default();
    Ok(Json(FlowsBody::installed(&installed, &set)))
}

/// What differs between the flows that should be and those that are.
#[utoipa::path(get, path = "/v1/flows/diff", responses((status = 200, body = FlowsDiff)))]
async fn flows_diff(State(api): Shared) -> Result<Json<FlowsDiff>, ApiError> {
    let spec = api.spec()?;
    let (set, _) = api.flows(&spec)?;
    let installed = api.network.switch().installed().await;
    let installed = installed.map_err(|error| api.network.failure("read the installed flows", error))?;
    let changes: Changes = dataplane::diff(&set, &installed);
    Ok(Json(FlowsDiff::new(&changes)))
}

/// The flows that are installed, with the packets that each counted.
#[utoipa::path(get, path = "/v1/flows/counted", responses((status = 200, body = [FlowCounted]), (status = 503, description = "the switch does not answer")))]
async fn flows_counted(State(api): Shared) -> Result<Json<Vec<FlowCounted>>, ApiError> {
    let (counters, set) = api.counted().await?;
    Ok(Json(counted::flows(&counters, &set)))
}

/// Packets of each port of this host, and packets dropped, by reason.
#[utoipa::path(get, path = "/v1/counters", responses((status = 200, body = CountersBody), (status = 503, description = "the switch does not answer")))]
async fn counters(State(api): Shared) -> Result<Json<CountersBody>, ApiError> {
    Ok(Json(api.sums().await?))
}

/// Which way a packet goes.
#[utoipa::path(post, path = "/v1/trace", request_body = Question, responses((status = 200, body = Traced), (status = 404, description = "no such port or machine"), (status = 422, description = "no such packet can be made")))]
async fn trace(
    State(api): Shared,
    question: Result<Json<AnyQuestion>, JsonRejection>,
) -> Result<Json<Traced>, ApiError> {
    let Json(question) = question?;
    let spec = api.spec()?;
    let (set, numbers) = api.flows(&spec)?;
    let flows = Flows { network: spec.network(), numbers: &numbers, set: &set };
    let (packet, connection) = question.packet(&spec, &flows)?;
    let switch = &api.config.switch;
    Ok(Json(ask::traced(&flows, &packet, connection, (&switch.run_dir, &switch.bridge)).await))
}

/// What stops a packet or a machine.
#[utoipa::path(post, path = "/v1/why", request_body = WhyQuestion, responses((status = 200, body = Why), (status = 404, description = "no such port or machine")))]
async fn why(State(api): Shared, question: Result<Json<WhyQuestion>, JsonRejection>) -> Result<Json<Why>, ApiError> {
    let Json(question) = question?;
    let spec = api.spec()?;
    let Some(packet_question) = question.packet()? else {
        let name = question.vm.as_deref().or(question.port.as_deref()).unwrap_or_default();
        return Ok(Json(why::machine(&spec, &api.snapshot(), name)?));
    };
    let (set, numbers) = api.flows(&spec)?;
    let flows = Flows { network: spec.network(), numbers: &numbers, set: &set };
    let sender = ask::find_port(&spec, &packet_question.port)?;
    let elsewhere = arrival::elsewhere(&spec, sender);
    let asked = why::Asked { question: &packet_question, octets: question.octets, sender, elsewhere };
    let switch = &api.config.switch;
    let bridge = (switch.run_dir.as_path(), switch.bridge.as_str());
    Ok(Json(why::packet(&spec, &api.snapshot(), &flows, &asked, bridge).await?))
}

/// Checks what this host needs.
#[utoipa::path(get, path = "/v1/doctor", responses((status = 200, body = Diagnosis)))]
async fn doctor(State(api): Shared) -> Json<Diagnosis> {
    Json(doctor::examine(&api).await)
}

/// Look now, and try again what failed.
#[utoipa::path(post, path = "/v1/look", responses((status = 202, description = "under way")))]
async fn look(State(api): Shared) -> StatusCode {
    // A loop that is ending looks no more, and says so to others.
    let _ = api.commands.send(Command::Look).await;
    StatusCode::ACCEPTED
}

/// Metrics in OpenMetrics text.
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "OpenMetrics text")))]
async fn metrics_text(State(api): Shared) -> Response {
    let switch = api.network.switch();
    let (link, status) = (api.link.borrow(), switch.status());
    let text = metrics::text(&api.snapshot(), link.as_ref(), &status.borrow(), &switch.names());
    ([(axum::http::header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

#[cfg(test)]
mod tests;
