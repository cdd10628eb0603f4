//! The greeting: the first frame in each direction of a connection.
//!
//! Layout (integers little endian): length of the rest `u16`, `b"torc"`, handshake version `u8`, wire
//! version `u8`, node `u64`, process `u64`, flag `u8` and cluster `u64`, length `u8` and name, length
//! `u8` and peer address as text. Later versions may append: what follows is ignored.

use std::net::SocketAddr;

use bytes::{Buf, BufMut, BytesMut};
use quinn::{RecvStream, SendStream};
use torc_ring::config::is_node_name;
use torc_ring::{ClusterId, NodeId};

use super::error::Reason;

/// Version of this layout.
pub(crate) const HELLO_VERSION: u8 = 1;
const MAGIC: &[u8; 4] = b"torc";
/// Greatest length of a greeting in bytes; later versions have room.
const HELLO_LEN_MAX: usize = 1024;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Version of the wire format.
    pub(crate) wire: u8,
    /// The node.
    pub(crate) node: NodeId,
    /// Drawn at each start: tells a restarted process, or a second one with a copied data directory.
    pub(crate) process: u64,
    /// Its cluster, once it has one.
    pub(crate) cluster: Option<ClusterId>,
    /// Its name; the certificate must say the same.
    pub(crate) name: String,
    /// Where others reach it.
    pub(crate) advertise: SocketAddr,
}

impl Hello {
    pub(crate) fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(128);
        out.put_u16_le(0);
        out.put_slice(MAGIC);
        out.put_u8(HELLO_VERSION);
        out.put_u8(self.wire);
        out.put_u64_le(self.node.0);
        out.put_u64_le(self.process);
        out.put_u8(u8::from(self.cluster.is_some()));
        out.put_u64_le(self.cluster.map_or(0, |cluster| cluster.0));
        put_text(&mut out, &self.name);
        put_text(&mut out, &self.advertise.to_string());
        let len = (out.len() - 2) as u16;
        out[..2].copy_from_slice(&len.to_le_bytes());
        out
    }

    /// The greeting in `bytes`, without its length.
    pub(crate) fn decode(mut bytes: &[u8]) -> Result<Self, Reason> {
        const FIXED: usize = 4 + 1 + 1 + 8 + 8 + 1 + 8;
        if bytes.len() < FIXED || &bytes[..4] != MAGIC {
            return Err(Reason::MalformedHello);
        }
        bytes.advance(4);
        if bytes.get_u8() != HELLO_VERSION {
            return Err(Reason::WireVersion);
        }
        let wire = bytes.get_u8();
        let node = NodeId(bytes.get_u64_le());
        let process = bytes.get_u64_le();
        let known = bytes.get_u8() != 0;
        let cluster = ClusterId(bytes.get_u64_le());
        let name = text(&mut bytes)?;
        let advertise = text(&mut bytes)?
            .parse()
            .map_err(|_| Reason::MalformedHello)?;
        if !is_node_name(&name) {
            return Err(Reason::MalformedHello);
        }
        Ok(Self {
            wire,
            node,
            process,
            cluster: known.then_some(cluster),
            name,
            advertise,
        })
    }

    /// Sends this greeting.
    pub(crate) async fn send(&self, out: &mut SendStream) -> Result<(), quinn::WriteError> {
        out.write_chunk(self.encode().freeze()).await
    }

    /// Receives the other's greeting. `None` when the connection ended first.
    pub(crate) async fn receive(from: &mut RecvStream) -> Option<Result<Self, Reason>> {
        let mut len = [0; 2];
        from.read_exact(&mut len).await.ok()?;
        let len = usize::from(u16::from_le_bytes(len));
        if len > HELLO_LEN_MAX {
            return Some(Err(Reason::MalformedHello));
        }
        let mut bytes = vec![0; len];
        from.read_exact(&mut bytes).await.ok()?;
        Some(Self::decode(&bytes))
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    let len = text.len().min(usize::from(u8::MAX));
    out.put_u8(len as u8);
    out.put_slice(&text.as_bytes()[..len]);
}

fn text(bytes: &mut &[u8]) -> Result<String, Reason> {
    let (&len, rest) = bytes.split_first().ok_or(Reason::MalformedHello)?;
    let (text, rest) = rest
        .split_at_checked(usize::from(len))
        .ok_or(Reason::MalformedHello)?;
    *bytes = rest;
    std::str::from_utf8(text)
        .map(ToOwned::to_owned)
        .map_err(|_| Reason::MalformedHello)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            wire: 7,
            node: NodeId(1 << 63),
            process: 3,
            cluster: Some(ClusterId(9)),
            name: "node-1".into(),
            advertise: ([127, 0, 0, 1], 7081).into(),
        }
    }

    #[test]
    fn a_greeting_survives_the_wire_also_with_something_appended() {
        for cluster in [Some(ClusterId(0)), None] {
            let hello = Hello { cluster, ..hello() };
            let mut bytes = hello.encode().to_vec();
            bytes.extend(b"later");
            assert_eq!(Hello::decode(&bytes[2..]), Ok(hello));
        }
    }

    #[test]
    fn a_greeting_that_is_cut_off_or_not_one_is_refused() {
        let bytes = hello().encode().to_vec();
        for len in 0..bytes.len() - 2 {
            assert_eq!(
                Hello::decode(&bytes[2..2 + len]),
                Err(Reason::MalformedHello),
                "{len}"
            );
        }
        for at in 0..4 {
            let mut bad = bytes.clone();
            bad[2 + at] ^= 1;
            assert_eq!(Hello::decode(&bad[2..]), Err(Reason::MalformedHello));
        }
        let mut other = bytes.clone();
        other[6] = HELLO_VERSION + 1;
        assert_eq!(Hello::decode(&other[2..]), Err(Reason::WireVersion));
    }

    #[test]
    fn no_changed_byte_makes_decoding_panic() {
        let bytes = hello().encode().to_vec();
        for at in 2..bytes.len() {
            for value in 0..=u8::MAX {
                let mut bad = bytes.clone();
                bad[at] = value;
                if let Ok(read) = Hello::decode(&bad[2..]) {
                    assert!(is_node_name(&read.name));
                }
            }
        }
    }
}
