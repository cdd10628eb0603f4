//! A lean HTTP/1.1 connection: one request at a time, memory reused, heads parsed by `httparse`.
//!
//! Own code, because the instrument must cost little beside what it measures (docs/adr/0021): a client of
//! hyper's needs about twice the time for an operation. It understands what servers of this bench answer:
//! bodies with a length, in chunks, or none. After a failure it goes on to the next address, as a load
//! balancer would.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Failure;
use crate::address::Address;

/// Headers of an answer.
const HEADERS_MAX: usize = 64;
/// Bytes of an answer, head and body: above the largest value, in base64 too.
const ANSWER_BYTES_MAX: usize = 128 << 20;
/// Room that an answer begins with.
const ROOM: usize = 16 << 10;
/// Wait after no address took a connection, so that a dead server is not asked without end.
const PAUSE: Duration = Duration::from_millis(10);

/// A connection, made when it is needed.
#[derive(Debug)]
pub(crate) struct Http {
    addresses: Arc<[Address]>,
    at: usize,
    failed_in_a_row: usize,
    stream: Option<TcpStream>,
    out: Vec<u8>,
    input: Vec<u8>,
    filled: usize,
}

/// An answer; its body stands in the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) body: Range<usize>,
}

/// What a request is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'static str,
    /// Path and query, in parts that are put together.
    pub(crate) path: &'a [&'a str],
    pub(crate) content_type: Option<&'static str>,
    pub(crate) body: &'a [u8],
}

impl Http {
    /// To these addresses, beginning with number `first`.
    pub(crate) fn new(addresses: Arc<[Address]>, first: usize) -> Self {
        let at = first % addresses.len().max(1);
        Self {
            addresses,
            at,
            failed_in_a_row: 0,
            stream: None,
            out: Vec::with_capacity(4 << 10),
            input: vec![0; ROOM],
            filled: 0,
        }
    }

    /// The bytes of a body.
    pub(crate) fn body(&self, range: &Range<usize>) -> &[u8] {
        &self.input[range.clone()]
    }

    /// One request and its answer.
    pub(crate) async fn exchange(&mut self, asked: Asked<'_>) -> Result<Answered, Failure> {
        self.write_request(asked);
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.connect().await?,
        };
        let mut keep = false;
        let result = self.over(&mut stream, &mut keep).await;
        match &result {
            Ok(_) if keep => self.stream = Some(stream),
            Ok(_) => {}
            Err(_) => self.at = (self.at + 1) % self.addresses.len(),
        }
        result
    }

    fn write_request(&mut self, asked: Asked<'_>) {
        let out = &mut self.out;
        out.clear();
        out.extend_from_slice(asked.method.as_bytes());
        out.push(b' ');
        for part in asked.path {
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
        out.extend_from_slice(self.addresses[self.at].text.as_bytes());
        if let Some(content_type) = asked.content_type {
            out.extend_from_slice(b"\r\ncontent-type: ");
            out.extend_from_slice(content_type.as_bytes());
        }
        if !matches!(asked.method, "GET" | "DELETE") {
            out.extend_from_slice(b"\r\ncontent-length: ");
            out.extend_from_slice(asked.body.len().to_string().as_bytes());
        }
        out.extend_from_slice(b"\r\n\r\n");
        out.extend_from_slice(asked.body);
    }

    async fn connect(&mut self) -> Result<TcpStream, Failure> {
        let connected = TcpStream::connect(self.addresses[self.at].socket).await;
        match connected.and_then(|stream| stream.set_nodelay(true).map(|()| stream)) {
            Ok(stream) => {
                self.failed_in_a_row = 0;
                Ok(stream)
            }
            Err(error) => {
                self.at = (self.at + 1) % self.addresses.len();
                self.failed_in_a_row += 1;
                if self.failed_in_a_row >= self.addresses.len() {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(match error.kind() {
                    io::ErrorKind::ConnectionRefused => Failure::ConnectionRefused,
                    _ => Failure::NotConnected,
                })
            }
        }
    }

    async fn over(&mut self, stream: &mut TcpStream, keep: &mut bool) -> Result<Answered, Failure> {
        let lost = |_| Failure::ConnectionLost;
        stream.write_all(&self.out).await.map_err(lost)?;
        self.filled = 0;
        let head = loop {
            self.fill(stream).await?;
            if let Some(head) = read_head(&self.input[..self.filled])? {
                break head;
            }
        };
        *keep = head.keeps;
        let body = match head.body {
            Body::Length(length) => {
                let end = head.len + length;
                if end > ANSWER_BYTES_MAX {
                    return Err(Failure::Malformed);
                }
                while self.filled < end {
                    self.fill(stream).await?;
                }
                head.len..end
            }
            Body::Chunks => self.chunks(stream, head.len).await?,
        };
        Ok(Answered {
            status: head.status,
            body,
        })
    }

    /// Reads some more.
    async fn fill(&mut self, stream: &mut TcpStream) -> Result<(), Failure> {
        if self.filled == self.input.len() {
            if self.filled >= ANSWER_BYTES_MAX {
                return Err(Failure::Malformed);
            }
            self.input.resize(self.filled * 2, 0);
        }
        match stream.read(&mut self.input[self.filled..]).await {
            Ok(0) | Err(_) => Err(Failure::ConnectionLost),
            Ok(count) => {
                self.filled += count;
                Ok(())
            }
        }
    }

    /// Reads a body in chunks, and pushes them together in place.
    async fn chunks(
        &mut self,
        stream: &mut TcpStream,
        start: usize,
    ) -> Result<Range<usize>, Failure> {
        let (mut at, mut end) = (start, start);
        loop {
            let (prefix, len) = loop {
                match httparse::parse_chunk_size(&self.input[at..self.filled]) {
                    Ok(httparse::Status::Complete(found)) => break found,
                    Ok(httparse::Status::Partial) => self.fill(stream).await?,
                    Err(_) => return Err(Failure::Malformed),
                }
            };
            let len = usize::try_from(len)
                .ok()
                .filter(|len| *len <= ANSWER_BYTES_MAX);
            let len = len.ok_or(Failure::Malformed)?;
            at += prefix;
            // The line break after the chunk; after the last, which is empty, no trailers are expected.
            while self.filled < at + len + 2 {
                self.fill(stream).await?;
            }
            if &self.input[at + len..at + len + 2] != b"\r\n" {
                return Err(Failure::Malformed);
            }
            self.input.copy_within(at..at + len, end);
            end += len;
            at += len + 2;
            if len == 0 {
                return Ok(start..end);
            }
        }
    }
}

enum Body {
    Length(usize),
    Chunks,
}

struct Head {
    len: usize,
    status: u16,
    body: Body,
    keeps: bool,
}

/// The head of an answer, when it is there as a whole.
fn read_head(bytes: &[u8]) -> Result<Option<Head>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let len = match response.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Failure::Malformed),
    };
    let status = response.code.unwrap_or(0);
    let mut body = None;
    let mut keeps = response.version == Some(1);
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value).map_err(|_| Failure::Malformed)?;
            let length = text.trim().parse().map_err(|_| Failure::Malformed)?;
            if length > ANSWER_BYTES_MAX {
                return Err(Failure::Malformed);
            }
            body = Some(Body::Length(length));
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if !header.value.eq_ignore_ascii_case(b"chunked") {
                return Err(Failure::Malformed);
            }
            body = Some(Body::Chunks);
        } else if header.name.eq_ignore_ascii_case("connection") {
            keeps = !header.value.eq_ignore_ascii_case(b"close");
        }
    }
    let body = match (status, body) {
        (204 | 304, _) => Body::Length(0),
        (200.., Some(body)) => body,
        // Only the end of the connection would tell the end of the body: no server of this bench does so.
        _ => return Err(Failure::Malformed),
    };
    Ok(Some(Head {
        len,
        status,
        body,
        keeps,
    }))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request on each connection with these bytes, in pieces, then waits for the next.
    async fn server(answers: Vec<&'static [u8]>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            for answer in answers {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await.expect("a request");
                for piece in answer.chunks(7) {
                    stream.write_all(piece).await.expect("written");
                    stream.flush().await.expect("flushed");
                    tokio::task::yield_now().await;
                }
            }
        });
        address
    }

    async fn exchange(http: &mut Http) -> Result<(u16, Vec<u8>), Failure> {
        let asked = Asked {
            method: "GET",
            path: &["/", "x"],
            content_type: None,
            body: &[],
        };
        let answer = http.exchange(asked).await?;
        Ok((answer.status, http.body(&answer.body).to_vec()))
    }

    async fn client(answers: Vec<&'static [u8]>) -> Http {
        let address = server(answers).await.to_string();
        Http::new([Address::check(&address, false).expect("here")].into(), 0)
    }

    #[tokio::test]
    async fn bodies_with_a_length_in_chunks_and_none_follow_each_other() {
        let mut http = client(vec![
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 204 No Content\r\netag: \"x\"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nover\r\nb\r\n the border\r\n0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        ])
        .await;
        assert_eq!(exchange(&mut http).await, Ok((200, b"hello".to_vec())));
        assert_eq!(exchange(&mut http).await, Ok((204, Vec::new())));
        assert_eq!(
            exchange(&mut http).await,
            Ok((200, b"over the border".to_vec()))
        );
        assert_eq!(exchange(&mut http).await, Ok((404, Vec::new())));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_a_failure() {
        for answer in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nwithout end",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxx\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n",
            b"220 mail.example ESMTP\r\n",
        ] {
            let mut http = client(vec![answer]).await;
            let text = String::from_utf8_lossy(answer);
            assert_eq!(exchange(&mut http).await, Err(Failure::Malformed), "{text}");
        }
        let mut http = client(vec![b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"]).await;
        assert_eq!(exchange(&mut http).await, Err(Failure::ConnectionLost));
    }

    #[tokio::test]
    async fn a_dead_address_is_left_for_the_next() {
        let dead = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = dead.local_addr().expect("an address").to_string();
        drop(dead);
        let alive = server(vec![b"HTTP/1.1 204 No Content\r\n\r\n"])
            .await
            .to_string();
        let addresses =
            [&address, &alive].map(|address| Address::check(address, false).expect("here"));
        let mut http = Http::new(addresses.into(), 0);
        assert_eq!(exchange(&mut http).await, Err(Failure::ConnectionRefused));
        assert_eq!(exchange(&mut http).await, Ok((204, Vec::new())));
    }
}
