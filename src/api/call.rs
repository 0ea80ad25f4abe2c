//! What a call brings beside its message: its deadline.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use crate::types::Limits;

/// The header that carries a deadline, in gRPC and in REST alike.
const TIMEOUT_HEADER: &str = "grpc-timeout";

/// How much earlier than tonic's own timer ours must fire, so that the caller gets our answer, which tells whether a write
/// was applied, and not tonic's, which does not.
const MARGIN: Duration = Duration::from_millis(2);

/// When a call must be answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    /// For everything that is waited for.
    pub(super) deadline: Instant,
    /// Whether the caller has set it. Streams have no deadline of their own.
    pub(super) asked: bool,
}

impl Call {
    /// From the request's headers; without a (legible) deadline there, the default one.
    pub(super) fn new(headers: &HeaderMap, limits: &Limits) -> Self {
        let asked =
            headers.get(TIMEOUT_HEADER).and_then(|value| parse_timeout(value.to_str().ok()?));
        Self::within(asked, limits)
    }

    /// With the deadline that the caller asked for, or the default one.
    pub(super) fn within(asked: Option<Duration>, limits: &Limits) -> Self {
        let timeout = asked.unwrap_or(limits.deadline_default).min(limits.deadline_max);
        let timeout = timeout.saturating_sub(MARGIN.min(timeout / 4));
        Self { deadline: Instant::now() + timeout, asked: asked.is_some() }
    }
}

/// Reads a `grpc-timeout`: 1 to 8 digits and a unit (gRPC over HTTP/2, "Timeout").
fn parse_timeout(text: &str) -> Option<Duration> {
    let (&unit, digits) = text.as_bytes().split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(count * 3_600)),
        b'M' => Some(Duration::from_secs(count * 60)),
        b'S' => Some(Duration::from_secs(count)),
        b'm' => Some(Duration::from_millis(count)),
        b'u' => Some(Duration::from_micros(count)),
        b'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_in_every_unit_and_refused_otherwise() {
        assert_eq!(parse_timeout("2H"), Some(Duration::from_hours(2)));
        assert_eq!(parse_timeout("150m"), Some(Duration::from_millis(150)));
        assert_eq!(parse_timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for wrong in ["", "S", "1", "-1S", "+1S", "123456789S", "1.5S", "1s"] {
            assert_eq!(parse_timeout(wrong), None, "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_cut_and_ends_before_the_transports() {
        let limits = Limits { deadline_max: Duration::from_secs(10), ..Limits::default() };
        let call = Call::within(Some(Duration::from_hours(1)), &limits);
        assert!(call.deadline < Instant::now() + Duration::from_secs(10));
        assert!(call.deadline > Instant::now() + Duration::from_secs(9));
    }
}
