//! A cluster, its queue, its workers, and whoever listens to its changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use serde_json::Value;
use torc_e2e::cluster::{Node, Options};
use torc_e2e::http::{Request, Response};
use torc_e2e::services::rabbit::Rabbit;
use torc_e2e::wait;

/// For anything that only has to come true.
pub(crate) const SOON: Duration = Duration::from_secs(240);
/// For a broker to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A `torc.toml` with this queue.
pub(crate) fn config(rabbit: &Rabbit, more: &str) -> String {
    let brokers: Vec<_> = rabbit
        .addresses()
        .iter()
        .map(|address| format!("\"{address}\""))
        .collect();
    format!("[queue]\nbrokers = [{}]\n{more}\n", brokers.join(", "))
}

pub(crate) fn options(config: &str) -> Options {
    Options {
        config: Some(config.to_owned()),
        ..Options::default()
    }
}

pub(crate) fn wait_connected(node: &Node) {
    wait::until("the node's queue", SOON, || {
        match node.metric("torc_queue_connected", &[])? {
            Some(connected) if connected > 0.0 => Ok(()),
            other => Err(format!("{other:?}\n{}", node.log_end())),
        }
    });
}

/// `PUT` that does not wait.
pub(crate) fn put_async(target: &str, value: impl Into<Vec<u8>>) -> Request {
    Request::put(target, value).header("prefer", "respond-async")
}

/// Where the write can be asked for, when it was accepted.
pub(crate) fn location(response: &Response) -> Option<String> {
    let location = response.header("location").map(str::to_owned);
    (response.status == 202).then_some(location?)
}

/// What a node says of a write.
#[track_caller]
pub(crate) fn state(node: &Node, location: &str) -> Value {
    match node.ask(&Request::get(location)) {
        Ok(response) if response.status == 200 => response.json(),
        Ok(response) => panic!("{location}: {} {}", response.status, response.text()),
        Err(error) => panic!("{location}: {error}"),
    }
}

#[track_caller]
pub(crate) fn wait_state(node: &Node, location: &str, wanted: &str) -> Value {
    wait::until(&format!("{location} to be {wanted}"), SOON, || {
        let said = node.ask(&Request::get(location))?.json();
        if said["state"] == wanted {
            Ok(said)
        } else {
            Err(said.to_string())
        }
    })
}

/// Waits until the queue is empty, as nodes see it.
pub(crate) fn wait_drained(node: &Node) {
    wait::until("the queue to be empty", SOON, || {
        match node.metric("torc_queue_depth", &[])? {
            Some(depth) if depth < 0.5 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// Everything that the change feed has told so far: versions by key, in the order in which they came.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<BTreeMap<String, Vec<Value>>>>);

impl Heard {
    fn add(&self, key: String, event: Value) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.entry(key).or_default().push(event);
    }

    /// The distinct versions of a key that were told.
    pub(crate) fn versions(&self, key: &str) -> BTreeSet<String> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let events = heard.get(key).map_or(&[][..], Vec::as_slice);
        let etag = |event: &Value| event["etag"].as_str().unwrap_or("?").to_owned();
        events.iter().map(etag).collect()
    }

    /// Everything that was told of a key.
    pub(crate) fn events(&self, key: &str) -> Vec<Value> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(key).cloned().unwrap_or_default()
    }

    pub(crate) fn wait_versions(&self, key: &str, count: usize) -> BTreeSet<String> {
        wait::until(&format!("{count} changes of {key}"), SOON, || {
            let versions = self.versions(key);
            if versions.len() >= count {
                Ok(versions)
            } else {
                Err(format!("{versions:?}"))
            }
        })
    }
}

/// Listens to the change feed with a durable queue, from before this returns, for as long as the test
/// process lives; connects again whenever the broker is back.
pub(crate) fn listen(broker: SocketAddr, pattern: &'static str) -> Heard {
    let heard = Heard::default();
    let (into, bound) = (heard.clone(), std::sync::mpsc::channel());
    thread::spawn(move || {
        let runtime = runtime();
        loop {
            let ended = runtime.block_on(listen_once(broker, pattern, &into, &bound.0));
            if let Err(error) = ended {
                eprintln!("the listener to changes: {error}");
            }
            thread::sleep(Duration::from_millis(300));
        }
    });
    bound
        .1
        .recv_timeout(SOON)
        .unwrap_or_else(|error| panic!("nobody listens to changes: {error}"));
    heard
}

async fn listen_once(
    broker: SocketAddr,
    pattern: &str,
    into: &Heard,
    bound: &std::sync::mpsc::Sender<()>,
) -> Result<(), String> {
    // A broker that has just started may take the connection and then never answer.
    let begun = tokio::time::timeout(ANSWER_MAX, subscribe(broker, pattern)).await;
    let begun = begun.map_err(|_| "the broker does not answer".to_owned())?;
    let (_connection, _channel, mut deliveries) = begun.map_err(|error| error.to_string())?;
    // Nobody waits for it the second time.
    let _ = bound.send(());
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery.map_err(|error| error.to_string())?;
        let event: Value = serde_json::from_slice(&delivery.data).unwrap_or_default();
        let key = event["key"].as_str().unwrap_or("?").to_owned();
        into.add(key, event);
        let acknowledged = delivery.ack(BasicAckOptions::default()).await;
        acknowledged.map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn subscribe(
    broker: SocketAddr,
    pattern: &str,
) -> Result<(Connection, Channel, Consumer), lapin::Error> {
    let connection = connect(broker).await?;
    let channel = connection.create_channel().await?;
    let mut table = FieldTable::default();
    let quorum = AMQPValue::LongString(LongString::from("quorum"));
    table.insert("x-queue-type".into(), quorum);
    let name = "listener";
    channel
        .queue_declare(name.into(), QueueDeclareOptions::durable(), table)
        .await?;
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(
            name.into(),
            "torc.changes".into(),
            pattern.into(),
            options,
            none,
        )
        .await?;
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let deliveries = channel
        .basic_consume(name.into(), "".into(), options, none)
        .await?;
    Ok((connection, channel, deliveries))
}

/// Puts a message into the queue of writes that no node has made.
pub(crate) fn publish(broker: SocketAddr, message: &[u8]) {
    let sent = runtime().block_on(async {
        let connection = connect(broker).await?;
        let channel = connection.create_channel().await?;
        channel
            .basic_publish(
                "".into(),
                "torc.writes".into(),
                BasicPublishOptions::default(),
                message,
                BasicProperties::default().with_delivery_mode(2),
            )
            .await?
            .await?;
        connection.close(200, "done".into()).await
    });
    sent.unwrap_or_else(|error| panic!("publish: {error}"));
}

async fn connect(broker: SocketAddr) -> Result<Connection, lapin::Error> {
    let uri = format!("amqp://guest:guest@{broker}/%2f");
    Connection::connect(&uri, ConnectionProperties::default()).await
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap_or_else(|error| panic!("a runtime: {error}"))
}
