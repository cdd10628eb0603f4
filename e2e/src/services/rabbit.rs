//! RabbitMQ: one broker, or a cluster of them on this machine.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{SERVICE_MAX, Service, program};
use crate::{ports, wait};

/// The scripts of the Debian package; the ones in `sbin` insist on the system's own user and folders.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

/// Brokers and the name server that they know each other by.
#[derive(Debug)]
pub struct Rabbit {
    folder: TempDir,
    epmd: SocketAddr,
    brokers: Vec<Broker>,
    // After the brokers.
    _names: Service,
}

#[derive(Debug)]
struct Broker {
    name: String,
    address: SocketAddr,
    distribution: SocketAddr,
    service: Option<Service>,
}

impl Rabbit {
    /// `count` brokers; more than one form a cluster. Waits until all accept connections.
    pub fn start(count: usize) -> Self {
        let folder = TempDir::with_prefix("torc-rabbit-")
            .unwrap_or_else(|error| panic!("make a folder for RabbitMQ: {error}"));
        let epmd = ports::free();
        let mut names = Command::new(program("epmd"));
        names.args(["-address", "127.0.0.1", "-port", &epmd.port().to_string()]);
        let names = Service::start("epmd", folder.path(), &names);
        // The nodes of a cluster have to share it, and Erlang insists on who may read it.
        let cookie = folder.path().join(".erlang.cookie");
        write_private(&cookie, "torcendtoendtests");
        let brokers = (1..=count)
            .map(|at| Broker {
                name: format!("torc{at}@localhost"),
                address: ports::free(),
                distribution: ports::free(),
                service: None,
            })
            .collect();
        let mut rabbit = Self {
            folder,
            epmd,
            brokers,
            _names: names,
        };
        for at in 0..count {
            rabbit.launch(at);
        }
        for at in 0..count {
            rabbit.wait(at);
        }
        rabbit
    }

    /// Addresses of the brokers, as the setting `queue.brokers` wants them.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.brokers.iter().map(|broker| broker.address).collect()
    }

    /// Starts a broker that does not run, on its old data, and waits until it accepts connections.
    pub fn restart(&mut self, at: usize) {
        self.launch(at);
        self.wait(at);
    }

    /// Stops a broker in order.
    ///
    /// RabbitMQ 3.10 writes down which quorum queues a broker has only after some minutes: a broker that is
    /// alone and is killed before that comes back with queues that never find a leader.
    pub fn stop(&mut self, at: usize) {
        if let Some(mut service) = self.brokers[at].service.take() {
            service.stop();
        }
    }

    /// Kills a broker. See [`Self::stop`] for one that is alone.
    pub fn kill(&mut self, at: usize) {
        if let Some(mut service) = self.brokers[at].service.take() {
            service.kill();
        }
    }

    /// Messages in a queue, ready and in work, as the broker counts them.
    pub fn messages(&self, queue: &str) -> Option<u64> {
        let columns = ["list_queues", "--silent", "name", "messages"];
        let listed = self.control(&columns)?;
        listed.lines().find_map(|line| {
            let (name, count) = line.split_once('\t')?;
            (name == queue).then(|| count.trim().parse().ok())?
        })
    }

    /// Runs `rabbitmqctl` on the first broker that runs; its output if it succeeds.
    pub fn control(&self, arguments: &[&str]) -> Option<String> {
        let at = self
            .brokers
            .iter()
            .position(|broker| broker.service.is_some())?;
        let mut command = Command::new(Path::new(SCRIPTS).join("rabbitmqctl"));
        self.environment(&mut command, at);
        let output = command.args(arguments).output().ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn launch(&mut self, at: usize) {
        let config = self.config(at);
        let mut command = Command::new(Path::new(SCRIPTS).join("rabbitmq-server"));
        self.environment(&mut command, at);
        // Then the script becomes the broker instead of starting it: one process to be ended.
        command.env("RUNNING_UNDER_SYSTEMD", "true");
        command.env("RABBITMQ_CONFIG_FILE", config);
        let name = self.brokers[at].name.clone();
        let service = Service::start(&name, self.folder.path(), &command);
        self.brokers[at].service = Some(service);
    }

    fn wait(&self, at: usize) {
        let broker = &self.brokers[at];
        wait::until(&broker.name, SERVICE_MAX, || {
            TcpStream::connect(broker.address).map(drop)
        });
    }

    fn config(&self, at: usize) -> PathBuf {
        let broker = &self.brokers[at];
        let mut text = format!(
            "listeners.tcp.1 = {}\nlog.console = true\nlog.console.level = warning\n\
             disk_free_limit.absolute = 50MB\n",
            broker.address
        );
        if self.brokers.len() > 1 {
            text += "cluster_formation.peer_discovery_backend = classic_config\n";
            for (number, other) in self.brokers.iter().enumerate() {
                let _ = writeln!(
                    text,
                    "cluster_formation.classic_config.nodes.{} = {}",
                    number + 1,
                    other.name
                );
            }
        }
        let path = self.folder.path().join(format!("rabbit-{at}.conf"));
        fs::write(&path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        path
    }

    fn environment(&self, command: &mut Command, at: usize) {
        let (broker, folder) = (&self.brokers[at], self.folder.path());
        command
            .env("HOME", folder)
            .env("ERL_EPMD_PORT", self.epmd.port().to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", &broker.name)
            .env("RABBITMQ_DIST_PORT", broker.distribution.port().to_string())
            .env("RABBITMQ_MNESIA_BASE", folder.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_GENERATED_CONFIG_DIR", folder.join("generated"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("plugins"))
            .env("RABBITMQ_CONF_ENV_FILE", folder.join("none"))
            .env("RABBITMQ_PID_FILE", folder.join(format!("{at}.pid")))
            // Schedulers that spin while they wait would take the processor from what is tested.
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
            );
    }
}

fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o400)))
        .unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
}
