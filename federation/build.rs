//! Compiles our protos with protox, so that a build needs no `protoc`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/tombolo/records/v1/records.proto",
        "proto/tombolo/federation/v1/federation.proto",
        "proto/tombolo/local/v1/local.proto",
        "proto/tombolo/cache/v1/cache.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files.map(Path::new), [Path::new("proto")])?;
    tonic_prost_build::configure()
        .bytes(".tombolo")
        .btree_map(".tombolo")
        .compile_fds(descriptors)?;
    Ok(())
}
