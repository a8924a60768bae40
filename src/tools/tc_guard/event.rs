// SPDX-License-Identifier: BSD-2-Clause

//! The lines that `tc-guard` writes.

use std::io::{self, Write as _};

use serde::Serialize;

use super::hold::Change;
use super::plan::Plan;
use super::report::{Executable, Layer, Reason, Reported, Verdict};
use crate::endpoint::protocol_name;
use crate::output::{Event, Line, Printable, Style};
use crate::process::{Directory, Identity};

/// What happened to packets of one user to one endpoint.
#[derive(Debug, Clone, Serialize)]
pub struct VerdictEvent {
    /// `denied`, `would-deny` or `allowed`.
    pub verdict: &'static str,
    /// The layer that saw it: `tc`, or `connect` for connect() and sendmsg().
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<&'static str>,
    /// Why: `user-not-allowed`, `user-allowed`, `group-allowed`, `cgroup-allowed`, `no-socket`,
    /// `partial-socket`, `foreign-socket`, `over-limit`, `others`, `unreadable`.
    pub reason: &'static str,
    /// The endpoint's name; empty where the reason is `others` or `unreadable`.
    pub endpoint: String,
    /// Which policy judged: 0 for a guard's first, and one more with each that replaced another.
    pub policy: u16,
    /// The interface's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// `egress` for packets that were about to leave and for calls, `ingress` for packets that came in
    /// from a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<&'static str>,
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
    /// The event for what the tally found; `endpoint` is the plan's name for it, `interface` gives the
    /// name of an index.
    pub fn new(
        reported: &Reported,
        endpoint: &str,
        interface: impl FnOnce(u32) -> Option<String>,
        directory: &mut Directory,
    ) -> Self {
        let key = &reported.key;
        let sample = reported.sample.as_ref();
        let who = sample.and_then(|sample| sample.who.as_ref());
        let mut identity = who.map_or_else(Identity::default, |who| who.identity(directory));
        // What ran when it called: by now it may be another program, which the caller has chosen.
        match sample.map(|sample| &sample.executable) {
            None | Some(Executable::Unseen) => {}
            Some(Executable::Unknown) => identity.exe = None,
            Some(Executable::Path(path)) => identity.exe = Some(path.clone()),
        }
        // The verdict's own view comes first: the socket's, where that is what was judged.
        if let Some(uid) = key.uid {
            identity.uid = Some(uid);
            identity.user = directory.user(uid);
        }
        let cgroup = sample.map_or(key.cgroup, |sample| sample.cgroup);
        if let Some(path) = directory.cgroup(cgroup) {
            identity.set_cgroup(&path);
        }
        let known = key.reason != Reason::Unreadable;
        let source = sample.filter(|sample| !sample.src.ip().is_unspecified());
        Self {
            verdict: key.verdict.name(),
            layer: sample.map(|sample| match sample.layer {
                Layer::Egress | Layer::Ingress => "tc",
                Layer::Call => "connect",
            }),
            reason: reason(key.verdict, key.reason),
            endpoint: endpoint.to_owned(),
            policy: key.generation,
            interface: sample
                .filter(|sample| sample.ifindex != 0)
                .and_then(|sample| interface(sample.ifindex)),
            direction: sample.map(|sample| match sample.layer {
                Layer::Egress | Layer::Call => "egress",
                Layer::Ingress => "ingress",
            }),
            protocol: sample
                .filter(|_| known)
                .map(|sample| protocol_name(sample.protocol)),
            src: source.map(|sample| address(sample.src)),
            dst: sample.filter(|_| known).map(|sample| address(sample.dst)),
            count: reported.count,
            identity,
        }
    }
}

fn reason(verdict: Verdict, reason: Reason) -> &'static str {
    match (reason, verdict) {
        (Reason::User, Verdict::Allowed) => "user-allowed",
        (Reason::User, _) => "user-not-allowed",
        (Reason::Group, _) => "group-allowed",
        (Reason::Cgroup, _) => "cgroup-allowed",
        (Reason::NoSocket, _) => "no-socket",
        (Reason::PartialSocket, _) => "partial-socket",
        (Reason::ForeignSocket, _) => "foreign-socket",
        (Reason::OverLimit, _) => "over-limit",
        (Reason::Others, _) => "others",
        (Reason::Unreadable, _) => "unreadable",
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
        if self.identity.uid.is_some() && self.reason == "over-limit" {
            write!(line, " over its limit")?;
        }
        if let (Some(comm), Some(pid)) = (&self.identity.comm, self.identity.pid) {
            write!(line, " {}[{pid}]", Printable(comm))?;
        }
        if let Some(unit) = &self.identity.unit {
            write!(line, " unit {}", Printable(unit))?;
        }
        if let Some(src) = &self.src {
            write!(line, " {src}")?;
        }
        if let Some(dst) = &self.dst {
            write!(line, " -> {dst}")?;
        }
        if let Some(protocol) = &self.protocol {
            write!(line, "/{protocol}")?;
        }
        if !self.endpoint.is_empty() {
            write!(line, " ({})", Printable(&self.endpoint))?;
        }
        if let Some(interface) = &self.interface {
            write!(line, " on {}", Printable(interface))?;
        }
        if self.layer == Some("connect") {
            write!(line, " in connect()")?;
        }
        if self.count > 1 {
            write!(line, ", {} times", self.count)?;
        }
        Ok(())
    }
}

/// An interface came or went.
#[derive(Debug, Clone, Serialize)]
pub struct InterfaceEvent {
    /// Its name.
    pub interface: String,
    /// `guarded`, `gone`, or `failed`: it is there, and not guarded.
    pub change: &'static str,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<&Change> for InterfaceEvent {
    fn from(change: &Change) -> Self {
        let (interface, change, error) = match change {
            Change::Guarded(interface) => (interface, "guarded", None),
            Change::Gone(interface) => (interface, "gone", None),
            Change::Failed(interface, err) => (interface, "failed", Some(format!("{err:#}"))),
        };
        Self {
            interface: interface.name.clone(),
            change,
            error,
        }
    }
}

impl Event for InterfaceEvent {
    fn kind(&self) -> &'static str {
        "interface"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        write!(line, "{} {}", Printable(&self.interface), self.change)
    }
}

/// The guard is in place.
#[derive(Debug, Clone, Serialize)]
pub struct Ready {
    /// Names of the interfaces.
    pub interfaces: Vec<String>,
    /// `tcx` or `clsact`.
    pub method: &'static str,
    /// `enforce`, `audit`, or `mixed` where that depends on the endpoint.
    pub mode: &'static str,
    /// `tc`, and `connect` where connect() and sendmsg() are guarded too.
    pub layers: Vec<&'static str>,
    /// What is guarded.
    pub endpoints: Vec<String>,
    /// How many users may pass.
    pub users: usize,
    /// How many groups may.
    pub groups: usize,
    /// How many cgroups may.
    pub cgroups: usize,
    /// Packets a second that each may send, as `N/s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// Whether the sockets of other network namespaces are told from the machine's own.
    pub namespaces: bool,
    /// Whether it stays when the process ends.
    pub pinned: bool,
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

/// What a policy comes to, for `--check-config`.
#[derive(Debug, Clone, Serialize)]
pub struct Checked {
    /// `enforce`, `audit`, or `mixed` where that depends on the endpoint.
    pub mode: &'static str,
    /// What is guarded.
    pub endpoints: Vec<String>,
    /// How many users may pass.
    pub users: usize,
    /// How many groups may.
    pub groups: usize,
    /// How many cgroups may.
    pub cgroups: usize,
    /// Packets a second that each may send, as `N/s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
}

impl Checked {
    /// What `plan` comes to.
    pub fn new(plan: &Plan) -> Self {
        let endpoints = plan.endpoints.iter();
        Self {
            mode: plan.mode(),
            endpoints: endpoints
                .map(|target| target.endpoint.to_string())
                .collect(),
            users: plan.users.len(),
            groups: plan.groups.len(),
            cgroups: plan.cgroups.len(),
            limit: plan.limit.map(|limit| limit.to_string()),
        }
    }
}

impl Event for Checked {
    fn kind(&self) -> &'static str {
        "policy"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        write!(
            line,
            "the policy is good ({}): {} users, {} groups and {} cgroups may reach {}",
            self.mode,
            self.users,
            self.groups,
            self.cgroups,
            self.endpoints.join(", ")
        )
    }
}

/// The last line. Packets are counted, and refused calls.
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
    /// Packets that were kept back, and calls that were refused.
    pub denied: u64,
    /// Packets that an enforcing guard would have kept back.
    pub would_deny: u64,
    /// TCP segments that carry nothing out and were not judged.
    pub passed: u64,
    /// Of the denials, calls of connect() and sendmsg() that were refused with EPERM.
    pub calls: u64,
    /// Of the denials (or what would be one), packets of users who may, but not so many.
    pub limited: u64,
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

impl Summary {
    /// What has come to it since `before`; what this process counts itself stays.
    pub fn since(self, before: &Self) -> Self {
        let seen = self.seen.saturating_sub(before.seen);
        Self {
            seen,
            lost: seen.saturating_sub(self.delivered),
            allowed: self.allowed.saturating_sub(before.allowed),
            denied: self.denied.saturating_sub(before.denied),
            would_deny: self.would_deny.saturating_sub(before.would_deny),
            passed: self.passed.saturating_sub(before.passed),
            calls: self.calls.saturating_sub(before.calls),
            limited: self.limited.saturating_sub(before.limited),
            resets: self.resets.saturating_sub(before.resets),
            prohibited: self.prohibited.saturating_sub(before.prohibited),
            unanswered: self.unanswered.saturating_sub(before.unanswered),
            events_lost: self.events_lost.saturating_sub(before.events_lost),
            ..self
        }
    }
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
    use super::super::report::{Key, Sample};
    use super::*;
    use crate::kernel::identity::Record;

    fn reported(reason: Reason, uid: Option<u32>, verdict: Verdict) -> Reported {
        let key = Key {
            verdict,
            reason,
            uid,
            cgroup: 0,
            endpoint: 0,
            generation: 0,
        };
        let sample = Sample {
            time_ns: 1,
            total: 3,
            key,
            cgroup: 0,
            who: None,
            executable: Executable::Unseen,
            layer: Layer::Egress,
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
        let interface = |index| (index == 2).then(|| "eth0".to_owned());
        VerdictEvent::new(reported, "aws", interface, &mut Directory::default())
    }

    fn text(event: &impl Event) -> String {
        let mut out = Vec::new();
        event.text(&mut Line::new(&mut out, false)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_denial_names_the_user_and_both_ends() {
        let denied = event(&reported(Reason::User, Some(0), Verdict::Denied));
        assert_eq!(
            text(&denied),
            "denied     user root (0) 10.0.0.2:40000 -> 169.254.169.254:80/tcp (aws) on eth0, \
             3 times"
        );
        let json = serde_json::to_value(&denied).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "verdict": "denied", "layer": "tc", "reason": "user-not-allowed",
                "endpoint": "aws", "policy": 0, "interface": "eth0", "direction": "egress",
                "protocol": "tcp", "src": "10.0.0.2:40000", "dst": "169.254.169.254:80",
                "count": 3, "uid": 0, "user": "root"
            })
        );
    }

    #[test]
    fn a_packet_without_a_socket_has_no_user() {
        let json = serde_json::to_value(event(&reported(Reason::NoSocket, None, Verdict::Denied)))
            .unwrap();
        assert_eq!(json["reason"], "no-socket");
        assert!(json.get("uid").is_none() && json.get("user").is_none());
    }

    #[test]
    fn a_refused_call_names_the_process_and_has_no_source() {
        let mut call = reported(Reason::User, Some(54321), Verdict::Denied);
        let sample = call.sample.as_mut().unwrap();
        sample.layer = Layer::Call;
        sample.ifindex = 0;
        sample.src = "[::]:0".parse().unwrap();
        sample.who = Some(Record {
            cgroup: 0,
            boot_ns: 1,
            // No process has this number (pid_max is 2^22 at most).
            pid: 1 << 30,
            tid: 1 << 30,
            uid: 54321,
            gid: 7,
            comm: Some("cu\u{1b}rl".to_owned()),
        });
        let event = event(&call);
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(
            (&json["layer"], &json["gid"]),
            (&"connect".into(), &7.into())
        );
        assert!(json.get("src").is_none() && json.get("interface").is_none());
        assert_eq!(
            text(&event),
            "denied     uid 54321 cu\\u{1b}rl[1073741824] -> 169.254.169.254:80/tcp (aws) in \
             connect(), 3 times"
        );
    }

    #[test]
    fn what_no_record_told_is_absent() {
        let mut without = reported(Reason::User, Some(54321), Verdict::WouldDeny);
        without.sample = None;
        let json = serde_json::to_value(event(&without)).unwrap();
        for field in [
            "src",
            "dst",
            "protocol",
            "interface",
            "user",
            "layer",
            "direction",
        ] {
            assert!(json.get(field).is_none(), "{field}");
        }
        assert_eq!(
            text(&event(&without)),
            "would-deny uid 54321 (aws), 3 times"
        );
    }
}
