//! Session tokens and the ids that the public sees.
//!
//! A token is 256 random bits that mean nothing by themselves. Only its SHA-256
//! is kept: a copy of the database opens no session. (No salt and no slow hash:
//! there is nothing to guess in 256 bits.)

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::{Rng as _, RngExt as _};
use sha2::{Digest as _, Sha256};

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;

/// Characters of a token in base64url.
const TOKEN_CHARS: usize = 43;

/// Characters of a session's public id: 20 of 36 are some 103 bits.
const SESSION_ID_CHARS: usize = 20;

/// Characters of a user's public id, as the design says. It is no secret; two
/// alike are refused by the database and drawn again.
const PUBLIC_ID_CHARS: usize = 6;

/// A session token as the client holds it. Its debug form does not show it.
#[derive(Clone, Eq, PartialEq)]
pub struct Token(String);

/// What is kept of a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TokenHash([u8; 32]);

impl Token {
    /// A new token.
    pub fn random() -> Self {
        let mut bytes = [0; TOKEN_BYTES];
        rand::rng().fill_bytes(&mut bytes);
        Self(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// A token as a client sent it; `None` when it cannot be one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let plausible = text.len() == TOKEN_CHARS
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        plausible.then(|| Self(text.to_owned()))
    }

    /// What is kept of it.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }

    /// The secret itself, for the one answer that hands it out.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl TokenHash {
    /// The hash's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The public id of a new session, which names it in events.
pub fn session_id() -> String {
    random_id(SESSION_ID_CHARS)
}

/// The public id of a new user: a nanoid of six characters.
pub fn public_id() -> String {
    random_id(PUBLIC_ID_CHARS)
}

/// Random characters of `[a-z0-9]`, evenly distributed.
pub(crate) fn random_id(chars: usize) -> String {
    let mut rng = rand::rng();
    (0..chars)
        .map(|_| {
            let drawn: u32 = rng.random_range(0..36);
            char::from_digit(drawn, 36).unwrap_or('0')
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn tokens_differ_and_come_back_the_same() {
        let tokens: HashSet<String> = (0..100).map(|_| Token::random().reveal().into()).collect();
        assert_eq!(tokens.len(), 100);
        for text in tokens {
            let token = Token::parse(&text).expect("our own token");
            assert_eq!(token.reveal(), text);
            assert_ne!(token.hash(), Token::random().hash());
        }
    }

    #[test]
    fn what_cannot_be_a_token_is_none() {
        let long = "a".repeat(44);
        for text in ["", "a", "a b", &"é".repeat(22), &long, &" ".repeat(43)] {
            assert_eq!(Token::parse(text), None, "{text}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let token = Token::random();
        assert!(!format!("{token:?}").contains(token.reveal()));
    }

    #[test]
    fn public_ids_are_short_and_plain() {
        assert_eq!(public_id().len(), 6);
        assert_eq!(session_id().len(), 20);
        let ids = random_id(10_000);
        assert!(
            ids.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        );
        assert_eq!(ids.chars().collect::<HashSet<_>>().len(), 36);
    }
}
