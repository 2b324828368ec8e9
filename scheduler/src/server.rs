//! The socket side: accepts, shakes hands, tells handlers who is calling, and ends gracefully.
//!
//! A client certificate is optional in the handshake, because joining needs none, but one that is shown must be ours. What a caller may do is the
//! routes' business.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::Service;

use crate::api::{App, routes};
use crate::authority::{Authority, AuthorityError, files};
use crate::blob::Blobs;
use crate::caller::Caller;
use crate::centre::{Centre, chain};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::StoreError;
use crate::token;

/// The most connections at once.
const CONNECTIONS_MAX: usize = 4096;
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a quiet HTTP/2 connection is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How often hosts that went silent are looked for.
const TICK: Duration = Duration::from_secs(1);
/// How often expired tokens are removed, in ticks.
const SWEEP_TICKS: u64 = 600;
/// How long connections are given to end by themselves.
const GRACE: Duration = Duration::from_secs(5);
/// How long nothing is accepted after the system refused to accept: mostly, descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The scheduler can not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("read the certificates (were they made with `scheduler init`?)")]
    Authority(#[from] AuthorityError),
    #[error("open the scheduler's state")]
    Store(#[from] StoreError),
    #[error("open the directory {path:?}")]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("read {path:?}")]
    Pem {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("set TLS up")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("watch for signals")]
    Signal(#[source] std::io::Error),
}

/// Runs the scheduler until it is told to end.
pub(crate) async fn serve(config: Config) -> Result<(), ServeError> {
    let config = Arc::new(config);
    let authority = Authority::load(&config.dir)?;
    let tls = Arc::new(tls(&config, &authority)?);
    let blobs = Blobs::open(&config.blobs_dir(), config.image_bytes_max)
        .map_err(|source| ServeError::Directory { path: config.blobs_dir(), source })?;
    let centre = Arc::new(Centre::open(Arc::clone(&config))?);
    let (ending, ends) = watch::channel(false);
    let app = Arc::new(App {
        config: Arc::clone(&config),
        centre,
        authority,
        blobs,
        metrics: Metrics::default(),
        ending: ends.clone(),
    });
    let router = routes::router(&app);
    let listener = listen(config.listen).await?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signal)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signal)?;
    let address = listener.local_addr().unwrap_or(config.listen);
    if let Some(address) = config.metrics_listen {
        let metrics = plain(Arc::clone(&app), listen(address).await?, ends.clone());
        tokio::spawn(metrics);
    }
    let ticker = tokio::spawn(tick(Arc::clone(&app), ends.clone()));
    tracing::info!(%address, dir = %config.dir.display(), "scheduler ready");
    notify(sd_notify::NotifyState::Ready);
    let graceful = GracefulShutdown::new();
    tokio::select! {
        () = accept(listener, tls, router, &graceful) => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("scheduler ends");
    notify(sd_notify::NotifyState::Stopping);
    ending.send_replace(true);
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were cut that did not end in time");
    }
    ticker.abort();
    Ok(())
}

fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd could not be told");
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
}

fn tls(config: &Config, authority: &Authority) -> Result<ServerConfig, ServeError> {
    let path = |name: &str| config.dir.join(name);
    let pem = |name: &str| {
        let path = path(name);
        move |source| ServeError::Pem { path, source }
    };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(path(files::SERVER)).and_then(Iterator::collect).map_err(pem(files::SERVER))?;
    let key = PrivateKeyDer::from_pem_file(path(files::SERVER_KEY)).map_err(pem(files::SERVER_KEY))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).map_err(|error| ServeError::Tls(Box::new(error)))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| ServeError::Tls(Box::new(error)))?;
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| ServeError::Tls(Box::new(error)))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| ServeError::Tls(Box::new(error)))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

async fn accept(listener: TcpListener, tls: Arc<ServerConfig>, router: Router, graceful: &GracefulShutdown) {
    let acceptor = TlsAcceptor::from(tls);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, router, watcher) = (acceptor.clone(), router.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _permit = permit;
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => connection(stream, router, watcher).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a handshake failed"),
                Err(_) => tracing::debug!(%peer, "a handshake took too long"),
            }
        });
    }
}

async fn connection(
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    router: Router,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let certificates = stream.get_ref().1.peer_certificates();
    let caller = Caller::of(certificates.and_then(<[CertificateDer<'_>]>::first));
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(caller.clone());
        router.clone().call(request.map(Body::new))
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(KEEP_ALIVE));
    let served = watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Answers `/metrics` and `/healthz` without TLS, for those who collect them.
async fn plain(app: Arc<App>, listener: TcpListener, mut ends: watch::Receiver<bool>) {
    use crate::api::operator::{health, metrics};
    let router = Router::new()
        .route("/metrics", axum::routing::get(metrics))
        .route("/healthz", axum::routing::get(health))
        .with_state(app);
    let end = async move {
        // An error means that the program has ended: so does this.
        let _ = ends.wait_for(|ending| *ending).await;
    };
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(end).await {
        tracing::error!(%error, "metrics are not answered any more");
    }
}

/// Looks for hosts that went silent and feeds the watchdog: a scheduler that can not change its state is not alive.
async fn tick(app: Arc<App>, mut ends: watch::Receiver<bool>) {
    let watchdog = sd_notify::watchdog_enabled();
    let period = watchdog.map_or(TICK, |watchdog| TICK.min(watchdog / 3));
    let mut ticks: u64 = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            _ = ends.wait_for(|ending| *ending) => return,
        }
        let (now, at) = (jiff::Timestamp::now(), Arc::clone(&app));
        let sweep = ticks.is_multiple_of(SWEEP_TICKS);
        let ticked = tokio::task::spawn_blocking(move || {
            at.centre.tick();
            if sweep {
                token::sweep(&at.config.dir, now);
            }
        });
        match ticked.await {
            Ok(()) if watchdog.is_some() => notify(sd_notify::NotifyState::Watchdog),
            Ok(()) => {}
            Err(error) => tracing::error!(error = %chain(&error), "a look at the hosts failed"),
        }
        ticks += 1;
    }
}
