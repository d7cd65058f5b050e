//! Envoy itself accepts the documents, and has nothing to warn of.
//!
//! Envoy is `$ENVOY_BIN`; `scripts/test` sets it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use bootstrap::{
    AccessLogSink, ClientCertificate, Input, PrometheusCa, PrometheusTls, XdsAddress, render,
};
use serde_json::json;

/// Golden documents with a field that the user brought and Envoy deprecates.
const DEPRECATED_BY_ENVOY: [(&str, &str); 1] =
    [("tracing.json", "envoy.config.bootstrap.v3.Bootstrap.tracing")];

fn envoy() -> Option<PathBuf> {
    testkit::or_skip(testkit::part("ENVOY_BIN"))
}

/// Lets Envoy check a document. It must take it, and warn of `tolerated` only.
fn assert_valid(envoy: &Path, document: &Path, tolerated: Option<&str>) {
    let output = Command::new(envoy)
        .args(["--mode", "validate", "-c"])
        .arg(document)
        .output()
        .expect("ENVOY_BIN can be run");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let text = text.replace(&*document.to_string_lossy(), "DOCUMENT");
    assert!(output.status.success(), "{}: {text}", document.display());

    let warnings: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("[warning]") || line.to_lowercase().contains("deprecated"))
        .collect();
    match tolerated {
        None => assert!(warnings.is_empty(), "{}: {warnings:#?}", document.display()),
        // If this is empty, Envoy has changed its mind: shorten the list above.
        Some(field) => assert!(
            !warnings.is_empty() && warnings.iter().all(|line| line.contains(field)),
            "{}: {warnings:#?}",
            document.display()
        ),
    }
}

#[test]
fn envoy_accepts_the_golden_documents() {
    let Some(envoy) = envoy() else { return };
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "golden"].iter().collect();
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let tolerated = DEPRECATED_BY_ENVOY
            .iter()
            .find_map(|(name, field)| path.ends_with(name).then_some(*field));
        assert_valid(&envoy, &path, tolerated);
        count += 1;
    }
    assert!(count > 0, "no golden documents");
}

/// Documents that hold or name certificates and files, made here.
#[test]
fn envoy_accepts_documents_with_files() {
    let Some(envoy) = envoy() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let ca_pem = certified.cert.pem();
    for (name, pem) in [
        ("ca.pem", &ca_pem),
        ("cert.pem", &ca_pem),
        ("key.pem", &certified.signing_key.serialize_pem()),
    ] {
        std::io::Write::write_all(&mut File::create(path(name)).unwrap(), pem.as_bytes()).unwrap();
    }
    let tls = |ca| PrometheusTls { ca, cert_file: path("cert.pem"), key_file: path("key.pem") };
    let input = || {
        let agent = XdsAddress::Tcp(([10, 0, 0, 1], 8502).into());
        Input::new("web-sidecar-proxy", "web", agent)
    };
    let prometheus = |ca| {
        let mut input = input();
        let bind = json!("0.0.0.0:9102");
        input.proxy.config.insert("envoy_prometheus_bind_addr".to_owned(), bind);
        input.prometheus.tls = Some(tls(ca));
        input
    };

    let mut xds_over_tls = input();
    xds_over_tls.xds.ca_pem = Some(format!("{ca_pem}{ca_pem}"));
    xds_over_tls.xds.client_certificate =
        Some(ClientCertificate { cert_file: path("cert.pem"), key_file: path("key.pem") });
    let mut xds_over_tls_socket = xds_over_tls.clone();
    xds_over_tls_socket.xds.address = XdsAddress::Unix(path("grpc.sock"));
    let mut admin_log = input();
    admin_log.admin.access_log_path = path("admin.log");
    let mut access_logs = input();
    access_logs.admin.access_logs.enabled = true;
    access_logs.admin.access_logs.sink = AccessLogSink::File;
    access_logs.admin.access_logs.path = path("access.log");

    for (name, input) in [
        ("xds over TLS", xds_over_tls),
        ("xds over TLS on a socket", xds_over_tls_socket),
        ("admin log", admin_log),
        ("access logs", access_logs),
        ("prometheus, CA file", prometheus(PrometheusCa::File(path("ca.pem")))),
        ("prometheus, CA path", prometheus(PrometheusCa::Path(path("")))),
    ] {
        let document = dir.path().join(format!("{name}.json"));
        let rendered = render(&input, &|_| None).unwrap();
        serde_json::to_writer_pretty(File::create(&document).unwrap(), &rendered).unwrap();
        assert_valid(&envoy, &document, None);
    }
}
