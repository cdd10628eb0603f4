//! A bad network in user space: a UDP proxy in front of each node's peer port that delays, loses,
//! duplicates, reorders and cuts, each direction of each pair of nodes on its own.
//!
//! Every node advertises the address of its proxy. What node `i` sends to node `j` therefore reaches
//! proxy `j`, which knows `i` by the port that it sends from, and goes on to `j` from a socket that
//! stands for `i`; answers take the same way back. Nobody but the proxies talks to a node. What a
//! datagram meets is drawn from the proxy's seed, but threads race: a seed repeats the odds, not the run.

use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{cmp, io};

use crate::ports;
use crate::workload::Random;

/// Datagrams that wait for their time; beyond this they are lost, as in a full router.
const WAITING_MAX: usize = 20_000;
/// How often a thread without traffic looks whether it should end.
const LOOK: Duration = Duration::from_millis(100);
const DATAGRAM_MAX: usize = 65_536;

/// What one direction between two nodes does to datagrams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// Nothing passes.
    pub cut: bool,
    /// Of 1,000 datagrams, this many are lost.
    pub lost: u32,
    /// Of 1,000 datagrams, this many arrive twice.
    pub doubled: u32,
    /// Each datagram waits for at least this long, in microseconds.
    pub delay_us: u64,
    /// And up to this much longer, each on its own: later ones overtake.
    pub jitter_us: u64,
}

/// What has been done to datagrams so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Sent on, doubles included.
    pub forwarded: u64,
    /// Lost by the dice or by a full queue.
    pub lost: u64,
    /// Sent twice.
    pub doubled: u64,
    /// Sent on after one that had arrived later.
    pub overtaken: u64,
    /// Stopped by a cut.
    pub cut: u64,
}

/// The proxies of all nodes.
#[derive(Debug)]
pub struct Network {
    shared: Arc<Shared>,
    fronts: Vec<SocketAddr>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    nodes: Vec<SocketAddr>,
    links: Mutex<Vec<Link>>,
    random: Mutex<Random>,
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    stop: AtomicBool,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    forwarded: AtomicU64,
    lost: AtomicU64,
    doubled: AtomicU64,
    overtaken: AtomicU64,
    cut: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    heap: BinaryHeap<Datagram>,
    next: u64,
}

/// A datagram that waits; the greatest one is due first.
#[derive(Debug)]
struct Datagram {
    due: Instant,
    number: u64,
    bytes: Vec<u8>,
    from: Arc<UdpSocket>,
    to: SocketAddr,
}

impl PartialEq for Datagram {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Datagram {}

impl PartialOrd for Datagram {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Datagram {
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

impl Network {
    /// Starts the proxies of nodes that listen at `nodes`; nothing is wrong with any link yet.
    pub fn start(nodes: &[SocketAddr], seed: u64) -> Self {
        let size = nodes.len();
        let shared = Arc::new(Shared {
            nodes: nodes.to_vec(),
            links: Mutex::new(vec![Link::default(); size * size]),
            random: Mutex::new(Random(seed)),
            waiting: Mutex::default(),
            arrived: Condvar::new(),
            stop: AtomicBool::new(false),
            counts: Counts::default(),
        });
        let mut network = Self {
            shared: Arc::clone(&shared),
            fronts: Vec::new(),
            threads: vec![thread::spawn(move || shared.deliver())],
        };
        for to in 0..size {
            network.start_front(to);
        }
        network
    }

    fn start_front(&mut self, to: usize) {
        let address = ports::free();
        let front = Arc::new(bound(address));
        self.fronts.push(address);
        let standing_for: Vec<Arc<UdpSocket>> = (0..self.shared.nodes.len())
            .map(|_| Arc::new(bound((Ipv4Addr::LOCALHOST, 0).into())))
            .collect();
        for (from, socket) in standing_for
            .iter()
            .enumerate()
            .filter(|(from, _)| *from != to)
        {
            let (shared, socket, front) = (
                Arc::clone(&self.shared),
                Arc::clone(socket),
                Arc::clone(&front),
            );
            // Answers: `to` speaks to the socket that stands for `from`.
            self.threads.push(thread::spawn(move || {
                shared.receive(&socket, |source| {
                    (source == shared.nodes[to]).then(|| (to, from, Arc::clone(&front)))
                });
            }));
        }
        let shared = Arc::clone(&self.shared);
        self.threads.push(thread::spawn(move || {
            shared.receive(&front, |source| {
                let from = shared.nodes.iter().position(|node| *node == source)?;
                (from != to).then(|| (from, to, Arc::clone(&standing_for[from])))
            });
        }));
    }

    /// Where the proxy of that node listens; the node has to advertise this address.
    pub fn front(&self, node: usize) -> SocketAddr {
        self.fronts[node]
    }

    /// Changes one direction.
    pub fn set(&self, from: usize, to: usize, link: Link) {
        let at = from * self.fronts.len() + to;
        lock(&self.shared.links)[at] = link;
    }

    /// Changes every direction.
    pub fn set_all(&self, link: Link) {
        lock(&self.shared.links).fill(link);
    }

    /// What has been done so far, over all links.
    pub fn passed(&self) -> Passed {
        let counts = &self.shared.counts;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Passed {
            forwarded: of(&counts.forwarded),
            lost: of(&counts.lost),
            doubled: of(&counts.doubled),
            overtaken: of(&counts.overtaken),
            cut: of(&counts.cut),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Takes datagrams from `socket` until the network stops. `route` knows which nodes one is from and
    /// for, and the socket that it goes on from; what it does not know comes from no node.
    fn receive(
        &self,
        socket: &UdpSocket,
        route: impl Fn(SocketAddr) -> Option<(usize, usize, Arc<UdpSocket>)>,
    ) {
        let mut buffer = vec![0; DATAGRAM_MAX];
        while !self.stop.load(Ordering::Relaxed) {
            // Refusals of a port whose node is dead come back as errors: as good as nothing received.
            if let Ok((len, source)) = socket.recv_from(&mut buffer)
                && let Some((from, to, via)) = route(source)
            {
                self.pass((from, to), &buffer[..len], &via);
            }
        }
    }

    fn pass(&self, (from, to): (usize, usize), bytes: &[u8], via: &Arc<UdpSocket>) {
        let link = lock(&self.links)[from * self.nodes.len() + to];
        if link.cut {
            self.counts.cut.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let (lost, doubled, waits) = {
            let mut random = lock(&self.random);
            let mut wait = || {
                let more = random.below(link.jitter_us as usize + 1) as u64;
                Duration::from_micros(link.delay_us + more)
            };
            let waits = [wait(), wait()];
            let lost = (random.below(1_000) as u32) < link.lost;
            (lost, (random.below(1_000) as u32) < link.doubled, waits)
        };
        if lost {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if doubled {
            self.counts.doubled.fetch_add(1, Ordering::Relaxed);
        }
        let copies = if doubled { 2 } else { 1 };
        for wait in &waits[..copies] {
            if wait.is_zero() {
                self.send(via, bytes, self.nodes[to]);
            } else {
                self.wait(Instant::now() + *wait, bytes, via, self.nodes[to]);
            }
        }
    }

    fn wait(&self, due: Instant, bytes: &[u8], via: &Arc<UdpSocket>, to: SocketAddr) {
        let mut waiting = lock(&self.waiting);
        if waiting.heap.len() >= WAITING_MAX {
            drop(waiting);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.heap.push(Datagram {
            due,
            number,
            bytes: bytes.to_vec(),
            from: Arc::clone(via),
            to,
        });
        drop(waiting);
        self.arrived.notify_one();
    }

    /// Sends what waited when its time has come.
    fn deliver(&self) {
        let mut newest_sent = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let waiting = lock(&self.waiting);
            let now = Instant::now();
            let due = waiting.heap.peek().map(|first| first.due);
            let mut waiting = match due {
                Some(due) if due <= now => waiting,
                _ => {
                    let pause = due.map_or(LOOK, |due| (due - now).min(LOOK));
                    let woken = self.arrived.wait_timeout(waiting, pause);
                    drop(woken);
                    continue;
                }
            };
            let Some(datagram) = waiting.heap.pop() else {
                continue;
            };
            drop(waiting);
            if datagram.number < newest_sent {
                self.counts.overtaken.fetch_add(1, Ordering::Relaxed);
            }
            newest_sent = newest_sent.max(datagram.number);
            self.send(&datagram.from, &datagram.bytes, datagram.to);
        }
    }

    fn send(&self, from: &UdpSocket, bytes: &[u8], to: SocketAddr) {
        // A dead node's port refuses; that is what a network is like.
        if from.send_to(bytes, to).is_ok() {
            self.counts.forwarded.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn bound(address: SocketAddr) -> UdpSocket {
    let open = || -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(LOOK))?;
        Ok(socket)
    };
    open().unwrap_or_else(|error| panic!("bind {address} for a proxy: {error}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Network, [UdpSocket; 2]) {
        let sockets = [(); 2].map(|()| bound(ports::free()));
        let nodes = [0, 1].map(|at: usize| sockets[at].local_addr().expect("bound"));
        (Network::start(&nodes, 7), sockets)
    }

    /// How many of `count` datagrams from node 0 arrive at node 1, and whether in order.
    fn arriving(network: &Network, sockets: &[UdpSocket; 2], count: u32) -> (u32, bool) {
        let before = network.passed();
        for number in 0..count {
            sockets[0]
                .send_to(&number.to_be_bytes(), network.front(1))
                .expect("send");
        }
        let handled = || {
            let now = network.passed();
            let fates = [
                now.forwarded - before.forwarded,
                now.lost - before.lost,
                now.cut - before.cut,
            ];
            // What is sent twice is one that was handled; its second sending is counted last.
            (fates.iter().sum::<u64>() + before.doubled).saturating_sub(now.doubled)
        };
        crate::wait::until(
            "the proxy to handle it all",
            crate::cluster::READY_MAX,
            || match handled() {
                all if all >= u64::from(count) => Ok(()),
                some => Err(some),
            },
        );
        let (mut buffer, mut seen, mut last, mut ordered) = ([0; 4], 0, 0, true);
        while let Ok((len, _)) = sockets[1].recv_from(&mut buffer) {
            assert_eq!(len, 4);
            let number = u32::from_be_bytes(buffer);
            ordered &= number >= last;
            last = number;
            seen += 1;
        }
        (seen, ordered)
    }

    #[test]
    fn what_one_node_sends_arrives_at_the_other_and_answers_come_back_the_same_way() {
        let (network, sockets) = pair();
        assert_eq!(arriving(&network, &sockets, 50), (50, true));
        sockets[0].send_to(b"ping", network.front(1)).expect("send");
        let mut buffer = [0; 16];
        let (len, from) = sockets[1].recv_from(&mut buffer).expect("the ping");
        assert_eq!(&buffer[..len], b"ping");
        sockets[1].send_to(b"pong", from).expect("answer");
        let (len, from) = sockets[0].recv_from(&mut buffer).expect("the pong");
        assert_eq!((&buffer[..len], from), (&b"pong"[..], network.front(1)));
    }

    #[test]
    fn a_cut_stops_one_direction_and_leaves_the_other() {
        let (network, sockets) = pair();
        let cut = Link {
            cut: true,
            ..Link::default()
        };
        network.set(0, 1, cut);
        assert_eq!(arriving(&network, &sockets, 20), (0, true));
        sockets[1].send_to(b"back", network.front(0)).expect("send");
        let mut buffer = [0; 16];
        sockets[0]
            .recv_from(&mut buffer)
            .expect("the other direction");
        network.set_all(Link::default());
        assert_eq!(arriving(&network, &sockets, 20), (20, true));
    }

    #[test]
    fn datagrams_are_lost_doubled_and_overtaken_at_the_odds_that_were_set() {
        let (network, sockets) = pair();
        let bad = Link {
            lost: 300,
            doubled: 200,
            delay_us: 500,
            jitter_us: 5_000,
            ..Link::default()
        };
        network.set(0, 1, bad);
        let mut seen = 0;
        for _ in 0..10 {
            let (arrived, _) = arriving(&network, &sockets, 100);
            seen += u64::from(arrived);
        }
        let passed = network.passed();
        assert_eq!(seen, passed.forwarded, "{passed:?}");
        assert_eq!(passed.forwarded + passed.lost, 1_000 + passed.doubled);
        assert!((200..400).contains(&passed.lost), "{passed:?}");
        assert!((80..200).contains(&passed.doubled), "{passed:?}");
        assert!(passed.overtaken > 50, "{passed:?}");
    }
}
