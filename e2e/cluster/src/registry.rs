//! A registry from which the kubelet pulls the manifests' images. It only supports pulling.
//!
//! Source: the OCI distribution specification, section "Pull".

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use crate::images::MANIFEST;
use harness::Result;

/// Serves the images of a directory until the program ends.
pub fn serve(listener: TcpListener, folder: PathBuf) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let folder = folder.clone();
            // A client that disconnects tries again.
            std::thread::spawn(move || drop(answer(&stream, &folder)));
        }
    });
}

/// Answers one request, and closes.
fn answer(mut stream: &TcpStream, folder: &Path) -> Result<()> {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && !line.trim_end().is_empty() {
        line.clear();
    }
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    let Some((digest, kind)) = find(path, folder) else {
        let body = "{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\"}]}";
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )?;
        return Ok(());
    };
    let mut blob = File::open(folder.join("blobs").join(&digest))?;
    let length = blob.metadata()?.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Docker-Content-Digest: {digest}\r\nConnection: close\r\n\r\n"
    )?;
    if method != "HEAD" {
        std::io::copy(&mut blob, &mut stream)?;
    }
    Ok(())
}

/// The blob at a path, with its media type.
fn find(path: &str, folder: &Path) -> Option<(String, &'static str)> {
    let path = path.strip_prefix("/v2/")?;
    let is_known =
        |digest: &str| !digest.contains('/') && folder.join("blobs").join(digest).is_file();
    if let Some((_, digest)) = path.split_once("/blobs/") {
        return is_known(digest).then(|| (digest.to_owned(), "application/octet-stream"));
    }
    let (name, reference) = path.split_once("/manifests/")?;
    if is_known(reference) {
        return Some((reference.to_owned(), MANIFEST));
    }
    let digest = fs::read_to_string(folder.join("manifests").join(name).join(reference)).ok()?;
    Some((digest, MANIFEST))
}
