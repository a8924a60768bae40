// SPDX-License-Identifier: BSD-2-Clause

//! The guard's policy as a plain function of a packet's bytes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpfkit::endpoint::Endpoint;
use ebpfkit::kernel::program::Ran;

use super::common::tc_guard::concerns;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Untouched, on to the next program.
    Passes,
    Dropped,
    /// Turned into an answer.
    Answered,
}

impl Fate {
    /// What became of this one, by the return codes of linux/pkt_cls.h. An answer on the loopback interface,
    /// which test runs see, is on its way already.
    pub fn of(frame: &[u8], ran: &Ran) -> Self {
        match ran.code {
            -1 if ran.packet == frame => Self::Passes,
            2 => Self::Dropped,
            -1 | 7 if ran.packet != frame => Self::Answered,
            other => panic!("return code {other}: {frame:02x?}: {ran:02x?}"),
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// How far the transport header could be read.
enum Transport {
    Known {
        protocol: u8,
        dport: u16,
        nothing_out: bool,
        reset: bool,
        /// Eight bytes are there to quote.
        quotable: bool,
        plain: bool,
    },
    /// The protocol, if no header can come before its own.
    Hidden(Option<u8>),
}

/// A policy as the reference knows it.
#[derive(Debug, Clone)]
pub struct Model {
    pub rules: Vec<ModelRule>,
    /// Denials are not answered.
    pub silent: bool,
    /// Nothing is denied.
    pub audit: bool,
}

#[derive(Debug, Clone)]
pub struct ModelRule {
    pub endpoints: Vec<Endpoint>,
    /// Whether root is a subject, whose all of the packets' sockets are.
    pub root: bool,
    /// The cgroups that are subjects.
    pub cgroups: Vec<Cgroup>,
    pub audit: bool,
}

/// Cgroups of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroup {
    Parent,
    Child,
    /// One that no socket is in.
    Other,
}

/// The socket of a packet.
#[derive(Debug, Clone, Copy)]
pub struct Socket {
    /// Whether it says anything: one of the machine's own does not with a packet that comes in.
    pub there: bool,
    /// Whether the guard can know its user.
    pub known: bool,
    /// Where it was made; the child is below the parent.
    pub cgroup: Option<Cgroup>,
}

impl ModelRule {
    /// Whether it is for whoever owns the socket.
    fn is_for(&self, socket: &Socket) -> bool {
        let named = |cgroup| self.cgroups.contains(&cgroup);
        if !socket.there {
            return false;
        }
        (self.root && socket.known)
            || match socket.cgroup {
                None | Some(Cgroup::Other) => false,
                Some(Cgroup::Parent) => named(Cgroup::Parent),
                Some(Cgroup::Child) => named(Cgroup::Parent) || named(Cgroup::Child),
            }
    }
}

/// Where the packet begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Ethernet,
    Network,
}

/// The reference: slow, plain, and written from the RFCs rather than from the program.
pub fn reference(frame: &[u8], start: Start, model: &Model, socket: &Socket) -> Fate {
    let (mut tags, mut proper) = (0, true);
    let is_tag = |kind| matches!(kind, 0x8100 | 0x88a8 | 0x9100);
    let network = match start {
        Start::Network => 0,
        Start::Ethernet => {
            let mut at = 12;
            loop {
                match be16(frame, at) {
                    Some(0x0800 | 0x86dd) => break at + 2,
                    // Nobody knows what is behind it, and nobody is let through.
                    Some(tag) if tags == 2 && proper && is_tag(tag) => {
                        let enforced = model.rules.iter().any(|rule| !rule.audit);
                        return if enforced && !model.audit {
                            Fate::Dropped
                        } else {
                            Fate::Passes
                        };
                    }
                    Some(tag) if tags == 1 || (tags == 0 && is_tag(tag)) => {
                        proper &= is_tag(tag);
                        tags += 1;
                        at += 4;
                    }
                    _ => return Fate::Passes,
                }
            }
        }
    };
    let Some((dst, transport)) = network_layer(frame, network) else {
        return Fate::Passes;
    };
    // Each thing that the packet may be, and the rules that it concerns then.
    let mut may_be: Vec<Vec<usize>> = candidates(model, &transport)
        .into_iter()
        .map(|(protocol, port)| {
            let meant = |endpoint: &Endpoint| concerns(endpoint, dst, protocol, port);
            let rules = model.rules.iter().enumerate();
            rules
                .filter(|(_, rule)| rule.endpoints.iter().any(meant))
                .map(|(index, _)| index)
                .collect()
        })
        .collect();
    let enforced = |index: &usize| !model.rules[*index].audit && !model.audit;
    may_be.retain(|rules| rules.iter().any(enforced));
    let Some(first) = may_be.first() else {
        return Fate::Passes;
    };
    // One rule has to open it, whatever it is.
    let open = first
        .iter()
        .filter(|index| may_be.iter().all(|rules| rules.contains(index)))
        .any(|index| model.rules[*index].is_for(socket));
    if open {
        return Fate::Passes;
    }
    match transport {
        Transport::Known {
            nothing_out: true,
            reset,
            ..
        } if reset || !socket.there => Fate::Passes,
        _ if model.silent => Fate::Dropped,
        Transport::Hidden(_) => Fate::Dropped,
        Transport::Known {
            protocol: 6,
            plain: true,
            ..
        } => Fate::Answered,
        // ICMP is not answered by ICMP. Behind a tag the kernel makes no room for an answer, nor where
        // its test run has read the packet's type from where there is none.
        Transport::Known {
            protocol,
            plain: true,
            quotable: true,
            ..
        } if !matches!(protocol, 1 | 58) && tags == 0 && start == Start::Ethernet => Fate::Answered,
        Transport::Known { .. } => Fate::Dropped,
    }
}

/// The protocols and ports that a packet may have, as far as they make a difference to a rule.
fn candidates(model: &Model, transport: &Transport) -> Vec<(u8, u16)> {
    let protocols = match transport {
        Transport::Known {
            protocol, dport, ..
        } => return vec![(*protocol, *dport)],
        Transport::Hidden(Some(protocol)) => vec![*protocol],
        // One without ports stands for all of them.
        Transport::Hidden(None) => vec![6, 17, 1],
    };
    let endpoints = model.rules.iter().flat_map(|rule| &rule.endpoints);
    let ports: BTreeSet<u16> = endpoints
        .flat_map(|endpoint| {
            let ports = &endpoint.ports;
            [*ports.start(), ports.end().saturating_add(1)]
        })
        .collect();
    let each = |protocol| match protocol {
        6 | 17 => ports.iter().map(|port| (protocol, *port)).collect(),
        _ => vec![(protocol, 0)],
    };
    protocols.into_iter().flat_map(each).collect()
}

fn network_layer(frame: &[u8], network: usize) -> Option<(IpAddr, Transport)> {
    let first = *frame.get(network)?;
    match first >> 4 {
        4 => {
            let header = frame.get(network..network + 20)?;
            let length = usize::from(first & 15) * 4;
            if length < 20 {
                return None;
            }
            let dst = Ipv4Addr::from(<[u8; 4]>::try_from(&header[16..20]).unwrap());
            let total = usize::from(be16(header, 2)?);
            let fragment = be16(header, 6)?;
            let end = end(frame, network, total);
            let transport = if fragment & 0x1fff != 0 {
                Transport::Hidden(Some(header[9]))
            } else {
                let plain = length == 20 && fragment & 0x2000 == 0;
                transport(frame, network + length, end, header[9], plain)
            };
            Some((dst.into(), transport))
        }
        6 => {
            let header = frame.get(network..network + 40)?;
            let dst = Ipv6Addr::from(<[u8; 16]>::try_from(&header[24..40]).unwrap());
            let total = match usize::from(be16(header, 4)?) {
                0 => 0,
                payload => payload + 40,
            };
            let end = end(frame, network, total);
            let transport = extensions(frame, network + 40, end, header[6]);
            Some((IpAddr::V6(dst), transport))
        }
        _ => None,
    }
}

fn end(frame: &[u8], network: usize, total: usize) -> usize {
    if total == 0 {
        frame.len()
    } else {
        frame.len().min(network + total)
    }
}

fn extensions(frame: &[u8], mut at: usize, end: usize, mut next: u8) -> Transport {
    let mut plain = true;
    for _ in 0..8 {
        if !matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140) {
            return transport(frame, at, end, next, plain);
        }
        plain = false;
        let Some(header) = frame.get(at..at + 4) else {
            return Transport::Hidden(None);
        };
        if next == 44 {
            if be16(header, 2).unwrap() & 0xfff8 != 0 {
                let next = header[0];
                let certain = !matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140);
                return Transport::Hidden(certain.then_some(next));
            }
            at += 8;
        } else if next == 51 {
            at += (usize::from(header[1]) + 2) * 4;
        } else {
            at += (usize::from(header[1]) + 1) * 8;
        }
        next = header[0];
    }
    if matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140) {
        return Transport::Hidden(None);
    }
    transport(frame, at, end, next, plain)
}

fn transport(frame: &[u8], at: usize, end: usize, protocol: u8, plain: bool) -> Transport {
    let left = end.saturating_sub(at);
    let known = |dport, nothing_out, reset| Transport::Known {
        protocol,
        dport,
        nothing_out,
        reset,
        quotable: frame.len() >= at + 8,
        plain,
    };
    match protocol {
        6 => {
            let Some(header) = frame.get(at..at + 20) else {
                return Transport::Hidden(Some(6));
            };
            let length = usize::from(header[12] >> 4) * 4;
            if length < 20 || length > left {
                return Transport::Hidden(Some(6));
            }
            let flags = header[13];
            let nothing_out = left == length && flags & 0x02 == 0;
            known(be16(header, 2).unwrap(), nothing_out, flags & 0x04 != 0)
        }
        17 => match frame.get(at..at + 8) {
            Some(header) if left >= 8 => known(be16(header, 2).unwrap(), false, false),
            _ => Transport::Hidden(Some(17)),
        },
        _ => known(0, false, false),
    }
}
