//! How the text of a value is read: sizes, durations, switches, lists, addresses.
//!
//! The rules are Spring Boot's: sizes count in 1024, a bare number is bytes or milliseconds, a switch is `true`, `on` or
//! `yes`. Every reader answers `None` for what it cannot read; the caller knows the key and says what is allowed.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::settings::Member;
use crate::cluster::is_name;

/// Units of sizes, the longest first so that `KB` is not read as `B`.
const SIZES: [(&str, u64); 9] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1 << 10),
    ("mb", 1 << 20),
    ("gb", 1 << 30),
    ("tb", 1 << 40),
    ("b", 1),
];

/// Units of durations in milliseconds, `ms` before `m` and `s`.
const DURATIONS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Bytes: `100MB`, `4 KiB`, or a bare number.
pub fn size(text: &str) -> Option<u64> {
    with_unit(text, &SIZES)
}

/// `150ms`, `20s`, `5m`, `1h`, `1d`, or a bare number of milliseconds.
pub fn duration(text: &str) -> Option<Duration> {
    with_unit(text, &DURATIONS).map(Duration::from_millis)
}

/// A whole number with a unit, or with none (which counts as 1). `None` also when it does not fit.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let (number, unit) = units
        .iter()
        .find_map(|(name, unit)| text.strip_suffix(name).map(|number| (number, *unit)))
        .unwrap_or((&text, 1));
    count(number.trim_end())?.checked_mul(unit)
}

/// A whole number in digits, without sign.
pub(super) fn count(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// Spring's words for a switch.
pub(super) fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "1" => Some(true),
        "false" | "off" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// An address to listen on: IPv4, IPv6 (also in brackets), or `localhost`.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    if text.eq_ignore_ascii_case("localhost") {
        return Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok()
}

/// The items of a comma list, trimmed; empty ones are left out.
pub(super) fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// A host name or address without port, as others shall use it: an IPv6 address stands without brackets.
pub(super) fn host(text: &str) -> bool {
    let name = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
    };
    (1..=253).contains(&text.len()) && (name(text) || text.parse::<IpAddr>().is_ok())
}

/// `host:port` with a port of 1 to 65535; an IPv6 address stands in brackets.
pub fn endpoint(text: &str) -> bool {
    let Some((name, port)) = text.rsplit_once(':') else { return false };
    let bracketed = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let named = bracketed.map_or_else(
        || !name.contains(':') && host(name),
        |address| address.parse::<std::net::Ipv6Addr>().is_ok(),
    );
    named && count(port).is_some_and(|port| (1..=65_535).contains(&port))
}

/// `id=host:port`.
pub(super) fn member(text: &str) -> Option<Member> {
    let (node, address) = text.split_once('=')?;
    let (node, address) = (node.trim(), address.trim());
    (is_name(node) && endpoint(address))
        .then(|| Member { node: node.to_owned(), address: address.to_owned() })
}

/// `scheme://host[:port]` without a path, or `*`: what a browser sends as `Origin`.
pub(super) fn origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return text == "*" };
    let scheme_is_plain = !scheme.is_empty()
        && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || b"+.-".contains(&byte));
    scheme_is_plain && (endpoint(rest) || host(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_in_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4KB", 4096),
            ("4kib", 4096),
            ("100MB", 104_857_600),
            ("100 MB", 104_857_600),
            ("1GB", 1 << 30),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "MB", "-1MB", "1.5GB", "100MBB", "100 M", "99999999999TB", "0x10", "+5"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn durations_take_units_and_bare_milliseconds() {
        for (text, millis) in [
            ("150ms", 150),
            ("20s", 20_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
            ("300000", 300_000),
            ("0", 0),
        ] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "-1s", "1.5s", "1w", "5 minutes", "99999999999999999999s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn switches_take_springs_words() {
        assert!(["true", "ON", "yes", "1"].iter().all(|text| switch(text) == Some(true)));
        assert!(["false", "Off", "no", "0"].iter().all(|text| switch(text) == Some(false)));
        assert!(["", "2", "truee", "y"].iter().all(|text| switch(text).is_none()));
    }

    #[test]
    fn endpoints_need_host_and_port() {
        assert!(
            ["n1:9090", "10.0.0.1:1", "[::1]:9090", "a.b-c_d:65535"].iter().all(|t| endpoint(t))
        );
        for text in ["n1", ":9090", "n1:0", "n1:65536", "::1:9090", "[n1]:9090", "n1:+1", "a b:1"] {
            assert!(!endpoint(text), "{text}");
        }
    }

    #[test]
    fn origins_are_those_that_browsers_send() {
        assert!(["*", "https://a.example", "http://localhost:3000"].iter().all(|t| origin(t)));
        assert!(
            ["", "a.example", "https://", "https://a/b", "HTTP://a"].iter().all(|t| !origin(t))
        );
    }
}
