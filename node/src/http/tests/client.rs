//! A client that sends exactly the bytes that a test wants sent.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let lines = self
            .head
            .split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'));
        let mut found = lines
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim());
        let first = found.next();
        assert_eq!(
            found.next(),
            None,
            "{name} stands there twice:\n{}",
            self.head
        );
        first
    }

    #[track_caller]
    pub(super) fn must(&self, name: &str) -> String {
        self.header(name)
            .map_or_else(|| panic!("no {name} in\n{}", self.head), str::to_owned)
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The last part of the type of a problem document, which is checked for form.
    #[track_caller]
    pub(super) fn problem(&self) -> String {
        assert_eq!(
            self.must("content-type"),
            "application/problem+json",
            "{}",
            self.text()
        );
        let document = self.json();
        assert_eq!(document["status"], self.status, "{document}");
        assert!(
            document["title"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{document}"
        );
        assert!(
            document["detail"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{document}"
        );
        let kind = document["type"]
            .as_str()
            .and_then(|kind| kind.strip_prefix("urn:torc:problem:"));
        kind.unwrap_or_else(|| panic!("{document}")).to_owned()
    }
}

/// A connection.
pub(super) struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    pub(super) async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        Self {
            stream,
            unread: Vec::new(),
        }
    }

    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("send");
    }

    /// Closes the sending side.
    pub(super) async fn finish(&mut self) {
        self.stream.shutdown().await.expect("shutdown");
    }

    pub(super) async fn ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.send(request(method, target, headers, body)).await;
        self.answer(method == "HEAD").await
    }

    /// The next answer that is not 100.
    pub(super) async fn answer(&mut self, is_head: bool) -> Answer {
        timeout(PATIENCE, self.read_answer(is_head))
            .await
            .expect("an answer in time")
            .expect("an answer")
    }

    /// The next answer; `None` when the connection was closed instead.
    pub(super) async fn answer_or_end(&mut self) -> Option<Answer> {
        timeout(PATIENCE, self.read_answer(false))
            .await
            .expect("an answer or the end in time")
    }

    /// Reads until exactly this has come.
    pub(super) async fn until_text(&mut self, text: &str) {
        let reading = async {
            while self.unread.len() < text.len() {
                assert!(self.more().await, "closed before {text:?}");
            }
        };
        timeout(PATIENCE, reading).await.expect("in time");
        assert_eq!(String::from_utf8_lossy(&self.unread), text);
        self.unread.clear();
    }

    /// Waits until the other side closes; what it still said.
    pub(super) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.unread);
        // A reset is an end too.
        let _ = timeout(PATIENCE, self.stream.read_to_end(&mut rest))
            .await
            .expect("the end in time");
        rest
    }

    async fn read_answer(&mut self, is_head: bool) -> Option<Answer> {
        loop {
            let end = loop {
                if let Some(at) = self.unread.windows(4).position(|w| w == b"\r\n\r\n") {
                    break at + 4;
                }
                if !self.more().await {
                    assert!(
                        self.unread.is_empty(),
                        "half a head: {}",
                        String::from_utf8_lossy(&self.unread)
                    );
                    return None;
                }
            };
            let head =
                String::from_utf8(self.unread.drain(..end).collect()).expect("a head of text");
            let status: u16 = head[9..12].parse().expect("a status");
            let mut answer = Answer {
                status,
                head,
                body: Vec::new(),
            };
            if status == 100 {
                continue;
            }
            if !is_head && !matches!(status, 204 | 304) {
                answer.body = self.read_body(&answer).await;
            }
            return Some(answer);
        }
    }

    async fn read_body(&mut self, answer: &Answer) -> Vec<u8> {
        if let Some(len) = answer.header("content-length") {
            return self.take(len.parse().expect("a length")).await;
        }
        assert_eq!(
            answer.header("transfer-encoding"),
            Some("chunked"),
            "{}",
            answer.head
        );
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(at) = self.unread.windows(2).position(|w| w == b"\r\n") {
                    break self.take(at + 2).await;
                }
                assert!(self.more().await, "truncated chunks");
            };
            let len = std::str::from_utf8(&line).expect("a chunk's length").trim();
            let len = usize::from_str_radix(len, 16).expect("a chunk's length");
            let chunk = self.take(len + 2).await;
            if len == 0 {
                return body;
            }
            body.extend_from_slice(&chunk[..len]);
        }
    }

    async fn take(&mut self, len: usize) -> Vec<u8> {
        while self.unread.len() < len {
            assert!(self.more().await, "truncated body");
        }
        self.unread.drain(..len).collect()
    }

    async fn more(&mut self) -> bool {
        let mut buf = vec![0; 64 << 10];
        let got = self.stream.read(&mut buf).await.unwrap_or(0);
        self.unread.extend_from_slice(&buf[..got]);
        got > 0
    }
}

/// The bytes of a request.
pub(super) fn request(
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Vec<u8> {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nhost: t\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if !body.is_empty() || matches!(method, "PUT" | "POST") {
        bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}
