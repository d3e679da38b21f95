//! The table on disk: whole or not at all.

use std::time::Duration;

use edd_route::snapshot::{Snapshot, SnapshotError};
use edd_route::{
    HealthSpec, ProxyHeader, RouteTable, Scheme, Settings, TableWriter, TargetSpec, UserId,
};
use proptest::prelude::*;

use crate::support::{container, key, route, writer};

fn sample() -> Snapshot {
    let mut spec = container("abc", &[(443, 8080), (8000, 7000)]);
    spec.running.as_mut().unwrap().ssh_host_key = Some("ssh-ed25519 AAAA".into());
    let mut limited = route("a.example.com", "/x", "x:1");
    limited.deny = vec!["10.0.0.0/8".parse().unwrap()];
    limited.targets.push(TargetSpec {
        scheme: Scheme::Https,
        authority: "y:443".into(),
        weight: 3,
    });
    limited.fail_on = vec![503];
    limited.retries = 1;
    limited.proxy_protocol = Some(ProxyHeader::V2);
    limited.health = Some(HealthSpec {
        path: "/healthz".into(),
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(2),
    });
    let mut writer = writer(vec![limited], vec![spec, container("zz", &[])]);
    writer.put_keys(UserId(3), vec![key(1, "SHA256:a")]);
    let published = writer.publish(77).expect("a table");
    Snapshot::of(&published.table, 123)
}

#[test]
fn a_table_survives_the_disk() {
    let snapshot = sample();
    let read = Snapshot::decode(&snapshot.encode().unwrap()).expect("readable");
    assert_eq!(read, snapshot);

    let settings = Settings::new("cloud.example.com", vec![443, 8443]);
    let mut writer = TableWriter::new(RouteTable::empty(settings));
    writer.set_statics(read.statics);
    writer.replace_dynamic(read.containers, read.keys);
    let published = writer.publish(read.revision).expect("a table");
    assert_eq!(Snapshot::of(&published.table, 123), snapshot);
    let entry_by_entry = Snapshot::encode_table(&published.table, 123).unwrap();
    assert_eq!(entry_by_entry, snapshot.encode().unwrap());
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let bytes = sample().encode().unwrap();
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        assert!(Snapshot::decode(&bad).is_err(), "flipped at {at}");
        assert!(Snapshot::decode(&bytes[..at]).is_err(), "cut at {at}");
    }
    assert!(matches!(
        Snapshot::decode(b"something else"),
        Err(SnapshotError::Magic)
    ));
}

/// The file as the version before wrote it, of the same sample.
#[test]
fn a_file_of_version_1_is_read() {
    let old = include_bytes!("data/table-1.bin");
    let mut expected = sample();
    let route = &mut expected.statics[0];
    route.fail_on.clear();
    (route.health, route.proxy_protocol, route.retries) = (None, None, 2);
    route.targets.truncate(1);
    assert_eq!(Snapshot::decode(old).expect("readable"), expected);
    for at in 0..old.len() {
        assert!(Snapshot::decode(&old[..at]).is_err(), "cut at {at}");
    }
}

proptest! {
    #[test]
    fn hostile_bodies_never_panic(
        version in 1..3,
        body in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut bytes = format!("edd-gateway table {version}\n").into_bytes();
        bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        let _ = Snapshot::decode(&bytes);
    }
}
