// SPDX-License-Identifier: BSD-2-Clause

//! The lines that `tc-guard` writes.

use std::io::{self, Write as _};

use serde::Serialize;

use super::report::{Caller, Key, Reported, Verdict};
use crate::endpoint::protocol_name;
use crate::output::{Event, Line, Printable, Style};
use crate::process::{Directory, Identity};

/// What happened to packets of one user to one endpoint.
#[derive(Debug, Clone, Serialize)]
pub struct VerdictEvent {
    /// `denied`, `would-deny` or `allowed`.
    pub verdict: &'static str,
    /// The layer that saw it.
    pub layer: &'static str,
    /// Why: `user-not-allowed`, `user-allowed`, `no-socket`, `partial-socket`, `foreign-socket`,
    /// `others`.
    pub reason: &'static str,
    /// The endpoint's name.
    pub endpoint: String,
    /// The interface's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// `egress`: packets that leave the machine.
    pub direction: &'static str,
    /// The protocol's name, or its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Address and port of one of the packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<String>,
    /// Where it went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<String>,
    /// How many packets, since the last event of the same user, endpoint and verdict.
    pub count: u64,
    /// Who, as far as the socket says.
    #[serde(flatten)]
    pub identity: Identity,
}

impl VerdictEvent {
    /// The event for what the tally found; `endpoints` are the plan's names, `interface` gives the
    /// name of an index.
    pub fn new(
        reported: &Reported,
        endpoints: &[String],
        interface: impl FnOnce(u32) -> Option<String>,
        directory: &mut Directory,
    ) -> Self {
        let Key {
            verdict,
            caller,
            endpoint,
        } = reported.key;
        let mut identity = Identity::default();
        if let Caller::User(uid) = caller {
            identity.uid = Some(uid);
            identity.user = directory.user(uid);
        }
        let sample = reported.sample.as_ref();
        if let Some(path) = sample.and_then(|sample| directory.cgroup(sample.cgroup)) {
            identity.set_cgroup(&path);
        }
        Self {
            verdict: verdict.name(),
            layer: "tc",
            reason: reason(verdict, caller),
            endpoint: endpoints.get(endpoint).cloned().unwrap_or_default(),
            interface: sample.and_then(|sample| interface(sample.ifindex)),
            direction: "egress",
            protocol: sample.map(|sample| protocol_name(sample.protocol)),
            src: sample.map(|sample| address(sample.src)),
            dst: sample.map(|sample| address(sample.dst)),
            count: reported.count,
            identity,
        }
    }
}

fn reason(verdict: Verdict, caller: Caller) -> &'static str {
    match (caller, verdict) {
        (Caller::User(_), Verdict::Allowed) => "user-allowed",
        (Caller::User(_), _) => "user-not-allowed",
        (Caller::NoSocket, _) => "no-socket",
        (Caller::PartialSocket, _) => "partial-socket",
        (Caller::ForeignSocket, _) => "foreign-socket",
        (Caller::Others, _) => "others",
    }
}

/// With its port, unless that is not known.
fn address(address: std::net::SocketAddr) -> String {
    if address.port() == 0 {
        address.ip().to_string()
    } else {
        address.to_string()
    }
}

impl Event for VerdictEvent {
    fn kind(&self) -> &'static str {
        "verdict"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        let style = match self.verdict {
            "denied" => Style::Bad,
            "allowed" => Style::Good,
            _ => Style::Note,
        };
        line.styled(style, format_args!("{:<10}", self.verdict))?;
        match (&self.identity.user, self.identity.uid) {
            (Some(user), Some(uid)) => write!(line, " user {} ({uid})", Printable(user))?,
            (None, Some(uid)) => write!(line, " uid {uid}")?,
            _ => write!(line, " {}", self.reason)?,
        }
        if let Some(unit) = &self.identity.unit {
            write!(line, " unit {}", Printable(unit))?;
        }
        if let (Some(src), Some(dst)) = (&self.src, &self.dst) {
            write!(line, " {src} -> {dst}")?;
        }
        if let Some(protocol) = &self.protocol {
            write!(line, "/{protocol}")?;
        }
        write!(line, " ({})", Printable(&self.endpoint))?;
        if let Some(interface) = &self.interface {
            write!(line, " on {}", Printable(interface))?;
        }
        if self.count > 1 {
            write!(line, ", {} packets", self.count)?;
        }
        Ok(())
    }
}

/// The guard is in place.
#[derive(Debug, Clone, Serialize)]
pub struct Ready {
    /// Names of the interfaces.
    pub interfaces: Vec<String>,
    /// `tcx` or `clsact`.
    pub method: &'static str,
    /// `enforce` or `audit`.
    pub mode: &'static str,
    /// What is guarded.
    pub endpoints: Vec<String>,
    /// How many users may pass.
    pub users: usize,
    /// Whether the sockets of other network namespaces are told from the machine's own.
    pub namespaces: bool,
}

impl Event for Ready {
    fn kind(&self) -> &'static str {
        "ready"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        let interfaces = self.interfaces.join(", ");
        let endpoints = self.endpoints.join(", ");
        write!(
            line,
            "on {} by {} ({}): {endpoints}",
            Printable(&interfaces),
            self.method,
            self.mode
        )
    }
}

/// The last line. Packets are counted, not connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Packets that were to be reported: denied and would-deny, and allowed with `--all`.
    pub seen: u64,
    /// Those that events have told of.
    pub delivered: u64,
    /// Those that none has: the kernel's table of reports was full.
    pub lost: u64,
    /// Packets of users who may.
    pub allowed: u64,
    /// Packets that were kept back.
    pub denied: u64,
    /// Packets that an enforcing guard would have kept back.
    pub would_deny: u64,
    /// TCP segments that carry nothing out and were not judged.
    pub passed: u64,
    /// Denials answered with a TCP reset.
    pub resets: u64,
    /// Denials answered with an ICMP message.
    pub prohibited: u64,
    /// Denials that could not be answered: fragments, packets with options, ICMP.
    pub unanswered: u64,
    /// Events that the ring buffer had no room for; their packets were told of later.
    pub events_lost: u64,
    /// Lines that could not be written: a full disk does not end a guard.
    pub unwritten: u64,
}

impl Event for Summary {
    fn kind(&self) -> &'static str {
        "summary"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        write!(
            line,
            "packets allowed {}, denied {}, would deny {}; seen {}, delivered {}, lost {}",
            self.allowed, self.denied, self.would_deny, self.seen, self.delivered, self.lost
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Sample;
    use super::*;

    fn reported(caller: Caller, verdict: Verdict) -> Reported {
        let key = Key {
            verdict,
            caller,
            endpoint: 0,
        };
        let sample = Sample {
            time_ns: 1,
            total: 3,
            key,
            cgroup: 0,
            ifindex: 2,
            src: "10.0.0.2:40000".parse().unwrap(),
            dst: "169.254.169.254:80".parse().unwrap(),
            protocol: 6,
        };
        Reported {
            key,
            count: 3,
            sample: Some(sample),
        }
    }

    fn event(reported: &Reported) -> VerdictEvent {
        let names = ["aws".to_owned()];
        let interface = |index| (index == 2).then(|| "eth0".to_owned());
        VerdictEvent::new(reported, &names, interface, &mut Directory::default())
    }

    fn text(event: &impl Event) -> String {
        let mut out = Vec::new();
        event.text(&mut Line::new(&mut out, false)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_denial_names_the_user_and_both_ends() {
        let denied = event(&reported(Caller::User(0), Verdict::Denied));
        assert_eq!(
            text(&denied),
            "denied     user root (0) 10.0.0.2:40000 -> 169.254.169.254:80/tcp (aws) on eth0, \
             3 packets"
        );
        let json = serde_json::to_value(&denied).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "verdict": "denied", "layer": "tc", "reason": "user-not-allowed",
                "endpoint": "aws", "interface": "eth0", "direction": "egress",
                "protocol": "tcp", "src": "10.0.0.2:40000", "dst": "169.254.169.254:80",
                "count": 3, "uid": 0, "user": "root"
            })
        );
    }

    #[test]
    fn a_packet_without_a_socket_has_no_user() {
        let json =
            serde_json::to_value(event(&reported(Caller::NoSocket, Verdict::Denied))).unwrap();
        assert_eq!(json["reason"], "no-socket");
        assert!(json.get("uid").is_none() && json.get("user").is_none());
    }

    #[test]
    fn what_no_record_told_is_absent() {
        let mut without = reported(Caller::User(54321), Verdict::WouldDeny);
        without.sample = None;
        let json = serde_json::to_value(event(&without)).unwrap();
        for field in ["src", "dst", "protocol", "interface", "user"] {
            assert!(json.get(field).is_none(), "{field}");
        }
        assert_eq!(
            text(&event(&without)),
            "would-deny uid 54321 (aws), 3 packets"
        );
    }
}
