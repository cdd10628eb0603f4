//! Reads. Whatever fails its checksum is an error, never "nothing there".

use bytes::Bytes;
use rocksdb::{DBRawIterator, ErrorKind, ReadOptions};
use torc_protocol::changes::Lane;
use torc_protocol::hlc::Hlc;
use torc_protocol::message::RecordKey;
use torc_protocol::record::{self, Record, RecordError};
use torc_protocol::store::{
    DigestEntry, Found, Hint, HintKey, Leftover, Query, StateKey, StoreError,
};
use torc_protocol::version::Digest;
use torc_ring::{BucketId, NodeId, PartitionId, Token};

use crate::error::StorageError;
use crate::rocks::{ChangeTotal, Inner};
use crate::schema::{self, CHANGES, HINTS, RECORDS, States};

/// Keys that one listing looks at before it says how far it came.
pub(crate) const LIST_KEYS_MAX: usize = 2_000;
/// Bytes of records that one listing, or one reading of hints, looks at; one more record may go over it.
pub(crate) const LIST_BYTES_MAX: usize = 4 << 20;

/// The parameters of [`Query::Records`].
pub(crate) struct Listing<'a> {
    pub(crate) bucket: BucketId,
    pub(crate) first: Token,
    pub(crate) last: Token,
    pub(crate) after: Option<&'a (Token, Bytes)>,
    pub(crate) prefix: &'a [u8],
    pub(crate) limit: usize,
    pub(crate) bytes: usize,
}

/// The parameters of [`Query::Digests`].
#[derive(Clone, Copy)]
pub(crate) struct Scan<'a> {
    pub(crate) bucket: BucketId,
    pub(crate) first: Token,
    pub(crate) last: Token,
    pub(crate) after: Option<&'a (Token, Bytes)>,
    pub(crate) limit: usize,
}

/// What a scan for digests has come to.
#[derive(Default)]
pub(crate) struct Digests {
    entries: Vec<DigestEntry>,
    bytes: u64,
}

impl Digests {
    pub(crate) fn goes_on(&self, limit: usize) -> bool {
        self.entries.len() < limit.clamp(1, LIST_KEYS_MAX) && self.bytes < LIST_BYTES_MAX as u64
    }

    /// Takes a record's digest and when it is dead.
    pub(crate) fn look_at(
        &mut self,
        key: RecordKey,
        len: usize,
        (digest, dead_at): (Digest, Option<Hlc>),
    ) {
        self.bytes += (key.key.len() + len) as u64;
        self.entries.push(DigestEntry {
            token: key.token,
            key: key.key,
            digest,
            dead_at,
        });
    }

    pub(crate) fn finish(self, at_end: bool) -> Found {
        let last = self.entries.last();
        let reached = last
            .filter(|_| !at_end)
            .map(|entry| (entry.token, entry.key.clone()));
        Found::Digests {
            entries: self.entries,
            reached,
            bytes: self.bytes,
        }
    }
}

/// Reads keys one by one until they are that many bytes.
pub(crate) fn keys(
    keys: &[RecordKey],
    bytes: usize,
    read: impl Fn(&RecordKey) -> Result<Option<Record>, StoreError>,
) -> Result<Found, StoreError> {
    let (mut entries, mut sum) = (Vec::with_capacity(keys.len()), 0);
    for (at, key) in keys.iter().enumerate() {
        if let Some(record) = read(key)? {
            sum += record.len();
            entries.push((key.clone(), record));
        }
        if sum >= bytes && at + 1 < keys.len() {
            let reached = Some((key.token, key.key.clone()));
            return Ok(Found::Records { entries, reached });
        }
    }
    let reached = None;
    Ok(Found::Records { entries, reached })
}

/// What a listing has come to.
#[derive(Default)]
pub(crate) struct Page {
    entries: Vec<(RecordKey, Record)>,
    reached: Option<(Token, Bytes)>,
    looked_at: usize,
    bytes: usize,
}

impl Page {
    /// Whether another key may be looked at.
    pub(crate) fn goes_on(&self, listing: &Listing<'_>) -> bool {
        self.entries.len() < listing.limit.max(1)
            && self.looked_at < LIST_KEYS_MAX
            && (self.bytes < listing.bytes || self.looked_at == 0)
    }

    pub(crate) fn look_at(
        &mut self,
        key: RecordKey,
        len: usize,
        listing: &Listing<'_>,
        record: impl FnOnce() -> Result<Record, StoreError>,
    ) -> Result<(), StoreError> {
        self.looked_at += 1;
        self.bytes += len;
        self.reached = Some((key.token, key.key.clone()));
        if key.key.starts_with(listing.prefix) {
            self.entries.push((key, record()?));
        }
        Ok(())
    }

    pub(crate) fn finish(self, at_end: bool) -> Found {
        let reached = if at_end { None } else { self.reached };
        Found::Records {
            entries: self.entries,
            reached,
        }
    }
}

impl Inner {
    pub(crate) fn query(&self, query: &Query) -> Result<Found, StoreError> {
        match query {
            Query::Record(key) => self
                .record(key, &self.anywhere)
                .map(Found::Record)
                .map_err(|miss| miss.judge(self)),
            Query::Records {
                bucket,
                first,
                last,
                after,
                prefix,
                limit,
            } => self.records(&Listing {
                bucket: *bucket,
                first: *first,
                last: *last,
                after: after.as_ref(),
                prefix,
                limit: *limit,
                bytes: LIST_BYTES_MAX,
            }),
            Query::Page {
                bucket,
                first,
                last,
                after,
                bytes,
            } => self.records(&Listing {
                bucket: *bucket,
                first: *first,
                last: *last,
                after: after.as_ref(),
                prefix: &[],
                limit: LIST_KEYS_MAX,
                bytes: (*bytes).min(LIST_BYTES_MAX),
            }),
            Query::Digests {
                bucket,
                first,
                last,
                after,
                limit,
            } => self.digests(&Scan {
                bucket: *bucket,
                first: *first,
                last: *last,
                after: after.as_ref(),
                limit: *limit,
            }),
            Query::Keys { keys, bytes } => self::keys(keys, *bytes, |key| {
                self.record(key, &self.anywhere)
                    .map_err(|miss| miss.judge(self))
            }),
            Query::Hints {
                target,
                slot,
                after,
                limit,
            } => self.hints(*target, *slot, *after, *limit),
        }
    }

    /// `None` when the disk would have to be asked.
    pub(crate) fn record_in_memory(&self, key: &RecordKey) -> Option<Result<Found, StoreError>> {
        match self.record(key, &self.from_memory) {
            Err(Miss::Rocks(error)) if error.kind() == ErrorKind::Incomplete => None,
            other => Some(other.map(Found::Record).map_err(|miss| miss.judge(self))),
        }
    }

    fn record(&self, key: &RecordKey, options: &ReadOptions) -> Result<Option<Record>, Miss> {
        let at = schema::record_key(key.bucket, key.token, &key.key);
        let found = self
            .db
            .get_pinned_cf_opt(self.family(RECORDS), &at, options)
            .map_err(Miss::Rocks)?;
        found
            .map(|bytes| parse(&at, &bytes).map_err(Miss::Store))
            .transpose()
    }

    /// An iterator over the records of a range; `None` when the range is empty.
    fn range(
        &self,
        (bucket, first, last): (BucketId, Token, Token),
        after: Option<&(Token, Bytes)>,
        mut options: ReadOptions,
    ) -> Option<DBRawIterator<'_>> {
        let mut start = schema::record_key(bucket, first, &[]);
        if let Some((token, key)) = after {
            let mut behind = schema::record_key(bucket, *token, key);
            // The least key that is greater.
            behind.push(0);
            start = start.max(behind);
        }
        match schema::record_key_after(bucket, last) {
            Some(end) if end <= start => return None,
            Some(end) => options.set_iterate_upper_bound(end),
            None => {}
        }
        let mut records = self.db.raw_iterator_cf_opt(self.family(RECORDS), options);
        records.seek(&start);
        Some(records)
    }

    /// Reads from disk what is there, whether or not it is cached, and leaves the cache to the foreground.
    fn digests(&self, scan: &Scan<'_>) -> Result<Found, StoreError> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_verify_checksums(true);
        let range = (scan.bucket, scan.first, scan.last);
        let mut found = Digests::default();
        let Some(mut records) = self.range(range, scan.after, options) else {
            return Ok(found.finish(true));
        };
        while found.goes_on(scan.limit) {
            let Some((key, value)) = records.item() else {
                records
                    .status()
                    .map_err(|error| Miss::Rocks(error).judge(self))?;
                return Ok(found.finish(true));
            };
            let place = schema::parse_record_key(key)
                .ok_or_else(|| corrupt(key, "a record's key is malformed"))?;
            let digest = record::check_digest(value).map_err(|error| damaged(key, &error))?;
            found.look_at(place, value.len(), (digest, record::dead_at(value)));
            records.next();
        }
        Ok(found.finish(false))
    }

    fn records(&self, listing: &Listing<'_>) -> Result<Found, StoreError> {
        let range = (listing.bucket, listing.first, listing.last);
        let mut page = Page::default();
        let Some(mut records) = self.range(range, listing.after, ReadOptions::default()) else {
            return Ok(page.finish(true));
        };
        while page.goes_on(listing) {
            let Some((key, value)) = records.item() else {
                records
                    .status()
                    .map_err(|error| Miss::Rocks(error).judge(self))?;
                return Ok(page.finish(true));
            };
            let place = schema::parse_record_key(key)
                .ok_or_else(|| corrupt(key, "a record's key is malformed"))?;
            page.look_at(place, value.len(), listing, || parse(key, value))?;
            records.next();
        }
        Ok(page.finish(false))
    }

    pub(crate) fn leftovers(
        &self,
        bits: u8,
        limit: usize,
        keeps: impl Fn(BucketId, PartitionId) -> bool,
    ) -> Result<Vec<Leftover>, StoreError> {
        let mut records = self
            .db
            .raw_iterator_cf_opt(self.family(RECORDS), ReadOptions::default());
        leftovers(bits, limit, keeps, |bucket, token| {
            records.seek(schema::record_key(bucket, token, &[]));
            let Some(key) = records.key() else {
                records
                    .status()
                    .map_err(|error| Miss::Rocks(error).judge(self))?;
                return Ok(None);
            };
            let at = schema::parse_record_key(key)
                .ok_or_else(|| corrupt(key, "a record's key is malformed"))?;
            Ok(Some((at.bucket, at.token)))
        })
    }

    fn hints(
        &self,
        target: NodeId,
        slot: u8,
        after: u64,
        limit: usize,
    ) -> Result<Found, StoreError> {
        let Some(first) = after.checked_add(1) else {
            return Ok(Found::Hints(Vec::new()));
        };
        let mut found: Vec<(HintKey, Option<Hint>)> = Vec::new();
        let mut options = ReadOptions::default();
        let mut end = schema::hint_key(HintKey {
            target,
            slot,
            seq: u64::MAX,
        })
        .to_vec();
        end.push(0);
        options.set_iterate_upper_bound(end);
        let mut hints = self.db.raw_iterator_cf_opt(self.family(HINTS), options);
        hints.seek(schema::hint_key(HintKey {
            target,
            slot,
            seq: first,
        }));
        let mut bytes = 0;
        while found.len() < limit.max(1) && bytes < LIST_BYTES_MAX {
            let Some((key, value)) = hints.item() else {
                hints
                    .status()
                    .map_err(|error| Miss::Rocks(error).judge(self))?;
                break;
            };
            // Whoever asked has a corrupt hint dropped; one whose key is none was named at the start.
            if let Some(at) = schema::parse_hint_key(key) {
                let hint = schema::parse_hint_value(at, value).ok();
                if hint.is_none() {
                    corrupt(key, "a hint is corrupt");
                }
                found.push((at, hint));
            }
            bytes += value.len();
            hints.next();
        }
        Ok(Found::Hints(found))
    }

    pub(crate) fn state(&self, key: StateKey) -> Result<Option<Bytes>, StorageError> {
        let (family, at) = schema::state_key(key);
        let found = self
            .db
            .get_pinned_cf(self.family(family), &at)
            .map_err(StorageError::rocks("read node state", &self.options.path))?;
        found
            .map(|bytes| {
                schema::parse_state_value(&at, &bytes).ok_or(StorageError::CorruptState { key })
            })
            .transpose()
    }

    pub(crate) fn states(&self, which: States) -> Result<Vec<(StateKey, Bytes)>, StorageError> {
        let (family, tag) = which.family_and_tag();
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound([tag + 1]);
        let mut states = self.db.raw_iterator_cf_opt(self.family(family), options);
        states.seek([tag]);
        let mut found = Vec::new();
        while let Some((at, value)) = states.item() {
            let key = schema::parse_state_key(family, at).ok_or(StorageError::UnknownState)?;
            let value =
                schema::parse_state_value(at, value).ok_or(StorageError::CorruptState { key })?;
            found.push((key, value));
            states.next();
        }
        states
            .status()
            .map_err(StorageError::rocks("read node state", &self.options.path))?;
        Ok(found)
    }

    pub(crate) fn changes(
        &self,
        lane: Lane,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, Bytes)>, StorageError> {
        let mut found = Vec::new();
        let Some(first) = after.map_or(Some(0), |after| after.checked_add(1)) else {
            return Ok(found);
        };
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound([schema::lane_tag(lane) + 1]);
        let mut notes = self.db.raw_iterator_cf_opt(self.family(CHANGES), options);
        let (_, start) = schema::state_key(StateKey::Change(lane, first));
        notes.seek(start);
        while found.len() < limit
            && let Some((at, value)) = notes.item()
        {
            let key = schema::parse_state_key(CHANGES, at).ok_or(StorageError::UnknownState)?;
            let value =
                schema::parse_state_value(at, value).ok_or(StorageError::CorruptState { key })?;
            if let StateKey::Change(_, number) = key {
                found.push((number, value));
            }
            notes.next();
        }
        notes.status().map_err(StorageError::rocks(
            "read notes of changes",
            &self.options.path,
        ))?;
        Ok(found)
    }

    pub(crate) fn count_changes(&self, lane: Lane) -> Result<ChangeTotal, StorageError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound([schema::lane_tag(lane) + 1]);
        options.fill_cache(false);
        let mut notes = self.db.raw_iterator_cf_opt(self.family(CHANGES), options);
        let mut total = ChangeTotal::default();
        notes.seek([schema::lane_tag(lane)]);
        while let Some(at) = notes.key() {
            let key = schema::parse_state_key(CHANGES, at).ok_or(StorageError::UnknownState)?;
            if let StateKey::Change(_, number) = key {
                total.count += 1;
                total.last = number;
            }
            notes.next();
        }
        notes.status().map_err(StorageError::rocks(
            "count notes of changes",
            &self.options.path,
        ))?;
        Ok(total)
    }

    pub(crate) fn is_empty(&self) -> Result<bool, StorageError> {
        for family in [RECORDS, HINTS] {
            let mut entries = self.db.raw_iterator_cf(self.family(family));
            entries.seek_to_first();
            if entries.valid() {
                return Ok(false);
            }
            entries
                .status()
                .map_err(StorageError::rocks("look for records", &self.options.path))?;
        }
        Ok(true)
    }
}

enum Miss {
    Rocks(rocksdb::Error),
    Store(StoreError),
}

impl Miss {
    fn judge(self, inner: &Inner) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Rocks(error) => {
                let path = inner.options.path.display();
                tracing::error!(%path, %error, "the database cannot be read; if it is corrupt, move the data directory away and join as a replacement");
                match error.kind() {
                    ErrorKind::Corruption => StoreError::Corrupt,
                    _ => StoreError::Failed,
                }
            }
        }
    }
}

/// Goes from one partition that has records to the next; `first_from` finds the first record at or after a
/// place.
pub(crate) fn leftovers(
    bits: u8,
    limit: usize,
    keeps: impl Fn(BucketId, PartitionId) -> bool,
    mut first_from: impl FnMut(BucketId, Token) -> Result<Option<(BucketId, Token)>, StoreError>,
) -> Result<Vec<Leftover>, StoreError> {
    let mut found: Vec<Leftover> = Vec::new();
    let mut at = (BucketId(0), Token(0));
    while let Some((bucket, token)) = first_from(at.0, at.1)? {
        let partition = token.partition(bits);
        let (first, last) = (partition.first_token(bits), partition.last_token(bits));
        if !keeps(bucket, partition) {
            let is_full = found.len() >= limit;
            match found.last_mut() {
                Some(range)
                    if range.bucket == bucket && range.last.0.checked_add(1) == Some(first.0) =>
                {
                    range.last = last;
                }
                _ if is_full => break,
                _ => found.push(Leftover {
                    bucket,
                    first,
                    last,
                }),
            }
        }
        at = match (last.0.checked_add(1), bucket.0.checked_add(1)) {
            (Some(next), _) => (bucket, Token(next)),
            (None, Some(next)) => (BucketId(next), Token(0)),
            (None, None) => break,
        };
    }
    Ok(found)
}

fn parse(key: &[u8], value: &[u8]) -> Result<Record, StoreError> {
    Record::parse(Bytes::copy_from_slice(value)).map_err(|error| damaged(key, &error))
}

fn damaged(key: &[u8], error: &RecordError) -> StoreError {
    tracing::error!(key = %key.escape_ascii(), %error, "a stored record is corrupt and is not served");
    StoreError::Corrupt
}

fn corrupt(key: &[u8], what: &'static str) -> StoreError {
    tracing::error!(key = %key.escape_ascii(), "{what}");
    StoreError::Corrupt
}
