//! Tokens into a tree.

use std::collections::HashMap;

use super::lexer::{Lexer, Spanned, Token, found};
use crate::error::Found;
use crate::tree::{DEEPEST, Key, Node, Value, is_secret};

/// Reads an HCL text.
pub(crate) fn parse(text: &str) -> Result<Node, Found> {
    if text.starts_with('\u{feff}') {
        return Err(found(0, "expected UTF-8 without a byte order mark"));
    }
    let mut lexer = Lexer::new(text);
    let next = lexer.next()?;
    let mut parser = Parser { text, lexer, next, depth: 0 };
    let entries = parser.body(None)?;
    Ok(Node { offset: 0, value: Value::Object(entries) })
}

struct Parser<'t> {
    text: &'t str,
    lexer: Lexer<'t>,
    next: Spanned,
    depth: usize,
}

// === impl Parser ===

impl Parser<'_> {
    fn take(&mut self) -> Result<Spanned, Found> {
        let next = self.lexer.next()?;
        Ok(std::mem::replace(&mut self.next, next))
    }

    /// One level deeper; what is there can't go on forever.
    fn deeper<T>(
        &mut self,
        levels: usize,
        inside: impl FnOnce(&mut Self) -> Result<T, Found>,
    ) -> Result<T, Found> {
        self.depth += levels;
        if self.depth > DEEPEST {
            let message = format!("nested more than {DEEPEST} levels deep");
            return Err(found(self.next.offset, message));
        }
        let inside = inside(self);
        self.depth -= levels;
        inside
    }

    /// Items, up to the `}` of the `{` at `open` or to the end of the text.
    fn body(&mut self, open: Option<usize>) -> Result<Vec<(Key, Node)>, Found> {
        let mut entries = Vec::new();
        let mut places = HashMap::new();
        loop {
            match (&self.next.token, open) {
                (Token::End, None) => return Ok(entries),
                (Token::CloseBrace, Some(_)) => {
                    self.take()?;
                    return Ok(entries);
                }
                (Token::End, Some(open)) => {
                    let close = format!("a key, or `}}` to close the `{{` of {}", self.place(open));
                    return Err(self.expected(&close));
                }
                (Token::CloseBrace, None) => {
                    return Err(self.expected("a key: no `{` is open"));
                }
                _ => {}
            }
            let (key, node) = self.item()?;
            add(&mut entries, &mut places, key, node);
            if matches!(self.next.token, Token::Comma) {
                self.take()?;
            }
        }
    }

    fn item(&mut self) -> Result<(Key, Node), Found> {
        let Some(first) = self.key()? else {
            return Err(self.expected("a key: a name, or a text between quotes"));
        };
        let mut inner = Vec::new();
        while let Some(key) = self.key()? {
            inner.push(key);
            if self.depth + inner.len() > DEEPEST {
                // Says so.
                self.deeper(inner.len(), |_| Ok(()))?;
            }
        }
        let mut node = match self.next.token {
            Token::OpenBrace => self.deeper(inner.len(), Self::block)?,
            Token::Assign if inner.is_empty() => {
                self.take()?;
                self.value(is_secret(&first.text))?
            }
            Token::Assign => {
                return Err(self.expected("`{`: several keys in a row are blocks"));
            }
            _ => return Err(self.expected("`=` and a value, or `{` and a block, after a key")),
        };
        // From the inside out.
        for key in inner.into_iter().rev() {
            let offset = key.offset;
            let object = Node { offset, value: Value::Object(vec![(key, node)]) };
            node = Node { offset, value: Value::Blocks(vec![object]) };
        }
        Ok((first, node))
    }

    fn key(&mut self) -> Result<Option<Key>, Found> {
        if !matches!(self.next.token, Token::Name(_) | Token::Text { is_heredoc: false, .. }) {
            return Ok(None);
        }
        let Spanned { offset, token } = self.take()?;
        Ok(match token {
            Token::Name(text) | Token::Text { text, .. } => Some(Key { text, offset }),
            _ => None,
        })
    }

    /// `{ ... }` behind a key.
    fn block(&mut self) -> Result<Node, Found> {
        let object = self.object()?;
        Ok(Node { offset: object.offset, value: Value::Blocks(vec![object]) })
    }

    fn object(&mut self) -> Result<Node, Found> {
        let offset = self.take()?.offset;
        let entries = self.deeper(1, |parser| parser.body(Some(offset)))?;
        Ok(Node { offset, value: Value::Object(entries) })
    }

    fn value(&mut self, is_secret: bool) -> Result<Node, Found> {
        match self.next.token {
            Token::OpenBrace => self.block(),
            Token::OpenBracket => self.list(is_secret),
            _ => self.plain(is_secret),
        }
    }

    /// Commas stand between values, and more of them do no harm.
    fn list(&mut self, is_secret: bool) -> Result<Node, Found> {
        let offset = self.take()?.offset;
        let mut items = Vec::new();
        let mut needs_comma = false;
        loop {
            match self.next.token {
                Token::CloseBracket => {
                    self.take()?;
                    return Ok(Node { offset, value: Value::List(items) });
                }
                Token::Comma => {
                    self.take()?;
                    needs_comma = false;
                    continue;
                }
                Token::End | Token::CloseBrace | Token::Assign => {
                    let close = format!("`]` to close the `[` of {}", self.place(offset));
                    return Err(self.expected(&close));
                }
                _ if needs_comma => {
                    return Err(self.expected("`,` or `]` after a value of a list"));
                }
                _ => {}
            }
            items.push(self.deeper(1, |parser| match parser.next.token {
                Token::OpenBrace => parser.object(),
                Token::OpenBracket => parser.list(is_secret),
                _ => parser.plain(is_secret),
            })?);
            needs_comma = true;
        }
    }

    fn plain(&mut self, is_secret: bool) -> Result<Node, Found> {
        const VALUE: &str =
            "a value: a text between quotes, a number, true, false, a list or a block";
        match &self.next.token {
            Token::Text { .. } | Token::Number(_) | Token::Bool(_) => {}
            Token::Name(_) if is_secret => {
                return Err(found(self.next.offset, format!("expected {VALUE}")));
            }
            Token::Name(name) => {
                let hint = match name.to_lowercase().as_str() {
                    "null" => "; a key without a value is left out".to_owned(),
                    word @ ("true" | "false") => format!("; did you mean `{word}`?"),
                    _ => format!("; did you mean {name:?}?"),
                };
                let message = format!("expected {VALUE}, found `{name}`{hint}");
                return Err(found(self.next.offset, message));
            }
            _ => return Err(self.expected(VALUE)),
        }
        let Spanned { offset, token } = self.take()?;
        let value = match token {
            Token::Text { text, .. } => Value::Text(text),
            Token::Number(number) => Value::Number(number),
            Token::Bool(value) => Value::Bool(value),
            _ => Value::Null,
        };
        Ok(Node { offset, value })
    }

    fn expected(&self, what: &str) -> Found {
        found(self.next.offset, format!("expected {what}; found {}", self.next.token.describe()))
    }

    fn place(&self, offset: usize) -> String {
        let line = 1 + self.text[..offset].bytes().filter(|byte| *byte == b'\n').count();
        format!("line {line}")
    }
}

/// Adds an item, to what its key has already if that is a list or a block.
fn add(entries: &mut Vec<(Key, Node)>, places: &mut HashMap<String, usize>, key: Key, node: Node) {
    let Some(place) = places.get(&key.text) else {
        places.insert(key.text.clone(), entries.len());
        entries.push((key, node));
        return;
    };
    let before = &mut entries[*place].1.value;
    match (before, node.value) {
        (
            Value::List(before) | Value::Blocks(before),
            Value::List(mut more) | Value::Blocks(mut more),
        ) => before.append(&mut more),
        // Twice: for who reads it to say.
        (_, value) => entries.push((key, Node { offset: node.offset, value })),
    }
}

// === impl Token ===

impl Token {
    /// What it is. Not what a text says: it may be a secret.
    fn describe(&self) -> String {
        match self {
            Self::Name(_) => "a name".to_owned(),
            Self::Text { is_heredoc: true, .. } => "a heredoc".to_owned(),
            Self::Text { .. } => "a text".to_owned(),
            Self::Number(_) => "a number".to_owned(),
            Self::Bool(value) => format!("`{value}`"),
            Self::Assign => "`=`".to_owned(),
            Self::Comma => "`,`".to_owned(),
            Self::OpenBrace => "`{`".to_owned(),
            Self::CloseBrace => "`}`".to_owned(),
            Self::OpenBracket => "`[`".to_owned(),
            Self::CloseBracket => "`]`".to_owned(),
            Self::Other(c) => format!("{c:?}"),
            Self::End => "the end of the file".to_owned(),
        }
    }
}
