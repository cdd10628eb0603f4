//! The autoscaler on a real engine: load rises, a node joins the ring and takes its share; load falls, it
//! leaves the ring and is stopped; workers follow the queue; nothing that was acknowledged is lost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;
use torc_e2e::http::{self, Client, HttpError, Request, Response};
use torc_e2e::{alone, wait};

use crate::stack::{Compose, Stack, docker, has_engine};

const ANSWER_MAX: Duration = Duration::from_secs(30);
/// For a change to be decided on and made.
const CHANGE_MAX: Duration = Duration::from_secs(240);
const WRITERS: usize = 4;
const KEYS: usize = 100;
const QUEUED: usize = 600;

/// Requests for keys a second, on each node, over a few scrapes: what a load generator decides by itself, on
/// a machine of any speed.
const VARIABLES: [(&str, &str); 8] = [
    ("TORC_DOCKER_SOCKET", "/var/run/docker.sock"),
    (
        "TORC_AUTOSCALE_NODE_LOAD",
        "sum(rate(torc_http_requests_total{route=\"/kv/{bucket}/{key}\"}[15s])) / count(torc_ready)",
    ),
    ("TORC_AUTOSCALE_NODE_BAND", "1..8"),
    ("TORC_AUTOSCALE_NODES", "3..4"),
    ("TORC_AUTOSCALE_QUEUE_BAND", "5..50"),
    ("TORC_AUTOSCALE_WORKERS", "2..3"),
    ("TORC_AUTOSCALE_SUSTAIN", "5s"),
    ("TORC_AUTOSCALE_COOLDOWN", "10s"),
];

/// Sends it again once where the connection was closed before anything was answered (Nginx closes idle
/// connections when its list of nodes changes; what is written here may be written twice), and once where a
/// node says that it is busy, did nothing, and would like to be asked later.
fn send(
    client: &mut Client,
    address: SocketAddr,
    request: &Request,
) -> Result<Response, HttpError> {
    let answer = match client.send(request) {
        Err(HttpError::Closed { so_far }) if so_far.is_empty() => {
            http::send(address, request, ANSWER_MAX)
        }
        answer => answer,
    }?;
    if answer.header("retry-after").is_none() || answer.json()["outcome"] != "not-written" {
        return Ok(answer);
    }
    eprintln!("asked again: {} {}", request.target(), answer.text());
    thread::sleep(Duration::from_millis(500));
    http::send(address, request, ANSWER_MAX)
}

/// What was acknowledged last of each key, and what failed.
type Written = (BTreeMap<String, u64>, Vec<String>);

/// Clients that write rising numbers to keys of their own, and read them.
struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Written>>,
}

impl Writers {
    fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..WRITERS)
            .map(|writer| {
                let stop = Arc::clone(&stop);
                thread::spawn(move || write(address, writer, &stop))
            })
            .collect();
        Self { stop, threads }
    }

    fn finish(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let (mut acknowledged, mut failures) = (BTreeMap::new(), Vec::new());
        for thread in self.threads {
            let (written, failed) = thread.join().expect("a writer");
            acknowledged.extend(written);
            failures.extend(failed);
        }
        (acknowledged, failures)
    }
}

fn write(address: SocketAddr, writer: usize, stop: &AtomicBool) -> Written {
    let mut client = Client::new(address, ANSWER_MAX);
    let (mut acknowledged, mut failures) = (BTreeMap::new(), Vec::new());
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let key = format!("load-{writer}-{}", number as usize % KEYS);
        let put = Request::put(
            &format!("/kv/default/{key}?deadline=20s"),
            number.to_string(),
        );
        match send(&mut client, address, &put) {
            Ok(answer) if answer.status == 204 => {
                acknowledged.insert(key.clone(), number);
            }
            Ok(answer) => failures.push(format!("PUT {key}: {} {}", answer.status, answer.text())),
            Err(error) => failures.push(format!("PUT {key}: {error}")),
        }
        let get = Request::get(&format!("/kv/default/{key}?deadline=20s"));
        let floor = acknowledged.get(&key).copied().unwrap_or(0);
        match send(&mut client, address, &get) {
            Ok(answer)
                if answer.status == 200
                    && answer
                        .text()
                        .parse::<u64>()
                        .is_ok_and(|found| found >= floor) => {}
            Ok(answer) => failures.push(format!("GET {key}: {} {}", answer.status, answer.text())),
            Err(error) => failures.push(format!("GET {key}: {error}")),
        }
        thread::sleep(Duration::from_millis(20));
    }
    (acknowledged, failures)
}

fn ask(address: SocketAddr, target: &str) -> Result<Value, String> {
    let answer = http::send(address, &Request::get(target), ANSWER_MAX);
    answer
        .map(|answer| answer.json())
        .map_err(|error| error.to_string())
}

/// The first number that a query finds.
fn number(stack: &Stack, query: &str) -> Result<f64, String> {
    let escaped: Vec<_> = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let escaped = escaped.concat();
    let answer = ask(stack.prometheus, &format!("/api/v1/query?query={escaped}"))?;
    let value = answer["data"]["result"][0]["value"][1].as_str();
    value
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("{query} finds nothing"))
}

fn members(stack: &Stack) -> Result<Vec<Value>, String> {
    let ring = ask(stack.http, "/ring")?;
    if ring["changing"] == true {
        return Err("the ring is changing".to_owned());
    }
    let members = ring["members"].as_array().cloned();
    members.ok_or_else(|| ring.to_string())
}

fn name(member: &Value) -> &str {
    member["name"].as_str().unwrap_or_default()
}

/// A fourth member with a share of the ring that also gets requests; its name.
fn wait_joined(stack: &Stack) -> String {
    let joined = wait::until("a node to join", CHANGE_MAX, || {
        let members = members(stack)?;
        let base = ["node-1", "node-2", "node-3"];
        let added = members.iter().find(|member| !base.contains(&name(member)));
        let added = added.ok_or_else(|| format!("{} members", members.len()))?;
        let share = added["share"].as_f64().unwrap_or(0.0);
        if members.len() == 4 && share > 0.1 {
            Ok(name(added).to_owned())
        } else {
            Err(format!("{added}"))
        }
    });
    let query = "count(torc_ring_share{job=\"torc\"} > 0)";
    wait::until("its figures", CHANGE_MAX, || match number(stack, query)? {
        four if four > 3.5 => Ok(()),
        fewer => Err(format!("{fewer}")),
    });
    let query = "min(rate(torc_http_requests_total{method=\"PUT\",route=\"/kv/{bucket}/{key}\",status=\"204\"}[20s]))";
    wait::until("its share of the requests", CHANGE_MAX, || {
        let count = number(
            stack,
            "count(torc_http_requests_total{method=\"PUT\",route=\"/kv/{bucket}/{key}\",status=\"204\"})",
        )?;
        match number(stack, query)? {
            least if least > 0.0 && count > 3.5 => Ok(()),
            least => Err(format!("{count} nodes, {least} a second")),
        }
    });
    joined
}

/// Three members and no container or volume more. As long as the node is a member, its container runs.
fn wait_left(stack: &Stack, node: &str) {
    wait::until("the node to leave", CHANGE_MAX, || {
        // In this order: who has stopped must have left before.
        let running = docker(&["ps", "--format", "{{.Names}}"]);
        let members = members(stack)?;
        let is_member = members.iter().any(|member| name(member) == node);
        assert!(
            !is_member || running.lines().any(|line| line.ends_with(node)),
            "{node} was stopped before it left the ring"
        );
        let nodes = stack.added();
        let nodes: Vec<_> = nodes.iter().filter(|what| what.contains(node)).collect();
        if members.len() == 3 && !is_member && nodes.is_empty() {
            Ok(())
        } else {
            Err(format!("{} members, {nodes:?}", members.len()))
        }
    });
}

/// Workers that hardly get a processor; a queue that grows; one worker more; then they work again.
fn workers_follow_the_queue(stack: &Stack) {
    let slow = |cpus: &str, worker: &str| {
        docker(&["update", "--cpus", cpus, worker]);
    };
    let base = ["worker-1", "worker-2"].map(|worker| stack.container(worker));
    for worker in &base {
        slow("0.01", worker);
    }
    let mut client = Client::new(stack.http, ANSWER_MAX);
    for at in 0..QUEUED {
        let target = format!("/kv/default/queued-{at}");
        let request = Request::put(&target, at.to_string()).header("prefer", "respond-async");
        let answer = send(&mut client, stack.http, &request)
            .unwrap_or_else(|error| panic!("{target}: {error}"));
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    let added = || -> Vec<String> {
        let added = stack.added();
        let containers = added
            .iter()
            .filter_map(|what| what.strip_prefix("container "));
        let workers = containers.filter(|name| name.contains("-worker-"));
        workers.map(str::to_owned).collect()
    };
    let worker = wait::until("a worker more", CHANGE_MAX, || {
        added().pop().ok_or("no worker was added")
    });
    for worker in base.iter().chain([&worker]) {
        slow("1", worker);
    }
    wait::until("the queue to be empty", CHANGE_MAX, || {
        match number(stack, "max(torc_queue_depth{job=\"torc\"})")? {
            depth if depth < 0.5 => Ok(()),
            depth => Err(format!("{depth}")),
        }
    });
    for at in 0..QUEUED {
        let target = format!("/kv/default/queued-{at}");
        wait::until(&target, CHANGE_MAX, || {
            match http::send(stack.http, &Request::get(&target), ANSWER_MAX) {
                Ok(answer) if answer.text() == at.to_string() => Ok(()),
                Ok(answer) => Err(answer.text()),
                Err(error) => Err(error.to_string()),
            }
        });
    }
    wait::until("the worker to go", CHANGE_MAX, || {
        let left = added();
        if left.is_empty() {
            Ok(())
        } else {
            Err(left.join(", "))
        }
    });
}

#[test]
fn nodes_follow_the_load_and_workers_the_queue_and_nothing_is_lost() {
    if !has_engine() {
        return;
    }
    let _alone = alone();
    let mut stack = Stack::new(Compose::One.or_other());
    stack.variables = [&VARIABLES[..], &[("TORC_AUTOSCALE_INTERVAL", "2s")]].concat();
    stack.up("full");
    let writers = Writers::start(stack.http);
    let node = wait_joined(&stack);
    eprintln!("{node} has joined");
    let (acknowledged, mut failures) = writers.finish();
    wait_left(&stack, &node);
    eprintln!("{node} has left");
    for (key, number) in &acknowledged {
        let answer = ask(stack.http, &format!("/kv/default/{key}"));
        let found = answer.as_ref().ok().and_then(Value::as_u64);
        if found.is_none_or(|found| found < *number) {
            failures.push(format!(
                "{key}: {number} was acknowledged, and {answer:?} is there"
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{} failures: {:?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
    workers_follow_the_queue(&stack);
    for kind in ["node", "worker"] {
        for change in ["add", "remove"] {
            let of = format!("torc_autoscale_changes_total{{kind=\"{kind}\",change=\"{change}\"");
            wait::until(
                &format!("{change} {kind} in the metrics"),
                CHANGE_MAX,
                || {
                    let done = number(&stack, &format!("{of},outcome=\"done\"}}"))?;
                    let failed = number(&stack, &format!("{of},outcome=\"failed\"}}"))?;
                    assert!(failed < 0.5, "{failed} failed");
                    if done > 0.5 {
                        Ok(())
                    } else {
                        Err(format!("{done}"))
                    }
                },
            );
        }
    }
    stack.down();
    assert_eq!(stack.left(), [""; 0]);
}
