//! Compiles the client stubs: kvstore's from the public API of this repository, etcd's from the few messages in `proto/`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=../../proto");
    let files = protox::compile(["etcd.proto", "kvstore/v1/kv.proto"], ["proto", "../../proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".")
        .include_file("proto.rs")
        .compile_fds(files)?;
    Ok(())
}
