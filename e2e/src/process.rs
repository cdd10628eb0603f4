//! Starting processes that never outlive the tests.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use crate::binary;

/// A command that runs the tested binary, untouched by the caller's settings. `home` is where it
/// may keep what it keeps per user.
pub fn torc(home: &Path) -> Command {
    torc_behind(&[], home)
}

/// Like [`torc`], run by the command that `prefix` begins (which must become what it runs, as `nsenter`
/// does, so that signals reach it).
pub fn torc_behind(prefix: &[String], home: &Path) -> Command {
    let mut words: Vec<OsString> = prefix.iter().map(OsString::from).collect();
    if die_with_parent() {
        words.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(OsString::from));
    }
    words.push(binary::torc().into());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TORC_") {
            command.env_remove(name);
        }
    }
    command
        .env("HOME", home)
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_DATA_HOME");
    command
}

/// A command whose process the kernel ends with ours, where it can.
pub fn bound(program: &Path) -> Command {
    if !die_with_parent() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn die_with_parent() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        let tried = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "true"])
            .status();
        tried.is_ok_and(|status| status.success())
    })
}

type Spawning = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts a process from a thread that lives as long as this process: `--pdeathsig` watches the
/// thread that started the child, and the threads of tests end early.
pub fn spawn(command: Command) -> Child {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Spawning>>> = OnceLock::new();
    let shown = format!("{command:?}");
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Spawning>();
        thread::spawn(move || {
            for (mut command, reply) in receiver {
                // The test that asked may have panicked meanwhile; then nobody wants the answer.
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (reply, answer) = mpsc::channel();
    let sent = spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, reply));
    match (sent, answer.recv()) {
        (Ok(()), Ok(Ok(child))) => child,
        (_, Ok(Err(error))) => panic!("start {shown}: {error}"),
        (_, Err(_)) | (Err(_), _) => panic!("start {shown}: the spawning thread is gone"),
    }
}
