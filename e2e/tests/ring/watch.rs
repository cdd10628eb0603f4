//! Watches changes of the ring from outside, and adds up what they cost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use torc_e2e::cluster::REQUEST_MAX;
use torc_e2e::http::{self, Request};

const PAUSE: Duration = Duration::from_millis(20);

/// One change, from its joint config until it was over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// The least that has to be copied, as a part of one copy of all data.
    pub(crate) unavoidable: f64,
    began: Instant,
    ended: Instant,
}

impl Change {
    pub(crate) fn took(&self) -> Duration {
        self.ended - self.began
    }
}

/// A thread that asks one node again and again; ends when it is dropped.
pub(crate) struct Watch {
    seen: Arc<Mutex<BTreeMap<u64, Change>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start(admin: SocketAddr) -> Self {
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(change) = look(admin) {
                        note(&seen, &change);
                    }
                    thread::sleep(PAUSE);
                }
            })
        };
        Self {
            seen,
            stop,
            thread: Some(thread),
        }
    }

    /// The changes seen since it was asked last.
    pub(crate) fn take(&self) -> Vec<Change> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *seen).into_values().collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say that the test has not seen itself.
            let _ = thread.join();
        }
    }
}

/// `GET /ring/change`.
pub(crate) fn look(admin: SocketAddr) -> Result<Value, String> {
    let answer = http::send(admin, &Request::get("/ring/change"), REQUEST_MAX);
    let answer = answer.map_err(|error| error.to_string())?;
    if answer.status == 200 {
        Ok(answer.json())
    } else {
        Err(format!("{} {}", answer.status, answer.text()))
    }
}

fn note(seen: &Mutex<BTreeMap<u64, Change>>, change: &Value) {
    let (Some(ring), Some(layouts)) = (
        change["ring_version"].as_u64(),
        change["plan"]["layouts"].as_array(),
    ) else {
        return;
    };
    let partitions = change["plan"]["partitions"].as_f64().unwrap_or(1.0);
    let replicas: f64 = layouts
        .iter()
        .filter_map(|layout| layout["unavoidable"].as_f64())
        .sum();
    let now = Instant::now();
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    seen.entry(ring)
        .or_insert(Change {
            unavoidable: replicas / partitions,
            began: now,
            ended: now,
        })
        .ended = now;
}
