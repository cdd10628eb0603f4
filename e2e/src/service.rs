//! Side services of other makers (Nginx, Prometheus, ...) as processes of a test: started on free ports
//! with a folder of their own, gone when the test is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, io, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::spawn;
use crate::wait;

/// How long a service may take to end when it is asked to.
const STOP_MAX: Duration = Duration::from_secs(20);
/// Lines of its log that a failed test shows.
const LOG_LINES_SHOWN: usize = 40;

/// A running service.
#[derive(Debug)]
pub struct Service {
    name: String,
    log: PathBuf,
    child: Option<Child>,
}

/// Path of an installed program, also where daemons lie.
///
/// # Panics
/// When it is not installed: `scripts/services.sh` does that, and `make test` runs it.
pub fn program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin".into(), "/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed; scripts/services.sh installs it"))
}

/// A command that ends when this process does, whatever happens to it.
pub fn command(name: &str) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program(name));
    command
}

impl Service {
    /// Starts a command; what it prints goes to `NAME.log` in `folder`.
    #[track_caller]
    pub fn start(name: &str, mut command: Command, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let open = || -> io::Result<(File, File)> {
            let file = File::options().create(true).append(true).open(&log)?;
            Ok((file.try_clone()?, file))
        };
        let (out, err) = open().unwrap_or_else(|error| panic!("open {}: {error}", log.display()));
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        Self {
            name: name.to_owned(),
            log,
            child: Some(spawn(command)),
        }
    }

    /// Everything that it printed.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child
            && let Ok(pid) = i32::try_from(child.id())
        {
            // An error means that it has ended by itself, which whoever waits for it finds out.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// SIGTERM, and waits for the end.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let Some(mut child) = self.child.take() else {
            return;
        };
        let what = format!("{} to end", self.name);
        wait::until(&what, STOP_MAX, || match child.try_wait() {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err("still running".to_owned()),
            Err(error) => Err(error.to_string()),
        });
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
            eprintln!("---- end of the log of {}\n{end}", self.name);
        }
    }
}
