//! Routes of agents: join, long poll for a specification, report, bytes of images. See `model::agent` for the protocol.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use jiff::Timestamp;
use model::agent::{
    JOIN_BYTES_MAX, JoinRequest, JoinResponse, LONG_POLL_SECONDS, REPORT_BYTES_MAX, RenewRequest, RenewResponse,
    SpecQuery,
};
use model::observed::Report;
use model::spec::wire;

use super::{AgentHost, Answer, App, read_json};
use crate::intent::find;
use crate::intent::host::Joining;
use crate::refusal::Refusal;
use crate::token::{self, TokenError};

/// Takes a host in against a join token.
pub(crate) async fn join(State(app): State<Arc<App>>, request: Request) -> Answer {
    let asked: JoinRequest = read_json(request, JOIN_BYTES_MAX).await?;
    let now = Timestamp::now();
    let dir = &app.config.dir;
    token::check(dir, &asked.token, &asked.name, now).map_err(|error| refuse_token(&error, &asked.name))?;
    let joining = Joining { name: asked.name.clone(), tunnel: asked.tunnel };
    let signed = app.change(|intent, context| {
        let id = intent.joining_id(context, &joining)?;
        let signed = app
            .authority
            .sign_agent(&asked.csr, id, app.config.host_certificate_seconds)
            .map_err(|error| Refusal::invalid("csr", crate::centre::chain(&error)))?;
        // The token is used up last, so that a request that is refused for another reason does not cost it.
        token::spend(dir, &asked.token).map_err(|error| refuse_token(&error, &joining.name))?;
        intent.join(id, joining.clone(), signed.digest, now);
        Ok((id, signed))
    });
    let (host, signed) = signed?;
    tracing::info!(host_id = %host, host = asked.name, tunnel = %asked.tunnel, version = asked.version, "host joined");
    Ok(Json(JoinResponse { host, certificate: signed.pem, ca: app.authority.pem().to_owned() }).into_response())
}

/// Gives a host its next certificate.
pub(crate) async fn renew(State(app): State<Arc<App>>, AgentHost(host): AgentHost, request: Request) -> Answer {
    let asked: RenewRequest = read_json(request, JOIN_BYTES_MAX).await?;
    let signed = app
        .authority
        .sign_agent(&asked.csr, host, app.config.host_certificate_seconds)
        .map_err(|error| Refusal::invalid("csr", crate::centre::chain(&error)))?;
    app.change(|intent, _| {
        intent.renew(host, signed.digest);
        Ok(())
    })?;
    tracing::info!(host_id = %host, "certificate renewed");
    Ok(Json(RenewResponse { certificate: signed.pem }).into_response())
}

fn refuse_token(error: &TokenError, host: &str) -> Refusal {
    tracing::warn!(host, error = %crate::centre::chain(error), "a join was refused");
    match error {
        TokenError::File { .. } | TokenError::Authority(_) | TokenError::Ttl(_) => Refusal::Internal(error.to_string()),
        TokenError::Unknown | TokenError::Expired(_) | TokenError::OtherHost => Refusal::Forbidden(error.to_string()),
    }
}

/// Answers with the host's specification as soon as there is one newer than the agent has.
pub(crate) async fn spec(
    State(app): State<Arc<App>>,
    AgentHost(host): AgentHost,
    Query(query): Query<SpecQuery>,
) -> Answer {
    let mut newest = app.centre.subscribe();
    let mut ending = app.ending.clone();
    let wait = tokio::time::sleep(Duration::from_secs(LONG_POLL_SECONDS));
    tokio::pin!(wait);
    loop {
        let intent = Arc::clone(&newest.borrow_and_update());
        if let Some(assigned) = intent.assigned.get(&host).filter(|it| it.spec.generation() > query.after) {
            let bytes = wire::encode(&assigned.spec).map_err(|error| Refusal::Internal(error.to_string()))?;
            return Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response());
        }
        if !intent.hosts.contains_key(&host) {
            return Err(Refusal::Forbidden("this host is not known: it was deleted".to_owned()));
        }
        let more = tokio::select! {
            changed = newest.changed() => changed.is_ok(),
            () = &mut wait => false,
            _ = ending.wait_for(|ending| *ending) => false,
        };
        if !more {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
    }
}

/// Takes in what a host saw.
pub(crate) async fn report(State(app): State<Arc<App>>, AgentHost(host): AgentHost, request: Request) -> Answer {
    let report: Report = read_json(request, REPORT_BYTES_MAX).await?;
    if report.host != host {
        return Err(Refusal::invalid("host", "it is not the host of the certificate that is shown"));
    }
    tokio::task::block_in_place(|| app.centre.hear(report));
    app.metrics.reports.inc();
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Sends the bytes of an image that the host's specification names.
pub(crate) async fn image_data(
    State(app): State<Arc<App>>,
    AgentHost(host): AgentHost,
    Path(id): Path<String>,
) -> Answer {
    let intent = app.centre.intent();
    let (id, image) = find(&intent.images, &id, None)?;
    if !intent.assigned.get(&host).is_some_and(|assigned| assigned.spec.images().contains_key(&id)) {
        return Err(Refusal::Forbidden(format!("the host's specification does not name image {}", image.name)));
    }
    let missing = || Refusal::Missing { kind: "image with bytes", name: image.name.clone(), field: None };
    let content = image.content.as_ref().ok_or_else(missing)?;
    let stream = app.blobs.give(content.sha256).await.map_err(|error| {
        tracing::error!(image_id = %id, %error, "the bytes of an image can not be read");
        Refusal::Internal("the bytes of the image can not be read: see the scheduler's log".to_owned())
    })?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, content.size_bytes.to_string()),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}
