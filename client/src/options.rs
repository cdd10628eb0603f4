//! What a caller may choose, for a client and for a single request.

use std::time::Duration;

use torc_ring::Quorum;

/// How a client picks the node for a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routing {
    /// One of the key's owners first, as the ring says; the ring is fetched in the background.
    #[default]
    Ring,
    /// The given nodes in turn. For a load balancer in front of the nodes, and for single requests.
    InTurn,
}

/// Settings of a [`crate::Client`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Data addresses, `host:port` or `http://host:port`; at least one.
    pub nodes: Vec<String>,
    /// Time for an operation with all its attempts, unless the request names another. 2 s.
    pub deadline: Duration,
    /// Time for a connection to be made. 1 s.
    pub connect_timeout: Duration,
    /// Time without an answer after which a read asks a second node too; `None`: never. 500 ms.
    pub hedge_after: Option<Duration>,
    /// Greatest number of attempts of one operation, 1 at least. 4.
    pub attempts_max: usize,
    /// Idle connections kept to each node. 64.
    pub idle_connections_max: usize,
    /// Time for which an idle connection is kept; below the nodes' `limits.header_timeout`, so that it is
    /// the client that hangs up. 5 s.
    pub idle_timeout: Duration,
    /// Greatest answer in bytes. 65 MiB: above the greatest value that a node can be set to.
    pub answer_bytes_max: usize,
    /// How a node is picked.
    pub routing: Routing,
    /// Age after which the ring is fetched again. 10 s.
    pub ring_refresh: Duration,
    /// Repeat writes whose outcome is unknown. Off: a repetition gets a new version, and may bury what
    /// somebody else wrote in between. For keys that only one client writes it is harmless.
    pub retry_unknown: bool,
}

impl ClientConfig {
    /// The defaults, with these nodes.
    pub fn new<S: Into<String>>(nodes: impl IntoIterator<Item = S>) -> Self {
        Self {
            nodes: nodes.into_iter().map(Into::into).collect(),
            deadline: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            hedge_after: Some(Duration::from_millis(500)),
            attempts_max: 4,
            idle_connections_max: 64,
            idle_timeout: Duration::from_secs(5),
            answer_bytes_max: 65 << 20,
            routing: Routing::Ring,
            ring_refresh: Duration::from_secs(10),
            retry_unknown: false,
        }
    }
}

/// Options of a read.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Replicas to wait for; the bucket's default otherwise.
    pub r: Option<Quorum>,
    /// Time for the operation; the client's default otherwise.
    pub deadline: Option<Duration>,
}

/// Options of a write.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Replicas to wait for; the bucket's default otherwise.
    pub w: Option<Quorum>,
    /// Time for the operation; the client's default otherwise.
    pub deadline: Option<Duration>,
    /// Time after which the value is gone; the bucket's default otherwise. Whole milliseconds.
    pub ttl: Option<Duration>,
    /// Content type to be kept with the value.
    pub content_type: Option<String>,
    /// What [`crate::Read::context`] or [`crate::Written::context`] said: this write orders after it.
    pub context: Option<String>,
    /// Whether stand-ins count; the bucket's default otherwise.
    pub sloppy: Option<bool>,
    /// Fsync on each replica before it counts, whatever its durability says.
    pub fsync: bool,
}

/// The query of a request. The deadline goes into a header, which each attempt sets anew.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pairs: Vec<(&'static str, String)>,
}

impl Query {
    pub(crate) fn push(&mut self, name: &'static str, value: String) {
        self.pairs.push((name, value));
    }

    pub(crate) fn push_some<T: ToString>(&mut self, name: &'static str, value: Option<T>) {
        if let Some(value) = value {
            self.pairs.push((name, value.to_string()));
        }
    }

    pub(crate) fn write(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.pairs {
            text.push(if text.is_empty() { '?' } else { '&' });
            text.push_str(name);
            text.push('=');
            text.push_str(&crate::text::encode(value.as_bytes()));
        }
        text
    }
}

impl ReadOptions {
    pub(crate) fn query(&self) -> Query {
        let mut query = Query::default();
        query.push_some("r", self.r);
        query
    }
}

impl WriteOptions {
    pub(crate) fn query(&self) -> Query {
        let mut query = Query::default();
        query.push_some("w", self.w);
        query.push_some("ttl", self.ttl.map(millis));
        query.push_some("sloppy", self.sloppy);
        query.push_some("durability", self.fsync.then_some("fsync"));
        query
    }
}

/// As nodes read times; at least one millisecond.
pub(crate) fn millis(time: Duration) -> String {
    format!("{}ms", time.as_millis().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_a_query() {
        let options = WriteOptions {
            w: Some(Quorum::Count(2)),
            ttl: Some(Duration::from_secs(30)),
            sloppy: Some(true),
            fsync: true,
            ..WriteOptions::default()
        };
        assert_eq!(
            options.query().write(),
            "?w=2&ttl=30000ms&sloppy=true&durability=fsync"
        );
        assert_eq!(ReadOptions::default().query().write(), "");
        assert_eq!(millis(Duration::from_micros(10)), "1ms");
    }
}
