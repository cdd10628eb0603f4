//! What the demo prints: addresses, and commands to copy.

use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::cluster::Cluster;
use super::home::Home;
use super::ports::address;
use crate::args::DemoArgs;

/// Printed once the cluster is ready. Each command works as it stands, in this order.
pub(crate) fn welcome(cluster: &Cluster, args: &DemoArgs, home: &Home) -> String {
    let urls: Vec<String> = cluster
        .nodes
        .iter()
        .map(|node| format!("http://{}", address(node.ports.http)))
        .collect();
    // With fewer than three nodes the first stands in for the others.
    let url = |at: usize| urls.get(at).unwrap_or(&urls[0]);
    let (one, two, three) = (url(0), url(1), url(2));
    let torc = program();
    let first = &cluster.nodes[0].ports;
    let node_flag = if first.http == 8081 {
        String::new()
    } else {
        format!(" --node {}", address(first.http))
    };
    let admin_flag = if first.admin == 9081 {
        String::new()
    } else {
        format!(" --admin {}", address(first.admin))
    };
    let last = cluster.nodes.len();
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = writeln!(
        text,
        "\n{} is ready{} (durability {}):",
        if last == 1 {
            "One node".to_owned()
        } else {
            format!("A cluster of {last} nodes")
        },
        if cluster.is_new() {
            ""
        } else {
            " again, with its data"
        },
        args.durability
    );
    for node in &cluster.nodes {
        let _ = writeln!(
            text,
            "  {:8} http://{}   admin http://{}   log {}",
            node.name(),
            address(node.ports.http),
            address(node.ports.admin),
            node.log.display()
        );
    }
    let _ = write!(
        text,
        "
Try, from a second terminal:

  # Read a sample key, write one, read it on another node; look at what goes with it.
  curl -i {one}/kv/default/hello
  curl -i -X PUT -H 'Content-Type: text/plain' --data-binary 'what a day' {one}/kv/default/today
  curl -i {two}/kv/default/today
  curl -I {three}/kv/default/today

  # Gone after thirty seconds; only acknowledged by all replicas; the nearest replica's answer.
  curl -i -X PUT --data-binary 'for a while' '{one}/kv/default/session?ttl=30s'
  curl -i -X PUT --data-binary 'very safe' '{two}/kv/default/safe?w=all'
  curl -i '{three}/kv/default/safe?r=one'

  # List, and delete.
  curl -i '{one}/kv/default?prefix=fruit/'
  curl -i -X DELETE {two}/kv/default/today

  # The same with torc itself, and the cluster from above.
  {torc} get hello{node_flag}
  echo 'good evening' | {torc} put hello{node_flag}
  {torc} status{admin_flag}
  {torc} ring show{admin_flag}
  {torc} ring owners hello{admin_flag}
"
    );
    if last > 1 {
        let _ = write!(
            text,
            "
  # Kill a node (kill -9) and go on reading and writing; then bring it back, and see it catch up.
  {torc} demo kill {last}
  {torc} status --watch{admin_flag}
  {torc} demo restart {last}
  {torc} demo ls
"
        );
    }
    let _ = writeln!(
        text,
        "\nCtrl-C stops all of it{}",
        match home.name() {
            None => " and leaves nothing behind.".to_owned(),
            Some(name) => format!("; the data stays for the next `torc demo --keep {name}`."),
        }
    );
    text
}

/// Printed at the end.
pub(crate) fn farewell(home: &Home) -> String {
    match home.name() {
        None => "stopped; nothing is left".to_owned(),
        Some(_) => format!("stopped; the data is in {}", home.path().display()),
    }
}

/// How this binary is called from where the user is: by its name where that finds it.
fn program() -> String {
    let Ok(own) = env::current_exe() else {
        return "torc".to_owned();
    };
    let in_path = env::var_os("PATH").is_some_and(|path| {
        env::split_paths(&path)
            .map(|folder| folder.join("torc"))
            .find(|path| path.is_file())
            .is_some_and(|path| path.canonicalize().ok() == own.canonicalize().ok())
    });
    if in_path {
        "torc".to_owned()
    } else {
        quoted(&own)
    }
}

fn quoted(path: &Path) -> String {
    let text = PathBuf::from(path).display().to_string();
    let is_plain = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"/._-+".contains(&b));
    if is_plain {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}
