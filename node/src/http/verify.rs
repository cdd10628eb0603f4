//! `GET /ring/verify?bucket=&key=`: what each owner holds of a key, asked of all of them now.
//!
//! It shows copies as they are and repairs none: a read with `r=quorum` or anti-entropy makes them equal.

use http::Response;
use serde_json::{Value, json};
use torc_protocol::client::{ClientOp, ClientReply, Held, Holding};
use torc_protocol::message::Refusal;

use super::body::Body;
use super::health::json_response;
use super::problem::{Access, Problem, Refused};
use super::{Call, admin};

pub(super) async fn verify(call: &Call<'_>) -> Result<Response<Body>, Refused> {
    let (name, key) = admin::named_key(call)?;
    let view = call.view()?;
    let Some(bucket) = view.config.bucket(&name) else {
        return Err(Problem::no_bucket(&name));
    };
    let time = call.deadline(None)?;
    let op = ClientOp::Verify { key: key.clone() };
    let held = match call.submit(bucket.id, op, time).await {
        ClientReply::Verified { held } => held,
        ClientReply::Failed(error) => {
            return Err(Problem::client(error, Access::Read, call.handle().ready()));
        }
        ClientReply::Found { .. }
        | ClientReply::Stored { .. }
        | ClientReply::Prepared { .. }
        | ClientReply::Listed { .. } => return Err(Problem::internal()),
    };
    let state = call.handle().state();
    let owners: Vec<Value> = held
        .iter()
        .map(|held| {
            let mut owner = admin::owner(held.node, &view, &state);
            show(&mut owner, held);
            owner
        })
        .collect();
    let partition = view.ring.partition(view.ring.token(bucket.id, &key));
    let mut answer = json!({
        "bucket": name,
        "n": bucket.n,
        "partition": partition.0,
        "agree": agree(&held),
        "owners": owners,
    });
    admin::put_text(&mut answer, "key", &key);
    Ok(json_response(&answer))
}

/// Whether all owners have answered, and hold the same.
fn agree(held: &[Held]) -> bool {
    let answered = |held: &Held| matches!(held.holding, Holding::State(_));
    held.iter().all(answered) && held.windows(2).all(|two| two[0].holding == two[1].holding)
}

fn show(owner: &mut Value, held: &Held) {
    let (answer, digest) = match held.holding {
        Holding::State(Some(digest)) => ("holds", Some(digest)),
        Holding::State(None) => ("nothing", None),
        Holding::Refused(refusal) => (reason(refusal), None),
        Holding::Silent => ("silent", None),
    };
    owner["answer"] = json!(answer);
    owner["version"] = json!(digest.map(|digest| digest.version.to_string()));
    owner["hash"] = json!(digest.map(|digest| format!("{:016x}", digest.hash)));
    if held.floor.0 > 0 {
        owner["floor_micros"] = json!(held.floor.micros());
    }
}

/// Why an owner does not say what it holds.
fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::RingVersion { .. } => "ring_version",
        Refusal::NotOwner => "not_owner",
        Refusal::Storage => "storage",
        Refusal::Expired => "silent",
        Refusal::DiskFull
        | Refusal::Overloaded
        | Refusal::ClockDrift
        | Refusal::Closed
        | Refusal::Inheriting => "not_ready",
    }
}
