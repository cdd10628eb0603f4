//! What waits to be sent to one peer: small messages already encoded, in batches that become one write
//! each, and large ones apart.
//!
//! Invariant: bounded in messages and in bytes; what does not fit is refused to the caller, never waited
//! for. What has waited for longer than [`AGE_MAX`] is dropped: a request carries its remaining time, so
//! one that is delivered late would be taken for a fresh one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;
use torc_protocol::message::{PeerBody, PeerMessage, ReplyKind, RequestKind};
use torc_protocol::sync_message::{SyncAnswer, SyncAsk, SyncBody, SyncEntry};
use torc_protocol::wire::{self, WireError};

use super::frame::PREFIX_LEN;

/// Messages whose encoding is longer than this many bytes travel on a stream of their own.
pub(super) const SMALL_LEN_MAX: usize = 16 << 10;
/// Messages in one write.
const BATCH_FRAMES_MAX: u32 = 64;
/// Bytes in one write, about.
const BATCH_LEN_MAX: usize = 256 << 10;
/// Room that a batch begins with, in bytes.
const BATCH_CAPACITY: usize = 32 << 10;
/// Longest time that a message waits to be written.
pub(super) const AGE_MAX: Duration = Duration::from_secs(1);

/// Limits of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// Why a message is not taken.
#[derive(Debug)]
pub(super) enum Rejected {
    /// The queue is full.
    Full,
    /// The message is over the wire's limit.
    Encode(WireError),
}

/// Messages of one write.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) bytes: Bytes,
    pub(super) frames: u32,
}

/// A message for a stream of its own.
#[derive(Debug)]
pub(super) enum Large {
    /// Still to be encoded, outside of any lock.
    Message(PeerMessage),
    /// Encoded, with its prefix.
    Encoded(Bytes),
}

/// A peer's queue.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    bounds: Bounds,
    /// Small messages have come into an empty queue.
    pub(super) small: Notify,
    /// A large message has come.
    pub(super) large: Notify,
}

#[derive(Debug)]
struct State {
    /// The batch that is being filled.
    open: BytesMut,
    open_frames: u32,
    open_since: Instant,
    full: VecDeque<(Batch, Instant)>,
    large: VecDeque<(Large, usize, Instant)>,
    messages: usize,
    bytes: usize,
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        let state = State {
            open: BytesMut::new(),
            open_frames: 0,
            open_since: Instant::now(),
            full: VecDeque::new(),
            large: VecDeque::new(),
            messages: 0,
            bytes: 0,
        };
        Self {
            state: Mutex::new(state),
            bounds,
            small: Notify::new(),
            large: Notify::new(),
        }
    }

    /// Takes the message, or says why not. Encodes small ones at once: cheaper than to move them twice.
    pub(super) fn push(&self, message: PeerMessage) -> Result<(), Rejected> {
        let payload = payload_len(&message);
        let mut state = self.state.lock();
        // A message that is larger than the whole bound is taken by an empty queue.
        let fits = state.bytes + payload <= self.bounds.bytes || state.messages == 0;
        if state.messages >= self.bounds.messages || !fits {
            return Err(Rejected::Full);
        }
        if payload > SMALL_LEN_MAX {
            state.push_large(Large::Message(message), payload);
            drop(state);
            self.large.notify_one();
            return Ok(());
        }
        let was_empty = state.open_frames == 0 && state.full.is_empty();
        let start = state.open.len();
        let len = state.append(&message).map_err(Rejected::Encode)?;
        if len > SMALL_LEN_MAX {
            let encoded = state.open.split_off(start).freeze();
            state.push_large(Large::Encoded(encoded), len);
            drop(state);
            self.large.notify_one();
            return Ok(());
        }
        state.commit(len);
        drop(state);
        if was_empty {
            self.small.notify_one();
        }
        Ok(())
    }

    /// The next write. Dropped for their age: the second number of messages.
    pub(super) fn take(&self, now: Instant) -> (Option<Batch>, u64) {
        let mut state = self.state.lock();
        let mut dropped = 0;
        loop {
            if state.full.is_empty() {
                state.close_open();
            }
            let Some((batch, since)) = state.full.pop_front() else {
                return (None, dropped);
            };
            state.messages -= batch.frames as usize;
            state.bytes -= batch.bytes.len();
            if now.duration_since(since) <= AGE_MAX {
                return (Some(batch), dropped);
            }
            dropped += u64::from(batch.frames);
        }
    }

    /// The next large message with its length in bytes, about; and how many were dropped for their age.
    pub(super) fn take_large(&self, now: Instant) -> (Option<(Large, usize)>, u64) {
        let mut state = self.state.lock();
        let mut dropped = 0;
        while let Some((message, weight, since)) = state.large.pop_front() {
            state.messages -= 1;
            state.bytes -= weight;
            if now.duration_since(since) <= AGE_MAX {
                return (Some((message, weight)), dropped);
            }
            dropped += 1;
        }
        (None, dropped)
    }

    /// Drops what is too old; answers how many messages.
    pub(super) fn discard_old(&self, now: Instant) -> u64 {
        let mut state = self.state.lock();
        let before = state.messages;
        if state.open_frames > 0 && now.duration_since(state.open_since) > AGE_MAX {
            state.close_open();
        }
        while state
            .full
            .front()
            .is_some_and(|(_, since)| now.duration_since(*since) > AGE_MAX)
        {
            if let Some((batch, _)) = state.full.pop_front() {
                state.messages -= batch.frames as usize;
                state.bytes -= batch.bytes.len();
            }
        }
        while state
            .large
            .front()
            .is_some_and(|(_, _, since)| now.duration_since(*since) > AGE_MAX)
        {
            if let Some((_, weight, _)) = state.large.pop_front() {
                state.messages -= 1;
                state.bytes -= weight;
            }
        }
        (before - state.messages) as u64
    }

    /// Messages and bytes that wait.
    pub(super) fn depth(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.messages, state.bytes)
    }
}

impl State {
    /// Encodes the message with its prefix behind the open batch; answers its length.
    fn append(&mut self, message: &PeerMessage) -> Result<usize, WireError> {
        if self.open.capacity() - self.open.len() < PREFIX_LEN {
            self.open.reserve(BATCH_CAPACITY);
        }
        let start = self.open.len();
        self.open.put_u32_le(0);
        match wire::encode(message, &mut self.open) {
            Ok(len) => {
                self.open[start..start + PREFIX_LEN].copy_from_slice(&(len as u32).to_le_bytes());
                Ok(len + PREFIX_LEN)
            }
            Err(error) => {
                self.open.truncate(start);
                Err(error)
            }
        }
    }

    fn commit(&mut self, len: usize) {
        if self.open_frames == 0 {
            self.open_since = Instant::now();
        }
        self.open_frames += 1;
        self.messages += 1;
        self.bytes += len;
        if self.open_frames >= BATCH_FRAMES_MAX || self.open.len() >= BATCH_LEN_MAX {
            self.close_open();
        }
    }

    fn close_open(&mut self) {
        if self.open_frames > 0 {
            let batch = Batch {
                bytes: self.open.split().freeze(),
                frames: self.open_frames,
            };
            self.full.push_back((batch, self.open_since));
            self.open_frames = 0;
        }
    }

    fn push_large(&mut self, message: Large, weight: usize) {
        self.messages += 1;
        self.bytes += weight;
        self.large.push_back((message, weight, Instant::now()));
    }
}

/// Length of what dominates a large message's encoding, in bytes, without encoding it.
fn payload_len(message: &PeerMessage) -> usize {
    match &message.body {
        PeerBody::Request(request) => match &request.kind {
            RequestKind::Write { record, .. } | RequestKind::StandIn { record, .. } => {
                record.as_bytes().len()
            }
            _ => 0,
        },
        PeerBody::Reply(reply) => match &reply.kind {
            ReplyKind::Full {
                record: Some(record),
            } => record.as_bytes().len(),
            _ => 0,
        },
        PeerBody::Sync(message) => match &message.body {
            SyncBody::Ask {
                ask: SyncAsk::Push { entries, .. },
                ..
            }
            | SyncBody::Answer(SyncAnswer::Records { entries, .. }) => {
                entries.iter().map(SyncEntry::weight).sum()
            }
            SyncBody::Answer(SyncAnswer::Digests { entries, .. }) => 48 * entries.len(),
            SyncBody::Answer(SyncAnswer::Sums { sums, .. }) => 16 * sums.len(),
            _ => 0,
        },
        PeerBody::Cluster(_) | PeerBody::Floor(_) => 0,
    }
}
