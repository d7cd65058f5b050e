//! The subcommand `validate`.

use runtime::Failure;
use serde_json::{Value, json};

use crate::args::ValidateArgs;
use crate::output::{self, Output};
use crate::{files, register};

pub(crate) fn run(args: &ValidateArgs) -> Result<(), Failure> {
    let ValidateArgs { files, output } = args;
    let files::Read { definitions, files } = files::read(files, *output)?;
    if *output == Output::Json {
        let services: Vec<Value> = definitions.iter().map(register::named).collect();
        return output::print_json(&json!({"services": services, "problems": []}));
    }
    let plural = |count: usize, what: &str| {
        if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
    };
    let services = plural(definitions.len(), "service");
    output::print([format!("Valid: {services} in {}", plural(files, "file"))])
}
