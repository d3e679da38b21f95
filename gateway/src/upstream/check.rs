//! Active checks: the gateway itself asks a target now and then whether it is well.
//!
//! One task per target and `health` on the control runtime, however many
//! threads and routes use them; the data threads read its verdict. It ends when
//! no route of the table in force has the check any more, whoever still holds it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edd_route::{HealthSpec, Scheme};
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::connect::{Behalf, ConnectError, dial};
use super::fleet::{Reach, Target};

/// Checks in a row that change the verdict: one may be a mishap.
const SAME: u32 = 2;

/// After a check that speaks against the verdict the next one comes sooner.
const SOON: Duration = Duration::from_secs(1);

const UNKNOWN: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

/// The verdict on one target by one `health`.
#[derive(Debug)]
pub(crate) struct Check {
    verdict: Arc<Verdict>,
    /// Ends the task.
    ended: CancellationToken,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.end();
    }
}

#[derive(Debug, Default)]
struct Verdict {
    state: AtomicU8,
    /// Why it is down.
    // A plain lock: for people only, and for whoever changes the verdict.
    error: Mutex<Option<String>>,
}

impl Check {
    /// Begins to ask. Until the first verdict the target is taken to be well.
    pub(crate) fn start(
        target: Arc<Target>,
        spec: HealthSpec,
        reach: &Reach,
        runtime: &Handle,
    ) -> Self {
        let verdict = Arc::new(Verdict::default());
        let ended = CancellationToken::new();
        let task = Task {
            target,
            spec,
            reach: reach.clone(),
            verdict: Arc::clone(&verdict),
            against: 0,
        };
        let over = ended.clone();
        runtime.spawn(async move {
            over.run_until_cancelled(task.run()).await;
        });
        Self { verdict, ended }
    }

    /// Asks no more. The last verdict stays.
    pub(crate) fn end(&self) {
        self.ended.cancel();
    }

    /// Whether the last verdict is that it is not well.
    pub(crate) fn is_down(&self) -> bool {
        self.verdict.state.load(Ordering::Relaxed) == DOWN
    }

    /// Why it is down, if it is.
    pub(crate) fn error(&self) -> Option<String> {
        let error = self.verdict.error.lock();
        error.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Task {
    target: Arc<Target>,
    spec: HealthSpec,
    reach: Reach,
    verdict: Arc<Verdict>,
    /// Checks in a row that spoke against the verdict.
    against: u32,
}

impl Task {
    async fn run(mut self) {
        loop {
            let limit = self.spec.timeout;
            let asked = timeout(limit, ask(&self.target, &self.spec, &self.reach)).await;
            let result = asked.unwrap_or_else(|_| Err(CheckError::TimedOut));
            let settled = match result {
                // We are too busy ourselves: that says nothing about the target.
                Err(CheckError::Ours) => true,
                result => self.judge(result),
            };
            let mut pause = self.spec.interval;
            if !settled {
                pause = pause.min(SOON);
            }
            // Many targets are not to be asked in the same moment for ever.
            sleep(pause.mul_f64(0.9 + 0.2 * rand::random::<f64>())).await;
        }
    }

    /// Takes one result. Whether it agrees with the verdict.
    fn judge(&mut self, result: Result<(), CheckError>) -> bool {
        self.reach.metrics.upstream_checked(result.is_ok());
        let before = self.verdict.state.load(Ordering::Relaxed);
        let now = if result.is_ok() { UP } else { DOWN };
        if before == now || (before == UNKNOWN && now == UP) {
            self.verdict.state.store(now, Ordering::Relaxed);
            self.against = 0;
            return true;
        }
        self.against += 1;
        if self.against < SAME {
            return false;
        }
        self.against = 0;
        let target = self.target.label();
        let path = &self.spec.path;
        let error = result.err().map(|error| error.to_string());
        match &error {
            None => {
                info!(%target, %path, "upstream is well again");
                // It may be another process now: what it did before does not count.
                self.target.breaker.reset();
            }
            Some(error) => warn!(%target, %path, %error, "upstream is not well, left out"),
        }
        let mut slot = self
            .verdict
            .error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *slot = error;
        drop(slot);
        self.verdict.state.store(now, Ordering::Relaxed);
        true
    }
}

/// Why a target is not well.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error("{0}")]
    Connect(String),
    #[error("the gateway has too many connections")]
    Ours,
    #[error("no answer: {0}")]
    Http(#[from] hyper::Error),
    #[error("status {0}")]
    Status(StatusCode),
    #[error("the request cannot be made: {0}")]
    Request(#[from] http::Error),
    #[error("no answer in time")]
    TimedOut,
}

/// One GET; 2xx and 3xx are well.
async fn ask(target: &Arc<Target>, spec: &HealthSpec, reach: &Reach) -> Result<(), CheckError> {
    let dialled = dial(target, Behalf::Gateway, spec.timeout, reach).await;
    let (io, _) = dialled.map_err(|error| match error {
        ConnectError::Limit(_) => CheckError::Ours,
        error => {
            let cause = std::error::Error::source(&error);
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            CheckError::Connect(format!("{error}{cause}"))
        }
    })?;
    let io = TokioIo::new(io);
    let authority = target.name().text();
    let request = Request::get(match target.scheme() {
        Scheme::H2c => format!("http://{authority}{}", spec.path),
        Scheme::Http | Scheme::Https => spec.path.clone(),
    })
    .header(header::USER_AGENT, "edd-gateway (health)")
    .header(header::ACCEPT, "*/*");
    let status = match target.scheme() {
        Scheme::H2c => {
            let (mut sender, driver) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
            let _driver = AbortOnDropHandle::new(tokio::spawn(driver));
            let request = request.body(Empty::<Bytes>::new())?;
            sender.send_request(request).await?.status()
        }
        Scheme::Http | Scheme::Https => {
            let (mut sender, driver) = hyper::client::conn::http1::handshake(io).await?;
            let _driver = AbortOnDropHandle::new(tokio::spawn(driver));
            let request = request
                .header(header::HOST, &**authority)
                .header(header::CONNECTION, "close")
                .body(Empty::<Bytes>::new())?;
            sender.send_request(request).await?.status()
        }
    };
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(CheckError::Status(status))
    }
}
