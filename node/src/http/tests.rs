//! The facade over raw sockets, with a fake node behind it that keeps its keys in memory.

mod backend;
mod client;
mod console;
mod keys;
mod limits;
mod lists;
mod routes;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use self::backend::Backend;
use self::client::{Answer, Client};
use super::{Servers, serve};
use crate::config::{Layers, Settings};

/// Longest wait of a test for something that has to happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A facade on free ports.
struct Facade {
    backend: Backend,
    servers: Servers,
    stop: watch::Sender<bool>,
}

impl Facade {
    async fn start() -> Self {
        Self::with(|_| ()).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Layers::new().settings().expect("the defaults are valid");
        settings.http = ([127, 0, 0, 1], 0).into();
        settings.admin = ([127, 0, 0, 1], 0).into();
        change(&mut settings);
        let backend = Backend::start(Arc::new(settings));
        let (stop, stopping) = watch::channel(false);
        let servers = serve(backend.handle.clone(), stopping)
            .await
            .expect("ports are free");
        Self {
            backend,
            servers,
            stop,
        }
    }

    async fn client(&self) -> Client {
        Client::open(self.servers.addresses.http).await
    }

    async fn admin(&self) -> Client {
        Client::open(self.servers.addresses.admin).await
    }

    /// One request on a connection of its own.
    async fn ask(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.client().await.ask(method, target, headers, body).await
    }

    async fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, &[], b"").await
    }

    async fn put(&self, target: &str, value: &[u8]) -> Answer {
        let answer = self.ask("PUT", target, &[], value).await;
        assert_eq!(answer.status, 204, "{target}: {}", answer.text());
        answer
    }
}

/// Polls until `done`, for at most [`PATIENCE`].
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !done() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what}: not within {PATIENCE:?}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
