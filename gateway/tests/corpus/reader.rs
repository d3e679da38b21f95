//! Reads the corpus. Used by the tests of `edd-http1` and by those of the whole gateway.
//!
//! Each file says at its top what its keys mean. Here: `key: value` lines, an
//! empty line between cases, `#` for comments, and the escapes.

/// One case: its lines, keys and values, in order.
#[derive(Debug)]
pub(crate) struct Case {
    /// What the case is called.
    pub(crate) name: String,
    lines: Vec<(String, String)>,
}

impl Case {
    /// The first value of that key, raw.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.lines
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    /// Every value of that key, raw.
    pub(crate) fn all<'c>(&'c self, key: &'c str) -> impl Iterator<Item = &'c str> {
        self.lines
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    /// The value of that key, which must be there.
    pub(crate) fn need(&self, key: &str) -> &str {
        self.get(key)
            .unwrap_or_else(|| panic!("{}: no `{key}`", self.name))
    }

    /// The `in` lines as bytes.
    pub(crate) fn input(&self) -> Vec<u8> {
        bytes(&self.all("in").collect::<String>())
    }

    /// The `body` line as bytes.
    pub(crate) fn body(&self) -> Vec<u8> {
        bytes(self.need("body"))
    }

    /// The fields of an HTTP/2 request: name and value.
    pub(crate) fn fields(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.fields_of("h")
    }

    /// Those of its trailers.
    pub(crate) fn trailers(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.fields_of("t")
    }

    fn fields_of(&self, wanted: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut fields = Vec::new();
        let mut times = 1;
        for (key, value) in &self.lines {
            match key.as_str() {
                "repeat" => times = value.parse().expect("a number"),
                key if key == wanted => {
                    // A pseudo field begins with a colon of its own.
                    let colon = value.char_indices().skip(1).find(|(_, c)| *c == ':');
                    let (name, value) = match colon {
                        Some((at, _)) => value.split_at(at),
                        // An empty name.
                        None => ("", value.as_str()),
                    };
                    let value = value.strip_prefix(':').expect("a colon");
                    let value = value.strip_prefix(' ').unwrap_or(value);
                    for _ in 0..times {
                        fields.push((bytes(name), bytes(value)));
                    }
                    times = 1;
                }
                _ => {}
            }
        }
        fields
    }

    /// What the upstream must get.
    pub(crate) fn forwarded(&self) -> Forwarded {
        let mut requests = Vec::new();
        for line in self.all("up") {
            match line {
                "cut" => return Forwarded::Cut,
                "nothing" => return Forwarded::Nothing,
                line => requests.push(Request::read(line)),
            }
        }
        assert!(!requests.is_empty(), "{}: no `up`", self.name);
        Forwarded::Requests(requests)
    }
}

/// What reaches the upstream.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Forwarded {
    /// No whole request; perhaps the beginning of one.
    Cut,
    /// Not a byte.
    Nothing,
    /// These, whole.
    Requests(Vec<Request>),
}

/// A request as an upstream understands it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Request {
    pub(crate) method: Vec<u8>,
    pub(crate) target: Vec<u8>,
    /// In order and case; without framing.
    pub(crate) fields: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) framing: Framing,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(Vec<u8>, Vec<u8>)>,
}

/// How the body is delimited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Framing {
    Chunked,
    Length,
    None,
}

impl Request {
    fn read(line: &str) -> Self {
        let line = expand(line);
        let mut parts: Vec<&str> = line.split(" | ").collect();
        let body = parts.pop().expect("a body");
        let (kind, rest) = body.split_once(' ').unwrap_or((body, ""));
        let mut rest = rest.split(" + ");
        let content = bytes(rest.next().unwrap_or_default());
        let framing = match kind {
            "chunked" => Framing::Chunked,
            "length" => Framing::Length,
            "none" => Framing::None,
            other => panic!("a body that is {other}"),
        };
        let field = |text: &str| {
            let (name, value) = text.split_once(':').expect("a field");
            (bytes(name), bytes(value.strip_prefix(' ').unwrap_or(value)))
        };
        let start = parts.remove(0);
        let (method, target) = start.split_once(' ').expect("a method and a target");
        Self {
            method: bytes(method),
            target: bytes(target),
            fields: parts.into_iter().map(field).collect(),
            framing,
            body: content,
            trailers: rest.map(field).collect(),
        }
    }
}

/// The cases of a file of the corpus.
pub(crate) fn read(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in text
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        let (key, value) = line.split_once(':').expect("a key");
        let value = value.strip_prefix(' ').unwrap_or(value);
        if key == "name" {
            let name = value.to_owned();
            assert!(cases.iter().all(|c| c.name != name), "{name} twice");
            cases.push(Case {
                name,
                lines: Vec::new(),
            });
        } else {
            let case = cases.last_mut().expect("a name first");
            case.lines.push((key.to_owned(), value.to_owned()));
        }
    }
    cases
}

/// Text with `{N*text}` written out.
fn expand(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let inside = &rest[open + 1..];
        let repetition = inside.split_once('}').and_then(|(inside, rest)| {
            let (times, text) = inside.split_once('*')?;
            Some((text.repeat(times.parse().ok()?), rest))
        });
        match repetition {
            Some((repeated, behind)) => {
                out.push_str(&repeated);
                rest = behind;
            }
            None => {
                out.push('{');
                rest = inside;
            }
        }
    }
    out + rest
}

/// Text without its escapes.
fn bytes(text: &str) -> Vec<u8> {
    let text = expand(text);
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        let (escape, behind) = rest.split_first().expect("an escape");
        rest = behind;
        out.push(match escape {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'\\' => b'\\',
            b'x' => {
                let (digits, behind) = rest.split_at(2);
                rest = behind;
                let digits = std::str::from_utf8(digits).expect("digits");
                u8::from_str_radix(digits, 16).expect("two digits")
            }
            other => panic!("the escape {other}"),
        });
    }
    out
}
