//! Nginx with the configuration of `docker/nginx`.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::{Service, docker, program};
use crate::http::{self, Request, Response};
use crate::{ports, wait};

const STARTED_MAX: Duration = Duration::from_secs(20);
/// Above the longest that nginx itself waits for a quick read's nodes: three times 5 s.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Both configurations.
pub const BOTH: [&str; 2] = ["nginx.conf", "nginx-hash.conf"];

/// One Nginx.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    config: &'static str,
    service: Service,
    folder: TempDir,
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the configuration has no {from:?}");
    text.replace(from, to)
}

impl Proxy {
    /// Starts nginx before these nodes, with `nginx.conf` or `nginx-hash.conf`.
    pub fn start(config: &'static str, nodes: &[SocketAddr]) -> Self {
        let folder = TempDir::with_prefix("torc-e2e-nginx-").expect("a folder");
        let address = ports::free();
        let of = docker().join("nginx");
        let into = folder.path();
        let read = |name: &str| fs::read_to_string(of.join(name)).expect("read a configuration");
        // Only what is the machine's own differs from the file: port and folder.
        let tmp = format!("{}/", into.display());
        let main = replaced(&read(config), "/tmp/", &tmp);
        let http = replaced(&read("torc-http.conf"), "/tmp/", &tmp);
        let http = replaced(&http, "listen 8080", &format!("listen {address}"));
        fs::write(into.join(config), main).expect("write");
        fs::write(into.join("torc-http.conf"), http).expect("write");
        fs::create_dir(into.join("torc")).expect("a folder");
        for (file, rule) in [
            ("servers.conf", "max_fails=1 fail_timeout=5s"),
            ("servers-again.conf", "max_fails=0"),
        ] {
            let servers: Vec<_> = nodes
                .iter()
                .map(|node| format!("server {node} {rule};"))
                .collect();
            fs::write(into.join("torc").join(file), servers.join("\n")).expect("write");
        }
        let service = launch(config, into);
        let proxy = Self {
            address,
            config,
            service,
            folder,
        };
        proxy.wait();
        proxy
    }

    /// Starts it again where it was, after [`Self::kill`].
    pub fn restart(&mut self) {
        self.service = launch(self.config, self.folder.path());
        self.wait();
    }

    fn wait(&self) {
        wait::until("nginx to answer", STARTED_MAX, || {
            match self.try_ask(&Request::get("/nginx/health")) {
                Ok(response) if response.status == 200 => Ok(()),
                Ok(response) => Err(response.status.to_string()),
                Err(error) => Err(error),
            }
        });
    }

    /// SIGKILL, for its workers too.
    pub fn kill(&mut self) {
        self.service.kill();
    }

    /// One request on a connection of its own.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn try_ask(&self, request: &Request) -> Result<Response, String> {
        http::send(self.address, request, ANSWER_MAX).map_err(|error| error.to_string())
    }

    /// The same for what must be answered.
    #[track_caller]
    pub fn ask(&self, request: &Request) -> Response {
        self.try_ask(request)
            .unwrap_or_else(|error| panic!("{} {}: {error}", request.method(), request.target()))
    }

    /// The access log's lines, parsed.
    pub fn access_log(&self) -> Vec<serde_json::Value> {
        self.service
            .log()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Ends it in order.
    pub fn stop(mut self) {
        self.service.stop();
    }
}

fn launch(config: &str, folder: &Path) -> Service {
    let mut nginx = Command::new(program("nginx"));
    nginx.args(["-e", "stderr", "-c"]).arg(folder.join(config));
    // As root, nginx would give its workers to a user who may not enter the folder.
    let root = if fs::metadata(folder).is_ok_and(|folder| folder.uid() == 0) {
        "user root; "
    } else {
        ""
    };
    nginx.args(["-g", &format!("daemon off; {root}")]);
    Service::start(config, folder, &nginx)
}
