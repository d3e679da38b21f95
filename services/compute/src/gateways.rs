//! The gateways: asked whether a container can be reached by everyone.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::http::StatusCode;
use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};

use crate::http::{PlainUrl, get};

/// Keys of one user that a question names. The gateways hear of keys in their order, so that with
/// the newest ones all are there; and a URL has its limits.
const KEYS_MAX: usize = 500;

/// The gateways' admin endpoints. A name may stand for several.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gateways(Vec<PlainUrl>);

/// What everyone should be able to reach.
#[derive(Debug)]
pub(crate) struct Reachable<'a> {
    /// A container
    pub(crate) id: &'a str,
    /// that runs at this address,
    pub(crate) address: IpAddr,
    /// with rules for these ports,
    pub(crate) ports: &'a [u16],
    /// and, if SSH is on, opened by these keys, oldest first.
    pub(crate) ssh_keys: Option<&'a [i64]>,
}

impl Gateways {
    /// Those behind `urls`.
    pub(crate) fn new(urls: Vec<PlainUrl>) -> Self {
        Self(urls)
    }

    /// Whether there is nobody to ask.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether, before `deadline`, every gateway serves the container so.
    pub(crate) async fn serve(&self, wanted: &Reachable<'_>, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        // A little earlier than we give up, so that they can say so.
        let left = left.saturating_sub(Duration::from_millis(50)).as_millis();
        // Several gateways share the events, and one may be ahead of another.
        let target = format!("{}&timeout={left}ms", wanted.question());
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

impl Reachable<'_> {
    /// In the words of a gateway's admin endpoint.
    fn question(&self) -> String {
        let Self { id, address, .. } = self;
        let ports = list(self.ports);
        let mut question = format!("/api/v1/wait?container={id}&address={address}&ports={ports}");
        if let Some(keys) = self.ssh_keys {
            question.push_str("&ssh=true");
            let newest = keys.get(keys.len().saturating_sub(KEYS_MAX)..);
            if let Some(newest) = newest.filter(|newest| !newest.is_empty()) {
                question.push_str("&keys=");
                question.push_str(&list(newest));
            }
        }
        question
    }
}

fn list<N: ToString>(numbers: &[N]) -> String {
    let numbers: Vec<_> = numbers.iter().map(N::to_string).collect();
    numbers.join(",")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_names_the_newest_keys_and_fits_into_a_url() {
        let keys: Vec<i64> = (0..10_000).map(|n| i64::MAX - 10_000 + n).collect();
        let wanted = |ssh_keys| Reachable {
            id: "c1",
            address: IpAddr::from([127, 64, 0, 1]),
            ports: &[80, 443],
            ssh_keys,
        };
        let plain = "/api/v1/wait?container=c1&address=127.64.0.1&ports=80,443";
        assert_eq!(wanted(None).question(), plain);
        assert_eq!(wanted(Some(&[])).question(), format!("{plain}&ssh=true"));
        let two = format!("{plain}&ssh=true&keys=3,4");
        assert_eq!(wanted(Some(&[3, 4])).question(), two);
        let many = wanted(Some(&keys)).question();
        assert!(many.len() < 16_000 && many.ends_with(&(i64::MAX - 1).to_string()));
    }
}
