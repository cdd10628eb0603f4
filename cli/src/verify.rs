//! `torc verify`: what each owner holds of a key.

use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;
use std::time::Duration;

use torc_client::{Admin, VerifyView};

use crate::args::{Output, VerifyArgs};
use crate::exit::REFUSED;
use crate::output;

const DEADLINE: Duration = Duration::from_secs(5);

pub(crate) async fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let admin = Admin::new(args.admin.admin.clone(), DEADLINE)?;
    let seen = admin.verify(&args.bucket, args.key.as_bytes()).await?;
    match args.admin.output {
        Output::Json => output::json(&seen)?,
        Output::Text => output::line(show(&seen))?,
    }
    Ok(if seen.agree {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(REFUSED)
    })
}

fn show(seen: &VerifyView) -> String {
    let dash = || "-".to_owned();
    let rows = seen.owners.iter().map(|copy| {
        let name = copy.owner.name.clone();
        let floor = copy.floor_micros.map(|micros| micros.to_string());
        vec![
            name.unwrap_or_else(|| copy.owner.id.clone()),
            copy.answer.clone(),
            copy.version.clone().unwrap_or_else(dash),
            copy.hash.clone().unwrap_or_else(dash),
            floor.unwrap_or_else(dash),
        ]
    });
    let verdict = if seen.agree {
        "all owners hold the same"
    } else {
        "the owners do not agree, or not all of them have answered"
    };
    format!(
        "key `{}` of bucket `{}` lies in partition {}: {verdict}\n\n{}",
        seen.key(),
        seen.bucket,
        seen.partition,
        output::table(&["NODE", "ANSWER", "VERSION", "HASH", "FLOOR"], rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_owner_has_its_row_and_the_verdict_comes_first() {
        let text = r#"{"bucket":"default","key":"k","n":2,"partition":7,"agree":false,"owners":[
            {"id":"01","name":"node-1","http":null,"zone":null,"alive":true,"answer":"holds",
             "version":"5.0-01","hash":"00000000000000ff","floor_micros":12},
            {"id":"02","name":null,"http":null,"zone":null,"alive":false,"answer":"silent",
             "version":null,"hash":null}]}"#;
        let seen: VerifyView = serde_json::from_str(text).expect("what is held");
        let shown = show(&seen);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[0].contains("partition 7: the owners do not agree"));
        assert!(
            lines[3].starts_with("node-1") && lines[3].contains("00ff"),
            "{shown}"
        );
        assert!(
            lines[4].starts_with("02") && lines[4].contains("silent"),
            "{shown}"
        );
    }
}
