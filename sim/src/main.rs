//! `torc-sim`: one seed with its trace, or many seeds and what they found.
#![allow(clippy::print_stdout)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use torc_protocol::mutant::Mutant;
use torc_sim::minimise::{Shrunk, minimise};
use torc_sim::mutants::broken;
use torc_sim::plan::NAMES;
use torc_sim::swarm::{Summary, swarm};
use torc_sim::{Outcome, Plan, run};

/// Runs of the search for a smaller failing run.
const SHRINK_RUNS_MAX: u32 = 400;
/// Failing seeds of a swarm that are made smaller.
const SHRUNK_MAX: u32 = 2;
/// Lines of a smaller run's trace that are printed in a swarm.
const TRACE_LINES: usize = 80;

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
    /// Nodes, whatever the seed draws.
    #[arg(long)]
    nodes: Option<u64>,
    /// Change what the seed draws: a name of the plan and a number, such as `crashes=0`. May be repeated.
    #[arg(long, value_name = "NAME=NUMBER", value_parser = setting)]
    set: Vec<(&'static str, u64)>,
    /// Leave these faults out, by their numbers in the trace: `3,5-9`.
    #[arg(long, value_name = "NUMBERS", default_value = "")]
    skip: Numbers,
    /// Print what happens, with --seed.
    #[arg(long)]
    trace: bool,
    /// Do not look for a smaller run that fails in the same way.
    #[arg(long)]
    whole: bool,
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

#[derive(Clone, Debug, Default)]
struct Numbers(BTreeSet<u64>);

impl FromStr for Numbers {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut numbers = BTreeSet::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            numbers.extend(first.parse::<u64>()?..=last.parse()?);
        }
        Ok(Self(numbers))
    }
}

fn setting(text: &str) -> Result<(&'static str, u64), String> {
    let parsed = text.split_once('=').and_then(|(name, value)| {
        let name = NAMES.iter().find(|known| **known == name)?;
        Some((*name, value.parse().ok()?))
    });
    parsed.ok_or_else(|| format!("give one of {NAMES:?}, `=` and a number"))
}

fn mutant(name: &str) -> Result<Mutant, String> {
    let found = Mutant::ALL
        .iter()
        .copied()
        .find(|mutant| format!("{mutant:?}") == name);
    found.ok_or_else(|| format!("no such mutant; there are {:?}", Mutant::ALL))
}

impl Args {
    /// What a seed draws, changed as the flags say.
    fn plan(&self, seed: u64) -> Plan {
        let mut plan = Plan {
            mutant: self.mutant,
            skip: self.skip.0.clone(),
            ..Plan::draw(seed, self.ops)
        };
        let nodes = self.nodes.map(|nodes| ("nodes", nodes));
        for (name, value) in nodes.into_iter().chain(self.set.iter().copied()) {
            // The name was looked up when it was parsed.
            let _ = plan.set(name, value);
        }
        plan
    }

    /// The command that runs a seed again, with further changes.
    fn replay(&self, seed: u64, set: &[(&'static str, u64)], skip: &BTreeSet<u64>) -> String {
        let mut command = format!("cargo run --release -p torc-sim -- --seed {seed}");
        let ops = set.iter().find(|(name, _)| *name == "ops");
        let _ = write!(command, " --ops {}", ops.map_or(self.ops, |(_, ops)| *ops));
        let nodes = self.nodes.map(|nodes| ("nodes", nodes));
        let known = nodes.into_iter().chain(self.set.iter().copied());
        for (name, value) in known.chain(set.iter().copied()) {
            if name != "ops" {
                let _ = write!(command, " --set {name}={value}");
            }
        }
        if !skip.is_empty() {
            let numbers: Vec<String> = skip.iter().map(u64::to_string).collect();
            let _ = write!(command, " --skip {}", numbers.join(","));
        }
        if let Some(mutant) = self.mutant {
            let _ = write!(command, " --mutant {mutant:?}");
        }
        command + " --trace"
    }
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
    let plan = args.plan(seed);
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
    let Some((at, violation)) = outcome.violation.clone() else {
        return false;
    };
    println!("FAILED at {at} us: {violation}");
    if !args.whole && !args.trace {
        shrink(seed, args, &plan, outcome);
    }
    true
}

/// Looks for a smaller run that fails in the same way, and prints it.
fn shrink(seed: u64, args: &Args, plan: &Plan, outcome: Outcome) {
    let Some(Shrunk { plan, set, outcome }) = minimise(plan, outcome, SHRINK_RUNS_MAX) else {
        return;
    };
    let traced = run(&plan, true);
    let mut text = String::new();
    let skipped = traced.trace.len().saturating_sub(TRACE_LINES);
    for line in traced.trace.iter().skip(skipped) {
        let _ = writeln!(text, "    {line:.220}");
    }
    let faults = outcome.faults - plan.skip.len() as u64;
    println!(
        "  smaller: {} operations, {} nodes, {faults} faults, the last {TRACE_LINES} lines of {}:\n{text}  {}",
        outcome.issued,
        plan.nodes,
        traced.trace.len(),
        args.replay(seed, &set, &plan.skip)
    );
}

fn many(args: &Args) -> bool {
    let threads = match args.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        given => given,
    };
    let seeds = args.seeds.0.clone();
    let bar = ProgressBar::new(seeds.end.saturating_sub(seeds.start));
    let style = "{wide_bar} {pos}/{len} seeds, {per_sec}, {eta} left {msg}";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar()));
    let shrunk = AtomicU32::new(0);
    let tell = |seed, plan: &Plan, outcome: Outcome| {
        bar.inc(1);
        let Some((at, violation)) = outcome.violation.clone() else {
            return;
        };
        bar.suspend(|| {
            println!("seed {seed} FAILED at {at} us: {violation}");
            println!("  replay: {}", args.replay(seed, &[], &plan.skip));
        });
        if !args.whole && shrunk.fetch_add(1, Ordering::Relaxed) < SHRUNK_MAX {
            bar.suspend(|| shrink(seed, args, plan, outcome));
        }
    };
    // How fast it is concerns the one who waits, not what happens in the worlds.
    #[allow(clippy::disallowed_methods, clippy::disallowed_types)]
    let begun = std::time::Instant::now();
    let summary = swarm(
        seeds,
        |seed| args.plan(seed),
        (threads, args.failures),
        tell,
    );
    #[allow(clippy::disallowed_methods)]
    let took = begun.elapsed().as_secs_f64();
    bar.finish_and_clear();
    report(&summary);
    speed(&summary, took, threads);
    if let Some(mutant) = args.mutant {
        println!("{mutant:?} has to be found by one of {:?}", broken(mutant));
    }
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
        "{} seeds, {} operations, {} faults, {virtual_s:.0} s of virtual time, {} failed",
        summary.runs,
        summary.operations(),
        summary.faults(),
        summary.failures.len()
    );
}

fn speed(summary: &Summary, took: f64, threads: usize) {
    let core_s = took * threads as f64;
    println!(
        "{took:.1} s on {threads} threads: for each, {:.0} x real time and {:.0} operations a second",
        summary.micros as f64 / 1e6 / core_s,
        summary.operations() as f64 / core_s
    );
}
