//! A node's admin listener: the ring, a key's owners, the picture of the whole.

use std::time::Duration;

use http::Method;
use serde::{Deserialize, Serialize};

use crate::call::{Operation, Repeat};
use crate::client::{Client, found};
use crate::error::Error;
use crate::options::{ClientConfig, Routing};
use crate::ring::{OwnersView, RingView};
use crate::status::{ClusterView, Status};
use crate::transport::{Answer, Call};

/// How far the copies of partitions at a node are known to agree with their other owners'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// The node.
    pub node: String,
    /// Pairs of a partition there and another owner of it.
    pub pairs: u64,
    /// Pairs that are in doubt and compared first.
    pub doubts: u64,
    /// Time since which the least verified pair is known to agree, in seconds.
    pub age_seconds: f64,
    /// Age that is aimed at, in seconds.
    pub target_seconds: f64,
}

/// A client of one or more admin listeners.
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client,
}

impl Admin {
    /// A client of these admin addresses; the first that answers is taken.
    ///
    /// # Errors
    /// When no address is given, or one is none.
    pub fn new(addresses: Vec<String>, deadline: Duration) -> Result<Self, Error> {
        let config = ClientConfig {
            deadline,
            routing: Routing::InTurn,
            attempts_max: addresses.len().max(1),
            ..ClientConfig::new(addresses)
        };
        Ok(Self {
            client: Client::new(config)?,
        })
    }

    /// The ring.
    ///
    /// # Errors
    /// When no node could be asked, or the one asked refused.
    pub async fn ring(&self) -> Result<RingView, Error> {
        self.client.ring().await
    }

    /// Who holds a key.
    ///
    /// # Errors
    /// Like [`Admin::ring`].
    pub async fn owners(&self, bucket: &str, key: &[u8]) -> Result<OwnersView, Error> {
        let mut target = String::from("/ring/owners?bucket=");
        target.push_str(&crate::text::encode(bucket.as_bytes()));
        target.push_str("&key=");
        target.push_str(&crate::text::encode(key));
        self.get(target).await?.json("a key's owners")
    }

    /// What the cluster looks like from one of its nodes, with a verdict.
    ///
    /// # Errors
    /// Like [`Admin::ring`].
    pub async fn status(&self) -> Result<Status, Error> {
        let ring = self.ring().await?;
        let cluster: ClusterView = self
            .get("/cluster".to_owned())
            .await?
            .json("the cluster's state")?;
        Ok(Status::judge(&ring, &cluster))
    }

    /// Has the node compare all of its copies with their other owners' before anything else.
    ///
    /// # Errors
    /// Like [`Admin::ring`].
    pub async fn repair(&self) -> Result<Agreement, Error> {
        let call = Call {
            method: Method::POST,
            ..Call::get("/repair".to_owned())
        };
        let operation = self.client.operation(call, Repeat::Freely);
        let answer = found(self.client.run(&operation, None).await?)?;
        answer.json("a node's agreement")
    }

    /// How far the node's copies are known to agree with their other owners'.
    ///
    /// # Errors
    /// Like [`Admin::ring`].
    pub async fn agreement(&self) -> Result<Agreement, Error> {
        self.get("/repair".to_owned())
            .await?
            .json("a node's agreement")
    }

    /// Whether the node says that it is ready; `Ok(Err(reason))` when it says that it is not.
    ///
    /// # Errors
    /// When it could not be asked.
    pub async fn ready(&self) -> Result<Result<(), String>, Error> {
        let mut operation = self.operation("/health/ready".to_owned());
        operation.attempts_max = 1;
        match self.client.run(&operation, None).await {
            Ok(answer) => found(answer).map(|_| Ok(())),
            Err(Error::Refused { problem, .. }) => Ok(Err(problem.to_string())),
            Err(error) => Err(error),
        }
    }

    async fn get(&self, target: String) -> Result<Answer, Error> {
        found(self.client.run(&self.operation(target), None).await?)
    }

    fn operation(&self, target: String) -> Operation {
        self.client.operation(Call::get(target), Repeat::Freely)
    }
}
