//! `torc ring show` and `torc ring owners`.

use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;
use std::time::Duration;

use torc_client::{Admin, OwnersView, RingView};

use crate::args::{AdminArgs, Output, RingCommand};
use crate::output;

const DEADLINE: Duration = Duration::from_secs(5);

pub(crate) async fn run(command: RingCommand) -> anyhow::Result<ExitCode> {
    match command {
        RingCommand::Show(args) => {
            let ring = admin(&args)?.ring().await?;
            match args.output {
                Output::Json => output::json(&ring)?,
                Output::Text => output::line(show(&ring))?,
            }
        }
        RingCommand::Owners {
            key,
            bucket,
            admin: args,
        } => {
            let owners = admin(&args)?.owners(&bucket, key.as_bytes()).await?;
            match args.output {
                Output::Json => output::json(&owners)?,
                Output::Text => output::line(show_owners(&owners))?,
            }
        }
        changes => return crate::change::run(changes).await,
    }
    Ok(ExitCode::SUCCESS)
}

fn admin(args: &AdminArgs) -> anyhow::Result<Admin> {
    Ok(Admin::new(args.admin.clone(), DEADLINE)?)
}

fn state(alive: bool) -> String {
    if alive { "alive" } else { "dead" }.to_owned()
}

fn shown(text: Option<&String>) -> String {
    text.map_or_else(|| "?".to_owned(), Clone::clone)
}

fn show(ring: &RingView) -> String {
    let buckets: Vec<String> = ring
        .buckets
        .iter()
        .map(|bucket| format!("{} (n = {})", bucket.name, bucket.n))
        .collect();
    let mut members: Vec<_> = ring.members.iter().collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    let rows = members.into_iter().map(|member| {
        vec![
            member.name.clone(),
            if member.state == "member" {
                state(member.alive)
            } else {
                member.state.clone()
            },
            member.zone.clone(),
            member.weight.to_string(),
            output::percent(member.share),
            member.http.clone(),
            member.peer.clone(),
            member.id.clone(),
        ]
    });
    let head = [
        "NODE", "STATE", "ZONE", "WEIGHT", "SHARE", "HTTP", "PEER", "ID",
    ];
    format!(
        "config version {}, ring version {}, {} members, {} partitions; buckets: {}\n\n{}",
        ring.config_version,
        ring.ring_version,
        ring.members.len(),
        1_u64 << ring.partition_bits.min(63),
        buckets.join(", "),
        output::table(&head, rows)
    )
}

fn show_owners(owners: &OwnersView) -> String {
    let rows = owners
        .owners
        .iter()
        .chain(&owners.stand_ins)
        .enumerate()
        .map(|(at, member)| {
            vec![
                if at < owners.owners.len() {
                    (at + 1).to_string()
                } else {
                    "-".to_owned()
                },
                shown(member.name.as_ref()),
                if at < owners.owners.len() {
                    "owner"
                } else {
                    "stand-in"
                }
                .to_owned(),
                state(member.alive),
                shown(member.zone.as_ref()),
                shown(member.http.as_ref()),
            ]
        });
    format!(
        "key `{}` of bucket `{}` lies in partition {}\n\n{}",
        owners.key(),
        owners.bucket,
        owners.partition,
        output::table(&["#", "NODE", "ROLE", "STATE", "ZONE", "HTTP"], rows)
    )
}
