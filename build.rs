//! Compiles `proto/` into Rust: messages and gRPC traits (tonic), proto3 JSON (pbjson), REST router and OpenAPI document
//! (rest_over_grpc), and the encoded descriptor set that reflection serves. No `protoc` is needed: protox does its work.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

#[path = "build/openapi.rs"]
mod openapi;

/// Public files: in reflection, REST and the clients.
const PUBLIC: [&str; 2] = ["kvstore/v1/kv.proto", "kvstore/admin/v1/admin.proto"];

/// Spoken between nodes only.
const PEERS: [&str; 1] = ["kvstore/raft/v1/raft.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build");
    build_info();

    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(PUBLIC)?;
    // The encoded form keeps the google.api.http options, which prost's decoded form loses.
    let descriptors = compiler.encode_file_descriptor_set();
    fs::write(out_dir.join("descriptors.bin"), &descriptors)?;

    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".google.rpc", "::tonic_types")
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::pbjson_types")
        .compile_fds(compiler.file_descriptor_set())?;

    let mut peers = protox::Compiler::new(["proto"])?;
    peers.include_source_info(true).open_files(PEERS)?;
    tonic_prost_build::configure().bytes(".").compile_fds(peers.file_descriptor_set())?;

    pbjson_build::Builder::new()
        .register_descriptors(&descriptors)?
        // Else `{"deleted": false}` and `"items": []` vanish from answers. Unknown fields stay errors.
        .emit_fields()
        // Never in REST, and google.protobuf.Any has no JSON form here.
        .exclude([".kvstore.v1.SessionRequest", ".kvstore.v1.SessionResponse"])
        .build(&[".kvstore.v1"])?;

    let options = rest_over_grpc::build::DescriptorOptions::new().package(".kvstore.v1");
    let info = rest_over_grpc::build::OpenApiInfo::new("kvstore", "v1");
    let mut generator = rest_over_grpc::build::Generator::builder()
        .emit_tonic_bridge(false)
        .emit_openapi_spec(Some(info))
        .build();
    generator.add_all(rest_over_grpc::build::ServiceDefinition::from_fds(&descriptors, &options)?);
    generator.write(&out_dir)?;

    let generated = fs::read_to_string(out_dir.join("kvstore.v1.openapi.json"))?;
    let document = openapi::complete(&generated, &compiler.file_descriptor_set())?;
    fs::write(out_dir.join("openapi.json"), document)?;
    Ok(())
}

/// What `/actuator/info` and `--version` tell about this build. Absent facts are "unknown", for builds outside git.
///
/// The names do not begin with `KVSTORE_`: `cargo run` hands them to the program as environment variables, and it would take them
/// for settings and refuse to start.
fn build_info() {
    // A path that is not there, as in a worktree or an archive, would make every build run this again.
    if Path::new(".git/HEAD").exists() {
        println!("cargo:rerun-if-changed=.git/HEAD");
    }
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let run = |program: &str, args: &[&str]| {
        Command::new(program)
            .args(args)
            .output()
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
            .filter(|text| !text.is_empty())
            .unwrap_or_else(|| "unknown".to_owned())
    };
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let version = run(&rustc, &["--version"]);
    let date = |seconds: &str| run("date", &["-u", "-d", seconds, "+%Y-%m-%dT%H:%M:%SZ"]);
    let built =
        env::var("SOURCE_DATE_EPOCH").map_or_else(|_| date("now"), |s| date(&format!("@{s}")));
    for (name, value) in [
        ("BUILD_TIME", built),
        ("BUILD_GIT_BRANCH", run("git", &["rev-parse", "--abbrev-ref", "HEAD"])),
        ("BUILD_GIT_COMMIT", run("git", &["rev-parse", "--short", "HEAD"])),
        ("BUILD_GIT_TIME", run("git", &["log", "-1", "--format=%cI"])),
        ("BUILD_RUSTC", version.split(' ').nth(1).unwrap_or("unknown").to_owned()),
        ("BUILD_TARGET", env::var("TARGET").unwrap_or_else(|_| "unknown".to_owned())),
    ] {
        println!("cargo:rustc-env={name}={value}");
    }
}
