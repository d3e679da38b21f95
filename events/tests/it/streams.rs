//! Streams: created as the contract says, left alone when they are others'.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use edd_events::stream::{AUTH, COMPUTE, GATEWAY, SFS, StreamSpec, ensure};

use crate::support::server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_streams_are_created_with_event_subjects_only() {
    let (_nats, js) = server().await;
    for spec in [AUTH, COMPUTE, GATEWAY, SFS] {
        // Twice: the second time it is there.
        ensure(&js, &spec, 1).await.unwrap();
        let stream = ensure(&js, &spec, 1).await.unwrap();
        let config = stream.get_info().await.unwrap().config;
        assert_eq!(config.subjects, spec.subjects);
        assert_eq!(config.storage, StorageType::File);
        assert_eq!(config.retention, RetentionPolicy::Limits);
        assert_eq!(config.discard, DiscardPolicy::Old);
        assert_eq!(config.max_age, Duration::from_secs(7 * 24 * 3600));
        assert_eq!(config.duplicate_window, Duration::from_secs(120));
        assert_eq!(config.num_replicas, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_this_project_gets_new_subjects_and_keeps_its_old() {
    let (_nats, js) = server().await;
    let old = StreamSpec {
        name: "COMPUTE",
        subjects: &["compute.container.>", "compute.old.>"],
    };
    ensure(&js, &old, 1).await.unwrap();
    ensure(&js, &COMPUTE, 1).await.unwrap();
    let stream = js.get_stream("COMPUTE").await.unwrap();
    assert_eq!(
        stream.cached_info().config.subjects,
        [
            "compute.container.>",
            "compute.old.>",
            "compute.ingress.>",
            "compute.sshkey.>",
            "compute.user.>"
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_someone_else_is_never_changed() {
    let (_nats, js) = server().await;
    for subjects in [
        vec!["compute.container.>".to_owned()],
        vec!["auth.>".to_owned()],
    ] {
        let spec = if subjects[0].starts_with("auth") {
            AUTH
        } else {
            COMPUTE
        };
        let config = Config {
            name: spec.name.into(),
            subjects: subjects.clone(),
            max_age: Duration::from_secs(3600),
            ..Config::default()
        };
        js.create_stream(config).await.unwrap();
        let before = js
            .get_stream(spec.name)
            .await
            .unwrap()
            .cached_info()
            .config
            .clone();
        ensure(&js, &spec, 1).await.unwrap();
        let after = js
            .get_stream(spec.name)
            .await
            .unwrap()
            .cached_info()
            .config
            .clone();
        assert_eq!(before, after);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subjects_that_another_stream_has_are_an_error_that_names_the_stream() {
    let (_nats, js) = server().await;
    let subjects = vec!["compute.>".to_owned()];
    let config = Config {
        name: "MINE".into(),
        subjects,
        ..Config::default()
    };
    js.create_stream(config).await.unwrap();
    let error = ensure(&js, &COMPUTE, 1).await.unwrap_err().to_string();
    assert!(
        error.contains("COMPUTE") && error.contains("overlap"),
        "{error}"
    );
}
