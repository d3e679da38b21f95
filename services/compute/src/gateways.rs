//! The gateways: asked whether a container can be reached by everyone.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::http::StatusCode;
use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};

use crate::http::{PlainUrl, get};

/// The gateways' admin endpoints. A name may stand for several.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gateways(Vec<PlainUrl>);

impl Gateways {
    /// Those behind `urls`.
    pub(crate) fn new(urls: Vec<PlainUrl>) -> Self {
        Self(urls)
    }

    /// Whether there is nobody to ask.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether, before `deadline`, every gateway serves the container at `address` with rules for
    /// these ports, and with SSH if it is on.
    pub(crate) async fn serve(
        &self,
        id: &str,
        address: IpAddr,
        ports: &[u16],
        ssh_enabled: bool,
        deadline: Instant,
    ) -> bool {
        let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
        let left = deadline.saturating_duration_since(Instant::now());
        // A little earlier than we give up, so that they can say so.
        let left = left.saturating_sub(Duration::from_millis(50)).as_millis();
        // Several gateways share the events, and one may be ahead of another.
        let ssh = if ssh_enabled { "&ssh=true" } else { "" };
        let target = format!(
            "/api/v1/wait?container={id}&address={address}&ports={}{ssh}&timeout={left}ms",
            ports.join(",")
        );
        let asking = async {
            let mut all = Vec::new();
            for url in &self.0 {
                match url.addresses().await {
                    Ok(found) if !found.is_empty() => {
                        all.extend(found.into_iter().map(|address| (url, address)));
                    }
                    Ok(_) => return false,
                    Err(error) => {
                        tracing::warn!(%url, %error, "no gateway found");
                        return false;
                    }
                }
            }
            let asked = all.iter().map(|(url, address)| ask(url, *address, &target));
            join_all(asked).await.into_iter().all(|serves| serves)
        };
        timeout_at(deadline, asking).await.unwrap_or(false)
    }
}

async fn ask(url: &PlainUrl, address: SocketAddr, target: &str) -> bool {
    match get(url, &[address], target, None).await {
        Ok((StatusCode::OK, _)) => true,
        Ok((status, _)) => {
            tracing::info!(%url, %address, %status, "a gateway does not serve a container yet");
            false
        }
        Err(error) => {
            tracing::warn!(%url, %address, %error, "a gateway does not answer");
            false
        }
    }
}
