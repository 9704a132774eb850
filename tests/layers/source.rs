//! A tokenizer for Rust source that is good enough to find paths and type definitions.

/// Splits Rust source into identifiers, `::` and single characters. Comments, strings, characters and lifetimes are
/// skipped, because none of them refers to a module.
pub fn tokens(text: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after_hashes = rest.strip_prefix('r').map(|raw| raw.trim_start_matches('#'));
        let n = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if let Some(raw) = after_hashes.filter(|raw| raw.starts_with('"')) {
            let opening = rest.len() - raw.len();
            let closing = format!("\"{}", "#".repeat(opening - 1));
            raw[1..].find(&closing).map_or(rest.len(), |at| opening + 1 + at + closing.len())
        } else if first == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |at| at + 2)
        } else if first == '\'' {
            let mut inner = rest[1..].chars();
            match (inner.next(), inner.next()) {
                (Some('\\'), Some(escaped)) => {
                    let skipped = 2 + escaped.len_utf8();
                    rest[skipped..].find('\'').map_or(rest.len(), |at| skipped + at + 1)
                }
                (Some(c), Some('\'')) => c.len_utf8() + 2,
                _ => 1,
            }
        } else if is_word(first) {
            let n = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            found.push(&rest[..n]);
            n
        } else if rest.starts_with("::") {
            found.push("::");
            2
        } else {
            let n = first.len_utf8();
            if !first.is_whitespace() {
                found.push(&rest[..n]);
            }
            n
        };
        rest = &rest[n..];
    }
    found
}

/// The tokens without the items that have `#[cfg(test)]`.
pub fn without_tests<'a>(tokens: &[&'a str]) -> Vec<&'a str> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].starts_with(&["#", "[", "cfg", "(", "test", ")", "]"]) {
            let mut depth = 0;
            while at < tokens.len() {
                match tokens[at] {
                    "{" | "(" | "[" => depth += 1,
                    ")" | "]" => depth -= 1,
                    "}" => {
                        depth -= 1;
                        if depth == 0 {
                            break;
                        }
                    }
                    ";" if depth == 0 => break,
                    _ => {}
                }
                at += 1;
            }
        } else {
            kept.push(tokens[at]);
        }
        at += 1;
    }
    kept
}

/// Every path that a `use` line names, and every other path that begins at a crate's root or at a module.
pub fn paths<'a>(tokens: &[&'a str]) -> Vec<Vec<&'a str>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].starts_with(&["pub", "(", "in"]) {
            // The path in a visibility is no use of that module.
            while at < tokens.len() && tokens[at] != ")" {
                at += 1;
            }
            continue;
        }
        if tokens[at] == "use" {
            at += 1;
            use_tree(tokens, &mut at, &[], &mut found);
            continue;
        }
        let begins = matches!(tokens[at], "crate" | "super" | "self" | "cc_executor_actors" | "cc_executor");
        if begins && tokens.get(at + 1) == Some(&"::") && (at == 0 || tokens[at - 1] != "::") {
            let mut path = vec![tokens[at]];
            while tokens.get(at + 1) == Some(&"::") && at + 2 < tokens.len() {
                path.push(tokens[at + 2]);
                at += 2;
            }
            found.push(path);
        }
        at += 1;
    }
    found
}

/// Reads one tree of a `use` line, up to the `,`, `}` or `;` after it. `prefix` is the path before the tree.
fn use_tree<'a>(tokens: &[&'a str], at: &mut usize, prefix: &[&'a str], found: &mut Vec<Vec<&'a str>>) {
    let mut path = prefix.to_vec();
    while let Some(&token) = tokens.get(*at) {
        match token {
            "," | "}" | ";" => break,
            "::" => *at += 1,
            "as" => *at += 2,
            "{" => {
                while tokens.get(*at).is_some_and(|token| *token != "}") {
                    *at += 1;
                    use_tree(tokens, at, &path, found);
                }
                *at += 1;
                return;
            }
            name => {
                path.push(name);
                *at += 1;
            }
        }
    }
    if path.len() > prefix.len() {
        found.push(path);
    }
}

/// The names of the types that this source defines, without associated types.
pub fn type_names<'a>(tokens: &[&'a str]) -> Vec<&'a str> {
    let mut names = Vec::new();
    let mut blocks = Vec::new();
    let mut is_associated = false;
    for (at, token) in tokens.iter().enumerate() {
        match *token {
            "impl" => is_associated = true,
            "trait" => {
                is_associated = true;
                names.push(tokens[at + 1]);
            }
            "struct" | "enum" | "union" => {
                names.extend(tokens.get(at + 1).filter(|name| name.starts_with(char::is_uppercase)))
            }
            "type" if blocks.last() != Some(&true) => {
                names.extend(tokens.get(at + 1).filter(|name| name.starts_with(char::is_uppercase)))
            }
            "{" => {
                blocks.push(is_associated);
                is_associated = false;
            }
            "}" => drop(blocks.pop()),
            ";" => is_associated = false,
            _ => {}
        }
    }
    names
}
