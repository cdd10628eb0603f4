//! Side services as real processes: Nginx, Redis with replicas and sentinels, RabbitMQ, Prometheus, and torc's
//! own workers and autoscaler. Each has
//! a folder of its own, free ports, and ends with the test.
//!
//! The programs are those of the system's packages (`scripts/services.sh` installs them); none of the
//! system's own instances is touched.

pub mod beside;
pub mod nginx;
pub mod prometheus;
pub mod rabbit;
pub mod redis;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{bound, spawn};

/// How long a service may take to be there. Generous: Erlang starts slowly on a busy machine.
pub const SERVICE_MAX: Duration = Duration::from_secs(180);

/// Lines of its log that a failed test shows.
const LOG_LINES_SHOWN: usize = 40;

/// One process of a side service.
#[derive(Debug)]
pub struct Service {
    name: String,
    child: Option<Child>,
    log: PathBuf,
}

impl Service {
    /// Starts it; its output goes to a file in the folder.
    pub fn start(name: &str, folder: &Path, command: &Command) -> Self {
        let log = folder.join(format!("{name}.log"));
        let open = || {
            fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(&log)
                .unwrap_or_else(|error| panic!("open {}: {error}", log.display()))
        };
        // Where its output goes is not copied, so it is said last.
        let mut command = under_watch(command);
        command.stdin(Stdio::null()).stdout(open()).stderr(open());
        Self {
            name: name.to_owned(),
            child: Some(spawn(command)),
            log,
        }
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

    /// SIGKILL, and waits until it is gone. Processes that it has started go with it: a master that is killed
    /// cannot end its workers.
    pub fn kill(&mut self) {
        let children = self.child.as_ref().map_or_else(Vec::new, children);
        self.end(Signal::SIGKILL);
        for child in children {
            let _ = kill(child, Signal::SIGKILL);
        }
    }

    /// SIGTERM, and waits until it is gone.
    pub fn stop(&mut self) {
        self.end(Signal::SIGTERM);
    }

    /// Whether it was started and not ended.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    fn end(&mut self, signal: Signal) {
        self.signal(signal);
        let Some(mut child) = self.child.take() else {
            return;
        };
        let began = Instant::now();
        while let Ok(None) = child.try_wait() {
            if began.elapsed() > SERVICE_MAX {
                // Nobody must wait for ever for what does not heed a signal.
                let _ = child.kill();
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Everything that it wrote.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last lines that it wrote.
    pub fn log_end(&self) -> String {
        let text = self.log();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("---- end of the log of {}\n{}", self.name, self.log_end());
        }
    }
}

/// What a process has started itself.
fn children(of: &Child) -> Vec<Pid> {
    let id = of.id();
    let listed = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    listed
        .split_whitespace()
        .filter_map(|id| Some(Pid::from_raw(id.parse().ok()?)))
        .collect()
}

/// The same command, ended by the kernel when this process ends, where the system can do that.
fn under_watch(command: &Command) -> Command {
    let mut watched = bound(Path::new(command.get_program()));
    watched.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => watched.env(name, value),
            None => watched.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        watched.current_dir(folder);
    }
    watched
}

/// The program of that name; daemons lie in sbin, which is not on everybody's path.
///
/// # Panics
/// When it is not installed: `scripts/services.sh` does that, and `make test` runs it.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(more)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: run scripts/services.sh"))
}

/// The folder of the platform's configuration files.
pub fn docker() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker")
}
