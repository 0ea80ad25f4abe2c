//! Placeholders in values: `${NODE_PORT:8080}` is the variable `NODE_PORT`, else the key of that name, else `8080`.
//!
//! As in Spring: defaults may hold placeholders, `\${` is a plain `${`, and one that nothing resolves is an error.

/// Deepest nesting; also what ends a key that refers to itself.
const DEPTH_MAX: usize = 8;

/// Most placeholders that one value may take, nested ones included.
const LOOKUPS_MAX: usize = 256;

/// `text` with its placeholders replaced. `lookup` gives the text of a name, which may hold placeholders itself.
pub(super) fn resolve(
    text: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut lookups = 0;
    expand(text, lookup, 0, &mut lookups)
}

fn expand(
    text: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
    depth: usize,
    lookups: &mut usize,
) -> Result<String, String> {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('\\') {
            done.push_str(before);
            done.push_str("${");
            rest = &from[2..];
            continue;
        }
        done.push_str(before);
        let Some(end) = closing(from) else { return Err("a ${ without its }".to_owned()) };
        let (name, default) = halves(&from[2..end]);
        rest = &from[end + 1..];
        *lookups += 1;
        if depth >= DEPTH_MAX || *lookups > LOOKUPS_MAX {
            return Err(format!("${{{name}}} refers to itself, or to too much"));
        }
        let name = expand(name, lookup, depth + 1, lookups)?;
        let value = match (lookup(name.trim()), default) {
            (Some(value), _) => value,
            (None, Some(default)) => default.to_owned(),
            (None, None) => {
                return Err(format!(
                    "${{{name}}} is neither a variable nor a key, and has no default"
                ));
            }
        };
        done.push_str(&expand(&value, lookup, depth + 1, lookups)?);
    }
    done.push_str(rest);
    Ok(done)
}

/// The position of the `}` that closes the `${` at the beginning of `text`.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' if open == 1 => return Some(at),
            b'}' => open = open.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// Name and default, parted by the first colon outside of inner placeholders.
fn halves(inside: &str) -> (&str, Option<&str>) {
    let mut open = 0_usize;
    for (at, byte) in inside.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' => open = open.saturating_sub(1),
            b':' if open == 0 => return (&inside[..at], Some(&inside[at + 1..])),
            _ => {}
        }
    }
    (inside, None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(name: &str) -> Option<String> {
        let value = match name {
            "HOST" => "n1",
            "REF" => "<${HOST}>",
            "LOOP" => "${LOOP}",
            "WHICH" => "HOST",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn placeholders_take_variables_keys_and_defaults() {
        for (text, resolved) in [
            ("plain", "plain"),
            ("${HOST}", "n1"),
            ("a-${HOST}-b", "a-n1-b"),
            ("${NONE:8080}", "8080"),
            ("${NONE:}", ""),
            ("${NONE:${HOST}}", "n1"),
            ("${NONE:http://x:1}", "http://x:1"),
            ("${REF}", "<n1>"),
            ("${${WHICH}}", "n1"),
            ("\\${HOST}", "${HOST}"),
            ("$HOST {x}", "$HOST {x}"),
        ] {
            assert_eq!(resolve(text, &lookup).as_deref(), Ok(resolved), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_resolved_is_an_error() {
        for text in ["${NONE}", "${HOST", "${LOOP}", "${}"] {
            assert!(resolve(text, &lookup).is_err(), "{text}");
        }
        assert!(resolve(&"${HOST}".repeat(LOOKUPS_MAX + 1), &lookup).is_err());
    }

    proptest! {
        #[test]
        fn any_text_ends_in_text_or_an_error(text in "(\\$\\{|\\}|:|\\\\|HOST|REF|LOOP|é|[a-z]){0,40}") {
            let _ = resolve(&text, &lookup);
        }
    }
}
