// SPDX-License-Identifier: BSD-2-Clause

//! By which names a metadata service is asked for. A request with another one in its Host header
//! came to the service by a name that somebody else's DNS leads there (DNS rebinding), or by a
//! proxy that passes on what it was asked.

use std::net::IpAddr;

use crate::endpoint::Endpoint;

/// Names that clouds give their services, in lower case. Sources: Google's and Azure's pages in
/// [`crate::metadata::CLOUDS`], <https://cloud.tencent.com/document/product/213/4934>, IBM's page
/// and, for AWS, the resolver's own answers.
const NAMES: &[&str] = &[
    "api.metadata.cloud.ibm.com",
    "instance-data",
    "instance-data.ec2.internal",
    "metadata",
    "metadata.azure.internal",
    "metadata.goog",
    "metadata.google.internal",
    "metadata.tencentyun.com",
];

/// The names and addresses of the services that are watched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts {
    names: Vec<String>,
    endpoints: Vec<Endpoint>,
}

impl Hosts {
    /// The known names, `more` (lower case), and the addresses of `endpoints`.
    pub fn new(more: &[String], endpoints: Vec<Endpoint>) -> Self {
        let names = NAMES.iter().map(|name| (*name).to_owned());
        Self {
            names: names.chain(more.iter().cloned()).collect(),
            endpoints,
        }
    }

    /// Whether a Host header of this value, or an authority in a target, is the service's. An empty
    /// one says nothing about any other.
    pub fn is_service(&self, value: &str) -> bool {
        let value = value.trim();
        let (host, port) = match value.strip_prefix('[') {
            Some(inner) => match inner.split_once(']') {
                Some((host, port)) => (host, port),
                None => return false,
            },
            None => value.find(':').map_or((value, ""), |at| value.split_at(at)),
        };
        let is_port = match port.strip_prefix(':') {
            Some(digits) => digits.bytes().all(|byte| byte.is_ascii_digit()),
            None => port.is_empty(),
        };
        if !is_port {
            return false;
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            return self.endpoints.iter().any(|one| one.contains(address));
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        host.is_empty()
            || self
                .names
                .iter()
                .any(|name| host.eq_ignore_ascii_case(name))
    }

    /// A regular expression for values that are the service's beyond doubt; not for all of them.
    pub fn expression(&self) -> String {
        let escaped = |text: &str| {
            text.chars()
                .map(|c| {
                    if c.is_ascii_alphanumeric() {
                        c.to_string()
                    } else {
                        format!("\\{c}")
                    }
                })
                .collect::<String>()
        };
        let whole = |one: &&Endpoint| one.prefix == if one.address.is_ipv4() { 32 } else { 128 };
        let mut all: Vec<_> = self.names.iter().map(|name| escaped(name)).collect();
        for endpoint in self.endpoints.iter().filter(whole) {
            all.push(match endpoint.address {
                IpAddr::V4(v4) => escaped(&v4.to_string()),
                IpAddr::V6(v6) => escaped(&format!("[{v6}]")),
            });
        }
        all.sort_unstable();
        all.dedup();
        format!("(?i:{})(:[0-9]+)?", all.join("|"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_its_addresses_and_names() {
        let endpoints = ["169.254.169.254:80", "[fd00:ec2::254]:80", "10.0.0.0/8:80"];
        let endpoints = endpoints.map(|text| text.parse().unwrap()).to_vec();
        let hosts = Hosts::new(&["own.example".to_owned()], endpoints);
        for (value, expected) in [
            ("169.254.169.254", true),
            (" 169.254.169.254:80 ", true),
            ("[fd00:ec2::254]", true),
            ("[FD00:EC2:0::254]:80", true),
            ("10.9.9.9", true),
            ("metadata.google.internal", true),
            ("Metadata.Google.Internal.", true),
            ("metadata", true),
            ("own.example:8080", true),
            ("", true),
            ("evil.example", false),
            ("169.254.169.254.evil.example", false),
            ("169.254.169.253", false),
            ("metadata:80x", false),
            ("[fd00:ec2::254", false),
            ("a@169.254.169.254", false),
            ("2852039166", false),
        ] {
            assert_eq!(hosts.is_service(value), expected, "{value:?}");
        }
    }
}
