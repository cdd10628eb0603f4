//! Frames on a stream: a length (`u32`, little endian), then a message of `torc_protocol::wire`.
//!
//! Invariant: a frame that lies inside one received chunk shares its memory; one that straddles chunks
//! is put together in memory of exactly its length. A length over the limit allocates nothing.

use bytes::{Buf, Bytes, BytesMut};

/// Length of a frame's prefix in bytes.
pub(super) const PREFIX_LEN: usize = 4;

/// A frame that is over its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong {
    /// Claimed length in bytes.
    pub(super) len: usize,
}

/// Splits a stream of chunks into frames.
#[derive(Debug)]
pub(super) struct Splitter {
    limit: usize,
    /// Beginning of a length.
    prefix: [u8; PREFIX_LEN],
    prefix_len: usize,
    /// Beginning of a frame, and its whole length.
    partial: Option<(BytesMut, usize)>,
}

impl Splitter {
    /// A splitter that takes frames of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            prefix: [0; PREFIX_LEN],
            prefix_len: 0,
            partial: None,
        }
    }

    /// Hands every frame that is complete with `chunk` to `on_frame`, until that says no.
    pub(super) fn push<E: From<TooLong>>(
        &mut self,
        mut chunk: Bytes,
        mut on_frame: impl FnMut(Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        while !chunk.is_empty() {
            if let Some((mut partial, len)) = self.partial.take() {
                let take = (len - partial.len()).min(chunk.len());
                partial.extend_from_slice(&chunk[..take]);
                chunk.advance(take);
                if partial.len() == len {
                    on_frame(partial.freeze())?;
                } else {
                    self.partial = Some((partial, len));
                }
                continue;
            }
            let Some(len) = self.take_prefix(&mut chunk)? else {
                continue;
            };
            if chunk.len() >= len {
                on_frame(chunk.split_to(len))?;
            } else {
                let mut partial = BytesMut::with_capacity(len);
                partial.extend_from_slice(&chunk);
                chunk.clear();
                self.partial = Some((partial, len));
            }
        }
        Ok(())
    }

    /// Whether the stream may end here.
    pub(super) fn is_between_frames(&self) -> bool {
        self.prefix_len == 0 && self.partial.is_none()
    }

    fn take_prefix(&mut self, chunk: &mut Bytes) -> Result<Option<usize>, TooLong> {
        let take = (PREFIX_LEN - self.prefix_len).min(chunk.len());
        self.prefix[self.prefix_len..self.prefix_len + take].copy_from_slice(&chunk[..take]);
        self.prefix_len += take;
        chunk.advance(take);
        if self.prefix_len < PREFIX_LEN {
            return Ok(None);
        }
        self.prefix_len = 0;
        let len = u32::from_le_bytes(self.prefix) as usize;
        if len > self.limit {
            Err(TooLong { len })
        } else {
            Ok(Some(len))
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    fn split(splitter: &mut Splitter, chunks: &[&[u8]]) -> Result<Vec<Bytes>, TooLong> {
        let mut frames = Vec::new();
        for chunk in chunks {
            splitter.push(Bytes::copy_from_slice(chunk), |frame| {
                frames.push(frame);
                Ok::<_, TooLong>(())
            })?;
        }
        Ok(frames)
    }

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let bodies: [&[u8]; 5] = [b"one", b"", b"three and more", &[7; 300], b"x"];
        let mut stream = BytesMut::new();
        for body in bodies {
            stream.put_u32_le(body.len() as u32);
            stream.put_slice(body);
        }
        for step in 1..stream.len() {
            let mut splitter = Splitter::new(300);
            let chunks: Vec<&[u8]> = stream.chunks(step).collect();
            assert_eq!(
                split(&mut splitter, &chunks).unwrap(),
                bodies,
                "cut every {step} bytes"
            );
            assert!(splitter.is_between_frames());
        }
    }

    #[test]
    fn a_frame_inside_one_chunk_shares_its_memory() {
        let chunk = Bytes::from_static(&[3, 0, 0, 0, b'a', b'b', b'c', 1, 0]);
        let mut seen = None;
        let mut splitter = Splitter::new(10);
        splitter
            .push(chunk.clone(), |frame| {
                seen = Some(frame);
                Ok::<_, TooLong>(())
            })
            .unwrap();
        assert_eq!(seen.unwrap().as_ptr(), chunk[4..].as_ptr());
        assert!(!splitter.is_between_frames());
    }

    #[test]
    fn a_length_over_the_limit_is_refused() {
        let mut splitter = Splitter::new(10);
        assert_eq!(
            split(&mut splitter, &[&[11, 0], &[0, 0]]),
            Err(TooLong { len: 11 })
        );
    }
}
