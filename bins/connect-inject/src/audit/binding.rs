//! Evaluates the selector of a binding rule: which service accounts it matches. Regular
//! expressions and the UID of a service account are not evaluated; a result that depends on
//! them is unknown.
//!
//! Source: "Filtering" of Consul's API documentation.

/// A parsed selector; an empty one matches every account.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selector(Option<Expression>);

/// A Kubernetes service account.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

#[derive(Debug, PartialEq, Eq)]
enum Expression {
    Not(Box<Expression>),
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
    Test(Field, Test),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Namespace,
    Name,
    /// Any other field, whose value is unknown.
    Other,
}

#[derive(Debug, PartialEq, Eq)]
enum Test {
    Equals(String),
    Contains(String),
    /// A regular expression, which is not evaluated.
    Matches,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    Equals,
    Differs,
    /// A word without quotes: a keyword, a field or a value.
    Word(String),
    Quoted(String),
}

/// Maximum nesting depth of parentheses and negations.
const DEEPEST: usize = 32;

// === impl Selector ===

impl Selector {
    /// Parses a selector; `None` if the syntax is unknown.
    pub(super) fn of(text: &str) -> Option<Self> {
        let tokens = tokens(text)?;
        if tokens.is_empty() {
            return Some(Self(None));
        }
        let mut parser = Parser { tokens: tokens.into_iter().peekable(), depth: 0 };
        let expression = parser.or()?;
        parser.tokens.next().is_none().then_some(Self(Some(expression)))
    }

    /// Whether the selector matches; `None` if unknown.
    pub(super) fn matches(&self, account: &Account<'_>) -> Option<bool> {
        self.0.as_ref().map_or(Some(true), |expression| expression.holds(account))
    }
}

// === impl Expression ===

impl Expression {
    fn holds(&self, account: &Account<'_>) -> Option<bool> {
        match self {
            Self::Not(inner) => inner.holds(account).map(|holds| !holds),
            Self::And(one, other) => match (one.holds(account), other.holds(account)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Self::Or(one, other) => match (one.holds(account), other.holds(account)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
            Self::Test(field, test) => {
                let value = match field {
                    Field::Namespace => account.namespace,
                    Field::Name => account.name,
                    Field::Other => return None,
                };
                match test {
                    Test::Equals(wanted) => Some(value == wanted),
                    Test::Contains(part) => Some(value.contains(part.as_str())),
                    Test::Matches => None,
                }
            }
        }
    }
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '=' | '!' => match rest.get(..2)? {
                "==" => (Token::Equals, 2),
                "!=" => (Token::Differs, 2),
                _ => return None,
            },
            '"' | '`' => {
                let end = rest[1..].find(first)?;
                let value = &rest[1..=end];
                // No Kubernetes name has a character that requires escaping.
                if value.contains('\\') {
                    return None;
                }
                (Token::Quoted(value.to_owned()), end + 2)
            }
            _ => {
                let ends = |c: char| c.is_whitespace() || "()=!\"`".contains(c);
                let end = rest.find(ends).unwrap_or(rest.len());
                (Token::Word(rest[..end].to_owned()), end)
            }
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Some(tokens)
}

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
    depth: usize,
}

// === impl Parser ===

impl Parser {
    fn or(&mut self) -> Option<Expression> {
        let mut left = self.and()?;
        while self.is_next("or") {
            left = Expression::Or(Box::new(left), Box::new(self.and()?));
        }
        Some(left)
    }

    fn and(&mut self) -> Option<Expression> {
        let mut left = self.not()?;
        while self.is_next("and") {
            left = Expression::And(Box::new(left), Box::new(self.not()?));
        }
        Some(left)
    }

    fn not(&mut self) -> Option<Expression> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return None;
        }
        let expression = if self.is_next("not") {
            Expression::Not(Box::new(self.not()?))
        } else if self.tokens.next_if_eq(&Token::Open).is_some() {
            let inner = self.or()?;
            self.tokens.next_if_eq(&Token::Close)?;
            inner
        } else {
            self.test()?
        };
        self.depth -= 1;
        Some(expression)
    }

    /// `field == value`, `field contains value`, `value in field`, and the like.
    fn test(&mut self) -> Option<Expression> {
        let first = match self.tokens.next()? {
            Token::Word(word) => word,
            // Only a value may be quoted.
            Token::Quoted(value) => {
                let is_not = self.is_next("not");
                return if self.is_next("in") { self.contained(value, is_not) } else { None };
            }
            _ => return None,
        };
        let (test, is_not) = match self.tokens.next()? {
            Token::Equals => (Test::Equals(self.value()?), false),
            Token::Differs => (Test::Equals(self.value()?), true),
            Token::Word(word) => match word.as_str() {
                "in" => return self.contained(first, false),
                "contains" => (Test::Contains(self.value()?), false),
                "matches" => {
                    self.value()?;
                    (Test::Matches, false)
                }
                "not" if self.is_next("in") => return self.contained(first, true),
                "not" if self.is_next("contains") => (Test::Contains(self.value()?), true),
                "not" if self.is_next("matches") => {
                    self.value()?;
                    (Test::Matches, true)
                }
                _ => return None,
            },
            _ => return None,
        };
        Some(expression(&first, test, is_not))
    }

    /// `value in field`, read up to `in`.
    fn contained(&mut self, value: String, is_not: bool) -> Option<Expression> {
        match self.tokens.next()? {
            Token::Word(field) => Some(expression(&field, Test::Contains(value), is_not)),
            _ => None,
        }
    }

    fn value(&mut self) -> Option<String> {
        match self.tokens.next()? {
            Token::Word(value) | Token::Quoted(value) => Some(value),
            _ => None,
        }
    }

    /// Consumes the next token if it is this keyword.
    fn is_next(&mut self, keyword: &str) -> bool {
        self.tokens.next_if(|token| matches!(token, Token::Word(word) if word == keyword)).is_some()
    }
}

fn expression(field: &str, test: Test, is_not: bool) -> Expression {
    let field = match field {
        "serviceaccount.namespace" => Field::Namespace,
        "serviceaccount.name" => Field::Name,
        _ => Field::Other,
    };
    let test = Expression::Test(field, test);
    if is_not { Expression::Not(Box::new(test)) } else { test }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_matches_the_same_accounts_as_in_consul() {
        let account = Account { namespace: "shop", name: "web" };
        for (selector, expected) in [
            ("", Some(true)),
            ("serviceaccount.name==web", Some(true)),
            ("serviceaccount.name != web", Some(false)),
            ("serviceaccount.namespace == \"shop\" and serviceaccount.name==`web`", Some(true)),
            ("serviceaccount.name==a or serviceaccount.name==b", Some(false)),
            ("serviceaccount.name==a or serviceaccount.name==web", Some(true)),
            // `and` binds more tightly than `or`.
            (
                "serviceaccount.name==web or serviceaccount.name==a and serviceaccount.name==b",
                Some(true),
            ),
            (
                "(serviceaccount.name==web or serviceaccount.name==a) and serviceaccount.name==b",
                Some(false),
            ),
            ("not serviceaccount.name==web", Some(false)),
            ("not (serviceaccount.name==a or serviceaccount.namespace==b)", Some(true)),
            ("\"we\" in serviceaccount.name", Some(true)),
            ("we not in serviceaccount.name", Some(false)),
            ("serviceaccount.name contains eb", Some(true)),
            ("serviceaccount.name not contains eb", Some(false)),
            // A part that is not evaluated makes the result unknown, unless the rest decides.
            ("serviceaccount.name matches `w.*`", None),
            ("serviceaccount.uid==1", None),
            ("serviceaccount.uid==1 and serviceaccount.name==a", Some(false)),
            ("serviceaccount.uid==1 or serviceaccount.name==web", Some(true)),
            ("not serviceaccount.uid==1", None),
        ] {
            let found = Selector::of(selector).unwrap_or_else(|| panic!("{selector}"));
            assert_eq!(found.matches(&account), expected, "{selector}");
        }
    }

    #[test]
    fn an_invalid_selector_is_not_parsed() {
        let deep = "(".repeat(100_000);
        for text in [
            "serviceaccount.name",
            "serviceaccount.name =",
            "serviceaccount.name == \"a",
            "serviceaccount.name == a b",
            // Consul rejects this operator for text.
            "serviceaccount.name is empty",
            "(serviceaccount.name == a",
            "and",
            "not",
            "serviceaccount.name == \"a\\\"b\"",
            "== a",
            "ä=",
            &deep,
        ] {
            assert_eq!(Selector::of(text), None, "{text}");
        }
    }
}
