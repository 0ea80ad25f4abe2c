//! YAML text to a flat list of entries: dotted path, value as written, line.
//!
//! Works on the parser's events and not through serde, because a setting needs its text as written (`00123`, `1.10`,
//! `off` stay what they are) and its line. Dotted keys and nesting mix freely: `kvstore.node: { id: n1 }`. Anchors,
//! aliases and merge keys work as in YAML 1.1; a second document is refused, for it would hold another profile.
//!
//! Any text ends in entries or in an error: nesting, nodes and (through them) alias expansion are bounded.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle};

/// Deepest nesting, through aliases too. The configuration needs five.
const DEPTH_MAX: usize = 32;

/// Most nodes after aliases are expanded.
const NODES_MAX: usize = 20_000;

/// A value with the path to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Keys joined by dots, as written.
    pub path: String,
    /// Where the value begins, from 1.
    pub line: u64,
    pub value: Given,
}

/// What stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Given {
    /// Nothing, `~`, `null` or `{}`.
    Nothing,
    Text(String),
    List(Vec<String>),
    /// A list that holds lists or mappings.
    Nested,
}

/// The text cannot be read: the line, from 1, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub line: u64,
    pub why: String,
}

#[derive(Debug, Clone)]
struct Node {
    line: u64,
    /// Nodes below, this one included.
    size: usize,
    /// Levels below, this one included.
    depth: usize,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Null,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

/// A list or mapping whose end has not come yet. A mapping's keys and values alternate in `items`.
struct Open {
    line: u64,
    anchor: usize,
    is_map: bool,
    items: Vec<Node>,
}

/// Reads one document.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>, Unreadable> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut entries = Vec::new();
    if let Some(root) = tree(text)? {
        let line = root.line;
        match root.content {
            Content::Null => {}
            Content::Map(_) => flatten(&root, "", &mut entries)?,
            _ => return unreadable(line, "the document is not a mapping of keys to values"),
        }
    }
    Ok(entries)
}

fn unreadable<T>(line: u64, why: impl Into<String>) -> Result<T, Unreadable> {
    Err(Unreadable { line, why: why.into() })
}

/// The document as a tree.
fn tree(text: &str) -> Result<Option<Node>, Unreadable> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| Unreadable {
            line: u64::try_from(error.marker().line()).unwrap_or(0),
            why: format!("not YAML: {}", error.info()),
        })?;
        builder.event(event, u64::try_from(span.start.line()).unwrap_or(0))?;
    }
    Ok(builder.root)
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    documents: usize,
    root: Option<Node>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, line: u64) -> Result<(), Unreadable> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return unreadable(
                        line,
                        "a second document; settings of a profile stand in application-{profile}.yml",
                    );
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, _) => {
                let null = style == ScalarStyle::Plain
                    && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let content = if null { Content::Null } else { Content::Text(text.into_owned()) };
                self.node(Node { line, size: 1, depth: 1, content }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.begin(line, anchor, false),
            Event::MappingStart(_, anchor, _) => self.begin(line, anchor, true),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                let anchor = open.anchor;
                self.node(closed(open)?, anchor)
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(node) => {
                    let node = node.clone();
                    self.node(node, 0)
                }
                None => unreadable(line, "an alias inside of what it stands for"),
            },
            _ => Ok(()),
        }
    }

    fn begin(&mut self, line: u64, anchor: usize, is_map: bool) -> Result<(), Unreadable> {
        if self.open.len() >= DEPTH_MAX {
            return unreadable(line, format!("nested deeper than {DEPTH_MAX} levels"));
        }
        self.open.push(Open { line, anchor, is_map, items: Vec::new() });
        Ok(())
    }

    /// Takes a complete node into the list or mapping around it.
    fn node(&mut self, node: Node, anchor: usize) -> Result<(), Unreadable> {
        // Inner nodes are counted again in each node around them, at most once for each level.
        self.nodes = self.nodes.saturating_add(node.size);
        if self.nodes > NODES_MAX * DEPTH_MAX || node.size > NODES_MAX {
            return unreadable(node.line, format!("more than {NODES_MAX} values"));
        }
        if node.depth + self.open.len() > DEPTH_MAX {
            return unreadable(node.line, format!("nested deeper than {DEPTH_MAX} levels"));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            Some(open) => open.items.push(node),
            None => self.root = Some(node),
        }
        Ok(())
    }
}

/// The node of a list or mapping that has come to its end.
fn closed(open: Open) -> Result<Node, Unreadable> {
    let size = 1 + open.items.iter().map(|item| item.size).sum::<usize>();
    let depth = 1 + open.items.iter().map(|item| item.depth).max().unwrap_or(0);
    let content = if open.is_map { mapping(open.items)? } else { Content::List(open.items) };
    Ok(Node { line: open.line, size, depth, content })
}

/// Pairs keys with values, and takes in what merge keys (`<<: *base`) bring.
fn mapping(items: Vec<Node>) -> Result<Content, Unreadable> {
    let mut pairs = Vec::with_capacity(items.len() / 2);
    let mut merged = Vec::new();
    let mut items = items.into_iter();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        match &key.content {
            Content::Text(text) if text == "<<" => merged.push(value),
            _ => pairs.push((key, value)),
        }
    }
    for node in merged {
        let line = node.line;
        let bases = if let Content::List(bases) = node.content { bases } else { vec![node] };
        for base in bases {
            let Content::Map(inherited) = base.content else {
                return unreadable(line, "a merge key takes a mapping or a list of mappings");
            };
            for (key, value) in inherited {
                let known = |pair: &(Node, Node)| key_text(&pair.0) == key_text(&key);
                if !pairs.iter().any(known) {
                    pairs.push((key, value));
                }
            }
        }
    }
    Ok(Content::Map(pairs))
}

/// The text of a key; Spring's brackets around keys with special characters are taken off.
fn key_text(node: &Node) -> Option<&str> {
    let Content::Text(text) = &node.content else { return None };
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    Some(bare.trim())
}

/// Appends the values below `node`. The recursion ends at [`DEPTH_MAX`].
fn flatten(node: &Node, prefix: &str, entries: &mut Vec<Entry>) -> Result<(), Unreadable> {
    let value = match &node.content {
        Content::Map(pairs) if !pairs.is_empty() => {
            for (key, value) in pairs {
                let Some(text) = key_text(key).filter(|text| !text.is_empty()) else {
                    return unreadable(key.line, "a key is not a word");
                };
                let path =
                    if prefix.is_empty() { text.to_owned() } else { format!("{prefix}.{text}") };
                flatten(value, &path, entries)?;
            }
            return Ok(());
        }
        Content::Null | Content::Map(_) => Given::Nothing,
        Content::Text(text) => Given::Text(text.clone()),
        Content::List(items) => list(items),
    };
    entries.push(Entry { path: prefix.to_owned(), line: node.line, value });
    Ok(())
}

/// A list of plain values.
fn list(items: &[Node]) -> Given {
    let texts = items.iter().map(|item| match &item.content {
        Content::Text(text) => Some(text.clone()),
        Content::Null => Some(String::new()),
        _ => None,
    });
    texts.collect::<Option<Vec<_>>>().map_or(Given::Nested, Given::List)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(text: &str) -> Vec<(String, u64, String)> {
        let entries = parse(text).expect("the text is YAML");
        let show = |value| match value {
            Given::Nothing => "-".to_owned(),
            Given::Text(text) => text,
            Given::List(items) => items.join("|"),
            Given::Nested => "nested".to_owned(),
        };
        entries.into_iter().map(|entry| (entry.path, entry.line, show(entry.value))).collect()
    }

    fn entry(path: &str, line: u64, value: &str) -> (String, u64, String) {
        (path.to_owned(), line, value.to_owned())
    }

    #[test]
    fn nested_and_dotted_keys_give_the_same_paths() {
        let text = "a:\n  b.c: 1\n  d: { e: 2 }\nf.g: 3\n";
        assert_eq!(
            lines(text),
            [entry("a.b.c", 2, "1"), entry("a.d.e", 3, "2"), entry("f.g", 4, "3")]
        );
    }

    #[test]
    fn values_stay_as_they_are_written() {
        let text =
            "a: 00123\nb: 1.10 # note\nc: off\nd: \"x\\ty\"\ne: 'null'\nf:\ng: ~\nh: 1_000\n";
        let values: Vec<_> = lines(text).into_iter().map(|(_, _, value)| value).collect();
        assert_eq!(values, ["00123", "1.10", "off", "x\ty", "null", "-", "-", "1_000"]);
    }

    #[test]
    fn lists_of_values_are_lists_and_others_are_nested() {
        let text = "a: [x, 'y']\nb:\n  - p\n  - q\nc: []\nd: [{ e: 1 }]\n";
        assert_eq!(
            lines(text),
            [
                entry("a", 1, "x|y"),
                entry("b", 3, "p|q"),
                entry("c", 5, ""),
                entry("d", 6, "nested")
            ]
        );
    }

    #[test]
    fn merge_keys_bring_what_is_not_said_otherwise() {
        let text = "base: &b { x: 1, y: 2 }\nuse:\n  <<: *b\n  y: 3\n";
        let found = lines(text);
        assert!(found.contains(&entry("use.y", 4, "3")), "{found:?}");
        assert!(found.contains(&entry("use.x", 1, "1")), "{found:?}");
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn a_second_document_is_refused_with_its_line() {
        let error = parse("a: 1\n---\nb: 2\n").expect_err("two documents");
        assert_eq!(error.line, 2);
        assert!(error.why.contains("application-{profile}.yml"), "{}", error.why);
    }

    #[test]
    fn broken_text_names_its_line() {
        for (text, line) in [("a: 1\nb: [1, 2\n", 2), ("a: 1\n\tb: 2\n", 1), ("a: b: c\n", 1)] {
            assert_eq!(parse(text).expect_err(text).line, line, "{text:?}");
        }
        assert!(parse("- a\n- b\n").is_err());
        assert!(parse("? [a]\n: b\n").is_err());
    }

    #[test]
    fn alias_expansion_is_bounded() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let items = vec![format!("*a{}", level - 1); 10].join(", ");
            text = format!("{text}a{level}: &a{level} [{items}]\n");
        }
        assert!(parse(&text).is_err());
        let mut chain = "a0: &a0 [x]\n".to_owned();
        for level in 1..200 {
            chain = format!("{chain}a{level}: &a{level} [*a{}]\n", level - 1);
        }
        assert!(parse(&chain).is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&format!("a: {}", "{a: ".repeat(10_000))).is_err());
    }

    proptest! {
        #[test]
        fn any_text_ends_in_entries_or_an_error(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn any_yaml_like_text_ends_in_entries_or_an_error(
            text in "([a-c<&*!?|>~%#'\"\\[\\]{},:.\\- \n\t0-9]|: |- |<<: |\\*a|&a |---\n|\n  ){0,60}"
        ) {
            let _ = parse(&text);
        }
    }
}
