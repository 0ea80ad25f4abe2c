//! Which of the media types that can be sent a caller likes best (RFC 9110, section 12.5.1).

use http::{HeaderMap, header};

/// A caller's weight of a type: `q` in thousandths.
type Quality = u16;

const QUALITY_MAX: Quality = 1000;

/// The one of `offered` that the `Accept` of `headers` prefers: by weight, then by how exactly it is named, then by the order
/// offered. The first when nothing is acceptable: a body in another type helps more than none.
pub(super) fn choose(headers: &HeaderMap, offered: &[&'static str]) -> &'static str {
    let lines = || headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
    let mut best = (0, 0, offered[0]);
    for &media_type in offered {
        let ranges = lines().flat_map(|line| line.split(',')).filter_map(parse);
        // The most exact range speaks for a type: `text/*;q=0.1, text/plain` takes text/plain fully.
        let fitting =
            ranges.filter_map(|(range, quality)| Some((exactness(range, media_type)?, quality)));
        if let Some((exactness, quality)) = fitting.max()
            && (quality, exactness) > (best.0, best.1)
        {
            best = (quality, exactness, media_type);
        }
    }
    best.2
}

/// One media range and its weight, without other parameters; nothing when the weight is malformed.
fn parse(range: &str) -> Option<(&str, Quality)> {
    let mut parts = range.split(';').map(str::trim);
    let name = parts.next()?;
    let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    let Some(weight) = weight else { return Some((name, QUALITY_MAX)) };
    let weight: f32 = weight.parse().ok().filter(|weight| (0.0..=1.0).contains(weight))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
    Some((name, (weight * f32::from(QUALITY_MAX)).round() as Quality))
}

/// How exactly `range` names `media_type`: 3 fully, 2 by its first half, 1 as anything; nothing when it does not.
fn exactness(range: &str, media_type: &str) -> Option<u8> {
    let media_type = media_type.split(';').next().unwrap_or(media_type);
    if range == "*/*" {
        return Some(1);
    }
    if range.eq_ignore_ascii_case(media_type) {
        return Some(3);
    }
    let (major, _) = media_type.split_once('/')?;
    range.strip_suffix("/*").is_some_and(|half| half.eq_ignore_ascii_case(major)).then_some(2)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const OFFERED: [&str; 3] = ["application/first+json", "application/json", "text/plain;v=1"];

    fn chosen(accept: &'static str) -> &'static str {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        choose(&headers, &OFFERED)
    }

    #[test]
    fn the_best_liked_type_wins_then_the_best_named_then_the_first() {
        for (accept, expected) in [
            ("*/*", OFFERED[0]),
            ("", OFFERED[0]),
            ("application/*", OFFERED[0]),
            ("application/json", OFFERED[1]),
            ("APPLICATION/JSON", OFFERED[1]),
            ("application/json, text/plain, */*", OFFERED[1]),
            ("application/json;q=0.5, application/first+json;q=0.4", OFFERED[1]),
            ("text/html, application/xhtml+xml, */*;q=0.8", OFFERED[0]),
            ("text/*;q=0.9, application/*;q=0.1", OFFERED[2]),
            ("text/plain;version=0.0.4;q=0.5, */*;q=0.1", OFFERED[2]),
            ("application/first+json;q=0, */*", OFFERED[1]),
            ("text/plain;q=wrong, application/json;q=0.1", OFFERED[1]),
            ("text/plain;q=NaN", OFFERED[0]),
            ("image/png", OFFERED[0]),
            (";;,,/*,*/", OFFERED[0]),
        ] {
            assert_eq!(chosen(accept), expected, "{accept}");
        }
        assert_eq!(choose(&HeaderMap::new(), &OFFERED), OFFERED[0]);
    }
}
