//! The body of a REST request: collected and decompressed, never more of it than the limit.

use std::io::Read;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;

use super::admission;
use crate::error::{Error, Reason, Result};

/// Largest window of a zstd frame, as a power of two of bytes: 8 MiB, what the format asks every decoder to have and what all levels
/// below the "ultra" ones stay within.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How much of a refused body is read and thrown away, and for how long.
const DRAINED_BYTES_MAX: usize = 128 << 20;
const DRAINING_MAX: Duration = Duration::from_secs(5);

/// Reads all of `body`, decoded as `Content-Encoding` says; at most `max` bytes before and after.
///
/// # Errors
///
/// LIMIT_EXCEEDED above `max`; INVALID_REQUEST when the encoding is unknown, the bytes are not in it or the caller went away.
pub(super) async fn collect(headers: &HeaderMap, mut body: Body, max: usize) -> Result<Bytes> {
    let encoded = match receive(headers, &mut body, max).await {
        Err(error) if error.reason() == Reason::LimitExceeded => {
            refuse(headers, body).await;
            return Err(error);
        }
        received => received?,
    };
    match headers
        .get(header::CONTENT_ENCODING)
        .map(|encoding| encoding.to_str().unwrap_or("?").trim())
    {
        None | Some("identity" | "") => Ok(encoded),
        Some("gzip") => decode(flate2::read::MultiGzDecoder::new(&encoded[..]), max),
        Some("zstd") => decode(zstd_decoder(&encoded).map_err(|error| undecodable(&error))?, max),
        Some(other) => {
            let message =
                format!("the content encoding {other:?} is not known; send gzip, zstd or none");
            Err(Error::new(Reason::InvalidRequest, message))
        }
    }
}

/// A frame says how much memory its window takes, up to 128 MiB for a few bytes of input; here it gets no more than a request.
fn zstd_decoder(encoded: &[u8]) -> std::io::Result<zstd::Decoder<'_, &[u8]>> {
    let mut decoder = zstd::Decoder::with_buffer(encoded)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(decoder)
}

/// Throws away the rest of a body that was refused, within bounds. Many clients write all before they read, and an answer on a connection
/// that closes with bytes unread is lost to them: they would see a reset instead of the reason.
pub(super) async fn refuse(headers: &HeaderMap, mut body: Body) {
    // Who waits for "100 Continue" has sent nothing, and will not when the answer is no.
    if headers.contains_key(header::EXPECT) {
        return;
    }
    let all = async {
        let mut left = DRAINED_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // Out of time is as good as out of bytes: the answer goes out, the connection ends.
    let _ = tokio::time::timeout(DRAINING_MAX, all).await;
}

async fn receive(headers: &HeaderMap, body: &mut Body, max: usize) -> Result<Bytes> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if let Some(length) = announced.filter(|&length| length > max as u64) {
        return Err(too_large(max, length));
    }
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| admission::refusal(&error).unwrap_or_else(|| incomplete(&error)))?;
        let Ok(data) = frame.into_data() else { continue };
        let held = rest.as_ref().map_or(first.len(), BytesMut::len);
        if held + data.len() > max {
            return Err(too_large(max, format_args!("more than {max}")));
        }
        // Most bodies come in one piece, which is kept as it is.
        match &mut rest {
            Some(rest) => rest.extend_from_slice(&data),
            None if first.is_empty() => first = data,
            None => {
                let mut joined = BytesMut::from(&first[..]);
                joined.extend_from_slice(&data);
                rest = Some(joined);
            }
        }
    }
    Ok(rest.map_or(first, BytesMut::freeze))
}

fn decode(decoder: impl Read, max: usize) -> Result<Bytes> {
    let mut decoded = Vec::new();
    decoder.take(max as u64 + 1).read_to_end(&mut decoded).map_err(|error| undecodable(&error))?;
    if decoded.len() > max {
        return Err(too_large(max, format_args!("more than {max}")));
    }
    Ok(decoded.into())
}

fn too_large(max: usize, got: impl std::fmt::Display) -> Error {
    Error::limit("kvstore.limits.request-size", "the request", max, got, "bytes")
}

fn incomplete(error: &axum::Error) -> Error {
    Error::new(Reason::InvalidRequest, format!("the body ended too early: {error}"))
}

fn undecodable(error: &std::io::Error) -> Error {
    Error::new(Reason::InvalidRequest, format!("the body is not in its content encoding: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    async fn collected(encoding: &'static str, body: Vec<u8>, max: usize) -> Result<Bytes> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, http::HeaderValue::from_static(encoding));
        collect(&headers, Body::from(body), max).await
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(data).expect("into memory");
        encoder.finish().expect("into memory")
    }

    #[tokio::test]
    async fn bodies_are_decoded() {
        assert_eq!(collected("gzip", gzip(b"{}"), 100).await.expect("legal"), "{}");
        let zstd = zstd::encode_all(&b"{}"[..], 3).expect("into memory");
        assert_eq!(collected("zstd", zstd, 100).await.expect("legal"), "{}");
    }

    #[tokio::test]
    async fn the_limit_holds_for_what_comes_out_of_a_compressed_body() {
        let bomb = vec![b' '; 1 << 20];
        for (encoding, body) in
            [("gzip", gzip(&bomb)), ("zstd", zstd::encode_all(&bomb[..], 3).expect("into memory"))]
        {
            let error = collected(encoding, body, 100_000).await.expect_err("too large");
            assert_eq!(error.reason(), Reason::LimitExceeded, "{encoding}");
        }
    }

    #[tokio::test]
    async fn bytes_that_are_not_in_their_encoding_are_refused() {
        for encoding in ["gzip", "zstd", "br"] {
            let error = collected(encoding, b"{}".to_vec(), 100).await.expect_err("not encoded so");
            assert_eq!(error.reason(), Reason::InvalidRequest, "{encoding}");
        }
        let mut cut = gzip(&[b'x'; 1000]);
        cut.truncate(cut.len() - 3);
        assert!(collected("gzip", cut, 10_000).await.is_err());
    }
}
