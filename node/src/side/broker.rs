//! RabbitMQ: a connection to whichever broker answers, and what is declared there.
//!
//! Everything declared is durable: two quorum queues (`torc.writes`, and `torc.writes.dead` for what was
//! given up) and the topic exchange `torc.changes`. Declaring again what is there changes nothing.

use std::time::Duration;

use lapin::options::{ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use tokio::time::timeout;

use super::SideError;
use crate::config;

/// Writes that wait.
pub(super) const WRITES: &str = "torc.writes";
/// Writes that were given up.
pub(super) const DEAD: &str = "torc.writes.dead";
/// Changes that were applied.
pub(super) const CHANGES: &str = "torc.changes";
/// Deliveries after which the broker itself gives a message up: one that ends every worker which takes it.
const DELIVERIES_MAX: i64 = 50;
/// For one connection to one broker, and for what is declared there.
const PATIENCE: Duration = Duration::from_secs(5);
/// A broker that is silent for twice this long, in seconds, is taken for gone.
const HEARTBEAT_SECONDS: u16 = 5;

/// How to reach the brokers.
pub(super) struct Brokers {
    settings: config::Queue,
    password: String,
    name: String,
    /// Whose turn it is.
    next: usize,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum BrokerError {
    #[error("{broker}: {source}")]
    Lapin {
        broker: String,
        source: lapin::Error,
    },
    #[error("{broker} does not answer within {PATIENCE:?}")]
    Silent { broker: String },
}

impl Brokers {
    pub(super) fn new(settings: config::Queue, name: &str) -> Result<Self, SideError> {
        let password = match &settings.password_file {
            Some(path) => super::password(path)?,
            None => "guest".to_owned(),
        };
        Ok(Self {
            settings,
            password,
            name: name.to_owned(),
            next: 0,
        })
    }

    /// A connection to the next broker in turn, with everything declared. Not every failure is the
    /// broker's: whoever fails should wait a moment before the next attempt.
    pub(super) async fn connect(&mut self) -> Result<(Connection, Channel), BrokerError> {
        let at = self.next % self.settings.brokers.len().max(1);
        self.next = self.next.wrapping_add(1);
        let broker = self.settings.brokers.get(at).cloned().unwrap_or_default();
        match timeout(PATIENCE, self.open(&broker)).await {
            Ok(Ok(open)) => {
                // What works is used again after a short loss.
                self.next = at;
                Ok(open)
            }
            Ok(Err(source)) => Err(BrokerError::Lapin { broker, source }),
            Err(_) => Err(BrokerError::Silent { broker }),
        }
    }

    /// The broker last tried.
    pub(super) fn last(&self) -> &str {
        let at = self.next % self.settings.brokers.len().max(1);
        self.settings.brokers.get(at).map_or("", String::as_str)
    }

    /// The broker last connected to is not to be tried first.
    pub(super) fn skip(&mut self) {
        self.next = self.next.wrapping_add(1);
    }

    async fn open(&self, broker: &str) -> Result<(Connection, Channel), lapin::Error> {
        let (host, port) = broker.rsplit_once(':').unwrap_or((broker, ""));
        let uri = AMQPUri {
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: self.settings.user.clone(),
                    password: self.password.clone(),
                },
                host: host
                    .trim_start_matches('[')
                    .trim_end_matches(']')
                    .to_owned(),
                port: port.parse().unwrap_or(5672),
            },
            vhost: self.settings.vhost.clone(),
            query: AMQPQueryString {
                heartbeat: Some(HEARTBEAT_SECONDS),
                connection_timeout: Some(PATIENCE.as_millis() as u64),
                ..AMQPQueryString::default()
            },
        };
        let name = LongString::from(format!("torc {}", self.name));
        let properties = ConnectionProperties::default().with_connection_name(name);
        let connection = Connection::connect_uri(uri, properties).await?;
        let channel = connection.create_channel().await?;
        self.declare(&channel).await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok((connection, channel))
    }

    async fn declare(&self, channel: &Channel) -> Result<(), lapin::Error> {
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        let queue = |name: &'static str, arguments: &[(&str, AMQPValue)]| {
            let mut table = FieldTable::default();
            table.insert("x-queue-type".into(), text("quorum"));
            for (name, value) in arguments {
                table.insert(ShortString::from(*name), value.clone());
            }
            channel.queue_declare(name.into(), QueueDeclareOptions::durable(), table)
        };
        queue(DEAD, &[]).await?;
        let length = i64::try_from(self.settings.length).unwrap_or(i64::MAX);
        let arguments = [
            ("x-delivery-limit", AMQPValue::LongLongInt(DELIVERIES_MAX)),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text(DEAD)),
            // The broker keeps what it gives up until it is in the other queue. Needs reject-publish, which
            // is what tells the publisher that the queue is full.
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
            ("x-max-length", AMQPValue::LongLongInt(length)),
        ];
        queue(WRITES, &arguments).await?;
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        channel
            .exchange_declare(
                CHANGES.into(),
                ExchangeKind::Topic,
                options,
                FieldTable::default(),
            )
            .await
    }
}

/// How many messages wait in a queue.
pub(super) async fn depth(channel: &Channel, queue: &'static str) -> Result<u64, lapin::Error> {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::durable()
    };
    let declared = channel
        .queue_declare(queue.into(), options, FieldTable::default())
        .await?;
    Ok(u64::from(declared.message_count()))
}
