//! A minimal reverse proxy on pingora, for `cargo xtask bench`: one worker thread, one upstream,
//! kept connections, the headers that the other proxies of a comparison add, no access log.
//!
//! Usage: edd-bench-pingora PLAIN TLS ORIGIN CHAIN KEY (addresses as HOST:PORT)

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use pingora::listeners::tls::TlsSettings;
use pingora::prelude::*;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::configuration::ServerConf;

/// Of Cargo.toml; `xtask` reads it from `--version`.
const VERSION: &str = "0.9.1";

struct Proxy {
    origin: String,
    requests: AtomicU64,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        _ctx: &mut Self::CTX,
    ) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(
            self.origin.as_str(),
            false,
            String::new(),
        )))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        _ctx: &mut Self::CTX,
    ) -> Result<()> {
        // HTTP/2 names the host beside the headers; an HTTP/1.1 upstream wants one.
        let host = match request.headers.get("host") {
            Some(host) => host.clone(),
            None => {
                let host = request.uri.host().unwrap_or_default().to_owned();
                request.insert_header("Host", &host)?;
                host.try_into().or_err(ErrorType::InvalidHTTPHeader, "host")?
            }
        };
        request.insert_header("X-Forwarded-Host", host)?;
        if let Some(client) = session.client_addr().and_then(|client| client.as_inet()) {
            request.insert_header("X-Forwarded-For", client.ip().to_string())?;
        }
        let tls = session
            .digest()
            .is_some_and(|digest| digest.ssl_digest.is_some());
        request.insert_header("X-Forwarded-Proto", if tls { "https" } else { "http" })?;
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        request.insert_header("X-Request-ID", format!("{number:032x}"))?;
        Ok(())
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--version") {
        println!("pingora {VERSION}");
        return;
    }
    let [plain, tls, origin, chain, key] = arguments.as_slice() else {
        eprintln!("usage: edd-bench-pingora PLAIN TLS ORIGIN CHAIN KEY");
        std::process::exit(64);
    };
    let conf = ServerConf {
        threads: 1,
        work_stealing: false,
        upstream_keepalive_pool_size: 1024,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let proxy = Proxy {
        origin: origin.clone(),
        requests: AtomicU64::new(0),
    };
    let mut service = http_proxy_service(&Arc::clone(&server.configuration), proxy);
    service.add_tcp(plain);
    let mut settings = TlsSettings::intermediate(chain, key).expect("a certificate");
    settings.enable_h2();
    service.add_tls_with_settings(tls, None, settings);
    server.add_service(service);
    server.run_forever();
}
