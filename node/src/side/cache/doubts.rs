//! Keys for which Redis may not be asked: a write of this node has not certainly reached it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Keys that may be doubtful at a time; beyond, the whole cache is, until everything in it is too old.
const DOUBTS_MAX: usize = 1 << 16;

/// Keys whose entries in Redis may be older than what this node has written.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    keys: Mutex<BTreeMap<Bytes, Instant>>,
    /// So that reads need no lock while there are none, which is nearly always.
    count: AtomicUsize,
    /// Until then every key is doubtful.
    all_until: Mutex<Option<Instant>>,
}

impl Doubts {
    /// A write of this key may not have reached Redis, whose entry ends after `ttl` at the latest.
    pub(super) fn add(&self, name: Bytes, ttl: Duration) {
        let until = Instant::now() + ttl;
        let mut keys = self.keys.lock();
        if keys.len() < DOUBTS_MAX || keys.contains_key(&name) {
            keys.insert(name, until);
        } else {
            keys.clear();
            *self.all_until.lock() = Some(until);
        }
        self.count.store(keys.len() + 1, Ordering::Relaxed);
    }

    /// Whether Redis may not be asked for this key.
    pub(super) fn contains(&self, name: &Bytes) -> bool {
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let now = Instant::now();
        self.all_until.lock().is_some_and(|until| now < until)
            || self.keys.lock().get(name).is_some_and(|until| now < *until)
    }

    /// Some of them, each with its end; what has become too old by itself is dropped.
    pub(super) fn some(&self, count: usize) -> Vec<(Bytes, Instant)> {
        let now = Instant::now();
        let mut keys = self.keys.lock();
        keys.retain(|_, until| now < *until);
        let mut all_until = self.all_until.lock();
        if all_until.is_some_and(|until| now >= until) {
            *all_until = None;
        }
        let left = keys.len() + usize::from(all_until.is_some());
        self.count.store(left, Ordering::Relaxed);
        keys.iter()
            .take(count)
            .map(|(name, until)| (name.clone(), *until))
            .collect()
    }

    /// These entries were removed from Redis.
    pub(super) fn settle(&self, names: &[(Bytes, Instant)]) {
        let mut keys = self.keys.lock();
        for (name, until) in names {
            // One that has become doubtful again meanwhile stays so.
            if keys.get(name) == Some(until) {
                keys.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubtful_key_is_so_until_it_is_settled_and_too_many_make_all_doubtful() {
        let doubts = Doubts::default();
        let (a, b) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        let ttl = Duration::from_secs(600);
        doubts.add(a.clone(), ttl);
        assert!(doubts.contains(&a) && !doubts.contains(&b));
        let some = doubts.some(9);
        assert_eq!(some.iter().map(|(name, _)| name).collect::<Vec<_>>(), [&a]);
        doubts.add(a.clone(), ttl * 2);
        doubts.settle(&some);
        assert!(doubts.contains(&a), "it has become doubtful again");
        let some = doubts.some(9);
        doubts.settle(&some);
        assert!(!doubts.contains(&a));
        for number in 0..=DOUBTS_MAX {
            doubts.add(Bytes::from(number.to_string()), ttl);
        }
        assert!(
            doubts.contains(&b),
            "nobody knows any more which keys they were"
        );
    }
}
