//! The content of a tokens file: a line for each client, with its name and the SHA-256 of its token. Pure.

use std::{collections::HashMap, fmt};

use cc_executor_actors::client::{ClientName, is_token_name};

use crate::server::secret::Fingerprint;

/// The clients of a tokens file, by their tokens.
///
/// A look-up by digest takes no constant time. That reveals nothing, because nobody can choose a text with a SHA-256
/// that begins like another.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TokenTable(HashMap<Fingerprint, ClientName>);

/// A line that is wrong. No text of the line is in it, because that may be a token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LineProblem {
    line: usize,
    fault: LineFault,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum LineFault {
    NotTwoWords,
    Name,
    Reserved(ClientName),
    Digest,
    NameOf(usize),
    DigestOf(usize),
    DigestOfSingleToken,
    NameOfSingleToken,
}

impl fmt::Display for LineProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line;
        match &self.fault {
            LineFault::NotTwoWords => {
                write!(f, "line {line} must be the name of a client and the SHA-256 of its token, with a blank between")
            }
            LineFault::Name => write!(
                f,
                "line {line} must begin with a name of 1 to 64 ASCII letters, digits, '.', '_' and '-', the first a letter or digit"
            ),
            LineFault::Reserved(name) => {
                write!(f, "line {line} has the name {name}, which callers without a token have; choose another")
            }
            LineFault::Digest => {
                write!(f, "line {line} must end with the SHA-256 of a token, in 64 hexadecimal digits")
            }
            LineFault::NameOf(first) => write!(f, "line {line} has the same name as line {first}; remove one of them"),
            LineFault::DigestOf(first) => {
                write!(f, "line {line} has the same SHA-256 as line {first}; give each client a token of its own")
            }
            LineFault::DigestOfSingleToken => {
                write!(f, "line {line} has the SHA-256 of the single token; give each client a token of its own")
            }
            LineFault::NameOfSingleToken => {
                write!(f, "line {line} has the name of the client with the single token; choose another")
            }
        }
    }
}

impl TokenTable {
    /// Reads a tokens file: on each line a name and a SHA-256, with blanks between. Empty lines and what follows a `#`
    /// are ignored. `single` is the token that the service accepts besides.
    ///
    /// # Errors
    /// All wrong lines.
    pub fn parse(text: &str, single: Option<Fingerprint>) -> Result<TokenTable, Vec<LineProblem>> {
        let mut table = HashMap::new();
        let mut problems = Vec::new();
        let (mut lines_of_names, mut lines_of_digests) = (HashMap::new(), HashMap::new());
        for (line, content) in (1..).zip(text.lines()) {
            let words: Vec<_> =
                content.split('#').next().unwrap_or_default().split_ascii_whitespace().take(3).collect();
            let read = match words[..] {
                [] => continue,
                [name, digest] => read_line(name, digest, single),
                _ => Err(LineFault::NotTwoWords),
            };
            let checked = read.and_then(|(name, digest)| {
                if let Some(first) = lines_of_names.get(&name) {
                    return Err(LineFault::NameOf(*first));
                }
                if let Some(first) = lines_of_digests.get(&digest) {
                    return Err(LineFault::DigestOf(*first));
                }
                lines_of_names.insert(name.clone(), line);
                lines_of_digests.insert(digest, line);
                table.insert(digest, name);
                Ok(())
            });
            problems.extend(checked.err().map(|fault| LineProblem { line, fault }));
        }
        if problems.is_empty() { Ok(TokenTable(table)) } else { Err(problems) }
    }

    /// The client with this token.
    pub fn client(&self, token: &Fingerprint) -> Option<&ClientName> {
        self.0.get(token)
    }

    /// The number of clients.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no client.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn read_line(name: &str, digest: &str, single: Option<Fingerprint>) -> Result<(ClientName, Fingerprint), LineFault> {
    let name = is_token_name(name).then(|| name.parse().ok()).flatten().ok_or(LineFault::Name)?;
    let digest = Fingerprint::from_hex(digest).ok_or(LineFault::Digest)?;
    if name == ClientName::anonymous() {
        return Err(LineFault::Reserved(name));
    }
    if single.is_some() && name == ClientName::of_single_token() {
        return Err(LineFault::NameOfSingleToken);
    }
    if single == Some(digest) {
        return Err(LineFault::DigestOfSingleToken);
    }
    Ok((name, digest))
}

/// The line of a tokens file for a client.
pub fn line(client: &ClientName, token: &Fingerprint) -> String {
    format!("{client} {token}")
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::any, prop_assert_eq, proptest, strategy::Strategy};

    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    #[test]
    fn names_digests_and_comments_are_read() {
        let text = format!("# clients\n\n  ci\t {A}  # nightly\r\ndefault {}\n", B.to_uppercase());
        let table = TokenTable::parse(&text, None).unwrap();
        let client = |digest| table.client(&Fingerprint::from_hex(digest).unwrap()).map(ClientName::as_str);
        assert_eq!((client(A), client(B), table.len()), (Some("ci"), Some("default"), 2));
        assert_eq!(client(&A.replace('a', "c")), None);
        assert!(TokenTable::parse("# none\n", None).unwrap().is_empty());
    }

    #[test]
    fn every_wrong_line_is_reported_with_its_number_and_without_its_text() {
        let text = format!(
            "ci {A}\nci {B}\nother {A}\nhush-1\nhush-2 {A}b\nx hush-3\nhush-4 {B} more\n-hush {B}\nanonymous {B}\n"
        );
        let problems: Vec<_> = TokenTable::parse(&text, None).unwrap_err().iter().map(LineProblem::to_string).collect();
        let starts = [
            "line 2 has the same name as line 1",
            "line 3 has the same SHA-256 as line 1",
            "line 4 must be the name",
            "line 5 must end with",
            "line 6 must end with",
            "line 7 must be the name",
            "line 8 must begin with",
            "line 9 has the name anonymous",
        ];
        assert_eq!(problems.len(), starts.len(), "{problems:#?}");
        for (problem, start) in problems.iter().zip(starts) {
            assert!(problem.starts_with(start) && !problem.contains("hush"), "{problem}");
        }
    }

    #[test]
    fn the_single_token_is_another_client() {
        let single = Fingerprint::from_hex(A);
        for (line, fault) in [("x aaaa", "has the SHA-256 of"), ("default bbbb", "has the name of")] {
            let text = line.replace("aaaa", A).replace("bbbb", B);
            assert!(TokenTable::parse(&text, None).is_ok());
            let problems = TokenTable::parse(&text, single).unwrap_err();
            assert!(problems.len() == 1 && problems[0].to_string().contains(fault), "{problems:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = TokenTable::parse(&text, None);
        }

        #[test]
        fn written_lines_are_read_back(clients in btree_map("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", any::<[u8; 32]>(), 0..20)
            .prop_filter("a reserved name", |clients| !clients.contains_key("anonymous"))) {
            let clients: Vec<(ClientName, Fingerprint)> =
                clients.iter().map(|(name, secret)| (name.parse().unwrap(), Fingerprint::of(secret))).collect();
            let text: String = clients.iter().map(|(name, token)| line(name, token) + "\n").collect();
            let table = TokenTable::parse(&text, None).unwrap();
            prop_assert_eq!(table.len(), clients.len());
            for (name, token) in &clients {
                prop_assert_eq!(table.client(token), Some(name));
            }
        }
    }
}
