// SPDX-License-Identifier: BSD-2-Clause

//! The keys of connections, in the NSS key log format (RFC 9850), which Wireshark and others read.
//!
//! OpenSSL from 3.0 on derives all keys by a public function, which is told what each of them is for: no
//! private structure is read. See docs/sslsniff.md for what is not to be had so.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::record::Derived;

/// Bytes of a random number in a hello.
type Random = [u8; 32];

/// A line of the file that waits for the random number of the client's hello.
pub type Pending = (&'static str, Vec<u8>);

/// Keys of a connection that wait at most: as many as a handshake has, twice.
const MOST_PENDING: usize = 16;

/// `SSL_PARAMETER_BYTES`: of what is longer the rest is not there.
const LONGEST: u64 = 64;

/// Bytes of TLS 1.2's master secret (RFC 5246, 8.1).
const MASTER_SECRET: usize = 48;

/// Key of TLS 1.3 by its label (RFC 8446, 7.1), and the name in the file.
const LABELS: [(&[u8], &str); 7] = [
    (b"c e traffic", "CLIENT_EARLY_TRAFFIC_SECRET"),
    (b"e exp master", "EARLY_EXPORTER_SECRET"),
    (b"c hs traffic", "CLIENT_HANDSHAKE_TRAFFIC_SECRET"),
    (b"s hs traffic", "SERVER_HANDSHAKE_TRAFFIC_SECRET"),
    (b"c ap traffic", "CLIENT_TRAFFIC_SECRET_0"),
    (b"s ap traffic", "SERVER_TRAFFIC_SECRET_0"),
    (b"exp master", "EXPORTER_SECRET"),
];

/// A key, and the client's random number where what it was derived from has that.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    name: &'static str,
    bytes: Vec<u8>,
    random: Option<Random>,
}

/// What was derived, if a key log has a line for it.
pub fn key_of(bytes: &[u8]) -> Option<Key> {
    let mut derived = Derived::default();
    plain::copy_from_bytes(&mut derived, bytes).ok()?;
    let parameters: Vec<(&[u8], &[u8])> = derived
        .parameters
        .iter()
        .filter_map(|one| {
            let end = one.name.iter().position(|byte| *byte == 0);
            let name = &one.name[..end.unwrap_or(one.name.len())];
            let size = usize::try_from(one.size)
                .ok()
                .filter(|_| one.size <= LONGEST)?;
            Some((name, &one.bytes[..size]))
        })
        .collect();
    let value = |name: &[u8]| {
        let found = parameters.iter().find(|(one, _)| *one == name);
        found.map(|(_, value)| *value)
    };
    if value(b"prefix") == Some(b"tls13 ") {
        let label = value(b"label")?;
        let (_, name) = LABELS.iter().find(|(known, _)| *known == label)?;
        let size = usize::try_from(derived.size)
            .ok()
            .filter(|_| derived.size <= LONGEST)?;
        return Some(Key {
            name,
            bytes: derived.key[..size].to_vec(),
            random: None,
        });
    }
    // All keys of an earlier version come from the master secret and both random numbers (RFC 5246, 6.3),
    // also where a session is resumed.
    let seeds: Vec<_> = parameters
        .iter()
        .filter(|(name, _)| *name == b"seed")
        .map(|(_, value)| *value)
        .collect();
    let [b"key expansion", _, client, ..] = seeds[..] else {
        return None;
    };
    let master = value(b"secret").filter(|secret| secret.len() == MASTER_SECRET)?;
    Some(Key {
        name: "CLIENT_RANDOM",
        bytes: master.to_vec(),
        random: Some(client.try_into().ok()?),
    })
}

/// The file.
#[derive(Debug)]
pub struct KeyLog<W: Write> {
    writer: W,
}

impl<W: Write> KeyLog<W> {
    /// An empty one.
    pub fn new(writer: W) -> Self {
        Self { writer }
    }

    /// Writes a key of a connection whose client said `random`, or keeps it until that is known.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn key(
        &mut self,
        key: Key,
        random: Option<Random>,
        pending: &mut Vec<Pending>,
    ) -> io::Result<()> {
        match key.random.or(random) {
            Some(random) => self.line(key.name, &random, &key.bytes),
            None => {
                if pending.len() < MOST_PENDING {
                    pending.push((key.name, key.bytes));
                }
                Ok(())
            }
        }
    }

    /// Writes what waited.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn settle(&mut self, random: &Random, pending: &mut Vec<Pending>) -> io::Result<()> {
        for (name, bytes) in pending.drain(..) {
            self.line(name, random, &bytes)?;
        }
        Ok(())
    }

    fn line(&mut self, name: &str, random: &Random, key: &[u8]) -> io::Result<()> {
        writeln!(self.writer, "{name} {} {}", hex(random), hex(key))
    }

    /// Sends on what is buffered.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // A string takes all.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What was derived from these, as the kernel's side lays it out.
    fn derived(parameters: &[(&str, &[u8])], key: &[u8]) -> Vec<u8> {
        let mut derived = Derived::default();
        for ((name, bytes), one) in parameters.iter().zip(&mut derived.parameters) {
            one.name[..name.len()].copy_from_slice(name.as_bytes());
            one.size = bytes.len() as u64;
            let kept = bytes.len().min(one.bytes.len());
            one.bytes[..kept].copy_from_slice(&bytes[..kept]);
        }
        derived.size = key.len() as u64;
        derived.key[..key.len()].copy_from_slice(key);
        #[allow(unsafe_code)]
        // SAFETY: it is Plain: integers without padding.
        let bytes = unsafe { plain::as_bytes(&derived) };
        bytes.to_vec()
    }

    fn text(log: KeyLog<Vec<u8>>) -> String {
        String::from_utf8(log.writer).unwrap()
    }

    #[test]
    fn a_key_of_tls_1_3_waits_for_the_clients_random_number() {
        let parameters: &[(&str, &[u8])] = &[
            ("mode", &[2, 0, 0, 0]),
            ("digest", b"SHA2-256"),
            ("key", &[1; 32]),
            ("prefix", b"tls13 "),
            ("label", b"c ap traffic"),
            ("data", &[2; 32]),
        ];
        let key = key_of(&derived(parameters, &[0xab; 48])).unwrap();
        let mut log = KeyLog::new(Vec::new());
        let mut pending = Vec::new();
        log.key(key, None, &mut pending).unwrap();
        log.settle(&[0x0f; 32], &mut pending).unwrap();
        log.settle(&[0x0f; 32], &mut pending).unwrap();
        let line = format!(
            "CLIENT_TRAFFIC_SECRET_0 {} {}\n",
            "0f".repeat(32),
            "ab".repeat(48)
        );
        assert_eq!(text(log), line);
    }

    #[test]
    fn what_is_derived_for_other_ends_is_no_key_of_a_log() {
        let labelled = |prefix: &[u8], label: &[u8]| {
            key_of(&derived(&[("prefix", prefix), ("label", label)], &[1; 32]))
        };
        assert!(labelled(b"tls13 ", b"exp master").is_some());
        assert_eq!(labelled(b"tls13 ", b"finished"), None);
        assert_eq!(labelled(b"dtls13", b"exp master"), None);
        assert_eq!(
            key_of(&derived(&[("label", b"exp master")], &[1; 32])),
            None
        );
    }

    #[test]
    fn the_master_secret_of_tls_1_2_comes_with_its_random_number() {
        let with = |secret: &[u8], client: &[u8]| {
            key_of(&derived(
                &[
                    ("digest", b"SHA2-256"),
                    ("secret", secret),
                    ("seed", b"key expansion"),
                    ("seed", &[3; 32]),
                    ("seed", client),
                    ("seed", b""),
                    ("seed", b""),
                ],
                &[9; 64],
            ))
        };
        let mut log = KeyLog::new(Vec::new());
        let mut pending = Vec::new();
        let key = with(&[0xcd; 48], &[5; 32]).unwrap();
        log.key(key, None, &mut pending).unwrap();
        let line = format!("CLIENT_RANDOM {} {}\n", "05".repeat(32), "cd".repeat(48));
        assert_eq!(text(log), line);
        assert_eq!(with(&[0xcd; 47], &[5; 32]), None);
        // Cut: not all of it is there.
        assert_eq!(with(&[0xcd; 100], &[5; 32]), None);
        assert_eq!(with(&[0xcd; 48], &[5; 31]), None);
    }

    #[test]
    fn keys_that_wait_for_ever_are_few() {
        let mut log = KeyLog::new(Vec::new());
        let mut pending = Vec::new();
        for _ in 0..100 {
            let parameters: &[(&str, &[u8])] = &[("prefix", b"tls13 "), ("label", b"exp master")];
            let key = key_of(&derived(parameters, &[1; 32])).unwrap();
            log.key(key, None, &mut pending).unwrap();
        }
        assert_eq!(pending.len(), MOST_PENDING);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
            let _ = key_of(&bytes);
        }
    }
}
