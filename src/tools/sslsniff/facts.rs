// SPDX-License-Identifier: BSD-2-Clause

//! What lines say of a connection: its ends, what they agreed upon, and what went wrong.

use std::io::{self, Write as _};

use serde::Serialize;

use super::record::Direction;
use crate::output::{Line, Printable, Style};

/// The ends of a connection; absent where they are not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Ends {
    /// The program's own address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<String>,
    /// The other end's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// How they are known: `call`, if the thread used the socket within a call for the connection;
    /// `ciphertext`, if what such a call made went out by the socket; `set_fd`, if the program gave the
    /// connection the socket, and it was not used yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_via: Option<&'static str>,
}

impl Ends {
    /// Writes the peer, if it is known, and a space.
    pub(super) fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        match &self.peer {
            Some(peer) => write!(line, "{peer} "),
            None => Ok(()),
        }
    }
}

/// What a connection's ends have agreed upon: as they said in their hellos, and what the program itself asked
/// its library, or told it. Absent where it is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The name of the server that the client wants (SNI).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// The application's protocol that was agreed upon (ALPN).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpn: Option<String>,
    /// The version of TLS, as `SSL_get_version` names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The cipher suite, as IANA names it, or its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cipher: Option<String>,
    /// Whether the handshake went on with an earlier session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed: Option<bool>,
}

impl Facts {
    /// Writes what is known, a space before each.
    pub(super) fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        let Self {
            sni,
            alpn,
            version,
            cipher,
            resumed,
        } = self;
        for (name, value) in [
            ("SNI", sni),
            ("ALPN", alpn),
            ("version", version),
            ("cipher", cipher),
        ] {
            if let Some(value) = value {
                write!(line, " {name} {}", Printable(value))?;
            }
        }
        match resumed {
            Some(true) => write!(line, " resumed"),
            _ => Ok(()),
        }
    }
}

/// Why a connection failed, as far as its ends or the library said so.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// The name of the alert (RFC 8446, 6).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alert: Option<String>,
    /// Who sent it: `self` or `peer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alert_from: Option<&'static str>,
    /// What the library says, where that is no alert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Trouble {
    /// Writes it at the end of a line.
    pub(super) fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        if let Some(reason) = &self.reason {
            line.styled(Style::Bad, format_args!(", {}", Printable(reason)))?;
        }
        if let (Some(alert), Some(from)) = (&self.alert, self.alert_from) {
            let from = if from == "self" { "sent" } else { "received" };
            line.styled(
                Style::Bad,
                format_args!(", alert {} {from}", Printable(alert)),
            )?;
        }
        Ok(())
    }
}

impl Trouble {
    /// An alert passed in a direction.
    pub(super) fn alert(&mut self, number: u8, direction: Direction) {
        // Not what a connection ends with that is well.
        if number == CLOSE_NOTIFY {
            return;
        }
        self.alert = Some(alert_name(number).map_or_else(|| number.to_string(), str::to_owned));
        self.alert_from = Some(match direction {
            Direction::Read => "peer",
            Direction::Write => "self",
        });
    }

    /// The library gave a reason, by its number; `boring` are BoringSSL's.
    pub(super) fn reason(&mut self, number: u32, boring: bool) {
        // openssl/ssl.h, SSL_AD_REASON_OFFSET: an alert that was received.
        if let Some(alert) = number.checked_sub(1000)
            && let Ok(alert) = u8::try_from(alert)
        {
            self.alert(alert, Direction::Read);
            return;
        }
        let text = if boring { None } else { reason_text(number) };
        self.reason = Some(text.map_or_else(|| format!("reason {number}"), str::to_owned));
    }
}

const CLOSE_NOTIFY: u8 = 0;

/// The names of alerts (RFC 8446, 6; those that are of earlier versions only: RFC 5246, 7.2).
fn alert_name(number: u8) -> Option<&'static str> {
    Some(match number {
        10 => "unexpected_message",
        20 => "bad_record_mac",
        21 => "decryption_failed",
        22 => "record_overflow",
        30 => "decompression_failure",
        40 => "handshake_failure",
        41 => "no_certificate",
        42 => "bad_certificate",
        43 => "unsupported_certificate",
        44 => "certificate_revoked",
        45 => "certificate_expired",
        46 => "certificate_unknown",
        47 => "illegal_parameter",
        48 => "unknown_ca",
        49 => "access_denied",
        50 => "decode_error",
        51 => "decrypt_error",
        60 => "export_restriction",
        70 => "protocol_version",
        71 => "insufficient_security",
        80 => "internal_error",
        86 => "inappropriate_fallback",
        90 => "user_canceled",
        100 => "no_renegotiation",
        109 => "missing_extension",
        110 => "unsupported_extension",
        111 => "certificate_unobtainable",
        112 => "unrecognized_name",
        113 => "bad_certificate_status_response",
        114 => "bad_certificate_hash_value",
        115 => "unknown_psk_identity",
        116 => "certificate_required",
        120 => "no_application_protocol",
        _ => return None,
    })
}

/// OpenSSL's reasons that are met most (openssl/sslerr.h; their numbers never change), in its own words.
fn reason_text(number: u32) -> Option<&'static str> {
    Some(match number {
        118 => "no suitable signature algorithm",
        134 => "certificate verify failed",
        155 => "https proxy request",
        156 => "http request",
        166 => "version too high",
        176 => "no certificates returned",
        181 => "no ciphers available",
        191 => "no protocols available",
        193 => "no shared cipher",
        199 => "peer did not return a certificate",
        235 => "no application protocol",
        244 => "unexpected message",
        245 => "unexpected record",
        258 => "unsupported protocol",
        259 => "unsupported ssl version",
        267 => "wrong version number",
        294 => "unexpected eof while reading",
        338 => "unsafe legacy renegotiation disabled",
        394 => "dh key too small",
        396 => "version too low",
        397 => "ca key too small",
        398 => "ca md too weak",
        399 => "ee key too small",
        _ => return None,
    })
}
