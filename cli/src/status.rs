//! `torc status`: the verdict first, then why, then a line for each node.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use torc_client::{Admin, Status, Verdict};

use crate::args::{Output, StatusArgs};
use crate::exit::{UNREACHABLE, Unreachable};
use crate::output;

const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_UNTIL: Duration = Duration::from_millis(200);
const DEADLINE: Duration = Duration::from_secs(5);

pub(crate) async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let admin = Admin::new(args.admin.admin.clone(), DEADLINE)?;
    if args.watch {
        return watch(&admin, args.admin.output).await;
    }
    if args.until.is_some() {
        return until_healthy(&admin, &args).await;
    }
    let status = admin.status().await?;
    show(&status, args.admin.output)?;
    Ok(match status.verdict {
        Verdict::Healthy | Verdict::Degraded => ExitCode::SUCCESS,
        Verdict::Unavailable => ExitCode::from(UNREACHABLE),
    })
}

/// Until Ctrl-C. A node that does not answer is shown as such and asked again.
async fn watch(admin: &Admin, output: Output) -> anyhow::Result<ExitCode> {
    loop {
        let status = admin.status().await;
        if output == Output::Text && io::stdout().is_terminal() {
            // Home, and clear what is below.
            output::raw(b"\x1b[H\x1b[2J")?;
        }
        match status {
            Ok(status) => show(&status, output)?,
            Err(error) if output == Output::Text => output::line(format!("unknown: {error}"))?,
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn until_healthy(admin: &Admin, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let end = Instant::now() + args.timeout;
    let mut progress = output::Progress::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let seen = match tokio::time::timeout(left, admin.status()).await {
            Ok(Ok(status)) if status.verdict == Verdict::Healthy => {
                progress.finish();
                show(&status, args.admin.output)?;
                return Ok(ExitCode::SUCCESS);
            }
            Ok(Ok(status)) => status.reasons.join(" "),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        progress.say(&format!("waiting: {seen}"));
        if Instant::now() + PAUSE_UNTIL >= end {
            let waited = torc_node::config::format_duration(args.timeout);
            return Err(Unreachable(format!("not healthy after {waited}: {seen}")).into());
        }
        tokio::time::sleep(PAUSE_UNTIL).await;
    }
}

fn show(status: &Status, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Json => output::json(status),
        Output::Text => output::line(text(status)),
    }
}

fn text(status: &Status) -> String {
    let alive = status.nodes.iter().filter(|node| node.alive).count();
    let verdict = match status.verdict {
        Verdict::Healthy => "healthy",
        Verdict::Degraded => "degraded",
        Verdict::Unavailable => "unavailable",
    };
    let survives = match (status.verdict, status.failures_survived) {
        (Verdict::Unavailable, _) => "some keys cannot be read or written now".to_owned(),
        (_, 0) => "no further node may fail without some keys becoming unavailable".to_owned(),
        (_, 1) => "any one node may fail now, and every key stays available".to_owned(),
        (_, count) => format!("any {count} nodes may fail now, and every key stays available"),
    };
    let mut text = format!(
        "{verdict}: {alive} of {} nodes alive as seen from {}; {survives}\n",
        status.nodes.len(),
        status.seen_from
    );
    for reason in &status.reasons {
        text.push_str("  ");
        text.push_str(reason);
        text.push('\n');
    }
    if let Some(age) = status.agreement_age_seconds {
        let _ = writeln!(
            text,
            "  All copies on {} are known to have agreed with their other owners' {age:.0} s ago.",
            status.seen_from
        );
    }
    text.push('\n');
    let rows = status.nodes.iter().map(|node| {
        vec![
            node.name.clone(),
            if node.alive { "alive" } else { "dead" }.to_owned(),
            node.zone.clone(),
            output::percent(node.share),
            if node.hints_waiting == 0 {
                "-".to_owned()
            } else {
                format!(
                    "{} ({})",
                    node.hints_waiting,
                    torc_node::config::format_size(node.hint_bytes)
                )
            },
            node.http.clone(),
        ]
    });
    text.push_str(&output::table(
        &["NODE", "STATE", "ZONE", "SHARE", "HINTS", "HTTP"],
        rows,
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use torc_client::NodeStatus;

    #[test]
    fn the_verdict_comes_first_and_rows_begin_with_the_name() {
        let status = Status {
            verdict: Verdict::Degraded,
            reasons: vec!["node-2 is not alive.".into()],
            failures_survived: 0,
            seen_from: "node-1".into(),
            config_version: 3,
            change: None,
            agreement_age_seconds: None,
            nodes: vec![NodeStatus {
                name: "node-1".into(),
                id: "01".into(),
                zone: "a".into(),
                http: "127.0.0.1:8081".into(),
                alive: true,
                share: 0.333,
                hints_waiting: 0,
                hint_bytes: 0,
            }],
        };
        let text = text(&status);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0]
                .starts_with("degraded: 1 of 1 nodes alive as seen from node-1; no further node"),
            "{text}"
        );
        assert_eq!(lines[1], "  node-2 is not alive.");
        assert!(lines[3].starts_with("NODE"), "{text}");
        assert!(
            lines[4].starts_with("node-1") && lines[4].contains("33.3 %"),
            "{text}"
        );
    }
}
