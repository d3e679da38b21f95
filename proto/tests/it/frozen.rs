//! Fails when a published message, package, number, type or label changes.
//!
//! Events stay in streams for a week and services of several versions run side
//! by side, so a change here breaks someone. Adding a message or a field with a
//! new number is allowed: then the table below grows by its line.

use std::{collections::BTreeSet, path::Path};

use prost_types::{
    DescriptorProto,
    field_descriptor_proto::{Label, Type},
};

const FILES: [&str; 6] = [
    "common/types.proto",
    "auth/events.proto",
    "compute/events.proto",
    "compute/snapshot.proto",
    "gateway/events.proto",
    "sfs/events.proto",
];

/// `package.Message.field = number type`, one line per field.
const PUBLISHED: &str = "
common.EventMetadata.event_id = 1 string
common.EventMetadata.entity_id = 2 string
common.EventMetadata.timestamp = 3 common.Timestamp
common.EventMetadata.source = 4 string
common.EventMetadata.version = 5 int64
common.Timestamp.seconds = 1 int64
common.Timestamp.nanos = 2 int32
auth.SessionCreated.metadata = 1 common.EventMetadata
auth.SessionCreated.session_id = 2 string
auth.SessionCreated.user_id = 3 int64
auth.SessionCreated.expires_at = 4 common.Timestamp
auth.SessionInvalidated.metadata = 1 common.EventMetadata
auth.SessionInvalidated.session_id = 2 string
auth.SessionInvalidated.user_id = 3 int64
auth.UserCreated.metadata = 1 common.EventMetadata
auth.UserCreated.user_id = 2 int64
auth.UserCreated.username = 3 string
auth.UserCreated.display_name = 4 string
auth.UserCreated.public_id = 5 string
auth.UserDeleted.metadata = 1 common.EventMetadata
auth.UserDeleted.user_id = 2 int64
auth.UserDeleted.username = 3 string
auth.UserUpdated.metadata = 1 common.EventMetadata
auth.UserUpdated.user_id = 2 int64
auth.UserUpdated.username = 3 string
auth.UserUpdated.display_name = 4 string
auth.ValidateTokenRequest.token = 1 string
auth.ValidateTokenResponse.valid = 1 bool
auth.ValidateTokenResponse.user_id = 2 int64
auth.ValidateTokenResponse.username = 3 string
compute.ContainerCreated.metadata = 1 common.EventMetadata
compute.ContainerCreated.container_id = 2 string
compute.ContainerCreated.user_id = 3 int64
compute.ContainerCreated.owner_username = 4 string
compute.ContainerCreated.name = 5 string
compute.ContainerCreated.namespace = 6 string
compute.ContainerCreated.memory_mb = 7 int32
compute.ContainerCreated.storage_gb = 8 int32
compute.ContainerCreated.image = 9 string
compute.ContainerDeleted.metadata = 1 common.EventMetadata
compute.ContainerDeleted.container_id = 2 string
compute.ContainerDeleted.user_id = 3 int64
compute.ContainerHTTPSToggled.metadata = 1 common.EventMetadata
compute.ContainerHTTPSToggled.container_id = 2 string
compute.ContainerHTTPSToggled.https_enabled = 3 bool
compute.ContainerSSHToggled.metadata = 1 common.EventMetadata
compute.ContainerSSHToggled.container_id = 2 string
compute.ContainerSSHToggled.ssh_enabled = 3 bool
compute.ContainerStarted.metadata = 1 common.EventMetadata
compute.ContainerStarted.container_id = 2 string
compute.ContainerStarted.external_ip = 3 string
compute.ContainerStarted.ssh_host_key = 4 string
compute.ContainerStopped.metadata = 1 common.EventMetadata
compute.ContainerStopped.container_id = 2 string
compute.DigestRequest.nonce = 1 string
compute.DigestResponse.digest = 1 bytes
compute.DigestResponse.signature = 2 string
compute.DigestResponse.signature_key = 3 string
compute.IngressRuleDeleteRequested.metadata = 1 common.EventMetadata
compute.IngressRuleDeleteRequested.container_id = 2 string
compute.IngressRuleDeleteRequested.port = 3 int32
compute.IngressRuleRequested.metadata = 1 common.EventMetadata
compute.IngressRuleRequested.container_id = 2 string
compute.IngressRuleRequested.port = 3 int32
compute.IngressRuleRequested.target_port = 4 int32
compute.SSHKeyCreated.metadata = 1 common.EventMetadata
compute.SSHKeyCreated.key_id = 2 int64
compute.SSHKeyCreated.user_id = 3 int64
compute.SSHKeyCreated.name = 4 string
compute.SSHKeyCreated.fingerprint = 5 string
compute.SSHKeyCreated.public_key = 6 string
compute.SSHKeyDeleted.metadata = 1 common.EventMetadata
compute.SSHKeyDeleted.key_id = 2 int64
compute.SSHKeyDeleted.user_id = 3 int64
compute.UserCached.metadata = 1 common.EventMetadata
compute.UserCached.user_id = 2 int64
compute.UserPurged.metadata = 1 common.EventMetadata
compute.UserPurged.user_id = 2 int64
compute.SnapshotFact.subject = 1 string
compute.SnapshotFact.payload = 2 bytes
compute.SnapshotPage.snapshot_id = 1 string
compute.SnapshotPage.page = 2 int32
compute.SnapshotPage.pages = 3 int32
compute.SnapshotPage.sequence = 4 uint64
compute.SnapshotPage.nonce = 5 string
compute.SnapshotPage.facts = 6 compute.SnapshotFact repeated
compute.SnapshotRequest.snapshot_id = 1 string
compute.SnapshotRequest.page = 2 int32
compute.SnapshotRequest.nonce = 3 string
compute.SnapshotResponse.page = 1 bytes
compute.SnapshotResponse.signature = 2 string
compute.SnapshotResponse.signature_key = 3 string
compute.StateDigest.nonce = 1 string
compute.StateDigest.sequence = 2 uint64
compute.StateDigest.facts = 3 uint64
compute.StateDigest.sums = 4 bytes
gateway.IngressRuleCreated.metadata = 1 common.EventMetadata
gateway.IngressRuleCreated.rule_id = 2 int64
gateway.IngressRuleCreated.container_id = 3 string
gateway.IngressRuleCreated.port = 4 int32
gateway.IngressRuleCreated.target_port = 5 int32
gateway.IngressRuleDeleted.metadata = 1 common.EventMetadata
gateway.IngressRuleDeleted.rule_id = 2 int64
gateway.IngressRuleDeleted.container_id = 3 string
gateway.IngressRuleDeleted.port = 4 int32
gateway.RouteRegistered.metadata = 1 common.EventMetadata
gateway.RouteRegistered.route_id = 2 int64
gateway.RouteRegistered.host = 3 string
gateway.RouteRegistered.path_prefix = 4 string
gateway.RouteRegistered.target = 5 string
gateway.RouteRegistered.strip_prefix = 6 bool
gateway.RouteUnregistered.metadata = 1 common.EventMetadata
gateway.RouteUnregistered.route_id = 2 int64
gateway.RouteUnregistered.host = 3 string
gateway.RouteUnregistered.path_prefix = 4 string
gateway.RouterRefreshed.metadata = 1 common.EventMetadata
gateway.RouterRefreshed.container_count = 2 int32
gateway.RouterRefreshed.route_count = 3 int32
sfs.FileDeleted.metadata = 1 common.EventMetadata
sfs.FileDeleted.namespace_id = 2 int64
sfs.FileDeleted.path = 3 string
sfs.FileDeleted.deleter_id = 4 int64
sfs.FileUploaded.metadata = 1 common.EventMetadata
sfs.FileUploaded.namespace_id = 2 int64
sfs.FileUploaded.path = 3 string
sfs.FileUploaded.size_bytes = 4 int64
sfs.FileUploaded.uploader_id = 5 int64
sfs.NamespaceCreated.metadata = 1 common.EventMetadata
sfs.NamespaceCreated.namespace_id = 2 int64
sfs.NamespaceCreated.owner_id = 3 int64
sfs.NamespaceCreated.name = 4 string
sfs.NamespaceCreated.visibility = 5 string
sfs.NamespaceDeleted.metadata = 1 common.EventMetadata
sfs.NamespaceDeleted.namespace_id = 2 int64
sfs.NamespaceDeleted.owner_id = 3 int64
sfs.NamespaceVisibilityChanged.metadata = 1 common.EventMetadata
sfs.NamespaceVisibilityChanged.namespace_id = 2 int64
sfs.NamespaceVisibilityChanged.old_visibility = 3 string
sfs.NamespaceVisibilityChanged.new_visibility = 4 string
";

#[test]
fn published_messages_do_not_change() {
    let published: BTreeSet<String> = PUBLISHED
        .lines()
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect();
    let found = fields();
    let gone: Vec<_> = published.difference(&found).collect();
    assert!(
        gone.is_empty(),
        "published fields changed or vanished: {gone:#?}"
    );
    let new: Vec<_> = found.difference(&published).collect();
    assert!(
        new.is_empty(),
        "new fields, to be published here too: {new:#?}"
    );
}

#[test]
fn no_number_is_used_twice_in_a_message() {
    let mut seen = BTreeSet::new();
    for field in fields() {
        let (path, rest) = field.split_once(" = ").unwrap();
        let (message, _) = path.rsplit_once('.').unwrap();
        let number = rest.split(' ').next().unwrap();
        assert!(seen.insert(format!("{message} {number}")), "{field}");
    }
}

fn fields() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile(FILES, [root])
        .expect("the .proto files compile")
        .file;
    let mut fields = BTreeSet::new();
    for file in &files {
        assert_eq!(file.syntax(), "proto3", "{}", file.name());
        for message in &file.message_type {
            describe(
                &format!("{}.{}", file.package(), message.name()),
                message,
                &mut fields,
            );
        }
    }
    fields
}

fn describe(path: &str, message: &DescriptorProto, fields: &mut BTreeSet<String>) {
    for field in &message.field {
        let kind = match field.r#type() {
            Type::Message | Type::Enum => field.type_name().trim_start_matches('.').to_owned(),
            kind => kind
                .as_str_name()
                .trim_start_matches("TYPE_")
                .to_lowercase(),
        };
        let label = match field.label() {
            Label::Repeated => " repeated",
            _ if field.proto3_optional() => " optional",
            _ => "",
        };
        fields.insert(format!(
            "{path}.{} = {} {kind}{label}",
            field.name(),
            field.number()
        ));
    }
    for nested in &message.nested_type {
        describe(&format!("{path}.{}", nested.name()), nested, fields);
    }
}
