//! The guest: what a container of the local runtime consists of.
//!
//! A process of its own, `edd-compute guest`, on the container's address: a page
//! with a WebSocket echo and a ticking event stream on port 8080, a raw echo on
//! port 7000, and the machine's `sshd` as its child. It reads its stdin and ends,
//! with everything that it or an SSH session started, when that closes: so no
//! guest outlives its service, however the service ends.

use std::{
    convert::Infallible,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{
        Request, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::{HeaderName, HeaderValue},
    middleware,
    response::{
        Html, IntoResponse as _, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::get,
};
use edd_daemon::{cli::Exit, server};
use futures_util::{Stream, stream};
use rustix::process::Pid;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{processes, sshd};

/// Where the page is.
pub const HTTP_PORT: u16 = 8080;
/// Where the raw echo is.
pub const ECHO_PORT: u16 = 7000;

/// What a guest says when it serves.
pub(super) const READY: &str = "ready";
/// What it says when its address is somebody else's.
pub(super) const IN_USE: &str = "in use";

/// How long a predecessor may take to leave the address.
const BIND_TIMEOUT: Duration = Duration::from_secs(3);
const BIND_POLL: Duration = Duration::from_millis(20);
/// From the start of sshd to its listening.
const SSHD_TIMEOUT: Duration = Duration::from_secs(8);
/// Between the ticks of the event stream.
const TICK: Duration = Duration::from_millis(500);
/// Raw connections at a time; more wait in the backlog.
const ECHOES_MAX: usize = 1024;
/// HTTP connections at a time.
const CONNECTIONS_MAX: usize = 4096;
/// Silence after which a raw connection is closed.
const ECHO_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// One read of the raw echo, in bytes.
const ECHO_BUFFER_LEN: usize = 16 * 1024;

/// The command line of a guest.
#[derive(Debug, clap::Args)]
pub struct GuestArguments {
    /// The container's address.
    #[arg(long)]
    addr: Ipv4Addr,

    /// The container's id.
    #[arg(long)]
    name: String,

    /// The SSH server to run; without one there is no SSH.
    #[arg(long, requires = "sshd_config")]
    sshd: Option<PathBuf>,

    /// Its configuration.
    #[arg(long)]
    sshd_config: Option<PathBuf>,
}

/// Runs a guest until its stdin closes.
pub fn run(arguments: GuestArguments) -> Result<(), Exit> {
    let ended = serve(arguments);
    // Whatever happened: nothing that was started here stays.
    let all_gone = processes::kill_descendants();
    match ended {
        Ok(()) if all_gone => Ok(()),
        Ok(()) => Err(Exit::Failure(anyhow::anyhow!(
            "processes of the guest do not end"
        ))),
        Err(reason) => {
            say(&reason);
            Err(Exit::Failure(anyhow::anyhow!("{reason}")))
        }
    }
}

/// To the service, which may be gone.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn serve(arguments: GuestArguments) -> Result<(), String> {
    processes::adopt_orphans().map_err(|error| format!("cannot adopt orphans: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let end = CancellationToken::new();
    watch_stdin(end.clone());
    let ended = runtime.block_on(serve_all(arguments, end));
    runtime.shutdown_background();
    ended
}

/// A thread of its own: a read of stdin cannot be cancelled.
fn watch_stdin(end: CancellationToken) {
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        end.cancel();
    });
}

async fn serve_all(arguments: GuestArguments, end: CancellationToken) -> Result<(), String> {
    let failed = |what: &str, error: io::Error| format!("{what}: {error}");
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| failed("cannot watch signals", error))?;
    let mut children =
        signal(SignalKind::child()).map_err(|error| failed("cannot watch children", error))?;

    let started = tokio::select! {
        started = start(&arguments, &end) => started?,
        () = end.cancelled() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    say(READY);
    loop {
        tokio::select! {
            () = end.cancelled() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = children.recv() => {
                if processes::reap(started) && !end.is_cancelled() {
                    return Err("the SSH server of the container ended".to_owned());
                }
            }
        }
    }
}

/// Binds, serves in the background, and starts sshd; its process id.
async fn start(arguments: &GuestArguments, end: &CancellationToken) -> Result<Option<Pid>, String> {
    let pages = bind(arguments.addr, HTTP_PORT).await?;
    let echoes = bind(arguments.addr, ECHO_PORT).await?;
    let limits = server::Limits {
        connections_max: CONNECTIONS_MAX,
        head_timeout: Duration::from_secs(75),
        ..server::Limits::default()
    };
    let router = router(Arc::from(arguments.name.as_str()));
    tokio::spawn(server::serve(pages, router, limits, end.clone()));
    tokio::spawn(echo(echoes));
    match (&arguments.sshd, &arguments.sshd_config) {
        (Some(sshd), Some(config)) => {
            let address = SocketAddrV4::new(arguments.addr, sshd::PORT);
            start_sshd(sshd, config, address).await.map(Some)
        }
        _ => Ok(None),
    }
}

/// Waits for a predecessor to leave.
async fn bind(addr: Ipv4Addr, port: u16) -> Result<TcpListener, String> {
    let bound = timeout(BIND_TIMEOUT, async {
        loop {
            match TcpListener::bind((addr, port)).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => sleep(BIND_POLL).await,
                other => return other,
            }
        }
    })
    .await;
    match bound {
        Ok(Ok(listener)) => Ok(listener),
        Ok(Err(error)) => Err(format!("cannot listen on {addr}:{port}: {error}")),
        Err(_elapsed) => Err(IN_USE.to_owned()),
    }
}

async fn start_sshd(binary: &Path, config: &Path, address: SocketAddrV4) -> Result<Pid, String> {
    let left = timeout(BIND_TIMEOUT, async {
        while is_listening(address) {
            sleep(BIND_POLL).await;
        }
    });
    if left.await.is_err() {
        return Err(IN_USE.to_owned());
    }
    // Not tokio's: the guest reaps all its children itself.
    let mut child = Command::new(binary)
        .args(["-D", "-e", "-f"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| format!("cannot start {}: {error}", binary.display()))?;
    let pid = Pid::from_child(&child);
    let answers = timeout(SSHD_TIMEOUT, async {
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("{} ended at once: {status}", binary.display()));
            }
            if is_listening(address) {
                return Ok(pid);
            }
            sleep(BIND_POLL).await;
        }
    });
    answers
        .await
        .unwrap_or_else(|_| Err("the SSH server does not answer".to_owned()))
}

/// Looked up instead of tried: sshd would log a connection that says nothing.
fn is_listening(address: SocketAddrV4) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    // As the kernel prints it: the four bytes as a number of this machine.
    let ip = u32::from_ne_bytes(address.ip().octets());
    let listening = format!("{ip:08X}:{:04X} 00000000:0000 0A", address.port());
    table.lines().any(|line| line.contains(&listening))
}

async fn echo(listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(ECHOES_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    let _ = echo_one(stream).await;
                    drop(permit);
                });
            }
            // Out of file descriptors: a pause, so as not to spin.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn echo_one(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; ECHO_BUFFER_LEN];
    loop {
        let read = timeout(ECHO_IDLE_TIMEOUT, stream.read(&mut buffer)).await??;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return stream.shutdown().await;
        };
        timeout(ECHO_IDLE_TIMEOUT, stream.write_all(bytes)).await??;
    }
}

/// The pages of a guest; every answer says which container it is from.
fn router(id: Arc<str>) -> Router {
    let from = HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("unnamed"));
    Router::new()
        .route("/", get(page))
        .route("/events", get(events))
        .route("/headers", get(headers).post(headers))
        .route("/ws", get(web_socket))
        .layer(middleware::map_response(move |mut response: Response| {
            let from = from.clone();
            async move {
                response
                    .headers_mut()
                    .insert(HeaderName::from_static("x-container"), from);
                response
            }
        }))
        .with_state(id)
}

async fn page(State(id): State<Arc<str>>) -> Html<String> {
    // The id is the service's own; nothing in it needs escaping.
    Html(format!(
        "<!doctype html>\n<title>{id}</title>\n<h1>container {id}</h1>\n\
         <p>Also here: <a href=/headers>/headers</a>, <a href=/events>/events</a>, /ws.\n"
    ))
}

/// The request as it arrived; values of one name are joined by a comma.
async fn headers(State(id): State<Arc<str>>, request: Request) -> Json<serde_json::Value> {
    let mut headers = serde_json::Map::new();
    for name in request.headers().keys() {
        let values: Vec<_> = request
            .headers()
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        headers.insert(name.to_string(), values.join(", ").into());
    }
    Json(json!({
        "container": &*id,
        "method": request.method().as_str(),
        "uri": request.uri().to_string(),
        "headers": headers,
    }))
}

/// The first tick at once, then one every half second.
async fn events(State(id): State<Arc<str>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let ticks = tokio::time::interval(TICK);
    let events = stream::unfold((ticks, 1_u64, id), async |(mut ticks, tick, id)| {
        ticks.tick().await;
        let data = json!({ "container": &*id, "tick": tick }).to_string();
        let event = Event::default()
            .event("tick")
            .id(tick.to_string())
            .data(data);
        Some((Ok(event), (ticks, tick + 1, id)))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

async fn web_socket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(echo_messages).into_response()
}

async fn echo_messages(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let sent = match message {
            Message::Text(_) | Message::Binary(_) => socket.send(message).await,
            // Answered by the library.
            Message::Ping(_) | Message::Pong(_) => Ok(()),
            Message::Close(_) => return,
        };
        if sent.is_err() {
            return;
        }
    }
}
