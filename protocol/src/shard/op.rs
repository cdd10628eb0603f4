//! One coordinated operation of any kind.

use torc_ring::{BucketId, RingVersion};

use crate::core::{Ask, Caller, Core};
use crate::get::Get;
use crate::list::List;
use crate::put::Put;
use crate::verify::Verify;
use crate::watch::Watch;

#[derive(Debug)]
pub(super) enum Op {
    Put(Box<Put>),
    Get(Box<Get>),
    List(Box<List>),
    Watch(Box<Watch>),
    Verify(Box<Verify>),
}

impl Op {
    pub(super) fn ring(&self) -> RingVersion {
        match self {
            Self::Put(put) => put.ask.ring,
            Self::Get(get) => get.ask.ring,
            Self::List(list) => list.ask.ring,
            Self::Watch(watch) => watch.ask.ring,
            Self::Verify(verify) => verify.ask.ring,
        }
    }

    pub(super) fn bucket(&self) -> BucketId {
        match self {
            Self::Put(put) => put.key.bucket,
            Self::Get(get) => get.key.bucket,
            Self::List(list) => list.what.bucket,
            Self::Watch(watch) => watch.key.bucket,
            Self::Verify(verify) => verify.key.bucket,
        }
    }

    pub(super) fn waiting_client(&self) -> bool {
        match self {
            Self::Put(put) => put.caller.request.is_some(),
            Self::Get(get) => get.caller.request.is_some(),
            Self::List(list) => list.caller.request.is_some(),
            Self::Watch(watch) => watch.caller.request.is_some(),
            Self::Verify(verify) => verify.caller.request.is_some(),
        }
    }

    pub(super) fn caller(&mut self) -> (&Ask, &mut Caller) {
        match self {
            Self::Put(put) => (&put.ask, &mut put.caller),
            Self::Get(get) => (&get.ask, &mut get.caller),
            Self::List(list) => (&list.ask, &mut list.caller),
            Self::Watch(watch) => (&watch.ask, &mut watch.caller),
            Self::Verify(verify) => (&verify.ask, &mut verify.caller),
        }
    }

    pub(super) fn disarm(&mut self, core: &mut Core) {
        match self {
            Self::Put(put) => put.disarm(core),
            Self::Get(get) => get.disarm(core),
            Self::List(list) => list.disarm(core),
            Self::Watch(watch) => watch.disarm(core),
            Self::Verify(verify) => verify.disarm(core),
        }
    }
}
