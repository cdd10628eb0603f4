//! Bodies: what goes out, and how what comes in is gathered within its bounds.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::Guard;
use super::problem::{Problem, Refused};

/// A response's body. It keeps the request's guard until hyper has taken its last byte.
pub(super) struct Body {
    content: Content,
    guard: Option<Guard>,
}

enum Content {
    Empty,
    Full(Bytes),
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl Body {
    pub(super) fn empty() -> Self {
        Self {
            content: Content::Empty,
            guard: None,
        }
    }

    pub(super) fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let content = if bytes.is_empty() {
            Content::Empty
        } else {
            Content::Full(bytes)
        };
        Self {
            content,
            guard: None,
        }
    }

    /// Chunks as they come; an error is the stream's own business to put into words.
    pub(super) fn stream(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self {
            content: Content::Stream(Box::pin(chunks)),
            guard: None,
        }
    }

    /// Length in bytes where it is known.
    pub(super) fn len(&self) -> Option<u64> {
        match &self.content {
            Content::Empty => Some(0),
            Content::Full(bytes) => Some(bytes.len() as u64),
            Content::Stream(_) => None,
        }
    }

    pub(super) fn guarded(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        match std::mem::replace(&mut this.content, Content::Empty) {
            Content::Empty => Poll::Ready(None),
            Content::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Content::Stream(mut chunks) => {
                let next = chunks.as_mut().poll_next(cx);
                if !matches!(next, Poll::Ready(None)) {
                    this.content = Content::Stream(chunks);
                }
                next.map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        self.len()
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Gathers a request's body: at most `limit` bytes, within `patience` from now.
pub(super) async fn gather(
    mut body: Incoming,
    limit: usize,
    patience: Duration,
) -> Result<Bytes, Refused> {
    let hint = body.size_hint();
    if hint.lower() > limit as u64 {
        return Err(Problem::body_too_large(limit));
    }
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let reading = read_all(&mut body, limit, hint.lower() as usize);
    tokio::pin!(reading);
    // Most bodies came together with their head: no timer for them.
    let at_once = std::future::poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await;
    if let Poll::Ready(result) = at_once {
        return result;
    }
    match tokio::time::timeout(patience, reading).await {
        Ok(result) => result,
        Err(_) => Err(Problem::body_too_slow(patience)),
    }
}

async fn read_all(body: &mut Incoming, limit: usize, expected: usize) -> Result<Bytes, Refused> {
    // A length that is only announced reserves this much at most.
    const RESERVE_MAX: usize = 1 << 20;
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = next_frame(body).await {
        let frame = frame.map_err(|_| Problem::truncated_body())?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if first.len() + rest.len() + data.len() > limit {
            return Err(Problem::body_too_large(limit));
        }
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                rest.reserve(expected.clamp(
                    first.len() + data.len(),
                    RESERVE_MAX.max(first.len() + data.len()),
                ));
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&data);
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(if rest.is_empty() {
        first
    } else {
        rest.freeze()
    })
}

async fn next_frame(body: &mut Incoming) -> Option<Result<Frame<Bytes>, hyper::Error>> {
    std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}
