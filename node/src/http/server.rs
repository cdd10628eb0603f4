//! Two listeners, their connections, and how they stop.
//!
//! HTTP/1.1 and HTTP/2 with prior knowledge on the same port. What hyper decides alone: an HTTP/2 client
//! that breaks the protocol is told so by frames, not by a document (a header list above its limit gets a
//! bare 431), and a malformed head that follows another request whose answer the client does not take gets
//! hyper's own bare line.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::conn::{Conn, Guarded, Health};
use super::{Facade, Guard, Side, problem, router};
use crate::config::Limits;
use crate::handle::Handle;
use crate::metrics::Shed;

/// An idle connection is closed after this long; longer than what proxies keep theirs for.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// How long a closing socket waits for its peer to have read the last answer.
const LINGER: Duration = Duration::from_secs(1);
/// Refusals of connections that may linger at a time; beyond it they are dropped without a word.
const REFUSALS_MAX: usize = 64;
/// Streams of one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;

/// Why the facade does not start.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {address} for the {listener} listener: {source}; choose another address with --{flag}"
    )]
    Bind {
        /// `data` or `admin`.
        listener: &'static str,
        /// The flag that sets the address.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// Where the facade listens; differs from the settings where they say port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoundAddresses {
    /// Data listener.
    pub http: SocketAddr,
    /// Admin listener.
    pub admin: SocketAddr,
}

/// The running facade.
#[derive(Debug)]
pub struct Servers {
    /// Where it listens.
    pub addresses: BoundAddresses,
    /// Ends when both listeners have stopped and their connections are closed, at the latest
    /// `limits.shutdown` after the stop.
    pub done: JoinHandle<()>,
}

/// Binds both listeners and serves until `stop` is true or its sender is gone. Then no connection is
/// accepted any more, requests in work are finished, and at `limits.shutdown` what is left is cut off.
///
/// # Errors
/// When an address cannot be listened on.
pub async fn serve(handle: Handle, stop: watch::Receiver<bool>) -> Result<Servers, HttpError> {
    let settings = handle.settings();
    let data = bind("data", "http", settings.http).await?;
    let admin = bind("admin", "admin", settings.admin).await?;
    let addresses = BoundAddresses {
        http: data.1,
        admin: admin.1,
    };
    let facade = Arc::new(Facade::new(handle));
    let data = tokio::spawn(listen(
        data.0,
        Side::Data,
        Arc::clone(&facade),
        stop.clone(),
    ));
    let admin = tokio::spawn(listen(admin.0, Side::Admin, facade, stop));
    let done = tokio::spawn(async move {
        // A listener that panicked has said so; the other one still ends in order.
        let _ = data.await;
        let _ = admin.await;
    });
    Ok(Servers { addresses, done })
}

async fn bind(
    listener: &'static str,
    flag: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), HttpError> {
    let fail = |source| HttpError::Bind {
        listener,
        flag,
        address,
        source,
    };
    let socket = TcpListener::bind(address).await.map_err(fail)?;
    let bound = socket.local_addr().map_err(fail)?;
    Ok((socket, bound))
}

/// Counts something that is open, and one less when it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn below(count: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        if count.fetch_add(1, Ordering::Relaxed) >= limit {
            count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self(Arc::clone(count)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn listen(
    socket: TcpListener,
    side: Side,
    facade: Arc<Facade>,
    mut stop: watch::Receiver<bool>,
) {
    let limits = &facade.handle.settings().limits;
    let open = Arc::new(AtomicUsize::new(0));
    let refusals = Arc::new(AtomicUsize::new(0));
    // Every connection holds a sender; when the last one is gone, so are they all.
    let (alive, mut all_gone) = mpsc::channel::<Infallible>(1);
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            accepted = socket.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, for one: without a pause this loop would take a whole core.
                tracing::warn!(%error, "cannot accept a connection; pausing for 50 ms");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Where Nagle's algorithm cannot be turned off, answers are merely slower.
        let _ = stream.set_nodelay(true);
        let Some(counted) = Counted::below(&open, limits.connections) else {
            facade.handle.metrics().on_shed(Shed::Connections);
            refuse(
                stream,
                Counted::below(&refusals, REFUSALS_MAX),
                limits.connections,
            );
            continue;
        };
        let (facade, stop, alive) = (Arc::clone(&facade), stop.clone(), alive.clone());
        facade
            .handle
            .metrics()
            .on_connections(side == Side::Admin, 1);
        tokio::spawn(async move {
            connection(stream, side, &facade, stop).await;
            facade
                .handle
                .metrics()
                .on_connections(side == Side::Admin, -1);
            drop((counted, alive));
        });
    }
    drop((socket, alive));
    // Connections cut themselves off at the deadline; the margin is for a machine that is very busy.
    let _ = timeout(
        limits.shutdown + LINGER + Duration::from_secs(1),
        all_gone.recv(),
    )
    .await;
}

/// Accepted, told that it is one too many, and closed: better than a connection that hangs in the backlog.
fn refuse(stream: TcpStream, lingering: Option<Counted>, limit: usize) {
    let Some(lingering) = lingering else { return };
    tokio::spawn(async move {
        let io = Guarded::new(stream, Arc::new(Conn::new()), 0);
        io.close(Some(problem::for_connection_limit(limit)), LINGER)
            .await;
        drop(lingering);
    });
}

/// Waits until the node is to stop, or whoever could say so is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// hyper is through with it, for better or worse.
    Done,
    /// A head took too long.
    HeadTooSlow,
    /// The peer takes nothing, or the node stops.
    Cut,
}

async fn connection(
    stream: TcpStream,
    side: Side,
    facade: &Arc<Facade>,
    mut stop: watch::Receiver<bool>,
) {
    let limits = &facade.handle.settings().limits;
    let conn = Arc::new(Conn::new());
    let mut io = Guarded::new(stream, Arc::clone(&conn), limits.header_bytes);
    let http2 = tokio::select! {
        biased;
        () = stopped(&mut stop) => return,
        sniffed = timeout(limits.header_timeout, io.speaks_http2()) => match sniffed {
            Ok(Ok(http2)) => http2,
            Ok(Err(_)) => return,
            Err(_) if io.is_silent() => return,
            Err(_) => return io.close(Some(problem::for_slow_head(limits.header_timeout)), LINGER).await,
        },
    };
    let requests = service_fn(|request| {
        let guard = Guard::new(Arc::clone(facade), Arc::clone(&conn));
        async move { Ok::<_, Infallible>(router::serve(guard, side, request).await) }
    });
    let mut watched = Watched {
        conn: &conn,
        limits,
        stop,
    };
    let end = if http2 {
        let served = http2_builder(limits).serve_connection(TokioIo::new(&mut io), requests);
        tokio::pin!(served);
        watched
            .drive(served, http2::Connection::graceful_shutdown)
            .await
    } else {
        let served = http1_builder(limits).serve_connection(TokioIo::new(&mut io), requests);
        tokio::pin!(served);
        watched
            .drive(served, http1::Connection::graceful_shutdown)
            .await
    };
    match end {
        End::HeadTooSlow => {
            io.close(Some(problem::for_slow_head(limits.header_timeout)), LINGER)
                .await;
        }
        End::Done if !io.at_eof() => io.close(None, LINGER).await,
        End::Done | End::Cut => {}
    }
}

fn http1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // Time-outs are the watchdog's: hyper's own takes a timer for each request and closes without a word.
    builder
        .header_read_timeout(None)
        .max_header_size(limits.header_bytes);
    builder
}

fn http2_builder(limits: &Limits) -> http2::Builder<TokioExecutor> {
    const STREAM_WINDOW: u32 = 1 << 20;
    const CONNECTION_WINDOW: u32 = 4 << 20;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// Runs a connection and looks after its deadlines.
struct Watched<'a> {
    conn: &'a Conn,
    limits: &'a Limits,
    stop: watch::Receiver<bool>,
}

impl Watched<'_> {
    async fn drive<C>(&mut self, mut served: Pin<&mut C>, graceful: fn(Pin<&mut C>)) -> End
    where
        C: Future<Output = hyper::Result<()>>,
    {
        let watchdog = sleep_until(Instant::now() + self.limits.header_timeout);
        tokio::pin!(watchdog);
        let mut cut_at = None;
        let mut idle = Idle {
            since: Instant::now(),
            served: 0,
        };
        loop {
            tokio::select! {
                biased;
                // What went wrong was between hyper and the client; the log of requests has the rest.
                _ = served.as_mut() => return End::Done,
                () = stopped(&mut self.stop), if cut_at.is_none() => {
                    graceful(served.as_mut());
                    let at = Instant::now() + self.limits.shutdown;
                    cut_at = Some(at);
                    let next = at.min(watchdog.deadline());
                    watchdog.as_mut().reset(next);
                }
                () = watchdog.as_mut() => {
                    let now = Instant::now();
                    if cut_at.is_some_and(|at| now >= at) {
                        return End::Cut;
                    }
                    let next = match self.conn.health(self.limits.header_timeout, self.limits.body_timeout) {
                        Health::Fine(time) => time,
                        Health::HeadTooSlow => return End::HeadTooSlow,
                        Health::Stalled => return End::Cut,
                        Health::Idle if idle.is_over(self.conn, now) => return End::Done,
                        Health::Idle => self.limits.header_timeout,
                    };
                    let at = now + next.max(Duration::from_millis(1));
                    watchdog.as_mut().reset(cut_at.map_or(at, |cut| cut.min(at)));
                }
            }
        }
    }
}

/// Since when a connection has had no request, to the watchdog's step.
struct Idle {
    since: Instant,
    served: u32,
}

impl Idle {
    fn is_over(&mut self, conn: &Conn, now: Instant) -> bool {
        if conn.served() != self.served {
            *self = Self {
                since: now,
                served: conn.served(),
            };
        }
        now.duration_since(self.since) >= IDLE_MAX
    }
}
