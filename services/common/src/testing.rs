//! A client for the integration tests of services.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Far beyond anything that should take place in a test.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Talks to one address.
#[derive(Clone, Copy, Debug)]
pub struct Client(pub SocketAddr);

/// What a service answered.
#[derive(Debug)]
pub struct Answer {
    /// The code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The body.
    pub text: String,
    /// `Null` when the body is no JSON.
    pub body: Value,
}

impl Client {
    /// `GET`, with a token if there is one.
    pub async fn get(self, path: &str, token: Option<&str>) -> Answer {
        self.call("GET", path, &bearer(token), "").await
    }

    /// `DELETE`, with a token if there is one.
    pub async fn delete(self, path: &str, token: Option<&str>) -> Answer {
        self.call("DELETE", path, &bearer(token), "").await
    }

    /// `POST`, with a token if there is one.
    pub async fn post(self, path: &str, token: Option<&str>, body: &Value) -> Answer {
        self.json("POST", path, token, &body.to_string()).await
    }

    /// `PUT`, with a token if there is one.
    pub async fn put(self, path: &str, token: Option<&str>, body: &Value) -> Answer {
        self.json("PUT", path, token, &body.to_string()).await
    }

    /// A body that need not be JSON at all, said to be JSON.
    pub async fn json(self, method: &str, path: &str, token: Option<&str>, body: &str) -> Answer {
        let headers = format!("Content-Type: application/json\r\n{}", bearer(token));
        self.call(method, path, &headers, body).await
    }

    /// One request on a connection of its own.
    pub async fn call(self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: service\r\nConnection: close\r\n{headers}\
             Content-Length: {}\r\n\r\n{body}",
            body.len(),
        );
        let answer = timeout(DEADLINE, async {
            let mut stream = TcpStream::connect(self.0).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        })
        .await
        .expect("an answer in time");
        let (head, text) = answer.split_once("\r\n\r\n").expect("a whole head");
        Answer {
            status: head[9..12].parse().unwrap(),
            head: head.to_owned(),
            text: text.to_owned(),
            body: serde_json::from_str(text).unwrap_or(Value::Null),
        }
    }
}

fn bearer(token: Option<&str>) -> String {
    token
        .map(|token| format!("Authorization: Bearer {token}\r\n"))
        .unwrap_or_default()
}

impl Answer {
    /// Checks the error form of contract.md section 8.
    #[track_caller]
    pub fn assert_error(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.body["error"]["code"], code, "{self:?}");
        assert!(self.body["error"]["message"].is_string(), "{self:?}");
        let id = self.body["request_id"].as_str().expect("a request id");
        assert!(
            self.head.contains(&format!("x-request-id: {id}")),
            "{self:?}"
        );
    }
}
