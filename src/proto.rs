//! The generated protobuf API: messages, gRPC services, proto3 JSON, the REST router and what describes them.
//!
//! Nothing here is written by hand; the source is `proto/`, the recipe `build.rs`. Modules follow the packages, because
//! the generated REST router names its messages so; the rest of the crate uses the short names [`v1`], [`admin`] and [`raft`].

pub use kvstore::admin::v1 as admin;
pub use kvstore::raft::v1 as raft;
pub use kvstore::v1;

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    rustdoc::redundant_explicit_links,
    clippy::unwrap_used,
    reason = "generated code"
)]
mod kvstore {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/kvstore.v1.rs"));
        include!(concat!(env!("OUT_DIR"), "/kvstore.v1.serde.rs"));
        include!(concat!(env!("OUT_DIR"), "/kvstore.v1.rest.rs"));
    }
    pub mod admin {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/kvstore.admin.v1.rs"));
        }
    }
    pub mod raft {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/kvstore.raft.v1.rs"));
        }
    }
}

/// The REST router over the annotated methods.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    rustdoc::redundant_explicit_links,
    reason = "generated code"
)]
pub mod rest {
    use super::kvstore;
    include!(concat!(env!("OUT_DIR"), "/transcoder.rest.rs"));
}

/// All public files with their imports, encoded, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The OpenAPI 3.1 document of the REST surface.
pub const OPENAPI: &str = include_str!(concat!(env!("OUT_DIR"), "/openapi.json"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_peers_say_to_each_other_is_in_nothing_that_is_public() {
        let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        for public in [words(DESCRIPTORS), OPENAPI.to_owned()] {
            assert!(public.contains("PutRequest"));
            assert!(!public.contains("RaftService") && !public.contains("kvstore.raft"));
        }
    }
}
