//! Compiles our protos with protox, so that a build needs no `protoc`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/tombolo/ca/v1/ca.proto";
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([Path::new(file)], [Path::new("proto")])?;
    tonic_prost_build::configure().bytes(".tombolo").compile_fds(descriptors)?;
    Ok(())
}
