//! One node: a process, its folder, and what can be seen of it from outside.

use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{io, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{Formation, Options, READY_MAX, REQUEST_MAX, STOP_MAX};
use crate::http::{self, Request, Response};
use crate::process::{spawn, torc_behind};
use crate::wait;

/// Lines of each log that a failed test shows.
const LOG_LINES_SHOWN: usize = 60;

/// One process and its folder.
#[derive(Debug)]
pub struct Node {
    /// `--name`.
    pub name: String,
    /// `--data`.
    pub data: PathBuf,
    /// Data listener.
    pub http: SocketAddr,
    /// Admin listener.
    pub admin: SocketAddr,
    /// Peer listener (UDP).
    pub peer: SocketAddr,
    /// Further arguments of `torc serve` and its durability; used from the next start on.
    pub options: Options,
    /// What its command line begins with, for example to run it in a network namespace.
    pub prefix: Vec<String>,
    pub(crate) log: PathBuf,
    pub(crate) pki: PathBuf,
    pub(crate) child: Option<Child>,
}

impl Node {
    /// Starts the process; does not wait until it serves.
    #[track_caller]
    pub fn launch(&mut self, formation: &Formation) {
        assert!(!self.is_launched(), "{} runs already", self.name);
        let mut command = torc_behind(&self.prefix, self.log.parent().unwrap_or(Path::new("/")));
        command.arg("serve");
        command
            .args(["--name", &self.name])
            .arg("--data")
            .arg(&self.data);
        command.args(["--http", &self.http.to_string()]);
        command.args(["--admin", &self.admin.to_string()]);
        command.args(["--peer", &self.peer.to_string()]);
        command.arg("--pki").arg(&self.pki);
        command.args(["--durability", self.options.durability]);
        match formation {
            Formation::Bootstrap => {
                command.arg("--bootstrap");
            }
            Formation::Join(addresses) => {
                let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                command.args(["--join", &all.join(",")]);
            }
            Formation::Known => {}
        }
        command.args(&self.options.arguments);
        command.envs(
            self.options
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        );
        let log = open_log(&self.log);
        command.stdin(Stdio::null()).stderr(log.1).stdout(log.0);
        self.child = Some(spawn(command));
    }

    /// Starts the process and waits until it is ready.
    #[track_caller]
    pub fn start(&mut self, formation: &Formation) {
        self.launch(formation);
        self.wait_ready();
    }

    /// Whether it was started and has not been waited for.
    pub fn is_launched(&self) -> bool {
        self.child.is_some()
    }

    /// Whether a started process has ended by itself; [`Self::wait_exit`] then knows how.
    pub fn has_ended(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// Process id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.child
            .as_ref()
            .map_or_else(|| panic!("{} does not run", self.name), Child::id)
    }

    /// Waits until `/health/ready` answers 200.
    #[track_caller]
    pub fn wait_ready(&self) {
        let what = format!("{} to be ready", self.name);
        wait::until(&what, READY_MAX, || {
            match self.ask(&Request::get("/health/ready")) {
                Ok(response) if response.status == 200 => Ok(()),
                Ok(response) => Err(format!("{} {}", response.status, response.text())),
                Err(error) => Err(error),
            }
        });
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child
            && let Ok(pid) = i32::try_from(child.id())
            && let Err(error) = kill(Pid::from_raw(pid), signal)
        {
            eprintln!("could not send {signal} to {} ({pid}): {error}", self.name);
        }
    }

    /// SIGKILL, and waits until it is gone. Works on a paused process too.
    pub fn kill(&mut self) {
        if self.is_launched() {
            self.signal(Signal::SIGKILL);
            self.wait_exit(READY_MAX);
        }
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGTERM; the process must end with success within [`STOP_MAX`].
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait_exit(STOP_MAX);
        assert!(
            status.success(),
            "{} ended with {status} after SIGTERM",
            self.name
        );
    }

    /// Waits until the process ends by itself.
    #[track_caller]
    pub fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let Some(mut child) = self.child.take() else {
            panic!("{} does not run", self.name)
        };
        let began = Instant::now();
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return status,
                Ok(None) if began.elapsed() < deadline => thread::sleep(Duration::from_millis(5)),
                Ok(None) => {
                    self.child = Some(child);
                    panic!("{} did not end within {deadline:?}", self.name);
                }
                Err(error) => panic!("wait for {}: {error}", self.name),
            }
        }
    }

    /// Everything that it logged, over all its lives; nothing before its first.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What it logged after the first `before` bytes.
    pub fn log_since(&self, before: usize) -> String {
        self.log().get(before..).unwrap_or_default().to_owned()
    }

    /// The last lines of the log.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }

    /// One request to the data listener.
    ///
    /// # Errors
    /// When there is no answer, as text.
    pub fn ask(&self, request: &Request) -> Result<Response, String> {
        http::send(self.http, request, REQUEST_MAX).map_err(|error| error.to_string())
    }

    /// One request to the admin listener.
    ///
    /// # Errors
    /// When there is no answer, as text.
    pub fn ask_admin(&self, request: &Request) -> Result<Response, String> {
        http::send(self.admin, request, REQUEST_MAX).map_err(|error| error.to_string())
    }

    /// Puts a value; the write must be acknowledged.
    #[track_caller]
    pub fn put(&self, target: &str, value: impl Into<Vec<u8>>) -> Response {
        match self.ask(&Request::put(target, value)) {
            Ok(response) if response.status == 204 => response,
            other => panic!("PUT {target} on {}: {}", self.name, shown(other)),
        }
    }

    /// Gets a value; `None` is 404, anything else but 200 fails the test.
    #[track_caller]
    pub fn get(&self, target: &str) -> Option<Vec<u8>> {
        match self.ask(&Request::get(target)) {
            Ok(response) if response.status == 200 => Some(response.body),
            Ok(response) if response.status == 404 => None,
            other => panic!("GET {target} on {}: {}", self.name, shown(other)),
        }
    }

    /// Names of the members that this node knows.
    ///
    /// # Errors
    /// When the admin listener does not answer as it should, as text.
    pub fn members(&self) -> Result<Vec<String>, String> {
        let response = self.ask_admin(&Request::get("/ring"))?;
        let ring = response.json();
        let members = ring["members"]
            .as_array()
            .ok_or_else(|| format!("no members in {} {}", response.status, response.text()))?;
        Ok(members
            .iter()
            .map(|member| member["name"].as_str().unwrap_or("?").to_owned())
            .collect())
    }

    /// Whether the ring, as this node knows it, is in the joint phase of a change.
    ///
    /// # Errors
    /// Like [`Self::members`].
    pub fn is_changing(&self) -> Result<bool, String> {
        let response = self.ask_admin(&Request::get("/ring"))?;
        response.json()["changing"]
            .as_bool()
            .ok_or_else(|| format!("no ring in {} {}", response.status, response.text()))
    }

    /// Sum of all series of a metric whose labels contain `labels`; `None` when there are none.
    ///
    /// # Errors
    /// When the metrics cannot be read, as text.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<Option<f64>, String> {
        let response = self.ask_admin(&Request::get("/metrics"))?;
        if response.status != 200 {
            return Err(format!("/metrics answered {}", response.status));
        }
        Ok(sum_of(&response.text(), name, labels))
    }

    /// Waits until a metric (0 while it has no series) satisfies a condition.
    #[track_caller]
    pub fn wait_metric(&self, name: &str, labels: &[(&str, &str)], is_met: impl Fn(f64) -> bool) {
        let what = format!("{name}{labels:?} on {}", self.name);
        wait::until(&what, READY_MAX, || match self.metric(name, labels) {
            Ok(value) if is_met(value.unwrap_or(0.0)) => Ok(()),
            Ok(value) => Err(format!("{value:?}")),
            Err(error) => Err(error),
        });
    }
}

/// An answer or the lack of one, for messages.
pub fn shown(result: Result<Response, String>) -> String {
    match result {
        Ok(response) => format!("{} {}", response.status, response.text()),
        Err(error) => error,
    }
}

/// Sum of the series of a metric in the Prometheus text format.
fn sum_of(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let wanted: Vec<_> = labels
        .iter()
        .map(|(key, value)| format!("{key}=\"{value}\""))
        .collect();
    text.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter_map(|rest| match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once("} "),
            None => rest.strip_prefix(' ').map(|value| ("", value)),
        })
        .filter(|(labels, _)| wanted.iter().all(|label| labels.contains(label.as_str())))
        .filter_map(|(_, value)| value.split(' ').next()?.parse::<f64>().ok())
        .reduce(|sum, value| sum + value)
}

fn open_log(path: &Path) -> (Stdio, Stdio) {
    let open = || -> io::Result<(File, File)> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok((file.try_clone()?, file))
    };
    match open() {
        Ok((out, err)) => (out.into(), err.into()),
        Err(error) => panic!("open {}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::sum_of;

    #[test]
    fn a_metric_is_read_with_and_without_labels() {
        let text = "# TYPE torc_a gauge\ntorc_a 3\ntorc_ab 9\ntorc_b{x=\"1\",y=\"2\"} 4\ntorc_b{x=\"1\",y=\"3\"} 5.5 1700\n";
        assert_eq!(sum_of(text, "torc_a", &[]), Some(3.0));
        assert_eq!(sum_of(text, "torc_b", &[]), Some(9.5));
        assert_eq!(sum_of(text, "torc_b", &[("y", "2")]), Some(4.0));
        assert_eq!(sum_of(text, "torc_b", &[("x", "2")]), None);
        assert_eq!(sum_of(text, "torc_c", &[]), None);
    }
}
