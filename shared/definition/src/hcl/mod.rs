//! HCL 1 into a tree, as Consul reads it.
//!
//! - `lexer`: the text into tokens
//! - `parser`: tokens into a tree
//! - `print`: the other way, for files that we write
//!
//! ```text
//! body  = { item [ "," ] }
//! item  = key "=" value | key { key } "{" body "}"
//! key   = NAME | TEXT
//! value = TEXT | HEREDOC | NUMBER | "true" | "false" | list | "{" body "}"
//! list  = "[" { value "," } [ value ] "]"
//! ```
//!
//! Nothing separates items but themselves, which is where HCL 2 differs most.
//! Keys between a block's first and its `{` are blocks within it. A key that
//! comes again adds to what it has if that is a list or a block.
//!
//! Source: the "HCL Native Syntax" section of HCL 1's README and its language
//! specification; where they are silent, what Consul 1.8 takes.

mod lexer;
mod parser;
pub(crate) mod print;

pub(crate) use parser::parse;

#[cfg(test)]
mod tests;
