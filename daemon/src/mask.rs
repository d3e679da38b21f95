//! What must not be in a log: tokens, passwords, e-mail addresses.
//!
//! Lines are masked where they are written, whoever made them: nobody has to
//! think of it at each place that logs. Nearly all lines hold nothing of the
//! kind, which a few looks at the line tell.
//!
//! Masked are: what has the form of a session token (43 characters of
//! base64url, upper and lower case), what follows `Bearer`, `Basic`,
//! `Authorization` and `token=`, `password=`, `API_KEY=` and the like in either
//! case, passwords in URLs, and e-mail addresses, of which the first letter and
//! the domain stay.
//!
//! A line is one line: line ends and other control characters within it are
//! escaped, so that nobody writes lines of his own into the log.

use std::{borrow::Cow, cell::RefCell, io, sync::LazyLock};

use memchr::{memchr, memmem::Finder};
use tracing_subscriber::fmt::MakeWriter;

/// Characters of a session token.
const TOKEN_CHARS: usize = 43;
/// What stands for a secret.
const MASK: &[u8] = b"***";
/// Longest local part of an e-mail address that is looked at, in bytes.
const LOCAL_MAX: usize = 128;

/// Words before a secret, in lower case.
static WORDS: LazyLock<[Finder<'static>; 4]> =
    LazyLock::new(|| ["bearer", "authorization", "token", "password"].map(Finder::new));

/// Words before a secret if a sign stands between them: `PGPASSWD=`, `AWS_SECRET_ACCESS_KEY=`.
static NAMES: LazyLock<[Finder<'static>; 7]> = LazyLock::new(|| {
    [
        "secret",
        "passwd",
        "pwd",
        "api_key",
        "api-key",
        "apikey",
        "access_key",
    ]
    .map(Finder::new)
});

/// An at sign of a query.
static ENCODED_AT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("%40"));

/// Of the copy in lower case so much is kept for the next line, in bytes.
const LOWER_KEPT: usize = 64 << 10;

thread_local! {
    /// The line in lower case, kept for its memory.
    static LOWER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The line without secrets; itself when it has none.
#[must_use]
pub fn mask(line: &[u8]) -> Cow<'_, [u8]> {
    let mut spans = Vec::new();
    if memchr(b'@', line).is_some() {
        addresses(line, &mut spans);
    }
    if ENCODED_AT.find(line).is_some() {
        encoded_addresses(line, &mut spans);
    }
    LOWER.with_borrow_mut(|lower| {
        lower.clear();
        lower.extend_from_slice(line);
        lower.make_ascii_lowercase();
        for word in WORDS.iter() {
            for at in word.find_iter(lower) {
                after_word(line, at + word.needle().len(), false, &mut spans);
            }
        }
        for name in NAMES.iter() {
            for at in name.find_iter(lower) {
                after_word(line, at + name.needle().len(), true, &mut spans);
            }
        }
        // Lines are short; one that was not is not kept.
        if lower.capacity() > LOWER_KEPT {
            *lower = Vec::new();
        }
    });
    tokens(line, &mut spans);
    if spans.is_empty() {
        return Cow::Borrowed(line);
    }
    spans.sort_unstable();
    let mut masked = Vec::with_capacity(line.len());
    let mut done = 0;
    for (start, end) in spans {
        // What lies inside another is gone with it.
        if end <= done {
            continue;
        }
        if start > done {
            masked.extend_from_slice(line.get(done..start).unwrap_or_default());
            masked.extend_from_slice(MASK);
        } else if done == 0 {
            masked.extend_from_slice(MASK);
        }
        done = end;
    }
    masked.extend_from_slice(line.get(done..).unwrap_or_default());
    Cow::Owned(masked)
}

/// From and up to where a secret reaches.
type Span = (usize, usize);

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// Runs of exactly [`TOKEN_CHARS`]. One that long cannot hide between two looks
/// that far apart, so few bytes are looked at.
fn tokens(line: &[u8], spans: &mut Vec<Span>) {
    let mut at = TOKEN_CHARS - 1;
    while let Some(&byte) = line.get(at) {
        if !is_token(byte) {
            at += TOKEN_CHARS;
            continue;
        }
        let before = line.iter().take(at).rev();
        let start = at - before.take_while(|byte| is_token(**byte)).count();
        let after = line.iter().skip(at);
        let end = at + after.take_while(|byte| is_token(**byte)).count();
        let start = after_escape(line, start, end);
        let run = line.get(start..end).unwrap_or_default();
        // Fingerprints have the same length, and are no secret.
        let fingerprint = line.get(..start).is_some_and(|l| l.ends_with(b"SHA256:"));
        if run.len() == TOKEN_CHARS
            && !fingerprint
            && run.iter().any(u8::is_ascii_uppercase)
            && run.iter().any(u8::is_ascii_lowercase)
        {
            spans.push((start, end));
        }
        at = end + TOKEN_CHARS;
    }
}

/// The end of a colour's escape sequence looks like the begin of a token.
fn after_escape(line: &[u8], start: usize, end: usize) -> usize {
    let escape = line.get(..start).is_some_and(|l| l.ends_with(b"\x1b["));
    if !escape {
        return start;
    }
    let run = line.get(start..end).unwrap_or_default();
    memchr(b'm', run).map_or(start, |m| start + m + 1)
}

/// The secret after a word: `Bearer X`, `Authorization: Basic X`, `token=X`,
/// `"password":"X"`. If `strict`, only behind `=` or `:`.
fn after_word(line: &[u8], end: usize, strict: bool, spans: &mut Vec<Span>) {
    let mut at = end;
    let skip = |at: &mut usize, set: &[u8]| {
        while line.get(*at).is_some_and(|byte| set.contains(byte)) {
            *at += 1;
        }
    };
    // An escape sequence between a field's name and its value.
    loop {
        skip(&mut at, b"\"'\\");
        let Some(rest) = line.get(at..).and_then(|l| l.strip_prefix(b"\x1b[")) else {
            break;
        };
        let Some(m) = memchr(b'm', rest) else { return };
        at += m + 3;
    }
    let separator = at;
    skip(&mut at, b"=:");
    // `token: no answer` is language.
    let signs = line.get(separator..at).unwrap_or_default();
    let named = signs.contains(&b'=') || (!signs.is_empty() && line.get(at) != Some(&b' '));
    skip(&mut at, b"\"'\\ ");
    while let Some(rest) = line.get(at..).and_then(|l| l.strip_prefix(b"\x1b[")) {
        let Some(m) = memchr(b'm', rest) else { return };
        at += m + 3;
        skip(&mut at, b"\"'\\");
    }
    if at == end {
        return;
    }
    if strict && !named {
        return;
    }
    let mut named = named;
    for scheme in [&b"bearer "[..], b"basic "] {
        let begin = line.get(at..at + scheme.len());
        if begin.is_some_and(|begin| begin.eq_ignore_ascii_case(scheme)) {
            at += scheme.len();
            named = true;
        }
    }
    let secret = line.get(at..).unwrap_or_default();
    let len = secret
        .iter()
        .take_while(|byte| {
            !matches!(
                byte,
                b' ' | b'"'
                    | b'\''
                    | b'\\'
                    | b'&'
                    | b','
                    | b';'
                    | b'}'
                    | b')'
                    | b'\n'
                    | b'\r'
                    | 0x1b
            )
        })
        .count();
    // Without a sign between them, a short word is language: "token is bad".
    let plausible =
        named || (len >= 16 && secret.iter().take(len).any(|b| !b.is_ascii_lowercase()));
    if len > 0 && plausible {
        spans.push((at, at + len));
    }
}

/// Passwords of URLs and e-mail addresses.
fn addresses(line: &[u8], spans: &mut Vec<Span>) {
    for at in memchr::memchr_iter(b'@', line) {
        if let Some(span) = url_password(line, at) {
            spans.push(span);
        } else {
            address(line, at, at + 1, spans);
        }
    }
}

fn encoded_addresses(line: &[u8], spans: &mut Vec<Span>) {
    for at in ENCODED_AT.find_iter(line) {
        address(line, at, at + 3, spans);
    }
}

/// `scheme://user:password@host`: the password.
fn url_password(line: &[u8], at: usize) -> Option<Span> {
    let before = line.get(..at)?;
    let word = before
        .iter()
        .rposition(|byte| matches!(byte, b' ' | b'"' | b'\'' | b'<' | b'('))
        .map_or(0, |space| space + 1);
    let word_text = before.get(word..)?;
    let scheme = memchr::memmem::rfind(word_text, b"://")?;
    let user = word + scheme + 3;
    let userinfo = line.get(user..at)?;
    if userinfo.contains(&b'/') {
        return None;
    }
    match memchr(b':', userinfo) {
        Some(colon) => Some((user + colon + 1, at)),
        // A name alone, or a token in its place.
        None => Some((user, at)),
    }
}

/// `local@domain.tld`: the local part but for its first letter.
fn address(line: &[u8], local_end: usize, domain_start: usize, spans: &mut Vec<Span>) {
    let is_local = |byte: &u8| {
        byte.is_ascii_alphanumeric() || b"._+-!#$%&*/?^`{|}~".contains(byte) || *byte >= 0x80
    };
    let before = line.get(..local_end).unwrap_or_default();
    let mut len = before
        .iter()
        .rev()
        .take(LOCAL_MAX)
        .take_while(|byte| is_local(byte))
        .count();
    // In a path or query the address begins after these.
    let local = before.get(local_end - len..).unwrap_or_default();
    if let Some(border) = local.iter().rposition(|byte| b"/?&".contains(byte)) {
        len -= border + 1;
    }
    let after = line.get(domain_start..).unwrap_or_default();
    let domain_len = after
        .iter()
        .take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
        .count();
    let domain = after.get(..domain_len).unwrap_or_default();
    let domain = domain.strip_suffix(b".").unwrap_or(domain);
    let tld = domain.rsplit(|byte| *byte == b'.').next();
    let is_domain = domain.contains(&b'.')
        && tld.is_some_and(|tld| tld.len() >= 2 && tld.iter().all(u8::is_ascii_alphabetic));
    if len == 0 || !is_domain {
        return;
    }
    let start = local_end - len;
    // One letter says little; of one that is more than a byte, nothing stays.
    let shown = usize::from(len > 1 && line.get(start).is_some_and(u8::is_ascii));
    spans.push((start + shown, local_end));
}

/// The line without control characters but for its end, tabs, and the escape of colours, which the
/// subscriber lets through for its own only; itself when it has none.
fn one_line(line: &[u8]) -> Cow<'_, [u8]> {
    let is_control = |byte: &u8| *byte < 0x20 && !matches!(byte, b'\t' | 0x1b);
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    if !text.iter().any(is_control) {
        return Cow::Borrowed(line);
    }
    let mut escaped = Vec::with_capacity(line.len() + 16);
    for byte in text {
        if is_control(byte) {
            escaped.extend(byte.escape_ascii());
        } else {
            escaped.push(*byte);
        }
    }
    escaped.extend_from_slice(line.get(text.len()..).unwrap_or_default());
    Cow::Owned(escaped)
}

/// A writer that masks what passes.
#[derive(Clone, Debug)]
pub(crate) struct Masking<W>(pub(crate) W);

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for Masking<W> {
    type Writer = Masking<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        Masking(self.0.make_writer())
    }

    fn make_writer_for(&'w self, meta: &tracing::Metadata<'_>) -> Self::Writer {
        Masking(self.0.make_writer_for(meta))
    }
}

/// The subscriber writes whole lines.
impl<W: io::Write> io::Write for Masking<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(&one_line(&mask(line)))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(line: &str) -> String {
        String::from_utf8(mask(line.as_bytes()).into_owned()).unwrap()
    }

    const TOKEN: &str = "q8Zt0vB7-xYw3RkLm_NpQsTuVdEfGhJi1234567890A";

    #[test]
    fn session_tokens_go_wherever_they_stand() {
        assert_eq!(TOKEN.len(), TOKEN_CHARS);
        for before in ["", "x ", "a=", "\"", "/api/", &"y ".repeat(60)] {
            for after in ["", " z", "\"", "\n", "?a"] {
                let line = format!("{before}{TOKEN}{after}");
                assert_eq!(masked(&line), format!("{before}***{after}"));
            }
        }
        let coloured = format!("\x1b[3mtoken\x1b[0m\x1b[2m=\x1b[0m{TOKEN}");
        assert!(!masked(&coloured).contains(&TOKEN[1..]), "{coloured:?}");
        let coloured = format!("\x1b[3mx\x1b[0m\x1b[2m=\x1b[0m{TOKEN}");
        assert!(masked(&coloured).ends_with("\x1b[0m***"), "{coloured:?}");
    }

    #[test]
    fn other_long_words_stay() {
        for line in [
            "key=SHA256:q8Zt0vB7xYw3RkLmNpQsTuVdEfGhJi1234567890AbC",
            "id=0190f3a1-7c3e-7d5a-9a51-3f0f9b1f2c3d",
            "host=a-very-long-name-of-a-host-in-lower-case-so.example.com",
            "hash=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "nkey=UACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
        ] {
            assert_eq!(masked(line), line);
            assert!(matches!(mask(line.as_bytes()), Cow::Borrowed(_)));
        }
    }

    #[test]
    fn secrets_go_with_the_words_before_them() {
        for (line, expected) in [
            (
                "Authorization: Bearer abc.def-1",
                "Authorization: Bearer ***",
            ),
            (
                "authorization: Basic dXNlcjpwYXNz x",
                "authorization: Basic *** x",
            ),
            ("got Bearer eyJhbGciOi.J9eyJzdWI.x", "got Bearer ***"),
            ("GET /x?access_token=abc&y=1", "GET /x?access_token=***&y=1"),
            (
                r#"{"password":"hunter2","a":1}"#,
                r#"{"password":"***","a":1}"#,
            ),
            (r#"{\"password\":\"hunter2\"}"#, r#"{\"password\":\"***\"}"#),
            ("password=hunter2", "password=***"),
            ("token=\"abc\" x", "token=\"***\" x"),
            ("PGPASSWORD=hunter2 psql", "PGPASSWORD=*** psql"),
            ("API_TOKEN=abc x", "API_TOKEN=*** x"),
            (
                "AWS_SECRET_ACCESS_KEY=ab/cd x",
                "AWS_SECRET_ACCESS_KEY=*** x",
            ),
            ("CLIENT_SECRET=abc", "CLIENT_SECRET=***"),
            ("client_secret: x", "client_secret: x"),
            (r#"{"Secret":"abc"}"#, r#"{"Secret":"***"}"#),
            ("MYSQL_PWD='abc' mysql", "MYSQL_PWD='***' mysql"),
            ("PASSWD=abc", "PASSWD=***"),
            ("x-api-key:abc", "x-api-key:***"),
            ("API_KEY=abc ApiKey=def", "API_KEY=*** ApiKey=***"),
            ("AUTHORIZATION: BEARER abc", "AUTHORIZATION: BEARER ***"),
            ("PassWord=abc", "PassWord=***"),
        ] {
            assert_eq!(masked(line), expected);
        }
    }

    #[test]
    fn talk_of_tokens_stays() {
        for line in [
            "a token was not validated in time",
            "wrong password",
            "cannot check the token: no answer within 2 s",
            "the token, though",
            "the secret /var/lib/edd-gateway/secret is not there",
            "pwd is /var/lib/edd-gateway/A1",
        ] {
            assert_eq!(masked(line), line);
        }
    }

    #[test]
    fn passwords_of_urls_go() {
        for (line, expected) in [
            ("nats://user:hunter2@h:4222", "nats://user:***@h:4222"),
            (
                "url=\"postgres://u:p@ss@h/d\"",
                "url=\"postgres://u:***@h/d\"",
            ),
            (
                "nats://s3cr3t@h.example.com x",
                "nats://***@h.example.com x",
            ),
        ] {
            assert_eq!(masked(line), expected, "{line}");
        }
    }

    #[test]
    fn of_mail_addresses_a_letter_and_the_domain_stay() {
        for (line, expected) in [
            ("user=\"ann.b+c@example.com\"", "user=\"a***@example.com\""),
            ("x@example.co.uk.", "***@example.co.uk."),
            (
                "/users/ann@example.com/keys",
                "/users/a***@example.com/keys",
            ),
            (
                "/f?mail=ann%40example.com&x",
                "/f?mail=a***%40example.com&x",
            ),
            (
                "to <ann@example.com>, <bob@example.org>",
                "to <a***@example.com>, <b***@example.org>",
            ),
            ("jörg@example.com", "j***@example.com"),
            ("日本@example.com", "***@example.com"),
        ] {
            assert_eq!(masked(line), expected);
        }
    }

    #[test]
    fn what_is_no_mail_address_stays() {
        for line in [
            "root@c1",
            "ssh root@127.0.0.1",
            "@example.com",
            "a @ b.com",
            "x@.",
            "50%40",
        ] {
            assert_eq!(masked(line), line);
        }
    }

    #[test]
    fn any_bytes_are_lines() {
        for line in [
            &b"@@@@"[..],
            b"://@",
            b"Bearer",
            b"token=",
            b"\x1b[",
            b"token\x1b[0",
            &[0xff; 200],
            b"%40",
        ] {
            let _ = mask(line);
        }
    }
}
