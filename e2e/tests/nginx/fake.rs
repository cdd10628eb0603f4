//! Nodes that misbehave on purpose, and count what they were asked.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Reads the request, then closes without an answer, like a node that is killed in the middle.
    Drops,
    /// 503, with its own port in the body.
    Refuses,
    /// 200, with its own port in the body.
    Answers,
}

pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    pub(crate) fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        // Lives as long as the test process; it holds nothing but its port.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&seen);
                thread::spawn(move || serve(stream, manner, address.port(), &seen));
            }
        });
        Self { address, asked }
    }

    /// The request lines that have arrived since the last call.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().expect("nobody panics here"))
    }
}

fn serve(mut stream: TcpStream, manner: Manner, port: u16, seen: &Mutex<Vec<String>>) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
    let mut bytes = Vec::new();
    let mut block = [0; 4096];
    // Requests of this test have bodies of a few bytes, which arrive with the head or just after it.
    while !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut block) {
            Ok(0) | Err(_) => return,
            Ok(length) => bytes.extend_from_slice(&block[..length]),
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let line = text.lines().next().unwrap_or_default().to_owned();
    seen.lock().expect("nobody panics here").push(line);
    let status = match manner {
        Manner::Drops => return,
        Manner::Refuses => "503 Service Unavailable",
        Manner::Answers => "200 OK",
    };
    let body = port.to_string();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(answer.as_bytes());
}
