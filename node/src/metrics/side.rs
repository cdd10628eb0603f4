//! Metrics of the side services; each family is there only where its service is configured.

use std::fmt;

use prometheus_client::metrics::MetricType;

use super::Metrics;
use super::scrape::{Out, Scrape, counter};

/// How a read that may use the cache fared there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheResult {
    /// It was answered.
    Hit,
    /// It was not there, or too old.
    Miss,
    /// Redis was down or slow.
    Bypassed,
}

const RESULTS: [&str; 3] = ["hit", "miss", "bypassed"];
const CHANGES: [&str; 2] = ["told", "dropped"];

impl Metrics {
    /// A read that may use the cache has asked it.
    pub fn on_cache(&self, result: CacheResult) {
        self.cache[result as usize].add(1);
    }

    /// Changes were told to the feed (`told`), or left out by a bound (`dropped`).
    pub fn on_change(&self, result: &'static str, count: u64) {
        if let Some(at) = CHANGES.iter().position(|known| *known == result) {
            self.changes[at].add(count);
        }
    }
}

impl Scrape {
    pub(super) fn side(&self, out: &mut Out<'_>) -> fmt::Result {
        let flag = |is: bool| f64::from(u8::from(is));
        if let Some(cache) = &self.side.cache {
            let state = cache.state();
            let help = "Reads that may use the cache, by how they fared there";
            let mut requests = out.family("torc_cache_requests", help, MetricType::Counter)?;
            for (result, count) in RESULTS.iter().zip(&self.metrics.cache) {
                let labels = [("result", *result)];
                counter(&mut requests.encode_family(&labels)?, count.value())?;
            }
            let help = "1 while a server of the cache is connected";
            out.gauge("torc_cache_connected", help, flag(state.server.is_some()))?;
            out.gauge("torc_cache_keys", "Keys in the cache", state.keys as f64)?;
            let help = "Memory that the cache uses";
            out.gauge("torc_cache_bytes", help, state.bytes as f64)?;
        }
        if let Some(queue) = &self.side.queue {
            let state = queue.state();
            let help = "1 while a broker of the queue is connected";
            out.gauge("torc_queue_connected", help, flag(state.connected))?;
            let help = "Queued writes that wait, as last seen";
            out.gauge("torc_queue_depth", help, state.depth as f64)?;
            let help = "Queued writes that were given up, as last seen";
            out.gauge("torc_queue_dead", help, state.dead as f64)?;
        }
        let Some(outbox) = &self.side.outbox else {
            return Ok(());
        };
        let help = "Changes told to the feed, and those left out by a bound";
        let mut changes = out.family("torc_changes", help, MetricType::Counter)?;
        for (result, count) in CHANGES.iter().zip(&self.metrics.changes) {
            let labels = [("result", *result)];
            counter(&mut changes.encode_family(&labels)?, count.value())?;
        }
        let (first, later) = outbox.waiting();
        let help =
            "Notes of changes that wait to be told by this node, or in case another one dies";
        let mut waiting = out.family("torc_changes_waiting", help, MetricType::Gauge)?;
        for (lane, count) in [("first", first), ("later", later)] {
            let labels = [("lane", lane)];
            waiting
                .encode_family(&labels)?
                .encode_gauge(&(count as f64))?;
        }
        Ok(())
    }
}
