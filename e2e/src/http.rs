//! A small blocking HTTP/1.1 client that can also send what no proper client would.
//!
//! It tells apart what a checker of histories must know: a request that certainly reached nobody
//! from one whose fate is unknown.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Most header bytes and body bytes that an answer may have; a test that reads more has found a bug.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const BODY_BYTES_MAX: usize = 80 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection: the request reached nobody.
    #[error("connect to {address}: {source}")]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The answer did not come in time.
    #[error("no whole answer within {waited:?}; so far: {so_far:?}")]
    Timeout {
        /// For how long it was waited.
        waited: Duration,
        /// What had arrived.
        so_far: String,
    },
    /// The connection ended before the answer did.
    #[error("connection closed before the answer was complete; so far: {so_far:?}")]
    Closed {
        /// What had arrived.
        so_far: String,
    },
    /// Reading or writing failed.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
    /// The answer is not HTTP.
    #[error("answer is not HTTP/1.1 ({reason}): {so_far:?}")]
    Malformed {
        /// What is wrong.
        reason: &'static str,
        /// What had arrived.
        so_far: String,
    },
}

impl HttpError {
    /// Whether the request can have had an effect all the same.
    pub fn may_have_had_effect(&self) -> bool {
        !matches!(self, Self::Connect { .. })
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header fields in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body, decoded from chunks if it was sent in chunks.
    pub body: Vec<u8>,
}

impl Response {
    /// The first field of that name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text, for messages.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; `Null` when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or(serde_json::Value::Null)
    }

    /// Checks that this is a problem document (RFC 9457) of this very status.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub fn check_problem(&self) -> Result<serde_json::Value, String> {
        let content_type = self.header("content-type").unwrap_or("(none)");
        if !content_type.starts_with("application/problem+json") {
            return Err(format!(
                "{}: content-type is {content_type}: {}",
                self.status,
                self.text()
            ));
        }
        let document: serde_json::Value = serde_json::from_slice(&self.body).map_err(|error| {
            format!(
                "{}: body is not JSON ({error}): {}",
                self.status,
                self.text()
            )
        })?;
        let is_text = |name: &str| document[name].as_str().is_some_and(|text| !text.is_empty());
        for name in ["type", "title", "detail"] {
            if !is_text(name) {
                return Err(format!("{}: no text in {name:?}: {document}", self.status));
            }
        }
        if document["status"].as_u64() != Some(u64::from(self.status)) {
            return Err(format!(
                "status line says {}, body says {document}",
                self.status
            ));
        }
        Ok(document)
    }
}

/// A request to send; the target is sent as it is, so it must be percent-encoded already.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request {
    /// A request without body.
    pub fn new(method: &str, target: &str) -> Self {
        let (method, target) = (method.to_owned(), target.to_owned());
        Self {
            method,
            target,
            headers: Vec::new(),
            body: None,
        }
    }

    /// `GET`.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// `PUT` with a body.
    pub fn put(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("PUT", target).body(body)
    }

    /// `DELETE`.
    pub fn delete(target: &str) -> Self {
        Self::new("DELETE", target)
    }

    /// Adds a header field.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body and its `Content-Length`.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// The method, for messages.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The target, for messages.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        let has = |name: &str| {
            self.headers
                .iter()
                .any(|(known, _)| known.eq_ignore_ascii_case(name))
        };
        if !has("host") {
            head.push_str("host: torc.test\r\n");
        }
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if let Some(body) = &self.body {
            let _ = write!(head, "content-length: {}\r\n", body.len());
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }
}

/// One connection; reads and writes what it is told.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffered: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens or the connection is not made in time.
    pub fn open(address: SocketAddr, timeout: Duration) -> Result<Self, HttpError> {
        let stream = TcpStream::connect_timeout(&address, timeout)
            .map_err(|source| HttpError::Connect { address, source })?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self {
            stream,
            buffered: Vec::new(),
        })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the other side has closed, or does not take them in time.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), HttpError> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Says that nothing more will be sent.
    pub fn finish_sending(&self) {
        // The other side may have gone already, which is what the caller finds out next anyway.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Whether the other side has closed (or sent something unasked).
    pub fn is_stale(&self) -> bool {
        let mut byte = [0];
        let looked = self
            .stream
            .set_nonblocking(true)
            .and_then(|()| self.stream.peek(&mut byte))
            .map_err(|error| error.kind());
        let restored = self.stream.set_nonblocking(false);
        !self.buffered.is_empty() || looked != Err(io::ErrorKind::WouldBlock) || restored.is_err()
    }

    /// Reads one answer. `bodiless` for answers to `HEAD`.
    ///
    /// # Errors
    /// When it does not come whole, in time, and as HTTP.
    pub fn receive(&mut self, bodiless: bool, timeout: Duration) -> Result<Response, HttpError> {
        let until = Instant::now() + timeout;
        loop {
            let (status, headers) = self.receive_head(until, timeout)?;
            if (100..200).contains(&status) {
                continue;
            }
            let mut response = Response {
                status,
                headers,
                body: Vec::new(),
            };
            if bodiless || matches!(status, 204 | 304) {
                return Ok(response);
            }
            response.body = self.receive_body(&response, until, timeout)?;
            return Ok(response);
        }
    }

    /// Reads only the next status line and its header fields, an interim answer (1xx) too.
    ///
    /// # Errors
    /// When it does not come whole, in time, and as HTTP.
    pub fn receive_status(&mut self, timeout: Duration) -> Result<u16, HttpError> {
        Ok(self.receive_head(Instant::now() + timeout, timeout)?.0)
    }

    /// Reads whatever comes until the other side closes.
    ///
    /// # Errors
    /// When it does not close in time.
    pub fn receive_until_closed(&mut self, timeout: Duration) -> Result<Vec<u8>, HttpError> {
        let until = Instant::now() + timeout;
        loop {
            match self.fill(until, timeout) {
                // A reset is a way to close as well.
                Ok(0) | Err(HttpError::Io(_)) => return Ok(std::mem::take(&mut self.buffered)),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn receive_head(
        &mut self,
        until: Instant,
        timeout: Duration,
    ) -> Result<(u16, Vec<(String, String)>), HttpError> {
        let end = loop {
            if let Some(end) = find(&self.buffered, b"\r\n\r\n") {
                break end;
            }
            if self.buffered.len() > HEAD_BYTES_MAX {
                return Err(self.malformed("head too long"));
            }
            self.fill_some(until, timeout)?;
        };
        let head = String::from_utf8_lossy(&self.buffered[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let mut status_line = lines.next().unwrap_or_default().splitn(3, ' ');
        let version = status_line.next().unwrap_or_default();
        let status = status_line.next().and_then(|code| code.parse::<u16>().ok());
        let (Some(status), true) = (status, version.starts_with("HTTP/1.")) else {
            return Err(self.malformed("no status line"));
        };
        let mut headers = Vec::new();
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                return Err(self.malformed("header field without colon"));
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        self.buffered.drain(..end + 4);
        Ok((status, headers))
    }

    fn receive_body(
        &mut self,
        head: &Response,
        until: Instant,
        timeout: Duration,
    ) -> Result<Vec<u8>, HttpError> {
        if head
            .header("transfer-encoding")
            .is_some_and(|value| value.contains("chunked"))
        {
            return self.receive_chunks(until, timeout);
        }
        match head.header("content-length").map(str::parse::<usize>) {
            Some(Ok(length)) if length <= BODY_BYTES_MAX => self.take(length, until, timeout),
            Some(_) => Err(self.malformed("bad content-length")),
            None => self.receive_until_closed(until.saturating_duration_since(Instant::now())),
        }
    }

    fn receive_chunks(&mut self, until: Instant, timeout: Duration) -> Result<Vec<u8>, HttpError> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                if let Some(end) = find(&self.buffered, b"\r\n") {
                    break end;
                }
                self.fill_some(until, timeout)?;
            };
            let line = String::from_utf8_lossy(&self.buffered[..end]).into_owned();
            let digits = line.split(';').next().unwrap_or_default().trim();
            let Ok(length) = usize::from_str_radix(digits, 16) else {
                return Err(self.malformed("bad chunk length"));
            };
            if body.len() + length > BODY_BYTES_MAX {
                return Err(self.malformed("body too long"));
            }
            self.buffered.drain(..end + 2);
            body.extend(self.take(length, until, timeout)?);
            self.take(2, until, timeout)?;
            if length == 0 {
                return Ok(body);
            }
        }
    }

    fn take(
        &mut self,
        length: usize,
        until: Instant,
        timeout: Duration,
    ) -> Result<Vec<u8>, HttpError> {
        while self.buffered.len() < length {
            self.fill_some(until, timeout)?;
        }
        Ok(self.buffered.drain(..length).collect())
    }

    fn fill_some(&mut self, until: Instant, timeout: Duration) -> Result<(), HttpError> {
        match self.fill(until, timeout)? {
            0 => Err(HttpError::Closed {
                so_far: self.so_far(),
            }),
            _ => Ok(()),
        }
    }

    fn fill(&mut self, until: Instant, timeout: Duration) -> Result<usize, HttpError> {
        let late = |so_far| HttpError::Timeout {
            waited: timeout,
            so_far,
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late(self.so_far()));
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut block = [0; 16 * 1024];
        match self.stream.read(&mut block) {
            Ok(length) => {
                self.buffered.extend_from_slice(&block[..length]);
                Ok(length)
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Err(late(self.so_far())),
                _ => Err(HttpError::Io(error)),
            },
        }
    }

    fn so_far(&self) -> String {
        let shown = &self.buffered[..self.buffered.len().min(300)];
        String::from_utf8_lossy(shown).into_owned()
    }

    fn malformed(&self, reason: &'static str) -> HttpError {
        HttpError::Malformed {
            reason,
            so_far: self.so_far(),
        }
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes
        .windows(needle.len())
        .position(|window| window == needle)
}

/// A client for one server that keeps its connection.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    timeout: Duration,
    idle: Option<Connection>,
}

impl Client {
    /// A client that waits at most `timeout` for each whole answer.
    pub fn new(address: SocketAddr, timeout: Duration) -> Self {
        Self {
            address,
            timeout,
            idle: None,
        }
    }

    /// Sends a request and reads the answer. Never sends anything twice.
    ///
    /// # Errors
    /// When there is no whole answer in time.
    pub fn send(&mut self, request: &Request) -> Result<Response, HttpError> {
        let mut connection = match self.idle.take().filter(|connection| !connection.is_stale()) {
            Some(connection) => connection,
            None => Connection::open(self.address, self.timeout)?,
        };
        // A server may answer (413, say) and close before it has read the whole body; the answer
        // is worth more than the error of the write.
        let sent = connection.send(&request.encode());
        match (
            connection.receive(request.method == "HEAD", self.timeout),
            sent,
        ) {
            (Ok(response), sent) => {
                if sent.is_ok() && response.header("connection") != Some("close") {
                    self.idle = Some(connection);
                }
                Ok(response)
            }
            (Err(_), Err(error)) | (Err(error), Ok(())) => Err(error),
        }
    }
}

/// One request on a connection of its own.
///
/// # Errors
/// When there is no whole answer in time.
pub fn send(
    address: SocketAddr,
    request: &Request,
    timeout: Duration,
) -> Result<Response, HttpError> {
    Client::new(address, timeout).send(request)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    /// A server that answers its first connection with these bytes and closes.
    fn answering(bytes: &'static [u8]) -> Connection {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let address = listener.local_addr().expect("an address");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.write_all(bytes).expect("send");
        });
        Connection::open(address, TIMEOUT).expect("connect")
    }

    #[test]
    fn answers_with_length_in_chunks_and_until_the_end_are_read() {
        let mut connection = answering(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A:  b \r\n\r\nhi\
              HTTP/1.1 204 No Content\r\n\r\n\
              HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n1\r\nd\r\n0\r\n\r\n\
              HTTP/1.1 404 Not Found\r\ncontent-length: 7\r\n\r\n\
              HTTP/1.0 200 OK\r\n\r\nall the rest",
        );
        let first = connection.receive(false, TIMEOUT).expect("a length");
        assert_eq!(
            (first.status, first.text(), first.header("x-a")),
            (200, "hi".into(), Some("b"))
        );
        assert_eq!(
            connection.receive(false, TIMEOUT).expect("no body").status,
            204
        );
        assert_eq!(
            connection.receive(false, TIMEOUT).expect("chunks").text(),
            "abcd"
        );
        assert_eq!(connection.receive(true, TIMEOUT).expect("HEAD").status, 404);
        assert_eq!(
            connection
                .receive(false, TIMEOUT)
                .expect("to the end")
                .text(),
            "all the rest"
        );
    }

    #[test]
    fn a_missing_answer_is_told_apart_from_a_cut_and_a_late_one() {
        let cut =
            answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").receive(false, TIMEOUT);
        assert!(matches!(&cut, Err(HttpError::Closed { .. })), "{cut:?}");
        let odd = answering(b"+PONG\r\n\r\n").receive(false, TIMEOUT);
        assert!(matches!(&odd, Err(HttpError::Malformed { .. })), "{odd:?}");

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let address = listener.local_addr().expect("an address");
        let late =
            send(address, &Request::get("/"), Duration::from_millis(50)).expect_err("silence");
        assert!(
            matches!(&late, HttpError::Timeout { .. }) && late.may_have_had_effect(),
            "{late:?}"
        );
        drop(listener);
        let refused = send(address, &Request::get("/"), TIMEOUT).expect_err("nobody there");
        assert!(!refused.may_have_had_effect(), "{refused:?}");
    }

    #[test]
    fn a_problem_document_is_checked() {
        let answer = |content_type: &str, body: &str| Response {
            status: 400,
            headers: vec![("content-type".into(), content_type.into())],
            body: body.into(),
        };
        let good = r#"{"type":"about:blank","title":"t","status":400,"detail":"d"}"#;
        assert!(
            answer("application/problem+json", good)
                .check_problem()
                .is_ok()
        );
        assert!(answer("application/json", good).check_problem().is_err());
        assert!(
            answer("application/problem+json", &good.replace("400", "404"))
                .check_problem()
                .is_err()
        );
        assert!(
            answer("application/problem+json", &good.replace("detail", "x"))
                .check_problem()
                .is_err()
        );
        assert!(
            answer("application/problem+json", "{")
                .check_problem()
                .is_err()
        );
    }
}
