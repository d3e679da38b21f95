//! What a change keeps, and what it ends.

use std::net::Ipv4Addr;

use edd_route::decide::HttpDecision;
use edd_route::{Admission, ContainerSpec, Door, TableWriter, UserId};

use crate::support::{ask, container, event, key, route, writer};

/// A container with everything, and what four connections to it depend on.
struct Live {
    writer: TableWriter,
    spec: ContainerSpec,
    https: Admission,
    http: Admission,
    raw: Admission,
    ssh: Admission,
}

fn live() -> Live {
    let mut spec = container("abc", &[(80, 8080), (443, 8080), (8000, 7000)]);
    spec.ssh_enabled = true;
    let mut writer = writer(
        vec![],
        vec![spec.clone(), container("other", &[(443, 8080)])],
    );
    writer.put_keys(UserId(1), vec![key(7, "SHA256:k"), key(8, "SHA256:l")]);
    let table = writer.table();
    let by = |door| match ask(table, door, "abc.compute.cloud.example.com", "/") {
        HttpDecision::Container(to) => to.admission,
        other => panic!("{other:?}"),
    };
    Live {
        https: by(Door::PublicHttps),
        http: by(Door::PublicHttp),
        raw: table.decide_raw(8000).expect("its owner").admission,
        ssh: table
            .decide_ssh("abc", "SHA256:k")
            .expect("a login")
            .admission,
        spec,
        writer,
    }
}

impl Live {
    /// Applies a change and says which connections it ended.
    fn ended(&mut self, change: impl FnOnce(&mut ContainerSpec)) -> Vec<&'static str> {
        change(&mut self.spec);
        self.writer.put_container(self.spec.clone());
        self.publish()
    }

    fn publish(&mut self) -> Vec<&'static str> {
        if let Some(published) = self.writer.publish(0) {
            published.revoke();
        }
        let all = [
            ("https", &self.https),
            ("http", &self.http),
            ("raw", &self.raw),
            ("ssh", &self.ssh),
        ];
        all.into_iter()
            .filter(|(_, a)| a.is_revoked())
            .map(|(name, _)| name)
            .collect()
    }
}

#[test]
fn stopping_ends_everything_of_the_container() {
    assert_eq!(
        live().ended(|spec| spec.running = None),
        ["https", "http", "raw", "ssh"]
    );
}

#[test]
fn another_address_ends_everything_the_same_address_nothing() {
    assert!(
        live()
            .ended(|spec| spec.running.as_mut().unwrap().start = 9)
            .is_empty()
    );
    let moved = Ipv4Addr::new(10, 0, 0, 2).into();
    let ended = live().ended(|spec| spec.running.as_mut().unwrap().address = moved);
    assert_eq!(ended, ["https", "http", "raw", "ssh"]);
}

#[test]
fn each_switch_rule_and_key_ends_only_its_own() {
    assert_eq!(live().ended(|spec| spec.ssh_enabled = false), ["ssh"]);
    assert_eq!(live().ended(|spec| spec.https_enabled = false), ["https"]);
    assert_eq!(
        live().ended(|spec| spec.rules.retain(|rule| rule.port != 8000)),
        ["raw"]
    );
    assert_eq!(
        live().ended(|spec| spec.rules.retain(|rule| rule.port != 80)),
        ["http"]
    );

    let mut live = live();
    live.writer.put_keys(UserId(1), vec![key(7, "SHA256:k")]);
    assert!(live.publish().is_empty(), "another key of the user");
    live.writer.put_keys(UserId(1), vec![key(8, "SHA256:l")]);
    assert_eq!(live.publish(), ["ssh"]);
}

#[test]
fn a_rules_new_target_keeps_connections_until_the_rule_is_deleted() {
    let mut live = live();
    assert!(
        live.ended(|spec| spec.rules[2].target_port = 7777)
            .is_empty()
    );
    assert_eq!(
        live.writer
            .table()
            .decide_raw(8000)
            .unwrap()
            .upstream
            .port(),
        7777
    );
    assert_eq!(live.ended(|spec| spec.rules.truncate(2)), ["raw"]);
}

#[test]
fn removing_the_container_ends_everything_of_it_and_frees_its_ports() {
    let mut live = live();
    let id = live.spec.id.clone();
    live.writer.remove_container(&id);
    assert_eq!(live.publish(), ["https", "http", "raw", "ssh"]);
    assert!(!live.writer.table().port_has_rules(8000));
}

#[test]
fn unrelated_changes_end_nothing_and_equal_ones_publish_nothing() {
    let mut live = live();
    live.writer.publish(0).expect("the first table").revoke();
    for n in 0..100 {
        live.writer
            .put_container(container(&format!("c{n}"), &[(443, 1), (8000, 2)]));
        live.writer
            .put_keys(UserId(n + 10), vec![key(n, "SHA256:x")]);
        live.writer
            .set_statics(vec![route("s.example.com", "/", &format!("s:{}", n + 1))]);
        assert!(live.publish().is_empty());
    }
    let revision = live.writer.table().revision;
    live.writer.put_container(live.spec.clone());
    assert!(live.writer.publish(0).is_none());
    assert_eq!(live.writer.table().revision, revision);
}

#[test]
fn replacing_all_with_the_same_keeps_and_with_less_ends() {
    let mut live = live();
    live.writer.publish(0).expect("the first table").revoke();
    let keys = || vec![(UserId(1), vec![key(7, "SHA256:k"), key(8, "SHA256:l")])];
    let both = vec![live.spec.clone(), container("other", &[(443, 8080)])];
    live.writer.replace_dynamic(both, keys());
    assert!(!live.writer.is_changed());
    live.writer
        .replace_dynamic(vec![container("other", &[(443, 8080)])], keys());
    assert_eq!(live.publish(), ["https", "http", "raw", "ssh"]);
}

#[test]
fn a_published_table_does_not_change() {
    let mut live = live();
    let published = live.writer.publish(41).expect("a table");
    let table = published.table.clone();
    published.revoke();
    assert_eq!(table.revision, 41);
    live.ended(|spec| spec.origin = event(99));
    live.ended(|spec| spec.running = None);
    let still = ask(
        &table,
        Door::PublicHttps,
        "abc.compute.cloud.example.com",
        "/",
    );
    assert!(matches!(still, HttpDecision::Container(_)));
    assert_eq!(live.writer.table().revision, 43);
}
