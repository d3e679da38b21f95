//! The real curl.

use std::process::Stdio;

use tokio::process::Command;

use super::{DEADLINE, Gateway, program};

/// An answer as curl got it.
#[derive(Debug)]
pub(crate) struct Curled {
    /// curl's exit code: 18 is a cut body, 92 a reset HTTP/2 stream.
    pub(crate) exit: i32,
    /// `1.1` or `2`.
    pub(crate) version: String,
    pub(crate) status: u16,
    /// Header fields of the last answer, names in lower case.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Curled {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.all(name).into_iter().next()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
            .collect()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

impl Gateway {
    /// `https://host/path` on the HTTPS listener, trusting the development CA.
    pub(crate) async fn https(&self, host: &str, path: &str, more: &[&str]) -> Curled {
        let port = self.addresses.https.port();
        self.curl(&format!("https://{host}:{port}{path}"), host, port, more)
            .await
    }

    /// `http://host/path` on the HTTP listener.
    pub(crate) async fn http(&self, host: &str, path: &str, more: &[&str]) -> Curled {
        let port = self.addresses.http.port();
        self.curl(&format!("http://{host}:{port}{path}"), host, port, more)
            .await
    }

    /// Any URL; `host` on `port` is this machine.
    pub(crate) async fn curl(&self, url: &str, host: &str, port: u16, more: &[&str]) -> Curled {
        let head = tempfile::NamedTempFile::new().expect("a file");
        let output = Command::new(program("curl", "EDD_CURL"))
            .args(["--silent", "--show-error", "--noproxy", "*", "--path-as-is"])
            .args(["--max-time", &DEADLINE.as_secs().to_string()])
            .args(["--resolve", &format!("{host}:{port}:127.0.0.1")])
            .arg("--cacert")
            .arg(self.ca())
            .arg("--dump-header")
            .arg(head.path())
            .args(more)
            .arg(url)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .expect("curl runs");
        let head = std::fs::read_to_string(head.path()).expect("a head");
        let last = head
            .trim_end()
            .rsplit("\r\n\r\n")
            .next()
            .unwrap_or_default();
        let mut lines = last.lines();
        let mut first = lines.next().unwrap_or_default().split(' ');
        let version = first.next().unwrap_or_default().replace("HTTP/", "");
        let status = first.next().and_then(|s| s.parse().ok()).unwrap_or(0);
        let fields = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let exit = output.status.code().unwrap_or(-1);
        if exit != 0 {
            eprintln!("curl {url}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Curled {
            exit,
            version,
            status,
            fields,
            body: output.stdout,
        }
    }
}
