//! The read cache: a Redis, alone or behind sentinels.
//!
//! Only reads that one replica would answer use it, so that it weakens no promise; whoever coordinates a
//! write puts what it wrote there. It is never waited for longer than its budget, and never a reason to
//! fail: down or slow, it is bypassed.
//!
//! Invariants: what is there only ever gives way to the same or a newer version of its key (the script
//! compares), so a slow reader cannot bring back what a writer has replaced. Nothing is served that was
//! read or written longer than `ttl` ago: each entry carries its own end, by the clock of the node that
//! made it, and Redis has it too. A write of this node that has not certainly reached Redis makes its key
//! doubtful: this node does not ask Redis for it until the entry has been removed there.

mod doubts;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes};
use parking_lot::{Mutex, RwLock};
use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _,
    RedisConnectionInfo, RedisError, Script,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout};
use torc_protocol::client::{ClientError, ClientOp, ClientReply, ClientRequest, record_of};
use torc_protocol::record::{Kind, Record};
use torc_protocol::shard_io::View;
use torc_ring::{Bucket, BucketId, Quorum};
use tracing::{info, warn};

use self::doubts::Doubts;
use super::SideError;
use crate::config::{self, CachePlace};
use crate::handle::Condition;
use crate::metrics::{CacheResult, Metrics};

/// Between two looks at the sentinels and at Redis' figures.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// For connecting, and for figures.
const PATIENCE: Duration = Duration::from_secs(1);
/// Failures in a row after which Redis is left alone for [`REST`].
const FAILURES_MAX: u32 = 5;
/// For how long a failing Redis is left alone, so that nobody waits for its budget again and again.
const REST: Duration = Duration::from_millis(250);
/// Reads whose answers wait to be put into the cache; more are left out.
const FILLS_MAX: usize = 1024;
/// Doubtful entries that are removed from Redis at a time.
const DOUBTS_PAGE: usize = 512;
/// Bytes before the record in an entry: the moment, in microseconds since 1970, from which on it is stale.
const HEAD: usize = 8;

/// Puts an entry unless a newer version of the key is there; makes room when there are too many keys.
///
/// Compares bytes 2..26 of the records, which order versions (`protocol/src/record.rs`), one by one: Lua's
/// own comparison of strings goes by the locale. KEYS: the entry. ARGV: the entry's bytes, its end in
/// milliseconds since 1970, the greatest number of keys, how many keys should go for want of memory.
const PUT: &str = r"
local old = redis.call('GETRANGE', KEYS[1], 10, 33)
local new = ARGV[1]
if #old == 24 then
  for i = 1, 24 do
    local a, b = string.byte(old, i), string.byte(new, 10 + i)
    if a > b then return 0 end
    if a < b then break end
  end
end
local go = tonumber(ARGV[4])
if #old == 0 and redis.call('DBSIZE') >= tonumber(ARGV[3]) then go = go + 1 end
while go > 0 do
  local victim, idlest = nil, -1
  for _ = 1, 5 do
    local key = redis.call('RANDOMKEY')
    if not key then break end
    local idle = redis.pcall('OBJECT', 'IDLETIME', key)
    if type(idle) ~= 'number' then idle = 0 end
    if idle > idlest and key ~= KEYS[1] then victim, idlest = key, idle end
  end
  if victim then redis.call('UNLINK', victim) end
  go = go - 1
end
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2])
return 1
";

/// The cache of a node.
pub struct Cache {
    settings: config::Cache,
    finder: Finder,
    metrics: Arc<Metrics>,
    connection: RwLock<Option<Connected>>,
    /// Failures in a row.
    failures: AtomicU32,
    resting_until: Mutex<Option<Instant>>,
    /// Wakes whoever connects.
    lost: Notify,
    doubts: Doubts,
    put: Script,
    fills: mpsc::Sender<(Bytes, Bytes, u64)>,
    waiting: Mutex<Option<mpsc::Receiver<(Bytes, Bytes, u64)>>>,
    keys_now: AtomicU64,
    bytes_now: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Clone)]
struct Connected {
    connection: MultiplexedConnection,
    address: String,
    generation: u64,
}

/// Knows which server is to be used.
enum Finder {
    Server(Client, String),
    Sentinels(tokio::sync::Mutex<SentinelClient>),
}

/// What the cache is like, for health and statistics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheState {
    /// The server in use; `None` while there is none.
    pub server: Option<String>,
    /// Keys in it.
    pub keys: u64,
    /// Greatest number of keys.
    pub keys_max: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Reads that it has answered for this node.
    pub hits: u64,
    /// Reads that it could not answer.
    pub misses: u64,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// A cache that is not connected yet; [`Self::keep`] connects it.
    ///
    /// # Errors
    /// When its password cannot be read or the client library refuses the settings.
    pub fn new(settings: config::Cache, metrics: Arc<Metrics>) -> Result<Self, SideError> {
        let password = settings
            .password_file
            .as_deref()
            .map(super::password)
            .transpose()?;
        let of_sentinels = settings
            .sentinel_password_file
            .as_deref()
            .map(super::password)
            .transpose()?;
        let finder = Finder::new(&settings, password.as_deref(), of_sentinels.as_deref())?;
        let (fills, waiting) = mpsc::channel(FILLS_MAX);
        Ok(Self {
            settings,
            finder,
            metrics,
            connection: RwLock::new(None),
            failures: AtomicU32::new(0),
            resting_until: Mutex::new(None),
            lost: Notify::new(),
            doubts: Doubts::default(),
            put: Script::new(PUT),
            fills,
            waiting: Mutex::new(Some(waiting)),
            keys_now: AtomicU64::new(0),
            bytes_now: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        })
    }

    /// What it is like now.
    #[must_use]
    pub fn state(&self) -> CacheState {
        CacheState {
            server: self
                .connection
                .read()
                .as_ref()
                .map(|connected| connected.address.clone()),
            keys: self.keys_now.load(Ordering::Relaxed),
            keys_max: self.settings.keys,
            bytes: self.bytes_now.load(Ordering::Relaxed),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
        }
    }

    /// How it is, for health.
    #[must_use]
    pub fn condition(&self) -> Condition {
        if self.connection.read().is_some() {
            return Condition::Ok;
        }
        let reason = "no Redis can be reached: reads go on without it".to_owned();
        Condition::Down { reason }
    }

    /// Whether this read may be answered from the cache.
    #[must_use]
    pub fn allows(&self, bucket: &Bucket, r: Option<Quorum>) -> bool {
        match r.unwrap_or(bucket.r) {
            Quorum::One | Quorum::Count(1) => true,
            Quorum::Quorum | Quorum::All | Quorum::Count(_) => {
                r.is_none() && self.settings.buckets.contains(&bucket.name)
            }
        }
    }

    /// The state of a key as it was at most `ttl` ago; `None` when the cache cannot say.
    pub async fn find(
        &self,
        (view, bucket): (&View, BucketId),
        key: &[u8],
        now_micros: u64,
    ) -> Option<Record> {
        let name = name_of(view, bucket, key);
        let found = if self.doubts.contains(&name) {
            None
        } else {
            self.within_budget(|mut connection| async move {
                redis::cmd("GET")
                    .arg(&name[..])
                    .query_async::<Option<Bytes>>(&mut connection)
                    .await
            })
            .await
        };
        let result = match found {
            None => Err(CacheResult::Bypassed),
            Some(entry) => entry
                .and_then(|entry| fresh(&entry, now_micros))
                .ok_or(CacheResult::Miss),
        };
        match result {
            Ok(record) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                self.metrics.on_cache(CacheResult::Hit);
                Some(record)
            }
            Err(why) => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                self.metrics.on_cache(why);
                None
            }
        }
    }

    /// A read that began at `begun_micros` has found this; to be kept when there is time.
    pub fn fill(
        &self,
        (view, bucket): (&View, BucketId),
        key: &[u8],
        record: &Record,
        begun_micros: u64,
    ) {
        if !self.fits(record) || self.connection.read().is_none() {
            return;
        }
        let (entry, end_ms) = self.entry(record, begun_micros);
        // A full queue means that Redis is slow: it need not know.
        let _ = self
            .fills
            .try_send((name_of(view, bucket, key), entry, end_ms));
    }

    /// Tells the cache what a write that began at `begun_micros` has come to.
    pub async fn on_write(
        &self,
        view: &View,
        (request, begun_micros): (&Written, u64),
        reply: &ClientReply,
    ) {
        let Some(bucket) = view.config.bucket_by_id(request.bucket) else {
            return;
        };
        let name = name_of(view, request.bucket, &request.key);
        match reply {
            // What a newer write has replaced already may be older than the cache may be.
            ClientReply::Stored {
                superseded: true, ..
            } => {}
            ClientReply::Stored { digest, .. } => {
                let record = match &request.what {
                    What::Value(value) => record_of(digest.version, value.as_ref(), bucket.ttl_ms),
                    What::Record(record) => record.clone(),
                };
                // What is too large for the cache still has to end what is there.
                if !self.fits(&record) {
                    return self.forget(name).await;
                }
                let (entry, end_ms) = self.entry(&record, begun_micros);
                let put = self.store_within_budget(name.clone(), entry, end_ms);
                if put.await.is_none() {
                    self.doubts.add(name, self.settings.ttl);
                }
            }
            // It may take effect, or already has.
            ClientReply::Failed(
                ClientError::Quorum {
                    maybe_applied: true,
                    ..
                }
                | ClientError::DiskFull {
                    maybe_applied: true,
                    ..
                },
            ) => self.forget(name).await,
            _ => {}
        }
    }

    async fn forget(&self, name: Bytes) {
        if self.unlink(std::slice::from_ref(&name)).await.is_none() {
            self.doubts.add(name, self.settings.ttl);
        }
    }

    async fn unlink(&self, names: &[Bytes]) -> Option<()> {
        self.within_budget(|mut connection| async move {
            let mut command = redis::cmd("UNLINK");
            for name in names {
                command.arg(&name[..]);
            }
            command.query_async::<()>(&mut connection).await
        })
        .await
    }

    /// Removes from Redis what is doubtful, so that other nodes do not find it either.
    async fn settle_doubts(&self) {
        loop {
            let names = self.doubts.some(DOUBTS_PAGE);
            let bare: Vec<Bytes> = names.iter().map(|(name, _)| name.clone()).collect();
            if bare.is_empty() || self.unlink(&bare).await.is_none() {
                return;
            }
            self.doubts.settle(&names);
        }
    }

    async fn store_within_budget(&self, name: Bytes, entry: Bytes, end_ms: u64) -> Option<()> {
        self.within_budget(|connection| self.store(connection, name, entry, end_ms))
            .await
    }

    async fn store(
        &self,
        mut connection: MultiplexedConnection,
        name: Bytes,
        entry: Bytes,
        end_ms: u64,
    ) -> Result<(), RedisError> {
        let too_large = self.bytes_now.load(Ordering::Relaxed) > self.settings.bytes;
        self.put
            .key(&name[..])
            .arg(&entry[..])
            .arg(end_ms)
            .arg(self.settings.keys)
            .arg(if too_large { 2 } else { 0 })
            .invoke_async::<()>(&mut connection)
            .await
    }

    fn fits(&self, record: &Record) -> bool {
        record.kind() != Kind::Siblings && record.value_bytes().len() <= self.settings.value_bytes
    }

    fn entry(&self, record: &Record, begun_micros: u64) -> (Bytes, u64) {
        let end = begun_micros.saturating_add(self.settings.ttl.as_micros() as u64);
        let mut entry = Vec::with_capacity(HEAD + record.len());
        entry.put_u64(end);
        entry.put_slice(record.as_bytes());
        (entry.into(), end / 1_000)
    }

    /// Has Redis do something, if it is there and does it in time.
    async fn within_budget<T, F>(&self, ask: impl FnOnce(MultiplexedConnection) -> F) -> Option<T>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let connected = self.connection.read().clone()?;
        if let Some(until) = *self.resting_until.lock()
            && Instant::now() < until
        {
            return None;
        }
        match timeout(self.settings.budget, ask(connected.connection)).await {
            Ok(Ok(answer)) => {
                if self.failures.swap(0, Ordering::Relaxed) > 0 {
                    *self.resting_until.lock() = None;
                }
                Some(answer)
            }
            Ok(Err(error)) => {
                self.on_error(&error, connected.generation);
                None
            }
            Err(_) => {
                self.on_failure();
                None
            }
        }
    }

    fn on_failure(&self) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX {
            *self.resting_until.lock() = Some(Instant::now() + REST);
        }
    }

    /// A broken connection, or a master that has become a replica, is given up at once.
    fn on_error(&self, error: &RedisError, generation: u64) {
        self.on_failure();
        let is_lost = error.is_io_error()
            || error.is_connection_dropped()
            || error.is_unrecoverable_error()
            || error.code() == Some("READONLY");
        if is_lost {
            self.give_up(generation, &error.to_string());
        }
    }

    fn give_up(&self, generation: u64, reason: &str) {
        let mut connection = self.connection.write();
        if connection
            .as_ref()
            .is_some_and(|connected| connected.generation == generation)
            && let Some(connected) = connection.take()
        {
            warn!(
                server = connected.address,
                reason, "the cache is lost; reads go on without it"
            );
            self.lost.notify_one();
        }
    }

    /// Keeps it connected to the present master, reads its figures, and puts into it what reads have found.
    pub async fn keep(self: Arc<Self>, mut stopping: watch::Receiver<bool>) {
        let Some(mut waiting) = self.waiting.lock().take() else {
            return;
        };
        let filling = async {
            while let Some((name, entry, end_ms)) = waiting.recv().await {
                if !self.doubts.contains(&name) {
                    self.store_within_budget(name, entry, end_ms).await;
                }
            }
        };
        let looking = async {
            let mut generation = 0;
            let mut told = false;
            loop {
                generation += 1;
                match timeout(PATIENCE * 3, self.look(generation)).await {
                    Ok(Ok(())) => {
                        told = false;
                        self.settle_doubts().await;
                    }
                    outcome => {
                        let reason = match outcome {
                            Ok(Err(error)) => error.to_string(),
                            _ => "it does not answer".to_owned(),
                        };
                        let present = self.connection.read().as_ref().map(|c| c.generation);
                        if let Some(present) = present {
                            self.give_up(present, &reason);
                        } else if !std::mem::replace(&mut told, true) {
                            warn!(
                                reason,
                                "the cache cannot be reached; reads go on without it"
                            );
                        }
                    }
                }
                // A loss is looked into at once, but not faster than this.
                tokio::time::sleep(LOOK_EVERY / 5).await;
                let _ = timeout(LOOK_EVERY, self.lost.notified()).await;
            }
        };
        tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => {}
            () = filling => {}
            () = looking => {}
        }
    }

    async fn look(&self, generation: u64) -> Result<(), RedisError> {
        let (client, address) = match self.finder.find().await {
            Ok(found) => found,
            // Sentinels that are away are no reason to leave a master that answers.
            Err(error) if self.connection.read().is_none() => return Err(error),
            Err(_) => return self.read_figures().await,
        };
        let same = self
            .connection
            .read()
            .as_ref()
            .is_some_and(|connected| connected.address == address);
        if !same {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(PATIENCE))
                .set_response_timeout(Some(PATIENCE));
            let connection = client
                .get_multiplexed_async_connection_with_config(&config)
                .await?;
            info!(server = address, "the cache is connected");
            *self.connection.write() = Some(Connected {
                connection,
                address,
                generation,
            });
            self.failures.store(0, Ordering::Relaxed);
            *self.resting_until.lock() = None;
        }
        self.read_figures().await
    }

    async fn read_figures(&self) -> Result<(), RedisError> {
        let Some(Connected { mut connection, .. }) = self.connection.read().clone() else {
            return Ok(());
        };
        let (keys, memory) = redis::pipe()
            .cmd("DBSIZE")
            .cmd("INFO")
            .arg("memory")
            .query_async::<(u64, String)>(&mut connection)
            .await?;
        let bytes = memory
            .lines()
            .find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok());
        self.keys_now.store(keys, Ordering::Relaxed);
        self.bytes_now.store(bytes.unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }
}

impl Finder {
    fn new(
        settings: &config::Cache,
        password: Option<&str>,
        of_sentinels: Option<&str>,
    ) -> Result<Self, RedisError> {
        match &settings.place {
            CachePlace::Server(address) => {
                let (host, port) = split(address);
                let mut redis = RedisConnectionInfo::default();
                if let Some(user) = &settings.user {
                    redis = redis.set_username(user);
                }
                if let Some(password) = password {
                    redis = redis.set_password(password);
                }
                let info: ConnectionInfo = (host, port).into_connection_info()?;
                let client = Client::open(info.set_redis_settings(redis))?;
                Ok(Self::Server(client, address.clone()))
            }
            CachePlace::Sentinels { addresses, master } => {
                let sentinels = addresses.iter().map(|address| {
                    let (host, port) = split(address);
                    ConnectionAddr::Tcp(host.to_owned(), port)
                });
                let mut builder =
                    SentinelClientBuilder::new(sentinels, master, SentinelServerType::Master)?;
                if let Some(user) = &settings.user {
                    builder = builder.set_client_to_redis_username(user);
                }
                if let Some(password) = password {
                    builder = builder.set_client_to_redis_password(password);
                }
                if let Some(password) = of_sentinels {
                    builder = builder.set_client_to_sentinel_password(password);
                }
                Ok(Self::Sentinels(tokio::sync::Mutex::new(builder.build()?)))
            }
        }
    }

    async fn find(&self) -> Result<(Client, String), RedisError> {
        match self {
            Self::Server(client, address) => Ok((client.clone(), address.clone())),
            Self::Sentinels(sentinels) => {
                let client = sentinels.lock().await.async_get_client().await?;
                let address = client.get_connection_info().addr().to_string();
                Ok((client, address))
            }
        }
    }
}

/// Host and port of an address that the settings have checked.
fn split(address: &str) -> (&str, u16) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (host, port.parse().unwrap_or(6379))
}

/// What a write is about, kept while it is on its way.
#[derive(Debug)]
pub struct Written {
    bucket: BucketId,
    key: Bytes,
    what: What,
}

#[derive(Debug)]
enum What {
    Value(Option<torc_protocol::client::Value>),
    Record(Record),
}

impl Written {
    /// What the cache has to know of this request; `None` when it is no write.
    #[must_use]
    pub fn of(request: &ClientRequest) -> Option<Self> {
        let (key, what) = match &request.op {
            ClientOp::Put { key, value, .. } => (key, What::Value(value.clone())),
            ClientOp::Store { key, record, .. } => (key, What::Record(record.clone())),
            ClientOp::Prepare { .. }
            | ClientOp::Get { .. }
            | ClientOp::Watch { .. }
            | ClientOp::Verify { .. }
            | ClientOp::List { .. } => return None,
        };
        Some(Self {
            bucket: request.bucket,
            key: key.clone(),
            what,
        })
    }
}

fn name_of(view: &View, bucket: BucketId, key: &[u8]) -> Bytes {
    let mut name = format!("torc:{}:{}:", view.config.cluster, bucket.0).into_bytes();
    name.extend_from_slice(key);
    name.into()
}

fn fresh(entry: &Bytes, now_micros: u64) -> Option<Record> {
    let end = u64::from_be_bytes(*entry.first_chunk::<HEAD>()?);
    if now_micros >= end {
        return None;
    }
    Record::parse(entry.slice(HEAD..)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_served_until_its_end_and_only_whole() {
        let record = Record::tombstone(torc_protocol::version::Version {
            hlc: torc_protocol::hlc::Hlc(5),
            node: torc_ring::NodeId(1),
        });
        let mut entry = 1_000_u64.to_be_bytes().to_vec();
        entry.extend_from_slice(record.as_bytes());
        let entry = Bytes::from(entry);
        assert_eq!(fresh(&entry, 999), Some(record));
        assert_eq!(fresh(&entry, 1_000), None);
        assert_eq!(fresh(&entry.slice(..20), 999), None);
        assert_eq!(fresh(&entry.slice(..entry.len() - 1), 999), None);
    }
}
