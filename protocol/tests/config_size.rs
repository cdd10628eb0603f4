//! A configuration of the greatest cluster still travels in one small message.

use std::collections::BTreeMap;

use torc_protocol::wire;
use torc_ring::change::stage;
use torc_ring::config::MEMBERS_MAX;
use torc_ring::{ClusterId, Config, Member, NodeId, RingChange, Secret};

/// What the configuration of the greatest cluster may be on the wire and on disk.
const CONFIG_BYTES_MAX: usize = 256 * 1024;

fn members(host: impl Fn(usize) -> String) -> Vec<Member> {
    let member = |index: usize| Member {
        id: NodeId(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index as u64 + 1)),
        name: format!("torc-{index:03}"),
        zone: format!("eu-central-1{}", ["a", "b", "c"][index % 3]),
        weight: 100,
        peer: format!("{}:7001", host(index)),
        http: format!("{}:8080", host(index)),
    };
    (0..MEMBERS_MAX).map(member).collect()
}

fn config(members: Vec<Member>) -> Config {
    let secret = Secret([7; 32]);
    Config::bootstrap(ClusterId(1), (2, secret), 10, members[0].clone()).with_members(members)
}

#[test]
fn a_config_of_a_thousand_members_with_long_host_names_is_at_most_256_kib() {
    let named = config(members(|index| {
        format!("torc-{index:03}.torc-peers.production.svc.cluster.local")
    }));
    let named = named.regrouped(named.current.clone());
    assert_eq!(named.tables[0].as_bytes().len(), 3840, "ten bits an owner");
    let bytes = wire::encode_config(&named).expect("within the limit of a message");
    assert!(bytes.len() <= CONFIG_BYTES_MAX, "{} bytes", bytes.len());
    assert_eq!(wire::decode_config(&bytes).expect("valid"), named);
}

#[test]
fn a_joint_config_lists_its_thousand_members_twice_within_256_kib() {
    let ring = config(members(|index| {
        format!("10.12.{}.{}", index / 250, index % 250)
    }));
    let ring = ring.regrouped(ring.current.clone());
    let (node, weight) = (ring.current[7].id, 200);
    let reweigh = RingChange::Reweigh { node, weight };
    let joint = stage(&ring, &[reweigh], &BTreeMap::new()).expect("staged");
    assert_eq!((joint.tables.len(), joint.target_tables.len()), (1, 1));
    let bytes = wire::encode_config(&joint).expect("within the limit of a message");
    assert!(bytes.len() <= CONFIG_BYTES_MAX, "{} bytes", bytes.len());
    assert_eq!(wire::decode_config(&bytes).expect("valid"), joint);
}
