//! Hostile bytes and subjects: a verdict always, a panic never.

use std::time::SystemTime;

use async_nats::HeaderMap;
use edd_events::{
    event::{BadEvent, Decoded, PAYLOAD_LEN_MAX, Payload, Position, decode},
    subject::{EntityId, Kind, Parsed, parse, subject},
};
use edd_proto::{
    common::{self, EventMetadata},
    compute::{self, ContainerStopped},
};
use proptest::prelude::*;
use prost::Message as _;

fn position() -> Position {
    Position {
        stream: "COMPUTE".into(),
        sequence: 9,
        published_at: SystemTime::UNIX_EPOCH,
    }
}

fn stopped(event_id: &str) -> Vec<u8> {
    let metadata = Some(EventMetadata {
        event_id: event_id.into(),
        ..EventMetadata::default()
    });
    ContainerStopped {
        metadata,
        container_id: "abc".into(),
    }
    .encode_to_vec()
}

fn event_id_of(payload: &[u8], headers: Option<&HeaderMap>) -> Result<String, BadEvent> {
    match decode(
        "compute.container.abc.stopped",
        payload,
        headers,
        &position(),
    ) {
        Decoded::Event(event) => Ok(event.event_id),
        Decoded::Bad(_, bad) => Err(bad),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_event_without_id_gets_the_message_id_else_its_place_in_the_stream() {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", "m1");
    assert_eq!(event_id_of(&stopped("e1"), Some(&headers)).unwrap(), "e1");
    assert_eq!(event_id_of(&stopped(""), Some(&headers)).unwrap(), "m1");
    assert_eq!(event_id_of(&stopped(""), None).unwrap(), "COMPUTE:9");
    assert_eq!(
        event_id_of(&stopped(&"x".repeat(129)), None),
        Err(BadEvent::EventId(129))
    );
}

#[test]
fn an_oversized_payload_is_bad_without_being_decoded() {
    let payload = vec![0; PAYLOAD_LEN_MAX + 1];
    assert_eq!(
        event_id_of(&payload, None),
        Err(BadEvent::Size(PAYLOAD_LEN_MAX + 1))
    );
}

/// PostgreSQL cannot store one: it would look like a database that fails.
#[test]
fn a_text_with_a_nul_is_bad_and_one_with_a_backslash_is_not() {
    let created = |name: &str, source: &str| {
        compute::ContainerCreated {
            metadata: Some(EventMetadata {
                source: source.into(),
                timestamp: Some(common::Timestamp::default()),
                ..Default::default()
            }),
            container_id: "c1".into(),
            user_id: 1,
            name: name.into(),
            ..Default::default()
        }
        .encode_to_vec()
    };
    for (payload, is_bad) in [
        (created("a\0b", ""), true),
        (created("", "\0"), true),
        (created("\\\0", ""), true),
        (created("a\\0b", "c\\\\0"), false),
        (created("\u{1}\"0\n0", ""), false),
    ] {
        let position = position();
        let decoded = decode("compute.container.c1.created", &payload, None, &position);
        match decoded {
            Decoded::Bad(_, bad) => assert!(is_bad && bad == BadEvent::Nul, "{bad:?}"),
            Decoded::Event(_) => assert!(!is_bad, "{payload:?}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(event_id_of(&stopped("e\0"), None), Err(BadEvent::Nul));
}

#[test]
fn unknown_fields_of_a_newer_publisher_are_ignored() {
    let mut payload = stopped("e1");
    // Field 99, a string.
    payload.extend_from_slice(&[0x9a, 0x06, 0x03, b'n', b'e', b'w']);
    assert_eq!(event_id_of(&payload, None).unwrap(), "e1");
}

proptest! {
    #[test]
    fn any_bytes_get_a_verdict(
        kind in prop::sample::select(Kind::ALL),
        id in "[A-Za-z0-9_-]{1,64}",
        payload in prop::collection::vec(any::<u8>(), 0..512),
    ) {
        let entity = EntityId::try_from(id.as_str()).unwrap();
        match decode(&subject(kind, &entity), &payload, None, &position()) {
            Decoded::Event(event) => prop_assert_eq!(event.kind, kind),
            Decoded::Bad(found, _) => prop_assert_eq!(found, kind),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_good_event_with_damaged_bytes_gets_a_verdict(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut payload = stopped("0190b0b0-0000-7000-8000-000000000000");
        let at = at.index(payload.len());
        payload[at] = byte;
        payload.truncate(cut.index(payload.len() + 1));
        let _ = decode("compute.container.abc.stopped", &payload, None, &position());
        for kind in Kind::ALL {
            let _ = Payload::decode(*kind, &payload);
        }
    }

    #[test]
    fn any_subject_is_parsed(subject in "\\PC{0,80}") {
        let _ = parse(&subject);
        let _ = decode(&subject, b"", None, &position());
    }

    #[test]
    fn subjects_of_any_tokens_name_an_event_or_nothing(tokens in "[a-z_]{0,12}(\\.[a-z_*>]{0,12}){0,5}") {
        if let Parsed::Event(kind, id) = parse(&tokens) {
            let expected = kind.label().replace('*', id);
            prop_assert_eq!(tokens, expected);
        }
    }
}
