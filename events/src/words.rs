//! The signature of an answer, which has no headers of its own: as fields of the
//! message.

use async_nats::{HeaderMap, HeaderValue};

use crate::signature::{SIGNATURE, SIGNATURE_KEY, Signer};

/// A signature and the key that made it, both empty when nobody signs.
#[derive(Debug, Default)]
pub(crate) struct Words {
    pub(crate) signature: String,
    pub(crate) key: String,
}

impl Words {
    /// Signs an answer over the subject of its request, the request's nonce and itself.
    pub(crate) fn sign(signer: Option<&Signer>, subject: &str, nonce: &str, answer: &[u8]) -> Self {
        let mut headers = HeaderMap::new();
        if let Some(signer) = signer {
            signer.write(&mut headers, subject, nonce, answer);
        }
        let header = |name: &str| {
            let value = headers.get(name).map(|value| value.as_str().to_owned());
            value.unwrap_or_default()
        };
        Self {
            signature: header(SIGNATURE),
            key: header(SIGNATURE_KEY),
        }
    }

    /// As the headers that a verifier looks at.
    pub(crate) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [(SIGNATURE, &self.signature), (SIGNATURE_KEY, &self.key)] {
            if let Ok(value) = value.parse::<HeaderValue>()
                && !value.as_str().is_empty()
            {
                headers.insert(name, value);
            }
        }
        headers
    }
}
