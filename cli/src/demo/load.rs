//! A gentle load, so that there is something to see while nodes are killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use torc_client::{Client, ClientConfig, ReadOptions, WriteOptions};

use crate::output;

/// Time between requests: fifty a second.
const PACE: Duration = Duration::from_millis(20);
/// Time between lines about it.
const REPORT: Duration = Duration::from_secs(10);
/// Keys that are written and read.
const KEYS: u32 = 1_000;

/// A load under way.
#[derive(Debug)]
pub(crate) struct Load {
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    failed: AtomicU64,
}

pub(crate) fn start(addresses: &[String]) -> anyhow::Result<Load> {
    let client = Client::new(ClientConfig::new(addresses.iter().cloned()))?;
    let counts = Arc::<Counts>::default();
    Ok(Load {
        task: tokio::spawn(run(client, counts)),
    })
}

impl Load {
    pub(crate) async fn stop(self) {
        self.task.abort();
        // It was told to end, which is what this error says.
        let _ = self.task.await;
    }
}

async fn run(client: Client, counts: Arc<Counts>) {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut report = tokio::time::interval(REPORT);
    report.tick().await;
    loop {
        tokio::select! {
            _ = pace.tick() => request(&client, &counts).await,
            _ = report.tick() => {
                let (done, failed) = (counts.done.load(Ordering::Relaxed), counts.failed.load(Ordering::Relaxed));
                // A closed standard output ends the demo elsewhere.
                let _ = output::line(format!("load: {done} requests, {failed} failed"));
            }
        }
    }
}

/// Half writes, half reads, one after the other: a slow cluster gets less of it.
async fn request(client: &Client, counts: &Counts) {
    let key = format!("load/{}", rand::random_range(0..KEYS));
    let result = if rand::random() {
        let value = rand::random::<u64>().to_string();
        client
            .put("default", key.as_bytes(), value, &WriteOptions::default())
            .await
            .map(drop)
    } else {
        client
            .get("default", key.as_bytes(), &ReadOptions::default())
            .await
            .map(drop)
    };
    counts.done.fetch_add(1, Ordering::Relaxed);
    if result.is_err() {
        counts.failed.fetch_add(1, Ordering::Relaxed);
    }
}
