//! `envoy_bootstrap_json_tpl`: the part of Go's `text/template` that bootstrap
//! templates need, which covers a copy of Consul's own default. An unsupported
//! construct is rejected by name, even in a branch that is not taken.
//!
//! Source: <https://pkg.go.dev/text/template>.

use std::str::FromStr;

use serde_json::Value;

use crate::Error;

#[derive(Debug, Clone)]
pub(crate) enum Field {
    /// Stands between quotes of the template, so it is escaped for JSON.
    Text(String),
    /// JSON values separated by commas. Go sees a text.
    Json(Vec<Value>),
    /// JSON values, one by one.
    List(Vec<Value>),
    /// `true` or `false`.
    Flag(bool),
}

/// Maximum nesting of actions and parentheses.
const DEPTH: usize = 64;

/// These fields are in an embedded struct of the arguments; Go finds them with and
/// without its name.
const EMBEDDED: &str = "GRPC";

pub(crate) fn render(template: &str, fields: &[(&'static str, Field)]) -> Result<String, Error> {
    let refuse = |refusal: Refusal| Error::Template {
        action: refusal.action,
        problem: refusal.problem,
        fields: fields.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
    };
    let pieces = pieces(template).map_err(refuse)?;
    let mut parser =
        Parser { pieces: &pieces, fields, variables: Vec::new(), dots: Vec::new(), depth: 0 };
    let (nodes, end) = parser.block("").map_err(refuse)?;
    if let Some(end) = end {
        return Err(refuse(Refusal::new(end.0, "has no if, range or with")));
    }
    let mut output = String::new();
    let mut run = Run { fields, variables: Vec::new(), dots: Vec::new(), output: &mut output };
    run.nodes(&nodes).map_err(refuse)?;
    Ok(output)
}

struct Refusal {
    action: String,
    problem: String,
}

/// Text between actions, or an action, with surrounding white space trimmed.
enum Piece<'t> {
    Text(&'t str),
    Action(&'t str),
}

enum Node<'t> {
    Text(&'t str),
    Print(&'t str, Expression),
    /// `{{ $name := value }}`.
    Declare(&'t str, String, Expression),
    If(&'t str, Expression, Vec<Node<'t>>, Vec<Node<'t>>),
    With(&'t str, Option<String>, Expression, Vec<Node<'t>>, Vec<Node<'t>>),
    Range(&'t str, Names, Expression, Vec<Node<'t>>, Vec<Node<'t>>),
}

/// The names of a range's index and element.
type Names = (Option<String>, Option<String>);

enum Expression {
    Constant(Datum),
    /// A field, by index.
    Field(usize),
    /// `.`; at the top level, the arguments as a whole.
    Dot,
    Variable(String),
    Call(Function, Vec<Expression>),
}

#[derive(Clone, Copy)]
enum Function {
    Not,
    And,
    Or,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Len,
}

/// The value of an expression.
#[derive(Clone)]
enum Datum {
    /// Our text, escaped when it is printed.
    Text(String),
    /// The template's text.
    Literal(String),
    Json(Vec<Value>),
    List(Vec<Value>),
    Flag(bool),
    Number(i64),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// A name, a field, a variable or a number.
    Word(String),
    Quoted(String),
    Open,
    Close,
    Pipe,
    Comma,
    Declare,
    Assign,
}

// === impl Refusal ===

impl Refusal {
    fn new(action: &str, problem: impl Into<String>) -> Self {
        Self { action: action.to_owned(), problem: problem.into() }
    }
}

// === Lexer ===

/// Splits the template and trims white space as the actions say.
fn pieces(template: &str) -> Result<Vec<Piece<'_>>, Refusal> {
    let mut pieces = Vec::new();
    let mut rest = template;
    let mut trims = false;
    loop {
        let (text, after) = match rest.split_once("{{") {
            Some((text, after)) => (text, Some(after)),
            None => (rest, None),
        };
        let text = if trims { text.trim_start() } else { text };
        let Some(after) = after else {
            pieces.push(Piece::Text(text));
            return Ok(pieces);
        };
        let (trims_before, inside) = match after.strip_prefix('-') {
            Some(trimmed) if trimmed.starts_with(char::is_whitespace) => (true, trimmed),
            _ => (false, after),
        };
        pieces.push(Piece::Text(if trims_before { text.trim_end() } else { text }));
        let end = end_of(inside)
            .ok_or_else(|| Refusal::new(first_line(inside), "has no closing braces"))?;
        rest = &inside[end + 2..];
        let inside = &inside[..end];
        let (trims_after, inside) = match inside.strip_suffix('-') {
            Some(trimmed) if trimmed.ends_with(char::is_whitespace) => (true, trimmed),
            _ => (false, inside),
        };
        trims = trims_after;
        let inside = inside.trim();
        if !(inside.starts_with("/*") && inside.ends_with("*/")) {
            pieces.push(Piece::Action(inside));
        }
    }
}

/// Position of the closing braces of an action, ignoring those in quoted texts and
/// comments.
fn end_of(inside: &str) -> Option<usize> {
    if inside.trim_start().starts_with("/*") {
        let comment = inside.find("*/")?;
        return Some(comment + inside[comment..].find("}}")?);
    }
    let mut quote = None;
    let mut escaped = false;
    for (i, c) in inside.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '`' => quote = Some(c),
            None if inside[i..].starts_with("}}") => return Some(i),
            Some(_) | None => {}
        }
    }
    None
}

fn first_line(text: &str) -> &str {
    text.trim().lines().next().unwrap_or_default().trim()
}

fn tokens(action: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = action;
    while let Some(c) = rest.chars().next() {
        let mut length = c.len_utf8();
        match c {
            c if c.is_whitespace() => {}
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            '|' => tokens.push(Token::Pipe),
            ',' => tokens.push(Token::Comma),
            '=' => tokens.push(Token::Assign),
            ':' if rest.starts_with(":=") => {
                tokens.push(Token::Declare);
                length = 2;
            }
            '`' => {
                let end = rest[1..].find('`').ok_or("has a text without an end")?;
                tokens.push(Token::Quoted(rest[1..=end].to_owned()));
                length = end + 2;
            }
            '"' => {
                let mut texts = serde_json::Deserializer::from_str(rest).into_iter::<String>();
                let text = texts.next().and_then(Result::ok);
                tokens.push(Token::Quoted(text.ok_or("has a text that is not understood")?));
                length = texts.byte_offset();
            }
            c if c.is_alphanumeric() || matches!(c, '.' | '$' | '_' | '-') => {
                let is_word = |c: char| c.is_alphanumeric() || matches!(c, '.' | '$' | '_' | '-');
                length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..length].to_owned()));
            }
            c => return Err(format!("has `{c}`, which is not understood")),
        }
        rest = &rest[length..];
    }
    Ok(tokens)
}

// === impl Parser ===

struct Parser<'p, 't> {
    pieces: &'p [Piece<'t>],
    fields: &'p [(&'static str, Field)],
    /// Names of the variables in scope.
    variables: Vec<String>,
    /// One for each enclosing `with` and `range`: the dot is not the arguments.
    dots: Vec<()>,
    depth: usize,
}

/// The action that ended a block, `end` or `else`, with the words behind `else`.
type End<'t> = (&'t str, Vec<Token>);

impl<'t> Parser<'_, 't> {
    /// The nodes up to the end of the block, or of the template if the end is `None`.
    fn block(&mut self, of: &str) -> Result<(Vec<Node<'t>>, Option<End<'t>>), Refusal> {
        if self.depth > DEPTH {
            return Err(Refusal::new(of, "is nested too deeply"));
        }
        self.depth += 1;
        let variables = self.variables.len();
        let mut nodes = Vec::new();
        let mut end = None;
        while let Some((piece, rest)) = self.pieces.split_first() {
            self.pieces = rest;
            let action = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(action) => *action,
            };
            let refuse = |problem: String| Refusal::new(action, problem);
            let tokens = tokens(action).map_err(refuse)?;
            match tokens.first() {
                Some(Token::Word(word)) if word == "end" && tokens.len() == 1 => {
                    end = Some((action, Vec::new()));
                    break;
                }
                Some(Token::Word(word)) if word == "else" => {
                    end = Some((action, tokens));
                    break;
                }
                _ => nodes.push(self.node(action, &tokens)?),
            }
        }
        self.variables.truncate(variables);
        self.depth -= 1;
        Ok((nodes, end))
    }

    fn node(&mut self, action: &'t str, tokens: &[Token]) -> Result<Node<'t>, Refusal> {
        let refuse = |problem: String| Refusal::new(action, problem);
        let Some(Token::Word(word)) = tokens.first() else {
            return self.expression(tokens).map(|value| Node::Print(action, value)).map_err(refuse);
        };
        let rest = &tokens[1..];
        let before = self.variables.len();
        let node = match word.as_str() {
            "if" => {
                let condition = self.expression(rest).map_err(refuse)?;
                let (then, otherwise) = self.branches(action, false)?;
                Node::If(action, condition, then, otherwise)
            }
            "with" => {
                let (name, rest) = match rest {
                    [Token::Word(name), Token::Declare, rest @ ..] if is_variable(name) => {
                        (Some(name.clone()), rest)
                    }
                    rest => (None, rest),
                };
                let value = self.expression(rest).map_err(refuse)?;
                self.variables.extend(name.clone());
                let (then, otherwise) = self.branches(action, true)?;
                Node::With(action, name, value, then, otherwise)
            }
            "range" => {
                let (names, rest) = match rest {
                    [Token::Word(element), Token::Declare, rest @ ..] if is_variable(element) => {
                        ((None, Some(element.clone())), rest)
                    }
                    [
                        Token::Word(index),
                        Token::Comma,
                        Token::Word(element),
                        Token::Declare,
                        rest @ ..,
                    ] if is_variable(index) && is_variable(element) => {
                        ((Some(index.clone()), Some(element.clone())), rest)
                    }
                    rest => ((None, None), rest),
                };
                let list = self.expression(rest).map_err(refuse)?;
                self.variables.extend(names.0.clone());
                self.variables.extend(names.1.clone());
                let (body, otherwise) = self.branches(action, true)?;
                Node::Range(action, names, list, body, otherwise)
            }
            "define" | "template" | "block" | "break" | "continue" => {
                return Err(refuse(format!("uses `{word}`, which is not supported")));
            }
            name if is_variable(name) && rest.first() == Some(&Token::Declare) => {
                let value = self.expression(&rest[1..]).map_err(refuse)?;
                self.variables.push(name.to_owned());
                return Ok(Node::Declare(action, name.to_owned(), value));
            }
            _ => Node::Print(action, self.expression(tokens).map_err(refuse)?),
        };
        self.variables.truncate(before);
        Ok(node)
    }

    /// The nodes of both branches.
    fn branches(
        &mut self,
        action: &'t str,
        has_dot: bool,
    ) -> Result<(Vec<Node<'t>>, Vec<Node<'t>>), Refusal> {
        if has_dot {
            self.dots.push(());
        }
        let (then, end) = self.block(action)?;
        if has_dot {
            self.dots.pop();
        }
        let name = action.split_whitespace().next().unwrap_or_default();
        let (otherwise, end) = match end {
            Some((action, words)) if words.len() > 1 => {
                // `else if` is a nested block, which ends with this one.
                if !matches!(&words[1], Token::Word(word) if word == "if" || word == "with") {
                    return Err(Refusal::new(action, "is not understood"));
                }
                return Ok((then, vec![self.node(action, &words[1..])?]));
            }
            Some((_, words)) if words.len() == 1 => self.block(action)?,
            end => (Vec::new(), end),
        };
        match end {
            None => Err(Refusal::new(name, "has no end")),
            Some((action, words)) if !words.is_empty() => {
                Err(Refusal::new(action, "has no if, range or with"))
            }
            Some(_) => Ok((then, otherwise)),
        }
    }

    fn expression(&mut self, tokens: &[Token]) -> Result<Expression, String> {
        let mut rest = tokens;
        let value = self.pipeline(&mut rest)?;
        if rest.is_empty() { Ok(value) } else { Err("is not understood".to_owned()) }
    }

    /// Commands, each with the previous one's value as its last argument.
    fn pipeline(&mut self, rest: &mut &[Token]) -> Result<Expression, String> {
        let mut value = self.command(rest, None)?;
        while let [Token::Pipe, after @ ..] = *rest {
            *rest = after;
            value = self.command(rest, Some(value))?;
        }
        Ok(value)
    }

    fn command(
        &mut self,
        rest: &mut &[Token],
        piped: Option<Expression>,
    ) -> Result<Expression, String> {
        if let [Token::Word(name), after @ ..] = *rest
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && !matches!(name.as_str(), "true" | "false" | "nil")
        {
            *rest = after;
            let function: Function = name.parse()?;
            let mut arguments = Vec::new();
            while !matches!(rest, [] | [Token::Close | Token::Pipe, ..]) {
                arguments.push(self.operand(rest)?);
            }
            arguments.extend(piped);
            if !function.takes(arguments.len()) {
                return Err(format!("gives `{name}` {} values", arguments.len()));
            }
            return Ok(Expression::Call(function, arguments));
        }
        let value = self.operand(rest)?;
        if piped.is_some() {
            return Err("pipes a value into something that is not a function".to_owned());
        }
        Ok(value)
    }

    fn operand(&mut self, rest: &mut &[Token]) -> Result<Expression, String> {
        let Some((token, after)) = rest.split_first() else {
            return Err("is not understood: a value is missing".to_owned());
        };
        *rest = after;
        match token {
            Token::Quoted(text) => Ok(Expression::Constant(Datum::Literal(text.clone()))),
            Token::Word(word) => self.word(word),
            Token::Open => {
                if self.depth > DEPTH {
                    return Err("is nested too deeply".to_owned());
                }
                self.depth += 1;
                let value = self.pipeline(rest)?;
                self.depth -= 1;
                match *rest {
                    [Token::Close, after @ ..] => {
                        *rest = after;
                        Ok(value)
                    }
                    _ => Err("has a parenthesis without an end".to_owned()),
                }
            }
            _ => Err("is not understood".to_owned()),
        }
    }

    fn word(&self, word: &str) -> Result<Expression, String> {
        match word {
            "." => return Ok(Expression::Dot),
            "true" => return Ok(Expression::Constant(Datum::Flag(true))),
            "false" => return Ok(Expression::Constant(Datum::Flag(false))),
            _ => {}
        }
        if let Some(name) = word.strip_prefix("$.") {
            return self.field(name);
        }
        if let Some(name) = word.strip_prefix('.') {
            if !self.dots.is_empty() {
                return Err(format!("has no field here: write `$.{name}` within range and with"));
            }
            return self.field(name);
        }
        if is_variable(word) {
            return if self.variables.iter().any(|known| known == word) {
                Ok(Expression::Variable(word.to_owned()))
            } else {
                Err(format!("uses `{word}`, which is not declared"))
            };
        }
        if let Ok(number) = word.parse() {
            return Ok(Expression::Constant(Datum::Number(number)));
        }
        Err(format!("uses `{word}`, which is not understood"))
    }

    fn field(&self, name: &str) -> Result<Expression, String> {
        let plain = name.strip_prefix(EMBEDDED).and_then(|name| name.strip_prefix('.'));
        let name = plain.unwrap_or(name);
        let place = self.fields.iter().position(|(known, _)| *known == name);
        place.map(Expression::Field).ok_or_else(|| "is not a field".to_owned())
    }
}

fn is_variable(word: &str) -> bool {
    word.strip_prefix('$').is_some_and(|name| {
        !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_')
    })
}

// === impl Function ===

impl FromStr for Function {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "not" => Self::Not,
            "and" => Self::And,
            "or" => Self::Or,
            "eq" => Self::Eq,
            "ne" => Self::Ne,
            "lt" => Self::Lt,
            "le" => Self::Le,
            "gt" => Self::Gt,
            "ge" => Self::Ge,
            "len" => Self::Len,
            _ => return Err(format!("uses `{name}`, which is not supported")),
        })
    }
}

impl Function {
    fn takes(self, arguments: usize) -> bool {
        match self {
            Self::Not | Self::Len => arguments == 1,
            Self::And | Self::Or => arguments >= 1,
            Self::Eq => arguments >= 2,
            Self::Ne | Self::Lt | Self::Le | Self::Gt | Self::Ge => arguments == 2,
        }
    }
}

// === impl Run ===

struct Run<'r> {
    fields: &'r [(&'static str, Field)],
    variables: Vec<(String, Datum)>,
    dots: Vec<Datum>,
    output: &'r mut String,
}

impl Run<'_> {
    fn nodes(&mut self, nodes: &[Node<'_>]) -> Result<(), Refusal> {
        let variables = self.variables.len();
        for node in nodes {
            self.node(node)?;
        }
        self.variables.truncate(variables);
        Ok(())
    }

    fn node(&mut self, node: &Node<'_>) -> Result<(), Refusal> {
        match node {
            Node::Text(text) => self.output.push_str(text),
            Node::Print(action, value) => {
                let text = self.value(value).and_then(|value| value.print());
                let text = text.map_err(|problem| Refusal::new(action, problem))?;
                self.output.push_str(&text);
            }
            Node::Declare(action, name, value) => {
                let value = self.value(value).map_err(|problem| Refusal::new(action, problem))?;
                self.variables.push((name.clone(), value));
            }
            Node::If(action, condition, then, otherwise) => {
                let condition = self.value(condition);
                let condition = condition.map_err(|problem| Refusal::new(action, problem))?;
                self.nodes(if condition.is_set() { then } else { otherwise })?;
            }
            Node::With(action, name, value, then, otherwise) => {
                let value = self.value(value).map_err(|problem| Refusal::new(action, problem))?;
                if value.is_set() {
                    self.within(value.clone(), name.clone().map(|name| (name, value)), then)?;
                } else {
                    self.nodes(otherwise)?;
                }
            }
            Node::Range(action, (index, element), list, body, otherwise) => {
                let list = self.value(list).map_err(|problem| Refusal::new(action, problem))?;
                let Datum::List(list) = list else {
                    return Err(Refusal::new(action, "ranges over what is not a list"));
                };
                for (i, value) in list.iter().enumerate() {
                    let value = Datum::Json(vec![value.clone()]);
                    let i = Datum::Number(i64::try_from(i).unwrap_or(i64::MAX));
                    let names = [index.clone().map(|name| (name, i)), {
                        element.clone().map(|name| (name, value.clone()))
                    }];
                    self.within(value, names.into_iter().flatten(), body)?;
                }
                if list.is_empty() {
                    self.nodes(otherwise)?;
                }
            }
        }
        Ok(())
    }

    /// Prints nodes with another dot and additional variables.
    fn within(
        &mut self,
        dot: Datum,
        variables: impl IntoIterator<Item = (String, Datum)>,
        nodes: &[Node<'_>],
    ) -> Result<(), Refusal> {
        let before = self.variables.len();
        self.variables.extend(variables);
        self.dots.push(dot);
        let done = self.nodes(nodes);
        self.dots.pop();
        self.variables.truncate(before);
        done
    }

    fn value(&self, expression: &Expression) -> Result<Datum, String> {
        match expression {
            Expression::Constant(value) => Ok(value.clone()),
            Expression::Field(place) => Ok(match &self.fields[*place].1 {
                Field::Text(text) => Datum::Text(text.clone()),
                Field::Json(values) => Datum::Json(values.clone()),
                Field::List(values) => Datum::List(values.clone()),
                Field::Flag(flag) => Datum::Flag(*flag),
            }),
            Expression::Dot => self
                .dots
                .last()
                .cloned()
                .ok_or_else(|| "has no value outside range and with".into()),
            Expression::Variable(name) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                found
                    .map(|(_, value)| value.clone())
                    .ok_or_else(|| format!("`{name}` has no value"))
            }
            Expression::Call(function, arguments) => self.call(*function, arguments),
        }
    }

    fn call(&self, function: Function, arguments: &[Expression]) -> Result<Datum, String> {
        let first = self.value(&arguments[0])?;
        let others = || arguments[1..].iter().map(|argument| self.value(argument));
        match function {
            Function::Not => Ok(Datum::Flag(!first.is_set())),
            Function::Len => first.length().map(Datum::Number),
            Function::And | Function::Or => {
                let ends = |value: &Datum| value.is_set() == matches!(function, Function::Or);
                let mut value = first;
                for next in others() {
                    if ends(&value) {
                        break;
                    }
                    value = next?;
                }
                Ok(value)
            }
            Function::Eq => {
                for other in others() {
                    if first.equals(&other?)? {
                        return Ok(Datum::Flag(true));
                    }
                }
                Ok(Datum::Flag(false))
            }
            Function::Ne => {
                let other = self.value(&arguments[1])?;
                Ok(Datum::Flag(!first.equals(&other)?))
            }
            Function::Lt | Function::Le | Function::Gt | Function::Ge => {
                let (Datum::Number(a), Datum::Number(b)) = (first, self.value(&arguments[1])?)
                else {
                    return Err("compares what are not numbers".to_owned());
                };
                Ok(Datum::Flag(match function {
                    Function::Lt => a < b,
                    Function::Le => a <= b,
                    Function::Gt => a > b,
                    _ => a >= b,
                }))
            }
        }
    }
}

// === impl Datum ===

impl Datum {
    /// Whether Go's `if` treats it as true.
    fn is_set(&self) -> bool {
        match self {
            Self::Text(text) | Self::Literal(text) => !text.is_empty(),
            Self::Json(values) | Self::List(values) => !values.is_empty(),
            Self::Flag(flag) => *flag,
            Self::Number(number) => *number != 0,
        }
    }

    fn print(&self) -> Result<String, String> {
        match self {
            Self::Text(text) => {
                let quoted = Value::from(text.as_str()).to_string();
                Ok(quoted[1..quoted.len() - 1].to_owned())
            }
            Self::List(_) => Err("prints a list: use range".to_owned()),
            Self::Flag(flag) => Ok(flag.to_string()),
            Self::Number(number) => Ok(number.to_string()),
            Self::Literal(_) | Self::Json(_) => Ok(self.text().unwrap_or_default()),
        }
    }

    /// The value as Go's text.
    fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) | Self::Literal(text) => Some(text.clone()),
            Self::Json(values) => {
                let values: Vec<String> = values.iter().map(Value::to_string).collect();
                Some(values.join(",\n"))
            }
            Self::List(_) | Self::Flag(_) | Self::Number(_) => None,
        }
    }

    fn length(&self) -> Result<i64, String> {
        let length = match self {
            Self::List(list) => Some(list.len()),
            other => other.text().map(|text| text.len()),
        };
        let length = length.ok_or("has no length")?;
        Ok(i64::try_from(length).unwrap_or(i64::MAX))
    }

    fn equals(&self, other: &Self) -> Result<bool, String> {
        match (self, other) {
            (Self::Flag(a), Self::Flag(b)) => Ok(a == b),
            (Self::Number(a), Self::Number(b)) => Ok(a == b),
            _ => match (self.text(), other.text()) {
                (Some(a), Some(b)) => Ok(a == b),
                _ => Err("compares values of different types".to_owned()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn fields() -> Vec<(&'static str, Field)> {
        vec![
            ("ProxyID", Field::Text("web \"1\"\n".to_owned())),
            ("NodeName", Field::Text(String::new())),
            ("Namespace", Field::Text("shop".to_owned())),
            ("AgentTLS", Field::Flag(true)),
            ("StaticClustersJSON", Field::Json(vec![json!({"a": 1}), json!({})])),
            ("StaticSecretsJSON", Field::Json(vec![])),
            ("Logs", Field::List(vec![json!({"n": 1}), json!({"n": 2})])),
            ("None", Field::List(vec![])),
        ]
    }

    #[test]
    fn rendered() {
        for (template, expected) in [
            ("", ""),
            ("{}", "{}"),
            ("\"{{ .ProxyID }}\"", "\"web \\\"1\\\"\\n\""),
            ("{{.AgentTLS}}", "true"),
            ("[{{ .StaticClustersJSON }}]", "[{\"a\":1},\n{}]"),
            ("a {{- .AgentTLS -}} \n b", "atrueb"),
            ("a {{/* note }} */}} b", "a  b"),
            ("a{{- /* note */ -}} b", "ab"),
            ("{{ if .NodeName }}n{{ else }}none{{ end }}", "none"),
            ("{{ if not .NodeName }}none{{ end }}", "none"),
            ("{{ if .AgentTLS }}a{{ if .NodeName }}b{{ end }}c{{ else }}d{{ end }}e", "ace"),
            ("{{ if .NodeName }}a{{ if .AgentTLS }}b{{ else }}c{{ end }}{{ end }}e", "e"),
            ("{{ if .NodeName }}{{ .ProxyID }}{{ end }}", ""),
        ] {
            assert_eq!(render(template, &fields()).unwrap(), expected, "{template}");
        }
    }

    /// Constructs of Consul's own default template that used to be rejected.
    #[test]
    fn conditions_ranges_and_variables_are_gos() {
        for (template, expected) in [
            ("{{ if (not .NodeName) }}a{{ end }}", "a"),
            ("{{if ne .Namespace \"\"}}{{ .Namespace }}{{else}}default{{end}}", "shop"),
            ("{{if ne .NodeName \"\"}}{{ .NodeName }}{{else}}default{{end}}", "default"),
            ("{{ if eq .Namespace \"a\" `shop` }}y{{ end }}", "y"),
            ("{{ if and .AgentTLS (not .NodeName) }}y{{ end }}", "y"),
            ("{{ if or .NodeName .StaticSecretsJSON }}y{{ else }}n{{ end }}", "n"),
            ("{{ if .NodeName }}1{{ else if .AgentTLS }}2{{ else }}3{{ end }}4", "24"),
            ("{{ if .NodeName }}1{{ else if .NodeName }}2{{ else }}3{{ end }}4", "34"),
            (
                "[{{- range $index, $element := .Logs}}{{if $index}},{{end}}{{$element}}{{end}}]",
                "[{\"n\":1},{\"n\":2}]",
            ),
            ("{{ range .Logs }}{{ . }}{{ $.AgentTLS }};{{ end }}", "{\"n\":1}true;{\"n\":2}true;"),
            ("{{ range $e := .None }}{{ $e }}{{ else }}none{{ end }}", "none"),
            ("{{ with .Namespace }}{{ . }}{{ else }}default{{ end }}", "shop"),
            ("{{ with $n := .NodeName }}{{ $n }}{{ else }}default{{ end }}", "default"),
            ("{{ $n := .Namespace }}{{ if $n }}{{ $n }}{{ end }}", "shop"),
            ("{{ if gt (len .Logs) 1 }}y{{ end }}", "y"),
            ("{{ .NodeName | len }}", "0"),
            ("{{ if .NodeName | not }}y{{ end }}", "y"),
            ("{{ .GRPC.AgentTLS }}", "true"),
            ("{{ `{{ }}` }}{{ \"a\\\"b\" }}", "{{ }}a\"b"),
        ] {
            assert_eq!(render(template, &fields()).ok().as_deref(), Some(expected), "{template}");
        }
    }

    #[test]
    fn refused() {
        for (template, text) in [
            ("{{ .Nope }}", "{{ .Nope }} is not a field"),
            ("{{ if .NodeName }}{{ .Nope }}{{ end }}", "{{ .Nope }} is not a field"),
            ("{{ range .X }}", "{{ range .X }} is not a field"),
            ("{{ range .ProxyID }}{{ end }}", "ranges over what is not a list"),
            ("{{ range .Logs }}{{ .ProxyID }}{{ end }}", "write `$.ProxyID` within range"),
            ("{{ .Logs }}", "prints a list: use range"),
            ("{{ .ProxyID | printf }}", "{{ .ProxyID | printf }} uses `printf`"),
            ("{{ if .NodeName }}{{ printf \"%s\" }}{{ end }}", "uses `printf`, which is not sup"),
            ("{{ template \"x\" }}", "uses `template`, which is not supported"),
            ("{{ define \"x\" }}{{ end }}", "uses `define`, which is not supported"),
            ("{{ .ProxyID | .NodeName }}", "pipes a value into something that is not a function"),
            ("{{ .ProxyID .NodeName }}", "is not understood"),
            ("{{ $x }}", "uses `$x`, which is not declared"),
            ("{{ with $x := .ProxyID }}{{ end }}{{ $x }}", "uses `$x`, which is not declared"),
            ("{{ $x = .ProxyID }}", "uses `$x`"),
            ("{{ if eq .ProxyID 1 }}{{ end }}", "compares values of different types"),
            ("{{ not }}", "gives `not` 0 values"),
            ("{{ if (not .NodeName }}", "has a parenthesis without an end"),
            ("{{ ProxyID }}", "uses `ProxyID`, which is not understood"),
            ("{{ . }}", "has no value outside range and with"),
            ("{{ }}", "is not understood"),
            ("{{ .ProxyID", "{{ .ProxyID }} has no closing braces"),
            ("{{ if .NodeName }}", "{{ if }} has no end"),
            ("{{ end }}", "{{ end }} has no if"),
            ("{{ else }}", "{{ else }} has no if"),
            ("{{ if .NodeName }}{{ else }}{{ else }}{{ end }}", "{{ else }} has no if"),
            ("{{ if .NodeName }}{{ else range }}{{ end }}", "is not understood"),
        ] {
            let error = render(template, &fields()).unwrap_err().to_string();
            assert!(error.contains(text), "{template}: {error}");
            assert!(error.contains("fields: ProxyID, NodeName"), "{error}");
        }
        for (open, close) in [("{{ if .AgentTLS }}", "{{ end }}"), ("{{ ", " }}")] {
            let deep = format!("{}{}", open.repeat(100), close.repeat(100));
            assert!(render(&deep, &fields()).is_err());
        }
        let parentheses = format!("{{{{ {}.NodeName{} }}}}", "(".repeat(9999), ")".repeat(9999));
        let error = render(&parentheses, &fields()).unwrap_err().to_string();
        assert!(error.contains("is nested too deeply"));
    }

    proptest! {
        #[test]
        fn no_template_panics(template in "([{}a. ()|\"$,-]|\\{\\{|\\}\\}|if|end|else|not|range|with|:=|\\.ProxyID|\\.Logs|eq|é){0,24}") {
            let _ = render(&template, &fields());
        }
    }
}
