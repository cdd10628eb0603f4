//! Agreement on the next configuration: single-decree Paxos, one instance per config version.
//!
//! The acceptors of version v+1 are the `current` members of version v; a majority of them decides.
//! [`Acceptor`] and [`Proposer`] are pure: who calls them carries the messages, and makes the acceptor's
//! state durable **before** its answer leaves the node.
//!
//! Invariants, all of which the caller must uphold together with this file:
//! - a [`Ballot`] is minted freshly for each round and never again, also after a restart;
//! - a proposer of v+1 has v decided;
//! - once a majority has accepted a value in one ballot, every higher ballot proposes the same value,
//!   because its proposer adopts the value of the highest ballot that its majority tells it of.
//!
//! Source: Lamport, "Paxos Made Simple" (2001).

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use torc_ring::{Config, NodeId};

use crate::hlc::Hlc;
use crate::wire::{self, WireError};

/// Names one round of one proposer; ordered by time, then by node.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode,
)]
pub struct Ballot {
    /// Minted for this round.
    pub hlc: Hlc,
    /// By whom.
    #[bincode(with_serde)]
    pub node: NodeId,
}

impl Ballot {
    /// Below every ballot that was ever minted.
    pub const ZERO: Self = Self {
        hlc: Hlc(0),
        node: NodeId(0),
    };
}

/// A value and the ballot in which it was accepted.
pub type AcceptedValue = (Ballot, Arc<Config>);

/// An acceptor has promised a higher ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// What it has promised.
    pub promised: Ballot,
}

/// What one node has promised and accepted in one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptor {
    promised: Ballot,
    accepted: Option<AcceptedValue>,
}

impl Default for Acceptor {
    fn default() -> Self {
        Self {
            promised: Ballot::ZERO,
            accepted: None,
        }
    }
}

/// Why stored acceptor state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AcceptorError {
    /// Too short, or of another format.
    #[error("stored acceptor state of {len} bytes is malformed or was written by a newer version")]
    Malformed {
        /// Bytes that there are.
        len: usize,
    },
    /// The accepted configuration in it cannot be read.
    #[error("stored acceptor state: {0}")]
    Value(#[from] WireError),
}

const ACCEPTOR_FORMAT: u8 = 1;
const BALLOT_LEN: usize = 16;

impl Acceptor {
    /// First phase: promises to take part in nothing below `ballot`, and tells what was accepted so far.
    /// A repeated message is answered again.
    ///
    /// # Errors
    /// When a higher ballot was promised.
    pub fn prepare(&mut self, ballot: Ballot) -> Result<Option<AcceptedValue>, Rejected> {
        if ballot < self.promised {
            return Err(Rejected {
                promised: self.promised,
            });
        }
        self.promised = ballot;
        Ok(self.accepted.clone())
    }

    /// Second phase: accepts the value.
    ///
    /// # Errors
    /// When a higher ballot was promised.
    pub fn accept(&mut self, ballot: Ballot, value: Arc<Config>) -> Result<(), Rejected> {
        if ballot < self.promised {
            return Err(Rejected {
                promised: self.promised,
            });
        }
        self.promised = ballot;
        self.accepted = Some((ballot, value));
        Ok(())
    }

    /// The value accepted last, which may be decided without this node knowing.
    #[must_use]
    pub fn accepted(&self) -> Option<&AcceptedValue> {
        self.accepted.as_ref()
    }

    /// The bytes to be stored: format, promised ballot, and if something was accepted its ballot and
    /// [`wire::encode_config`].
    ///
    /// # Errors
    /// When the value is over the limit of the wire format.
    pub fn encode(&self) -> Result<Bytes, WireError> {
        let mut out = BytesMut::with_capacity(1 + 2 * BALLOT_LEN);
        out.put_u8(ACCEPTOR_FORMAT);
        put_ballot(&mut out, self.promised);
        if let Some((ballot, value)) = &self.accepted {
            put_ballot(&mut out, *ballot);
            out.put_slice(&wire::encode_config(value)?);
        }
        Ok(out.freeze())
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, AcceptorError> {
        let malformed = AcceptorError::Malformed { len: bytes.len() };
        let Some((&ACCEPTOR_FORMAT, rest)) = bytes.split_first() else {
            return Err(malformed);
        };
        let Some((promised, rest)) = take_ballot(rest) else {
            return Err(malformed);
        };
        if rest.is_empty() {
            return Ok(Self {
                promised,
                accepted: None,
            });
        }
        let Some((ballot, value)) = take_ballot(rest) else {
            return Err(malformed);
        };
        let value = Arc::new(wire::decode_config(value)?);
        Ok(Self {
            promised,
            accepted: Some((ballot, value)),
        })
    }
}

fn put_ballot(out: &mut BytesMut, ballot: Ballot) {
    out.put_u64(ballot.hlc.0);
    out.put_u64(ballot.node.0);
}

fn take_ballot(bytes: &[u8]) -> Option<(Ballot, &[u8])> {
    let (hlc, rest) = bytes.split_first_chunk::<8>()?;
    let (node, rest) = rest.split_first_chunk::<8>()?;
    let ballot = Ballot {
        hlc: Hlc(u64::from_be_bytes(*hlc)),
        node: NodeId(u64::from_be_bytes(*node)),
    };
    Some((ballot, rest))
}

/// What a proposer's caller has to do after an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Wait.
    Pending,
    /// A majority has promised: ask all acceptors to accept this value.
    Accept(Arc<Config>),
    /// A majority has accepted: this is the configuration of that version, for ever.
    Decided(Arc<Config>),
}

/// One round of one proposer. A round that does not get on is followed by another one with a new ballot.
#[derive(Clone, Debug)]
pub struct Proposer {
    ballot: Ballot,
    acceptors: Vec<NodeId>,
    step: Step,
}

#[derive(Clone, Debug)]
enum Step {
    Preparing {
        wish: Arc<Config>,
        promised: BTreeSet<NodeId>,
        adopted: Option<AcceptedValue>,
    },
    Accepting {
        value: Arc<Config>,
        accepted: BTreeSet<NodeId>,
    },
    Done,
}

impl Proposer {
    /// A round for the version after `decided`, whose `current` members are the acceptors. `wish` is
    /// proposed unless the acceptors tell of something that may be decided already.
    #[must_use]
    pub fn new(ballot: Ballot, decided: &Config, wish: Arc<Config>) -> Self {
        assert_eq!(
            wish.version.0,
            decided.version.0 + 1,
            "a proposal follows a decided version"
        );
        let acceptors = decided.current.iter().map(|member| member.id).collect();
        let step = Step::Preparing {
            wish,
            promised: BTreeSet::new(),
            adopted: None,
        };
        Self {
            ballot,
            acceptors,
            step,
        }
    }

    /// This round's ballot.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// All acceptors.
    #[must_use]
    pub fn acceptors(&self) -> &[NodeId] {
        &self.acceptors
    }

    /// An acceptor's answer to the first phase.
    pub fn on_promise(
        &mut self,
        from: NodeId,
        ballot: Ballot,
        accepted: Option<AcceptedValue>,
    ) -> Verdict {
        let majority = self.majority();
        if ballot != self.ballot || !self.acceptors.contains(&from) {
            return Verdict::Pending;
        }
        let Step::Preparing {
            wish,
            promised,
            adopted,
        } = &mut self.step
        else {
            return Verdict::Pending;
        };
        promised.insert(from);
        if let Some((theirs, value)) = accepted
            && adopted.as_ref().is_none_or(|(mine, _)| theirs > *mine)
        {
            *adopted = Some((theirs, value));
        }
        if promised.len() < majority {
            return Verdict::Pending;
        }
        let value = adopted
            .take()
            .map_or_else(|| Arc::clone(wish), |(_, value)| value);
        self.step = Step::Accepting {
            value: Arc::clone(&value),
            accepted: BTreeSet::new(),
        };
        Verdict::Accept(value)
    }

    /// An acceptor's answer to the second phase.
    pub fn on_accepted(&mut self, from: NodeId, ballot: Ballot) -> Verdict {
        let majority = self.majority();
        if ballot != self.ballot || !self.acceptors.contains(&from) {
            return Verdict::Pending;
        }
        let Step::Accepting { value, accepted } = &mut self.step else {
            return Verdict::Pending;
        };
        accepted.insert(from);
        if accepted.len() < majority {
            return Verdict::Pending;
        }
        let value = Arc::clone(value);
        self.step = Step::Done;
        Verdict::Decided(value)
    }

    fn majority(&self) -> usize {
        self.acceptors.len() / 2 + 1
    }
}

#[cfg(test)]
mod tests {
    use torc_ring::config::{Secret, WEIGHT_DEFAULT};
    use torc_ring::{ClusterId, Member};

    use super::*;
    use crate::rng::Rng;

    fn member(id: u64) -> Member {
        Member {
            id: NodeId(id),
            name: format!("node-{id}"),
            zone: String::new(),
            weight: WEIGHT_DEFAULT,
            peer: format!("127.0.0.1:{}", 7000 + id),
            http: format!("127.0.0.1:{}", 8000 + id),
        }
    }

    fn decided(members: u64) -> Config {
        let first = Config::bootstrap(ClusterId(1), (7, Secret([0; 32])), 4, member(1));
        first.with_members((1..=members).map(member).collect())
    }

    fn wish(base: &Config, extra: u64) -> Arc<Config> {
        let mut members = base.current.clone();
        members.push(member(extra));
        Arc::new(base.with_members(members))
    }

    fn ballot(hlc: u64, node: u64) -> Ballot {
        Ballot {
            hlc: Hlc(hlc),
            node: NodeId(node),
        }
    }

    #[test]
    fn a_value_that_may_be_decided_is_adopted() {
        let base = decided(3);
        let (mine, theirs) = (wish(&base, 10), wish(&base, 11));
        let mut acceptor = Acceptor::default();
        acceptor
            .accept(ballot(5, 2), Arc::clone(&theirs))
            .expect("nothing promised");

        let mut proposer = Proposer::new(ballot(9, 1), &base, mine);
        assert_eq!(
            proposer.on_promise(NodeId(3), ballot(9, 1), None),
            Verdict::Pending
        );
        let told = acceptor.prepare(ballot(9, 1)).expect("higher");
        let verdict = proposer.on_promise(NodeId(2), ballot(9, 1), told);
        assert_eq!(verdict, Verdict::Accept(Arc::clone(&theirs)));
        assert_eq!(
            proposer.on_accepted(NodeId(1), ballot(9, 1)),
            Verdict::Pending
        );
        assert_eq!(
            proposer.on_accepted(NodeId(1), ballot(9, 1)),
            Verdict::Pending,
            "counted once"
        );
        assert_eq!(
            proposer.on_accepted(NodeId(4), ballot(9, 1)),
            Verdict::Pending,
            "no acceptor"
        );
        assert_eq!(
            proposer.on_accepted(NodeId(2), ballot(8, 1)),
            Verdict::Pending,
            "old ballot"
        );
        assert_eq!(
            proposer.on_accepted(NodeId(2), ballot(9, 1)),
            Verdict::Decided(theirs)
        );
    }

    #[test]
    fn an_acceptor_keeps_its_promise_also_across_a_restart() {
        let base = decided(3);
        let mut acceptor = Acceptor::default();
        acceptor
            .accept(ballot(5, 2), wish(&base, 10))
            .expect("nothing promised");
        acceptor.prepare(ballot(7, 3)).expect("higher");
        let mut again = Acceptor::decode(&acceptor.encode().expect("encodes")).expect("decodes");
        assert_eq!(again, acceptor);
        let refused = Err(Rejected {
            promised: ballot(7, 3),
        });
        assert_eq!(again.accept(ballot(5, 2), wish(&base, 10)), refused);
        assert!(again.prepare(ballot(6, 9)).is_err());
        assert!(again.accept(ballot(7, 3), wish(&base, 11)).is_ok());
    }

    #[test]
    fn damaged_state_is_an_error() {
        let mut acceptor = Acceptor::default();
        acceptor
            .accept(ballot(5, 2), wish(&decided(2), 10))
            .expect("nothing promised");
        let bytes = acceptor.encode().expect("encodes");
        for len in 0..bytes.len() {
            let decoded = Acceptor::decode(&bytes[..len]);
            assert!(len == 17 || decoded.is_err(), "{len} bytes");
        }
    }

    /// One instance, several proposers, messages lost, doubled and late, acceptors restarted from what they
    /// had stored: whatever is decided, it is one value.
    #[test]
    fn one_value_is_decided_whatever_the_network_does() {
        #[derive(Clone)]
        enum Wire {
            Prepare(usize, Ballot),
            Promise(usize, NodeId, Ballot, Option<AcceptedValue>),
            Accept(usize, Ballot, Arc<Config>),
            Accepted(usize, NodeId, Ballot),
        }
        let mut decisions = 0;
        for seed in 0..2_000 {
            let mut rng = Rng::new(seed);
            let base = decided(rng.between(1, 6));
            let ids: Vec<NodeId> = base.current.iter().map(|m| m.id).collect();
            let mut acceptors = vec![Acceptor::default(); ids.len()];
            let mut proposers: Vec<Option<Proposer>> = vec![None; 3];
            let mut air: Vec<(NodeId, Wire)> = Vec::new();
            let mut chosen: Option<Arc<Config>> = None;
            for step in 1..400_u64 {
                if rng.between(0, 12) == 0 {
                    let who = rng.between(0, 3) as usize;
                    let mine = wish(&base, 20 + who as u64);
                    let proposer = Proposer::new(ballot(step, who as u64), &base, mine);
                    air.extend(
                        ids.iter()
                            .map(|id| (*id, Wire::Prepare(who, proposer.ballot()))),
                    );
                    proposers[who] = Some(proposer);
                    continue;
                }
                if air.is_empty() {
                    continue;
                }
                let at = rng.between(0, air.len() as u64) as usize;
                let (to, message) = if rng.between(0, 8) == 0 {
                    air[at].clone()
                } else {
                    air.swap_remove(at)
                };
                if rng.between(0, 8) == 0 {
                    continue;
                }
                let index = ids.iter().position(|id| *id == to).expect("known");
                let verdict = match message {
                    Wire::Prepare(who, b) => {
                        if let Ok(told) = acceptors[index].prepare(b) {
                            air.push((to, Wire::Promise(who, to, b, told)));
                        }
                        Verdict::Pending
                    }
                    Wire::Accept(who, b, value) => {
                        if acceptors[index].accept(b, value).is_ok() {
                            air.push((to, Wire::Accepted(who, to, b)));
                        }
                        Verdict::Pending
                    }
                    Wire::Promise(who, from, b, told) => proposers[who]
                        .as_mut()
                        .map_or(Verdict::Pending, |p| p.on_promise(from, b, told)),
                    Wire::Accepted(who, from, b) => proposers[who]
                        .as_mut()
                        .map_or(Verdict::Pending, |p| p.on_accepted(from, b)),
                };
                match verdict {
                    Verdict::Pending => {}
                    Verdict::Accept(value) => {
                        let (who, b) = proposers
                            .iter()
                            .enumerate()
                            .filter_map(|(who, p)| p.as_ref().map(|p| (who, p)))
                            .find(|(_, p)| matches!(&p.step, Step::Accepting { value: v, accepted } if accepted.is_empty() && Arc::ptr_eq(v, &value)))
                            .map(|(who, p)| (who, p.ballot()))
                            .expect("somebody accepts now");
                        air.extend(
                            ids.iter()
                                .map(|id| (*id, Wire::Accept(who, b, Arc::clone(&value)))),
                        );
                    }
                    Verdict::Decided(value) => {
                        decisions += 1;
                        assert_eq!(
                            *chosen.get_or_insert_with(|| Arc::clone(&value)),
                            value,
                            "seed {seed}"
                        );
                    }
                }
                let crash = rng.between(0, ids.len() as u64) as usize;
                acceptors[crash] = Acceptor::decode(&acceptors[crash].encode().expect("encodes"))
                    .expect("decodes");
            }
        }
        assert!(
            decisions > 2_000,
            "the worlds decide something: {decisions}"
        );
    }
}
