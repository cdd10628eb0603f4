//! Prometheus with the configuration and rules of `docker/prometheus`, only oftener.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::{Service, docker, program};
use crate::cluster::REQUEST_MAX;
use crate::http::{self, Request};
use crate::{ports, wait};

const STARTED_MAX: Duration = Duration::from_secs(60);

/// What is scraped instead of the services of Compose.
#[derive(Clone, Debug, Default)]
pub struct Scraped {
    /// Admin addresses of nodes.
    pub nodes: Vec<SocketAddr>,
    /// Workers.
    pub workers: Vec<SocketAddr>,
    /// The autoscaler.
    pub autoscaler: Vec<SocketAddr>,
}

/// One Prometheus.
#[derive(Debug)]
pub struct Prometheus {
    /// Where it listens.
    pub address: SocketAddr,
    service: Service,
    folder: TempDir,
}

impl Prometheus {
    /// Starts it and waits until it is ready.
    pub fn start(scraped: &Scraped) -> Self {
        let folder = TempDir::with_prefix("torc-e2e-prometheus-").expect("a folder");
        let into = folder.path();
        let from = docker().join("prometheus");
        let text = fs::read_to_string(from.join("prometheus.yml")).expect("read");
        fs::write(into.join("prometheus.yml"), configuration(text, scraped)).expect("write");
        fs::create_dir(into.join("rules")).expect("a folder");
        for path in files("rules") {
            let name = path.file_name().unwrap_or_default();
            fs::copy(&path, into.join("rules").join(name)).expect("copy");
        }
        let address = ports::free();
        let started = Self {
            address,
            service: launch(address, into),
            folder,
        };
        started.wait();
        started
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.service.kill();
    }

    /// Starts it again on its old data.
    pub fn restart(&mut self) {
        self.service = launch(self.address, self.folder.path());
        self.wait();
    }

    fn wait(&self) {
        wait::until("prometheus to be ready", STARTED_MAX, || {
            match http::send(self.address, &Request::get("/-/ready"), REQUEST_MAX) {
                Ok(response) if response.status == 200 => Ok(()),
                Ok(response) => Err(response.status.to_string()),
                Err(error) => Err(error.to_string()),
            }
        });
    }

    fn ask(&self, path: &str) -> Result<Value, String> {
        let response = http::send(self.address, &Request::get(path), REQUEST_MAX)
            .map_err(|error| error.to_string())?;
        let answer = response.json();
        if answer["status"] == "success" {
            Ok(answer["data"].clone())
        } else {
            Err(format!("{} {}", response.status, response.text()))
        }
    }

    /// Whether a query finds at least one number.
    ///
    /// # Errors
    /// What it finds instead.
    pub fn finds(&self, expression: &str) -> Result<(), String> {
        let data = self.ask(&format!("/api/v1/query?query={}", escaped(expression)))?;
        let found = data["result"].as_array().map_or(&[][..], Vec::as_slice);
        let numbers = found.iter().filter(|series| {
            series["value"][1]
                .as_str()
                .and_then(|value| value.parse::<f64>().ok())
                .is_some_and(|value| !value.is_nan())
        });
        match (found.len(), numbers.count()) {
            (0, _) => Err("nothing".to_owned()),
            (series, 0) => Err(format!("{series} series, none of them a number")),
            _ => Ok(()),
        }
    }

    /// All rules, as the API shows them.
    pub fn rules(&self) -> Vec<Value> {
        let data = self.ask("/api/v1/rules").expect("the rules");
        let groups = data["groups"].as_array().expect("groups");
        groups
            .iter()
            .flat_map(|group| group["rules"].as_array().expect("rules").clone())
            .collect()
    }
}

/// The files of a folder of `docker/prometheus`.
pub fn files(folder: &str) -> Vec<PathBuf> {
    let folder = docker().join("prometheus").join(folder);
    let entries =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let all: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert!(!all.is_empty(), "{} is empty", folder.display());
    all
}

fn configuration(mut text: String, scraped: &Scraped) -> String {
    let targets = |all: &[SocketAddr]| {
        let all: Vec<_> = all.iter().map(|one| format!("\"{one}\"")).collect();
        format!("[{}]", all.join(", "))
    };
    for (from, to) in [
        (
            "[node-1:9081, node-2:9081, node-3:9081]",
            targets(&scraped.nodes),
        ),
        ("[worker-1:9181, worker-2:9181]", targets(&scraped.workers)),
        ("[autoscaler:9182]", targets(&scraped.autoscaler)),
        ("scrape_interval: 5s", "scrape_interval: 1s".to_owned()),
        ("scrape_timeout: 4s", "scrape_timeout: 1s".to_owned()),
        (
            "evaluation_interval: 5s",
            "evaluation_interval: 1s".to_owned(),
        ),
    ] {
        assert!(text.contains(from), "prometheus.yml has no {from:?}");
        text = text.replace(from, &to);
    }
    text
}

fn launch(address: SocketAddr, folder: &Path) -> Service {
    let mut prometheus = Command::new(program("prometheus"));
    let path = |name: &str| folder.join(name).display().to_string();
    prometheus.args([
        format!("--config.file={}", path("prometheus.yml")),
        format!("--storage.tsdb.path={}", path("data")),
        format!("--web.listen-address={address}"),
    ]);
    Service::start("prometheus", folder, &prometheus)
}

fn escaped(text: &str) -> String {
    let all: Vec<_> = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
    all.concat()
}
