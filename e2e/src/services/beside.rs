//! torc's own processes beside the nodes: workers, and the autoscaler.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use super::{SERVICE_MAX, Service};
use crate::cluster::REQUEST_MAX;
use crate::http::{self, Request};
use crate::process::torc;
use crate::{ports, wait};

/// One `torc worker`.
#[derive(Debug)]
pub struct Worker {
    /// Where its health and metrics are.
    pub http: SocketAddr,
    /// The process.
    pub service: Service,
}

impl Worker {
    /// Starts a worker on a free port, and waits until it takes messages.
    pub fn start(folder: &Path, config: &str, nodes: &[SocketAddr], more: &[&str]) -> Self {
        let worker = Self::launch(ports::free(), (folder, config), nodes, more);
        worker.wait_ready();
        worker
    }

    /// Starts a worker with that `torc.toml` and further arguments for these nodes.
    pub fn launch(
        http: SocketAddr,
        (folder, config): (&Path, &str),
        nodes: &[SocketAddr],
        more: &[&str],
    ) -> Self {
        let name = format!("worker-{}", http.port());
        let path = folder.join(format!("{name}.toml"));
        fs::write(&path, config)
            .unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        let mut command = torc(folder);
        command.args(["worker", "--http", &http.to_string()]);
        command.args(["--node", &joined(nodes)]).args(more);
        command.arg("--config").arg(&path);
        Self {
            http,
            service: Service::start(&name, folder, &command),
        }
    }

    /// Until it takes messages.
    pub fn wait_ready(&self) {
        wait_ready("the worker", self.http);
    }

    /// A figure, by the beginning of its line.
    pub fn metric(&self, series: &str) -> u64 {
        let response = http::send(self.http, &Request::get("/metrics"), REQUEST_MAX);
        let text = response.map(|response| response.text()).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
            .unwrap_or_else(|| panic!("no {series} in {text}"))
    }
}

/// One `torc autoscale --dry-run`.
#[derive(Debug)]
pub struct Autoscaler {
    /// Where its health and metrics are.
    pub http: SocketAddr,
    /// The process.
    pub service: Service,
}

impl Autoscaler {
    /// Starts one that only explains.
    pub fn launch(
        http: SocketAddr,
        folder: &Path,
        admins: &[SocketAddr],
        prometheus: SocketAddr,
    ) -> Self {
        let mut command = torc(folder);
        command
            .args(["autoscale", "--dry-run", "--interval", "1s"])
            .args(["--docker", "/nonexistent"])
            .args(["--http", &http.to_string()])
            .args(["--prometheus", &prometheus.to_string()])
            .args(["--admin", &joined(admins)]);
        Self {
            http,
            service: Service::start(&format!("autoscaler-{}", http.port()), folder, &command),
        }
    }

    /// Until it sees Prometheus and a node.
    pub fn wait_ready(&self) {
        wait_ready("the autoscaler", self.http);
    }

    /// Until it says that it cannot work, and a reason with this in it.
    pub fn wait_down(&self, reason: &str) {
        wait::until("the autoscaler to be in trouble", SERVICE_MAX, || {
            let answer = http::send(self.http, &Request::get("/health/ready"), REQUEST_MAX)
                .map_err(|error| error.to_string())?;
            if answer.status == 503 && answer.text().contains(reason) {
                Ok(())
            } else {
                Err(answer.text())
            }
        });
    }
}

fn joined(addresses: &[SocketAddr]) -> String {
    let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    all.join(",")
}

fn wait_ready(what: &str, http: SocketAddr) {
    wait::until(
        &format!("{what} to be ready"),
        SERVICE_MAX,
        || match http::send(http, &Request::get("/health/ready"), REQUEST_MAX) {
            Ok(response) if response.status == 200 => Ok(()),
            Ok(response) => Err(response.text()),
            Err(error) => Err(error.to_string()),
        },
    );
}
