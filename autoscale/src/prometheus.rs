//! One number out of Prometheus.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::timeout;

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(5);
const CONNECT_MAX: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A Prometheus.
#[derive(Clone, Debug)]
pub(crate) struct Prometheus {
    address: String,
    client: Client<HttpConnector, Empty<Bytes>>,
}

/// Why there is no number.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrometheusError {
    #[error("Prometheus at {address} does not answer within {PATIENCE:?}")]
    Silent { address: String },
    #[error("Prometheus at {address}: {source}")]
    Away {
        address: String,
        source: hyper_util::client::legacy::Error,
    },
    #[error(
        "Prometheus at {address} answers what is no answer to a query, with status {status}: {body}"
    )]
    Strange {
        address: String,
        status: u16,
        body: String,
    },
}

impl Prometheus {
    /// `address` is `host:port`, with or without `http://`.
    pub(crate) fn new(address: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_MAX));
        Self {
            address: address
                .trim_start_matches("http://")
                .trim_end_matches('/')
                .to_owned(),
            client: Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(PATIENCE)
                .build(connector),
        }
    }

    /// The first number that a query finds now; `None` when it finds nothing, or no number.
    pub(crate) async fn number(&self, query: &str) -> Result<Option<f64>, PrometheusError> {
        match timeout(PATIENCE, self.ask(query)).await {
            Ok(answer) => answer,
            Err(_) => Err(PrometheusError::Silent {
                address: self.address.clone(),
            }),
        }
    }

    async fn ask(&self, query: &str) -> Result<Option<f64>, PrometheusError> {
        let strange = |status: u16, body: &[u8]| PrometheusError::Strange {
            address: self.address.clone(),
            status,
            body: String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned(),
        };
        let query = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let uri = format!("http://{}/api/v1/query?query={query}", self.address);
        let Ok(uri) = uri.parse() else {
            return Err(strange(0, b"its address is none"));
        };
        let away = |source| PrometheusError::Away {
            address: self.address.clone(),
            source,
        };
        let response = self.client.get(uri).await.map_err(away)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let Ok(body) = body.collect().await else {
            return Err(strange(status, b"(broken off)"));
        };
        let body = body.to_bytes();
        match parse(&body) {
            Some(Found::Number(number)) => Ok(Some(number)),
            Some(Found::Nothing) => Ok(None),
            None => Err(strange(status, &body)),
        }
    }
}

/// What a query found.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    Number(f64),
    Nothing,
}

/// `None`: no answer to a query.
fn parse(body: &[u8]) -> Option<Found> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let data = (answer["status"] == "success").then_some(&answer["data"])?;
    let value = match data["resultType"].as_str()? {
        "vector" => match data["result"].as_array()?.first() {
            Some(series) => &series["value"],
            None => return Some(Found::Nothing),
        },
        "scalar" => &data["result"],
        _ => return None,
    };
    let number: f64 = value[1].as_str()?.parse().ok()?;
    Some(if number.is_finite() {
        Found::Number(number)
    } else {
        Found::Nothing
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_nothing_and_nonsense_are_told_apart() {
        let vector = |values: &str| {
            format!(
                r#"{{"status":"success","data":{{"resultType":"vector","result":[{values}]}}}}"#
            )
        };
        let one = vector(r#"{"metric":{},"value":[1700000000.1,"2.5"]}"#);
        assert_eq!(parse(one.as_bytes()), Some(Found::Number(2.5)));
        assert_eq!(parse(vector("").as_bytes()), Some(Found::Nothing));
        let none = vector(r#"{"metric":{},"value":[1700000000.1,"NaN"]}"#);
        assert_eq!(parse(none.as_bytes()), Some(Found::Nothing));
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}"#;
        assert_eq!(parse(scalar.as_bytes()), Some(Found::Number(3.0)));
        for strange in [
            "",
            "<html>",
            "{}",
            r#"{"status":"error","error":"parse error"}"#,
        ] {
            assert_eq!(parse(strange.as_bytes()), None, "{strange}");
        }
    }
}
