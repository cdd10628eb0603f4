//! A node's admin listener: the ring, a key's owners, the picture of the whole.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};
use serde::{Deserialize, Serialize};

use crate::call::{Operation, Repeat};
use crate::change::{BucketView, BucketWish, Change, ChangeView, Decided, PlanView};
use crate::client::{Client, found};
use crate::error::Error;
use crate::options::{ClientConfig, Routing};
use crate::ring::{OwnersView, RingView, VerifyView};
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

    /// What each owner of a key holds of it.
    ///
    /// # Errors
    /// Like [`Admin::ring`].
    pub async fn verify(&self, bucket: &str, key: &[u8]) -> Result<VerifyView, Error> {
        let mut target = String::from("/ring/verify?bucket=");
        target.push_str(&crate::text::encode(bucket.as_bytes()));
        target.push_str("&key=");
        target.push_str(&crate::text::encode(key));
        self.get(target).await?.json("what a key's owners hold")
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
        let change = if ring.changing {
            Some(self.change().await?)
        } else {
            None
        };
        // A node of an earlier version, or one that starts, cannot say; the verdict stands without it.
        let agreement = self.agreement().await.ok().map(|seen| seen.age_seconds);
        Ok(Status::judge(&ring, &cluster, change.as_ref(), agreement))
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

    /// What these changes of the ring would do; nothing is changed.
    ///
    /// # Errors
    /// When no node could be asked, or the one asked refused: the changes cannot be made.
    pub async fn plan(&self, changes: &[Change]) -> Result<PlanView, Error> {
        let body = serde_json::json!({ "changes": changes });
        self.post("/ring/plan", &body).await?.json("a plan")
    }

    /// Begins these changes. Answers when a majority of the members has stored the decision; the data
    /// moves from then on. With `version`, only if the configuration is still that of the plan.
    ///
    /// # Errors
    /// Like [`Admin::plan`]; also when a change is running, and when the outcome is unknown.
    pub async fn commit(&self, changes: &[Change], version: Option<u64>) -> Result<Decided, Error> {
        let body = serde_json::json!({ "changes": changes, "config_version": version });
        self.post("/ring/commit", &body).await?.json("a decision")
    }

    /// Takes the running change of the ring back.
    ///
    /// # Errors
    /// Like [`Admin::commit`]; also when none is running.
    pub async fn abort(&self) -> Result<Decided, Error> {
        let body = serde_json::json!({});
        self.post("/ring/abort", &body).await?.json("a decision")
    }

    /// Where the ring stands: what moves, and how far it is.
    ///
    /// # Errors
    /// Like [`Admin::ring`].
    pub async fn change(&self) -> Result<ChangeView, Error> {
        let answer = self.get("/ring/change".to_owned()).await?;
        answer.json("the state of the ring")
    }

    /// All buckets.
    ///
    /// # Errors
    /// Like [`Admin::ring`].
    pub async fn buckets(&self) -> Result<Vec<BucketView>, Error> {
        #[derive(serde::Deserialize)]
        struct Buckets {
            buckets: Vec<BucketView>,
        }
        let answer = self.get("/buckets".to_owned()).await?;
        Ok(answer.json::<Buckets>("the buckets")?.buckets)
    }

    /// Makes a bucket, or changes its settings.
    ///
    /// # Errors
    /// Like [`Admin::commit`].
    pub async fn put_bucket(&self, name: &str, wish: &BucketWish) -> Result<BucketView, Error> {
        let body = serde_json::to_vec(wish).unwrap_or_default();
        let answer = self.send(Method::PUT, bucket(name), body).await?;
        answer.json("a bucket")
    }

    /// Deletes a bucket with all of its keys.
    ///
    /// # Errors
    /// Like [`Admin::commit`].
    pub async fn delete_bucket(&self, name: &str) -> Result<(), Error> {
        self.send(Method::DELETE, bucket(name), Vec::new()).await?;
        Ok(())
    }

    async fn post(&self, target: &str, body: &serde_json::Value) -> Result<Answer, Error> {
        let body = body.to_string().into_bytes();
        self.send(Method::POST, target.to_owned(), body).await
    }

    /// What changes something is asked of the next node only when the one before was not reached.
    async fn send(&self, method: Method, target: String, body: Vec<u8>) -> Result<Answer, Error> {
        let mut call = Call::get(target);
        (call.method, call.body) = (method, body.into());
        let json = HeaderValue::from_static("application/json");
        call.headers.insert(CONTENT_TYPE, json);
        let operation = self.client.operation(call, Repeat::IfNotWritten);
        found(self.client.run(&operation, None).await?)
    }

    async fn get(&self, target: String) -> Result<Answer, Error> {
        found(self.client.run(&self.operation(target), None).await?)
    }

    fn operation(&self, target: String) -> Operation {
        self.client.operation(Call::get(target), Repeat::Freely)
    }
}

fn bucket(name: &str) -> String {
    format!("/buckets/{}", crate::text::encode(name.as_bytes()))
}
