//! `torc demo`: a whole cluster of real processes on loopback, and commands that play with it.
//!
//! Invariant: nothing outlives the demo. Nodes hold the read end of a pipe whose write end is the demo's;
//! they stop when it closes, however the demo ends.

pub(crate) mod cluster;
pub(crate) mod control;
mod cut;
pub(crate) mod home;
mod load;
mod node;
mod ports;
mod show;
mod text;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use crate::args::{DemoArgs, DemoCommand};
use crate::exit::Usage;
use crate::output::{self, Progress};
use cluster::Cluster;
use control::{Action, Control, Order, Request};
use home::Home;

/// How often nodes that ended by themselves are looked for.
const LOOK: Duration = Duration::from_millis(250);

pub(crate) fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let code = runtime.block_on(async {
        match args.command {
            None => demo(&args).await,
            Some(DemoCommand::Ls(target)) => control::list(&target).await,
            Some(DemoCommand::Kill(node)) => control::act(Action::Kill, &node).await,
            Some(DemoCommand::Pause(node)) => control::act(Action::Pause, &node).await,
            Some(DemoCommand::Resume(node)) => control::act(Action::Resume, &node).await,
            Some(DemoCommand::Restart(node)) => control::act(Action::Restart, &node).await,
            Some(DemoCommand::JoinLeave(args)) => show::run(&args).await,
            Some(DemoCommand::Leave(node)) => control::leave(&node).await,
            Some(DemoCommand::Add(target)) => control::add(&target).await,
            Some(DemoCommand::Partition { groups, target }) => {
                control::partition(cut::parse(&groups)?, &target).await
            }
            Some(DemoCommand::Heal(target)) => control::partition(Vec::new(), &target).await,
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

/// SIGINT, SIGTERM and the end of the terminal: all of them stop the demo in order.
pub(crate) struct Stops([Signal; 3]);

impl Stops {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    pub(crate) async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

async fn demo(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    if !["fsync", "interval", "os"].contains(&args.durability.as_str()) {
        return Err(Usage(format!(
            "--durability is `{}`; give fsync, interval or os",
            args.durability
        ))
        .into());
    }
    let mut stops = Stops::new().context("cannot listen for signals")?;
    let home = Home::open(args.keep.as_deref())?;
    let mut cluster = Cluster::plan(args, &home)?;
    let mut control = Control::open()?;
    let mut progress = Progress::new();
    let started = tokio::select! {
        started = cluster.start(&mut progress) => started,
        () = stops.wait() => Err(anyhow::anyhow!("stopped before the cluster was ready")),
    };
    progress.finish();
    if let Err(error) = started {
        cluster.stop(&mut stops).await;
        return Err(error);
    }
    home.remember(&cluster.to_plan())?;
    output::raw(text::welcome(&cluster, args, &home).as_bytes())?;
    let load = args
        .load
        .then(|| load::start(&cluster.data_addresses()))
        .transpose()?;
    let result = serve(&mut cluster, &mut control, (&mut stops, &home)).await;
    if let Some(load) = load {
        load.stop().await;
    }
    output::line("stopping ...").ok();
    cluster.stop(&mut stops).await;
    drop(control);
    home.close()?;
    output::line(text::farewell(&home)).ok();
    result.map(|()| ExitCode::SUCCESS)
}

/// Until a signal: carries out what second terminals ask for, and says when a node has ended by itself.
async fn serve(
    cluster: &mut Cluster,
    control: &mut Control,
    (stops, home): (&mut Stops, &Home),
) -> anyhow::Result<()> {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stops.wait() => return Ok(()),
            order = control.next() => {
                let Order { request, reply } = order;
                // Whoever asked may have gone meanwhile.
                let _ = reply.send(cluster.carry_out(&request).await);
                if matches!(request, Request::Add) {
                    home.remember(&cluster.to_plan())?;
                }
            }
            _ = look.tick() => {
                for ended in cluster.look() {
                    output::line(ended)?;
                }
            }
        }
    }
}
