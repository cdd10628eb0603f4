//! The whole platform in containers: the same files that a user starts, with stand-in images where no
//! registry can be reached. Needs a Docker engine, and root (or sudo) to make the stand-ins the first time.

mod autoscale;
mod files;
mod stack;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use torc_e2e::cluster::READY_MAX;
use torc_e2e::http::{self, Client, Request};
use torc_e2e::{alone, wait};

use stack::{Compose, Stack, docker, docker_folder, has_engine, succeed};

/// What the platform promises on a machine that is not busy with other things.
const HEALTHY_SECONDS_MAX: u64 = 120;
const ANSWER_MAX: Duration = Duration::from_secs(20);
const SEEN_MAX: Duration = Duration::from_secs(60);

/// Processes that wanted to run in the last minute, for each core.
fn load_per_core() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = text
        .split(' ')
        .next()
        .and_then(|load| load.parse::<f64>().ok());
    load.unwrap_or(0.0) / thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64)
}

/// Networks that containers with a published port are on; all others have no way in or out.
const FRONT: &str = "_front";

/// What a container can be reached by from outside: nothing, unless it is one of three, and those on loopback.
fn check_reach(name: &str, container: &Value) -> bool {
    let networks = &container["NetworkSettings"];
    let mut is_published = false;
    for (port, bindings) in networks["Ports"].as_object().into_iter().flatten() {
        for binding in bindings.as_array().into_iter().flatten() {
            assert_eq!(
                binding["HostIp"], "127.0.0.1",
                "{name} publishes {port} to the world"
            );
            is_published = true;
        }
    }
    assert_eq!(container["HostConfig"]["PublishAllPorts"], false, "{name}");
    assert_ne!(container["HostConfig"]["NetworkMode"], "host", "{name}");
    let names = networks["Networks"].as_object().into_iter().flatten();
    for (network, _) in names.filter(|(network, _)| *network != "none") {
        let internal = docker(&["network", "inspect", "--format", "{{.Internal}}", network]);
        let is_front = network.ends_with(FRONT);
        assert_eq!(internal.trim() == "true", !is_front, "{network}");
        assert!(!is_front || is_published, "{name} is on {network}");
    }
    is_published
}

/// Nothing lets in whoever has no password, or the one that everybody knows.
fn nobody_gets_in_by_default(stack: &Stack) {
    let ask = |service: &str, command: &[&str]| {
        let container = stack.container(service);
        let mut all = Command::new("docker");
        all.args(["exec", &container]).args(command);
        let output = all
            .output()
            .unwrap_or_else(|error| panic!("run {all:?}: {error}"));
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    let (_, said) = ask("redis-1", &["redis-cli", "get", "x"]);
    assert!(said.contains("NOAUTH"), "redis: {said}");
    let master = ["sentinel", "get-master-addr-by-name", "torc"];
    let command = [&["redis-cli", "-p", "26379"][..], &master].concat();
    let (_, said) = ask("sentinel-1", &command);
    assert!(said.contains("NOAUTH"), "sentinel: {said}");
    let (_, users) = ask("rabbitmq-1", &["rabbitmqctl", "--silent", "list_users"]);
    let names: Vec<_> = users
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(
        names.contains(&"torc") && !names.contains(&"guest"),
        "rabbitmq: {users}"
    );
    let (let_in, said) = ask(
        "rabbitmq-1",
        &["rabbitmqctl", "authenticate_user", "torc", "torc"],
    );
    assert!(!let_in, "rabbitmq: {said}");
}

fn service(container: &Value) -> String {
    container["Config"]["Labels"]["com.docker.compose.service"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// What holds of every container, read off the running ones.
fn check_containers(stack: &Stack) {
    let mut published = BTreeSet::new();
    for container in stack.inspect() {
        let name = service(&container);
        let host = &container["HostConfig"];
        assert!(
            host["Memory"].as_u64() > Some(0),
            "{name} has no limit of memory"
        );
        assert!(
            host["NanoCpus"].as_u64() > Some(0),
            "{name} has no limit of processors"
        );
        assert!(
            host["PidsLimit"].as_i64() > Some(0),
            "{name} has no limit of processes"
        );
        assert_eq!(host["ReadonlyRootfs"], true, "{name} can write its image");
        let user = container["Config"]["User"].as_str().unwrap_or_default();
        assert!(
            !matches!(user.split(':').next(), Some("" | "0" | "root")),
            "{name} runs as root"
        );
        let image = container["Config"]["Image"].as_str().unwrap_or_default();
        let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
        assert!(
            !matches!(tag, "" | "latest"),
            "{name} has an image without a fixed tag: {image}"
        );
        if name == "pki" {
            assert_eq!(container["State"]["ExitCode"], 0, "{}", container["State"]);
        } else {
            assert_eq!(container["State"]["Health"]["Status"], "healthy", "{name}");
        }
        if check_reach(&name, &container) {
            published.insert(name.clone());
        }
        // What was made for this installation is in files, never in what anybody may inspect.
        for secret in fs::read_dir(docker_folder().join("secrets")).expect("the secrets") {
            let secret = fs::read_to_string(secret.expect("an entry").path()).expect("a secret");
            assert!(
                !container.to_string().contains(&secret),
                "{name} shows a secret"
            );
        }
    }
    published.remove("grafana"); // Where its image can be had.
    assert_eq!(published, ["nginx", "prometheus"].map(str::to_owned).into());
}

fn put(stack: &Stack, target: &str, value: &str) {
    let answer = http::send(
        stack.http,
        &Request::put(target, value.as_bytes()),
        ANSWER_MAX,
    )
    .unwrap_or_else(|error| panic!("PUT {target}: {error}"));
    assert_eq!(answer.status, 204, "PUT {target}: {}", answer.text());
}

/// Clients that read one key through Nginx until they are told to stop.
struct Readers {
    stop: Arc<AtomicBool>,
    read: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<Vec<String>>>,
}

impl Readers {
    fn start(stack: &Stack, target: &'static str, value: &'static str) -> Self {
        let (stop, read) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let threads = (0..4)
            .map(|_| {
                let (stop, read) = (Arc::clone(&stop), Arc::clone(&read));
                let address = stack.http;
                let mut client = Client::new(address, ANSWER_MAX);
                thread::spawn(move || {
                    let mut failures = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let request = Request::get(target);
                        let answer = match client.send(&request) {
                            // Nginx reloads as nodes come and go, and closes idle connections then: a
                            // request that meets the close is sent again on a new connection, as every
                            // HTTP client does (RFC 9112, section 9.3.1). Once.
                            Err(http::HttpError::Closed { so_far }) if so_far.is_empty() => {
                                http::send(address, &request, ANSWER_MAX)
                            }
                            answer => answer,
                        };
                        match answer {
                            Ok(answer)
                                if answer.status == 200 && answer.body == value.as_bytes() => {}
                            Ok(answer) => {
                                failures.push(format!("{} {}", answer.status, answer.text()));
                            }
                            Err(error) => failures.push(error.to_string()),
                        }
                        read.fetch_add(1, Ordering::Relaxed);
                    }
                    failures
                })
            })
            .collect();
        Self {
            stop,
            read,
            threads,
        }
    }

    fn wait(&self, more: usize) {
        let target = self.read.load(Ordering::Relaxed) + more;
        wait::until(&format!("{more} more reads"), READY_MAX, || {
            match self.read.load(Ordering::Relaxed) {
                now if now >= target => Ok(()),
                now => Err(format!("{now} of {target}")),
            }
        });
    }

    fn finish(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self
            .threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a reader"));
        let failures = failures.collect();
        (self.read.load(Ordering::Relaxed), failures)
    }
}

/// How many nodes Nginx knows.
fn wait_upstreams(nginx: &str, count: usize) {
    wait::until(&format!("nginx to know {count} nodes"), SEEN_MAX, || {
        let servers = docker(&["exec", nginx, "cat", "/tmp/torc/servers.conf"]);
        match servers.matches("server ").count() {
            now if now == count => Ok(()),
            _ => Err(servers),
        }
    });
}

fn a_node_is_killed_and_comes_back(stack: &Stack) {
    put(stack, "/kv/default/read%2Fme", "value");
    let readers = Readers::start(stack, "/kv/default/read%2Fme", "value");
    let (nginx, node) = (stack.container("nginx"), stack.container("node-2"));
    readers.wait(200);
    // As if it had died: Compose itself would start again what is stopped by anything else.
    docker(&["kill", &node]);
    readers.wait(200);
    wait_upstreams(&nginx, 2);
    put(stack, "/kv/default/while-it-is-away", "value");
    docker(&["start", &node]);
    wait_upstreams(&nginx, 3);
    readers.wait(200);
    let (read, failures) = readers.finish();
    assert!(
        failures.is_empty(),
        "{} of {read} GETs failed: {:?}",
        failures.len(),
        failures.first()
    );
    eprintln!("{read} GETs, none failed");
    wait::until("the node to be healthy again", SEEN_MAX, || {
        let state = docker(&["inspect", "--format", "{{.State.Health.Status}}", &node]);
        if state.trim() == "healthy" {
            Ok(())
        } else {
            Err(state)
        }
    });
}

/// The names of jobs of which every target answers.
fn wait_scraped(stack: &Stack, jobs: &[(&str, usize)]) {
    wait::until("prometheus to reach everything", SEEN_MAX, || {
        let answer = http::send(
            stack.prometheus,
            &Request::get("/api/v1/targets?state=active"),
            ANSWER_MAX,
        )
        .map_err(|error| error.to_string())?
        .json();
        let targets = answer["data"]["activeTargets"]
            .as_array()
            .ok_or("no targets")?;
        for (job, count) in jobs {
            let up = targets
                .iter()
                .filter(|target| target["labels"]["job"] == *job && target["health"] == "up");
            let up = up.count();
            if up != *count {
                return Err(format!("{job}: {up} of {count} are up: {answer}"));
            }
        }
        Ok(())
    });
}

/// Every replica of the write queue, on three brokers that are one cluster.
fn the_queue_is_on_three_brokers(stack: &Stack) {
    let broker = stack.container("rabbitmq-1");
    wait::until("a copy of the queue on each broker", SEEN_MAX, || {
        let columns = ["--silent", "name", "online"];
        let arguments = ["exec", &broker, "rabbitmqctl", "list_queues"];
        let listed = docker(&[&arguments[..], &columns[..]].concat());
        let writes = listed
            .lines()
            .find(|line| line.starts_with("torc.writes\t"));
        match writes.map_or(0, |line| line.matches("rabbit@").count()) {
            3 => Ok(()),
            _ => Err(listed),
        }
    });
}

/// Nginx, queue, worker, nodes, cache: they know each other.
fn a_write_goes_through_queue_worker_and_cache(stack: &Stack) {
    let ask = |request: &Request| {
        http::send(stack.http, request, ANSWER_MAX).map_err(|error| error.to_string())
    };
    wait::until("cache and queue of a node", SEEN_MAX, || {
        let health = ask(&Request::get("/health"))?.json();
        let parts = &health["components"];
        if parts["cache"]["status"] == "ok" && parts["queue"]["status"] == "ok" {
            Ok(())
        } else {
            Err(health.to_string())
        }
    });
    let put = Request::put("/kv", r#"{"data":{"key":"queued","value":"v"}}"#);
    let answer = ask(&put).unwrap_or_else(|error| panic!("PUT /kv: {error}"));
    assert_eq!(answer.status, 202, "{}", answer.text());
    wait::until("the queued write, from the cache", SEEN_MAX, || {
        let answer = ask(&Request::get("/kv?key=queued"))?;
        let data = &answer.json()["data"];
        if data["value"] == "v" && data["source"] == "cache" {
            Ok(())
        } else {
            Err(answer.text())
        }
    });
}

#[test]
fn every_profile_is_valid_for_either_version_of_compose() {
    if !has_engine() {
        return;
    }
    succeed(&mut Command::new(docker_folder().join("secrets.sh")));
    for profile in ["core", "full", "offline"] {
        let variables = format!("env/{profile}.env");
        let arguments = ["-f", "compose.yaml", "--env-file", &variables];
        let mut seen = Vec::new();
        for compose in Compose::all() {
            let ask = |what: &[&str]| {
                let mut command = compose.command();
                command.current_dir(docker_folder()).args(arguments);
                succeed(command.args(["--profile", profile, "config"]).args(what))
            };
            assert_eq!(ask(&["-q"]).trim(), "", "{compose:?} has something to say");
            let listed = ask(&["--services"]);
            let services: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
            assert!(services.contains("nginx"), "{compose:?}: {services:?}");
            seen.push(services);
        }
        // Version 1 lists them all, whatever the profile.
        if let [two, one] = &seen[..] {
            assert!(two.is_subset(one), "{seen:?}");
            assert!(profile != "full" || two == one, "{seen:?}");
        }
    }
}

#[test]
fn the_platform_gets_healthy_survives_a_node_and_leaves_nothing() {
    if !has_engine() {
        return;
    }
    let _alone = alone();
    let mut stack = Stack::new(Compose::Two.or_other());
    let busy = load_per_core();
    let said = stack.up("full");
    let seconds = said
        .lines()
        .find_map(|line| {
            line.strip_prefix("all healthy after ")?
                .split(' ')
                .next()?
                .parse::<u64>()
                .ok()
        })
        .unwrap_or_else(|| panic!("up.sh did not say how long it took: {said}"));
    eprintln!("all healthy after {seconds} s; {busy:.1} processes a core wanted to run before");
    // On a machine that is busy with other things the time says nothing about the platform.
    assert!(
        seconds <= HEALTHY_SECONDS_MAX || busy > 1.5,
        "healthy only after {seconds} s: {said}"
    );
    check_containers(&stack);
    nobody_gets_in_by_default(&stack);
    wait_scraped(
        &stack,
        &[
            ("torc", 3),
            ("torc-workers", 2),
            ("torc-autoscaler", 1),
            ("rabbitmq", 3),
            ("prometheus", 1),
        ],
    );
    the_queue_is_on_three_brokers(&stack);
    a_write_goes_through_queue_worker_and_cache(&stack);
    a_node_is_killed_and_comes_back(&stack);
    stack.down();
    assert_eq!(stack.left(), [""; 0]);
}
