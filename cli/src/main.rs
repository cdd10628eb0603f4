//! The one binary of torc: server, client, administration and demo.
//!
//! Parses, calls, prints. What it does stands in `torc-node` and `torc-client`; only the demo's handling of
//! processes is at home here.

mod args;
mod autoscale;
mod bench;
mod bucket;
mod change;
mod config;
mod demo;
mod exit;
mod generate;
mod health;
mod import;
mod keys;
mod output;
mod pki;
mod repair;
mod ring;
mod serve;
mod status;
mod verify;
mod worker;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => serve::run(&args),
        Command::Worker(args) => worker::run(args),
        Command::Autoscale(args) => autoscale::run(*args),
        Command::Demo(args) => demo::run(args),
        Command::Bench(args) => block_on(bench::run(args)),
        Command::Get(args) => block_on(keys::get(args)),
        Command::Put(args) => block_on(keys::put(args)),
        Command::Delete(args) => block_on(keys::delete(args)),
        Command::Ls(args) => block_on(keys::list(args)),
        Command::Batch(args) => block_on(keys::batch(args)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Ring(args) => block_on(ring::run(args.command)),
        Command::Verify(args) => block_on(verify::run(args)),
        Command::Repair(args) => block_on(repair::run(args)),
        Command::Bucket(args) => block_on(bucket::run(args.command)),
        Command::Health(args) => block_on(health::run(args)),
        Command::Import(args) => block_on(import::run(*args)),
        Command::Config(args) => config::run(&args.command),
        Command::Pki(args) => pki::run(args.command),
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { out } => generate::man(&out),
    }
}

/// One request at a time needs one thread.
fn block_on(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(work)
}
