//! Text in, checked values or every mistake out.

use std::sync::Arc;
use std::time::Duration;

use edd_daemon::cli::{Invalid, Problems, parse_addr, parse_duration};
use edd_daemon::telemetry::{LogFormat, parse_filter};
use edd_events::connect::NatsOptions;
use edd_events::signature::{Signer, Verifier};
use edd_store::DatabaseUrl;

use super::files::{self, Caps};
use super::parse::{
    parse_domain, parse_ip, parse_net, parse_number, parse_port, parse_proxy_protocol, parse_server,
};
use super::{Announced, Config, History, NatsConfig, Ports, ProxyProtocol, ServeArgs, Timeouts};
use crate::listener::RequestRate;

impl ServeArgs {
    /// Checks everything; every mistake is in the error.
    pub fn check(self) -> Result<Config, Invalid> {
        let mut problems = Problems::of::<crate::commands::Cli>();
        let p = &mut problems;
        let http_addr = p.check("--http-addr", parse_addr(&self.http_addr));
        let https_addr = p.check("--https-addr", parse_addr(&self.https_addr));
        let ssh_addr = p.check("--ssh-addr", parse_addr(&self.ssh_addr));
        let admin_addr = p.check("--admin-addr", parse_addr(&self.admin_addr));
        let ports = p.check("--ports", Ports::parse(&self.ports));
        let ports_addr = p.check("--ports-addr", parse_ip(&self.ports_addr));
        if let (Some(ports), Some(ports_addr)) = (&ports, ports_addr) {
            let fixed = [
                ("--http-addr", http_addr),
                ("--https-addr", https_addr),
                ("--ssh-addr", ssh_addr),
                ("--admin-addr", admin_addr),
            ];
            for (flag, addr) in fixed {
                let Some(addr) = addr else { continue };
                let same = addr.ip() == ports_addr
                    || addr.ip().is_unspecified()
                    || ports_addr.is_unspecified();
                if same && ports.contains(addr.port()) {
                    p.push(flag, format!("{addr} lies inside --ports {}", self.ports));
                }
            }
        }
        let public_http_port = p.check("--public-http-port", parse_port(&self.public_http_port));
        let public_https_port = p.check("--public-https-port", parse_port(&self.public_https_port));
        let public_ssh_port = p.check("--public-ssh-port", parse_port(&self.public_ssh_port));
        let database_url = p.check("--database-url", self.database_url.parse::<DatabaseUrl>());
        let digest_interval = match self.digest_interval.as_str() {
            "0" => Some(None),
            text => p.check("--digest-interval", parse_duration(text)).map(Some),
        };
        let days = parse_number(&self.history_days, 0, HISTORY_DAYS_MAX);
        let history_days = p.check("--history-days", days);
        let rows = parse_number(&self.history_rows, 0, HISTORY_ROWS_MAX);
        let history_rows = p.check("--history-rows", rows);
        let replicas = p.check("--nats-replicas", parse_number(&self.nats_replicas, 1, 5));
        let nats_url = self.nats_url.filter(|url| !url.is_empty());
        if let Some(url) = &nats_url {
            p.check("--nats-url", edd_events::connect::check_url(url));
        }
        let nats = NatsOptions {
            url: nats_url.unwrap_or_default(),
            creds: self.nats_creds,
            nkey: self.nats_nkey,
            ca: self.nats_ca,
            name: "edd-gateway".into(),
        };
        let flag = if nats.nkey.is_some() {
            "--nats-nkey"
        } else {
            "--nats-creds"
        };
        p.check(flag, nats.check_identity());
        p.check("--nats-ca", nats.check_ca());
        let signer = (self.event_signing_key.as_deref())
            .and_then(|file| p.check("--event-signing-key", Signer::load(file)));
        let verifier = (self.event_keys.as_deref())
            .and_then(|path| p.check("--event-keys", Verifier::load(path)));
        let platform_domain = p.check("--platform-domain", parse_domain(&self.platform_domain));
        let container_cidrs = p.check_list("--container-cidrs", &self.container_cidrs, parse_net);
        let resolvers = p.check_list("--resolver", &self.resolver, parse_server);
        let trusted_proxies = p.check_list("--trusted-proxies", &self.trusted_proxies, parse_net);
        let proxy_protocol = p.check(
            "--proxy-protocol",
            parse_proxy_protocol(&self.proxy_protocol),
        );
        if trusted_proxies.is_empty()
            && proxy_protocol.is_some_and(|mode| mode != ProxyProtocol::Off)
        {
            let why = "is believed of --trusted-proxies only, and there are none";
            p.push("--proxy-protocol", why);
        }
        let send_proxy_protocol = Announced::parse(p, &self.send_proxy_protocol);
        let container_tls_ports = p.check_list(
            "--container-tls-ports",
            &self.container_tls_ports,
            parse_port,
        );
        let container_ssh_port =
            p.check("--container-ssh-port", parse_port(&self.container_ssh_port));
        let ssh = self.ssh.check(p, database_url.as_ref());
        let mut time = |flag, text: &str| {
            let checked = parse_duration(text)
                .map_err(|error| error.to_string())
                .and_then(|time| {
                    if time.is_zero() {
                        Err("must be longer than 0".to_owned())
                    } else {
                        Ok(time)
                    }
                });
            p.check(flag, checked).unwrap_or_default()
        };
        let timeouts = Timeouts {
            header: time("--header-timeout", &self.header_timeout),
            body: time("--body-timeout", &self.body_timeout),
            idle: time("--idle-timeout", &self.idle_timeout),
            connect: time("--connect-timeout", &self.connect_timeout),
            upstream: time("--upstream-timeout", &self.upstream_timeout),
            stream_idle: time("--stream-idle-timeout", &self.stream_idle_timeout),
            drain: time("--drain-timeout", &self.drain_timeout),
        };
        let max_connections = p.check(
            "--max-connections",
            parse_number(&self.max_connections, 0, usize::MAX),
        );
        let per_ip = p.check(
            "--max-connections-per-ip",
            parse_number(&self.max_connections_per_ip, 0, usize::MAX),
        );
        let rate = |text: &str| parse_number(text, 0, RATE_MAX);
        let per_second = p.check("--max-requests-per-ip", rate(&self.max_requests_per_ip));
        let burst = p.check(
            "--max-requests-per-ip-burst",
            rate(&self.max_requests_per_ip_burst),
        );
        let workers = p.check("--workers", parse_number(&self.workers, 0, 1024));
        let log_format = p.check("--log-format", self.log_format.parse::<LogFormat>());
        p.check("--log", parse_filter(&self.log).map(drop));

        let (
            Some(http_addr),
            Some(https_addr),
            Some(ssh_addr),
            Some(admin_addr),
            Some(ports),
            Some(ports_addr),
            Some(public_http_port),
            Some(public_https_port),
            Some(public_ssh_port),
            Some(database_url),
            Some(digest_interval),
            Some(history_days),
            Some(history_rows),
            Some(replicas),
            Some(platform_domain),
            Some(container_ssh_port),
            Some(ssh),
            Some(proxy_protocol),
            Some(max_connections),
            Some(per_ip),
            Some(per_second),
            Some(burst),
            Some(workers),
            Some(log_format),
        ) = (
            http_addr,
            https_addr,
            ssh_addr,
            admin_addr,
            ports,
            ports_addr,
            public_http_port,
            public_https_port,
            public_ssh_port,
            database_url,
            digest_interval,
            history_days,
            history_rows,
            replicas,
            platform_domain,
            container_ssh_port,
            ssh,
            proxy_protocol,
            max_connections,
            per_ip,
            per_second,
            burst,
            workers,
            log_format,
        )
        else {
            return Err(problems.into_invalid());
        };
        let workers = match workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        // Each worker has its own socket of each port and of HTTP and HTTPS.
        let listeners = workers.saturating_mul(ports.iter().count() + 2);
        let asked = Some(max_connections).filter(|max| *max > 0);
        let files = files::limit();
        let carried = Caps::clients_max(files, listeners);
        if asked.is_some_and(|asked| asked > carried) {
            problems.push(
                "--max-connections",
                format!("{max_connections} is more than a limit of {files} open files carries: at most {carried} (raise it with ulimit -n or LimitNOFILE)"),
            );
        }
        problems.finish()?;
        let caps = Caps::within(files, listeners, asked);
        Ok(Config {
            routes: self.routes,
            certs_dir: self.certs_dir,
            database_url,
            digest_interval,
            history: History {
                kept: DAY * u32::try_from(history_days).unwrap_or(u32::MAX),
                rows_max: u64::try_from(history_rows).unwrap_or(u64::MAX),
            },
            nats: (!nats.url.is_empty()).then(|| NatsConfig {
                options: nats,
                replicas,
                signer: signer.map(Arc::new),
                verifier: verifier.map(Arc::new),
            }),
            http_addr,
            https_addr,
            ssh_addr,
            ports,
            ports_addr,
            public_http_port,
            public_https_port,
            public_ssh_port,
            admin_addr,
            state_dir: self.state_dir,
            platform_domain,
            container_cidrs,
            container_tls_ports,
            container_ssh_port,
            ssh,
            trusted_proxies,
            proxy_protocol,
            send_proxy_protocol,
            resolvers,
            timeouts,
            max_connections: caps.clients,
            max_upstream_connections: caps.upstreams,
            max_connections_per_ip: Some(per_ip).filter(|max| *max > 0),
            request_rate: request_rate(per_second, burst),
            workers,
            take_over: self.take_over,
            log: self.log,
            log_format,
        })
    }
}

fn request_rate(per_second: usize, burst: usize) -> Option<RequestRate> {
    let per_second = u32::try_from(per_second).ok().filter(|n| *n > 0)?;
    let burst = u32::try_from(burst).ok().filter(|n| *n > 0);
    Some(RequestRate {
        per_second,
        burst: burst.unwrap_or(per_second),
    })
}

/// Ten years; and what no disk is made for.
const HISTORY_DAYS_MAX: usize = 3650;
const HISTORY_ROWS_MAX: usize = 100_000_000;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A million requests per second and address is no limit.
const RATE_MAX: usize = 1_000_000;
