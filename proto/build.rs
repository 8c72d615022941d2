//! Compiles the protocol with protox, so that building needs no system `protoc`.

use prost::Message as _;
use std::{env, error::Error, fs, path::PathBuf};

const PROTO: &str = "evolver/v1/evolver.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile([PROTO], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // The same descriptors serve gRPC reflection.
    fs::write(out.join("evolver.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
