//! One node of the demo: a process, its folder, its log.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Child;
use tokio::time::timeout;

use super::ports::{Held, Ports, address};

/// Lines of a log that are shown when a node does not start.
const LOG_LINES: usize = 15;
/// Bytes from the end of a log in which they are looked for.
const LOG_BYTES: u64 = 64 << 10;

/// Time for a node to read its pipe.
const TELL_MAX: Duration = Duration::from_secs(2);

/// Nodes that a demo has mostly.
const NODES_USUAL: usize = 3;

/// How a node gets into its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Formation {
    Bootstrap,
    Join(String),
    Known,
}

/// What a node does.
#[derive(Debug)]
pub(crate) enum State {
    /// Not started yet, or stopped by the demo.
    Stopped,
    /// Runs.
    Running(Child),
    /// Its time is stopped.
    Paused(Child),
    /// Killed from a second terminal.
    Killed,
    /// Ended by itself.
    Ended,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) number: usize,
    pub(crate) ports: Ports,
    pub(crate) log: PathBuf,
    data: PathBuf,
    pki: PathBuf,
    durability: String,
    state: State,
    /// Its ports, until it binds them itself.
    held: Option<Held>,
    /// Numbers of the nodes that it is cut off from.
    cut: Vec<usize>,
}

impl Node {
    pub(crate) fn new(number: usize, ports: Ports, home: &Path, durability: &str) -> Self {
        let name = node_name(number);
        Self {
            number,
            ports,
            log: home.join(format!("{name}.log")),
            data: home.join(&name),
            pki: home.join("pki"),
            durability: durability.to_owned(),
            state: State::Stopped,
            held: None,
            cut: Vec::new(),
        }
    }

    /// Which nodes it is cut off from; [`Self::tell_cut`] says so to its process.
    pub(crate) fn set_cut(&mut self, from: Vec<usize>) {
        self.cut = from;
    }

    /// Tells the process, over the pipe that ties it to the demo, which nodes it is cut off from.
    pub(crate) async fn tell_cut(&mut self) -> anyhow::Result<()> {
        let names: Vec<String> = self.cut.iter().map(|number| node_name(*number)).collect();
        let line = format!("cut {}\n", names.join(" "));
        let (State::Running(child) | State::Paused(child)) = &mut self.state else {
            return Ok(());
        };
        let Some(pipe) = &mut child.stdin else {
            return Ok(());
        };
        timeout(TELL_MAX, pipe.write_all(line.as_bytes()))
            .await
            .with_context(|| format!("node-{} does not read its pipe", self.number))?
            .with_context(|| format!("cannot reach node-{}", self.number))
    }

    /// With its ports held until it starts.
    pub(crate) fn holding(mut self, held: Held) -> Self {
        self.held = Some(held);
        self
    }

    pub(crate) fn name(&self) -> String {
        node_name(self.number)
    }

    pub(crate) fn state(&self) -> &'static str {
        match self.state {
            State::Stopped => "stopped",
            State::Running(_) => "running",
            State::Paused(_) => "paused",
            State::Killed => "killed",
            State::Ended => "ended",
        }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.state {
            State::Running(child) | State::Paused(child) => child.id(),
            State::Stopped | State::Killed | State::Ended => None,
        }
    }

    /// Starts the process; does not wait until it serves.
    pub(crate) fn start(&mut self, formation: &Formation) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("cannot find the torc binary")?;
        let log = open_log(&self.log)?;
        let mut command = Command::new(program);
        command.args(["serve", "--parent-pipe", "--name", &self.name()]);
        command.arg("--data").arg(&self.data);
        command.args(["--http", &address(self.ports.http).to_string()]);
        command.args(["--admin", &address(self.ports.admin).to_string()]);
        command.args(["--peer", &address(self.ports.peer).to_string()]);
        command.arg("--pki").arg(&self.pki);
        command.args(["--durability", &self.durability]);
        match formation {
            Formation::Bootstrap => drop(command.arg("--bootstrap")),
            Formation::Join(peers) => drop(command.args(["--join", peers])),
            Formation::Known => {}
        }
        // Settings for a node that the user runs are none for these; how much they log may be.
        for (name, _) in std::env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| name.starts_with("TORC_") && name != "TORC_LOG")
            {
                command.env_remove(name);
            }
        }
        command
            .stdin(Stdio::piped())
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log);
        // After the settings are cleared, because this is none: the runtime of the node reads it by itself.
        command.env("TOKIO_WORKER_THREADS", threads().to_string());
        // A process group of its own, so that the terminal's Ctrl-C reaches the demo alone, which then stops
        // the nodes in order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        self.held = None;
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", self.name()))?;
        self.state = State::Running(child);
        Ok(())
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        let child = match &mut self.state {
            State::Running(child) | State::Paused(child) => child,
            State::Stopped | State::Killed | State::Ended => {
                anyhow::bail!("{} does not run", self.name());
            }
        };
        child
            .kill()
            .await
            .with_context(|| format!("cannot kill node-{}", self.number))?;
        self.state = State::Killed;
        Ok(())
    }

    /// SIGSTOP.
    pub(crate) fn pause(&mut self) -> anyhow::Result<()> {
        let name = self.name();
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Running(child) => {
                let sent = send(&child, Signal::SIGSTOP);
                self.state = State::Paused(child);
                sent
            }
            other => {
                self.state = other;
                anyhow::bail!("{name} is {}, not running", self.state())
            }
        }
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self) -> anyhow::Result<()> {
        let name = self.name();
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Paused(child) => {
                let sent = send(&child, Signal::SIGCONT);
                self.state = State::Running(child);
                sent
            }
            other => {
                self.state = other;
                anyhow::bail!("{name} is {}, not paused", self.state())
            }
        }
    }

    /// SIGTERM, to a paused node too; the caller waits.
    pub(crate) fn begin_stop(&self) {
        if let State::Running(child) | State::Paused(child) = &self.state {
            // An error means that it has ended already.
            let _ = send(child, Signal::SIGTERM).and_then(|()| send(child, Signal::SIGCONT));
        }
    }

    /// Waits for the end of what was told to stop, and kills what takes longer.
    pub(crate) async fn finish_stop(&mut self, patience: Duration) {
        if let State::Running(child) | State::Paused(child) = &mut self.state {
            // The write end of its pipe: a node that missed the signal learns of it this way.
            drop(child.stdin.take());
            if timeout(patience, child.wait()).await.is_err() {
                // An error means that it has ended meanwhile.
                let _ = child.kill().await;
            }
        }
        self.state = State::Stopped;
    }

    /// Whether it has ended by itself since it was last looked at, and how.
    pub(crate) fn look(&mut self) -> Option<String> {
        let (State::Running(child) | State::Paused(child)) = &mut self.state else {
            return None;
        };
        let ended = match child.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => status.to_string(),
            Err(error) => error.to_string(),
        };
        self.state = State::Ended;
        Some(ended)
    }

    /// The last lines of its log.
    pub(crate) fn log_end(&self) -> String {
        let text = read_end(&self.log).unwrap_or_else(|error| format!("(no log: {error})"));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

fn node_name(number: usize) -> String {
    format!("node-{number}")
}

/// Threads of one node's runtime. The nodes of a demo share the machine: with a thread for each core, each of
/// them would wake threads that only wait for each other's time.
fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / NODES_USUAL).max(1)
}

fn send(child: &Child, signal: Signal) -> anyhow::Result<()> {
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .context("the process has ended")?;
    kill(Pid::from_raw(pid), signal)
        .with_context(|| format!("cannot send {signal} to process {pid}"))
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

fn read_end(path: &Path) -> std::io::Result<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let length = fs::metadata(path)?.len();
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
