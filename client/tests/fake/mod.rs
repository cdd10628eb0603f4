//! A node that says what a test tells it to, and remembers what it was asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a fake node does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Answers: status, further header lines, body.
    Answer(u16, String, String),
    /// Reads the request and closes the connection.
    HangUp,
    /// Reads the request and never answers.
    Silence,
}

/// `(method and target, head, body)`, in order of arrival.
pub(crate) type Asked = (String, String, Vec<u8>);

/// A node on a free port of loopback; ends with the runtime.
#[derive(Clone)]
pub(crate) struct FakeNode {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl FakeNode {
    /// Starts it; `act` decides on each request by its first line.
    pub(crate) async fn start(act: impl Fn(&str) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let node = Self {
            address,
            asked: Arc::default(),
        };
        let asked = Arc::clone(&node.asked);
        let act = Arc::new(act);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (act, asked) = (Arc::clone(&act), Arc::clone(&asked));
                tokio::spawn(async move { serve(stream, &*act, &asked).await });
            }
        });
        node
    }

    /// One that always answers the same.
    pub(crate) async fn answering(status: u16, headers: &str, body: &str) -> Self {
        let answer = Act::Answer(status, headers.to_owned(), body.to_owned());
        Self::start(move |_| answer.clone()).await
    }

    pub(crate) fn name(&self) -> String {
        self.address.to_string()
    }

    /// What it was asked, without what the client asks by itself (the ring).
    pub(crate) fn asked(&self) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked
            .iter()
            .filter(|(line, ..)| line != "GET /ring")
            .cloned()
            .collect()
    }

    pub(crate) fn asked_lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|(line, ..)| line).collect()
    }
}

async fn serve(
    mut stream: TcpStream,
    act: &(dyn Fn(&str) -> Act + Send + Sync),
    asked: &Mutex<Vec<Asked>>,
) {
    let mut pending = Vec::new();
    while let Some((line, head, body)) = request(&mut stream, &mut pending).await {
        let act = act(&line);
        let is_head = line.starts_with("HEAD ");
        asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((line, head, body));
        match act {
            Act::Answer(status, headers, body) => {
                let length = if status == 204 || status == 304 {
                    String::new()
                } else {
                    format!("content-length: {}\r\n", body.len())
                };
                let body = if is_head { "" } else { &body };
                let text = format!("HTTP/1.1 {status} x\r\n{length}{headers}\r\n{body}");
                if stream.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
            Act::HangUp => return,
            Act::Silence => tokio::time::sleep(Duration::from_secs(60)).await,
        }
    }
}

async fn request(stream: &mut TcpStream, pending: &mut Vec<u8>) -> Option<Asked> {
    let end = loop {
        if let Some(end) = pending.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(pending).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&pending[..end]).to_ascii_lowercase();
    let line = String::from_utf8_lossy(&pending[..end])
        .lines()
        .next()?
        .trim_end_matches(" HTTP/1.1")
        .to_owned();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    while pending.len() < end + length {
        if stream.read_buf(pending).await.ok()? == 0 {
            return None;
        }
    }
    let body = pending[end..end + length].to_vec();
    pending.drain(..end + length);
    Some((line, head, body))
}

/// An address at which nobody listens.
pub(crate) async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    listener.local_addr().expect("address").to_string()
}

/// A problem document with an `outcome`.
pub(crate) fn problem(status: u16, kind: &str, outcome: Option<&str>) -> Act {
    let outcome = outcome.map_or(String::new(), |outcome| {
        format!(r#","outcome":"{outcome}""#)
    });
    let body = format!(
        r#"{{"type":"urn:torc:problem:{kind}","title":"{kind}","status":{status},"detail":"here","required":2,"received":1{outcome}}}"#
    );
    Act::Answer(
        status,
        "content-type: application/problem+json\r\n".to_owned(),
        body,
    )
}
