// SPDX-License-Identifier: BSD-2-Clause

//! Exchanges of HTTP as an HTTP Archive (<http://www.softwareishard.com/blog/har-12-spec/>), for the
//! tools of browsers and what else reads it.
//!
//! An entry is written as its exchange ends. The file is whole once [`Har::finish`] has written its
//! end; until then it is JSON that lacks its last two brackets.

use std::io::{self, Write};
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::http::{Exchange, Field, Message, Outcome};
use super::record::Direction;
use crate::output::{as_text, rfc3339};

/// Bytes that are kept of a body.
pub const BODY: usize = 1 << 20;

/// What a number is when it is not known.
const UNKNOWN: i64 = -1;

/// A file under way.
#[derive(Debug)]
pub struct Har<W: Write> {
    writer: W,
    entries: u64,
}

impl<W: Write> Har<W> {
    /// Starts a file.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn new(mut writer: W) -> io::Result<Self> {
        let creator = json!({"name": "ebpfkit", "version": env!("CARGO_PKG_VERSION")});
        write!(
            writer,
            "{{\"log\":{{\"version\":\"1.2\",\"creator\":{creator},\"entries\":["
        )?;
        Ok(Self { writer, entries: 0 })
    }

    /// Adds an exchange.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn exchange(&mut self, exchange: &Exchange) -> io::Result<()> {
        let Some(entry) = entry(exchange)? else {
            return Ok(());
        };
        let separator = if self.entries > 0 { ",\n" } else { "\n" };
        self.entries += 1;
        write!(self.writer, "{separator}{entry}")
    }

    /// Sends on what is buffered.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    /// Writes the end.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn finish(&mut self) -> io::Result<()> {
        self.writer.write_all(b"\n]}}\n")?;
        self.writer.flush()
    }
}

/// An entry; none for an exchange of which not even the time is known.
fn entry(exchange: &Exchange) -> io::Result<Option<Value>> {
    let Some(start) = exchange.start() else {
        return Ok(None);
    };
    #[allow(clippy::cast_precision_loss)]
    let milliseconds = |ns: u64| ns as f64 / 1e6;
    let (wait, total) = (exchange.wait_ns(), exchange.duration_ns());
    let receive = total
        .zip(wait)
        .and_then(|(total, wait)| total.checked_sub(wait));
    let version = format!("HTTP/{}", exchange.version);
    let mut comment = format!(
        "connection {}, {}[{}], {}",
        exchange.connection,
        exchange.who.comm.as_deref().unwrap_or("?"),
        exchange.who.pid.unwrap_or_default(),
        exchange.outcome.name()
    );
    if let Outcome::Reset(code) = exchange.outcome {
        comment.push_str(&format!(" with {code}"));
    }
    let mut request = json!({
        "method": exchange.method.as_deref().unwrap_or(""),
        "url": url(exchange),
        "httpVersion": version,
        "cookies": [],
        "headers": headers(&exchange.request),
        "queryString": query(exchange.path.as_deref().unwrap_or("")),
        "headersSize": UNKNOWN,
        "bodySize": size(&exchange.request),
    });
    if exchange.request.body.length > 0 {
        request["postData"] = content(&exchange.request);
    }
    let response = json!({
        // 0 is what browsers say of an answer that has not come.
        "status": exchange.status.unwrap_or(0),
        "statusText": exchange.reason.as_deref().unwrap_or(""),
        "httpVersion": version,
        "cookies": [],
        "headers": headers(&exchange.response),
        "content": content(&exchange.response),
        "redirectURL": exchange.response.field("location").unwrap_or(""),
        "headersSize": UNKNOWN,
        "bodySize": size(&exchange.response),
    });
    let mut entry = json!({
        "startedDateTime": rfc3339(start)?,
        "time": milliseconds(total.unwrap_or(0)),
        "request": request,
        "response": response,
        "cache": {},
        "timings": {
            // Nothing tells sending from waiting.
            "send": 0,
            "wait": wait.map_or(0.0, milliseconds),
            "receive": receive.map_or(0.0, milliseconds),
        },
        "connection": exchange.connection.to_string(),
        "comment": comment,
    });
    // Only where it is known, as all that is optional.
    let peer = exchange
        .ends
        .peer
        .as_deref()
        .and_then(|peer| peer.parse::<SocketAddr>().ok());
    if let (Some(peer), Direction::Write) = (peer, exchange.direction) {
        entry["serverIPAddress"] = peer.ip().to_string().into();
    }
    Ok(Some(entry))
}

fn url(exchange: &Exchange) -> String {
    let host = exchange.host.as_deref().unwrap_or("");
    format!("https://{host}{}", exchange.path.as_deref().unwrap_or(""))
}

fn headers(message: &Message) -> Vec<Value> {
    let shown = |field: &Field| json!({"name": field.name, "value": field.value});
    message.fields.iter().map(shown).collect()
}

fn query(path: &str) -> Vec<Value> {
    let Some((_, query)) = path.split_once('?') else {
        return Vec::new();
    };
    query
        .split('&')
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            json!({"name": name, "value": value})
        })
        .collect()
}

fn size(message: &Message) -> i64 {
    match message.start {
        Some(_) => i64::try_from(message.body.length).unwrap_or(UNKNOWN),
        None => UNKNOWN,
    }
}

/// A body, in base64 where it is no text; its end is left out where it is too long.
fn content(message: &Message) -> Value {
    let kept = message.body.kept();
    let mut content = json!({
        "size": message.body.length,
        "mimeType": message.field("content-type").unwrap_or("application/octet-stream"),
    });
    if !kept.is_empty() {
        match as_text(kept) {
            Some(text) => content["text"] = text.into(),
            None => {
                content["text"] = STANDARD.encode(kept).into();
                content["encoding"] = "base64".into();
            }
        }
    }
    let mut notes = Vec::new();
    if let Some(encoding) = message.field("content-encoding") {
        notes.push(format!("as sent: {encoding}"));
    }
    if !message.body.is_whole() {
        notes.push(format!("only the first {} bytes are kept", kept.len()));
    }
    if !notes.is_empty() {
        content["comment"] = notes.join(", ").into();
    }
    content
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::super::event::Ends;
    use super::super::http::{Body, Budget};
    use super::*;
    use crate::process::Identity;

    fn exchange() -> Exchange {
        let start = datetime!(2026-01-02 03:04:05 UTC);
        let field = |name: &str, value: &str| Field {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let mut body = Body::new(&Budget::new(100), false);
        body.push(b"\x01answer", 3);
        Exchange {
            connection: 3,
            who: Identity::default(),
            ends: Ends {
                peer: Some("192.0.2.1:443".to_owned()),
                ..Ends::default()
            },
            direction: Direction::Write,
            stream: None,
            version: "1.1",
            method: Some("GET".to_owned()),
            host: Some("example.com".to_owned()),
            path: Some("/a?b=c&d".to_owned()),
            status: Some(200),
            reason: None,
            request: Message {
                start: Some(start),
                fields: vec![field("Cookie", "***")],
                ..Message::default()
            },
            response: Message {
                start: Some(start + time::Duration::milliseconds(2)),
                end: Some(start + time::Duration::milliseconds(5)),
                fields: vec![field("Content-Type", "text/plain")],
                body,
            },
            outcome: Outcome::Complete,
        }
    }

    #[test]
    fn the_file_is_an_archive_of_all_exchanges() {
        let mut file = Vec::new();
        let mut har = Har::new(&mut file).unwrap();
        har.exchange(&exchange()).unwrap();
        har.exchange(&Exchange {
            response: Message::default(),
            status: None,
            ..exchange()
        })
        .unwrap();
        har.finish().unwrap();
        let archive: Value = serde_json::from_slice(&file).unwrap();
        assert_eq!(archive["log"]["version"], "1.2");
        let entries = archive["log"]["entries"].as_array().unwrap();
        assert_eq!(entries.len(), 2);
        let first = &entries[0];
        assert_eq!(first["startedDateTime"], "2026-01-02T03:04:05.000000000Z");
        assert_eq!(first["request"]["url"], "https://example.com/a?b=c&d");
        assert_eq!(
            first["request"]["headers"],
            json!([{"name": "Cookie", "value": "***"}])
        );
        let query = json!([{"name": "b", "value": "c"}, {"name": "d", "value": ""}]);
        assert_eq!(first["request"]["queryString"], query);
        assert_eq!(first["response"]["status"], 200);
        assert_eq!(first["response"]["bodySize"], 7);
        let content = json!({
            "size": 7, "mimeType": "text/plain", "text": "AWFu", "encoding": "base64",
            "comment": "only the first 3 bytes are kept",
        });
        assert_eq!(first["response"]["content"], content);
        assert_eq!(first["serverIPAddress"], "192.0.2.1");
        assert_eq!(first["time"], 5.0);
        assert_eq!(
            first["timings"],
            json!({"send": 0, "wait": 2.0, "receive": 3.0})
        );
        assert_eq!(entries[1]["response"]["status"], 0);
        assert_eq!(entries[1]["response"]["bodySize"], UNKNOWN);
    }

    #[test]
    fn an_archive_of_nothing_is_one() {
        let mut file = Vec::new();
        Har::new(&mut file).unwrap().finish().unwrap();
        let archive: Value = serde_json::from_slice(&file).unwrap();
        assert_eq!(archive["log"]["entries"], json!([]));
    }
}
