//! HTTP and HTTPS probes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{
    ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT,
};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use probe::Page;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use url::Url;

use super::{certificate, connect};

const REDIRECTS: usize = 10;

/// How many bytes of a failed response are read, and how many of these are logged.
const LARGEST_PAGE: usize = 10 << 10;
const TOLD: usize = 256;

/// Sends the request, and follows redirects within the pod. A redirect to another host is
/// a success. The error says how the application answered.
pub(super) async fn ask(page: &Page, pod: IpAddr, timeout: Duration) -> Result<(), String> {
    let scheme = if page.tls { "https" } else { "http" };
    let address = SocketAddr::new(pod, page.port);
    let mut url = Url::parse(&format!("{scheme}://{address}{}", page.path))
        .map_err(|error| format!("the path is invalid: {error}"))?;
    let headers = headers(&page.headers)?;
    let mut followed = 0;
    loop {
        let response = get(&url, &headers).await?;
        let status = response.status();
        let next = response.headers().get(LOCATION).and_then(|to| url.join(to.to_str().ok()?).ok());
        match next.filter(|_| matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)) {
            Some(next) if next.host() == url.host() => url = next,
            _ if status.is_success() || status.is_redirection() => return Ok(()),
            _ => {
                let body = Limited::new(response.into_body(), LARGEST_PAGE);
                // A body that does not arrive in time must not hide the status behind a
                // timeout.
                let body = tokio::time::timeout(timeout / 4, body.collect()).await;
                let body = body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes);
                return Err(told(status.as_u16(), &body.unwrap_or_default()));
            }
        }
        followed += 1;
        if followed == REDIRECTS {
            return Err(format!("stopped after {REDIRECTS} redirects"));
        }
    }
}

/// The status and the beginning of the body, in one line.
fn told(status: u16, body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body);
    let words = body.split_whitespace().collect::<Vec<_>>().join(" ");
    let words: String = words.chars().filter(|c| !c.is_control()).take(TOLD).collect();
    format!("HTTP status {status} {words}").trim_end().to_owned()
}

/// The default headers, replaced or completed by the probe's.
fn headers(own: &[(String, String)]) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static(super::USER_AGENT));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    let mut read = HeaderMap::new();
    for (name, value) in own {
        let invalid = || format!("the header `{name}` is invalid");
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
        read.append(name, HeaderValue::from_str(value).map_err(|_| invalid())?);
    }
    headers.extend(read);
    // Each probe uses a connection of its own.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(headers)
}

async fn get(url: &Url, headers: &HeaderMap) -> Result<Response<Incoming>, String> {
    let port = url.port_or_known_default().unwrap_or_default();
    let stream = connect(port).await?;
    if url.scheme() != "https" {
        return exchange(stream, url, headers).await;
    }
    let config = certificate::any().map_err(|error| error.to_string())?;
    let name = match url.host() {
        Some(url::Host::Ipv4(ip)) => ServerName::IpAddress(IpAddr::from(ip).into()),
        Some(url::Host::Ipv6(ip)) => ServerName::IpAddress(IpAddr::from(ip).into()),
        _ => return Err(format!("the host of {url} is not the pod's address")),
    };
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    exchange(stream.map_err(|error| format!("TLS on port {port}: {error}"))?, url, headers).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &Url,
    headers: &HeaderMap,
) -> Result<Response<Incoming>, String> {
    let broken = |error: hyper::Error| format!("HTTP: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut request = Request::get(&url[url::Position::BeforePath..url::Position::AfterQuery])
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    *request.headers_mut() = headers.clone();
    if !headers.contains_key(HOST) {
        let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
        let host = HeaderValue::from_str(host).map_err(|error| error.to_string())?;
        request.headers_mut().insert(HOST, host);
    }
    // The connection's future does the I/O, the body's included, and ends with the
    // response.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("the readiness probe's connection: {error}");
        }
    });
    sender.send_request(request).await.map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_reported_in_one_line() {
        assert_eq!(told(503, b""), "HTTP status 503");
        assert_eq!(told(503, b"a\r\n\x1b b\n"), "HTTP status 503 a  b");
        assert_eq!(told(500, "x".repeat(1000).as_bytes()).len(), "HTTP status 500 ".len() + TOLD);
    }

    #[test]
    fn a_probes_headers_replace_the_default_ones() {
        let own = [("Host", "a"), ("accept", "b"), ("X", "1"), ("x", "2")];
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let headers = headers(&own).unwrap();
        assert_eq!(
            (&headers[HOST], &headers[ACCEPT]),
            (&"a".parse().unwrap(), &"b".parse().unwrap())
        );
        assert_eq!(headers.get_all("x").iter().count(), 2);
        assert!(super::headers(&[("a b".to_owned(), String::new())]).is_err());
    }
}
