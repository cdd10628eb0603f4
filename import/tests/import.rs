//! Imports into a store that fails at chosen moments.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use torc_client::{BatchOp, BatchReply, Cause, Error as ClientError};
use torc_import::{Columns, Error, Format, Import, Progress, Store, Summary, run};

/// Keys in memory. Every batch takes one of the faults first, as long as there are any.
#[derive(Default)]
struct Fake {
    keys: Mutex<BTreeMap<Bytes, Bytes>>,
    faults: Mutex<Vec<Fault>>,
    puts: Mutex<u64>,
}

#[derive(Clone, Copy)]
enum Fault {
    /// It works.
    Nothing,
    /// Nobody answers, from now on.
    Away,
    /// Every second operation finds no quorum.
    Half,
    /// The third operation is refused for good.
    Refuses,
}

impl Fake {
    fn failing(faults: &[Fault]) -> Self {
        let fake = Self::default();
        fake.faults
            .lock()
            .expect("lock")
            .extend(faults.iter().rev());
        fake
    }
}

impl Store for Fake {
    async fn batch(&self, _: &str, operations: &[BatchOp]) -> Result<Vec<BatchReply>, ClientError> {
        let fault = self.faults.lock().expect("lock").pop();
        if matches!(fault, Some(Fault::Away)) {
            self.faults.lock().expect("lock").push(Fault::Away);
        }
        match fault.unwrap_or(Fault::Nothing) {
            Fault::Away => Err(ClientError::Unreachable {
                tried: 1,
                node: "a:1".to_owned(),
                cause: Cause::Deadline(Duration::from_secs(1)),
            }),
            fault => {
                let operations = operations.iter().enumerate();
                Ok(operations.map(|(at, op)| self.one(fault, at, op)).collect())
            }
        }
    }
}

impl Fake {
    fn one(&self, fault: Fault, at: usize, operation: &BatchOp) -> BatchReply {
        let reply = |status, value: Option<&Bytes>| BatchReply {
            status,
            value: value.map(|value| String::from_utf8_lossy(value).into_owned()),
            encoding: None,
            more: serde_json::Map::new(),
        };
        match (fault, at) {
            (Fault::Half, at) if at % 2 == 1 => return reply(503, None),
            (Fault::Refuses, 2) => return reply(413, None),
            _ => {}
        }
        let mut keys = self.keys.lock().expect("lock");
        match operation {
            BatchOp::Put { key, value } => {
                *self.puts.lock().expect("lock") += 1;
                keys.insert(key.clone(), value.clone());
                reply(204, None)
            }
            BatchOp::Get { key } => match keys.get(key) {
                None => reply(404, None),
                found => reply(200, found),
            },
            BatchOp::Delete { .. } => unreachable!("an import deletes nothing"),
        }
    }
}

fn import(folder: &TempDir, text: &str) -> Import {
    let export = folder.path().join("export.csv");
    fs::write(&export, text).expect("write");
    Import {
        export,
        format: Format::Csv,
        columns: Columns {
            table: "kv".to_owned(),
            key: "key".to_owned(),
            value: "value".to_owned(),
        },
        bucket: "default".to_owned(),
        checkpoint: folder.path().join("export.checkpoint"),
        verify_only: false,
        patience: Duration::from_millis(300),
    }
}

/// So many records, of which every tenth is another value of key 0.
fn export(records: usize) -> String {
    let line = |n: usize| format!("k{},v{n}\n", if n.is_multiple_of(10) { 0 } else { n });
    let lines: String = (0..records).map(line).collect();
    format!("key,value\n{lines}")
}

async fn go(import: &Import, store: &Fake) -> Result<(Summary, Vec<Progress>), Error> {
    let mut steps = Vec::new();
    let summary = run(import, store, &mut |step| steps.push(step)).await?;
    Ok((summary, steps))
}

#[tokio::test]
async fn everything_is_stored_and_found_equal() {
    let folder = TempDir::new().expect("a folder");
    let import = import(&folder, &export(2_500));
    let store = Fake::default();
    let (summary, steps) = go(&import, &store).await.expect("an import");
    assert!(summary.is_equal(), "{summary:?}");
    assert_eq!(
        (summary.records, summary.keys, summary.equal),
        (2_500, 2_251, 2_251)
    );
    assert_eq!(steps[0], Progress::Stored(1_000));
    let keys = store.keys.lock().expect("lock");
    assert_eq!(keys[&b"k0"[..]], "v2490", "the last record of a key counts");
}

#[tokio::test]
async fn an_import_that_was_cut_goes_on_where_it_was() {
    let folder = TempDir::new().expect("a folder");
    let import = import(&folder, &export(3_000));
    let store = Fake::failing(&[Fault::Nothing, Fault::Half, Fault::Away]);
    let error = go(&import, &store).await.expect_err("the cluster is away");
    assert!(
        matches!(
            error,
            Error::Unavailable {
                record: 1_001,
                stored: 1_000,
                ..
            }
        ),
        "{error}"
    );
    store.faults.lock().expect("lock").clear();
    *store.puts.lock().expect("lock") = 0;
    let (summary, steps) = go(&import, &store).await.expect("the rest");
    assert_eq!(
        steps[..2],
        [Progress::Resumed(1_000), Progress::Stored(2_000)]
    );
    assert!(summary.is_equal(), "{summary:?}");
    assert_eq!(
        *store.puts.lock().expect("lock"),
        2_000,
        "what was stored is not stored again"
    );
    // A third run has nothing to store, and verifies all the same.
    let (summary, _) = go(&import, &store).await.expect("nothing");
    assert!(summary.is_equal() && *store.puts.lock().expect("lock") == 2_000);
}

#[tokio::test]
async fn what_was_lost_or_changed_is_found() {
    let folder = TempDir::new().expect("a folder");
    let mut import = import(&folder, "key,value\na,1\nb,2\nc,3\n");
    let store = Fake::default();
    go(&import, &store).await.expect("an import");
    store.keys.lock().expect("lock").remove(&b"a"[..]);
    store
        .keys
        .lock()
        .expect("lock")
        .insert("b".into(), "other".into());
    import.verify_only = true;
    let (summary, _) = go(&import, &store).await.expect("a comparison");
    assert!(!summary.is_equal());
    assert_eq!(
        (summary.missing, summary.different, summary.equal),
        (1, 1, 1)
    );
    assert_eq!(summary.examples, ["a", "b"]);
    assert_ne!(summary.checksum_export, summary.checksum_cluster);
}

#[tokio::test]
async fn a_record_that_is_refused_is_named() {
    let folder = TempDir::new().expect("a folder");
    let import = import(&folder, &export(1_500));
    let store = Fake::failing(&[Fault::Nothing, Fault::Refuses]);
    let error = go(&import, &store).await.expect_err("refused");
    assert!(
        matches!(
            error,
            Error::Refused {
                record: 1_003,
                status: 413,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_checkpoint_of_another_import_is_refused() {
    let folder = TempDir::new().expect("a folder");
    let first = import(&folder, &export(20));
    let store = Fake::default();
    go(&first, &store).await.expect("an import");
    let longer = import(&folder, &export(21));
    assert!(
        matches!(go(&longer, &store).await, Err(Error::OtherImport { .. })),
        "length"
    );
    let changed = import(&folder, &export(20).replace("k7,v7", "k7,w7"));
    assert!(
        matches!(go(&changed, &store).await, Err(Error::OtherImport { .. })),
        "content"
    );
    let mut elsewhere = import(&folder, &export(20));
    elsewhere.bucket = "other".to_owned();
    assert!(
        matches!(go(&elsewhere, &store).await, Err(Error::OtherImport { .. })),
        "bucket"
    );
    fs::write(&first.checkpoint, "nonsense").expect("write");
    let same = import(&folder, &export(20));
    assert!(
        matches!(go(&same, &store).await, Err(Error::OtherImport { .. })),
        "nonsense"
    );
}
