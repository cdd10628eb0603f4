//! Redis: one server, or a master with replicas and sentinels.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{SERVICE_MAX, Service, program};
use crate::{ports, wait};

const ANSWER_MAX: Duration = Duration::from_secs(5);
/// What sentinels want to be told first.
const SENTINEL_PASSWORD: &str = "of-the-sentinels";

/// One Redis server.
#[derive(Debug)]
pub struct Redis {
    /// Where it listens.
    pub address: SocketAddr,
    /// The process.
    pub service: Service,
}

impl Redis {
    /// Starts a server in the folder, a replica of `master` if one is given, and waits until it answers.
    pub fn start(folder: &Path, master: Option<SocketAddr>) -> Self {
        Self::start_at(folder, ports::free(), master)
    }

    /// The same at a known address, as after a crash.
    pub fn start_at(folder: &Path, address: SocketAddr, master: Option<SocketAddr>) -> Self {
        let name = format!("redis-{}", address.port());
        let mut command = Command::new(program("redis-server"));
        command.args(["--port", &address.port().to_string()]);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        // Servers share the folder, but not what they have received from their master.
        command.args(["--dbfilename", &format!("{name}.rdb")]);
        command
            .args(["--repl-diskless-sync-delay", "0", "--dir"])
            .arg(folder);
        if let Some(master) = master {
            command.args(["--replicaof", "127.0.0.1", &master.port().to_string()]);
        }
        let redis = Self {
            address,
            service: Service::start(&name, folder, &command),
        };
        wait::until(&name, SERVICE_MAX, || match ask(address, &["PING"]) {
            Ok(answer) if answer.starts_with("+PONG") => Ok(()),
            Ok(answer) => Err(answer),
            Err(error) => Err(error.to_string()),
        });
        redis
    }

    /// Has it do something; the answer in Redis' own protocol.
    #[track_caller]
    pub fn ask(&self, command: &[&str]) -> String {
        ask(self.address, command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }
}

/// A master, replicas, and sentinels that watch them.
#[derive(Debug)]
pub struct Sentinels {
    /// The servers; the first one is the master at first.
    pub servers: Vec<Redis>,
    /// Where the sentinels listen.
    pub addresses: Vec<SocketAddr>,
    watchers: Vec<Service>,
    folder: PathBuf,
}

/// Starts a sentinel on the configuration that it keeps itself.
fn watch(folder: &Path, address: SocketAddr) -> Service {
    let name = format!("sentinel-{}", address.port());
    let mut command = Command::new(program("redis-sentinel"));
    command.arg(folder.join(format!("{name}.conf")));
    Service::start(&name, folder, &command)
}

impl Sentinels {
    /// One master, two replicas and three sentinels, which know it as `torc`, and agree.
    pub fn start(folder: &Path) -> Self {
        let master = Redis::start(folder, None);
        let at = master.address;
        let mut servers = vec![master];
        servers.extend((0..2).map(|_| Redis::start(folder, Some(at))));
        let addresses: Vec<_> = (0..3).map(|_| ports::free()).collect();
        let port = at.port();
        let watchers = addresses
            .iter()
            .map(|address| {
                let name = format!("sentinel-{}", address.port());
                let path = folder.join(format!("{name}.conf"));
                let text = format!(
                    "port {}\nbind 127.0.0.1\ndir {}\nrequirepass {SENTINEL_PASSWORD}\n\
                     sentinel monitor torc 127.0.0.1 {port} 2\nsentinel down-after-milliseconds torc 1000\nsentinel failover-timeout torc 5000\n",
                    address.port(),
                    folder.display()
                );
                fs::write(&path, text)
                    .unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
                watch(folder, *address)
            })
            .collect();
        let all = Self {
            servers,
            addresses,
            watchers,
            folder: folder.to_owned(),
        };
        all.wait_agreed();
        all
    }

    /// What nodes are told of them: keys of the section `[cache]`.
    pub fn config(&self) -> String {
        let password = self.folder.join("sentinel-password");
        fs::write(&password, SENTINEL_PASSWORD)
            .unwrap_or_else(|error| panic!("write {}: {error}", password.display()));
        let addresses: Vec<_> = self
            .addresses
            .iter()
            .map(|address| format!("\"{address}\""))
            .collect();
        format!(
            "sentinels = [{}]\nsentinel_password_file = \"{}\"\n",
            addresses.join(", "),
            password.display()
        )
    }

    fn wait_agreed(&self) {
        for &address in &self.addresses {
            let command = ["SENTINEL", "CKQUORUM", "torc"];
            wait::until("the sentinels' quorum", SERVICE_MAX, || match ask_sentinel(
                address, &command,
            ) {
                Ok(answer) if answer.contains("3 usable") => Ok(()),
                Ok(answer) => Err(answer),
                Err(error) => Err(error.to_string()),
            });
        }
        wait::until("two replicas", SERVICE_MAX, || {
            let info = self.servers[0].ask(&["INFO", "replication"]);
            let online = info.matches("state=online").count();
            if online == 2 { Ok(()) } else { Err(info) }
        });
    }

    /// Port of the server that most sentinels call the master.
    pub fn master_port(&self) -> Option<u16> {
        let command = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "torc"];
        let ports: Vec<u16> = self
            .addresses
            .iter()
            .filter_map(|&address| ask_sentinel(address, &command).ok())
            .filter_map(|answer| answer.lines().last()?.trim().parse().ok())
            .collect();
        ports
            .iter()
            .copied()
            .max_by_key(|port| ports.iter().filter(|other| *other == port).count())
    }

    /// Kills every sentinel.
    pub fn kill_sentinels(&mut self) {
        self.watchers.iter_mut().for_each(Service::kill);
    }

    /// Starts the sentinels again, with what they knew.
    pub fn restart_sentinels(&mut self) {
        self.watchers = self
            .addresses
            .iter()
            .map(|address| watch(&self.folder, *address))
            .collect();
    }
}

/// One command to a server; the whole of its answer (errors too) as text.
///
/// # Errors
/// When it does not answer.
pub fn ask(address: SocketAddr, command: &[&str]) -> std::io::Result<String> {
    send(address, &encoded(command))
}

/// The same to a sentinel, which wants its password first.
fn ask_sentinel(address: SocketAddr, command: &[&str]) -> std::io::Result<String> {
    let login = encoded(&["AUTH", SENTINEL_PASSWORD]);
    let answer = send(address, &[login, encoded(command)].concat())?;
    let answer = answer.strip_prefix("+OK\r\n").map(str::to_owned);
    answer.ok_or_else(|| std::io::Error::other("the password was refused"))
}

fn encoded(command: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for word in command {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}

fn send(address: SocketAddr, bytes: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.write_all(bytes)?;
    // It answers what it was asked, and closes then.
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
