//! Ports that stay ours: a node that is killed and started again must get its old ports back.
//!
//! A port found by binding port 0 lies in the range from which the kernel also takes the ports of
//! outgoing connections, so a client of this very test could take it while the node is down. Ports
//! are therefore taken from below that range, in blocks; a lock on a file keeps other test processes
//! out of the block for as long as this process lives.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

const FIRST: u16 = 12_000;
const BLOCKS: u16 = 100;
const BLOCK: u16 = 200;

struct Block {
    next: u16,
    end: u16,
    /// Held, not read: the lock on it is what reserves the block.
    _lock: File,
}

static BLOCK_IN_USE: Mutex<Option<Block>> = Mutex::new(None);

/// A loopback address whose port is free for TCP and UDP now and that nobody else will be given.
pub fn free() -> SocketAddr {
    let mut held = BLOCK_IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let block = held.get_or_insert_with(reserve);
        if block.next == block.end {
            *held = Some(reserve());
            continue;
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, block.next));
        block.next += 1;
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

fn reserve() -> Block {
    let folder = std::env::temp_dir().join("torc-e2e-ports");
    fs::create_dir_all(&folder)
        .unwrap_or_else(|error| panic!("create {}: {error}", folder.display()));
    // Different processes begin at different blocks, so that a port is not used again at once.
    let begin = (std::process::id() % u32::from(BLOCKS)) as u16;
    for block in (0..BLOCKS).map(|offset| (begin + offset) % BLOCKS) {
        let path = folder.join(block.to_string());
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
        match file.try_lock() {
            Ok(()) => {
                let next = FIRST + block * BLOCK;
                return Block {
                    next,
                    end: next + BLOCK,
                    _lock: file,
                };
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => panic!("lock {}: {error}", path.display()),
        }
    }
    panic!("all {BLOCKS} port blocks are in use; do that many tests really run at a time?");
}
