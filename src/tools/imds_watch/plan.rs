// SPDX-License-Identifier: BSD-2-Clause

//! From arguments to what is watched and what is expected of a request there.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result as Anyhow;

use crate::endpoint::{Endpoint, Protocol};
use crate::endpoint_table::{Table, Target, merge};
use crate::failure::Failure;
use crate::metadata::{self, CLOUDS, Cloud, HTTPS, Service};

use super::hosts::Hosts;
use super::permitted::Permitted;
use super::request::Request;
use super::rules::Rules;
use super::scan;
use super::scanner::{SCANNED, header_flags};
use super::watchlist::Watchlist;

/// Bits of an endpoint's mask that are flags of headers: `IMDS_HEADERS` of `imds_watch.h`, and those
/// above them that user space alone looks at.
const HEADERS: u64 = 0x01ff;
/// Every request goes up: `IMDS_ALWAYS` of `imds_watch.h`.
const ALWAYS: u64 = 1 << 63;
/// A cloud is there that wants no header. For user space only.
const OPEN: u64 = 1 << 62;
/// Every request is one for credentials. For user space only.
const SECRET: u64 = 1 << 61;

/// Headers that carry a session token, which has to be fetched first.
const SESSION: &[&str] = &[
    "metadata-token",
    "x-aliyun-ecs-metadata-token",
    "x-aws-ec2-metadata-token",
];
/// Clouds whose endpoint does nothing but hand out credentials.
const SECRET_CLOUDS: &[&str] = &["aws-ecs", "aws-eks"];

/// Something about a request that is worth knowing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// No session token, where there is a cloud that has them: the request breaks once tokens are
    /// required, and a proxy or an open redirect can be made to send it.
    Imdsv1,
    /// No header of those that clouds without session tokens want.
    MissingMetadataHeader,
    /// A proxy has passed it on.
    Forwarded,
    /// It asks for another host than the service: DNS rebinding, or a proxy.
    ForeignHost,
    /// The path is of a version of the service that wants no header, where a newer one does.
    LegacyPath,
    /// The path hands out credentials.
    Credentials,
    /// The path hands out user data.
    UserData,
    /// It asks for all that is below the path.
    Recursive,
    /// One of the user's own rules.
    Rule,
    /// The user is none of those that may ask, or is not known.
    UnknownUser,
    /// Its caller tries many paths, or many that are not there.
    Scan,
    /// No request, not all of one, or one that services may read differently.
    Unparsable,
}

impl Finding {
    /// The name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Imdsv1 => "imdsv1",
            Self::MissingMetadataHeader => "missing-metadata-header",
            Self::Forwarded => "forwarded",
            Self::ForeignHost => "foreign-host",
            Self::LegacyPath => "legacy-path",
            Self::Credentials => "credentials",
            Self::UserData => "user-data",
            Self::Recursive => "recursive",
            Self::Rule => "rule",
            Self::UnknownUser => "unknown-user",
            Self::Scan => "scan",
            Self::Unparsable => "unparsable",
        }
    }

    /// What it means, in a few words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Imdsv1 => "no session token, where the service has them",
            Self::MissingMetadataHeader => "not the header that the cloud wants",
            Self::Forwarded => "a header that proxies add",
            Self::ForeignHost => "asks for another host than the service",
            Self::LegacyPath => "a version of the service that wants no header",
            Self::Credentials => "the path hands out credentials",
            Self::UserData => "the path hands out user data",
            Self::Recursive => "asks for all that is below the path",
            Self::Rule => "one of your own rules",
            Self::UnknownUser => "the user is none of those that may ask",
            Self::Scan => "its caller tries many paths",
            Self::Unparsable => "no whole request, or one that services may read differently",
        }
    }
}

/// What is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The endpoints, with the masks that the program reads.
    pub targets: Vec<Target>,
    /// The same for the program.
    pub table: Table,
    /// The user's own rules.
    pub rules: Rules,
    /// Who may ask; `None` where nobody said who may.
    pub permitted: Option<Permitted>,
    /// Within so long, many paths are a scan.
    pub window: Duration,
}

impl Plan {
    /// Endpoints of these clouds (`all` for every one) and these; all clouds where none is named.
    ///
    /// An endpoint that is given by its address is expected to want the header of one of the
    /// clouds: of those named, else of any.
    ///
    /// # Errors
    /// [`Failure::Usage`] for a cloud that is not in the catalogue, an endpoint of another
    /// protocol than TCP, or more of them than the program holds.
    pub fn new(clouds: &[String], endpoints: &[Endpoint]) -> Result<Self, Failure> {
        let mut chosen: Vec<&Cloud> = Vec::new();
        for name in clouds {
            match metadata::cloud(name) {
                Some(cloud) => chosen.push(cloud),
                None if name == "all" => chosen.extend(CLOUDS),
                None => {
                    let known: Vec<_> = metadata::names().collect();
                    return Err(Failure::usage(format!(
                        "no cloud {name:?}; there are all, {}",
                        known.join(", ")
                    )));
                }
            }
        }
        if chosen.is_empty() && endpoints.is_empty() {
            chosen.extend(CLOUDS);
        }
        let mut targets: Vec<Target> = chosen
            .iter()
            .flat_map(|cloud| {
                let each = cloud.services.iter();
                each.flat_map(|one| one.guarded(cloud.name).map(|at| (at, mask(cloud, one))))
            })
            // What is encrypted is no request that could be read.
            .filter(|(endpoint, _)| *endpoint.ports.start() != HTTPS)
            .map(|(endpoint, mask)| Target { endpoint, mask })
            .collect();
        let expected = if chosen.is_empty() {
            CLOUDS.iter().collect()
        } else {
            chosen
        };
        let mask = expected
            .iter()
            .flat_map(|cloud| cloud.services.iter().map(|one| mask(cloud, one)))
            .fold(0, |all, mask| all | mask)
            & !(ALWAYS | SECRET);
        for endpoint in endpoints {
            if endpoint.protocol == Some(Protocol::Udp) {
                return Err(Failure::usage(format!(
                    "endpoint {endpoint}: metadata is asked for by HTTP over TCP, not UDP"
                )));
            }
            let endpoint = Endpoint {
                protocol: Some(Protocol::Tcp),
                ..endpoint.clone()
            };
            targets.push(Target { endpoint, mask });
        }
        let targets = merge(targets);
        let table = Table::new(&targets)?;
        Ok(Self {
            targets,
            table,
            rules: Rules::default(),
            permitted: None,
            window: scan::WINDOW,
        })
    }

    /// The same with these rules.
    pub fn with_rules(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// The same with only these allowed to ask.
    pub fn with_permitted(self, permitted: Option<Permitted>) -> Self {
        Self { permitted, ..self }
    }

    /// The same with many paths a scan within this time, in place of [`scan::WINDOW`].
    pub fn with_window(self, window: Duration) -> Self {
        Self { window, ..self }
    }

    /// The users whose clean requests are of no interest to anyone; `None` where nobody said who may
    /// ask.
    pub fn known_users(&self) -> Option<BTreeSet<u32>> {
        self.permitted
            .as_ref()
            .map(|permitted| self.known(permitted))
    }

    /// The same where these may ask.
    pub fn known(&self, permitted: &Permitted) -> BTreeSet<u32> {
        let endpoints = self.targets.iter().map(|one| one.endpoint.clone());
        permitted.everywhere(&endpoints.collect::<Vec<_>>())
    }

    /// The names of what is watched.
    pub fn hosts(&self) -> Hosts {
        let endpoints = self.targets.iter().map(|one| one.endpoint.clone());
        Hosts::new(&self.rules.hosts, endpoints.collect())
    }

    /// What requests are compared with.
    ///
    /// # Errors
    /// If an expression is wrong; none is that passed the checks of [`Rules::read`].
    pub fn watchlist(&self) -> Anyhow<Watchlist> {
        Watchlist::new(self.hosts(), &self.rules)
    }

    /// The endpoint for this address, and port where it is known: the most specific one.
    pub fn target(&self, address: std::net::IpAddr, port: Option<u16>) -> Option<&Target> {
        let fits = |endpoint: &Endpoint| {
            endpoint.contains(address) && port.is_none_or(|port| endpoint.ports.contains(&port))
        };
        // The first of equals, as in the program's table.
        self.targets
            .iter()
            .rev()
            .filter(|target| fits(&target.endpoint))
            .max_by_key(|target| target.endpoint.prefix)
    }
}

fn mask(cloud: &Cloud, service: &Service) -> u64 {
    let headers = header_flags(service.headers);
    let mut mask = if headers == 0 {
        OPEN
    } else {
        u64::from(headers)
    };
    if headers & !SCANNED != 0 {
        mask |= ALWAYS;
    }
    if SECRET_CLOUDS.contains(&cloud.name) {
        mask |= ALWAYS | SECRET;
    }
    mask
}

/// Whether the request shows a session token, or asks for one: version 2 of the clouds that have two.
pub fn has_session(request: &Request) -> bool {
    request.tokens & header_flags(SESSION) != 0
}

/// What is to be said about a request itself to an endpoint with this mask, in a fixed order.
///
/// Where clouds share an address, the path decides which of their headers it needs; where it could
/// be any cloud's, any of them will do: nobody can tell from outside which cloud this is. A request
/// with none is `imdsv1` if one of those that would do is a session token.
/// Of a request of which no header could be read, nothing is said to be missing: what was cut off may
/// have been the token.
pub fn findings(request: &Request, mask: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let all = mask & HEADERS;
    let required = match all & u64::from(request.wanted) {
        0 => all,
        of_path => of_path,
    };
    let free = required & !u64::from(request.headerless) == 0 || request.open && mask & OPEN != 0;
    let whole = !request.cut || !request.headers.is_empty();
    if whole && !free && u64::from(request.tokens) & required == 0 {
        findings.push(if required & u64::from(header_flags(SESSION)) != 0 {
            Finding::Imdsv1
        } else {
            Finding::MissingMetadataHeader
        });
    }
    let others = [
        (request.forwarded, Finding::Forwarded),
        (request.foreign_host, Finding::ForeignHost),
        (request.legacy, Finding::LegacyPath),
        (
            request.credentials || mask & SECRET != 0,
            Finding::Credentials,
        ),
        (request.user_data, Finding::UserData),
        (request.recursive, Finding::Recursive),
    ];
    findings.extend(
        others
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, finding)| *finding),
    );
    if request.unparsable {
        findings.push(Finding::Unparsable);
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::scanner::header_flag;
    use super::*;

    fn plan(clouds: &[&str], endpoints: &[&str]) -> Result<Plan, Failure> {
        let clouds: Vec<_> = clouds.iter().map(|name| (*name).to_owned()).collect();
        let endpoints: Vec<_> = endpoints.iter().map(|text| text.parse().unwrap()).collect();
        Plan::new(&clouds, &endpoints)
    }

    fn of(cloud: &str, request: &Request) -> Vec<Finding> {
        let plan = plan(&[cloud], &[]).unwrap();
        findings(request, plan.targets[0].mask)
    }

    #[test]
    fn what_a_missing_header_means_depends_on_the_cloud() {
        let bare = Request::default();
        assert_eq!(of("aws", &bare), [Finding::Imdsv1]);
        assert_eq!(of("azure", &bare), [Finding::MissingMetadataHeader]);
        assert_eq!(of("hetzner", &bare), []);
        assert_eq!(of("aws-ecs", &bare), [Finding::Credentials]);
        let cut = Request {
            unparsable: true,
            cut: true,
            ..Request::default()
        };
        assert_eq!(of("aws", &cut), [Finding::Unparsable]);
        // All there, and none of its lines ends as it should.
        let odd = Request { cut: false, ..cut };
        assert_eq!(of("aws", &odd), [Finding::Imdsv1, Finding::Unparsable]);
        let metadata = Request {
            tokens: header_flag("metadata"),
            ..Request::default()
        };
        assert_eq!(of("azure", &metadata), []);
        assert_eq!(of("aws", &metadata), [Finding::Imdsv1]);
    }

    #[test]
    fn clouds_at_one_address_share_their_headers() {
        let plan = plan(&["all"], &[]).unwrap();
        let shared = plan
            .target("169.254.169.254".parse().unwrap(), Some(80))
            .unwrap();
        assert!(
            shared.endpoint.name.contains("aws,azure"),
            "{}",
            shared.endpoint.name
        );
        let azure = Request {
            tokens: header_flag("metadata"),
            ..Request::default()
        };
        assert_eq!(findings(&azure, shared.mask), []);
        assert_eq!(
            findings(&Request::default(), shared.mask),
            [Finding::Imdsv1]
        );
    }

    #[test]
    fn the_path_decides_whose_header_is_needed() {
        let plan = plan(&["all"], &[]).unwrap();
        let mask = plan
            .target("169.254.169.254".parse().unwrap(), Some(80))
            .unwrap()
            .mask;
        let list = plan.watchlist().unwrap();
        let of = |mask: u64, path: &str, header: &str| {
            let text = format!("GET {path} HTTP/1.1\r\n{header}: true\r\n\r\n");
            match super::super::request::step(text.as_bytes(), &list) {
                super::super::request::Step::Head { request, .. } => findings(&request, mask),
                other => panic!("{other:?}"),
            }
        };
        let token = "X-aws-ec2-metadata-token";
        for (path, wanted, missing) in [
            ("/latest/meta-data/iam/info", token, Finding::Imdsv1),
            ("/%6catest/meta-data/", token, Finding::Imdsv1),
            ("//2021-07-15/meta-data/", token, Finding::Imdsv1),
            (
                "/computeMetadata/v1/",
                "Metadata-Flavor",
                Finding::MissingMetadataHeader,
            ),
            (
                "/metadata/instance/network",
                "Metadata",
                Finding::MissingMetadataHeader,
            ),
            (
                "/opc/v2/vnics/",
                "Authorization",
                Finding::MissingMetadataHeader,
            ),
        ] {
            for header in [
                token,
                "Authorization",
                "Metadata",
                "Metadata-Flavor",
                "Metadata-Token",
                "X",
            ] {
                let expected = if header == wanted {
                    vec![]
                } else {
                    vec![missing]
                };
                assert_eq!(of(mask, path, header), expected, "{path} {header}");
            }
        }
        assert_eq!(of(mask, "/v1/", "X"), []);
        assert_eq!(of(mask, "/metadata/v1/id", "X"), []);
        assert_eq!(of(mask, "/openstack/", "Metadata"), []);
        assert_eq!(of(mask, "/openstack/", "X"), [Finding::Imdsv1]);
        // Where there is but one, the path decides nothing.
        let akamai = u64::from(header_flag("metadata-token"));
        assert_eq!(of(akamai, "/v1/", "X"), [Finding::Imdsv1]);
        assert_eq!(of(akamai, "/latest/", "Metadata-Token"), []);
    }

    #[test]
    fn without_a_choice_all_clouds_are_watched() {
        assert_eq!(plan(&[], &[]).unwrap(), plan(&["all"], &[]).unwrap());
        let own = plan(&[], &["10.0.0.1:80"]).unwrap();
        assert_eq!(own.targets.len(), 1);
        assert_eq!(
            findings(&Request::default(), own.targets[0].mask),
            [Finding::Imdsv1]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let err = plan(&["awz"], &[]).unwrap_err().to_string();
        assert!(err.contains("\"awz\"") && err.contains("aws"), "{err}");
        let err = plan(&[], &["10.0.0.1:53/udp"]).unwrap_err().to_string();
        assert!(err.contains("10.0.0.1:53/udp"), "{err}");
    }
}
