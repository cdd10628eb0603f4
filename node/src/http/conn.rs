//! One connection's socket, as hyper sees it, and what is known of the connection beside hyper.
//!
//! hyper answers a request head that it cannot parse by itself, with a bare status line and without a
//! hook. [`Guarded`] stands between hyper and the socket and knows when a response of ours can be on its
//! way; whatever hyper writes outside such times is its own refusal and is replaced by a problem document.
//!
//! Invariant: bytes of a response of ours are never looked into, so no stored value can be mistaken for
//! such a refusal. The phase decides, not the content.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::problem;

/// First bytes of HTTP/2 with prior knowledge.
pub(super) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const BUSY: u8 = 2;
const DRAINING: u8 = 3;

/// What is known of a connection; shared by its socket, its requests and its watchdog.
#[derive(Debug)]
pub(super) struct Conn {
    opened: Instant,
    /// HTTP/1 only: between requests, within a head, within a request, or its response is being flushed.
    phase: AtomicU8,
    /// Requests whose response is not written yet.
    active: AtomicU32,
    /// Requests so far.
    served: AtomicU32,
    /// Milliseconds after `opened` since when an incomplete head waits for its rest, plus one; 0: none does.
    head_since: AtomicU64,
    /// Milliseconds after `opened` since when the peer takes no bytes, plus one; 0: it does.
    stalled_since: AtomicU64,
    /// The peer has closed its sending side.
    eof: AtomicBool,
}

/// How a connection fares when its watchdog looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// All is well; look again after this long.
    Fine(Duration),
    /// A request's head did not arrive in time.
    HeadTooSlow,
    /// The peer does not take what it asked for.
    Stalled,
    /// No request is under way.
    Idle,
}

impl Conn {
    pub(super) fn new() -> Self {
        Self {
            opened: Instant::now(),
            phase: AtomicU8::new(IDLE),
            active: AtomicU32::new(0),
            served: AtomicU32::new(0),
            head_since: AtomicU64::new(0),
            stalled_since: AtomicU64::new(0),
            eof: AtomicBool::new(false),
        }
    }

    /// A request's head is complete.
    pub(super) fn request_begins(&self) {
        self.phase.store(BUSY, Ordering::Release);
        self.head_since.store(0, Ordering::Relaxed);
        self.active.fetch_add(1, Ordering::Relaxed);
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    /// Its response has been handed to hyper whole, or was given up.
    pub(super) fn request_ends(&self) {
        self.phase.store(DRAINING, Ordering::Release);
        self.active.fetch_sub(1, Ordering::Relaxed);
    }

    /// Number of requests so far.
    pub(super) fn served(&self) -> u32 {
        self.served.load(Ordering::Relaxed)
    }

    fn mark(&self, since: &AtomicU64) {
        if since.load(Ordering::Relaxed) == 0 {
            since.store(
                self.opened.elapsed().as_millis() as u64 + 1,
                Ordering::Relaxed,
            );
        }
    }

    fn waiting(&self, since: &AtomicU64) -> Option<Duration> {
        match since.load(Ordering::Relaxed) {
            0 => None,
            at => Some(
                self.opened
                    .elapsed()
                    .saturating_sub(Duration::from_millis(at - 1)),
            ),
        }
    }

    /// Looks at the deadlines: `head` for a request's head, `stall` for a peer that takes no bytes.
    pub(super) fn health(&self, head: Duration, stall: Duration) -> Health {
        if let Some(waited) = self.waiting(&self.stalled_since) {
            return if waited >= stall {
                Health::Stalled
            } else {
                Health::Fine(stall.saturating_sub(waited))
            };
        }
        match self.waiting(&self.head_since) {
            Some(waited) if waited >= head => Health::HeadTooSlow,
            Some(waited) => Health::Fine(head.saturating_sub(waited)),
            None if self.active.load(Ordering::Relaxed) == 0 => Health::Idle,
            None => Health::Fine(head),
        }
    }
}

/// The socket.
pub(super) struct Guarded {
    stream: TcpStream,
    conn: Arc<Conn>,
    /// Read already, to find out which HTTP it is.
    prefix: Bytes,
    /// HTTP/1: responses of hyper's own are replaced.
    http1: bool,
    /// Bytes of the first line of the head that is being read, and whether they are all of it.
    line: (usize, bool),
    header_bytes: usize,
    /// A replacement that is being written, and how long the text was that it replaces.
    replacement: Option<(Bytes, usize)>,
}

impl Guarded {
    pub(super) fn new(stream: TcpStream, conn: Arc<Conn>, header_bytes: usize) -> Self {
        let prefix = Bytes::new();
        Self {
            stream,
            conn,
            prefix,
            http1: true,
            line: (0, false),
            header_bytes,
            replacement: None,
        }
    }

    /// Reads until it is clear which HTTP the client speaks; true for HTTP/2. Cancel safe.
    pub(super) async fn speaks_http2(&mut self) -> io::Result<bool> {
        let mut first = [0_u8; 24];
        let mut filled = 0;
        while filled < first.len() {
            let got = self.stream.read(&mut first[filled..]).await?;
            if got == 0 {
                self.conn.eof.store(true, Ordering::Relaxed);
                break;
            }
            filled += got;
            self.prefix = Bytes::copy_from_slice(&first[..filled]);
            if first[..filled] != H2_PREFACE[..filled] {
                break;
            }
        }
        self.http1 = filled < first.len() || first != *H2_PREFACE;
        Ok(!self.http1)
    }

    /// Whether anything was received at all.
    pub(super) fn is_silent(&self) -> bool {
        self.prefix.is_empty() && self.conn.served() == 0
    }

    /// Says a last word, if there is one, and closes in such a way that the peer can read it: a socket that
    /// is closed with unread bytes is reset, and takes the answer with it.
    pub(super) async fn close(mut self, last_word: Option<Bytes>, patience: Duration) {
        const UNREAD_MAX: usize = 4 << 20;
        let farewell = async {
            if let Some(text) = last_word {
                self.stream.write_all(&text).await?;
            }
            self.stream.shutdown().await?;
            let mut scrap = vec![0_u8; 16 << 10];
            let mut unread = 0;
            while unread < UNREAD_MAX {
                match self.stream.read(&mut scrap).await? {
                    0 => break,
                    got => unread += got,
                }
            }
            io::Result::Ok(())
        };
        // Whether the peer was still there to hear it does not matter.
        let _ = tokio::time::timeout(patience, farewell).await;
    }

    /// Whether the peer has closed its sending side, so that nothing unread is left.
    pub(super) fn at_eof(&self) -> bool {
        self.conn.eof.load(Ordering::Relaxed)
    }

    fn on_read(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.conn.eof.store(true, Ordering::Relaxed);
            return;
        }
        match self.conn.phase.load(Ordering::Acquire) {
            IDLE => {
                self.line = (0, false);
                self.on_head(bytes);
                self.conn.phase.store(HEAD, Ordering::Release);
            }
            HEAD => self.on_head(bytes),
            _ => {}
        }
    }

    fn on_head(&mut self, bytes: &[u8]) {
        if let (length, false) = self.line {
            let end = bytes.iter().position(|&b| b == b'\n');
            self.line = (length + end.unwrap_or(bytes.len()), end.is_some());
        }
    }

    /// hyper has nothing of ours to write: what it writes now is a refusal of its own.
    fn is_refusal(&self, text: &[u8]) -> bool {
        self.http1
            && matches!(self.conn.phase.load(Ordering::Acquire), IDLE | HEAD)
            && text.starts_with(b"HTTP/1.1 4")
    }

    fn poll_replacement(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some((text, replaced)) = &mut self.replacement {
            if text.is_empty() {
                let replaced = *replaced;
                self.replacement = None;
                return Poll::Ready(Ok(replaced));
            }
            let wrote = match Pin::new(&mut self.stream).poll_write(cx, text) {
                Poll::Ready(wrote) => wrote?,
                Poll::Pending => {
                    self.conn.mark(&self.conn.stalled_since);
                    return Poll::Pending;
                }
            };
            if wrote == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            text.advance(wrote);
        }
        Poll::Ready(Ok(0))
    }

    fn on_write(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Pending => self.conn.mark(&self.conn.stalled_since),
            Poll::Ready(_) => self.conn.stalled_since.store(0, Ordering::Relaxed),
        }
        result
    }

    fn replace(&mut self, cx: &mut Context<'_>, text: &[u8]) -> Poll<io::Result<usize>> {
        if self.replacement.is_none() {
            let status = text
                .get(9..12)
                .and_then(|s| std::str::from_utf8(s).ok()?.parse().ok())
                .unwrap_or(400);
            let document = problem::for_refused_head(status, self.line.0, self.header_bytes);
            self.replacement = Some((document, text.len()));
        }
        self.poll_replacement(cx)
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.prefix.is_empty() {
            let bytes = this.prefix.split_to(this.prefix.len().min(buf.remaining()));
            this.on_read(&bytes);
            buf.put_slice(&bytes);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if Pin::new(&mut this.stream).poll_read(cx, buf)?.is_ready() {
            this.on_read(&buf.filled()[before..]);
            return Poll::Ready(Ok(()));
        }
        if this.http1 && this.conn.phase.load(Ordering::Acquire) == HEAD {
            this.conn.mark(&this.conn.head_since);
        }
        Poll::Pending
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.replacement.is_some() || this.is_refusal(bytes) {
            return this.replace(cx, bytes);
        }
        let result = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.on_write(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let first: &[u8] = slices
            .iter()
            .find(|slice| !slice.is_empty())
            .map_or(&[], |slice| slice);
        if this.replacement.is_some() || this.is_refusal(first) {
            return this.replace(cx, first);
        }
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.on_write(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_replacement(cx))?;
        // hyper flushes only when it has handed over every byte that it had.
        let _ =
            this.conn
                .phase
                .compare_exchange(DRAINING, IDLE, Ordering::AcqRel, Ordering::Relaxed);
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The socket itself is closed by `close`, so that a last word can still be said.
        self.poll_flush(cx)
    }
}
