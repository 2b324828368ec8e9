//! HTTP/1.1 as far as the metadata service needs it: one request for one page on each connection.
//!
//! Octets in, octets out. Invariant: a request is taken when its head is whole, and refused when that is longer than [`HEAD_MAX`].
//! Source: RFC 9112 §2 to §6, RFC 9110 §15.

use super::Found;

/// Octets of a request's head.
pub(super) const HEAD_MAX: usize = 4096;
/// Header lines of a request.
const HEADERS_MAX: usize = 48;

/// What became of the octets that came so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// The head is not whole yet.
    More,
    /// What to send; the connection is closed behind it.
    Answer(Vec<u8>),
}

/// Answers a request when its head is whole.
pub(super) fn answer(head: &[u8], find: impl FnOnce(&str) -> Found) -> Reading {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let (method, path) = match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => (request.method.unwrap_or_default(), request.path.unwrap_or_default()),
        Ok(httparse::Status::Partial) if head.len() < HEAD_MAX => return Reading::More,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return refuse("431 Request Header Fields Too Large");
        }
        Err(_) => return refuse("400 Bad Request"),
    };
    let with_body = match method {
        "GET" => true,
        "HEAD" => false,
        _ => return refuse("405 Method Not Allowed"),
    };
    match find(path) {
        Found::Page(page) => Reading::Answer(write("200 OK", page.kind, &page.body, with_body)),
        Found::Nothing => refuse("404 Not Found"),
        Found::NotYet => refuse("503 Service Unavailable"),
    }
}

fn refuse(status: &str) -> Reading {
    Reading::Answer(write(status, "text/plain; charset=utf-8", status.as_bytes(), true))
}

fn write(status: &str, kind: &str, body: &[u8], with_body: bool) -> Vec<u8> {
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nServer: basalt\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    );
    let mut answer = head.into_bytes();
    if with_body {
        answer.extend(body);
    }
    answer
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;
    use crate::metadata::Page;

    fn text(head: &str) -> String {
        let page = |path: &str| match path {
            "/latest" => Found::Page(Page::text(&["meta-data/"])),
            "/soon" => Found::NotYet,
            _ => Found::Nothing,
        };
        match answer(head.as_bytes(), page) {
            Reading::More => "more".to_owned(),
            Reading::Answer(answer) => String::from_utf8(answer).unwrap(),
        }
    }

    #[test]
    fn a_request_is_answered_when_it_is_whole() {
        assert_eq!(text("GET /latest HTTP/1.1\r\nHost: a\r\n"), "more");
        let answer = text("GET /latest HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nmeta-data/"), "{answer}");
        assert!(answer.contains("Content-Length: 10\r\n"), "{answer}");
        let head = text("HEAD /latest HTTP/1.0\r\n\r\n");
        assert!(head.contains("Content-Length: 10\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn what_cannot_be_answered_is_refused() {
        assert!(text("GET /none HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        assert!(text("GET /soon HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 503 "));
        assert!(text("PUT /latest/api/token HTTP/1.1\r\n\r\n").contains("\r\nAllow: GET, HEAD\r\n"));
        assert!(text("nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
        let long = format!("GET /latest HTTP/1.1\r\nX: {}", "a".repeat(HEAD_MAX));
        assert!(text(&long).starts_with("HTTP/1.1 431 "));
        let many = format!("GET /latest HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
        assert!(text(&many).starts_with("HTTP/1.1 431 "));
    }

    proptest! {
        #[test]
        fn any_octets_are_survived(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _either = answer(&octets, |_| Found::Nothing);
        }
    }
}
