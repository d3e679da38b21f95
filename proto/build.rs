//! Generates the event types with protox and prost: no `protoc` on the machine.

use std::io;

const FILES: [&str; 6] = [
    "common/types.proto",
    "auth/events.proto",
    "compute/events.proto",
    "compute/snapshot.proto",
    "gateway/events.proto",
    "sfs/events.proto",
];

fn main() -> io::Result<()> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."]).map_err(io::Error::other)?;
    prost_build::Config::new()
        // As JSON, for the eyes of operators.
        .type_attribute(".", "#[derive(serde::Serialize)]")
        .compile_fds(descriptors)
}
