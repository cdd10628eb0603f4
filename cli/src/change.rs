//! `torc ring plan`, `commit`, `abort`, `leave`, `remove`, `replace`, `reweigh`, `rezone`: changes of the
//! ring, shown before they are made, and followed until they are over.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use torc_client::{Admin, Change, ChangeView, Decided, LayoutView, PlanView};

use crate::args::{AdminArgs, ChangeArgs, Output, PlanArgs, RingCommand};
use crate::exit::{REFUSED, Unreachable, Usage};
use crate::output::{self, Progress};

const DEADLINE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(200);
/// A node that does not answer for so long while a change is followed is given up.
const SILENCE_MAX: Duration = Duration::from_secs(20);

pub(crate) async fn run(command: RingCommand) -> anyhow::Result<ExitCode> {
    match command {
        RingCommand::Plan(PlanArgs { changes, admin }) => {
            let plan = connect(&admin)?.plan(&parse(&changes)?).await?;
            match admin.output {
                Output::Json => output::json(&plan)?,
                Output::Text => output::line(show_plan(&plan))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        RingCommand::Commit { changes, how } => make(parse(&changes)?, &how).await,
        RingCommand::Leave { node, how } => make(vec![Change::Leave { node }], &how).await,
        RingCommand::Remove { node, force, how } => {
            if !force {
                return Err(Usage(format!(
                    "`remove` takes a dead node out without its help: what it alone holds is lost. If {node} is \
                     alive, use `torc ring leave {node}`; if it is dead for good, add --force"
                ))
                .into());
            }
            make(vec![Change::Remove { node }], &how).await
        }
        RingCommand::Replace { dead, by, how } => {
            make(vec![Change::Replace { dead, by }], &how).await
        }
        RingCommand::Reweigh { node, weight, how } => {
            make(vec![Change::Reweigh { node, weight }], &how).await
        }
        RingCommand::Rezone { node, zone, how } => {
            make(vec![Change::Rezone { node, zone }], &how).await
        }
        RingCommand::Abort { how } => abort(&how).await,
        RingCommand::Follow(admin) => {
            let connection = connect(&admin)?;
            let seen = connection.change().await?;
            follow(&connection, seen.ring_version, admin.output).await
        }
        RingCommand::Show(_) | RingCommand::Owners { .. } => {
            unreachable!("these only look, and are carried out in `ring`")
        }
    }
}

fn connect(args: &AdminArgs) -> anyhow::Result<Admin> {
    Ok(Admin::new(args.admin.clone(), DEADLINE)?)
}

/// Shows what would move, asks, commits, and follows.
async fn make(changes: Vec<Change>, how: &ChangeArgs) -> anyhow::Result<ExitCode> {
    let admin = connect(&how.admin)?;
    let plan = admin.plan(&changes).await?;
    if how.admin.output == Output::Text {
        output::line(show_plan(&plan))?;
    }
    confirm(how, "Make this change?")?;
    let decided = admin.commit(&changes, Some(plan.config_version)).await?;
    finish(&admin, decided, how).await
}

async fn abort(how: &ChangeArgs) -> anyhow::Result<ExitCode> {
    let admin = connect(&how.admin)?;
    let seen = admin.change().await?;
    if how.admin.output == Output::Text {
        output::line(show_change(&seen))?;
    }
    confirm(how, "Take this change back?")?;
    let decided = admin.abort().await?;
    match how.admin.output {
        Output::Json => output::json(&decided)?,
        Output::Text => output::line(format!(
            "taken back by config version {}; what was copied is dropped",
            decided.config_version
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn finish(admin: &Admin, decided: Decided, how: &ChangeArgs) -> anyhow::Result<ExitCode> {
    if !how.no_wait {
        return follow(admin, decided.ring_version, how.admin.output).await;
    }
    match how.admin.output {
        Output::Json => output::json(&decided)?,
        Output::Text => output::line(format!(
            "begun as ring version {}; `torc ring follow` shows how far it is, `torc ring abort` takes it back",
            decided.ring_version
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What changes the ring asks first.
fn confirm(how: &ChangeArgs, question: &str) -> anyhow::Result<()> {
    if how.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Usage("this changes the ring: confirm it with --yes".to_owned()).into());
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        anyhow::bail!("nothing was changed")
    }
}

/// Until the change of that joint ring version is over.
pub(crate) async fn follow(admin: &Admin, joint: u64, output: Output) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let mut heard = Instant::now();
    let mut progress = Progress::new();
    let mut last_seen: Option<ChangeView> = None;
    loop {
        match admin.change().await {
            Ok(seen) if seen.is_idle() && seen.ring_version >= joint => {
                progress.finish();
                return ended(&seen, joint, output, began.elapsed());
            }
            Ok(seen) => {
                heard = Instant::now();
                progress.say(&describe(&seen, began.elapsed()));
                let moved = seen.progress();
                progress.at(moved.done, moved.total);
                last_seen = Some(seen);
            }
            Err(error) if heard.elapsed() > SILENCE_MAX => {
                progress.finish();
                let far = last_seen.map_or_else(String::new, |seen| {
                    format!(" It was {} when it was last heard of.", seen.phase)
                });
                return Err(Unreachable(format!(
                    "the node asked does not answer any more ({error}).{far} If it is the one that leaves, it has \
                     stopped; ask another one: torc ring follow --admin URL"
                ))
                .into());
            }
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn ended(
    seen: &ChangeView,
    joint: u64,
    output: Output,
    took: Duration,
) -> anyhow::Result<ExitCode> {
    let end = seen.last.as_ref().filter(|last| last.ring_version == joint);
    let (code, text) = match end.map(|last| last.end.as_str()) {
        Some("switched") => (ExitCode::SUCCESS, "done".to_owned()),
        Some("aborted") => (ExitCode::from(REFUSED), "it was taken back".to_owned()),
        Some("no_target_quorum") => (
            ExitCode::from(REFUSED),
            "it was taken back, because too few owners of the new ring could be reached".to_owned(),
        ),
        _ => (
            ExitCode::SUCCESS,
            "no change of the ring is running".to_owned(),
        ),
    };
    match output {
        Output::Json => output::json(seen)?,
        Output::Text => output::line(format!(
            "{text}: ring version {} after {:.1} s",
            seen.ring_version,
            took.as_secs_f64()
        ))?,
    }
    Ok(code)
}

/// One line about a change that is running.
pub(crate) fn describe(seen: &ChangeView, took: Duration) -> String {
    let progress = seen.progress();
    let mut line = format!(
        "{}: {} of {} partitions, {} received",
        seen.phase,
        progress.done,
        progress.total,
        torc_node::config::format_size(progress.bytes)
    );
    if progress.done > 0 && progress.done < progress.total {
        let rest = took.mul_f64((progress.total - progress.done) as f64 / progress.done as f64);
        // Writing into a String cannot fail, here and below.
        let _ = write!(line, ", about {} s to go", rest.as_secs() + 1);
    }
    let waiting: Vec<&str> = seen.incomplete().collect();
    if seen.phase == "moving" && !waiting.is_empty() && waiting.len() < seen.nodes.len() {
        line.push_str("; waits for ");
        line.push_str(&waiting.join(", "));
    }
    line
}

fn show_change(seen: &ChangeView) -> String {
    let rows = seen.nodes.iter().map(|node| {
        let progress = node.progress.unwrap_or_default();
        vec![
            node.name.clone(),
            node.role.clone(),
            format!("{} of {}", progress.done, progress.total),
            torc_node::config::format_size(progress.bytes),
            if progress.covered { "complete" } else { "-" }.to_owned(),
        ]
    });
    format!(
        "ring version {}: {}\n\n{}",
        seen.ring_version,
        seen.phase,
        output::table(&["NODE", "ROLE", "PARTITIONS", "RECEIVED", "STATE"], rows)
    )
}

pub(crate) fn show_plan(plan: &PlanView) -> String {
    let mut text = String::new();
    for layout in &plan.layouts {
        text.push_str(&show_layout(layout, plan.partitions));
        text.push('\n');
    }
    if plan
        .layouts
        .iter()
        .all(|layout| layout.partitions_moving == 0)
    {
        text.push_str("No data would move.\n");
    } else if let Some(bytes) = plan.estimated_bytes {
        let _ = writeln!(
            text,
            "About {} would be copied.",
            torc_node::config::format_size(bytes)
        );
    }
    let _ = write!(text, "Made for config version {}.", plan.config_version);
    text
}

fn show_layout(layout: &LayoutView, partitions: u32) -> String {
    let n = if layout.n_before == layout.n_after {
        format!("n = {}", layout.n_before)
    } else {
        format!("n = {} to {}", layout.n_before, layout.n_after)
    };
    let overhead = if layout.unavoidable >= 0.5 {
        format!(
            ", {:.2} of what is unavoidable",
            f64::from(layout.replicas_moved) / layout.unavoidable
        )
    } else {
        String::new()
    };
    let rows = layout.nodes.iter().map(|node| {
        vec![
            node.name.clone(),
            node.before.to_string(),
            format!("+{}", node.gains),
            format!("-{}", node.loses),
            node.after.to_string(),
        ]
    });
    format!(
        "buckets {} ({n}): {} of {partitions} partitions change hands, {} of {} replicas are copied{overhead}; \
         the fullest node holds {:.2} of its fair share, then {:.2}\n\n{}\n",
        layout.buckets.join(", "),
        layout.partitions_moving,
        layout.replicas_moved,
        layout.replicas_after,
        layout.fullest_before,
        layout.fullest_after,
        output::table(&["NODE", "NOW", "GAINS", "LOSES", "THEN"], rows)
    )
}

/// Reads changes: `leave:NODE`, `remove:NODE`, `replace:DEAD=NEW`, `reweigh:NODE=WEIGHT`, `rezone:NODE=ZONE`,
/// `replicas:BUCKET=N`, `join:NODE`.
fn parse(words: &[String]) -> Result<Vec<Change>, Usage> {
    words.iter().map(|word| parse_one(word)).collect()
}

fn parse_one(word: &str) -> Result<Change, Usage> {
    let refused = || {
        Usage(format!(
            "`{word}` is no change: give leave:NODE, remove:NODE, replace:DEAD=NEW, reweigh:NODE=WEIGHT, \
             rezone:NODE=ZONE, replicas:BUCKET=N or join:NODE"
        ))
    };
    let (kind, rest) = word.split_once(':').ok_or_else(refused)?;
    if rest.is_empty() {
        return Err(refused());
    }
    let pair = || rest.split_once('=').ok_or_else(refused);
    let node = rest.to_owned();
    Ok(match kind {
        "join" => Change::Join { node },
        "leave" => Change::Leave { node },
        "remove" => Change::Remove { node },
        "replace" => {
            let (dead, by) = pair()?;
            Change::Replace {
                dead: dead.to_owned(),
                by: by.to_owned(),
            }
        }
        "reweigh" => {
            let (node, weight) = pair()?;
            Change::Reweigh {
                node: node.to_owned(),
                weight: weight.parse().map_err(|_| refused())?,
            }
        }
        "rezone" => {
            let (node, zone) = pair()?;
            Change::Rezone {
                node: node.to_owned(),
                zone: zone.to_owned(),
            }
        }
        "replicas" => {
            let (bucket, n) = pair()?;
            Change::Replicas {
                bucket: bucket.to_owned(),
                n: n.parse().map_err(|_| refused())?,
            }
        }
        _ => return Err(refused()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_and_what_is_none_is_refused() {
        let words = ["leave:node-3", "reweigh:node-1=200", "replicas:default=5"];
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        assert_eq!(
            parse(&words).expect("changes"),
            [
                Change::Leave {
                    node: "node-3".into()
                },
                Change::Reweigh {
                    node: "node-1".into(),
                    weight: 200
                },
                Change::Replicas {
                    bucket: "default".into(),
                    n: 5
                },
            ]
        );
        for bad in ["", "leave", "leave:", "reweigh:a", "reweigh:a=b", "grow:a"] {
            assert!(parse_one(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_running_change_says_whom_it_waits_for() {
        let text = r#"{"phase":"moving","config_version":4,"ring_version":4,"plan":null,"last":null,"waiting":[],
            "nodes":[
              {"id":"1","name":"node-1","role":"stays","silent_ms":0,"config_version":4,
               "progress":{"covered":true,"done":5,"total":5,"bytes":0}},
              {"id":"4","name":"node-4","role":"joins","silent_ms":3,"config_version":4,
               "progress":{"covered":false,"done":5,"total":15,"bytes":2048}}]}"#;
        let seen: ChangeView = serde_json::from_str(text).expect("a change");
        let line = describe(&seen, Duration::from_secs(10));
        assert_eq!(
            line,
            "moving: 10 of 20 partitions, 2KiB received, about 11 s to go; waits for node-4"
        );
    }
}
