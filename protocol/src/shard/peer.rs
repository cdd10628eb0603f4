//! What peers say: requests to this replica, and replies to what this shard coordinates.

use torc_ring::NodeId;

use crate::core::{Ask, Step};
use crate::get::For;
use crate::hints::StandIn;
use crate::message::{PeerBody, PeerMessage, Refusal, Reply, ReplyKind, Request, RequestKind};
use crate::mutant::Mutant;
use crate::record::KEY_LEN_MAX;
use crate::replicate::{self};
use crate::shard_io::Output;
use crate::watch::Wish;

use super::Shard;
use super::op::Op;

impl Shard {
    pub(super) fn on_peer(&mut self, from: NodeId, message: PeerMessage) {
        self.core.clock.observe(message.hlc, self.core.now.wall);
        match message.body {
            PeerBody::Request(request) => self.on_request(from, request),
            PeerBody::Reply(reply) => self.on_reply(from, reply),
            PeerBody::Cluster(_) => {}
            PeerBody::Sync(message) => {
                let (core, replica) = (&mut self.core, &mut self.replica);
                self.repair.on_message(core, replica, (from, message));
            }
            PeerBody::Floor(message) => self.floor.on_message(&mut self.core, from, message),
        }
    }

    pub(super) fn on_request(&mut self, from: NodeId, request: Request) {
        if request.ring > self.core.ring_version() {
            let version = torc_ring::ConfigVersion(request.ring.0);
            self.core.out.push_back(Output::NewerConfig(from, version));
        }
        let key_len = match &request.kind {
            RequestKind::Write { key, .. }
            | RequestKind::StandIn { key, .. }
            | RequestKind::Read { key, .. }
            | RequestKind::Watch { key, .. } => key.key.len(),
            RequestKind::List { .. } => 1,
        };
        if key_len == 0 || key_len > KEY_LEN_MAX {
            replicate::refuse_request(&mut self.core, from, &request, Refusal::NotOwner);
            return;
        }
        if let RequestKind::StandIn { .. } = request.kind {
            self.on_stand_in(from, request);
        } else {
            self.replica.on_request(&mut self.core, from, request);
        }
    }

    /// Keeps a counted hint, if this node is one of the n that may stand in.
    pub(super) fn on_stand_in(&mut self, from: NodeId, request: Request) {
        let refusal = self.stand_in_refusal(&request);
        if let Some(refusal) = refusal {
            if let (RequestKind::StandIn { key, .. }, Refusal::Inheriting) =
                (&request.kind, refusal)
            {
                let tree = self.core.tree_of(key);
                self.floor.ask_role(&mut self.core, tree);
            }
            replicate::refuse_request(&mut self.core, from, &request, refusal);
            return;
        }
        let deadline = self.core.now.mono.plus(u64::from(request.remaining_us));
        let ask = Ask {
            op: request.op,
            ring: request.ring,
            deadline,
            trace: request.trace.0,
        };
        let RequestKind::StandIn {
            target,
            key,
            record,
        } = request.kind
        else {
            return;
        };
        self.hints.store(
            &mut self.core,
            target,
            (key, record),
            Some(StandIn { node: from, ask }),
        );
    }

    pub(super) fn stand_in_refusal(&self, request: &Request) -> Option<Refusal> {
        let core = &self.core;
        let RequestKind::StandIn {
            target,
            key,
            record,
        } = &request.kind
        else {
            return None;
        };
        if request.ring != core.ring_version() {
            let config = core
                .view
                .as_ref()
                .map(|view| view.config.version)
                .unwrap_or_default();
            return Some(Refusal::RingVersion { config });
        }
        if !core.serving {
            return Some(Refusal::Overloaded);
        }
        if request.remaining_us == 0 {
            return Some(Refusal::Expired);
        }
        let allowed = core.view.as_ref().is_some_and(|view| {
            view.config.bucket_by_id(key.bucket).is_some_and(|bucket| {
                let partition = core.partition(key);
                let owners = view.ring.owners_of(bucket, partition);
                let stand_ins = view.ring.stand_ins(bucket.n, partition);
                owners.target.is_none()
                    && owners.current.contains(target)
                    && stand_ins.contains(&core.settings.node)
                    && view.may_stand_in(core.settings.node)
            })
        });
        if !allowed {
            return Some(Refusal::NotOwner);
        }
        let tree = core.tree_of(key);
        if core.floors.is_role_unasked(tree) && !core.has(Mutant::RoleWithoutCloses) {
            return Some(Refusal::Inheriting);
        }
        if !core.may_promise(tree, record.version()) {
            return Some(Refusal::Closed);
        }
        let purpose = (crate::message::WritePurpose::Client, crate::hlc::Hlc(0));
        // Closes are of owners; a node that stands in has only its promise.
        match replicate::admit_write(core, tree, record, purpose) {
            Err(Refusal::Closed | Refusal::Inheriting) | Ok(()) => None,
            Err(refusal) => Some(refusal),
        }
    }

    pub(super) fn on_reply(&mut self, from: NodeId, reply: Reply) {
        if let ReplyKind::Refused(Refusal::RingVersion { config }) = &reply.kind
            && self
                .core
                .view
                .as_ref()
                .is_none_or(|view| view.config.version < *config)
        {
            self.core.out.push_back(Output::NewerConfig(from, *config));
        }
        if self
            .hints
            .on_reply(&mut self.core, reply.op, from, &reply.kind)
        {
            return;
        }
        let Some(op) = self.ops.get_mut(&reply.op) else {
            return;
        };
        // An answer under another ring version is no answer.
        if op.ring() != reply.ring {
            return;
        }
        let before = op.waiting_client();
        let mut wish = Wish::Nothing;
        let mut outcome = None;
        let step = match op {
            Op::Put(put) => put.on_reply(&mut self.core, from, &reply.kind),
            Op::Get(get) => {
                let (step, result) = get.on_reply(&mut self.core, (from, reply.floor), reply.kind);
                outcome = result.map(|result| (get.destination, result));
                step
            }
            Op::List(list) => list.on_reply(&mut self.core, (from, reply.floor), reply.kind),
            Op::Verify(verify) => verify.on_reply(&mut self.core, (from, reply.floor), reply.kind),
            Op::Watch(watch) => {
                if reply.kind == ReplyKind::Changed {
                    wish = watch.on_changed();
                }
                Step::Wait
            }
        };
        self.after(reply.op, before, step);
        if let Some((For::Watch(watch), result)) = outcome {
            self.on_watch_outcome(watch, result);
        }
        if wish == Wish::Read {
            self.read_for_watch(reply.op);
        }
    }
}
