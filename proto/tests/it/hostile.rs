//! Decoding takes any bytes: a message or an error, never a panic.

use std::fmt::Debug;

use edd_proto::{auth, common, compute, gateway, sfs};
use proptest::prelude::*;
use prost::Message;

/// Decodes as `M`; what decodes must survive its own encoding.
fn decode<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        let again = M::decode(message.encode_to_vec().as_slice()).expect("own encoding decodes");
        assert!(again == message, "{message:?} became {again:?}");
    }
}

fn decode_as_everything(bytes: &[u8]) {
    decode::<common::Timestamp>(bytes);
    decode::<common::EventMetadata>(bytes);
    decode::<auth::UserCreated>(bytes);
    decode::<auth::UserDeleted>(bytes);
    decode::<auth::UserUpdated>(bytes);
    decode::<auth::SessionCreated>(bytes);
    decode::<auth::SessionInvalidated>(bytes);
    decode::<auth::ValidateTokenRequest>(bytes);
    decode::<auth::ValidateTokenResponse>(bytes);
    decode::<compute::ContainerCreated>(bytes);
    decode::<compute::ContainerStarted>(bytes);
    decode::<compute::ContainerStopped>(bytes);
    decode::<compute::ContainerDeleted>(bytes);
    decode::<compute::ContainerSshToggled>(bytes);
    decode::<compute::ContainerHttpsToggled>(bytes);
    decode::<compute::SshKeyCreated>(bytes);
    decode::<compute::SshKeyDeleted>(bytes);
    decode::<compute::IngressRuleRequested>(bytes);
    decode::<compute::IngressRuleDeleteRequested>(bytes);
    decode::<compute::UserCached>(bytes);
    decode::<compute::UserPurged>(bytes);
    decode::<gateway::IngressRuleCreated>(bytes);
    decode::<gateway::IngressRuleDeleted>(bytes);
    decode::<gateway::RouteRegistered>(bytes);
    decode::<gateway::RouteUnregistered>(bytes);
    decode::<gateway::RouterRefreshed>(bytes);
    decode::<sfs::NamespaceCreated>(bytes);
    decode::<sfs::NamespaceDeleted>(bytes);
    decode::<sfs::NamespaceVisibilityChanged>(bytes);
    decode::<sfs::FileUploaded>(bytes);
    decode::<sfs::FileDeleted>(bytes);
}

/// A field that looks like one: small number, any wire type, any content. Pure
/// noise seldom gets past the first tag.
fn field() -> impl Strategy<Value = Vec<u8>> {
    let content = prop::collection::vec(any::<u8>(), 0..24);
    (1_u8..16, 0_u8..8, content, any::<bool>()).prop_map(|(number, wire, content, honest)| {
        let mut bytes = vec![number << 3 | wire];
        if wire == 2 {
            let length = content.len() as u8;
            bytes.push(if honest {
                length
            } else {
                length.wrapping_mul(37)
            });
        }
        bytes.extend(content);
        bytes
    })
}

proptest! {
    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..1024)) {
        decode_as_everything(&bytes);
    }

    #[test]
    fn likely_fields_never_panic(fields in prop::collection::vec(field(), 0..12)) {
        decode_as_everything(&fields.concat());
    }

    #[test]
    fn cut_and_damaged_messages_never_panic(
        name in ".{0,40}",
        user_id in any::<i64>(),
        cut in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let metadata = Some(common::EventMetadata {
            event_id: name.clone(),
            timestamp: Some(common::Timestamp { seconds: user_id, nanos: -1 }),
            ..Default::default()
        });
        let message = compute::ContainerCreated {
            metadata,
            container_id: name.clone(),
            user_id,
            name,
            ..Default::default()
        };
        let mut bytes = message.encode_to_vec();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        decode_as_everything(&bytes);
    }
}

#[test]
fn deep_nesting_and_endless_varints_are_errors() {
    // Groups within groups, deeper than any message.
    let deep = vec![0x0b; 100_000];
    decode_as_everything(&deep);
    decode_as_everything(&[0xff; 64]);
    // A length of 2^64 - 1 must not be believed.
    let mut long = vec![0x0a];
    long.extend([0xff; 9]);
    long.push(0x01);
    assert!(compute::ContainerCreated::decode(long.as_slice()).is_err());
}
