//! How a second terminal reaches a running demo: a socket in a folder that only this user can enter.
//!
//! One request and one reply a connection, a line of JSON each. Not an interface for others.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use torc_client::{Admin, Change};

use crate::args::{DemoNode, DemoTarget, Output};
use crate::exit::Unreachable;
use crate::output;

/// Longest line.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Time for a request to arrive, and for a reply to be made: a restart waits for the node to stop.
const REQUEST_MAX: Duration = Duration::from_secs(2);
const REPLY_MAX: Duration = Duration::from_secs(20);
/// Time for a node that was started again to be ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// Time for one answer while a node leaves.
const LEAVE_ASK_MAX: Duration = Duration::from_secs(15);
/// Requests that wait for the demo to get round to them.
const WAITING_MAX: usize = 16;

/// What can be done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    Kill,
    Pause,
    Resume,
    Restart,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "request")]
pub(crate) enum Request {
    List,
    Act {
        action: Action,
        node: u16,
    },
    Add,
    /// No links between nodes of different groups; no groups mends all.
    Partition {
        groups: Vec<Vec<u16>>,
    },
}

/// A node in `torc demo ls`; its JSON is an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeView {
    pub(crate) node: usize,
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) pid: Option<u32>,
    pub(crate) http: String,
    pub(crate) admin: String,
    pub(crate) peer: String,
    pub(crate) log: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "reply")]
pub(crate) enum Reply {
    Nodes { nodes: Vec<NodeView> },
    Done { message: String, admin: String },
    Refused { reason: String },
}

/// A request and where its reply goes.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) request: Request,
    pub(crate) reply: oneshot::Sender<Reply>,
}

/// The demo's end.
#[derive(Debug)]
pub(crate) struct Control {
    orders: mpsc::Receiver<Order>,
    // Held so that the channel never closes, even when no connection is open.
    _sender: mpsc::Sender<Order>,
    path: PathBuf,
}

impl Control {
    /// Listens under this process's id.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let folder = folder();
        make_private(&folder)?;
        let path = folder.join(format!("demo-{}.sock", std::process::id()));
        // Left by a process of the same id that was killed.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen at {}", path.display()))?;
        let (sender, orders) = mpsc::channel(WAITING_MAX);
        tokio::spawn(accept(listener, sender.clone()));
        Ok(Self {
            orders,
            _sender: sender,
            path,
        })
    }

    /// The next request.
    pub(crate) async fn next(&mut self) -> Order {
        match self.orders.recv().await {
            Some(order) => order,
            // Cannot be: this end holds a sender too.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // What cannot be removed is found stale and removed by the next command. The folder goes with the
        // last demo in it.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_dir(folder());
    }
}

async fn accept(listener: UnixListener, orders: mpsc::Sender<Order>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, orders.clone()));
            }
            // Out of descriptors: the next attempt is no better for being at once.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve(mut stream: UnixStream, orders: mpsc::Sender<Order>) {
    let Ok(Some(request)) = timeout(REQUEST_MAX, read_line::<Request>(&mut stream)).await else {
        return;
    };
    let (reply, replied) = oneshot::channel();
    let answer = match orders.try_send(Order { request, reply }) {
        Ok(()) => replied.await.ok(),
        Err(_) => Some(Reply::Refused {
            reason: "too many commands wait already".to_owned(),
        }),
    };
    if let Some(answer) = answer {
        // Whoever asked may have gone.
        let _ = timeout(REQUEST_MAX, write_line(&mut stream, &answer)).await;
    }
}

async fn read_line<T: serde::de::DeserializeOwned>(stream: &mut UnixStream) -> Option<T> {
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX))
        .read_line(&mut line)
        .await
        .ok()?;
    serde_json::from_str(&line).ok()
}

async fn write_line(stream: &mut UnixStream, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// `torc demo ls`.
pub(crate) async fn list(target: &DemoTarget) -> anyhow::Result<ExitCode> {
    let Reply::Nodes { nodes } = ask(target, &Request::List).await? else {
        anyhow::bail!("the demo answered something else than its nodes; is it of this version?");
    };
    if target.output == Output::Json {
        output::json(&serde_json::json!({ "nodes": nodes }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = nodes.into_iter().map(|node| {
        let pid = node
            .pid
            .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        vec![
            node.node.to_string(),
            node.name,
            node.state,
            pid,
            node.http,
            node.admin,
            node.log,
        ]
    });
    output::line(output::table(
        &["#", "NODE", "STATE", "PID", "HTTP", "ADMIN", "LOG"],
        rows,
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// `torc demo kill` and the like. A restart waits until the node is ready.
pub(crate) async fn act(action: Action, args: &DemoNode) -> anyhow::Result<ExitCode> {
    let request = Request::Act {
        action,
        node: args.node,
    };
    order(&args.target, &request, action == Action::Restart).await
}

/// `torc demo add`. Waits until the node has joined.
pub(crate) async fn add(target: &DemoTarget) -> anyhow::Result<ExitCode> {
    order(target, &Request::Add, true).await
}

/// `torc demo leave`. Waits until the node has left.
pub(crate) async fn leave(args: &DemoNode) -> anyhow::Result<ExitCode> {
    let Reply::Nodes { nodes } = ask(&args.target, &Request::List).await? else {
        anyhow::bail!("the demo answered something else than its nodes; is it of this version?");
    };
    let count = nodes.len();
    let is_meant = |node: &&NodeView| node.node == usize::from(args.node);
    let leaver = nodes
        .iter()
        .find(is_meant)
        .with_context(|| format!("there is no node {}; this demo has 1 to {count}", args.node))?;
    // Not the leaver: it stops when it has left, and could not say so any more.
    let others = nodes
        .iter()
        .filter(|node| !is_meant(node) && node.pid.is_some())
        .map(|node| node.admin.clone())
        .collect();
    let admin = Admin::new(others, LEAVE_ASK_MAX)
        .context("no other node runs that could take over the data")?;
    let change = Change::Leave {
        node: leaver.name.clone(),
    };
    let decided = admin.commit(&[change], None).await?;
    crate::change::follow(&admin, decided.ring_version, args.target.output).await
}

/// `torc demo partition` and `torc demo heal`.
pub(crate) async fn partition(
    groups: Vec<Vec<u16>>,
    target: &DemoTarget,
) -> anyhow::Result<ExitCode> {
    order(target, &Request::Partition { groups }, false).await
}

/// Has it done, and waits until the node that it was done to is ready, if that is wanted.
async fn order(target: &DemoTarget, request: &Request, wait: bool) -> anyhow::Result<ExitCode> {
    let (message, admin) = match ask(target, request).await? {
        Reply::Done { message, admin } => (message, admin),
        Reply::Refused { reason } => anyhow::bail!(reason),
        Reply::Nodes { .. } => {
            anyhow::bail!("the demo answered something else; is it of this version?")
        }
    };
    let message = if wait {
        wait_ready(&message, admin).await?;
        format!("{message}; it is ready")
    } else {
        message
    };
    match target.output {
        Output::Json => output::json(&serde_json::json!({ "done": message }))?,
        Output::Text => output::line(message)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn wait_ready(message: &str, admin: String) -> anyhow::Result<()> {
    let admin = Admin::new(vec![admin], Duration::from_secs(2))?;
    let end = Instant::now() + READY_MAX;
    let mut progress = output::Progress::new();
    loop {
        let lack = match admin.ready().await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => reason,
            Err(error) => error.to_string(),
        };
        if Instant::now() >= end {
            let waited = READY_MAX.as_secs();
            return Err(Unreachable(format!(
                "{message}, but it is not ready after {waited} s: {lack}"
            ))
            .into());
        }
        progress.say(&format!("{message}, waiting until it is ready"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Asks the demo that is meant.
pub(crate) async fn ask(target: &DemoTarget, request: &Request) -> anyhow::Result<Reply> {
    let mut stream = find(target.demo).await?;
    let exchange = async {
        write_line(&mut stream, request).await.ok()?;
        read_line::<Reply>(&mut stream).await
    };
    timeout(REPLY_MAX, exchange)
        .await
        .ok()
        .flatten()
        .with_context(|| format!("the demo did not answer within {} s", REPLY_MAX.as_secs()))
}

/// The one demo that runs, or that of this process id. Sockets that nobody listens at are removed.
async fn find(pid: Option<u32>) -> anyhow::Result<UnixStream> {
    let folder = folder();
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| {
            name.strip_prefix("demo-")?
                .strip_suffix(".sock")?
                .parse::<u32>()
                .ok()
        });
        let Some(number) = number else { continue };
        match UnixStream::connect(entry.path()).await {
            Ok(stream) => found.push((number, stream)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // Another command may have removed it at the same time.
                let _ = fs::remove_file(entry.path());
            }
            Err(_) => {}
        }
    }
    if let Some(pid) = pid {
        found.retain(|(number, _)| *number == pid);
    }
    match found.len() {
        0 => Err(Unreachable("no demo runs; start one with `torc demo`".to_owned()).into()),
        1 => Ok(found.remove(0).1),
        _ => {
            let pids: Vec<String> = found.iter().map(|(pid, _)| pid.to_string()).collect();
            anyhow::bail!(
                "several demos run; name one with --demo: {}",
                pids.join(", ")
            )
        }
    }
}

/// The user's own folder for what lives as long as processes do.
fn folder() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|path| path.is_dir());
    match runtime {
        Some(path) => path.join("torc"),
        None => std::env::temp_dir().join(format!("torc-{}", nix::unistd::geteuid())),
    }
}

/// Makes the folder, and refuses one that others could have put there.
fn make_private(folder: &Path) -> anyhow::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot make {}", folder.display()));
        }
        _ => {}
    }
    let found = fs::symlink_metadata(folder)
        .with_context(|| format!("cannot look at {}", folder.display()))?;
    let is_own = found.is_dir()
        && found.uid() == nix::unistd::geteuid().as_raw()
        && found.mode() & 0o022 == 0;
    if !is_own {
        anyhow::bail!(
            "{} belongs to somebody else, or others may write there; remove it",
            folder.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_of_a_listing_is_an_interface() {
        let view = NodeView {
            node: 1,
            name: "node-1".into(),
            state: "running".into(),
            pid: Some(7),
            http: "127.0.0.1:8081".into(),
            admin: "127.0.0.1:9081".into(),
            peer: "127.0.0.1:7081".into(),
            log: "/tmp/node-1.log".into(),
        };
        let expected = r#"{"node":1,"name":"node-1","state":"running","pid":7,"http":"127.0.0.1:8081","admin":"127.0.0.1:9081","peer":"127.0.0.1:7081","log":"/tmp/node-1.log"}"#;
        assert_eq!(serde_json::to_string(&view).ok().as_deref(), Some(expected));
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let private = folder.path().join("own");
        make_private(&private).expect("made");
        make_private(&private).expect("found again");
        fs::set_permissions(&private, fs::Permissions::from_mode(0o777)).expect("opened");
        assert!(make_private(&private).is_err());
    }
}
