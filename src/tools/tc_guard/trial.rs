// SPDX-License-Identifier: BSD-2-Clause

//! Tries a guard for real: whether a user who is allowed gets through, and one who is not does not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use procfs::process::Process;

use super::check::Finding;
use super::plan::{ENFORCED, Plan};
use super::policy::Deny;
use crate::endpoint::{Endpoint, Protocol};
use crate::endpoint_table::Target;
use crate::kernel::user;

/// How long a connection may take: a service answers within milliseconds, a denial is immediate.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a connection came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was made.
    Connected,
    /// It was refused in connect() (EPERM).
    NotPermitted,
    /// It was refused by an answer: by the guard, or by the service.
    Refused,
    /// Nobody answered.
    NoAnswer,
    /// It could not be tried.
    Untried,
}

impl<T> From<io::Result<T>> for Outcome {
    fn from(result: io::Result<T>) -> Self {
        match result {
            Ok(_) => Self::Connected,
            // There is no kind for it yet.
            Err(err) if err.raw_os_error() == Some(libc::EINPROGRESS) => Self::NoAnswer,
            Err(err) => match err.kind() {
                io::ErrorKind::PermissionDenied => Self::NotPermitted,
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::HostUnreachable => Self::Refused,
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::NoAnswer,
                _ => Self::Untried,
            },
        }
    }
}

/// Somebody at an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// Who.
    pub uid: u32,
    /// With which group.
    pub gid: u32,
    /// Where.
    pub to: SocketAddr,
}

/// A trial, or why there is none.
pub type Chosen = Result<Trial, &'static str>;

/// Somebody whom `plan` allows an endpoint of TCP, and somebody whom it denies one.
pub fn trials(plan: &Plan) -> (Chosen, Chosen) {
    // Nobody's uid, and numbers that nobody gives away.
    let strangers = || (65534..=65534).chain(4_294_900_000..4_294_967_000);
    let named = "the policy names all the numbers that could be tried";
    let gid = strangers().find(|gid| !plan.groups.contains_key(gid));
    let stranger = strangers().find(|uid| !plan.users.contains_key(uid));
    let allowed = plan.users.iter().find_map(|(uid, rules)| {
        let open = |target: &Target| target.mask & rules & !ENFORCED != 0;
        place(plan, open).map(|to| (*uid, to))
    });
    let allowed = match allowed {
        Some((uid, to)) => gid.ok_or(named).map(|gid| Trial { uid, gid, to }),
        None if plan.allows_nobody() => Err("nobody is allowed"),
        None if plan.users.is_empty() => Err("the policy allows groups or cgroups, and no user"),
        None => Err("no endpoint that is open to users has an address of its own and TCP"),
    };
    let denied = match place(plan, |target| target.mask & ENFORCED != 0) {
        Some(to) => stranger
            .zip(gid)
            .map(|(uid, gid)| Trial { uid, gid, to })
            .ok_or(named),
        None if !plan.enforces() => Err("nothing is denied"),
        None => Err("no endpoint that is enforced has an address of its own and TCP"),
    };
    (allowed, denied)
}

/// Whom `plan` allows an endpoint that it denies others: then these can hand a socket of theirs to that user, who may
/// connect it, and only the packet layer refuses what comes of it.
pub fn allowed_beside(plan: &Plan, denied: &Trial) -> Option<Trial> {
    plan.users.iter().find_map(|(uid, rules)| {
        let both =
            |target: &Target| target.mask & ENFORCED != 0 && target.mask & rules & !ENFORCED != 0;
        place(plan, both).map(|to| Trial {
            uid: *uid,
            to,
            ..*denied
        })
    })
}

/// Where one of the endpoints that are `wanted` can be tried: at an address of its own rather than in a network, there
/// at the first that a host may have, and that no other endpoint has as well.
fn place(plan: &Plan, wanted: impl Fn(&Target) -> bool) -> Option<SocketAddr> {
    let mut places: Vec<_> = plan
        .endpoints
        .iter()
        .filter(|target| wanted(target))
        .filter_map(|target| first_host(&target.endpoint))
        .filter(|(whole, to)| {
            let of = plan.endpoints.iter();
            *whole || of.filter(|of| of.endpoint.contains(to.ip())).count() == 1
        })
        .collect();
    // In the order of the policy, otherwise.
    places.sort_by_key(|(whole, _)| !whole);
    places.first().map(|(_, to)| *to)
}

/// Whether it is one address, and where it is reached by TCP.
fn first_host(endpoint: &Endpoint) -> Option<(bool, SocketAddr)> {
    let (whole, first) = first_address(endpoint);
    let tcp = matches!(endpoint.protocol, None | Some(Protocol::Tcp));
    let port = (*endpoint.ports.start()).max(1);
    tcp.then(|| (whole, SocketAddr::new(first, port)))
}

/// Whether it is one address, and the first that a host may have.
pub fn first_address(endpoint: &Endpoint) -> (bool, IpAddr) {
    let (address, prefix) = (endpoint.address, endpoint.prefix);
    let bits = if address.is_ipv4() { 32 } else { 128 };
    // The first is the network's own, unless there are but two.
    let first = match address {
        _ if bits - prefix < 2 => address,
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() + 1).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() + 1).into(),
    };
    (prefix == bits, first)
}

/// Tries both. `denials` says how many packets and calls of a user the guard has denied so far.
pub fn run(plan: &Plan, deny: Deny, denials: impl Fn(u32) -> Option<u64>) -> Vec<Finding> {
    let (allowed, denied) = trials(plan);
    let mut findings = Vec::new();
    let none = |who, why| Finding::note("trial", format!("{who} user was not tried: {why}"));
    findings.push(match allowed {
        Ok(trial) => judge_allowed(&trial, attempt(&trial)),
        Err(why) => none("an allowed", why),
    });
    match denied {
        Ok(_) if in_allowed_cgroup(plan) => findings.push(Finding::note(
            "trial",
            "a denied user was not tried, as this process is in a cgroup that is allowed",
        )),
        Ok(trial) => {
            let who = format!("uid {}, who is not allowed", trial.uid);
            let judged = |who: &str, trial: &Trial, attempt: &dyn Fn() -> Outcome| {
                let before = denials(trial.uid);
                let outcome = attempt();
                let by_the_guard = denials(trial.uid) > before;
                (
                    outcome,
                    judge_denied(who, trial.to, outcome, deny, by_the_guard),
                )
            };
            let (outcome, finding) = judged(&who, &trial, &|| attempt(&trial));
            findings.push(finding);
            // Nothing was sent.
            if outcome == Outcome::NotPermitted {
                findings.push(match allowed_beside(plan, &trial) {
                    Some(helper) => {
                        let who = format!("a socket of {who}, that uid {} connects", helper.uid);
                        let trial = Trial {
                            to: helper.to,
                            ..trial
                        };
                        judged(&who, &trial, &|| attempt_by(&trial, &helper)).1
                    }
                    None => none(
                        "what is sent past connect() by a denied",
                        "no endpoint is open to one user and closed to others",
                    ),
                });
            }
        }
        Err(why) => findings.push(none("a denied", why)),
    }
    findings
}

fn attempt(trial: &Trial) -> Outcome {
    let to = trial.to;
    let tried = user::run_as(trial.uid, trial.gid, || {
        Outcome::from(TcpStream::connect_timeout(&to, PATIENCE))
    });
    tried.unwrap_or(Outcome::Untried)
}

/// With a socket of the one, which the other connects.
fn attempt_by(trial: &Trial, helper: &Trial) -> Outcome {
    let made = user::run_as(trial.uid, trial.gid, || match trial.to {
        SocketAddr::V4(_) => tcp_socket(AddressFamily::Inet),
        SocketAddr::V6(_) => tcp_socket(AddressFamily::Inet6),
    });
    let Ok(Ok(socket)) = made else {
        return Outcome::Untried;
    };
    let tried = user::run_as(helper.uid, helper.gid, || {
        let connected = connect(socket.as_raw_fd(), &SockaddrStorage::from(helper.to));
        Outcome::from(connected.map_err(io::Error::from))
    });
    tried.unwrap_or(Outcome::Untried)
}

fn tcp_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // Bounds connect(), which says EINPROGRESS then (socket(7)).
    let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    Ok(socket)
}

fn in_allowed_cgroup(plan: &Plan) -> bool {
    if plan.cgroups.is_empty() {
        return false;
    }
    let own = Process::myself().and_then(|process| process.cgroups());
    let own = own.ok().and_then(|groups| {
        let unified = groups.0.into_iter().find(|group| group.hierarchy == 0);
        unified.map(|group| group.pathname)
    });
    // Where that is not known it may be.
    own.is_none_or(|own| {
        plan.cgroups.keys().any(|path| {
            own.strip_prefix(path.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    })
}

fn judge_allowed(trial: &Trial, outcome: Outcome) -> Finding {
    let Trial { uid, to, .. } = trial;
    let who = format!("uid {uid}, who is allowed");
    match outcome {
        Outcome::Connected => Finding::ok("trial", format!("{who}, reached {to}")),
        Outcome::NotPermitted => Finding::gap(
            "trial",
            format!("{who}, was refused {to} in connect()"),
            "see whether another program has a hook there (bpftool cgroup tree)",
        ),
        Outcome::Refused => Finding::note(
            "trial",
            format!("{who}, was refused at {to}: by the service, or by another guard"),
        ),
        Outcome::NoAnswer => Finding::note(
            "trial",
            format!("{who}, was not refused, but nobody answers at {to}"),
        ),
        Outcome::Untried => Finding::note("trial", format!("{who}, could not be tried at {to}")),
    }
}

/// A refusal may also be the service's, or another program's: what counts is that the guard has denied
/// something to this user meanwhile.
fn judge_denied(
    who: &str,
    to: SocketAddr,
    outcome: Outcome,
    deny: Deny,
    by_the_guard: bool,
) -> Finding {
    match outcome {
        Outcome::Connected => Finding::gap(
            "trial",
            format!("{who}, reached {to}"),
            "see the gaps above; if there is none, report this as a fault of ebpfkit",
        ),
        Outcome::Untried => Finding::note("trial", format!("{who}, could not be tried at {to}")),
        _ if !by_the_guard => Finding::gap(
            "trial",
            format!("{who}, did not reach {to}, but it was not this guard that refused"),
            "see that what goes there leaves by an interface that is guarded (ip route get), and that no \
             other program refuses first",
        ),
        Outcome::NotPermitted | Outcome::Refused => {
            Finding::ok("trial", format!("{who}, was refused {to} at once"))
        }
        Outcome::NoAnswer if deny == Deny::Drop => {
            Finding::ok("trial", format!("{who}, got no answer from {to}"))
        }
        Outcome::NoAnswer => Finding::note(
            "trial",
            format!("{who}, was denied {to}, but heard of no refusal"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::super::policy::{Mode, Policy, Subject};
    use super::*;

    fn plan(endpoints: &[&str], users: &[&str]) -> Plan {
        let endpoints: Vec<Endpoint> = endpoints.iter().map(|at| at.parse().unwrap()).collect();
        Plan::new(&Policy::of(&endpoints, users), None).unwrap()
    }

    #[test]
    fn an_allowed_and_a_denied_user_are_found() {
        let plan = plan(
            &["10.0.0.0/8:80", "10.1.1.1:53/udp", "10.1.1.1:80/tcp"],
            &["65534"],
        );
        let (allowed, denied) = trials(&plan);
        let to: SocketAddr = "10.1.1.1:80".parse().unwrap();
        let allowed = allowed.unwrap();
        assert_eq!((allowed.uid, allowed.to), (65534, to));
        let denied = denied.unwrap();
        assert_eq!((denied.uid, denied.to), (4_294_900_000, to));
        let beside = allowed_beside(&plan, &denied).unwrap();
        assert_eq!((beside.uid, beside.to), (65534, to));
    }

    #[test]
    fn what_is_not_tried_is_told_with_the_reason() {
        let why = |plan: &Plan| {
            let (allowed, denied) = trials(plan);
            (allowed.unwrap_err(), denied.unwrap_err())
        };
        let of_datagrams = plan(&["10.1.1.1:53/udp"], &["0"]);
        let (allowed, denied) = why(&of_datagrams);
        assert!(allowed.starts_with("no endpoint that is open"), "{allowed}");
        assert!(
            denied.starts_with("no endpoint that is enforced"),
            "{denied}"
        );
        let endpoints = ["10.1.1.1:80/tcp".parse().unwrap()];
        let mut policy = Policy::of(&endpoints, &[]);
        policy.mode = Mode::Audit;
        assert_eq!(
            why(&Plan::new(&policy, None).unwrap()),
            ("nobody is allowed", "nothing is denied")
        );
        policy.rules[0].groups = vec![Subject::from("7")];
        assert_eq!(
            why(&Plan::new(&policy, None).unwrap()).0,
            "the policy allows groups or cgroups, and no user"
        );
        let said = run(&of_datagrams, Deny::Reset, |_| None);
        assert!(said.iter().all(|at| at.state == State::Note), "{said:?}");
        assert_eq!(said.len(), 2);
    }

    #[test]
    fn a_network_is_tried_at_its_first_host_unless_that_is_another_endpoint_s() {
        let to = |endpoints: &[&str]| {
            let (allowed, denied) = trials(&plan(endpoints, &["0"]));
            let to = |trial: Chosen| trial.ok().map(|trial| trial.to.to_string());
            assert_eq!(to(allowed), to(denied));
            to(denied)
        };
        let some = |to: &str| Some(to.to_owned());
        assert_eq!(to(&["169.254.169.0/24:80"]), some("169.254.169.1:80"));
        assert_eq!(to(&["10.1.1.4/31:80"]), some("10.1.1.4:80"));
        assert_eq!(to(&["[fd00::]/8:80/tcp"]), some("[fd00::1]:80"));
        let both = ["10.0.0.0/8:80", "10.0.0.1:53/udp"];
        assert_eq!(to(&both), None);
    }

    #[test]
    fn a_denied_user_who_gets_through_is_a_gap() {
        let trial = Trial {
            uid: 7,
            gid: 7,
            to: "10.1.1.1:80".parse().unwrap(),
        };
        let judge = |outcome, deny, by| judge_denied("uid 7", trial.to, outcome, deny, by).state;
        let state = |outcome, deny| judge(outcome, deny, true);
        assert_eq!(state(Outcome::Connected, Deny::Reset), State::Gap);
        assert_eq!(state(Outcome::NotPermitted, Deny::Reset), State::Ok);
        assert_eq!(state(Outcome::NoAnswer, Deny::Reset), State::Note);
        assert_eq!(state(Outcome::NoAnswer, Deny::Drop), State::Ok);
        // The service's own refusal says nothing of the guard.
        for outcome in [Outcome::NotPermitted, Outcome::Refused, Outcome::NoAnswer] {
            assert_eq!(judge(outcome, Deny::Drop, false), State::Gap);
        }
        assert_eq!(
            judge_allowed(&trial, Outcome::NotPermitted).state,
            State::Gap
        );
        assert_eq!(judge_allowed(&trial, Outcome::Connected).state, State::Ok);
    }
}
