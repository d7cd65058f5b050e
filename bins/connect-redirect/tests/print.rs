//! Runs the whole program as far as it works without capabilities: output of `print`, and
//! rejected flags. `kernel.rs` tests the rules themselves.

#![expect(clippy::unwrap_used, reason = "the panic is the report")]

use assert_cmd::Command;

fn connect_redirect(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(assert_cmd::cargo::cargo_bin!("connect-redirect"))
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn print_needs_no_capabilities() {
    let (code, stdout, stderr) =
        connect_redirect(&["print", "--exclude-outbound-cidr", "10.1.2.3"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("    ip daddr 10.1.2.3 return\n"), "{stdout}");
}

#[test]
fn invalid_flags_are_rejected() {
    for (args, named) in [
        (&["--exclude-outbound-cidr", "10.0.0.0/33"][..], "10.0.0.0/8"),
        (&["--exclude-inbound-port", "0"], "--exclude-inbound-port"),
        (&["--service", "9090"], "9090=20001"),
        (&["--service", "80=20001,80=20002"], "give each port of a service once"),
        (&["--service", "80=20000"], "each --service has a listener of its own"),
        (&["--proxy-inbound-port", "15001"], "have to differ"),
        (&["--consul-dns", "localhost"], "--consul-dns"),
    ] {
        let (code, stdout, stderr) = connect_redirect(&[&["print"], args].concat());
        assert_eq!((code, stdout.as_str()), (64, ""), "{args:?}");
        assert!(stderr.contains(named), "{args:?}: {stderr}");
    }
}

#[test]
fn a_closed_pipe_is_not_a_failure() {
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("connect-redirect"));
    command.arg("print");
    testkit::Outcome::unread(command).code(0);
}
