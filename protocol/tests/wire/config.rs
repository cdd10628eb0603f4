//! Configurations on the wire and on disk: their two forms, and what is refused of what a peer or a disk says.

use torc_protocol::wire::{self, WireError};
use torc_ring::{Config, Member, NodeId, OwnerTable};

use super::{config, hex, member};

/// A joint config of five members, with tables in both rings.
fn config_with_tables() -> Config {
    let members = |ids: std::ops::Range<u64>| -> Vec<Member> {
        ids.map(|id| Member {
            id: NodeId(id),
            name: format!("n{id}"),
            peer: format!("n{id}:7001"),
            ..member()
        })
        .collect()
    };
    let ring = config().regrouped(members(1..5));
    let newcomer = members(5..6);
    let waiting = newcomer.iter().map(|m| (m.id, m.clone())).collect();
    let join = torc_ring::RingChange::Join { node: NodeId(5) };
    torc_ring::change::stage(&ring, &[join], &waiting).expect("staged")
}

#[test]
fn a_config_without_tables_keeps_its_bytes_and_one_with_tables_has_its_own_form() {
    let plain = wire::encode_config(&config()).expect("encodes");
    assert_eq!(plain[0], 1, "what nodes without tables read and write");
    let config = config_with_tables();
    assert_eq!((config.tables.len(), config.target_tables.len()), (1, 1));
    let bytes = wire::encode_config(&config).expect("encodes");
    assert_eq!(bytes[0], 2);
    assert_eq!(wire::decode_config(&bytes).expect("decodes"), config);
    // Count of tables, n, length, two bits for each of 48 owners; then the same with three bits.
    let expected = "0100000000000000030c00000000000000";
    let shown = hex(&bytes);
    let tables = shown.find(expected).map(|at| &shown[at..]);
    assert_eq!(tables, Some(TABLES), "the bytes of tables are pinned");
    let mut empty = plain.to_vec();
    empty[0] = 2;
    empty.extend([0; 16]);
    assert!(wire::decode_config(&empty).is_err(), "no two forms of one");
}

#[test]
fn a_config_in_which_members_recover_has_a_form_of_its_own_and_any_other_keeps_its_bytes() {
    for before in [config(), config_with_tables()] {
        let first = before.current[0].id;
        let config = before.with_recovering(first).expect("a member");
        let bytes = wire::encode_config(&config).expect("encodes");
        assert_eq!(bytes[0], 3);
        assert_eq!(wire::decode_config(&bytes).expect("decodes"), config);
        let list = format!("0100000000000000{:02x}00000000000000", first.0);
        assert!(hex(&bytes).ends_with(&list), "one node, which stands last");
        let mut stranger = config.clone();
        stranger.recovering = vec![NodeId(77)];
        let bytes = wire::encode_config(&stranger).expect("encodes");
        assert!(matches!(
            wire::decode_config(&bytes),
            Err(WireError::Config(_))
        ));
        let mut nobody = wire::encode_config(&before).expect("encodes").to_vec();
        let left_out = if nobody[0] == 1 { 24 } else { 8 };
        nobody[0] = 3;
        nobody.extend([0; 24].iter().take(left_out));
        assert!(wire::decode_config(&nobody).is_err(), "no two forms of one");
    }
}

const TABLES: &str = "0100000000000000030c0000000000000035e8f4d9c9cb26762c606e3401000000000000000312000000000000001096906c86616116132a42c289c2842a20e0";

#[test]
fn tables_that_a_peer_or_a_disk_made_up_are_refused() {
    let good = config_with_tables();
    let refused = |spoil: &dyn Fn(&mut Config)| {
        let mut config = good.clone();
        spoil(&mut config);
        let bytes = wire::encode_config(&config).expect("encodes");
        assert!(matches!(
            wire::decode_config(&bytes),
            Err(WireError::Config(_))
        ));
    };
    let with = |table: &OwnerTable, n: u8, spoil: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = table.as_bytes().to_vec();
        spoil(&mut bytes);
        OwnerTable::from_bytes(n, bytes)
    };
    refused(&|c| c.tables[0] = with(&c.tables[0], 3, &|b| b.truncate(b.len() - 1)));
    refused(&|c| c.tables[0] = with(&c.tables[0], 3, &|b| b.push(0)));
    refused(&|c| c.tables[0] = with(&c.tables[0], 3, &|b| b.fill(0)));
    refused(&|c| c.target_tables[0] = with(&c.target_tables[0], 3, &|b| b.fill(0xff)));
    refused(&|c| c.tables[0] = with(&c.tables[0], 2, &|_| {}));
    refused(&|c| c.tables.push(c.tables[0].clone()));
    refused(&|c| c.tables[0] = c.target_tables[0].clone());
    refused(&|c| c.target = None);
}

#[test]
fn an_invalid_config_is_refused() {
    let good = wire::encode_config(&config()).expect("encodes");
    assert_eq!(wire::decode_config(&good).expect("decodes"), config());
    let mut nobody = config();
    nobody.current.clear();
    let bytes = wire::encode_config(&nobody).expect("encodes");
    assert!(matches!(
        wire::decode_config(&bytes),
        Err(WireError::Config(_))
    ));
    for len in 0..good.len() {
        assert!(wire::decode_config(&good[..len]).is_err(), "cut at {len}");
    }
}
