//! `torc-sim`: one seed with its trace, or many seeds and what they found.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::str::FromStr;

use clap::Parser;
use torc_protocol::mutant::Mutant;
use torc_sim::swarm::{Summary, swarm};
use torc_sim::{Outcome, Plan, run};

/// Runs torc's protocol core in a simulated world that fails in every way, all drawn from a seed.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Run this one seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run these seeds, on all cores.
    #[arg(long, value_name = "A..B", default_value = "0..1000")]
    seeds: Seeds,
    /// Operations of each run.
    #[arg(long, default_value_t = 2_000)]
    ops: u64,
    /// Print what happens, with --seed.
    #[arg(long)]
    trace: bool,
    /// Stop after so many failing seeds.
    #[arg(long, default_value_t = 10)]
    failures: usize,
    /// A deliberate bug to be found, by name.
    #[arg(long, value_parser = mutant)]
    mutant: Option<Mutant>,
    /// Threads; all cores if 0.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

#[derive(Clone, Debug)]
struct Seeds(std::ops::Range<u64>);

impl FromStr for Seeds {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, end) = text.split_once("..").unwrap_or(("0", text));
        Ok(Self(first.parse()?..end.parse()?))
    }
}

fn mutant(name: &str) -> Result<Mutant, String> {
    let found = Mutant::ALL
        .iter()
        .copied()
        .find(|mutant| format!("{mutant:?}") == name);
    found.ok_or_else(|| format!("no such mutant; there are {:?}", Mutant::ALL))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let failed = match args.seed {
        Some(seed) => one(seed, &args),
        None => many(&args),
    };
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn one(seed: u64, args: &Args) -> bool {
    let plan = Plan {
        mutant: args.mutant,
        ..Plan::draw(seed, args.ops)
    };
    println!("{plan:#?}");
    let outcome = run(&plan, args.trace);
    for line in &outcome.trace {
        println!("{line}");
    }
    for (name, count) in &outcome.counts {
        println!("{count:>12} {name}");
    }
    println!(
        "seed {seed}: trace hash {:016x}, {:.3} s of virtual time",
        outcome.hash,
        outcome.micros as f64 / 1e6
    );
    if let Some((at, violation)) = &outcome.violation {
        println!("FAILED at {at} us: {violation}");
    }
    outcome.violation.is_some()
}

fn many(args: &Args) -> bool {
    let threads = match args.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        given => given,
    };
    let tell = |seed, outcome: &Outcome| {
        if let Some((at, violation)) = &outcome.violation {
            println!("seed {seed} FAILED at {at} us: {violation}");
            println!(
                "  replay: cargo run --release -p torc-sim -- --seed {seed} --ops {} --trace",
                args.ops
            );
        }
    };
    let summary = swarm(
        args.seeds.0.clone(),
        args.ops,
        (threads, args.failures, args.mutant),
        tell,
    );
    report(&summary);
    !summary.failures.is_empty()
}

fn report(summary: &Summary) {
    for (name, count) in &summary.counts {
        let reached = summary.reached.get(name).copied().unwrap_or(0);
        println!(
            "{count:>12} {name} ({:.1} % of seeds)",
            100.0 * reached as f64 / summary.runs.max(1) as f64
        );
    }
    let virtual_s = summary.micros as f64 / 1e6;
    println!(
        "{} seeds, {virtual_s:.0} s of virtual time, {} failed",
        summary.runs,
        summary.failures.len()
    );
}
