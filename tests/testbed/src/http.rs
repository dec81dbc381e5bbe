//! One HTTP/1.1 GET over a plain connection of its own.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;

/// For the whole exchange. Far above any promise: a test that measures has its own clock.
const DEADLINE: Duration = Duration::from_secs(10);

/// More than any answer of the project's servers in a test.
const MAX_ANSWER: usize = 64 << 20;

/// An answer, of whatever status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body, without its transfer coding.
    pub body: Vec<u8>,
    headers: Vec<(String, String)>,
}

impl Response {
    /// The first header called `name`, in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The body as text, for messages and comparisons.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    ///
    /// When it is something else, with the body.
    pub fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("status {}, body {:?}", self.status, self.text()))
    }
}

/// GETs `path` from the server at `server`.
///
/// # Errors
///
/// When there is no complete answer in time.
pub fn get(server: SocketAddr, path: &str) -> anyhow::Result<Response> {
    get_as(server, &server.to_string(), path)
}

/// GETs `path` from the server at `server` under the name `host`, as a client does whose
/// resolver gave it that address: how an application behind a transparent proxy asks.
///
/// # Errors
///
/// When there is no complete answer in time.
pub fn get_as(server: SocketAddr, host: &str, path: &str) -> anyhow::Result<Response> {
    exchange(server, host, path).with_context(|| format!("GET http://{host}{path} from {server}"))
}

/// GETs `url` through the forward proxy at `proxy`, as `curl -x` does: the proxy is told the
/// whole URL and no name is resolved here.
///
/// # Errors
///
/// When `url` is not `http://` or there is no complete answer in time.
pub fn get_via(proxy: SocketAddr, url: &str) -> anyhow::Result<Response> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} is not http://"))?;
    let host = rest.split('/').next().unwrap_or(rest);
    exchange(proxy, host, url).with_context(|| format!("GET {url} through {proxy}"))
}

fn exchange(server: SocketAddr, host: &str, target: &str) -> anyhow::Result<Response> {
    let end = Instant::now() + DEADLINE;
    let mut stream = TcpStream::connect_timeout(&server, DEADLINE)?;
    stream.set_write_timeout(Some(DEADLINE))?;
    // Closing after each request makes each test request choose its endpoint anew.
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tombolo-testbed\r\n\
         Accept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    parse(&read_to_end(&mut stream, end)?)
}

/// Everything until the server closes: also a server that drips is held to the deadline.
fn read_to_end(stream: &mut TcpStream, end: Instant) -> anyhow::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("no end after {DEADLINE:?}; so far {} bytes", answer.len());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(answer),
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("reading the answer"),
        }
        if answer.len() > MAX_ANSWER {
            bail!("the answer is longer than {MAX_ANSWER} bytes");
        }
    }
}

fn parse(answer: &[u8]) -> anyhow::Result<Response> {
    let (head, body) = split_at(answer, b"\r\n\r\n")
        .with_context(|| format!("no HTTP answer: {:?}", String::from_utf8_lossy(answer)))?;
    let head = str::from_utf8(head).context("a header that is not UTF-8")?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status(status_line).with_context(|| format!("status line {status_line:?}"))?;
    let headers = lines.map(header).collect::<anyhow::Result<_>>()?;
    let mut response = Response { status, body: Vec::new(), headers };
    response.body = decode(&response, body)?;
    Ok(response)
}

fn status(line: &str) -> Option<u16> {
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

fn header(line: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = line.split_once(':').with_context(|| format!("header line {line:?}"))?;
    Ok((name.to_owned(), value.trim().to_owned()))
}

fn decode(response: &Response, body: &[u8]) -> anyhow::Result<Vec<u8>> {
    if response.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        return unchunk(body);
    }
    if let Some(length) = response.header("content-length") {
        let length: usize = length.parse().with_context(|| format!("content-length {length:?}"))?;
        if body.len() != length {
            bail!("{} bytes of a body of {length}", body.len());
        }
    }
    Ok(body.to_owned())
}

fn unchunk(mut rest: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let (size, after) =
            split_at(rest, b"\r\n").context("the body ends before its last chunk")?;
        let size = str::from_utf8(size)?.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).with_context(|| format!("chunk of {size:?}"))?;
        if size == 0 {
            return Ok(body);
        }
        let (chunk, after) = after.split_at_checked(size).context("a chunk is cut off")?;
        body.extend_from_slice(chunk);
        rest = after.strip_prefix(b"\r\n").context("a chunk is longer than it says")?;
    }
}

fn split_at<'a>(bytes: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(mark.len()).position(|window| window == mark)?;
    Some((&bytes[..at], &bytes[at + mark.len()..]))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// A server for one request: gives its address and, when done, the request it got.
    fn serve(answer: &'static str) -> (SocketAddr, thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let request = lines.map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
            stream.write_all(answer.as_bytes()).unwrap();
            request
        });
        (address, asked)
    }

    #[test]
    fn status_headers_and_body_come_through() {
        let (server, asked) = serve(
            "HTTP/1.1 503 no healthy upstream\r\nX-A:  b \r\ncontent-length: 7\r\n\r\n{\"a\":1}",
        );
        let response = get(server, "/x?y").unwrap();
        assert_eq!((response.status, response.text().as_str()), (503, "{\"a\":1}"));
        assert_eq!(response.header("x-a"), Some("b"));
        assert_eq!(response.json::<serde_json::Value>().unwrap()["a"], 1);
        let request = asked.join().unwrap();
        assert_eq!(request[..2], ["GET /x?y HTTP/1.1".to_owned(), format!("Host: {server}")]);
    }

    #[test]
    fn a_name_and_a_proxy_change_the_request() {
        let (server, asked) = serve("HTTP/1.1 200 OK\r\n\r\n");
        get_as(server, "web.shop.svc.clusterset.local", "/").unwrap();
        let request = asked.join().unwrap();
        assert_eq!(request[..2], ["GET / HTTP/1.1", "Host: web.shop.svc.clusterset.local"]);

        let (server, asked) = serve("HTTP/1.1 200 OK\r\n\r\n");
        get_via(server, "http://web.shop.svc.clusterset.local/a").unwrap();
        let request = asked.join().unwrap();
        let line = "GET http://web.shop.svc.clusterset.local/a HTTP/1.1";
        assert_eq!(request[..2], [line, "Host: web.shop.svc.clusterset.local"]);
    }

    #[test]
    fn bodies_are_decoded_or_refused() {
        let body = |answer: &str| parse(answer.as_bytes()).map(|response| response.text());
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(
            body(&format!("{chunked}3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n")).unwrap(),
            "abc0123456789"
        );
        assert_eq!(body("HTTP/1.0 200 OK\r\n\r\nto the end").unwrap(), "to the end");

        for refused in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
            &format!("{chunked}3\r\nabc\r\n"),
            &format!("{chunked}ffffffffffffffff\r\nabc\r\n"),
            &format!("{chunked}2\r\nabc\r\n0\r\n\r\n"),
        ] {
            assert!(body(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn errors_name_the_request() {
        let (server, asked) = serve("nonsense");
        let error = get_as(server, "web", "/a").unwrap_err();
        assert!(format!("{error:#}").starts_with("GET http://web/a from 127."), "{error:#}");
        asked.join().unwrap();
        assert!(get_via(server, "https://web/").is_err());
    }
}
