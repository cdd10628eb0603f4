//! A real nginx with the configuration of `docker/nginx`, in a folder and on a port of its own.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use torc_e2e::http::{self, Request, Response};
use torc_e2e::service::{Service, command};
use torc_e2e::{ports, wait};

const STARTED_MAX: Duration = Duration::from_secs(20);
/// Above the longest that nginx itself waits for a quick read's nodes: three times 5 s.
const ANSWER_MAX: Duration = Duration::from_secs(20);

pub(crate) const BOTH: [&str; 2] = ["nginx.conf", "nginx-hash.conf"];

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    service: Service,
    _folder: TempDir,
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the configuration has no {from:?}");
    text.replace(from, to)
}

impl Proxy {
    /// Starts nginx before these nodes, with `nginx.conf` or `nginx-hash.conf`.
    pub(crate) fn start(config: &str, nodes: &[SocketAddr]) -> Self {
        let folder = TempDir::with_prefix("torc-e2e-nginx-").expect("a folder");
        let address = ports::free();
        let of = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/nginx");
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
        let mut nginx = command("nginx");
        nginx.args(["-e", "stderr", "-c"]).arg(into.join(config));
        // As root, nginx would give its workers to a user who may not enter the folder.
        let root = if fs::metadata(into).is_ok_and(|folder| folder.uid() == 0) {
            "user root; "
        } else {
            ""
        };
        nginx.args(["-g", &format!("daemon off; {root}")]);
        let proxy = Self {
            address,
            service: Service::start(config, nginx, into),
            _folder: folder,
        };
        wait::until("nginx to answer", STARTED_MAX, || {
            match proxy.try_ask(&Request::get("/nginx/health")) {
                Ok(response) if response.status == 200 => Ok(()),
                Ok(response) => Err(response.status.to_string()),
                Err(error) => Err(error),
            }
        });
        proxy
    }

    pub(crate) fn try_ask(&self, request: &Request) -> Result<Response, String> {
        http::send(self.address, request, ANSWER_MAX).map_err(|error| error.to_string())
    }

    #[track_caller]
    pub(crate) fn ask(&self, request: &Request) -> Response {
        self.try_ask(request)
            .unwrap_or_else(|error| panic!("{} {}: {error}", request.method(), request.target()))
    }

    /// The access log's lines, parsed.
    pub(crate) fn access_log(&self) -> Vec<serde_json::Value> {
        self.service
            .log()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    pub(crate) fn stop(mut self) {
        self.service.stop();
    }
}
