//! Random bytes that look more or less like HTTP. The node must neither end nor hang.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use torc_e2e::alone;
use torc_e2e::http::{Connection, HttpError, Request};
use torc_e2e::workload::{Random, is_long, seed};

use super::{ANSWER_MAX, assert_still_serves, one_node, tables};

const THREADS: usize = 4;
/// Block cache, memtables and the rest of a node that has seen little data.
const RESIDENT_BYTES_MAX: f64 = 256.0 * 1024.0 * 1024.0;

/// Pieces from which requests are put together; most of what is interesting hides at their borders.
const PIECES: &[&[u8]] = &[
    b"GET ",
    b"PUT ",
    b"HEAD ",
    b"DELETE ",
    b"POST ",
    b"/kv/default/",
    b"/kv/default",
    b"/kv?key=",
    b"_batch",
    b"?r=",
    b"?w=",
    b"&ttl=",
    b"%",
    b"%00",
    b"%ff",
    b"k",
    b" HTTP/1.1",
    b" HTTP/1.0",
    b" HTTP/2.0",
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"host: t",
    b"content-length: ",
    b"content-length: 0",
    b"content-length: 18446744073709551616",
    b"transfer-encoding: chunked",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"range: bytes=",
    b"0-4",
    b"-5",
    b",",
    b"\"",
    b"*",
    b"if-none-match: ",
    b"if-match: ",
    b"accept: ",
    b"application/json",
    b"x-torc-context: ",
    b"expect: 100-continue",
    b"connection: close",
    b"connection: upgrade",
    b"upgrade: h2c",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\0",
    b"\xff",
    b"{\"op\":\"put\",\"key\":\"k\",\"value\":\"v\"}\n",
    b"{\"data\":",
    b"[[[[[[[[[[",
    b"\x00\x00\x04\x08\x00\x00\x00\x00\x00",
];

fn draw(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    match random.below(4) {
        0 => (0..random.below(300))
            .map(|_| random.next_u64() as u8)
            .collect(),
        1 => (0..=random.below(30))
            .flat_map(|_| PIECES[random.below(PIECES.len())].to_vec())
            .collect(),
        _ => {
            let one = corpus[random.below(corpus.len())].clone();
            mutate(random, one)
        }
    }
}

fn mutate(random: &mut Random, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next_u64() as u8,
            2 => bytes.truncate(at),
            3 => {
                let piece = PIECES[random.below(PIECES.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
            4 if at < bytes.len() => {
                let end = (at + random.below(20)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let copy = bytes[at..(at + random.below(40)).min(bytes.len())].to_vec();
                bytes.splice(at..at, copy);
            }
        }
    }
    bytes
}

fn corpus() -> Vec<Vec<u8>> {
    let batch = Request::new("POST", "/kv/default/_batch")
        .header("content-type", "application/x-ndjson")
        .body("{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"}\n{\"op\":\"get\",\"key\":\"a\"}\n");
    let mut corpus: Vec<Vec<u8>> = [
        Request::get("/kv/default/here"),
        Request::get("/kv/default/here?r=quorum&deadline=1s").header("range", "bytes=1-4"),
        Request::new("HEAD", "/kv/default/here"),
        Request::put("/kv/default/fuzz?w=one&ttl=10s", "value")
            .header("content-type", "text/plain"),
        Request::delete("/kv/default/fuzz?w=all"),
        Request::get("/kv/default?prefix=f&limit=10"),
        Request::get("/kv/default?limit=3").header("accept", "application/x-ndjson"),
        batch,
        Request::put("/kv", "{\"data\":{\"key\":\"k\",\"value\":\"v\"}}"),
        Request::get("/kv?key=k"),
        Request::get("/health/ready"),
    ]
    .iter()
    .map(Request::encode)
    .collect();
    corpus.push(
        b"PUT /kv/default/fuzz HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec(),
    );
    corpus.extend(tables::malformed().into_iter().map(|case| case.bytes));
    corpus
}

/// Sends some bytes. Mostly it says that this was all and waits for the other side to close; else it
/// waits a moment for an answer and is gone without a word.
fn poke(address: SocketAddr, bytes: &[u8], is_polite: bool) -> Result<(), HttpError> {
    let mut connection = Connection::open(address, ANSWER_MAX)?;
    // The node may close as soon as it has seen enough.
    let _ = connection.send(bytes);
    if !is_polite {
        let _ = connection.receive(false, Duration::from_millis(20));
        return Ok(());
    }
    connection.finish_sending();
    connection.receive_until_closed(ANSWER_MAX).map(drop)
}

#[test]
fn ten_thousand_random_requests_neither_end_nor_hang_the_node() {
    let _alone = alone();
    let each = if is_long() { 250_000 } else { 2_500 };
    let cluster = one_node();
    let node = &cluster.nodes[0];
    let files = node
        .metric("process_open_fds", &[])
        .expect("metrics")
        .expect("open files");
    let (pid, address, seed) = (node.pid(), node.http, seed());
    let corpus = corpus();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let corpus = &corpus;
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_add(thread as u64));
                for number in 0..each {
                    let bytes = draw(&mut random, corpus);
                    if let Err(error) = poke(address, &bytes, number % 8 != 0) {
                        let shown = bytes.escape_ascii();
                        panic!("seed {seed}, thread {thread}, number {number}: {error}\n{shown}");
                    }
                }
            });
        }
    });
    assert_still_serves(node, pid);
    // Nothing is kept of all this: no connection, and no more memory than caches may take.
    node.wait_metric("process_open_fds", &[], |open| open <= files + 16.0);
    node.wait_metric("process_resident_memory_bytes", &[], |bytes| {
        bytes < RESIDENT_BYTES_MAX
    });
}
