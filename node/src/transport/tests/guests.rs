//! Nodes that are no members: what they may say, under which name, and how much of this node they may hold.

use torc_protocol::cluster_message::CLUSTER_PROTOCOL;
use torc_ring::ConfigVersion;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_talk_about_membership_only() {
    let cluster = Cluster::new();
    let mut inside = cluster.node(1);
    let mut guest = cluster.node(2);
    inside.transport.set_cluster(ClusterId(7));
    inside.transport.set_members(&[inside.member.clone()]);
    let reached = guest
        .transport
        .dial(&inside.member.peer.clone())
        .await
        .unwrap();
    assert_eq!(reached, NodeId(1));
    guest.transport.send(NodeId(1), value(1, 10));
    guest.transport.send(NodeId(1), value(2, 100_000));
    guest.transport.send(NodeId(1), membership(3));
    guest.transport.send_gossip(
        inside.member.peer.parse().unwrap(),
        Bytes::from_static(b"news"),
    );
    assert_eq!(inside.message().await, (NodeId(2), membership(3)));
    eventually("both are counted", || inside.refused(Reason::Guest) == 2).await;
    inside.transport.send(NodeId(2), membership(4));
    assert_eq!(guest.message().await, (NodeId(1), membership(4)));

    assert_eq!(inside.counted(), [None], "no guest has a series of its own");

    // Once it is a member it may say all, on the same connection; once removed, no more.
    let both = [inside.member.clone(), guest.member.clone()];
    inside.transport.set_members(&both);
    guest.transport.set_members(&both);
    guest.transport.send(NodeId(1), value(5, 10));
    assert_eq!(inside.message().await, (NodeId(2), value(5, 10)));
    assert_eq!(inside.counted(), [None, Some(NodeId(2))]);
    inside.transport.set_members(&both[..1]);
    guest.transport.send(NodeId(1), value(6, 10));
    guest.transport.send(NodeId(1), membership(7));
    assert_eq!(inside.message().await, (NodeId(2), membership(7)));
    assert_eq!(inside.refused(Reason::Guest), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impostor_that_was_a_guest_is_cut_off_when_its_id_becomes_a_member() {
    let cluster = Cluster::new();
    let a = cluster.node(1);
    let mut settings = cluster.settings(3);
    settings.node = NodeId(2);
    let mut impostor = Node::start(settings);
    impostor.transport.dial(&a.member.peer).await.unwrap();
    impostor.link(1, true).await;
    let b = Member {
        id: NodeId(2),
        name: "n2".into(),
        ..impostor.member.clone()
    };
    a.transport.set_members(&[a.member.clone(), b]);
    impostor.link(1, false).await;
    assert!(a.refused(Reason::CertificateName) >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_and_connections_are_bounded() {
    let cluster = Cluster::new();
    let crowded = Node::start(TransportSettings {
        guests: 1,
        ..cluster.settings(1)
    });
    let (first, second) = (cluster.node(2), cluster.node(3));
    first.transport.dial(&crowded.member.peer).await.unwrap();
    assert_eq!(refusal(&second, &crowded).await, Reason::TooMany);
    // A guest that leaves makes room.
    first.transport.stop().await;
    eventually("the guest is forgotten", || {
        crowded.transport.peers().is_empty()
    })
    .await;
    second.transport.dial(&crowded.member.peer).await.unwrap();

    let full = Node::start(TransportSettings {
        connections: 0,
        ..cluster.settings(4)
    });
    assert!(second.transport.dial(&full.member.peer).await.is_err());
    assert_eq!(full.refused(Reason::TooMany), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_joins_under_another_name_than_its_certificates() {
    let cluster = Cluster::new();
    let mut inside = cluster.node(1);
    let honest = cluster.node(2);
    honest.transport.dial(&inside.member.peer).await.unwrap();
    honest.transport.send(NodeId(1), join(&honest.member));
    assert_eq!(inside.message().await, (NodeId(2), join(&honest.member)));

    let liar = cluster.node(3);
    liar.transport.dial(&inside.member.peer).await.unwrap();
    let borrowed = Member {
        name: "n2".into(),
        ..liar.member.clone()
    };
    liar.transport.send(NodeId(1), join(&borrowed));
    eventually("it is refused", || {
        inside.refused(Reason::CertificateName) == 1
    })
    .await;
    honest.transport.send(NodeId(1), membership(9));
    assert_eq!(inside.message().await, (NodeId(2), membership(9)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_holds_the_room_of_large_messages_for_seconds_only() {
    let cluster = Cluster::new();
    let inside = cluster.node(1);
    let (_endpoint, connection, _out) = raw(&cluster, 2, &inside).await;
    let mut stream = connection.open_uni().await.unwrap();
    let announced = [&[1][..], &(1_u32 << 20).to_le_bytes()].concat();
    stream.write_all(&announced).await.unwrap();
    // It never stands still for long, and never ends.
    let trickle = tokio::spawn(async move {
        while stream.write_all(&[0]).await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    });
    assert_eq!(closed_for(&connection).await, Some(Reason::Stalled));
    assert_eq!(inside.refused(Reason::Stalled), 1);
    timeout(PATIENCE, trickle).await.unwrap().unwrap();
}

fn join(member: &Member) -> PeerMessage {
    let message = ClusterMessage::Join {
        protocol: CLUSTER_PROTOCOL,
        version: ConfigVersion(1),
        cluster: ClusterId(7),
        member: member.clone(),
        replaces: None,
    };
    PeerMessage {
        hlc: Hlc(1),
        body: PeerBody::Cluster(message),
    }
}
