//! The text into tokens.

use serde_json::Number;

use crate::error::Found;

/// A token and where it begins, in bytes.
pub(crate) struct Spanned {
    pub(crate) offset: usize,
    pub(crate) token: Token,
}

/// Not `Debug`: it may hold a token of another kind.
pub(crate) enum Token {
    Name(String),
    /// What stands between quotes or in a heredoc.
    Text {
        text: String,
        is_heredoc: bool,
    },
    Number(Number),
    Bool(bool),
    Assign,
    Comma,
    OpenBrace,
    CloseBrace,
    OpenBracket,
    CloseBracket,
    /// A character that has no meaning here.
    Other(char),
    End,
}

pub(crate) struct Lexer<'t> {
    text: &'t str,
    offset: usize,
}

// === impl Lexer ===

impl<'t> Lexer<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self { text, offset: 0 }
    }

    /// The next token; at the end, always [`Token::End`].
    pub(crate) fn next(&mut self) -> Result<Spanned, Found> {
        self.skip_blanks_and_comments()?;
        let offset = self.offset;
        let Some(first) = self.peek() else {
            return Ok(Spanned { offset, token: Token::End });
        };
        let token = match first {
            '=' => self.mark(Token::Assign),
            ',' => self.mark(Token::Comma),
            '{' => self.mark(Token::OpenBrace),
            '}' => self.mark(Token::CloseBrace),
            '[' => self.mark(Token::OpenBracket),
            ']' => self.mark(Token::CloseBracket),
            '"' => Token::Text { text: self.quoted()?, is_heredoc: false },
            '<' if self.rest().starts_with("<<") => {
                Token::Text { text: self.heredoc()?, is_heredoc: true }
            }
            '0'..='9' => self.number()?,
            '-' if self.second().is_some_and(|c| c.is_ascii_digit()) => self.number()?,
            '.' if self.second().is_some_and(|c| c.is_ascii_digit()) => self.number()?,
            first if is_first_of_name(first) => match self.take_while(is_of_name) {
                "true" => Token::Bool(true),
                "false" => Token::Bool(false),
                name => Token::Name(name.to_owned()),
            },
            other => {
                self.take();
                Token::Other(other)
            }
        };
        Ok(Spanned { offset, token })
    }

    fn mark(&mut self, token: Token) -> Token {
        self.take();
        token
    }

    fn rest(&self) -> &'t str {
        &self.text[self.offset..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn second(&self) -> Option<char> {
        self.rest().chars().nth(1)
    }

    fn take(&mut self) -> Option<char> {
        let taken = self.peek()?;
        self.offset += taken.len_utf8();
        Some(taken)
    }

    fn take_while(&mut self, is_wanted: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let end = rest.find(|c| !is_wanted(c)).unwrap_or(rest.len());
        self.offset += end;
        &rest[..end]
    }

    /// The rest of the line, which is taken with its end; that is not returned.
    fn take_line(&mut self) -> Option<&'t str> {
        let rest = self.rest();
        let end = rest.find('\n')?;
        self.offset += end + 1;
        Some(rest[..end].strip_suffix('\r').unwrap_or(&rest[..end]))
    }

    fn skip_blanks_and_comments(&mut self) -> Result<(), Found> {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
            let rest = self.rest();
            if rest.starts_with('#') || rest.starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if let Some(inside) = rest.strip_prefix("/*") {
                let Some(length) = inside.find("*/") else {
                    return Err(found(self.offset, "expected `*/` to end this comment"));
                };
                self.offset += length + 4;
            } else {
                return Ok(());
            }
        }
    }

    /// Decimal, `0x` hexadecimal, with a leading 0 octal; or with a fraction or
    /// an exponent.
    fn number(&mut self) -> Result<Token, Found> {
        let start = self.offset;
        let minus = if self.peek() == Some('-') { self.take().map_or("", |_| "-") } else { "" };
        let (digits, radix, is_float) = self.digits();
        let written = &self.text[start..self.offset];
        if self.peek().is_some_and(is_first_of_name) {
            self.take_while(is_of_name);
            return Err(found(
                start,
                "expected a number: what begins with a digit and goes on with letters, such as \
                 a duration, stands between quotes",
            ));
        }
        if is_float {
            let float: Option<f64> = written.parse().ok();
            return match float.and_then(Number::from_f64) {
                Some(number) => Ok(Token::Number(number)),
                None if written.ends_with(|c: char| c.is_ascii_digit() || c == '.') => {
                    Err(found(start, "expected a number that 64 bits can hold"))
                }
                None => Err(found(start, "expected digits after the exponent's `e`")),
            };
        }
        if digits.is_empty() {
            return Err(found(start, "expected hexadecimal digits after `0x`"));
        }
        match i64::from_str_radix(&format!("{minus}{digits}"), radix) {
            Ok(number) => Ok(Token::Number(number.into())),
            Err(_) if radix == 8 && digits.contains(['8', '9']) => {
                Err(found(start, "expected digits from 0 to 7: a leading 0 makes a number octal"))
            }
            Err(_) => Err(found(start, "expected a number that 64 bits can hold")),
        }
    }

    /// A number without its sign: its digits, their radix, and whether it has a
    /// fraction or an exponent.
    fn digits(&mut self) -> (&'t str, u32, bool) {
        let start = self.offset;
        if self.rest().starts_with("0x") || self.rest().starts_with("0X") {
            self.offset += 2;
            return (self.take_while(|c| c.is_ascii_hexdigit()), 16, false);
        }
        let whole = self.take_while(|c| c.is_ascii_digit());
        let mut is_float = false;
        if self.peek() == Some('.') {
            is_float = true;
            self.take();
            self.take_while(|c| c.is_ascii_digit());
        }
        if matches!(self.peek(), Some('e' | 'E')) {
            is_float = true;
            self.take();
            if matches!(self.peek(), Some('+' | '-')) {
                self.take();
            }
            self.take_while(|c| c.is_ascii_digit());
        }
        let radix = if whole.starts_with('0') && whole.len() > 1 { 8 } else { 10 };
        (&self.text[start..self.offset], radix, is_float)
    }

    /// A text between quotes. `${` and its `}` have no meaning to Consul, but
    /// what is between them is taken as it stands, quotes and line ends included.
    fn quoted(&mut self) -> Result<String, Found> {
        let start = self.offset;
        self.take();
        // Bytes, because `\x` gives one.
        let mut bytes = Vec::new();
        let mut braces = 0_usize;
        loop {
            let offset = self.offset;
            let unended = |braces| {
                let what = if braces > 0 {
                    "expected `}` to end the `${` of the text that begins here"
                } else {
                    "expected `\"` to end the text that begins here, on the same line; a text \
                     of several lines is a heredoc: <<END"
                };
                found(start, what)
            };
            let Some(next) = self.take() else {
                return Err(unended(braces));
            };
            match next {
                '\0' => return Err(found(offset, "expected a text, found a null character")),
                '\n' if braces == 0 => return Err(unended(0)),
                '"' if braces == 0 => break,
                '\\' if braces == 0 => self.escaped(offset, &mut bytes)?,
                // As one line end, as everywhere.
                '\r' if self.peek() == Some('\n') => {}
                _ => {
                    match next {
                        '$' if braces == 0 && self.peek() == Some('{') => {
                            bytes.push(b'$');
                            self.take();
                            push(&mut bytes, '{');
                            braces = 1;
                            continue;
                        }
                        '{' if braces > 0 => braces += 1,
                        '}' if braces > 0 => braces -= 1,
                        _ => {}
                    }
                    push(&mut bytes, next);
                }
            }
        }
        String::from_utf8(bytes).map_err(|_| {
            found(start, "expected UTF-8: the \\x or octal escapes make something else")
        })
    }

    /// What follows a backslash.
    fn escaped(&mut self, offset: usize, bytes: &mut Vec<u8>) -> Result<(), Found> {
        let wrong = || {
            found(
                offset,
                "expected one of \\a \\b \\f \\n \\r \\t \\v \\\\ \\\" or a code: \\101 \\x41 \
                 \\u00e9 \\U0001f600",
            )
        };
        let plain = |byte| Ok(Some(byte));
        let byte = match self.take().ok_or_else(wrong)? {
            'a' => plain(7),
            'b' => plain(8),
            't' => plain(b'\t'),
            'n' => plain(b'\n'),
            'v' => plain(11),
            'f' => plain(12),
            'r' => plain(b'\r'),
            '\\' => plain(b'\\'),
            '"' => plain(b'"'),
            'x' => self
                .code(2, 16)
                .and_then(|code| u8::try_from(code).ok())
                .map(Some)
                .ok_or_else(wrong),
            '0'..='7' => {
                self.offset -= 1;
                self.code(3, 8).and_then(|code| u8::try_from(code).ok()).map(Some).ok_or_else(wrong)
            }
            kind @ ('u' | 'U') => {
                let length = if kind == 'u' { 4 } else { 8 };
                let code = self.code(length, 16).and_then(char::from_u32).ok_or_else(wrong)?;
                push(bytes, code);
                Ok(None)
            }
            _ => Err(wrong()),
        };
        bytes.extend(byte?);
        Ok(())
    }

    /// So many digits.
    fn code(&mut self, length: usize, radix: u32) -> Option<u32> {
        let digits = self.rest().get(..length)?;
        if !digits.chars().all(|c| c.is_digit(radix)) {
            return None;
        }
        self.offset += length;
        u32::from_str_radix(digits, radix).ok()
    }

    /// Lines up to one that has nothing but the word after `<<`, which may be
    /// indented. With `<<-`, that line's indentation is taken from all of them,
    /// if all of them have it.
    fn heredoc(&mut self) -> Result<String, Found> {
        let start = self.offset;
        self.offset += 2;
        let is_indented = self.peek() == Some('-');
        if is_indented {
            self.take();
        }
        let word = self.take_while(|c| c.is_alphanumeric() || c == '_');
        if word.is_empty() || self.take_line().is_none_or(|rest| !rest.is_empty()) {
            return Err(found(
                start,
                "expected a word of letters, digits and `_` after `<<` or `<<-`, and then the \
                 end of the line",
            ));
        }
        let mut lines = Vec::new();
        let indentation = loop {
            let Some(line) = self.take_line() else {
                // Not a word that may be a secret's.
                return Err(found(
                    start,
                    "expected a line with nothing but the word of this heredoc, to end it",
                ));
            };
            match line.strip_suffix(word) {
                Some(blanks) if blanks.chars().all(char::is_whitespace) => {
                    // The line's end is no part of the heredoc.
                    self.offset -= 1;
                    break blanks;
                }
                _ => lines.push(line),
            }
        };
        let strips = is_indented && lines.iter().all(|line| line.starts_with(indentation));
        let mut text = String::new();
        for line in lines {
            text.push_str(if strips { &line[indentation.len()..] } else { line });
            text.push('\n');
        }
        if !is_indented {
            text.push_str(indentation);
        }
        Ok(text)
    }
}

/// A name begins with a letter; digits, `-` and `.` may follow.
pub(super) fn is_first_of_name(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

pub(super) fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

pub(super) fn found(offset: usize, message: impl Into<String>) -> Found {
    Found { offset, path: String::new(), message: message.into() }
}
